"""Load that listens: subscriptions over gRPC, WebSocket and SSE, as many as are asked for, which really read.

Units say their number and when they were due, in every encoding as the same bytes: whoever hears one knows how late it
is and that none was left out, and the cost of decoding is nobody's.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self
from urllib.parse import urlencode

import grpc.aio

from benchmarks.harness import allow_files
from benchmarks.load_process import Say, take_turns
from benchmarks.lock_load import UPGRADE
from engram_bus.pb import subscription_pb2

MARK = re.compile(rb"@(\d+):(\d+)@")
MARK_BYTES_MAX = 64
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
OPENING_AT_ONCE = 200


class Ear:
    """What one subscription hears: is it open, and which numbers came, each once and in order."""

    def __init__(self, heard: Callable[[int, int], None], *, cycle: int) -> None:
        self.is_open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.bytes = self.units = 0
        self._heard = heard
        self._cycle = cycle
        self._rest = b""

    def take(self, data: bytes) -> None:
        """Some of what is sent; `heard` is told which unit of all it is, and how late in nanoseconds."""
        now = time.perf_counter_ns()
        self.bytes += len(data)
        data = self._rest + data
        if not self.is_open.done() and (self.units or b"subscribed" in data):
            self.is_open.set_result(None)
        end = 0
        for found in MARK.finditer(data):
            number, due, end = int(found[1]), int(found[2]), found.end()
            assert number == self.units % self._cycle, f"unit {number} came where {self.units} was due"
            self._heard(self.units, now - due)
            self.units += 1
        self._rest = data[max(end, len(data) - MARK_BYTES_MAX) :]


# --- Turns -----------------------------------------------------------------------------------------------------------


async def live(say: Say, *, streams: int, units: int, **where: Any) -> None:
    """Hear so many units on each of so many streams; says when all are open, then how late each unit was."""
    late: list[float] = []
    crowd = Crowd(streams, lambda number, late_ns: late.append(late_ns / 1e9), **where)
    async with crowd:
        say("open")
        while len(late) < streams * units:
            await asyncio.sleep(0.01)
    say(late)


async def read(say: Say, *, units: int, **where: Any) -> None:
    """Read what is there, up to so many units; says how long it took, and in how many bytes."""
    took: list[float] = []
    started = time.perf_counter()

    def heard(number: int, late_ns: int) -> None:
        if number == units - 1:
            took.append(time.perf_counter() - started)

    async with Crowd(1, heard, **where) as crowd:
        while not took:
            await asyncio.sleep(0.01)
        say({"per_second": units / took[0], "bytes_per_unit": crowd.ears[0].bytes / units})


async def keep(say: Say, *, address: str, units: int, bytes_per_unit: float) -> None:
    """Let a null server keep one message of so many units, for who reads."""
    message = b"".join(b"@%d:0@" % number + b"x" * round(bytes_per_unit - 6) for number in range(units))
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        method: Any = channel.unary_unary("/engram.v1.EngramBus/Keep")
        await method(message)
    say("kept")


async def hold(say: Say, *, streams: int, units: int, connections: int, **where: Any) -> None:
    """Keep so many streams open; says when all are, then of each unit how late the first and the last of them heard."""
    allow_files()
    late: list[list[float]] = [[] for _ in range(units)]
    crowd = Crowd(streams, lambda number, late_ns: late[number].append(late_ns / 1e9), connections=connections, **where)
    async with crowd:
        say("open")
        for number in range(units):
            while len(late[number]) < streams:
                await asyncio.sleep(0.005)
            say({"first": min(late[number]), "last": max(late[number])})


# --- Streams ---------------------------------------------------------------------------------------------------------


class Crowd:
    """So many subscriptions over one wire, open from `async with` on. What ends one of them ends the load."""

    def __init__(
        self,
        streams: int,
        heard: Callable[[int, int], None],
        *,
        wire: str,
        address: str,
        query: dict[str, str],
        connections: int = 1,
        cycle: int = 2**62,
    ) -> None:
        self.ears = [Ear(heard, cycle=cycle) for _ in range(streams)]
        self._wire = wire
        self._address = address
        self._query = query
        self._connections = connections
        self._channels: list[grpc.aio.Channel] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        streams = self._calls() if self._wire == "grpc" else [self._connection(ear) for ear in self.ears]
        for first in range(0, len(streams), OPENING_AT_ONCE):
            tasks = [asyncio.create_task(stream) for stream in streams[first : first + OPENING_AT_ONCE]]
            for task in tasks:
                task.add_done_callback(_ended)
            self._tasks += tasks
            await asyncio.gather(*(ear.is_open for ear in self.ears[first : first + OPENING_AT_ONCE]))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in self._channels))

    # --- gRPC --------------------------------------------------------------------------------------------------------

    def _calls(self) -> Sequence[Coroutine[Any, Any, None]]:
        self._channels = [grpc.aio.insecure_channel(self._address, options=OPTIONS) for _ in range(self._connections)]
        methods: list[Any] = [channel.unary_stream("/engram.v1.EngramBus/Subscribe") for channel in self._channels]
        return [self._call(methods[index % len(methods)], ear) for index, ear in enumerate(self.ears)]

    async def _call(self, method: Any, ear: Ear) -> None:
        async for message in method(self._request()):
            if not ear.is_open.done():
                ear.is_open.set_result(None)
            ear.take(message)

    def _request(self) -> bytes:
        if "count" in self._query:  # Of a null server.
            return self._query["count"].encode()
        asked = subscription_pb2.SubscribeRequest(context=[self._query["context"]])
        if "after" in self._query:
            asked.after = self._query["after"]
        return asked.SerializeToString()

    # --- WebSocket and SSE -------------------------------------------------------------------------------------------

    async def _connection(self, ear: Ear) -> None:
        host, _, port = self._address.rpartition(":")
        transport, listening = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(ear), host, int(port)
        )
        try:
            transport.write(_opening(self._wire, urlencode(self._query)))
            await listening.over
        finally:
            transport.close()


class _Connection(asyncio.Protocol):
    def __init__(self, ear: Ear) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ear = ear

    def data_received(self, data: bytes) -> None:
        self._ear.take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


def _opening(wire: str, query: str) -> bytes:
    if wire == "sse":
        return f"GET /stream-sse?{query} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()
    encoding = wire.removeprefix("websocket ")
    head, _, rest = UPGRADE.partition(b"\r\n")
    request = f"GET /stream?{query} HTTP/1.1\r\nsec-websocket-protocol: engram.v1.{encoding}\r\n"
    assert head.startswith(b"GET /stream ")
    return request.encode() + rest


def _ended(task: asyncio.Task[None]) -> None:
    """What ends one stream before its time ends the load."""
    if not task.cancelled():
        print(f"a stream ended: {task.exception()!r}", file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    take_turns({turn.__name__: turn for turn in (live, read, keep, hold)})
