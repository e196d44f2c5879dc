"""What only server-sent events do: a browser's way to resume, and an answer instead of a stream."""

import httpx
import pytest

from engram_bus.limits import SSE_RETRY_MS
from tests.live import LiveBus
from tests.subscribers.streams import Ended, Refused, sse, units
from tests.wire import Wire, request


def test_the_event_seen_last_wins_over_the_url(bus: LiveBus) -> None:
    for _ in range(3):
        bus.append()
    with sse(bus, [("context", "plan"), ("after", "0")], last_event_id="memory.2") as stream:
        assert stream.hear().cursor == "memory.2"
        assert [unit["seq"] for unit in units(stream, 1)] == [3]


def test_an_empty_last_event_id_is_none(bus: LiveBus) -> None:
    bus.append()
    with sse(bus, [("context", "plan"), ("after", "0")], last_event_id="") as stream:
        assert stream.hear().cursor == "memory.0"


@pytest.mark.parametrize(
    ("last_event_id", "code", "status"),
    [("nonsense", "CURSOR_INVALID", 400), ("99", "CURSOR_AHEAD", 409), ("another.0", "EPOCH_CHANGED", 409)],
)
def test_a_cursor_that_cannot_be_resumed_is_a_problem_and_no_stream(
    bus: LiveBus, last_event_id: str, code: str, status: int
) -> None:
    with pytest.raises(Refused) as refused, sse(bus, [("context", "plan")], last_event_id=last_event_id):
        pass
    assert (refused.value.code, refused.value.fields["status"]) == (code, status)


def test_it_says_what_proxies_and_browsers_need_to_know(bus: LiveBus) -> None:
    with bus.http.stream("GET", "/api/v1/stream-sse", params={"context": "*"}) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store, no-transform"
        assert response.headers["x-accel-buffering"] == "no"
        first = next(response.iter_text())
    assert first.startswith(f"retry: {SSE_RETRY_MS}\nevent: subscribed\nid: memory.0\n")


def test_units_have_no_event_name_so_that_onmessage_hears_them(bus: LiveBus) -> None:
    unit = bus.append(payload="hi")
    with bus.http.stream("GET", "/stream-sse", params={"context": "*", "after": "0"}) as response:
        text = ""
        for part in response.iter_text():
            text += part
            if text.count("\n\n") == 2:
                break
    lines = text.split("\n\n")[1].split("\n")
    assert lines[0] == "id: memory.1"
    assert httpx.Response(200, text=lines[1].removeprefix("data: ")).json() == unit
    assert len(lines) == 2


def test_a_stop_ends_the_response_as_a_whole_one(bus: LiveBus) -> None:
    with sse(bus, [("context", "plan")]) as stream:
        stream.hear()
        bus.stop()
        assert stream.hear().event == "goaway"
        with pytest.raises(Ended):
            stream.hear()


def test_while_the_bus_stops_there_are_no_new_streams(bus: LiveBus) -> None:
    bus.call(lambda inner: inner.writer.close())
    response = bus.http.get("/stream-sse", params={"context": "*"})
    assert (response.status_code, response.json()["code"]) == (503, "SHUTTING_DOWN")
    assert int(response.headers["retry-after"]) >= 1


def test_a_client_that_leaves_leaves_nothing_behind(bus: LiveBus) -> None:
    with sse(bus, [("context", "plan")]) as stream:
        stream.hear()
        assert bus.http.get("/status").json()["subscribers"] == 1
    bus.wait(lambda inner: len(inner.fanout) == 0)


def test_a_stream_behind_an_answer_that_is_not_read_begins_and_is_told_of_the_stop(bus: LiveBus) -> None:
    for _ in range(16):
        bus.append("large", "x" * 1_000_000)
    with Wire(bus.address) as wire:
        wire.send(
            request("GET", "/workunits/large") + request("GET", "/stream-sse?context=plan", b"", "Connection: close")
        )
        bus.wait(lambda inner: len(inner.fanout) == 1)
        bus.call(lambda inner: inner.goaway("shutdown"))
        assert wire.answer().status == 200
        head, _, stream = wire.rest().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert [line for line in stream.splitlines() if line.startswith(b"event")] == [
        b"event: subscribed",
        b"event: goaway",
    ]
    assert stream.endswith(b"\r\n0\r\n\r\n")


def test_a_request_behind_a_stream_is_answered_after_it(bus: LiveBus) -> None:
    with Wire(bus.address) as wire:
        wire.send(request("GET", "/stream-sse?context=*") + request("GET", "/healthz"))
        bus.wait(lambda inner: len(inner.fanout) == 1)
        bus.stop()
        stream, _, after = wire.rest().partition(b"\r\n0\r\n\r\n")
    assert b"goaway" in stream
    assert after.startswith(b"HTTP/1.1 200 OK")
