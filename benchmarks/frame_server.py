"""Floors of fan-out over WebSocket: what one publisher sends goes to all who listen, kept nowhere.

`uvloop`: a bare protocol that writes one frame, made once, to each; the least a Python process can do without joining
frames. `websockets` and `starlette`: how one would write it with these libraries, as they come.

    python -m benchmarks.frame_server uvloop|websockets|starlette
"""

import asyncio
import base64
import contextlib
import hashlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
import uvloop
import websockets
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.server import ServerConnection, broadcast, serve

from benchmarks.harness import ROOT, Served, allow_files
from benchmarks.native import SERVER_CORE, on_core

SUBSCRIBED = '{"event":"subscribed","cursor":"1.1","head":1}'
APPENDED = '{"event":"appended","id":1,"seq":1000000,"version":1000000,"durability":"none"}'
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT = 0x81


@contextlib.contextmanager
def frame_serving(way: str) -> Iterator[Served]:
    """One of them in a process of its own."""
    command = [*on_core(SERVER_CORE), sys.executable, "-m", "benchmarks.frame_server", way]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None, "it is a pipe"
        yield Served("127.0.0.1", int(process.stdout.readline()), process.pid)
    finally:
        process.kill()
        process.wait(timeout=30)


# --- uvloop ----------------------------------------------------------------------------------------------------------


def framed(body: bytes) -> bytes:
    """One text frame of a server."""
    if len(body) < 126:
        return bytes((TEXT, len(body))) + body
    return bytes((TEXT, 126)) + len(body).to_bytes(2, "big") + body


class Frames(asyncio.Protocol):
    """One connection: it asks to listen by its path, or it publishes."""

    listeners: set[asyncio.Transport] = set()  # noqa: RUF012  All connections share it.
    subscribed, appended = framed(SUBSCRIBED.encode()), framed(APPENDED.encode())

    def __init__(self) -> None:
        self._rest = b""
        self._is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods.

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        if not self._is_open:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return
            self._open(head)
        self._rest = data[self._take(data) :]

    def connection_lost(self, exc: Exception | None) -> None:
        self.listeners.discard(self._transport)

    def _open(self, head: bytes) -> None:
        key = next(
            line.split(b":", 1)[1].strip()
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key")
        )
        accept = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest())
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n%b" % (accept, self.subscribed)
        )
        self._is_open = True
        if b"context=" in head.partition(b"\r\n")[0]:
            self.listeners.add(self._transport)

    def _take(self, data: bytes) -> int:
        """Whole frames at its beginning; gives how many bytes they take."""
        at = 0
        while len(data) - at >= 8:
            size, head = data[at + 1] & 127, at + 2
            if size == 126:
                size, head = int.from_bytes(data[head : head + 2], "big"), head + 2
            end = head + 4 + size
            if end > len(data):
                break
            self._tell(data[head : head + 4], data[head + 4 : end])
            at = end
        return at

    def _tell(self, mask: bytes, body: bytes) -> None:
        size = len(body)
        key = (mask * (size // 4 + 1))[:size]
        frame = framed((int.from_bytes(body, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big"))
        for listener in self.listeners:
            listener.write(frame)
        self._transport.write(self.appended)


async def by_uvloop(listener: socket.socket) -> None:
    """Write to transports."""
    server = await asyncio.get_running_loop().create_server(Frames, sock=listener)
    await server.serve_forever()


# --- Libraries -------------------------------------------------------------------------------------------------------


async def by_websockets(listener: socket.socket) -> None:
    """`websockets.broadcast`."""
    listening: set[ServerConnection] = set()

    async def serve_one(connection: ServerConnection) -> None:
        assert connection.request is not None, "it is open"
        await connection.send(SUBSCRIBED)
        if "context=" in connection.request.path:
            listening.add(connection)
            try:
                await connection.wait_closed()
            finally:
                listening.discard(connection)
            return
        with contextlib.suppress(websockets.ConnectionClosed):
            async for said in connection:
                broadcast(listening, said)
                await connection.send(APPENDED)

    protocols = [websockets.Subprotocol("engram.v1.json")]
    async with serve(serve_one, sock=listener, compression=None, subprotocols=protocols) as server:
        await server.serve_forever()


async def by_starlette(listener: socket.socket) -> None:
    """A loop over `send_text`, as its documentation's chats have it."""
    listening: set[WebSocket] = set()

    async def stream(connection: WebSocket) -> None:
        await connection.accept("engram.v1.json")
        await connection.send_text(SUBSCRIBED)
        if "context" in connection.query_params:
            listening.add(connection)
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                said = await connection.receive_text()
                for one in list(listening):
                    await one.send_text(said)
                await connection.send_text(APPENDED)
        listening.discard(connection)

    app: Any = Starlette(routes=[WebSocketRoute("/stream", stream)])
    config = uvicorn.Config(app, loop="none", lifespan="off", log_config=None, ws_per_message_deflate=False)
    await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    """Serve until killed."""
    allow_files()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4_096)
    print(listener.getsockname()[1], flush=True)
    uvloop.run({"uvloop": by_uvloop, "websockets": by_websockets, "starlette": by_starlette}[sys.argv[1]](listener))


if __name__ == "__main__":
    main()
