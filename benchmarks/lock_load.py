"""Closed-loop load over raw sockets: each client sends its next request when its last was answered.

One process and no client library, so that every server is met by the same hand; what it costs is in every figure alike.
"""

import asyncio
import base64
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast


class Exchange(NamedTuple):
    """One request and what it is called."""

    name: str
    request: bytes


class Wire(Protocol):
    """How one protocol ends an answer."""

    def answer(self, received: bytearray) -> tuple[bytes, int] | None:
        """The first whole answer and the bytes it takes; None while it is not all there."""


class Http:
    """HTTP/1.1 with Content-Length."""

    accepted: tuple[bytes, ...] = (b"2",)
    """How the status of what is an answer begins; another one ends the run."""

    def answer(self, received: bytearray) -> tuple[bytes, int] | None:
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(received[:end]).lower()
        at = head.index(b"content-length:") + 15
        size = end + 4 + int(head[at:].split(b"\r\n", 1)[0])
        if len(received) < size:
            return None
        assert head.split(b" ", 2)[1].startswith(self.accepted), bytes(received[:size])
        return bytes(received[end + 4 : size]), size


class WebSocket:
    """Unmasked text frames of a server."""

    def answer(self, received: bytearray) -> tuple[bytes, int] | None:
        if len(received) < 4:
            return None
        size, at = received[1], 2
        if size == 126:
            size, at = int.from_bytes(received[2:4], "big"), 4
        if len(received) < at + size:
            return None
        payload = bytes(received[at : at + size])
        assert b'"event":"error"' not in payload, payload
        return payload, at + size


class Redis:
    """Simple replies: a status, a number, a nil."""

    def answer(self, received: bytearray) -> tuple[bytes, int] | None:
        end = received.find(b"\r\n")
        if end < 0:
            return None
        line = bytes(received[:end])
        assert line in (b"+OK", b":1"), line
        return line, end + 2


class Client(Protocol):
    """What one connection does, over and over."""

    def first(self) -> bytes:
        """What is sent to begin with (an upgrade); empty for nothing."""

    def next(self, answer: bytes) -> Exchange:
        """What follows on an answer."""


class _Connection(asyncio.Protocol):
    def __init__(self, wire: Wire, client: Client, *, count: int, times: dict[str, list[float]]) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wire = wire
        self._client = client
        self._left = count
        self._times = times
        self._received = bytearray()
        self._is_open = not client.first()
        self._name = ""
        self._started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods.
        if not self._is_open:
            self._transport.write(self._client.first())

    def begin(self) -> None:
        self._send(self._client.next(b""))

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            if not self._is_open:
                self._take_upgrade()
                return
            while (found := self._wire.answer(self._received)) is not None:
                answer, size = found
                del self._received[:size]
                self._answered(answer)
        except Exception as exc:
            if not self.over.done():
                self.over.set_exception(exc)

    def _take_upgrade(self) -> None:
        # The upgrade and the first event, which says that the socket is open.
        end = self._received.find(b"\r\n\r\n")
        if end >= 0 and (found := self._wire.answer(self._received[end + 4 :])) is not None:
            del self._received[: end + 4 + found[1]]
            self._is_open = True

    @property
    def is_open(self) -> bool:
        return self._is_open

    def _answered(self, answer: bytes) -> None:
        if not self._name:
            return
        self._times[self._name].append(time.perf_counter() - self._started)
        self._left -= 1
        if self._left <= 0:
            self._name = ""
            self.over.set_result(None)
        else:
            self._send(self._client.next(answer))

    def _send(self, exchange: Exchange) -> None:
        self._name = exchange.name
        self._started = time.perf_counter()
        self._transport.write(exchange.request)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def close(self) -> None:
        self._transport.close()


async def run(
    address: tuple[str, int], wire: Callable[[], Wire], clients: Sequence[Client], *, count: int
) -> tuple[dict[str, list[float]], float]:
    """Let each client do `count` exchanges; gives their times in seconds by name, and how long it all took."""
    times: dict[str, list[float]] = _Times()
    loop = asyncio.get_running_loop()
    connections = []
    for client in clients:
        _, connection = await loop.create_connection(
            lambda client=client: _Connection(wire(), client, count=count, times=times),  # type: ignore[misc]
            *address,
        )
        connections.append(connection)
    try:
        while not all(connection.is_open for connection in connections):
            await asyncio.sleep(0)
        started = time.perf_counter()
        for connection in connections:
            connection.begin()
        await asyncio.gather(*(connection.over for connection in connections))
        return times, time.perf_counter() - started
    finally:
        for connection in connections:
            connection.close()


class _Times(dict[str, list[float]]):
    def __missing__(self, name: str) -> list[float]:
        return self.setdefault(name, [])


# --- What clients do -------------------------------------------------------------------------------------------------


def http(method: str, path: str, body: Any = None) -> bytes:
    """One request as bytes."""
    raw = b"" if body is None else json.dumps(body).encode()
    kind = "" if body is None else "content-type: application/json\r\n"
    return f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{kind}content-length: {len(raw)}\r\n\r\n".encode() + raw


def frame(body: Any) -> bytes:
    """One masked text frame (the mask is of zeros: the server undoes it all the same)."""
    raw = json.dumps(body).encode()
    head = bytes((0x81, 0x80 | len(raw))) if len(raw) < 126 else bytes((0x81, 0xFE)) + len(raw).to_bytes(2, "big")
    return head + bytes(4) + raw


UPGRADE = (
    b"GET /stream HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: " + base64.b64encode(os.urandom(16)) + b"\r\n\r\n"
)


class HttpAppends:
    """Plain durable appends."""

    def __init__(self, number: int) -> None:
        self._request = http("POST", "/workunit", _unit(number))

    def first(self) -> bytes:
        return b""

    def next(self, answer: bytes) -> Exchange:
        return Exchange("append", self._request)


class WebSocketAppends:
    """Plain durable appends over a WebSocket."""

    def __init__(self, number: int) -> None:
        self._request = frame({"op": "append", "id": 1, "unit": _unit(number)})

    def first(self) -> bytes:
        return UPGRADE

    def next(self, answer: bytes) -> Exchange:
        return Exchange("append", self._request)


class HttpLocks:
    """Acquire and release in turn, of a resource of its own or (`shared_name`) of one all want."""

    def __init__(self, number: int, *, shared_name: str | None = None) -> None:
        self._agent = f"agent-{number}"
        self._resource = shared_name or f"repo/src/{number}.py"
        wait = 60 if shared_name else 0
        asked = {"resource": self._resource, "agent_id": self._agent, "ttl_seconds": 60, "wait_seconds": wait}
        self._acquire = http("POST", "/locks", asked)
        self._is_held = False

    def first(self) -> bytes:
        return b""

    def next(self, answer: bytes) -> Exchange:
        if self._is_held:
            self._is_held = False
            lock_id = json.loads(answer)["lock_id"]
            path = f"/locks/{self._resource}?agent_id={self._agent}&lock_id={lock_id}"
            return Exchange("release", http("DELETE", path))
        self._is_held = True
        return Exchange("acquire", self._acquire)


class WebSocketLocks:
    """The same over a WebSocket."""

    def __init__(self, number: int, *, shared_name: str | None = None) -> None:
        self._agent = f"agent-{number}"
        asked = {
            "op": "lock.acquire",
            "id": 1,
            "resource": shared_name or f"repo/src/{number}.py",
            "agent_id": self._agent,
            "ttl_seconds": 60,
            "wait_seconds": 60 if shared_name else 0,
        }
        self._acquire = frame(asked)
        self._is_held = False

    def first(self) -> bytes:
        return UPGRADE

    def next(self, answer: bytes) -> Exchange:
        if self._is_held:
            self._is_held = False
            lock_id = json.loads(answer)["lock_id"]
            return Exchange(
                "release", frame({"op": "lock.release", "id": 2, "lock_id": lock_id, "agent_id": self._agent})
            )
        self._is_held = True
        return Exchange("acquire", self._acquire)


class RedisLocks:
    """SET NX PX and a compare-and-delete, as its documentation tells; no queue, no fencing token."""

    _DELETE = "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end"

    def __init__(self, number: int) -> None:
        key, value = f"repo/src/{number}.py", os.urandom(12).hex()
        self._acquire = _resp("SET", key, value, "NX", "PX", "60000")
        self._release = _resp("EVAL", self._DELETE, "1", key, value)
        self._is_held = False

    def first(self) -> bytes:
        return b""

    def next(self, answer: bytes) -> Exchange:
        self._is_held = not self._is_held
        return Exchange("acquire", self._acquire) if self._is_held else Exchange("release", self._release)


class EtcdLocks:
    """Its own lock service (v3lock) through its HTTP gateway, under a lease taken beforehand."""

    def __init__(self, number: int, *, lease: str, shared_name: str | None = None) -> None:
        name = base64.b64encode((shared_name or f"repo/src/{number}.py").encode()).decode()
        self._acquire = http("POST", "/v3/lock/lock", {"name": name, "lease": lease})
        self._is_held = False

    def first(self) -> bytes:
        return b""

    def next(self, answer: bytes) -> Exchange:
        if self._is_held:
            self._is_held = False
            return Exchange("release", http("POST", "/v3/lock/unlock", {"key": json.loads(answer)["key"]}))
        self._is_held = True
        return Exchange("acquire", self._acquire)


def _unit(number: int) -> dict[str, str]:
    return {"context_id": f"bench-{number}", "agent_id": f"agent-{number}", "payload": "x" * 100}


def _resp(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)
