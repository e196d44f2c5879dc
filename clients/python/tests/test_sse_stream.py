"""The same subscription over server-sent events."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest

from engram_client import Client, EngramConnectionError, Gap
from engram_client.errors import EpochChanged


def unit_event(seq: int) -> str:
    unit = {"seq": seq, "id": f"u{seq}", "context_id": "plan", "version": seq, "agent_id": "ann", "type": "MESSAGE"}
    wire = {**unit, "ts": "2026-01-01T00:00:00.000000Z", "content_type": "text/plain", "payload": "hi"}
    return f"id: e1.{seq}\ndata: {msgspec.json.encode(wire).decode()}"


def control(name: str, last_id: str, /, **fields: Any) -> str:
    return f"event: {name}\nid: {last_id}\ndata: {msgspec.json.encode(fields).decode()}"


async def test_it_goes_on_after_the_last_unit_when_the_stream_ends(answering: Any) -> None:
    hello = control("subscribed", "e1.0", cursor="e1.0", head=3)
    again = control("subscribed", "e1.2", cursor="e1.2", head=3)
    first = answering.stream("retry: 1000", hello, unit_event(1), unit_event(2), "id: e1.3\ndata: {cut")
    goodbye = control("goaway", "e1.3", reason="SLOW_CONSUMER", retry_after_ms=1)
    second = answering.stream(again, unit_event(3), goodbye)
    beat = control("heartbeat", "e1.9", cursor="e1.9", head=9)
    third = answering.stream(control("subscribed", "e1.3", cursor="e1.3", head=3), beat, unit_event(10))
    url, requests = await answering.start(first[:-2], second, third)
    async with Client(url, agent_id="bob") as bus:
        units = bus.subscribe("plan", after=0, type="MESSAGE", transport="sse")
        assert [(await anext(units)).seq for _ in range(4)] == [1, 2, 3, 10]
        assert units.head == 10
    asked = [dict(parse_qsl(urlsplit(request.target).query)) for request in requests[:3]]
    assert [one["after"] for one in asked] == ["0", "e1.2", "e1.3"]
    assert asked[0] == {"context": "plan", "type": "MESSAGE", "after": "0"}
    assert requests[0].target.startswith("/stream-sse?")


async def test_a_gap_is_told(answering: Any) -> None:
    hello = control("subscribed", "e1.0", cursor="e1.0", head=3)
    gap = control("gap", "e1.2", **{"from": 1, "to": 2, "reason": "LOG_DAMAGED"})
    url, _ = await answering.start(answering.stream(hello, gap, unit_event(3)))
    async with Client(url, agent_id="bob") as bus:
        units = bus.subscribe("plan", after=0, transport="sse")
        with pytest.raises(Gap):
            await anext(units)
        assert (await anext(units)).seq == 3


async def test_a_bad_cursor_is_a_problem_before_the_stream(answering: Any) -> None:
    changed = {"code": "EPOCH_CHANGED", "detail": "e2 now", "retryable": False}
    url, _ = await answering.start(answering.json(409, changed))
    async with Client(url, agent_id="bob") as bus:
        with pytest.raises(EpochChanged, match="e2 now"):
            await anext(bus.subscribe("plan", after="e1.7", transport="sse"))


async def test_busy_is_come_back_from(answering: Any) -> None:
    hello = control("subscribed", "e1.0", cursor="e1.0", head=3)
    url, _ = await answering.start(answering.json(503, {}), answering.stream(hello, unit_event(1)))
    async with Client(url, agent_id="bob") as bus:
        assert (await anext(bus.subscribe("plan", after=0, transport="sse"))).seq == 1


async def test_silence_is_a_dead_connection(answering: Any) -> None:
    url, _ = await answering.start(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    async with Client(url, agent_id="bob") as bus:
        with pytest.raises(EngramConnectionError, match="ReadTimeout"):
            await anext(bus.subscribe("plan", transport="sse", silence_seconds=0.02, max_retries=0))


async def test_a_stream_that_ends_politely_is_a_lost_connection_too(answering: Any) -> None:
    url, requests = await answering.start(answering.stream(control("subscribed", "e1.0", cursor="e1.0", head=3)))
    async with Client(url, agent_id="bob") as bus:
        with pytest.raises(EngramConnectionError, match="the stream ended"):
            await anext(bus.subscribe("plan", transport="sse", max_retries=2))
    assert len(requests) == 3
