"""Load that appends: over gRPC, HTTP and WebSocket, one after the other or so many under way, of units all alike.

Each turn ends after so many units or seconds, whichever comes first, and says how long each took and all together. What
is sent is made beforehand, and sockets are plain ones: the load is to cost little beside the server.
"""

import asyncio
import json
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc.aio
import msgspec

from benchmarks.load_process import Say, take_turns
from benchmarks.lock_load import UPGRADE, Http
from engram_bus.pb import append_pb2

SERVICE = "/engram.v1.EngramBus/"
UNIT = {"context_id": "bench", "agent_id": "load", "payload": "x" * 300}
TEXT = 0x81
ANSWER_SECONDS_MAX = 30
ENCODINGS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "json": ("application/json", lambda: json.dumps(UNIT).encode()),
    "msgpack": ("application/msgpack", lambda: msgspec.msgpack.encode({**UNIT, "payload": b"x" * 300})),
    "protobuf": ("application/x-protobuf", lambda: _message().SerializeToString()),
}


# --- gRPC ------------------------------------------------------------------------------------------------------------


async def grpc_unary(say: Say, *, address: str, units: int, seconds: float, together: int = 1) -> None:
    """Append calls over one connection, so many at once."""
    request = _message().SerializeToString()
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        call: Any = channel.unary_unary(SERVICE + "Append")
        for _ in range(20):
            await call(request)
        pace = _Pace(units, seconds)
        await asyncio.gather(*(_closed_loop(lambda: call(request), pace) for _ in range(together)))
        say(pace.result())


async def _closed_loop(call: Callable[[], Awaitable[Any]], pace: "_Pace") -> None:
    while pace.goes_on:
        started = pace.begin()
        await call()
        pace.end(started)


async def grpc_stream(
    say: Say, *, address: str, units: int, seconds: float, under_way: int = 1, per_message: int = 1
) -> None:
    """One AppendStream, so many units a message, so many under way."""
    items = [append_pb2.AppendStreamItem(id=number, append=_message()) for number in range(per_message)]
    message = append_pb2.AppendStreamRequest(items=items).SerializeToString()
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        call: Any = channel.stream_stream(SERVICE + "AppendStream")()
        await _exchange(call, message, per_message)
        pace = _Pace(units // per_message, seconds, weight=per_message)
        if under_way <= per_message:
            await _closed_loop(lambda: _exchange(call, message, per_message), pace)
        else:
            await _pipelined(call, message, pace, per_message=per_message, room=under_way // per_message)
        say(pace.result())


async def _exchange(call: Any, message: bytes, per_message: int) -> None:
    await call.write(message)
    answered = 0
    while answered < per_message:
        answered += _results(await call.read())


async def _pipelined(call: Any, message: bytes, pace: "_Pace", *, per_message: int, room: int) -> None:
    has_room = asyncio.Semaphore(room)
    under_way: deque[float] = deque()

    async def write() -> None:
        while pace.goes_on:
            await has_room.acquire()
            under_way.append(pace.begin())
            await call.write(message)
        await call.done_writing()

    writing = asyncio.create_task(write())
    answered = 0
    while (answer := await call.read()) is not grpc.aio.EOF:
        answered += _results(answer)
        while answered >= per_message:
            answered -= per_message
            pace.end(under_way.popleft())
            has_room.release()
    await writing


def _results(answer: bytes) -> int:
    results = append_pb2.AppendStreamResponse.FromString(answer).results
    assert results[0].HasField("receipt"), results[0]
    return len(results)


# --- HTTP and WebSocket ----------------------------------------------------------------------------------------------


async def http_append(say: Say, *, address: str, units: int, seconds: float, encoding: str) -> None:
    """POST /workunit over one connection, one after the other."""
    kind, encode = ENCODINGS[encoding]
    body = encode()
    headers = f"host: 127.0.0.1\r\ncontent-type: {kind}\r\naccept: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    request = f"POST /workunit HTTP/1.1\r\n{headers}".encode() + body
    wire = Http()
    with connected(address) as connection:
        pace = _Pace(units, seconds)
        while pace.goes_on:
            started = pace.begin()
            connection.sendall(request)
            received = bytearray(connection.recv(65_536))
            while wire.answer(received) is None:
                received += connection.recv(65_536)
            pace.end(started)
    say(pace.result())


async def websocket(say: Say, *, address: str, units: int, seconds: float, under_way: int = 1) -> None:
    """`append` over one WebSocket, so many under way."""
    request = frame({"op": "append", "id": 1, "unit": UNIT})
    with connected(address) as connection:
        upgrade(connection)
        answers = _answers(connection)
        pace = _Pace(units, seconds)
        waiting: deque[float] = deque()
        while pace.goes_on or waiting:
            room = min(under_way - len(waiting), pace.left) if pace.goes_on else 0
            waiting.extend(pace.begin() for _ in range(room))
            connection.sendall(request * room)
            for _ in range(next(answers)):
                pace.end(waiting.popleft())
    say(pace.result())


async def publish(say: Say, *, address: str, context: str, units: int, per_second: float) -> None:
    """`append` over a WebSocket at a pace; each says which it is and when it was due, on the clock of this machine."""
    with connected(address) as connection:
        upgrade(connection)
        begin = time.perf_counter_ns() + 10_000_000
        for number in range(units):
            due = begin + round(number * 1e9 / per_second)
            time.sleep(max(0, due - time.perf_counter_ns()) / 1e9)
            connection.sendall(marked(context, number, due))
            _drained(connection)
        time.sleep(0.05)
        _drained(connection)
    say("published")


async def fill(say: Say, *, address: str, context: str, units: int) -> None:
    """So many units, each with its number; says the cursor that lies before them."""
    with connected(address) as connection:
        said = upgrade(connection)
        cursor = json.loads(said[said.index(b"{") : said.rindex(b"}") + 1])["cursor"]
        answers = _answers(connection)
        for first in range(0, units, 200):
            numbers = range(first, min(first + 200, units))
            connection.sendall(b"".join(marked(context, number, 0) for number in numbers))
            answered = 0
            while answered < len(numbers):
                answered += next(answers)
    say(cursor)


def connected(address: str) -> socket.socket:
    """A connection that waits for nothing before it sends."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The kernel's own bound: Python's would ask it twice for every piece.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", ANSWER_SECONDS_MAX, 0))
    return connection


def upgrade(connection: socket.socket) -> bytes:
    """Open a WebSocket that only publishes; gives the first that is said."""
    connection.sendall(UPGRADE)
    received = b""
    while b'"subscribed"' not in received or not received.endswith(b"}"):
        received += connection.recv(65_536)
    return received.partition(b"\r\n\r\n")[2]


def marked(context: str, number: int, due_ns: int) -> bytes:
    """A frame that appends a unit which says its number, and when it was due."""
    mark = f"@{number}:{due_ns}@"
    return frame({"op": "append", "id": 1, "unit": {**UNIT, "context_id": context, "payload": mark.ljust(300, "x")}})


def frame(body: Any) -> bytes:
    """A text frame of a client; its mask is of zeros, which the server undoes all the same."""
    raw = json.dumps(body).encode()
    assert 126 <= len(raw) < 65_536
    return struct.pack("!BBH4x", TEXT, 0x80 | 126, len(raw)) + raw


def _answers(connection: socket.socket) -> Iterator[int]:
    """How many answers came with each piece that did."""
    rest = b""
    while True:
        rest += connection.recv(262_144)
        at = count = 0
        while len(rest) - at >= 4:
            size = rest[at + 1]
            end = at + 2 + size if size < 126 else at + 4 + int.from_bytes(rest[at + 2 : at + 4], "big")
            if end > len(rest):
                break
            at, count = end, count + 1
        assert b'"event":"error"' not in rest[:at], rest[:at]
        rest = rest[at:]
        yield count


def _drained(connection: socket.socket) -> None:
    """Take the answers that are there."""
    while select.select([connection], [], [], 0)[0]:
        answers = connection.recv(262_144)
        assert answers, "the server closed the connection"
        assert b'"event":"error"' not in answers, answers


# --- All of them -----------------------------------------------------------------------------------------------------


class _Pace:
    """How many are begun, how long each took, and when it is enough."""

    def __init__(self, count: int, seconds: float, *, weight: int = 1) -> None:
        self.left = count
        self._weight = weight
        self._times: list[float] = []
        self._started = time.perf_counter()
        self._until = self._started + seconds

    @property
    def goes_on(self) -> bool:
        return self.left > 0 and time.perf_counter() < self._until

    def begin(self) -> float:
        self.left -= 1
        return time.perf_counter()

    def end(self, started: float) -> None:
        self._times.append(time.perf_counter() - started)

    def result(self) -> dict[str, Any]:
        took = time.perf_counter() - self._started
        units = len(self._times) * self._weight
        return {"units": units, "per_second": units / took, "times": self._times}


_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))


def _message() -> append_pb2.AppendRequest:
    return append_pb2.AppendRequest(context_id="bench", agent_id="load", payload=b"x" * 300)


if __name__ == "__main__":
    take_turns({turn.__name__: turn for turn in (grpc_unary, grpc_stream, http_append, websocket, publish, fill)})
