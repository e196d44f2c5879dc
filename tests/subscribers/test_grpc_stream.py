"""A Subscribe call that takes its messages slowly, or not at all: what waits is joined, bounded, and ends exactly."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from engram_bus.embedded import Bus
from engram_bus.errors import ShuttingDown
from engram_bus.limits import DRAIN_SECONDS_MAX, FRAME_BYTES_MAX, SOCKET_BUFFER_BYTES
from engram_bus.pb.subscription_pb2 import SubscribeResponse
from engram_bus.router.filters import make_filter
from engram_bus.subscribers.grpc_stream import Stream
from engram_bus.subscribers.requests import SubscribeRequest
from tests.api.calls import Refused, calls
from tests.live import LiveBus

PAYLOAD = "x" * 25_000
UNITS = 400
"""10 MB in all: more than a call and its connection hold."""


class Call:
    """A call that takes a message when it is told to."""

    def __init__(self) -> None:
        self.taken: list[SubscribeResponse] = []
        self.sizes: list[int] = []
        self._turns = asyncio.Semaphore(0)

    async def write(self, message: bytes) -> None:
        await self._turns.acquire()
        self.sizes.append(len(message))
        self.taken.append(SubscribeResponse.FromString(message))

    async def take(self, messages: int) -> list[SubscribeResponse]:
        """So many more messages."""
        for _ in range(messages):
            self._turns.release()
        while self._turns._value:
            await asyncio.sleep(0)
        return self.taken[-messages:]


@asynccontextmanager
async def streaming(bus: Bus, **wanted: Any) -> AsyncIterator[tuple[Stream, Call, asyncio.Task[None]]]:
    """A subscription from now on, and the call that takes its messages."""
    call = Call()
    stream = Stream(bus, SubscribeRequest(wanted=make_filter(**wanted)), bus.seq_of_cursor(None))
    running = asyncio.create_task(stream.run(call.write))
    try:
        yield stream, call, running
    finally:
        running.cancel()
        await asyncio.wait([running])


def seqs(messages: list[SubscribeResponse]) -> list[int]:
    return [unit.seq for message in messages for unit in message.work_units]


async def test_units_that_wait_for_the_call_are_one_message() -> None:
    async with Bus.open(None) as bus, streaming(bus) as (_, call, _):
        await call.take(1)
        for n in range(20):
            await bus.append("plan", str(n), agent_id="ann")
        first, rest = await call.take(2)
        assert (seqs([first]), seqs([rest])) == ([1], list(range(2, 21)))
        assert (first.cursor, rest.cursor) == (f"{bus.epoch}.1", f"{bus.epoch}.20")


async def test_an_event_is_a_message_of_its_own_in_its_place() -> None:
    async with Bus.open(None, heartbeat_seconds=1) as bus, streaming(bus) as (_, call, _):
        for _ in range(2):
            await bus.append("plan", "a", agent_id="ann")
        bus.fanout.pulse()
        for _ in range(2):
            await bus.append("plan", "b", agent_id="ann")
        messages = await call.take(4)
        events = [message.WhichOneof("event") for message in messages]
        assert events == ["subscribed", None, "heartbeat", None]
        assert [seqs([message]) for message in messages] == [[], [1, 2], [], [3, 4]]


async def test_what_is_joined_is_no_larger_than_a_frame() -> None:
    async with Bus.open(None) as bus, streaming(bus) as (_, call, _):
        await call.take(1)
        for _ in range(30):
            await bus.append("plan", PAYLOAD, agent_id="ann")
        while len(seqs(call.taken)) < 30:
            await call.take(1)
        assert max(call.sizes) <= FRAME_BYTES_MAX
        assert len(call.sizes) < 10


async def test_what_waits_for_a_call_is_bounded_and_the_log_has_the_rest() -> None:
    async with Bus.open(None) as bus, streaming(bus) as (stream, call, _):
        for _ in range(100):
            await bus.append("plan", PAYLOAD, agent_id="ann")
            assert sum(map(len, stream._waiting)) <= SOCKET_BUFFER_BYTES + FRAME_BYTES_MAX
        while len(seqs(call.taken)) < 100:
            await call.take(1)
        assert seqs(call.taken) == list(range(1, 101))


async def test_a_stop_is_told_before_the_call_ends() -> None:
    async with Bus.open(None) as bus, streaming(bus) as (_, call, running):
        await bus.append("plan", "a", agent_id="ann")
        bus.goaway("shutdown")
        messages = await call.take(3)
        assert [message.WhichOneof("event") for message in messages] == ["subscribed", None, "goaway"]
        assert messages[-1].cursor == f"{bus.epoch}.1"
        with pytest.raises(ShuttingDown):
            await running


async def test_a_call_that_is_cancelled_leaves_nothing_behind() -> None:
    async with Bus.open(None) as bus:
        async with streaming(bus) as (_, call, _):
            await call.take(1)
            assert len(bus.fanout) == 1
        assert len(bus.fanout) == 0


# --- Over the wire ---------------------------------------------------------------------------------------------------


def test_a_frozen_call_is_ended_with_the_cursor_of_what_it_has_and_resumes() -> None:
    with LiveBus(stall_seconds=2) as bus, calls(bus.grpc_address) as eve, calls(bus.grpc_address) as ann:
        frozen = eve.subscribe(context=["plan"], after="0")
        healthy = ann.subscribe(context=["plan"], after="0")
        assert next(frozen).WhichOneof("event") == next(healthy).WhichOneof("event") == "subscribed"
        heard: list[int] = []
        for n in range(1, UNITS + 1):
            bus.append("plan", PAYLOAD)
            while len(heard) < n:
                heard += seqs([next(healthy)])
        assert heard == list(range(1, UNITS + 1))
        bus.wait(lambda inner: len(inner.fanout) == 1)
        late, cursor = [], ""
        with pytest.raises(grpc.RpcError) as ended:  # noqa: PT012  # It is read to its end.
            for message in frozen:
                late += seqs([message])
                cursor = message.cursor
        refused = Refused(ended.value)
        assert (refused.status, refused.code, refused.error.retryable) == ("UNAVAILABLE", "SLOW_CONSUMER", True)
        assert refused.error.message.endswith(f"resume after {cursor}")
        again = eve.subscribe(context=["plan"], after=cursor)
        while len(late) < UNITS:
            late += seqs([next(again)])
        assert late == list(range(1, UNITS + 1))
        again.cancel()
        healthy.cancel()


def test_a_stop_does_not_wait_for_a_frozen_call() -> None:
    with LiveBus() as bus, calls(bus.grpc_address) as eve:
        frozen = eve.subscribe(context=["plan"], after="0", timeout=2 * DRAIN_SECONDS_MAX)
        next(frozen)
        for _ in range(UNITS):
            bus.append("plan", PAYLOAD)
        bus.stop()
        frozen.cancel()


def test_a_deadline_and_a_cancellation_end_the_subscription() -> None:
    with LiveBus() as bus, calls(bus.grpc_address) as ann:
        for how in ("deadline", "cancel"):
            call = ann.subscribe(context=["*"], timeout=0.5 if how == "deadline" else 20)
            next(call)
            if how == "cancel":
                call.cancel()
            bus.wait(lambda inner: len(inner.fanout) == 0)
