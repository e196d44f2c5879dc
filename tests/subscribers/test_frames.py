"""The bytes that subscribers are sent, read back by parsers that are not ours."""

import json
from typing import Any, NamedTuple

import httpx
import httpx_sse
import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from websockets.frames import Frame
from websockets.streams import StreamReader

from engram_bus.codec import Entry, encode_msgpack, unit_json
from engram_bus.errors import VersionMoved
from engram_bus.subscribers.frames import (
    BINARY,
    TEXT,
    JsonFraming,
    MsgpackFraming,
    SseFraming,
    array_header,
    error_fields,
    websocket_frame,
)
from engram_bus.units import WorkUnit
from tests.values import unit, units

NAMES = [None, "mine", 7, 'ü\n"\\']


@pytest.mark.parametrize("size_bytes", [0, 1, 125, 126, 127, 65_535, 65_536, 1_000_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_frame_of_any_size_is_one_frame(opcode: int, size_bytes: int) -> None:
    body = b"x" * size_bytes
    frame = _parsed(websocket_frame(opcode, body[:10], body[10:]))
    assert (frame.opcode, frame.data, frame.fin) == (opcode & 0x0F, body, True)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_an_array_of_any_size_is_one_array(count: int) -> None:
    assert msgpack.unpackb(array_header(count) + b"\x01" * count) == [1] * count


@pytest.mark.parametrize("name", NAMES)
def test_units_are_one_json_object_with_the_cursor_after_them(name: str | int | None) -> None:
    entries = _entries(*[unit(seq, payload='a "quoted" line\n\u2028'.encode()) for seq in (1, 2, 3)])
    fields = json.loads(_parsed(JsonFraming(name).units(entries, "e1", 9)).data)
    assert fields.pop("units") == [json.loads(unit_json(entry.unit)) for entry in entries]
    assert fields == {"event": "units", "cursor": "e1.9"} | _named(name)


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("correlation", NAMES)
def test_the_answer_to_an_append_is_the_same_in_both_encodings(correlation: str | int | None, replayed: bool) -> None:
    appended = unit(7, context_id='a "plan"\\\u2028ü')
    says = [
        framing().appended(appended, "fsync", correlation=correlation, replayed=replayed)
        for framing in (JsonFraming, MsgpackFraming)
    ]
    fields = json.loads(_parsed(says[0]).data)
    assert msgpack.unpackb(_parsed(says[1]).data) == fields
    assert list(fields) == list(msgpack.unpackb(_parsed(says[1]).data))
    assert fields == {
        "event": "appended",
        **({} if correlation is None else {"id": correlation}),
        "unit_id": appended.id,
        "context_id": appended.context_id,
        "seq": 7,
        "version": appended.version,
        "durability": "fsync",
        **({"replayed": True} if replayed else {}),
    }


@pytest.mark.parametrize("name", NAMES)
def test_units_are_one_msgpack_map_with_the_logs_own_bytes(name: str | int | None) -> None:
    entries = _entries(*[unit(seq, payload=b"\x00\xff") for seq in range(1, 21)])
    frame = _parsed(MsgpackFraming(name).units(entries, "e1", 20))
    fields = msgpack.unpackb(frame.data)
    assert fields.pop("units") == [msgpack.unpackb(entry.body) for entry in entries]
    assert fields == {"event": "units", "cursor": "e1.20"} | _named(name)


@pytest.mark.parametrize("name", NAMES)
def test_both_encodings_say_the_same_of_everything_else(name: str | int | None) -> None:
    def said(framing: Any, decode: Any) -> list[Any]:
        frames = [
            framing.subscribed("e1.1", 5),
            framing.heartbeat("e1.2", 5),
            framing.gap(3, 4, "damaged", "e1.4"),
            framing.goaway("shutdown", 300, "e1.4"),
            framing.event("pong", head=5),
        ]
        return [decode(_parsed(frame).data) for frame in frames]

    as_json = said(JsonFraming(name), json.loads)
    assert as_json == said(MsgpackFraming(name), msgpack.unpackb)
    assert [fields["event"] for fields in as_json] == ["subscribed", "heartbeat", "gap", "goaway", "pong"]
    assert as_json[2] == {"event": "gap", "from": 3, "to": 4, "reason": "damaged", "cursor": "e1.4"} | _named(name)


def test_framings_are_equal_by_what_they_say() -> None:
    assert JsonFraming("a") == JsonFraming("a") != JsonFraming("b")
    assert hash(SseFraming()) == hash(SseFraming())
    assert len({JsonFraming(), MsgpackFraming(), SseFraming()}) == 3


def test_units_are_plain_events_each_with_its_own_cursor() -> None:
    entries = _entries(*[unit(seq, payload=b"one\ntwo") for seq in (4, 5, 6)])
    events = _events(SseFraming().units(entries, "e1", 9))
    assert [(event.event, event.id) for event in events] == [("message", f"e1.{seq}") for seq in (4, 5, 6)]
    assert [event.json() for event in events] == [json.loads(unit_json(entry.unit)) for entry in entries]


def test_everything_else_is_a_named_event_with_the_cursor_as_its_id() -> None:
    framing = SseFraming()
    events = _events(
        framing.subscribed("e1.1", 5),
        framing.heartbeat("e1.2", 5),
        framing.gap(3, 4, "damaged", "e1.4"),
        framing.goaway("shutdown", 300, "e1.4"),
    )
    assert [(event.event, event.id) for event in events] == [
        ("subscribed", "e1.1"),
        ("heartbeat", "e1.2"),
        ("gap", "e1.4"),
        ("goaway", "e1.4"),
    ]
    assert [event.retry for event in events] == [1_000, None, None, 300]
    assert events[2].json() == {"from": 3, "to": 4, "reason": "damaged", "cursor": "e1.4"}


@given(units(seq=1))
def test_no_unit_at_all_breaks_a_stream(odd: WorkUnit) -> None:
    entries = _entries(odd, unit(2))
    events = _events(SseFraming().units(entries, "e1", 2))
    fields = json.loads(_parsed(JsonFraming().units(entries, "e1", 2)).data)
    assert [event.json() for event in events] == fields["units"]
    packed = msgpack.unpackb(_parsed(MsgpackFraming().units(entries, "e1", 2)).data)
    assert packed["units"][0]["payload"] == odd.payload


def test_an_error_frame_says_what_a_problem_says() -> None:
    error = VersionMoved("moved", field="expected_version", current_version=7).at(3)
    assert error_fields(error) == {
        "code": "VERSION_MOVED",
        "message": "moved",
        "retryable": False,
        "field": "expected_version",
        "index": 3,
        "current_version": 7,
    }


def _entries(*some: WorkUnit) -> list[Entry]:
    return [Entry(one.seq, encode_msgpack(one), one) for one in some]


def _named(name: str | int | None) -> dict[str, Any]:
    return {} if name is None else {"subscription": name}


class _Parsed(NamedTuple):
    opcode: int
    fin: bool
    data: bytes


def _parsed(data: bytes) -> _Parsed:
    """The one frame in these bytes."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    parser = Frame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as done:
        next(parser)
    frame: Frame = done.value.value
    assert len(data) - len(frame.data) in (2, 4, 10), "a header, and nothing after the frame"
    return _Parsed(frame.opcode, frame.fin, bytes(frame.data))


def _events(*chunks: bytes) -> list[httpx_sse.ServerSentEvent]:
    """The events in these chunks, which are read as an HTTP response is."""
    body = b"".join(_unchunked(b"".join(chunks)))
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    return list(httpx_sse.EventSource(response).iter_sse())


def _unchunked(data: bytes) -> list[bytes]:
    parts = []
    while data:
        size, _, rest = data.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        data = rest[int(size, 16) + 2 :]
    return parts
