"""A client over gRPC against prepared servers: what it asks, how it meets failures, and what it leaves behind."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from engram_client import Client, Draft, EngramConnectionError, EngramError, Gap, Pipeline, Subscription
from engram_client.errors import (
    Busy,
    EpochChanged,
    Invalid,
    NotFound,
    ShuttingDown,
    TooLarge,
    Unavailable,
    VersionMoved,
)
from engram_client.grpc import Grpc
from engram_client.pb import append_pb2, error_pb2, lock_pb2, subscription_pb2, unit_pb2
from engram_client.pb import status_pb2 as bus_status_pb2

Context = Any
Method = Callable[[bytes, Context], Awaitable[Any]]
STATUS = bus_status_pb2.GetStatusResponse(epoch="e1", head=1, cursor="e1.1", ready=True).SerializeToString()


class Serving:
    """gRPC servers whose methods are prepared: on bytes, the n-th call meeting the n-th, later ones the last."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def start(self, credentials: Any = None, **methods: Method | list[Method]) -> str:
        server = grpc.aio.server()
        kinds = {
            "AppendStream": grpc.stream_stream_rpc_method_handler,
            "Subscribe": grpc.unary_stream_rpc_method_handler,
        }
        handlers = {
            name: kinds.get(name, grpc.unary_unary_rpc_method_handler)(self._played(scenes))
            for name, scenes in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("engram.v1.EngramBus", handlers),))
        if credentials is not None:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._stack.push_async_callback(server.stop, 0)
        return f"grpc://127.0.0.1:{port}"

    def _played(self, scenes: Method | list[Method]) -> Method:
        several = scenes if isinstance(scenes, list) else [scenes]
        met = iter(several[:-1])

        async def meet(request: bytes, context: Context) -> Any:
            return await next(met, several[-1])(request, context)

        return meet


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
async def one_loop() -> AsyncIterator[None]:
    """For all tests: what a server of grpc has still to report when it was stopped needs its loop."""
    yield  # noqa: PT022  # The loop lives as long as this does.


@pytest.fixture
async def serving(short_pauses: None) -> AsyncIterator[Serving]:
    async with AsyncExitStack() as stack:
        yield Serving(stack)


async def refuse(context: Context, status: str, *details: Any, message: str = "no") -> None:
    """End a call as the bus does."""
    packed = []
    for detail in details:
        packed.append(Packed())
        packed[-1].Pack(detail)
    code = grpc.StatusCode[status]
    rich = rpc_status.to_status(status_pb2.Status(code=code.value[0], message=message, details=packed))
    await context.abort(code, message, rich.trailing_metadata if details else ())


def refusing(status: str, *details: Any) -> Method:
    async def meet(request: bytes, context: Context) -> None:
        await refuse(context, status, *details)

    return meet


def answering(answer: bytes) -> Method:
    async def meet(request: bytes, context: Context) -> bytes:
        return answer

    return meet


async def mute(request: bytes, context: Context) -> None:
    await asyncio.Event().wait()


def error(code: str, *, retryable: bool = False, **details: Any) -> error_pb2.Error:
    return error_pb2.Error(code=code, message=code, retryable=retryable, details=details)


BUSY = error("BUSY", retryable=True)


# --- Calls


async def test_an_append_is_sent_again_under_one_key_until_it_is_answered(serving: Serving) -> None:
    heard: list[append_pb2.AppendRequest] = []
    agents: list[Any] = []

    def noting(then: Method) -> Method:
        async def meet(request: bytes, context: Context) -> Any:
            heard.append(append_pb2.AppendRequest.FromString(request))
            agents.append(dict(context.invocation_metadata())["x-agent-id"])
            return await then(request, context)

        return meet

    recorded = append_pb2.AppendResponse(work_unit={"seq": 7, "type": "MESSAGE"}).SerializeToString()
    answers = [refusing("UNAVAILABLE"), refusing("RESOURCE_EXHAUSTED", BUSY), answering(recorded)]
    url = await serving.start(Append=[noting(answer) for answer in answers])
    async with Client(url, agent_id="bob") as bus:
        assert (await bus.append("plan", "hi")).seq == 7
    assert len({append.idempotency_key for append in heard}) == 1
    assert [(append.agent_id, append.payload) for append in heard] == [("bob", b"hi")] * 3
    assert agents == ["bob"] * 3


async def test_what_will_not_pass_is_raised_at_once(serving: Serving) -> None:
    moved = error("VERSION_MOVED", current_version=3)
    url = await serving.start(Append=[refusing("FAILED_PRECONDITION", moved), mute])
    async with Client(url, agent_id="bob") as bus:
        with pytest.raises(VersionMoved) as told:
            await bus.append("plan", "hi", expected_version=2)
    assert told.value.details == {"current_version": 3}
    assert isinstance(told.value.details["current_version"], int)


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        ("UNAVAILABLE", EngramConnectionError, True),
        ("DEADLINE_EXCEEDED", EngramConnectionError, True),
        ("CANCELLED", EngramConnectionError, True),
        ("INTERNAL", EngramConnectionError, True),
        ("UNKNOWN", EngramConnectionError, True),
        ("RESOURCE_EXHAUSTED", Unavailable, True),
        ("INVALID_ARGUMENT", Invalid, False),
        ("PERMISSION_DENIED", Invalid, False),
        ("UNIMPLEMENTED", NotFound, False),
    ],
)
async def test_a_status_alone_tells_the_family_and_whether_to_come_back(
    serving: Serving, status: str, kind: type[EngramError], retryable: bool
) -> None:
    url = await serving.start(GetStatus=refusing(status))
    async with Client(url, agent_id="bob", max_retries=0) as bus:
        with pytest.raises(EngramError) as told:
            await bus.status()
    assert (type(told.value), told.value.retryable) == (kind, retryable)
    assert told.value.message.startswith(status)


async def test_details_of_another_status_are_not_believed(serving: Serving) -> None:
    async def meet(request: bytes, context: Context) -> None:
        rich = rpc_status.to_status(status_pb2.Status(code=5, message="not found", details=[]))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the proxy lost it", rich.trailing_metadata)

    async with Client(await serving.start(GetStatus=meet), agent_id="bob", max_retries=0) as bus:
        with pytest.raises(EngramConnectionError, match="the proxy lost it"):
            await bus.status()


async def test_the_bus_is_given_the_pause_it_asks_for(serving: Serving) -> None:
    pause = error_details_pb2.RetryInfo()
    pause.retry_delay.FromMilliseconds(1_500)
    url = await serving.start(GetStatus=refusing("RESOURCE_EXHAUSTED", BUSY, pause))
    async with Client(url, agent_id="bob", max_retries=0) as bus:
        with pytest.raises(Busy) as told:
            await bus.status()
    assert told.value.retry_after_seconds == 1.5


async def test_it_is_asked_again_after_the_pause_and_not_before(serving: Serving) -> None:
    pause = error_details_pb2.RetryInfo()
    pause.retry_delay.FromMilliseconds(300)
    url = await serving.start(GetStatus=[refusing("RESOURCE_EXHAUSTED", BUSY, pause), answering(STATUS)])
    async with Client(url, agent_id="bob") as bus:
        started = asyncio.get_running_loop().time()
        assert (await bus.status()).ready
        assert asyncio.get_running_loop().time() - started > 0.3


async def test_an_answer_beyond_all_bounds_is_told(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engram_client.grpc.ANSWER_BYTES_MAX", 1_000)
    async with Client(await serving.start(GetStatus=answering(bytes(2_000))), agent_id="bob") as bus:
        with pytest.raises(TooLarge, match="larger than max"):
            await bus.status()


async def test_a_refusal_may_have_much_to_tell(serving: Serving) -> None:
    cycle = [{"agent_id": "a" * 250, "waits_for": "b" * 250, "resource": "r" * 1_000} for _ in range(50)]
    url = await serving.start(GetStatus=refusing("FAILED_PRECONDITION", error("DEADLOCK", cycle=cycle)))
    async with Client(url, agent_id="bob") as bus:
        with pytest.raises(EngramError) as told:
            await bus.status()
    assert told.value.details == {"cycle": cycle}


async def test_no_bus_is_told_after_all_retries(closed_url: str) -> None:
    async with Client(closed_url.replace("http", "grpc"), agent_id="bob", max_retries=3) as bus:
        with pytest.raises(EngramConnectionError, match="4 attempts"):
            await bus.status()


async def test_a_bus_that_comes_back_is_found_again(serving: Serving, closed_url: str) -> None:
    port = int(closed_url.rpartition(":")[2])
    async with Client(f"grpc://127.0.0.1:{port}", agent_id="bob", max_retries=0) as bus, asyncio.timeout(10):
        with pytest.raises(EngramConnectionError):
            await bus.status()
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {"GetStatus": grpc.unary_unary_rpc_method_handler(answering(STATUS))}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("engram.v1.EngramBus", handlers),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        asked = Client(f"grpc://127.0.0.1:{port}", agent_id="bob", max_retries=0)
        assert (await asked.status()).ready
        await asked.aclose()
        while True:
            try:
                assert (await bus.status()).ready
                break
            except EngramConnectionError:
                await asyncio.sleep(0.01)
        await server.stop(0)


async def test_a_bus_that_does_not_answer_is_told(serving: Serving) -> None:
    url = await serving.start(GetStatus=mute)
    async with Client(url, agent_id="bob", max_retries=0, timeout_seconds=0.1) as bus:
        with pytest.raises(EngramConnectionError, match="DEADLINE_EXCEEDED"):
            await bus.status()


async def test_a_read_may_wait_longer_than_any_request_and_a_lock_too(serving: Serving) -> None:
    left: list[float] = []

    async def meet(request: bytes, context: Context) -> None:
        left.append(context.time_remaining())
        await refuse(context, "NOT_FOUND", error("UNIT_NOT_FOUND"))

    url = await serving.start(Get=meet, AcquireLock=meet)
    async with Client(url, agent_id="bob", timeout_seconds=10) as bus:
        for asked in (
            bus.get("u1"),
            bus.get("u1", min_seq=9, timeout_ms=60_000),
            bus.acquire_lock("a", wait_seconds=600),
        ):
            with pytest.raises(NotFound):
                await asked
    for seconds, most in zip(left, (10, 70, 610), strict=True):
        assert most - 5 < seconds <= most + 1


async def test_a_break_is_not_said_twice_where_the_first_may_have_worked(serving: Serving) -> None:
    heard: list[lock_pb2.BreakLockRequest] = []

    async def lost(request: bytes, context: Context) -> None:
        heard.append(lock_pb2.BreakLockRequest.FromString(request))
        await refuse(context, "UNAVAILABLE")

    url = await serving.start(BreakLock=[refusing("RESOURCE_EXHAUSTED", BUSY), lost])
    async with Client(url, agent_id="bob") as bus:
        with pytest.raises(EngramConnectionError):
            await bus.break_lock("a", reason="why")
    assert heard == [lock_pb2.BreakLockRequest(resource="a", reason="why", agent_id="bob")]


@pytest.mark.parametrize("agent_id", ["Zo\u00eb", " ann"])
async def test_a_name_that_is_no_plain_ascii_is_told_as_bytes(serving: Serving, agent_id: str) -> None:
    heard: list[Any] = []

    async def meet(request: bytes, context: Context) -> bytes:
        heard.append(dict(context.invocation_metadata()))
        return STATUS

    async with Client(await serving.start(GetStatus=meet), agent_id=agent_id) as bus:
        await bus.status()
    assert heard[0]["x-agent-id-bin"] == agent_id.encode()
    assert "x-agent-id" not in heard[0]


async def test_many_requests_take_turns(serving: Serving) -> None:
    under_way = most = 0

    async def meet(request: bytes, context: Context) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return STATUS

    async with Client(await serving.start(GetStatus=meet), agent_id="bob", max_retries=0) as bus:
        await asyncio.gather(*(bus.status() for _ in range(2_000)))
    assert most <= 64


# --- Giving up


async def test_who_stops_waiting_takes_the_call_back(serving: Serving) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def meet(request: bytes, context: Context) -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with Client(await serving.start(AcquireLock=meet), agent_id="bob") as bus, asyncio.timeout(5):
        waiting = asyncio.create_task(bus.acquire_lock("a", wait_seconds=60))
        await asked.wait()
        waiting.cancel()
        await left.wait()
        assert waiting.cancelled()


@pytest.mark.parametrize("way", ["call", "subscription", "pipeline"])
async def test_a_scope_that_is_cancelled_knows_its_cancellation(serving: Serving, way: str) -> None:
    url = await serving.start(GetStatus=mute, Subscribe=mute, AppendStream=mute)
    async with Client(url, agent_id="bob") as bus:
        with anyio.move_on_after(0.05) as scope:
            match way:
                case "call":
                    await bus.status()
                case "subscription":
                    await anext(bus.subscribe("plan"))
                case _:
                    async with bus.pipeline() as pipe:
                        await (await pipe.append("plan", "a"))
        assert scope.cancelled_caught


async def test_who_waits_while_the_client_is_closed_is_let_go(serving: Serving) -> None:
    asked = asyncio.Event()

    async def meet(request: bytes, context: Context) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with Client(await serving.start(GetStatus=meet), agent_id="bob") as bus:
        waiting = asyncio.create_task(bus.status())
        await asked.wait()
    with pytest.raises(EngramConnectionError, match="closed"):
        await waiting
    with pytest.raises(EngramConnectionError, match="closed"):
        await bus.status()


async def test_what_waits_to_be_sent_ends_with_its_client() -> None:
    """Also where the bus was never reached: who listens here says nothing."""
    before = asyncio.all_tasks()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bus = Grpc(f"grpc://127.0.0.1:{silent.getsockname()[1]}", agent_id="bob", timeout_seconds=30)
        with bus.talk("AppendStream") as call:
            sending = [asyncio.create_task(call.send(b"")) for _ in range(3)]
            await asyncio.sleep(0)
            sending[0].cancel()
            await asyncio.sleep(0)
            await bus.aclose()
            for one in sending[1:]:
                with pytest.raises(EngramConnectionError, match="closed"):
                    await one
            with pytest.raises(EngramConnectionError, match="closed"):
                await call.send(b"")
        assert asyncio.all_tasks() - before - {one for one in sending if one.done()} == set()


# --- Subscriptions


class Caller:
    """The other end of a Subscribe call."""

    def __init__(self, request: bytes, context: Context) -> None:
        self.asked = subscription_pb2.SubscribeRequest.FromString(request)
        self._context = context

    async def say(self, cursor: str = "", **event: Any) -> None:
        await self._context.write(subscription_pb2.SubscribeResponse(cursor=cursor, **event).SerializeToString())

    async def subscribed(self, cursor: str) -> None:
        await self.say(cursor, subscribed={"head": 99})

    async def units(self, *seqs: int) -> None:
        units = [unit_pb2.WorkUnit(seq=seq, type="MESSAGE") for seq in seqs]
        await self.say(f"e1.{seqs[-1]}", work_units=units)

    async def stay(self) -> None:
        await asyncio.Event().wait()

    async def refuse(self, status: str, *details: Any) -> None:
        await refuse(self._context, status, *details)


Scene = Callable[[Caller], Awaitable[None]]


def feeding(*scenes: Scene) -> list[Method]:
    def feed(scene: Scene) -> Method:
        return lambda request, context: scene(Caller(request, context))

    return [feed(scene) for scene in scenes]


async def take(subscription: Subscription, count: int) -> list[int]:
    async with asyncio.timeout(5):
        return [(await anext(subscription)).seq for _ in range(count)]


ENDS: list[tuple[str, Any]] = [
    ("UNAVAILABLE", None),
    ("UNAVAILABLE", error("SHUTTING_DOWN", retryable=True)),
    ("UNAVAILABLE", error("SLOW_CONSUMER", retryable=True)),
    ("CANCELLED", None),
    ("OK", None),
]


@pytest.mark.parametrize(("status", "detail"), ENDS)
async def test_it_goes_on_after_the_last_unit_when_the_stream_ends(serving: Serving, status: str, detail: Any) -> None:
    asked: list[subscription_pb2.SubscribeRequest] = []

    async def ending(caller: Caller) -> None:
        asked.append(caller.asked)
        await caller.subscribed("e1.0")
        await caller.units(1, 2)
        if status != "OK":
            await caller.refuse(status, *([] if detail is None else [detail]))

    async def again(caller: Caller) -> None:
        asked.append(caller.asked)
        await caller.subscribed("e1.2")
        await caller.units(3)
        await caller.stay()

    url = await serving.start(Subscribe=feeding(ending, again))
    async with Client(url, agent_id="bob") as bus:
        units = bus.subscribe("plan", after=0, kind=["a.*"], type="ERROR", exclude_agent="bob", meta={"k": "v"})
        assert await take(units, 3) == [1, 2, 3]
        assert (units.cursor, units.head) == ("e1.3", 99)
    filters = {"context": ["plan"], "kind": ["a.*"], "type": ["ERROR"], "exclude_agent": ["bob"], "meta": {"k": "v"}}
    assert asked == [subscription_pb2.SubscribeRequest(after=after, **filters) for after in ("0", "e1.2")]


async def test_goaway_is_obeyed_before_the_bus_ends_the_stream(serving: Serving) -> None:
    left = asyncio.Event()

    async def stopping(caller: Caller) -> None:
        await caller.subscribed("e1.0")
        await caller.units(1)
        await caller.say(goaway={"reason": "SHUTTING_DOWN", "retry_after_ms": 1})
        try:
            await caller.stay()
        finally:
            left.set()

    async def started(caller: Caller) -> None:
        await caller.subscribed("e1.1")
        await caller.units(2)
        await caller.stay()

    async with Client(await serving.start(Subscribe=feeding(stopping, started)), agent_id="bob") as bus:
        assert await take(bus.subscribe("plan", after=0), 2) == [1, 2]
        async with asyncio.timeout(5):
            await left.wait()


async def test_silence_is_a_dead_connection(serving: Serving) -> None:
    async def silent(caller: Caller) -> None:
        await caller.subscribed("e1.0")
        await caller.stay()

    async def alive(caller: Caller) -> None:
        await caller.subscribed("e1.0")
        await caller.units(1)
        await caller.stay()

    async with Client(await serving.start(Subscribe=feeding(silent, alive)), agent_id="bob") as bus:
        assert await take(bus.subscribe("plan", after=0, silence_seconds=0.1), 1) == [1]


async def test_a_bus_that_does_not_take_it_up_is_given_as_long_as_any_request(serving: Serving) -> None:
    async with Client(await serving.start(Subscribe=mute), agent_id="bob", timeout_seconds=0.05) as bus:
        with pytest.raises(EngramConnectionError, match=r"nothing heard for 0\.05 s"):
            async with bus.subscribe("plan", max_retries=0):
                pass


async def test_an_error_that_will_not_pass_is_raised_after_what_came_before_it_and_every_time(
    serving: Serving,
) -> None:
    async def cut(caller: Caller) -> None:
        await caller.subscribed("e1.0")
        await caller.units(1)
        await caller.refuse("UNAVAILABLE")

    changed = refusing("FAILED_PRECONDITION", error("EPOCH_CHANGED", epoch="e2"))
    async with Client(await serving.start(Subscribe=[*feeding(cut), changed]), agent_id="bob") as bus:
        units = bus.subscribe("plan", after=0)
        assert await take(units, 1) == [1]
        for _ in range(2):
            with pytest.raises(EpochChanged) as told:
                await take(units, 1)
        assert told.value.details == {"epoch": "e2"}


async def test_a_gap_is_raised_once_and_iterating_goes_on(serving: Serving) -> None:
    async def gapped(caller: Caller) -> None:
        await caller.subscribed("e1.0")
        await caller.units(1)
        await caller.say("e1.4", gap={"from": 2, "to": 4, "reason": "damaged"})
        await caller.units(5)
        await caller.stay()

    async with Client(await serving.start(Subscribe=feeding(gapped)), agent_id="bob") as bus:
        units = bus.subscribe("plan", after=0)
        assert await take(units, 1) == [1]
        with pytest.raises(Gap) as gap:
            await take(units, 1)
        assert (gap.value.from_seq, gap.value.to_seq, gap.value.reason) == (2, 4, "damaged")
        assert await take(units, 1) == [5]


async def test_a_bus_that_only_says_hello_does_not_reset_the_count(serving: Serving) -> None:
    async def hello(caller: Caller) -> None:
        await caller.subscribed("e1.0")
        await caller.refuse("UNAVAILABLE", error("SHUTTING_DOWN", retryable=True))

    async with Client(await serving.start(Subscribe=feeding(hello)), agent_id="bob") as bus:
        with pytest.raises(ShuttingDown):
            await take(bus.subscribe("plan", max_retries=3), 1)


# --- Pipelines


class Log:
    """A bus that keeps what it was told under its idempotency key."""

    def __init__(self) -> None:
        self.payloads: dict[str, bytes] = {}
        self.messages = 0

    async def hear(self, context: Context) -> list[append_pb2.AppendStreamItem]:
        message = await context.read()
        if message is grpc.aio.EOF:
            return []
        self.messages += 1
        return list(append_pb2.AppendStreamRequest.FromString(message).items)

    def append(self, item: append_pb2.AppendStreamItem) -> dict[str, Any]:
        self.payloads.setdefault(item.append.idempotency_key, item.append.payload)
        seq = list(self.payloads).index(item.append.idempotency_key) + 1
        return {"id": item.id, "receipt": {"unit_id": f"u{seq}", "seq": seq, "version": seq, "durability": "fsync"}}

    async def serve(self, _: Any, context: Context) -> None:
        while items := await self.hear(context):
            await tell(context, *(self.append(item) for item in items))

    def heard_then(self, count: int, answered: int, end: Callable[[Context], Awaitable[None]]) -> Method:
        """Takes so many, answers some of them, and ends."""

        async def meet(_: Any, context: Context) -> None:
            items: list[append_pb2.AppendStreamItem] = []
            while len(items) < count:
                items += await self.hear(context)
            answers = [self.append(item) for item in items[:count]]
            await tell(context, *answers[:answered])
            await end(context)

        return meet


async def tell(context: Context, *results: Any) -> None:
    await context.write(append_pb2.AppendStreamResponse(results=results).SerializeToString())


async def send_all(pipeline: Pipeline, payloads: str) -> None:
    async with pipeline as pipe:
        for payload in payloads:
            await pipe.append("plan", payload)


async def test_appends_are_acknowledged_in_order_and_what_waits_is_one_message(serving: Serving) -> None:
    log = Log()
    async with Client(await serving.start(AppendStream=log.serve), agent_id="bob") as bus, bus.pipeline() as pipe:
        pending = [await pipe.append("plan", f"{number}") for number in range(1_000)]
        receipts = [await one for one in pending]
    assert [(receipt.seq, receipt.durability) for receipt in receipts] == [(seq, "fsync") for seq in range(1, 1_001)]
    assert list(log.payloads.values()) == [b"%d" % number for number in range(1_000)]
    assert log.messages < 100


@pytest.mark.parametrize(("status", "detail"), ENDS)
async def test_after_a_cut_what_is_unacknowledged_is_sent_again_under_its_keys(
    serving: Serving, status: str, detail: Any
) -> None:
    log = Log()

    async def end(context: Context) -> None:
        if status != "OK":
            await refuse(context, status, *([] if detail is None else [detail]))

    forgets = log.heard_then(7, 3, end)
    url = await serving.start(AppendStream=[forgets, forgets, log.serve])
    async with Client(url, agent_id="bob") as bus, bus.pipeline() as pipe, asyncio.timeout(5):
        pending = [await pipe.append("plan", f"{number}") for number in range(20)]
        assert [(await one).seq for one in pending] == list(range(1, 21))
    assert list(log.payloads.values()) == [b"%d" % number for number in range(20)]


async def test_a_refusal_is_raised_by_its_receipt_only(serving: Serving) -> None:
    log = Log()

    async def meet(_: Any, context: Context) -> None:
        while items := await log.hear(context):
            for item in items:
                refused = {"id": item.id, "error": error("VERSION_MOVED", current_version=3)}
                await tell(context, refused if item.append.payload == b"b" else log.append(item))

    async with Client(await serving.start(AppendStream=meet), agent_id="bob") as bus:
        async with bus.pipeline() as pipe:
            first, second, third = [await pipe.append("plan", text) for text in "abc"]
            with pytest.raises(VersionMoved):
                await second
            assert ((await first).seq, (await third).seq) == (1, 2)
        with pytest.raises(VersionMoved):
            await send_all(bus.pipeline(), "abc")


async def test_not_now_is_tried_again_in_order(serving: Serving) -> None:
    log = Log()

    async def busy(_: Any, context: Context) -> None:
        items = await log.hear(context)
        await tell(context, {"id": items[0].id, "error": BUSY})
        await asyncio.Event().wait()

    async with Client(await serving.start(AppendStream=[busy, log.serve]), agent_id="bob") as bus:
        await send_all(bus.pipeline(), "abc")
    assert list(log.payloads.values()) == [b"a", b"b", b"c"]


async def test_a_stream_that_is_refused_for_good_is_not_tried_again(serving: Serving) -> None:
    url = await serving.start(AppendStream=refusing("INVALID_ARGUMENT", error("INVALID_REQUEST")))
    async with Client(url, agent_id="bob") as bus:
        with pytest.raises(Invalid):
            await send_all(bus.pipeline(max_retries=None), "a")


async def test_no_bus_is_told_to_every_receipt(closed_url: str) -> None:
    url = closed_url.replace("http", "grpc")
    async with Client(url, agent_id="bob") as bus, bus.pipeline(max_retries=2) as pipe:
        pending = await pipe.append("plan", "a")
        with pytest.raises(EngramConnectionError, match="3 attempts"):
            await pending


async def test_what_cannot_be_sent_is_refused_here(serving: Serving) -> None:
    log = Log()
    async with Client(await serving.start(AppendStream=log.serve), agent_id="bob") as bus, bus.pipeline() as pipe:
        with pytest.raises(TooLarge):
            await pipe.append("plan", bytes(3 * 1024 * 1024))
        with pytest.raises(Invalid):
            await pipe.append("plan", "a", type="SHOUT")
        assert (await (await pipe.append("plan", "a"))).seq == 1


# --- What a URL asks for


@pytest.mark.parametrize(
    "url",
    [
        "grpc://",
        "grpc://127.0.0.1",
        "grpc://127.0.0.1:x",
        "grpc://127.0.0.1:50051/path",
        "grpc://127.0.0.1:50051?a=b",
        "grpc://ann@127.0.0.1:50051",
        "127.0.0.1:50051",
        "tcp://127.0.0.1:50051",
    ],
)
def test_what_is_no_url_of_a_bus_is_told(url: str) -> None:
    with pytest.raises(ValueError, match="grpc"):
        Client(url, agent_id="bob")


async def test_what_is_of_http_cannot_be_chosen() -> None:
    async with Client("grpc://127.0.0.1:50051", agent_id="bob") as bus:
        with pytest.raises(ValueError, match="transport"):
            bus.subscribe("plan", transport="sse")
        with pytest.raises(ValueError, match="encoding"):
            bus.subscribe("plan", encoding="json")


GOES_AWAY = """
import asyncio, os
from engram_client import Client, EngramConnectionError

FRAMES = bytes.fromhex("000000040000000000" "0000080700000000000000000000000002")  # settings, and an angry goaway

async def meet(reader, writer):
    await reader.readuntil(b"PRI * HTTP/2.0")
    writer.write(FRAMES)
    await reader.read()
    writer.close()

async def main():
    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Client(f"grpc://127.0.0.1:{port}", agent_id="bob", timeout_seconds=5, max_retries=0) as bus:
        try:
            await bus.status()
        except EngramConnectionError as error:
            print("goaway" in str(error).lower(), os.environ.get("GRPC_VERBOSITY"))

asyncio.run(main())
"""


@pytest.mark.parametrize(("said", "is_told"), [(None, False), ("INFO", True)])
def test_a_connection_that_the_bus_ends_is_no_line_of_grpc_on_stderr_unless_the_user_says_so(
    said: str | None, is_told: bool
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    if said is not None:
        environment["GRPC_VERBOSITY"] = said
    ended = subprocess.run(
        [sys.executable, "-c", GOES_AWAY], capture_output=True, text=True, check=True, env=environment
    )
    assert ended.stdout == f"True {said}\n"
    assert ("Got goaway" in ended.stderr) == is_told


def test_who_speaks_http_needs_no_grpc() -> None:
    code = (
        "import sys, engram_client as e; e.Client(agent_id='a'); print(sorted({'grpc', 'google'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


@pytest.mark.parametrize("missing", ["grpc", "grpc_status", "google.protobuf.message"])
def test_what_has_to_be_installed_is_named(missing: str) -> None:
    code = (
        f"import sys, engram_client as e; sys.modules[{missing!r}] = None\n"
        "try: e.Client('grpc://127.0.0.1:50051', agent_id='a')\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "grpc://127.0.0.1:50051 needs more: pip install 'engram-bus-client[grpc]'\n"


async def test_grpcs_is_encrypted_and_trusts_whom_the_system_trusts(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = await asyncio.to_thread(self_signed, key, certificate)
    if not made:
        pytest.skip("openssl is not there")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    url = (await serving.start(credentials, GetStatus=answering(STATUS))).replace("grpc", "grpcs")
    async with Client(url, agent_id="bob", max_retries=0) as bus:
        with pytest.raises(EngramConnectionError):
            await bus.status()
    monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(certificate))
    async with Client(url, agent_id="bob") as bus:
        assert (await bus.status()).ready


def self_signed(key: Path, certificate: Path) -> bool:
    """Whether they could be made."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run([*command, *files], capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return False
    return True


async def test_a_bulk_is_one_call(serving: Serving) -> None:
    heard: list[append_pb2.AppendBulkRequest] = []

    async def meet(request: bytes, context: Context) -> bytes:
        heard.append(append_pb2.AppendBulkRequest.FromString(request))
        return append_pb2.AppendBulkResponse().SerializeToString()

    async with Client(await serving.start(AppendBulk=meet), agent_id="bob") as bus:
        await bus.append_bulk([Draft("plan", "a"), Draft("plan", "b", idempotency_key="own")], idempotency_key="k")
        await bus.append_bulk([Draft("plan", "a")], atomic=True, idempotency_key="k")
    assert [append.idempotency_key for append in heard[0].appends] == ["k-0", "own"]
    assert (heard[1].atomic, heard[1].idempotency_key, heard[1].appends[0].idempotency_key) == (True, "k", "")
