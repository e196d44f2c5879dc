"""A search as it comes over the wire: every mistake is named, and what is answered fits what was asked for."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.errors import InvalidRequest, TooLarge
from engram_bus.limits import (
    FILTER_GLOB_BYTES_MAX,
    FILTER_VALUES_MAX,
    SEARCH_HALF_LIFE_MS_MAX,
    SEARCH_LIMIT_MAX,
    SEARCH_QUERY_BYTES_MAX,
    SEARCH_RANK_CONSTANT_MAX,
    SEARCH_WEIGHT_MAX,
)
from engram_bus.projections.search.requests import SearchIn, Window, answer, asked_from, window_of
from engram_bus.projections.search.scope import Scope
from engram_bus.projections.search.values import Asked, Found, Hit, Leg
from engram_bus.units import UnitType
from tests.values import unit


def asked(**fields: Any) -> Any:
    search = SearchIn(**{"query": "x", **fields})
    return asked_from(search, window_of(search))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "fuzzy"),
        ("fusion", "sum"),
        ("include", "all"),
        ("limit", 0),
        ("limit", -1),
        ("limit", SEARCH_LIMIT_MAX + 1),
        ("type", "LIE"),
        ("type", [9]),
        ("type", []),
        ("context_id", []),
        ("agent_id", []),
        ("kind", []),
        ("resource", []),
        ("related_to", []),
        ("after_seq", -1),
        ("before_seq", 2**63),
        ("as_of_seq", -1),
        ("as_of_seq", 10**30),
        ("max_tokens", -1),
        ("max_tokens", 2**64),
        ("min_seq", -1),
        ("min_seq", 2**64),
        ("vector_weight", -0.1),
        ("vector_weight", 1.1),
        ("vector_weight", float("nan")),
        ("rank_constant", -1),
        ("rank_constant", SEARCH_RANK_CONSTANT_MAX + 1),
        ("half_life_ms", 0),
        ("half_life_ms", SEARCH_HALF_LIFE_MS_MAX + 1),
        ("recency_weight", -1),
        ("recency_weight", SEARCH_WEIGHT_MAX + 1),
        ("neighbour_weight", -1),
        ("neighbour_weight", float("inf")),
        ("context_id", ""),
        ("context_id", ["plan", ""]),
        ("agent_id", ""),
        ("resource", [""]),
        ("related_to", ""),
        ("meta", {"": "7"}),
        ("after_ts", "yesterday"),
        ("before_ts", "2026-01-31T12:00:00"),
        ("page", "1.2"),
        ("page", "1.2.x"),
        ("page", "-1.2.3"),
        ("page", "1.2.3.4"),
        ("page", "\uff11.2.3"),
        ("page", "1.1." + "9" * 20),
        ("page", ""),
    ],
)
def test_a_mistake_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(**{field: value})
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("query", "é" * (SEARCH_QUERY_BYTES_MAX // 2) + "x"),
        ("context_id", ["c"] * (FILTER_VALUES_MAX + 1)),
        ("kind", "k" * (FILTER_GLOB_BYTES_MAX + 1)),
        ("resource", ["é" * 512] * 3),
    ],
)
def test_a_bound_is_named(field: str, value: object) -> None:
    with pytest.raises(TooLarge) as refused:
        asked(**{field: value})
    assert (refused.value.field, refused.value.limit is not None) == (field, True)


def test_what_is_asked_is_what_was_said() -> None:
    search = asked(
        query='"a b" c',
        mode="keyword",
        limit=7,
        context_id="plan",
        agent_id=["ann", "bob"],
        type=["ERROR", 1],
        kind="build.*",
        resource=["src/*"],
        meta={"run": "1"},
        related_to="u1",
        after_seq=0,
        before_seq=9,
        after_ts="1970-01-01T00:00:01Z",
        before_ts="1970-01-01T01:00:02+01:00",
        as_of_seq=8,
        fusion="rrf",
        facets=True,
        vector_weight=0.5,
        rank_constant=10,
        half_life_ms=1_000,
        recency_weight=2,
        neighbour_weight=0.25,
        distinct=True,
    )
    assert search.scope == Scope(
        contexts=("plan",),
        agents=("ann", "bob"),
        types=(UnitType.ERROR, UnitType.MESSAGE),
        kinds=("build.*",),
        resources=("src/*",),
        meta=(("run", "1"),),
        related_to=("u1",),
        after_seq=0,
        before_seq=9,
        after_us=1_000_000,
        before_us=2_000_000,
    )
    assert (search.query, search.mode, search.limit, search.offset) == ('"a b" c', "keyword", 8, 0)
    assert (search.as_of_seq, search.fusion, search.facets) == (8, "rrf", True)
    assert (search.vector_weight, search.rank_constant, search.neighbour_weight) == (0.5, 10, 0.25)
    assert (search.half_life_ms, search.recency_weight, search.distinct) == (1_000, 2, True)


@pytest.mark.parametrize(
    ("said", "reach"),
    [
        ({}, 9),
        ({"min_seq": 3}, 9),
        ({"stale": True}, 0),
        ({"stale": True, "min_seq": 3}, 3),
        ({"as_of_seq": 5}, 5),
        ({"as_of_seq": 50}, 9),
        ({"as_of_seq": 5, "stale": True, "min_seq": 7}, 5),
        ({"page": "6.5.10"}, 6),
        ({"page": "6.5.10", "stale": True}, 6),
    ],
)
def test_how_far_the_index_has_to_have_come(said: dict[str, Any], reach: int) -> None:
    assert asked(**said).reach(9) == reach


def test_a_kind_may_be_empty_for_a_unit_may_have_none() -> None:
    assert asked(kind="").scope.kinds == ("",)
    assert asked(kind=["", "build.*"]).scope.kinds == ("", "build.*")


def test_what_is_not_said_is_as_it_was_measured() -> None:
    assert asked() == Asked(query="x", limit=11)


def hit(seq: int) -> Hit:
    return Hit(seq, 1 / seq, Leg(seq, 2.0), None, 0.5, 0.25, None, 0.125, 0.0625, seq - 1)


def answered(sizes: list[int], **fields: Any) -> Any:
    """An answer over units of these many bytes."""
    search = SearchIn(**{"query": "x", **fields})
    hits = [hit(seq) for seq in range(1, len(sizes) + 1)]
    units = [unit(seq, payload=b"x" * size) for seq, size in enumerate(sizes, start=1)]
    found = Found(hits, 99, 50, 40)
    return answer(search, window_of(search), found, list(zip(hits, units, strict=True))[: search.limit])


@given(st.lists(st.integers(0, 400), max_size=30), st.integers(0, 500))
def test_a_budget_is_filled_in_rank_order(sizes: list[int], budget: int) -> None:
    room, expected = budget, []
    for seq, size in enumerate(sizes, start=1):
        tokens = -(-size // 4)
        if tokens <= room:
            room -= tokens
            expected.append((seq, tokens))
    results = answered(sizes, max_tokens=budget, limit=100).results
    assert [(one.seq, one.tokens) for one in results] == expected


def test_the_next_page_goes_on_where_this_one_ended() -> None:
    first = answered([1] * 6, limit=5)
    assert first.next_page == "50.40.5"
    assert window_of(SearchIn(query="x", page=first.next_page)) == Window(5, 50, 40)
    assert answered([1] * 6, limit=5, page="50.40.5").next_page == "50.40.10"
    assert answered([1] * 5, limit=5).next_page is None
    assert answered([], limit=5).next_page is None


def test_more_is_told_where_more_was_asked_for() -> None:
    plain = answered([3], limit=5)
    told = answered([3], limit=5, explain=True, include="units", facets=True, fusion="rrf", vector_weight=0.5)
    assert msgspec.to_builtins(plain)["results"] == [
        {"unit_id": unit(1).id, "seq": 1, "score": 1.0, "tokens": 1, "keyword": {"rank": 1, "score": 2.0}}
    ]
    assert "facets" not in msgspec.to_builtins(plain)
    (result,) = msgspec.to_builtins(told)["results"]
    assert result["explain"] == {
        "fusion": "rrf",
        "vector_weight": 0.5,
        "keyword_part": 0.5,
        "vector_part": 0.25,
        "neighbour_part": 0.125,
        "recency_part": 0.0625,
    }
    assert result["unit"]["payload"] == "xxx"
    assert msgspec.to_builtins(told)["facets"] == {}
    assert [one.get("duplicates") for one in msgspec.to_builtins(answered([1, 1, 1]))["results"]] == [None, 1, 2]
