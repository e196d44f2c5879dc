"""What a search found, as lines and as JSON: the words that were looked for stand out, whatever else is there."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.cli.hits import Hits, explained, facet_lines, page_json
from engram_client import Highlight, SearchExplained, SearchHit, SearchLeg, SearchPage, UnitType, WorkUnit

UNIT = WorkUnit(
    seq=7,
    id="01a1fc2f-c7af-7cf5-a77a-6f8324a330d1",
    context_id="plan",
    version=1,
    agent_id="ann",
    type=UnitType.MESSAGE,
    ts="2026-01-01T12:34:56.000000Z",
    content_type="text/plain; charset=utf-8",
    payload=b"I take the parser",
)
HIT = SearchHit(
    unit_id=UNIT.id,
    seq=7,
    score=1.23456,
    tokens=5,
    keyword=SearchLeg(1, 2.5),
    highlights=[Highlight("I take\n the parser", [(2, 6), (12, 18)])],
    explain=SearchExplained("z", 0.4, 1.5, -0.26544),
    unit=UNIT,
)


def hit(**fields: object) -> SearchHit:
    return msgspec.structs.replace(HIT, **fields)


def test_a_hit_says_its_rank_its_score_and_where_it_stands() -> None:
    head, said = Hits().lines(HIT)
    assert head.plain.split() == ["1", "1.235", "7", "2026-01-01", "12:34:56", "plan", "ann", "✉", "message"]
    assert said.plain == "I take the parser"


def test_ranks_go_on_where_the_page_before_ended() -> None:
    hits = Hits(first_rank=11)
    assert [hits.lines(HIT)[0].plain.split()[0] for _ in range(2)] == ["11", "12"]


def test_the_words_that_were_looked_for_stand_out() -> None:
    _, said = Hits().lines(HIT)
    assert [said.plain[span.start : span.end] for span in said.spans if span.style] == ["take", "parser"]


def test_without_them_it_says_how_the_unit_begins() -> None:
    assert Hits().lines(hit(highlights=[]))[1].plain == "I take the parser"


def test_a_score_is_explained_by_what_each_leg_gives() -> None:
    assert explained(HIT) == "[words #1 (2.50) gives 1.500, meaning gives -0.265]"
    assert Hits(explain=True).lines(HIT)[1].plain == f"{explained(HIT)} I take the parser"


def test_facets_are_a_line_each_the_commonest_first() -> None:
    facets = {"agent": {f"a{number:02}": number for number in range(1, 13)}, "kind": {"": 3, "x\ny": 3}}
    agents, kinds = facet_lines(facets)
    assert agents.startswith("agent    a12 12, a11 11, ")
    assert agents.endswith("a03 3, 2 more")
    assert kinds == "kind     (none) 3, x y 3"


def test_json_is_what_the_bus_itself_says() -> None:
    page = SearchPage([HIT, hit(unit=None, keyword=None)], 9, 12, None, {"agent": {"ann": 9}})
    first, second = (told := msgspec.json.decode(page_json(page)))["results"]
    assert {name: told[name] for name in ("total", "applied_seq", "next_page", "facets")} == {
        "total": 9,
        "applied_seq": 12,
        "next_page": None,
        "facets": {"agent": {"ann": 9}},
    }
    assert first["unit"]["payload"] == "I take the parser"
    assert first["highlights"] == [{"text": "I take\n the parser", "spans": [[2, 6], [12, 18]]}]
    assert not {"unit", "keyword", "vector"} & set(second)
    assert "facets" not in msgspec.json.decode(page_json(msgspec.structs.replace(page, facets=None)))


@given(st.text(max_size=40), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4))
def test_whatever_it_holds_it_is_one_line_of_printable_text(text: str, spans: list[tuple[int, int]]) -> None:
    head, said = Hits().lines(hit(highlights=[Highlight(text, spans)], unit=msgspec.structs.replace(UNIT, kind=text)))
    assert head.plain.isprintable()
    assert said.plain.isprintable()
