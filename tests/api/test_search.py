"""Search over HTTP: what can be asked, what is answered, and how it says no."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engram_bus.api.health import search_status
from engram_bus.errors import EngramError, SearchBuilding, SearchUnavailable
from engram_bus.limits import (
    FILTER_GLOB_BYTES_MAX,
    FILTER_VALUES_MAX,
    MIN_SEQ_TIMEOUT_MS_MAX,
    SEARCH_LIMIT_MAX,
    SEARCH_PAGE_BYTES_MAX,
    SEARCH_QUERY_BYTES_MAX,
    SEARCH_REQUEST_BYTES_MAX,
)
from engram_bus.projections.search.messages import State
from engram_bus.projections.search.requests import FUSIONS, MODES, SearchIn
from engram_bus.projections.search.searcher import Searcher
from tests.live import LiveBus

UNITS: list[dict[str, Any]] = [
    {"payload": "I take the parser", "type": "TASK_STATUS", "kind": "task.taken", "meta": {"run": "7", "team": "red"}},
    {"payload": "the parser drops comments", "agent_id": "bob", "type": "ERROR", "resources": ["src/parser.py"]},
    {"payload": {"parser": {"state": "fixed"}}, "agent_id": "bob", "context_id": "review"},
    {"payload": "the automobile broke down", "agent_id": "eve", "context_id": "cars"},
]
"""In a log of their own, at the seqs 1 to 4; the third one refers to the second."""


@pytest.fixture(scope="module")
def said() -> Iterator[LiveBus]:
    """A bus that has heard UNITS; nobody says more."""
    with LiveBus() as bus:
        bus.append(**UNITS[0])
        second = bus.append(**UNITS[1])
        bus.append(**UNITS[2], relationships=[{"target_id": second["id"], "type": "RESPONDS_TO"}])
        bus.append(**UNITS[3])
        yield bus


@pytest.fixture
def bus() -> Iterator[LiveBus]:
    with LiveBus() as bus:
        yield bus
        assert bus.is_well()


def search(bus: LiveBus, query: str = "parser", **asked: Any) -> dict[str, Any]:
    response = bus.http.post("/search", json={"query": query, **asked})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def seqs(found: dict[str, Any]) -> list[int]:
    return [hit["seq"] for hit in found["results"]]


def refused(response: httpx.Response) -> tuple[int, str, str | None]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert problem["status"] == response.status_code
    return response.status_code, problem["code"], problem.get("field")


# --- What is answered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/api/v1"])
def test_a_hit_says_why_it_is_there(said: LiveBus, prefix: str) -> None:
    response = said.http.post(f"{prefix}/search", json={"query": "who takes the parser?"})
    found = response.json()
    assert response.headers["engram-applied-seq"] == "4"
    assert list(found) == ["results", "total", "applied_seq", "next_page", "degraded"]
    assert found["degraded"] is False
    assert (sorted(seqs(found)), found["total"], found["applied_seq"], found["next_page"]) == ([1, 2, 3, 4], 4, 4, None)
    assert [hit["score"] for hit in found["results"]] == sorted(
        (hit["score"] for hit in found["results"]), reverse=True
    )
    hit = next(hit for hit in found["results"] if hit["seq"] == 1)
    assert list(hit) == ["unit_id", "seq", "score", "tokens", "keyword", "vector", "highlights"]
    assert hit["tokens"] == 5
    assert set(hit["keyword"]) == set(hit["vector"]) == {"rank", "score"}
    (fragment,) = hit["highlights"]
    assert fragment["text"] == "I take the parser"
    assert [fragment["text"][start:end] for start, end in fragment["spans"]] == ["take", "parser"]


def test_units_come_along_where_they_are_asked_for(said: LiveBus) -> None:
    for hit in search(said, include="units")["results"]:
        assert hit["unit"] == said.http.get(f"/workunit/{hit['unit_id']}").json()
    assert all("unit" not in hit for hit in search(said, include="ids")["results"])


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("mode", MODES)
def test_a_score_is_the_sum_of_what_both_legs_give(said: LiveBus, mode: str, fusion: str) -> None:
    for hit in search(said, "the parser is broken", mode=mode, fusion=fusion, explain=True)["results"]:
        explained = hit["explain"]
        assert list(explained) == [
            "fusion",
            "vector_weight",
            "keyword_part",
            "vector_part",
            "neighbour_part",
            "recency_part",
        ]
        assert explained["fusion"] == fusion
        assert hit["score"] == pytest.approx(explained["keyword_part"] + explained["vector_part"])
        if mode != "hybrid":
            other = "vector" if mode == "keyword" else "keyword"
            assert (explained[f"{other}_part"], other in hit) == (0.0, False)


def test_the_ranking_can_be_told_how_it_is_made(said: LiveBus) -> None:
    plain = search(said, "the parser is broken", explain=True)["results"]
    halves = search(said, "the parser is broken", fusion="rrf", rank_constant=1, vector_weight=0.5, explain=True)
    for hit in halves["results"]:
        assert hit["explain"]["vector_part"] == pytest.approx(0.5 / (1 + hit["vector"]["rank"]))
    told = search(said, "the parser is broken", half_life_ms=10**9, neighbour_weight=0.5, explain=True)["results"]
    parts = {hit["seq"]: hit["explain"] for hit in told}
    assert sorted(parts) == sorted(hit["seq"] for hit in plain)
    assert parts[4]["recency_part"] == 0.5
    assert parts[1]["neighbour_part"] > 0
    for hit in told:
        assert hit["score"] == sum(value for name, value in hit["explain"].items() if name.endswith("_part"))


def test_of_what_says_the_same_the_best_is_there_and_says_for_how_many(bus: LiveBus) -> None:
    for agent in ("ann", "bob", "eve"):
        bus.append(payload="the parser is broken", agent_id=agent)
    bus.append(payload="the parser is fixed")
    found = search(bus, "parser", distinct=True)
    assert [hit.get("duplicates", 0) for hit in sorted(found["results"], key=lambda hit: hit["seq"])] in (
        [2, 0],
        [0, 2],
    )
    assert (len(found["results"]), found["total"]) == (2, 4)
    first = search(bus, "parser", distinct=True, limit=1)
    second = search(bus, "parser", distinct=True, limit=1, page=first["next_page"])
    assert seqs(first) + seqs(second) == seqs(found)
    assert second["next_page"] is None


def test_words_find_words_and_meaning_finds_what_was_meant(said: LiveBus) -> None:
    assert search(said, "a car with engine trouble", mode="keyword")["results"] == []
    assert seqs(search(said, "a car with engine trouble", mode="semantic"))[0] == 4
    assert seqs(search(said, "a car with engine trouble"))[0] == 4
    assert sorted(seqs(search(said, "PARSER", mode="keyword"))) == [1, 2, 3]


def test_a_phrase_has_to_stand_as_it_is(said: LiveBus) -> None:
    for mode in MODES:
        found = search(said, 'who? "the parser drops"', mode=mode)
        assert (seqs(found), found["total"]) == ([2], 1)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"context_id": "plan"}, [1, 2]),
        ({"context_id": ["plan", "review"]}, [1, 2, 3]),
        ({"agent_id": "ann"}, [1]),
        ({"agent_id": ["ann", "bob"]}, [1, 2, 3]),
        ({"type": "ERROR"}, [2]),
        ({"type": 7}, [2]),
        ({"type": ["ERROR", 6]}, [1, 2]),
        ({"kind": "task.*"}, [1]),
        ({"kind": ["task.taken", "x"]}, [1]),
        ({"resource": "src/*"}, [2]),
        ({"meta": {"run": "7"}}, [1]),
        ({"meta": {"run": "7", "team": "blue"}}, []),
        ({"after_seq": 1, "before_seq": 3}, [2]),
        ({"after_seq": 0}, [1, 2, 3, 4]),
        ({"after_ts": "2001-01-01T00:00:00Z"}, [1, 2, 3, 4]),
        ({"after_ts": "0001-01-01T00:00:00Z", "before_ts": "9999-12-31T23:59:59+00:00"}, [1, 2, 3, 4]),
        ({"before_ts": "1960-01-01T00:00:00Z"}, []),
        ({"as_of_seq": 2}, [1, 2]),
        ({"as_of_seq": 0}, []),
        ({"as_of_seq": 99}, [1, 2, 3, 4]),
        ({"agent_id": "bob", "context_id": "plan", "type": "ERROR"}, [2]),
        ({"context_id": None, "page": None, "timeout_ms": None, "max_tokens": None}, [1, 2, 3, 4]),
    ],
    ids=str,
)
def test_a_filter_lets_through_what_it_names(said: LiveBus, asked: dict[str, Any], found: list[int]) -> None:
    """(The semantic leg ranks all that are let through.)"""
    answer = search(said, mode="semantic", facets=True, **asked)
    assert sorted(seqs(answer)) == found
    assert answer["total"] == len(found)
    assert sum(answer["facets"]["type"].values()) == len(found)


def test_a_filter_takes_times_of_units_and_ids_they_name(said: LiveBus) -> None:
    second = said.http.get("/workunits/plan").json()["work_units"][1]
    assert seqs(search(said, related_to=second["id"])) == seqs(search(said, related_to=[second["id"], "x"])) == [3]
    assert sorted(seqs(search(said, after_ts=second["ts"]))) == [3, 4]
    assert sorted(seqs(search(said, before_ts=second["ts"]))) == [1]


def test_facets_count_all_that_is_let_through(said: LiveBus) -> None:
    found = search(said, limit=1, facets=True, agent_id=["ann", "bob"])
    assert found["facets"] == {
        "context": {"plan": 2, "review": 1},
        "agent": {"bob": 2, "ann": 1},
        "type": {"TASK_STATUS": 1, "ERROR": 1, "MESSAGE": 1},
        "kind": {"": 2, "task.taken": 1},
    }
    assert "facets" not in search(said)


def test_the_log_as_it_was_is_searched_as_if_it_ended_there(bus: LiveBus) -> None:
    for number in range(5):
        bus.append(payload=f"the parser, part {number}")
    asked = {"explain": True, "facets": True, "include": "units"}
    then = search(bus, "parser part 3", **asked)
    for _ in range(5):
        bus.append(payload="parser parser part 3", agent_id="eve")
    now = search(bus, "parser part 3", as_of_seq=5, **asked)
    assert now.pop("applied_seq") == then.pop("applied_seq") == 5
    assert seqs(now) == seqs(then)
    assert (now["total"], now["facets"]) == (then["total"], then["facets"])
    for one, other in zip(now["results"], then["results"], strict=True):
        assert one["score"] == pytest.approx(other["score"], rel=1e-5)


def test_pages_hold_each_unit_once_while_more_is_said(bus: LiveBus) -> None:
    appended = [bus.append(payload=f"the parser, part {number}")["seq"] for number in range(7)]
    found = search(bus, limit=3)
    seen = seqs(found)
    while found["next_page"] is not None:
        bus.append(payload="parser parser parser")
        found = search(bus, limit=3, page=found["next_page"])
        assert (found["total"], found["applied_seq"]) == (7, 7)
        seen += seqs(found)
    assert sorted(seen) == appended


def test_a_page_of_large_units_ends_early_and_the_next_one_goes_on(bus: LiveBus) -> None:
    appended = [bus.append(payload=f"parser {number} {'x' * 1_000_000}")["seq"] for number in range(6)]
    assert len(search(bus, limit=20)["results"]) == 6
    first = search(bus, limit=20, include="units")
    second = search(bus, limit=20, include="units", page=first["next_page"])
    assert len(first["results"]) == SEARCH_PAGE_BYTES_MAX // 1_000_008
    assert second["next_page"] is None
    assert sorted(seqs(first) + seqs(second)) == appended


def test_a_budget_is_filled_in_order_of_rank(bus: LiveBus) -> None:
    for payload in ("parser parser", "parser " * 400, "a parser among many other words"):
        bus.append(payload=payload)
    ranking = search(bus, mode="keyword")["results"]
    filled = search(bus, mode="keyword", max_tokens=20)["results"]
    assert len(ranking) == 3
    assert [hit["seq"] for hit in filled] == [hit["seq"] for hit in ranking if hit["tokens"] <= 20]
    assert search(bus, max_tokens=0)["results"] == []


@pytest.mark.parametrize("mode", MODES)
def test_what_is_acknowledged_is_found(bus: LiveBus, mode: str) -> None:
    for number in range(20):
        unit = bus.append(payload=f"the parser has bug {number}")
        assert unit["seq"] in seqs(search(bus, "bugs of the parser", mode=mode, limit=SEARCH_LIMIT_MAX))


def test_what_the_bus_says_of_itself_is_not_found(bus: LiveBus) -> None:
    bus.http.post("/locks", json={"resource": "parser", "agent_id": "ann"})
    bus.http.patch("/contexts/parser", json={"agent_id": "ann", "display_name": "parser"})
    found = search(bus)
    assert (found["results"], found["total"], found["applied_seq"]) == ([], 0, 2)


# --- When ------------------------------------------------------------------------------------------------------------


def test_a_search_waits_for_the_seq_it_is_to_reflect(bus: LiveBus) -> None:
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(search, bus, min_seq=1, timeout_ms=MIN_SEQ_TIMEOUT_MS_MAX)
        bus.wait(lambda inner: bool(inner._waiting))
        bus.append(payload="the parser")
        assert seqs(waiting.result(20)) == [1]


def test_a_stale_search_reflects_the_seq_it_is_to_reflect(said: LiveBus) -> None:
    assert search(said, "parser", stale=True, min_seq=4)["applied_seq"] == 4


def test_a_wait_ends(said: LiveBus) -> None:
    response = said.http.post("/search", json={"query": "parser", "min_seq": 5, "timeout_ms": 1})
    assert refused(response) == (503, "MIN_SEQ_TIMEOUT", "min_seq")
    assert response.json()["head"] == 4


class Unready:
    """What stands for a search that cannot answer now."""

    def __init__(self, error: EngramError) -> None:
        self.state = State(3, 5)
        self.lag_units = 0
        self._error = error

    def tell(self, head: int) -> None:
        """Nothing to ring."""

    async def search(self, asked: object) -> object:
        raise self._error

    def close(self) -> None:
        """Nothing to end."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SearchBuilding("at 5 of 9", taken_seq=5, head=9), "SEARCH_BUILDING"),
        (SearchUnavailable("it is being started"), "SEARCH_UNAVAILABLE"),
    ],
)
def test_a_search_that_cannot_answer_yet_says_when_to_ask_again(bus: LiveBus, error: EngramError, code: str) -> None:
    bus.call(lambda inner: setattr(inner, "searcher", Unready(error)))
    response = bus.http.post("/search", json={"query": "parser"})
    assert refused(response) == (503, code, None)
    assert response.json()["retryable"] is True
    assert response.headers["retry-after"] == "1"
    assert {name: response.json()[name] for name in error.details} == error.details
    status = bus.http.get("/status").json()["search"]
    assert {"taken_seq": 5, "lag_units": 0, "lag_ms": 0}.items() <= status.items()


def test_the_status_says_how_far_the_index_is(tmp_path: Path) -> None:
    with LiveBus(tmp_path / "data") as bus:
        assert bus.http.get("/status").json()["search"] is None
        bus.append(payload="the parser")
        assert seqs(search(bus)) == [1]
        bus.wait(lambda inner: inner.searcher is not None and inner.searcher.state.taken == 1)
        status = bus.http.get("/status").json()["search"]
        assert {"taken_seq": 1, "lag_units": 0, "lag_ms": 0}.items() <= status.items()


def test_an_index_is_built_again_on_demand(tmp_path: Path) -> None:
    with LiveBus(tmp_path / "data") as bus:
        bus.append(payload="the parser")
        assert seqs(search(bus)) == [1]
        response = bus.http.post("/search/rebuild")
        assert (response.status_code, response.json()["rebuilt_seq"]) == (202, None)
        bus.wait(lambda inner: inner.searcher is not None and inner.searcher.state.generation == 2)
        assert seqs(search(bus)) == [1]
        status = bus.http.get("/status").json()["search"]
        assert {"generation": 2, "rebuilt_seq": None}.items() <= status.items()


# --- How it says no --------------------------------------------------------------------------------------------------

INVALID = [
    ({"query": 1}, "query"),
    ({"query": None}, "query"),
    ({"mode": "psychic"}, "mode"),
    ({"mode": None}, "mode"),
    ({"fusion": "cold"}, "fusion"),
    ({"include": "all"}, "include"),
    ({"limit": 0}, "limit"),
    ({"limit": SEARCH_LIMIT_MAX + 1}, "limit"),
    ({"limit": 10.5}, "limit"),
    ({"limit": True}, "limit"),
    ({"limit": "10"}, "limit"),
    ({"page": ""}, "page"),
    ({"page": "nonsense"}, "page"),
    ({"page": "1."}, "page"),
    ({"page": 2}, "page"),
    ({"page": "99999999999999999999.0"}, "page"),
    ({"after_ts": "yesterday"}, "after_ts"),
    ({"after_ts": "2026-01-31"}, "after_ts"),
    ({"before_ts": "2026-01-31T12:00:00"}, "before_ts"),
    ({"before_ts": 1}, "before_ts"),
    ({"type": "GOSSIP"}, "type"),
    ({"type": 9}, "type"),
    ({"type": -1}, "type"),
    ({"type": ["ERROR", "GOSSIP"]}, "type"),
    ({"type": True}, "type"),
    ({"context_id": 1}, "context_id"),
    ({"context_id": ["a", 1]}, "context_id[1]"),
    ({"kind": {}}, "kind"),
    ({"meta": {"a": 1}}, "meta"),
    ({"meta": [["a", "b"]]}, "meta"),
    ({"after_seq": "1"}, "after_seq"),
    ({"facets": "yes"}, "facets"),
    ({"explain": 1}, "explain"),
    ({"timeout_ms": -1}, "timeout_ms"),
    ({"timeout_ms": MIN_SEQ_TIMEOUT_MS_MAX + 1}, "timeout_ms"),
    ({"colour": "red"}, "colour"),
    *(
        ({name: value}, name)
        for name in ("after_seq", "before_seq", "as_of_seq", "min_seq", "max_tokens")
        for value in (-1, 2**63, 2**64)
    ),
    *(
        ({name: value}, name)
        for name in ("vector_weight", "rank_constant", "recency_weight")
        for value in (-1, "1", None)
    ),
    *(({name: 10**6}, name) for name in ("vector_weight", "rank_constant", "recency_weight", "neighbour_weight")),
    *(({"half_life_ms": value}, "half_life_ms") for value in (0, 0.5, -1, 10**15)),
    ({"distinct": 1}, "distinct"),
    ({"stale": "no"}, "stale"),
    *(({name: ""}, name) for name in ("context_id", "agent_id", "resource", "related_to")),
    ({"meta": {"": "7"}}, "meta"),
    *(({name: []}, name) for name in ("context_id", "agent_id", "type", "kind", "resource", "related_to")),
]


@pytest.mark.parametrize(("fields", "field"), INVALID, ids=str)
def test_a_field_that_is_wrong_is_named(said: LiveBus, fields: dict[str, Any], field: str) -> None:
    response = said.http.post("/search", json={"query": "parser", **fields})
    assert refused(response) == (400, "INVALID_REQUEST", field)


@pytest.mark.parametrize(
    ("fields", "field", "limit"),
    [
        ({"query": "q" * (SEARCH_QUERY_BYTES_MAX + 1)}, "query", SEARCH_QUERY_BYTES_MAX),
        ({"query": "ü" * (SEARCH_QUERY_BYTES_MAX // 2 + 1)}, "query", SEARCH_QUERY_BYTES_MAX),
        *(
            ({name: ["x"] * (FILTER_VALUES_MAX + 1)}, name, FILTER_VALUES_MAX)
            for name in ("context_id", "agent_id", "kind", "resource", "related_to")
        ),
        ({"type": ["ERROR"] * (FILTER_VALUES_MAX + 1)}, "type", FILTER_VALUES_MAX),
        *(({name: ["*" * 512] * 5}, name, FILTER_GLOB_BYTES_MAX) for name in ("kind", "resource")),
    ],
)  # fmt: skip
def test_what_is_too_large_is_named_with_its_limit(
    said: LiveBus, fields: dict[str, Any], field: str, limit: int
) -> None:
    response = said.http.post("/search", json={"query": "parser", **fields})
    assert refused(response) == (413, "TOO_LARGE", field)
    assert response.json()["limit"] == limit


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"{}", 400, "query"),
        (b'{"query":"\\ud800"}', 400, None),
        (b'{"query":"parser","context_id":"\\udfff"}', 400, None),
        (b'{"query":"\xff"}', 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"query":"%b"}' % (b"q" * SEARCH_REQUEST_BYTES_MAX), 413, None),
    ],
    ids=["nothing", "half", "a list", "no query", "a surrogate", "one in a filter", "no UTF-8", "deep", "large"],
)
def test_a_body_that_is_no_search_is_refused(said: LiveBus, body: bytes, status: int, field: str | None) -> None:
    response = said.http.post("/search", content=body, headers={"content-type": "application/json"})
    assert refused(response) == (status, "INVALID_REQUEST" if status == 400 else "TOO_LARGE", field)


def test_a_search_is_posted_as_json_and_has_no_parameters(said: LiveBus) -> None:
    assert refused(said.http.get("/search")) == (405, "METHOD_NOT_ALLOWED", None)
    assert refused(said.http.post("/search?limit=5", json={"query": "parser"})) == (400, "INVALID_REQUEST", "limit")
    packed = said.http.post("/search", content=b"\x80", headers={"content-type": "application/msgpack"})
    assert refused(packed)[:2] == (415, "UNSUPPORTED_MEDIA_TYPE")


def test_a_page_of_this_machine_may_search(said: LiveBus) -> None:
    origin = {"origin": "http://localhost:3000"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    preflight = said.http.options("/search", headers={**origin, **asked})
    assert preflight.status_code == 204
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "Content-Type" in preflight.headers["access-control-allow-headers"]
    response = said.http.post("/search", json={"query": "parser"}, headers=origin)
    assert response.headers["access-control-allow-origin"] == origin["origin"]


# --- Whatever is asked -----------------------------------------------------------------------------------------------

SYNTAX = st.lists(st.sampled_from(['"', "AND", "OR", "NOT", "(", ")", "[a TO b]", "a:b", "^2", "~", "*", "\\", "x"]))


@given(query=st.text() | SYNTAX.map(" ".join), mode=st.sampled_from(MODES))
@example(query="", mode="hybrid")
@example(query="\0\ufffe\U0010ffff", mode="hybrid")
@example(query='"', mode="keyword")
@example(query='"" "the" "the of"', mode="hybrid")
@example(query="q" * SEARCH_QUERY_BYTES_MAX, mode="hybrid")
@example(query="é" * (SEARCH_QUERY_BYTES_MAX // 2), mode="semantic")
@example(query="\n".join(map(str, range(1_600))), mode="keyword")
def test_any_text_is_a_query(said: LiveBus, query: str, mode: str) -> None:
    found = search(said, query, mode=mode)
    assert found["applied_seq"] == 4
    assert len(found["results"]) <= found["total"] <= 4


GLOBS = st.text(alphabet="ta.*?[]!^-\\k(+{|$", min_size=1, max_size=12)


@given(globs=st.lists(GLOBS, min_size=1, max_size=3))
@example(globs=["a[z-a]"])
@example(globs=["?" * 2_000])
@example(globs=["a*" * 100])
@example(globs=["[", "[!", "[]", "[]]", "[!]]*"])
def test_any_text_is_a_glob(said: LiveBus, globs: list[str]) -> None:
    response = said.http.post("/search", json={"query": "parser", "kind": globs, "resource": globs})
    assert response.status_code == 200, response.text


@given(
    st.fixed_dictionaries(
        {"query": st.text(max_size=20)},
        optional={
            name: st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3))
            for name in SearchIn.__struct_fields__
            if name not in ("query", "min_seq", "timeout_ms")
        },
    )
)
def test_no_search_is_a_mistake_of_the_bus(said: LiveBus, asked: dict[str, Any]) -> None:
    assert said.http.post("/search", content=json.dumps(asked)).status_code in (200, 400, 413)


def test_units_wait_for_an_index_that_stands_still(tmp_path: Path) -> None:
    with LiveBus(tmp_path / "data") as bus:
        bus.append(payload="the parser")
        assert seqs(search(bus)) == [1]
        bus.wait(lambda inner: inner.searcher is not None and inner.searcher.state.taken == 1)
        pid = bus.call(lambda inner: cast("Searcher", inner.searcher).pid)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            bus.append()
            bus.append()
            bus.wait(lambda inner: search_status(inner, inner.start_search()).lag_units == 2)
            status = bus.http.get("/status").json()["search"]
            assert (status["taken_seq"], status["lag_units"]) == (1, 2)
            bus.wait(lambda inner: search_status(inner, inner.start_search()).lag_ms > status["lag_ms"])
        finally:
            os.kill(pid, signal.SIGCONT)
        bus.wait(lambda inner: search_status(inner, inner.start_search()).lag_ms == 0)
