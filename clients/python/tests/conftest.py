"""What several tests of the client share: scripted servers on real sockets, for what a healthy bus does not do."""

import asyncio
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

# In pytest's importlib mode a test's neighbours are not on the path.
sys.path.insert(0, str(Path(__file__).parent))
from live_bus import LiveBus, SameBus

UNIT: dict[str, Any] = {
    "context_id": "plan",
    "agent_id": "ann",
    "type": "MESSAGE",
    "ts": "2026-01-01T00:00:00.000000Z",
    "content_type": "text/plain; charset=utf-8",
}


def unit_wire(seq: int, payload: str | bytes = b"hi") -> dict[str, Any]:
    return {**UNIT, "seq": seq, "id": f"u{seq}", "version": seq, "payload": payload}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def refreshed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease is refreshed when a hundredth of it is over, so that it may be long and the test short."""
    monkeypatch.setattr("engram_client.term.LEASE_REFRESHED_AT", 0.01)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engram_client.backoff.BACKOFF_SECONDS_MIN", 0.001)
    monkeypatch.setattr("engram_client.backoff.BACKOFF_SECONDS_MAX", 0.01)


class Caller:
    """The other end of one WebSocket, in MessagePack."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        request = connection.request
        assert request is not None
        self.path = request.path

    async def say(self, event: str, **fields: Any) -> None:
        await self._connection.send(msgspec.msgpack.encode({"event": event, **fields}))

    async def subscribed(self, cursor: str, head: int = 99) -> None:
        await self.say("subscribed", cursor=cursor, head=head)

    async def units(self, *seqs: int, payload: bytes = b"hi") -> None:
        await self.say("units", units=[unit_wire(seq, payload) for seq in seqs], cursor=f"e1.{seqs[-1]}")

    async def hear(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.msgpack.decode(await self._connection.recv())
        return found

    async def appended(self, operation: dict[str, Any], seq: int) -> None:
        await self.say("appended", id=operation["id"], unit_id=f"u{seq}", seq=seq, version=seq, durability="fsync")

    async def stay(self) -> None:
        await self._connection.wait_closed()

    async def close(self, code: int, reason: str = "") -> None:
        await self._connection.close(code, reason)

    def cut(self) -> None:
        self._connection.transport.abort()


Scene = Callable[[Caller], Awaitable[None]]


class Playing:
    """WebSocket servers that play prepared scenes."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def start(self, *scenes: Scene) -> str:
        """A URL whose n-th WebSocket meets the n-th scene; later ones meet the last."""
        met = iter(scenes[:-1])

        async def meet(connection: ServerConnection) -> None:
            try:
                await next(met, scenes[-1])(Caller(connection))
            except ConnectionClosed:
                pass

        protocols = [Subprotocol("engram.v1.msgpack"), Subprotocol("engram.v1.json")]
        server = await self._stack.enter_async_context(
            serve(meet, "127.0.0.1", 0, subprotocols=protocols, compression=None, ping_interval=None)
        )
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


class Request(msgspec.Struct):
    """One HTTP request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Answering:
    """HTTP servers that give prepared answers."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def start(self, *answers: bytes | None) -> tuple[str, list[Request]]:
        """A URL whose n-th request gets the n-th answer, None being a connection cut without one, b"" none at all;
        later ones get the last. The list fills with what was asked."""
        requests: list[Request] = []

        async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    requests.append(await read_request(reader))
                    said = answers[min(len(requests), len(answers)) - 1]
                    if said is None:
                        break
                    writer.write(said)
                    await writer.drain()
                    if not said:
                        await reader.read()
                    elif b"Content-Length" not in said:
                        break
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await self._stack.enter_async_context(await asyncio.start_server(serve_one, "127.0.0.1", 0))
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests

    def json(self, status: int, body: Any, *headers: str) -> bytes:
        """A whole answer."""
        raw = msgspec.json.encode(body)
        head = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(raw)}", "Content-Type: application/json", *headers]
        return "\r\n".join([*head, "", ""]).encode() + raw

    def unit(self, seq: int = 1, payload: str = "hi") -> bytes:
        """The answer to an append."""
        return self.json(201, unit_wire(seq, payload))

    def stream(self, *events: str) -> bytes:
        """Server-sent events, and then the end of the connection."""
        body = "".join(f"{event}\n\n" for event in events)
        return f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{body}".encode()


@pytest.fixture
async def play(short_pauses: None) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    async with AsyncExitStack() as stack:
        yield Playing(stack).start


@pytest.fixture
async def answering(short_pauses: None) -> AsyncIterator[Answering]:
    async with AsyncExitStack() as stack:
        yield Answering(stack)


class Elsewhere:
    """The same servers in the loop of another thread, for tests that block."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], stack: AsyncExitStack) -> None:
        self._run = run
        self._playing = Playing(stack)
        self._answering = Answering(stack)

    def play(self, *scenes: Scene) -> str:
        """As `Playing.start`."""
        url: str = self._run(self._playing.start(*scenes))
        return url

    def answer(self, *answers: Callable[[Answering], bytes] | None) -> tuple[str, list[Request]]:
        """As `Answering.start`, each answer being made by an Answering."""
        made = [None if answer is None else answer(self._answering) for answer in answers]
        found: tuple[str, list[Request]] = self._run(self._answering.start(*made))
        return found


@pytest.fixture
def elsewhere(short_pauses: None) -> Iterator[Elsewhere]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)

    stack = AsyncExitStack()
    yield Elsewhere(run, stack)
    run(stack.aclose())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def read_request(reader: asyncio.StreamReader) -> Request:
    method, target, _ = (await reader.readuntil(b"\r\n")).decode().split(" ")
    headers: dict[str, str] = {}
    while (line := (await reader.readuntil(b"\r\n")).decode().strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body)


@pytest.fixture
def closed_url(short_pauses: None) -> str:
    """Where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture(params=["http", "grpc"])
def scheme(request: pytest.FixtureRequest) -> str:
    """What a test of a real bus speaks to it: each of them, unless it is parametrised itself."""
    found: str = request.param
    return found


@pytest.fixture(scope="session")
def running_bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveBus]:
    pytest.importorskip("engram_bus")
    with LiveBus(tmp_path_factory.mktemp("bus")) as bus:
        yield bus


@pytest.fixture
def shared_bus(running_bus: LiveBus, scheme: str) -> SameBus:
    """One bus for all tests that only append and read, each in contexts of its own."""
    return SameBus(running_bus, scheme)


@pytest.fixture
def own_bus(tmp_path: Path, scheme: str) -> Iterator[LiveBus]:
    """A bus for a test that ends it, or counts all its units."""
    pytest.importorskip("engram_bus")
    with LiveBus(tmp_path / "data", "--heartbeat-seconds", "1", scheme=scheme) as bus:
        yield bus
