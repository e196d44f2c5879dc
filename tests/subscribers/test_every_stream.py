"""What a stream promises, whatever it travels over: its cursor first, then every unit once and in order."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engram_bus.errors import LogSilent
from engram_bus.log.contract import Epoch
from engram_bus.log.memory import MemoryLog
from tests.contracts.cursors import CursorCase, odd_cursors
from tests.damaged import DamagedLog
from tests.live import LiveBus
from tests.subscribers.streams import Ended, Query, Refused, Transport, cursor_after, units

EPOCHS = (Epoch("e1", 1), Epoch("e2", 4), Epoch("e3", 6))
HEAD = 8


def test_the_cursor_comes_first_then_what_comes_after_it(bus: LiveBus, transport: Transport) -> None:
    first, second = bus.append(), bus.append()
    with transport(bus, [("context", "plan"), ("after", "1")]) as stream:
        subscribed = stream.hear()
        assert (subscribed.event, subscribed.cursor) == ("subscribed", f"{bus.bus.epoch}.1")
        assert subscribed.fields["head"] == 2
        heard = stream.hear()
        assert heard.units == [second]
        assert heard.cursor == f"{bus.bus.epoch}.2"
        assert units(stream, 0) == []
        third = bus.append()
        assert stream.hear().units == [third]
    assert first["seq"] == 1


def test_without_a_cursor_it_begins_now(bus: LiveBus, transport: Transport) -> None:
    bus.append()
    with transport(bus, [("context", "*")]) as stream:
        assert stream.hear().cursor == f"{bus.bus.epoch}.1"
        unit = bus.append("other")
        assert stream.hear().units == [unit]


def test_who_is_refused_last_of_all_is_told_why(bus: LiveBus, transport: Transport) -> None:
    """After the look at its cursor: a worker may be left behind by the log between the two."""

    def refuse(*_: object) -> None:
        raise LogSilent("the log process has said nothing for 5 s")

    bus.call(lambda inner: setattr(inner, "feed", refuse))
    with pytest.raises(Refused) as refused, transport(bus, [("context", "plan")]) as stream:
        stream.hear()
    assert refused.value.code == "LOG_SILENT"


UNITS: dict[str, dict[str, Any]] = {
    "empty": {"payload": ""},
    "lines": {"payload": "one\ntwo\r\nthree\rfour\u2028five\u2029six\x85seven\n\n"},
    "looks like an event": {"payload": "id: 7\nevent: goaway\ndata: {}\n\n"},
    "unicode": {"payload": "汉字 🙂 ü \u0000 \u202e", "meta": {"ü": "🙂"}, "resources": ["a b/ü.py"]},
    "json": {"payload": {"a": [1, 2.5, None, True, {"b": "\n"}], "ü": "\u2028"}},
    "json over lines": {"payload_base64": "eyJhIjoKIFsxLA0KMl19Cg==", "content_type": "application/json"},
    "null": {"payload": None, "content_type": "application/json"},
    "bytes": {"payload_base64": "AP//AAECAw==", "content_type": "image/png"},
    "all fields": {
        "type": "TOOL_CALL",
        "kind": "test.run",
        "meta": {"repo": "engram"},
        "resources": ["tests/a.py", "tests/b.py"],
        "relationships": [{"target_id": "somewhere", "type": "CAUSES", "meta": {"how": "so"}}],
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "id": "0190b0e0-0000-7000-8000-00000000000a",
    },
    "large": {"payload": "x" * 1_000_000},
}


def test_a_unit_comes_as_it_was_acknowledged(bus: LiveBus, transport: Transport) -> None:
    appended = [_append(bus, fields) for fields in UNITS.values()]
    with transport(bus, [("context", "plan"), ("after", "0")]) as caught_up:
        assert units(caught_up, len(appended)) == appended
    with transport(bus, [("context", "plan")]) as live:
        live.hear()
        for fields in UNITS.values():
            unit = _append(bus, {name: value for name, value in fields.items() if name != "id"})
            assert units(live, 1) == [unit]


FILTERS: dict[str, tuple[Query, str]] = {
    "one context": ([("context", "plan")], "abcd"),
    "contexts": ([("context", "plan"), ("context", "src/a.py")], "abcdef"),
    "all": ([("context", "*")], "abcdefgh"),
    "type": ([("context", "*"), ("type", "TOOL_CALL")], "bf"),
    "types": ([("context", "*"), ("type", "TOOL_CALL"), ("type", "4")], "bcf"),
    "kind": ([("context", "*"), ("kind", "test.*")], "bc"),
    "agent": ([("context", "*"), ("agent", "bob")], "ceg"),
    "not an agent": ([("context", "*"), ("exclude_agent", "bob"), ("exclude_agent", "eve")], "abdf"),
    "resource": ([("context", "*"), ("resource", "tests/*.py")], "bd"),
    "meta": ([("context", "*"), ("meta.repo", "engram")], "ad"),
    "two keys of meta": ([("context", "*"), ("meta.repo", "engram"), ("meta.phase", "2")], "d"),
    "everything": ([("context", "plan"), ("type", "TOOL_CALL"), ("agent", "ann"), ("kind", "*")], "b"),
    "nothing": ([("context", "plan"), ("agent", "nobody")], ""),
}
FILTERED: dict[str, dict[str, Any]] = {
    "a": {"meta": {"repo": "engram"}},
    "b": {"type": "TOOL_CALL", "kind": "test.run", "resources": ["tests/x.py"]},
    "c": {"type": "TOOL_RESULT", "kind": "test.failed", "agent_id": "bob"},
    "d": {"resources": ["a", "tests/y/z.py"], "meta": {"repo": "engram", "phase": "2"}},
    "e": {"context_id": "src/a.py", "agent_id": "bob"},
    "f": {"context_id": "src/a.py", "type": "TOOL_CALL"},
    "g": {"context_id": "src", "agent_id": "bob", "kind": "testing"},
    "h": {"context_id": "other", "agent_id": "eve"},
}


@pytest.mark.parametrize(("query", "wanted"), FILTERS.values(), ids=FILTERS)
def test_a_filter_lets_through_what_it_names_caught_up_and_live(
    bus: LiveBus, transport: Transport, query: Query, wanted: str
) -> None:
    for payload, fields in FILTERED.items():
        bus.append(payload=payload, **fields)
    with transport(bus, [*query, ("after", "0")]) as stream:
        stream.hear()
        assert [unit["payload"] for unit in units(stream, len(wanted))] == list(wanted)
        for payload, fields in FILTERED.items():
            bus.append(payload=payload, **fields)
        assert [unit["payload"] for unit in units(stream, len(wanted))] == list(wanted)


@pytest.fixture(scope="module")
def old_bus() -> Iterator[LiveBus]:
    with LiveBus(log=MemoryLog(EPOCHS)) as bus:
        for _ in range(HEAD):
            bus.append()
        yield bus


@pytest.mark.parametrize("case", odd_cursors(EPOCHS, HEAD), ids=str)
def test_an_odd_cursor_gives_the_units_after_it_or_says_why_not(
    old_bus: LiveBus, transport: Transport, case: CursorCase
) -> None:
    query = [("context", "plan")] if case.text is None else [("context", "plan"), ("after", case.text)]
    if case.code is not None:
        assert _refusal(old_bus, transport, query).code == case.code
        return
    assert case.seq is not None
    with transport(old_bus, query) as stream:
        assert stream.hear().cursor == f"e3.{case.seq}"
        assert [unit["seq"] for unit in units(stream, HEAD - case.seq)] == list(range(case.seq + 1, HEAD + 1))


def test_who_reconnects_again_and_again_misses_nothing_and_hears_nothing_twice(
    tmp_path: Path, transport: Transport
) -> None:
    dice = random.Random(7)
    with LiveBus(tmp_path / "data") as bus:
        publisher = threading.Thread(target=lambda: [bus.append(f"c{n % 3}", str(n)) for n in range(300)])
        publisher.start()
        heard: list[int] = []
        after = "0"
        while len(heard) < 300:
            with transport(bus, [("context", "*"), ("after", after)]) as stream:
                assert stream.hear().event == "subscribed"
                for _ in range(dice.randrange(1, 60)):
                    frame = stream.hear()
                    heard += [unit["seq"] for unit in frame.units]
                    after = frame.cursor
                    if len(heard) >= 300:
                        break
        publisher.join()
    assert heard == list(range(1, 301))


def test_an_idle_stream_hears_where_it_stands(transport: Transport) -> None:
    with LiveBus(heartbeat_seconds=1) as bus, transport(bus, [("context", "quiet")]) as stream:
        stream.hear()
        unit = bus.append("loud")
        heartbeat = stream.hear()
        assert heartbeat.event == "heartbeat"
        assert heartbeat.fields["head"] == unit["seq"]
        assert heartbeat.cursor == f"{bus.bus.epoch}.{unit['seq']}"


def test_a_stop_sends_everyone_off_with_a_place_to_resume(tmp_path: Path, transport: Transport) -> None:
    with LiveBus(tmp_path / "data") as bus:
        bus.append()
        with transport(bus, [("context", "plan"), ("after", "0")]) as stream:
            cursor = cursor_after(stream, 1)
            bus.stop()
            goaway = stream.hear()
            assert (goaway.event, goaway.cursor) == ("goaway", cursor)
            assert goaway.fields["reason"] == "shutdown"
            assert 0 < goaway.fields["retry_after_ms"] <= 2_000
            with pytest.raises(Ended) as ended:
                stream.hear()
            assert ended.value.close_code in (4001, None)
        bus.start()
        unit = bus.append()
        with transport(bus, [("context", "plan"), ("after", goaway.cursor)]) as stream:
            assert units(stream, 1) == [unit]


def test_a_record_that_cannot_be_read_is_a_gap_and_the_stream_goes_on(transport: Transport) -> None:
    log = DamagedLog()
    with LiveBus(log=log) as bus:
        appended = [bus.append() for _ in range(4)]
        bus.stop()
        bus.start()  # What is recent is kept beside the log; now nothing is.
        log.damaged = (3,)
        with transport(bus, [("context", "plan"), ("after", "0")]) as stream:
            assert units(stream, 2) == appended[:2]
            gap = stream.hear()
            assert (gap.event, gap.cursor) == ("gap", "memory.3")
            assert (gap.fields["from"], gap.fields["to"], gap.fields["reason"]) == (3, 3, "damaged")
            assert stream.hear().units == appended[3:]


def _append(bus: LiveBus, fields: dict[str, Any]) -> dict[str, Any]:
    response = bus.http.post("/workunit", json={"context_id": "plan", "agent_id": "ann", **fields})
    assert response.status_code == 201, response.text
    unit: dict[str, Any] = response.json()
    return unit


def _refusal(bus: LiveBus, transport: Transport, query: Query) -> Refused:
    with pytest.raises(Refused) as refused, transport(bus, query) as stream:
        stream.hear()
    return refused.value
