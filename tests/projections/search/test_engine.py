"""The index finds what a reader of the whole log would find, whatever is committed, filtered, cut off or asked."""

import errno
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engram_bus.projections.contract import Damaged
from engram_bus.projections.search import engine, keywords
from engram_bus.projections.search.documents import (
    PAIR_UNITS,
    is_searched,
    line_of,
    meaning_of,
    parts_of,
    text_of,
    together,
)
from engram_bus.projections.search.engine import LOOK_BACK_UNITS, SearchIndex, TooLate
from engram_bus.projections.search.scope import Scope
from engram_bus.projections.search.values import Asked, Found
from engram_bus.units import FORMAT_BYTES, FORMAT_JSON, FORMAT_TEXT, WorkUnit, ts_us
from tests.projections.search.worlds import (
    COMPARED,
    EMBEDDER,
    QUERIES,
    RANKINGS,
    SCOPES,
    Log,
    all_of,
    counts,
    few_compared,
    indexed,
    let_through,
    log,
    logs,
    told,
)
from tests.values import unit
from tests.values import units as any_units

MODES = st.sampled_from(["keyword", "semantic", "hybrid"])


def text_in_index(unit: WorkUnit, units: Sequence[WorkUnit]) -> tuple[str, str]:
    """A unit's text with those before it, and its line, as said in documents.py."""
    text = text_of(unit)
    line = line_of(unit, text)
    before = [one for one in Log(units).before(unit, LOOK_BACK_UNITS) if is_searched(one)]
    return "\n".join(together(line, [line_of(one, text_of(one)) for one in before[-PAIR_UNITS:]], text=text)), line


def has_meaning(unit: WorkUnit) -> bool:
    text = text_of(unit)
    return bool(EMBEDDER.embed([meaning_of(unit, text, line=line_of(unit, text))]).any())


def holding_a_word(index: SearchIndex, query: str, units: Sequence[WorkUnit], of: Sequence[WorkUnit]) -> set[int]:
    question = index._keywords.question(query)
    found = set()
    for one in of:
        terms = index._keywords.terms(*text_in_index(one, units))
        has_word = any(word in terms.words for word in question.words)
        has_name = any(name in terms.names for name in question.names)
        begins = any(word.startswith(start) for word in terms.written for start in question.starts)
        if has_word or has_name or begins:
            found.add(one.seq)
    return found


def saying(index: SearchIndex, query: str, units: Sequence[WorkUnit]) -> list[WorkUnit]:
    phrases = index._keywords.question(query).phrases
    return [one for one in units if index._keywords.says(parts_of(one, text_of(one)), phrases)]


@given(logs(), SCOPES, QUERIES, MODES, st.integers(0, 40))
def test_what_is_found_counted_and_sorted_is_what_a_scan_finds(
    units: list[WorkUnit], scope: Scope, query: str, mode: str, committed: int
) -> None:
    with indexed(units, min(committed, len(units))) as index:
        found = index.search(all_of(query, mode, scope=scope))
        expected = saying(index, query, let_through(units, scope))
        holding = holding_a_word(index, query, units, expected)
    counted = [one for one in expected if one.seq in holding] if mode == "keyword" else expected
    seen = {one.seq for one in expected if has_meaning(one)}
    by_meaning = seen if EMBEDDER.embed([query]).any() else set()
    by_mode = {"keyword": holding, "semantic": by_meaning, "hybrid": holding | by_meaning}
    assert {hit.seq for hit in found.hits} == by_mode[mode]
    assert len({hit.seq for hit in found.hits}) == len(found.hits)
    assert found.total == len(counted)
    assert found.applied_seq == len(units)
    assert found.facets == {
        "context": counts(counted, lambda one: one.context_id),
        "agent": counts(counted, lambda one: one.agent_id),
        "type": counts(counted, lambda one: one.type),
        "kind": counts(counted, lambda one: one.kind or ""),
    }


@pytest.mark.parametrize("mode", ["keyword", "semantic", "hybrid"])
def test_bounds_are_not_let_through_themselves(mode: str) -> None:
    units = [unit(seq, payload=b"same text", ts_us=1_000 * seq) for seq in range(1, 10)]
    for committed in (0, 9):
        with indexed(units, committed) as index:
            for scope in (Scope(after_seq=3, before_seq=6), Scope(after_us=3_000, before_us=6_000)):
                found = index.search(all_of("same text", mode, scope=scope))
                assert ({hit.seq for hit in found.hits}, found.total) == ({4, 5}, 2)


@given(logs(), SCOPES, QUERIES, MODES, RANKINGS, st.integers(0, 40), COMPARED)
def test_what_is_not_committed_is_found_as_if_it_were(
    units: list[WorkUnit],
    scope: Scope,
    query: str,
    mode: str,
    ranking: dict[str, Any],
    committed: int,
    compared: tuple[int, int],
) -> None:
    asked = all_of(query, mode, scope=scope, **ranking)
    with few_compared(*compared), indexed(units, min(committed, len(units))) as index:
        before = index.search(asked)
        then = index.search(msgspec.structs.replace(asked, as_of_seq=before.applied_seq))
        index.commit()
        after = index.search(asked)
        same_statistics = index.search(again(asked, before))
    if not asked.distinct:  # (Which of two that are alike is the better one is told by the statistics.)
        assert {hit.seq for hit in before.hits} == {hit.seq for hit in after.hits}
    assert (before.total, before.facets, before.applied_seq) == (after.total, after.facets, after.applied_seq)
    assert told(then) == told(after)
    assert told(same_statistics) == told(before)


def again(asked: Asked, found: Found) -> Asked:
    """The same ranking once more, whatever has come since."""
    return msgspec.structs.replace(asked, as_of_seq=found.applied_seq, statistics_seq=found.statistics_seq)


@given(logs(), SCOPES, QUERIES, MODES, RANKINGS, st.integers(0, 40), st.integers(0, 45), COMPARED)
def test_as_of_a_seq_is_what_an_index_of_the_log_up_to_there_says(
    units: list[WorkUnit],
    scope: Scope,
    query: str,
    mode: str,
    ranking: dict[str, Any],
    committed: int,
    as_of: int,
    compared: tuple[int, int],
) -> None:
    with few_compared(*compared), indexed(units, min(committed, len(units))) as whole:
        then = whole.search(all_of(query, mode, scope=scope, as_of_seq=as_of, **ranking))
    with few_compared(*compared), indexed(units[:as_of], len(units[:as_of])) as cut:
        expected = cut.search(all_of(query, mode, scope=scope, **ranking))
    assert told(then) == told(expected)
    assert (then.total, then.facets, then.applied_seq) == (expected.total, expected.facets, expected.applied_seq)


@given(
    logs(),
    QUERIES,
    MODES,
    RANKINGS,
    st.integers(0, 40),
    st.lists(st.integers(0, 9), max_size=9),
    st.integers(1, 7),
    COMPARED,
)
def test_pages_of_a_growing_log_neither_repeat_nor_miss(
    units: list[WorkUnit],
    query: str,
    mode: str,
    ranking: dict[str, Any],
    committed: int,
    arriving: list[int],
    size: int,
    compared: tuple[int, int],
) -> None:
    half = len(units) // 2
    with few_compared(*compared), indexed(units[:half], *((committed,) if committed < half else ())) as index:
        index._source = Log(units)
        first = index.search(all_of(query, mode, **ranking))
        expected, paged = told(first), told(index.search(Asked(query=query, mode=mode, limit=size, **ranking)))
        while len(paged) < len(expected):
            count = arriving.pop() if arriving else 0
            index.take(units[index.taken : index.taken + count])
            if count % 2:
                index.commit()
            page = again(Asked(query=query, mode=mode, offset=len(paged), limit=size, **ranking), first)
            more = told(index.search(page))
            assert more
            paged += more
    assert paged == expected


@given(logs(), SCOPES, QUERIES, MODES, RANKINGS, st.integers(0, 40))
def test_a_score_is_the_sum_of_parts_that_the_log_explains(
    units: list[WorkUnit], scope: Scope, query: str, mode: str, ranking: dict[str, Any], committed: int
) -> None:
    asked = all_of(query, mode, scope=scope, **{**ranking, "distinct": False})
    with indexed(units, min(committed, len(units))) as index:
        found = {hit.seq: hit for hit in index.search(asked).hits}
    for seq, hit in found.items():
        one = units[seq - 1]
        of_context = [each.seq for each in units if each.context_id == one.context_id and is_searched(each)]
        place = of_context.index(seq)
        beside = [*of_context[max(0, place - 1) : place], *of_context[place + 1 : place + 2]]
        scores = [found[other].keyword_part + found[other].vector_part for other in beside if other in found]
        assert hit.score == hit.keyword_part + hit.vector_part + hit.neighbour_part + hit.recency_part
        assert hit.neighbour_part == pytest.approx(asked.neighbour_weight * max([0.0, *scores]))
        if asked.half_life_ms is None:
            assert hit.recency_part == 0
        else:
            of_now = asked.recency_weight * (1 / (asked.rank_constant + 1) if asked.fusion == "rrf" else 1)
            age_ms = (ts_us(units[-1].ts) - ts_us(one.ts)) / 1_000
            assert hit.recency_part == pytest.approx(of_now * 0.5 ** (age_ms / asked.half_life_ms))


@given(logs(), QUERIES, MODES, RANKINGS, st.integers(0, 40))
def test_each_unit_is_there_or_one_stands_for_it_that_says_the_same(
    units: list[WorkUnit], query: str, mode: str, ranking: dict[str, Any], committed: int
) -> None:
    with indexed(units, min(committed, len(units))) as index:
        every = index.search(all_of(query, mode, **{**ranking, "distinct": False}))
        found = index.search(all_of(query, mode, **{**ranking, "distinct": True}))
    kept = [hit.seq for hit in found.hits]
    assert kept == [hit.seq for hit in every.hits if hit.seq in kept]
    assert sum(1 + hit.duplicates for hit in found.hits) == len(every.hits)
    assert (found.total, found.facets) == (every.total, every.facets)
    texts = [text for seq in kept if (text := text_of(units[seq - 1]).strip())]
    assert len(set(texts)) == len(texts)


@given(logs(), QUERIES, MODES)
def test_weights_of_what_is_not_asked_for_change_nothing(units: list[WorkUnit], query: str, mode: str) -> None:
    with indexed(units, len(units)) as index:
        plain = index.search(all_of(query, mode))
        assert plain == index.search(all_of(query, mode, recency_weight=5.0, rank_constant=1.0, neighbour_weight=0.0))


def test_of_two_equally_good_the_newer_is_better_by_half_its_weight_each_half_life() -> None:
    units = [unit(seq, context_id=f"c{seq}", version=1, payload=b"same", ts_us=seq * 1_000_000) for seq in (1, 2, 3)]
    with indexed(units, 3) as index:
        hits = index.search(all_of("same", half_life_ms=1_000, recency_weight=4.0)).hits
    assert [(hit.seq, hit.recency_part) for hit in hits] == [(3, 4.0), (2, 2.0), (1, 1.0)]


def test_a_turn_beside_the_one_that_was_found_comes_before_others() -> None:
    said = ["which tyres?", "the parser is broken", "I saw it", "lunch", "tea", "which parser?"]
    units = [unit(seq, context_id="talk", version=seq, payload=text.encode()) for seq, text in enumerate(said, start=1)]
    with indexed(units, 6) as index:
        plain = {
            hit.seq: hit.score for hit in index.search(all_of("parser broken", "semantic", fusion="relative")).hits
        }
        asked = all_of("parser broken", "semantic", fusion="relative", neighbour_weight=0.5)
        found = {hit.seq: hit for hit in index.search(asked).hits}
    assert max(plain, key=lambda seq: plain[seq]) == 2
    assert found[1].neighbour_part == found[3].neighbour_part == 0.5 * found[2].vector_part
    assert found[4].neighbour_part < found[3].neighbour_part


@given(logs(), st.lists(st.integers(0, 40), max_size=4), COMPARED)
@settings(max_examples=20)
def test_an_index_made_in_several_runs_is_one_made_in_one(
    tmp_path_factory: pytest.TempPathFactory, units: list[WorkUnit], stops: list[int], compared: tuple[int, int]
) -> None:
    path = tmp_path_factory.mktemp("index")
    for stop in sorted(stop % (len(units) + 1) for stop in stops):
        with indexed(units[:stop], stop, path=path):
            pass
    in_parts, at_once = indexed(units, len(units), path=path), indexed(units, len(units))
    with few_compared(*compared), in_parts as one, at_once as other:
        for query in ("parser", "日本", "src/parseHTTP.py fails", '"end of the world"', "E0308", "ann"):
            for asked in (all_of(query), all_of(query, neighbour_weight=0.5, half_life_ms=3_000, distinct=True)):
                assert told(one.search(asked)) == told(other.search(asked))


def test_what_was_not_committed_is_taken_in_again(tmp_path: Path) -> None:
    units = log(Random(1), 30)
    with indexed(units, 12, path=tmp_path) as index:
        assert index.taken == 30
        committed = index.cursor
    with indexed(units, path=tmp_path) as index:
        assert index.taken == 30
        assert index.cursor == committed
        assert index.search(all_of("parser")).total == len(let_through(units, Scope()))


@pytest.mark.parametrize("own", range(12))
def test_units_of_the_bus_between_two_do_not_change_what_is_indexed_together(tmp_path: Path, own: int) -> None:
    units = [
        unit(1, payload=b"which parser?"),
        *(unit(seq, kind="lock.granted", payload=b"{}") for seq in range(2, own + 2)),
        unit(own + 2, payload=b"that one"),
        unit(own + 3, payload=b"or another"),
    ]
    at_once, in_parts = tmp_path / "once", tmp_path / "parts"
    for stop in (1, own + 1, own + 2):
        with indexed(units[:stop], stop, path=in_parts):
            pass
    with indexed(units, len(units), path=at_once) as one, indexed(units, len(units), path=in_parts) as other:
        found = one.search(all_of("parser", "keyword"))
        assert told(found) == told(other.search(all_of("parser", "keyword")))
        assert len(found.hits) == (3 if own < LOOK_BACK_UNITS - 1 else 2 if own < LOOK_BACK_UNITS else 1)


@pytest.mark.parametrize("committed", [0, 6])
@pytest.mark.parametrize(
    ("payload", "content_type"),
    [(b"", FORMAT_TEXT), (b" ?!\n", FORMAT_TEXT), (b"null", FORMAT_JSON), (b"{}", FORMAT_JSON), (b"I", FORMAT_BYTES)],
)
def test_who_says_nothing_is_not_found_by_what_others_said(committed: int, payload: bytes, content_type: str) -> None:
    empty = [
        msgspec.structs.replace(unit(seq, payload=payload), content_type=content_type, resources=resources)
        for seq, resources in ((2, []), (3, []), (4, ["src/a.py"]))
    ]
    units = [
        unit(1, payload=b"I take the parser"),
        *empty,
        unit(5, payload=b"which parser?"),
        unit(6, payload="👍".encode()),
    ]
    with indexed(units, committed) as index:
        for as_of_seq in (None, 6):
            found = index.search(all_of("parser", "keyword", as_of_seq=as_of_seq))
            assert ({hit.seq for hit in found.hits}, found.total) == ({1, 5, 6}, 3)
            touching = index.search(all_of("src/a.py", "keyword", as_of_seq=as_of_seq))
            assert [hit.seq for hit in touching.hits][:1] == [4]
        assert {hit.seq for hit in index.search(all_of("ann", "semantic")).hits} == {1, 4, 5, 6}
        assert {hit.seq for hit in index.search(all_of("ann", "keyword")).hits} == {1, 2, 3, 4, 5, 6}


def test_a_context_that_was_forgotten_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    units = log(Random(2), 60)
    with indexed(units, len(units)) as remembered:
        monkeypatch.setattr(engine, "_CONTEXTS_REMEMBERED", 1)
        with indexed(units, len(units)) as forgotten:
            for query in ("parser", "world", "日本"):
                assert told(forgotten.search(all_of(query))) == told(remembered.search(all_of(query)))


def test_what_was_thought_about_before_and_forgotten_is_thought_about_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [all_of(query, as_of_seq=50) for query in ("parser", "world", "日本")]
    with indexed(log(Random(9), 60), 60) as index:
        expected = [index.search(one) for one in asked]
        monkeypatch.setattr(engine, "TERMS_KEPT", 1)
        monkeypatch.setattr(keywords, "_STEMS_MAX", 1)
        with indexed(log(Random(9), 60), 60) as forgetful:
            assert [forgetful.search(one) for one in asked] == expected


SYNTAX = ("seq:1", "AND", "(", ")", '"', "OR", "NOT", "*", "?", "~2", "^3", "[1 TO 2]", "\\", "\0", "'", "--", "text:")
ODD = ("\u202e", "\ufeff", "İ", "ß", "日", "日本", "ก", "🎉", "e\u0301", "\U0010ffff", "the", "parser", "\n", "\x85")
ANY_TEXT = st.text(max_size=60) | st.lists(st.sampled_from([*SYNTAX, *ODD]), max_size=12).map(" ".join)


@pytest.fixture(scope="module")
def half_committed(tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    units = log(Random(3), 60)
    index = SearchIndex(tmp_path_factory.mktemp("index"), EMBEDDER, Log(units))
    index.take(units[:40])
    index.commit()
    index.take(units[40:])
    return index


@given(ANY_TEXT, MODES, st.none() | st.integers(0, 60))
@example("seq:1 AND (", "hybrid", None)
@example('"', "keyword", 3)
@example('""', "hybrid", 50)
@example('"a"', "keyword", None)
@example('"the"', "keyword", None)
@example("x" * 8_192, "hybrid", None)
@example('"' * 8_192, "hybrid", None)
@example("日" * 2_730, "hybrid", 50)
@example('"日本語"', "keyword", None)
@settings(max_examples=1_000)
def test_any_text_is_a_query(half_committed: SearchIndex, query: str, mode: str, as_of: int | None) -> None:
    found = half_committed.search(all_of(query, mode, as_of_seq=as_of))
    assert found.total <= 60


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("authentica*", {1, 2}),
        ("Authenticat*", {1, 2}),
        ("authentication*", {2}),
        ("src/au*", {3}),
        ("parseH*", {4}),
        ("http*", {4}),
        ("cafe*", {5}),
        ("Café*", {5}),
        ("zzz*", set()),
        ("authentica* http*", {1, 2, 4}),
    ],
)
def test_a_star_finds_words_and_names_by_how_they_begin(query: str, expected: set[int], committed: bool) -> None:
    units = [
        unit(1, payload=b"it authenticates whoever comes"),
        unit(2, payload=b"AUTHENTICATION failed"),
        unit(3, payload=b"see src/auth.py", context_id="other", version=1),
        unit(4, payload=b"call parseHTTP", context_id="third", version=1),
        unit(5, payload="im Café".encode(), context_id="fourth", version=1),
    ]
    with indexed(units, *((5,) if committed else ())) as index:
        found = index.search(all_of(query, "keyword"))
    assert ({hit.seq for hit in found.hits}, found.total) == (expected, len(expected))
    for hit in found.hits:
        assert hit.highlight is not None
        assert hit.highlight.spans


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("mode", ["keyword", "semantic", "hybrid"])
@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("zebra crossing", {1}),
        ("crossing zebra", set()),
        ("crossing here", {2}),
        ("zebras cross", {1}),
        ("end of the line", {3}),
        ("end line", set()),
        ("line ann", set()),
        ("build failed", {4}),
        ("failed src", set()),
        ("failed the src", set()),
        ("failed of the src", set()),
        ("src/main.py", {4}),
        ("zebra", {1}),
        ("日本語", {5}),
        ("本日", set()),
        ("the", {1, 2, 3, 4, 5}),
    ],
)
def test_a_phrase_stands_in_the_unit_itself(phrase: str, expected: set[int], mode: str, committed: bool) -> None:
    units = [
        unit(1, payload=b"a zebra crossing"),
        unit(2, payload=b"crossing here"),
        unit(3, payload=b"the end of the line"),
        unit(4, kind="build.failed", payload=b"see main.py"),
        unit(5, payload="これは日本語です".encode()),
    ]
    units[3].resources.append("src/main.py")
    with indexed(units, *((5,) if committed else ())) as index:
        found = index.search(all_of(f'"{phrase}" here', mode))
        assert {hit.seq for hit in found.hits} <= expected
        assert found.total <= len(expected)
        if mode != "semantic" and phrase != "the":
            assert {hit.seq for hit in index.search(all_of(f'"{phrase}"', mode)).hits} >= expected


@pytest.mark.parametrize("committed", [(), (300,), (100, 200)])
def test_what_touches_a_path_comes_before_what_speaks_of_it(committed: tuple[int, ...]) -> None:
    units = [
        unit(seq, context_id=f"c{seq}", version=1, payload=b"session/phase.go has phase.go of session")
        for seq in range(1, 301)
    ]
    for seq, resource in (
        (7, "cmd/Session/phase.go"),
        (8, "cmd/phase.go"),
        (250, "session/phase.go"),
        (251, "phase.go"),
    ):
        units[seq - 1] = unit(seq, context_id=f"c{seq}", version=1, payload=b"edited")
        units[seq - 1].resources.append(resource)
    with indexed(units, *committed) as index:
        for query in ("session/phase.go", "./session/phase.go:12: undefined"):
            best = [hit.seq for hit in index.search(all_of(query, "keyword")).hits[:3]]
            assert {*best[:2]} == {7, 250}
            assert best[2] not in (8, 251)
            assert index.search(all_of(query, "keyword", as_of_seq=200)).hits[0].seq == 7
            of_one = index.search(all_of(query, scope=Scope(resources=("phase.go",))))
            assert [hit.seq for hit in of_one.hits] == [251]


def test_words_that_ask_count_only_where_nothing_else_is_asked() -> None:
    texts = ["who is there", "the parser broke", "where and why"]
    units = [unit(seq, context_id=f"c{seq}", version=1, payload=text.encode()) for seq, text in enumerate(texts, 1)]
    with indexed(units, 3) as index:
        assert [hit.seq for hit in index.search(all_of("who broke the parser and why?", "keyword")).hits] == [2]
        assert [hit.seq for hit in index.search(all_of("who", "keyword")).hits] == [1]
        assert [hit.seq for hit in index.search(all_of('why: "where and why"', "keyword")).hits] == [3]


def test_equal_units_are_found_newest_first_however_many_there_are() -> None:
    units = [unit(seq, context_id=f"c{seq}", version=1, payload=b"same text here") for seq in range(1, 701)]
    with indexed(units, 300, 301, 650) as index:
        for mode in ("keyword", "semantic", "hybrid"):
            found = [hit.seq for hit in index.search(Asked(query="same text", mode=mode, limit=200)).hits]
            assert found == list(range(700, 500, -1))
            then = [hit.seq for hit in index.search(Asked(query="same text", mode=mode, limit=9, as_of_seq=400)).hits]
            assert then == list(range(400, 391, -1))


def test_as_of_a_seq_the_best_of_very_many_are_those_of_then() -> None:
    dice = Random(8)
    common, rare = "alpha beta gamma".split(), "delta epsilon zeta".split()
    then = [" ".join(dice.choices(common, k=3) + dice.choices(rare, k=1)) for _ in range(900)]
    since = [" ".join(dice.choices(rare, k=4) + dice.choices(common, k=1)) for _ in range(900)]
    units = [
        unit(seq, context_id=f"c{seq}", version=1, payload=text.encode()) for seq, text in enumerate(then + since, 1)
    ]
    with indexed(units, 1_000, 1_800) as whole, indexed(units[:900], 900) as cut:
        for query in ("alpha delta", "epsilon zeta beta", "gamma"):
            asked = Asked(query=query, mode="keyword", limit=200)
            before = whole.search(msgspec.structs.replace(asked, as_of_seq=900))
            assert told(before) == told(cut.search(asked))


def test_what_has_no_words_is_found_by_nothing_and_counted() -> None:
    with indexed([unit(1, payload=b""), unit(2, agent_id="日本", payload=b"")], 2) as index:
        found = index.search(all_of("zebra"))
        assert found.total == 2
        assert index.search(all_of("zebra", "keyword")).total == 0


def test_the_commonest_values_are_shown_and_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "FACET_VALUES_MAX", 2)
    names = ["a", "b", "b", "c", "c", "d"]
    units = [unit(seq, context_id=name, version=seq, payload=b"hello") for seq, name in enumerate(names, start=1)]
    with indexed(units, 5) as index:
        for scope in (Scope(), Scope(before_seq=9)):
            for mode in ("keyword", "hybrid"):
                facets = index.search(all_of("hello", mode, scope=scope)).facets
                assert list(facets["context"].items()) == [("b", 2), ("c", 2)]


def test_an_index_of_another_log_is_known(tmp_path: Path) -> None:
    units = [unit(seq, id=f"one-{seq}") for seq in range(1, 4)]
    others = [unit(seq, id=f"other-{seq}") for seq in range(1, 4)]
    with indexed(units, 3, path=tmp_path) as index:
        assert index.is_of(Log(units), 3)
        assert index.is_of(Log(units), 4)
        assert not index.is_of(Log(others), 3)
        assert not index.is_of(Log(units[:2]), 2)


def test_an_empty_index_is_of_any_log(tmp_path: Path) -> None:
    with indexed([], path=tmp_path) as index:
        assert index.is_of(Log([]), 0)
        assert index.search(all_of("hello")).hits == []


def committed_files(path: Path) -> list[Path]:
    with indexed(log(Random(4), 50), 20, 35, 50, path=path):
        pass
    return files_of(path)


def files_of(path: Path) -> list[Path]:
    """Those that count: where tantivy works is made anew."""
    return sorted(file for file in path.rglob("*") if file.is_file() and file.parent.name != "work")


def test_a_flipped_bit_anywhere_is_damage(tmp_path: Path) -> None:
    dice = Random(5)
    for file in committed_files(tmp_path):
        raw = file.read_bytes()
        if not raw:
            continue
        at = dice.randrange(len(raw))
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << dice.randrange(8)]) + raw[at + 1 :])
        with pytest.raises(Damaged):
            SearchIndex(tmp_path, EMBEDDER, Log([]))
        file.write_bytes(raw)
    SearchIndex(tmp_path, EMBEDDER, Log([])).close()


def test_a_file_that_was_cut_off_or_taken_away_is_damage(tmp_path: Path) -> None:
    for file in committed_files(tmp_path):
        raw = file.read_bytes()
        if not raw:
            continue
        file.write_bytes(raw[:-1])
        with pytest.raises(Damaged):
            SearchIndex(tmp_path, EMBEDDER, Log([]))
        file.unlink()
        with pytest.raises(Damaged):
            SearchIndex(tmp_path, EMBEDDER, Log([]))
        file.write_bytes(raw)


def test_a_whole_file_of_another_index_or_of_another_commit_is_damage(tmp_path: Path) -> None:
    ours, theirs = log(Random(4), 50), log(Random(5), 50)
    with indexed(ours, 50, path=tmp_path / "ours"), indexed(theirs, 50, path=tmp_path / "theirs"):
        pass
    shutil.copytree(tmp_path / "ours", tmp_path / "older")
    with indexed([*ours, *log(Random(6), 60)[50:]], 60, path=tmp_path / "ours"):
        pass
    for file in files_of(tmp_path / "ours"):
        raw = file.read_bytes()
        for others in ("theirs", "older"):
            other = alike(file, files_of(tmp_path / others))
            if other.read_bytes() == raw or (file.name, others) == ("commit", "older"):
                continue  # (An older commit of this index, of which all is still there, is just that.)
            file.write_bytes(other.read_bytes())
            with pytest.raises(Damaged):
                SearchIndex(tmp_path / "ours", EMBEDDER, Log([]))
        file.write_bytes(raw)
    SearchIndex(tmp_path / "ours", EMBEDDER, Log([])).close()


def alike(file: Path, others: Sequence[Path]) -> Path:
    """By its ending: segments have random names."""
    return next(other for other in others if (other.suffix or other.name) == (file.suffix or file.name))


def test_a_commit_that_is_gone_is_damage(tmp_path: Path) -> None:
    committed_files(tmp_path)
    (tmp_path / "commit").unlink()
    with pytest.raises(Damaged, match="commit is gone"):
        SearchIndex(tmp_path, EMBEDDER, Log([]))


def test_where_tantivy_works_is_made_anew(tmp_path: Path) -> None:
    units = log(Random(4), 50)
    with indexed(units, 20, 35, 50, path=tmp_path) as index:
        expected = told(index.search(all_of("parser")))
    for file in (tmp_path / "work").iterdir():
        file.unlink()
    (tmp_path / "work" / "meta.json").write_text("{}")
    with indexed(units, path=tmp_path) as index:
        assert told(index.search(all_of("parser"))) == expected


def test_a_merge_that_nobody_wrote_down_did_not_happen(tmp_path: Path) -> None:
    def segments(directory: Path) -> int:
        return len({file.stem for file in directory.glob("*.idx")})

    units = log(Random(4), 8)
    for path in (tmp_path / str(number) for number in itertools.count()):
        path.mkdir()
        with indexed(units, *range(1, 9), path=path) as index:
            expected = told(index.search(all_of("parser")))
        if segments(path / "segments") == 8:
            break  # Else the commit took so long that the merge was quicker, and is written down.
    assert '"max_doc": 8' in (path / "work" / "meta.json").read_text(), "eight are merged, after the last commit"
    with indexed(units, path=path) as index:
        assert segments(path / "work") == 8
        assert told(index.search(all_of("parser"))) == expected


def test_where_a_file_has_only_one_name_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuses)
    units = log(Random(4), 50)
    with indexed(units, 20, 50, path=tmp_path) as index:
        expected = told(index.search(all_of("parser")))
    with indexed(units, path=tmp_path) as index:
        assert told(index.search(all_of("parser"))) == expected


def test_an_index_that_another_one_writes_is_left_alone(tmp_path: Path) -> None:
    units = log(Random(4), 50)
    with indexed(units, 20, path=tmp_path) as index:
        with pytest.raises(BlockingIOError):
            SearchIndex(tmp_path, EMBEDDER, Log(units))
        index.commit()


def test_a_search_looks_at_its_files_when_it_is_told_to(tmp_path: Path) -> None:
    with indexed(log(Random(4), 50), 50, path=tmp_path) as index:
        index.check()
        (file,) = (tmp_path / "work").glob("*.pos")
        raw = file.read_bytes()
        file.write_bytes(raw[:10] + bytes([raw[10] ^ 1]) + raw[11:])
        with pytest.raises(Damaged):
            index.check()


def test_what_lies_behind_the_commit_is_cut_off(tmp_path: Path) -> None:
    units = log(Random(6), 50)
    with indexed(units, 30, path=tmp_path) as index:
        index._columns.flush()
        index._vectors.flush()
    with indexed(units, 50, path=tmp_path) as again, indexed(units, 50) as fresh:
        for query in ("parser", "日本", "world"):
            assert told(again.search(all_of(query))) == told(fresh.search(all_of(query)))


@given(st.lists(any_units(), min_size=1, max_size=6), ANY_TEXT)
def test_any_unit_is_taken_in(units: list[WorkUnit], query: str) -> None:
    of_log = [msgspec.structs.replace(one, seq=seq, version=seq) for seq, one in enumerate(units, start=1)]
    with indexed(of_log, 1, len(of_log)) as index:
        found = index.search(all_of(query, "semantic"))
        assert found.total <= len(units)
        assert index.search(all_of("")).total == len(units)


@pytest.mark.parametrize("mode", ["keyword", "hybrid"])
def test_the_first_name_of_all_is_found_before_it_is_committed(mode: str) -> None:
    units = [unit(1, payload=b"I take the parser"), unit(2, payload=b"fine with me"), unit(3, payload=b"see src/a.py")]
    with indexed(units, 2) as index:
        assert next(hit.seq for hit in index.search(all_of("src/a.py", mode)).hits) == 3
        assert index.search(all_of("src/a.py parser", mode, as_of_seq=3, statistics_seq=0)).hits


def test_as_of_a_seq_very_many_that_score_alike_are_ranked_as_then() -> None:
    then = [f"item {number} about parser lexer {'tokens ' * (number % 9)} agent{number % 7}" for number in range(900)]
    since = [f"new parser lexer tokens {number}" for number in range(600)]
    units = [
        unit(seq, context_id=f"c{seq}", version=1, payload=text.encode()) for seq, text in enumerate(then + since, 1)
    ]
    with indexed(units, 1_500) as whole, indexed(units[:900], 900) as cut:
        for mode in ("keyword", "hybrid"):
            asked = Asked(query="parser lexer tokens", mode=mode, limit=200)
            before = whole.search(msgspec.structs.replace(asked, as_of_seq=900))
            assert told(before) == told(cut.search(asked))


def test_what_would_come_too_late_is_given_up() -> None:
    units = [unit(seq, payload=b"the parser") for seq in range(1, 40)]
    with indexed(units, 39) as index:
        with pytest.raises(TooLate):
            index.search(all_of("parser", "keyword", as_of_seq=30), until=0.0)
        assert index.search(all_of("parser", "keyword", as_of_seq=30)).total == 30


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165", "한국어"),
        ("한국어", "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165"),
        ("A\u030angstro\u0308m", "Ångström"),
        ("A\u030angstro\u0308m", "angstrom"),
        ("\uff76\uff9e\uff72\uff84\uff9e", "ガイド"),
        ("İstanbul", "istanbul"),
        ("it costs 5 €", "€"),
        ("a → b", "→"),
    ],
)
@pytest.mark.parametrize("committed", [False, True])
def test_what_can_be_written_in_several_ways_is_found_by_each(said: str, asked: str, committed: bool) -> None:
    units = [unit(1, payload=said.encode()), unit(2, payload=b"nothing", context_id="other", version=1)]
    with indexed(units, *((2,) if committed else ())) as index:
        assert [hit.seq for hit in index.search(all_of(asked, "keyword")).hits] == [1]
