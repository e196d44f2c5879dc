"""A unit as a line: readable in any terminal, whatever it holds."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from engram_bus.cli.lines import Lines, summary, unit_json
from engram_bus.codec import unit_json as bus_unit_json
from engram_bus.units import WorkUnit as BusUnit
from engram_client import UnitType, WorkUnit

UNIT = WorkUnit(
    seq=1,
    id="01a1fc2f-c7af-7cf5-a77a-6f8324a330d1",
    context_id="plan",
    version=1,
    agent_id="ann",
    type=UnitType.MESSAGE,
    ts="2026-01-01T12:34:56.000000Z",
    content_type="text/plain; charset=utf-8",
    payload=b"hello",
)


def unit(**fields: object) -> WorkUnit:
    return msgspec.structs.replace(UNIT, **fields)


def test_a_line() -> None:
    plain = Lines(context_cells=6, agent_cells=4).line(UNIT).plain
    assert plain == "      1 12:34:56 plan   ann  ✉ message      hello"


def test_a_long_name_keeps_its_end_and_a_kind_says_more_than_a_type() -> None:
    plain = Lines(context_cells=6, agent_cells=4).line(unit(context_id="repo/src/a.py", kind="build.failed")).plain
    assert plain == "      1 12:34:56 …/a.py ann  ✉ build.failed hello"


def test_every_agent_has_its_colour_and_keeps_it() -> None:
    lines = Lines()
    colours = [str(lines.line(unit(agent_id=name)).spans[2].style) for name in ("ann", "bob", "ann", "eve")]
    assert colours[0] == colours[2]
    assert len(set(colours)) == 3


def test_a_type_of_a_newer_bus_is_shown_all_the_same() -> None:
    assert "? dream" in Lines().line(unit(type=UnitType("DREAM"))).plain


def test_bytes_are_counted_rather_than_shown() -> None:
    assert summary(unit(content_type="image/png", payload=b"\x89PNG")) == "4 bytes of image/png"


@pytest.mark.parametrize(
    ("kind", "agent", "said", "told"),
    [
        ("granted", "ann", {"until": "2026-01-01T12:35:26.000000Z", "reason": "rewrite"}, "; until 12:35:26: rewrite"),
        ("granted", "ann", {"mode": "shared", "until": "2026-01-01T12:35:26.000000Z"}, ", shared; until 12:35:26"),
        ("queued", "ann", {"until": "x", "obstacle": {"holder_agent": "bob", "waits": True}}, "; behind bob"),
        (
            "wait_ended",
            "bus",
            {"why": "DEADLINE", "obstacle": {"holder_agent": "bob"}},
            " of ann; behind bob: DEADLINE",
        ),
        ("broken", "op", {"reason": "gone\nhome"}, " of ann: gone home"),
        ("released", "ann", {}, ""),
    ],
)
def test_a_lock_unit_says_who_has_what(kind: str, agent: str, said: dict[str, object], told: str) -> None:
    payload = msgspec.json.encode({"agent_id": "ann", "resources": ["a.py", "b.py"], "mode": "exclusive", **said})
    one = unit(kind=f"lock.{kind}", agent_id=agent, payload=payload, content_type="application/json")
    assert summary(one) == f"a.py, b.py{told}"


def test_a_lock_unit_of_a_newer_bus_is_shown_as_it_is() -> None:
    assert summary(unit(kind="lock.lent", payload=b'{"agent_id": 1}')) == '{"agent_id": 1}'


@given(st.text(max_size=50), st.text(min_size=1, max_size=50), st.binary(max_size=200))
def test_whatever_it_holds_it_is_one_line_of_printable_text(context: str, agent: str, payload: bytes) -> None:
    text = Lines(context_cells=10, agent_cells=10).line(unit(context_id=context, agent_id=agent, payload=payload))
    assert text.plain.isprintable()
    head = text.plain.partition("✉")[0]
    assert cell_len(head) == len("      1 12:34:56 ") + 22


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"payload": b""},
        {"payload": b'{"a": [1, 2.5, null]}', "content_type": "application/json"},
        {"payload": b"\xff", "content_type": "application/octet-stream"},
        {"payload": b"\xff"},
        {"meta": {"a": "1"}, "resources": ["x"], "kind": "build.run", "traceparent": "00-0-0-00"},
    ],
)
def test_json_is_what_the_bus_itself_says(fields: dict[str, object]) -> None:
    ours = unit(**fields)
    theirs = msgspec.convert(msgspec.to_builtins(ours, builtin_types=(bytes,)), BusUnit)
    assert msgspec.json.decode(unit_json(ours)) == msgspec.json.decode(bus_unit_json(theirs))
