"""A search as it comes over the wire: every mistake is named, and what is answered fits what was asked for."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.errors import InvalidRequest, TooLarge
from engram_bus.limits import FILTER_GLOB_BYTES_MAX, FILTER_VALUES_MAX, SEARCH_LIMIT_MAX, SEARCH_QUERY_BYTES_MAX
from engram_bus.projections.search.requests import SearchIn, Window, answer, asked_from, window_of
from engram_bus.projections.search.scope import Scope
from engram_bus.projections.search.values import Found, Hit, Leg
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


def hit(seq: int) -> Hit:
    return Hit(seq, 1 / seq, Leg(seq, 2.0), None, 0.5, 0.25, None)


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
    plain, told = answered([3], limit=5), answered([3], limit=5, explain=True, include="units", facets=True)
    assert msgspec.to_builtins(plain)["results"] == [
        {"unit_id": unit(1).id, "seq": 1, "score": 1.0, "tokens": 1, "keyword": {"rank": 1, "score": 2.0}}
    ]
    assert "facets" not in msgspec.to_builtins(plain)
    (result,) = msgspec.to_builtins(told)["results"]
    assert (result["explain"]["keyword_part"], result["explain"]["vector_part"]) == (0.5, 0.25)
    assert result["unit"]["payload"] == "xxx"
    assert msgspec.to_builtins(told)["facets"] == {}
