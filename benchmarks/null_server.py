"""Floors: gRPC, HTTP, WebSocket and SSE on the bus's own stack, answered at once; nothing is decided or kept.

What comes over a WebSocket that only publishes, or in `Append`, goes as it is to all who listen. `Keep` takes the bytes
of one message, and who says how many of them is sent as many.
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import grpc
import grpc.aio
import uvicorn
import uvloop

from benchmarks.harness import ROOT, allow_files
from engram_bus.limits import HEARTBEAT_SECONDS
from engram_bus.pb import append_pb2, unit_pb2

_ID = "01985b2e-7d1c-7000-8000-000000000000"
_UNIT = unit_pb2.WorkUnit(seq=1_000_000, id=_ID, context_id="bench", version=1_000_000, agent_id="load", type="MESSAGE")
_UNIT.content_type, _UNIT.payload = "text/plain; charset=utf-8", b"x" * 300
_RECEIPT = append_pb2.Receipt(unit_id=_ID, context_id="bench", seq=1_000_000, version=1_000_000, durability="fsync")

APPENDED = append_pb2.AppendResponse(work_unit=_UNIT, durability="fsync", applied_seq=1_000_000).SerializeToString()
APPENDED_TEXT = json.dumps({"event": "appended", "id": 1, "unit_id": _ID, "seq": 1_000_000, "version": 1_000_000})
APPENDED_BODY = json.dumps({"seq": 1_000_000, "id": _ID, "payload": "x" * 300, "padding": "x" * 120}).encode()


class Nulls(NamedTuple):
    """Where they are."""

    host: str
    port: int
    grpc_port: int
    pid: int


@contextlib.contextmanager
def null_serving() -> Iterator[Nulls]:
    """All of them in one process of their own."""
    command = [sys.executable, "-m", "benchmarks.null_server"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None, "it is a pipe"
        port, grpc_port = map(int, process.stdout.readline().split())
        yield Nulls("127.0.0.1", port, grpc_port, process.pid)
    finally:
        process.kill()
        process.wait(timeout=30)


class _Null:
    def __init__(self) -> None:
        self.kept = b""
        self._said: list[bytes] = []
        self._news = asyncio.Event()
        self._listening = 0

    def tell(self, message: bytes) -> None:
        if self._listening:
            self._said.append(message)
            self._news.set()
            self._news = asyncio.Event()

    async def listen(self, count: int, write: Callable[[bytes], Awaitable[Any]]) -> None:
        """So many of what is kept, then whatever is said from now on."""
        at = len(self._said)
        self._listening += 1
        try:
            await write(b"subscribed")
            for _ in range(count):
                await write(self.kept)
            while True:
                while at < len(self._said):
                    await write(self._said[at])
                    at += 1
                await self._news.wait()
        finally:
            self._listening -= 1


# --- gRPC ------------------------------------------------------------------------------------------------------------


class _Grpc:
    def __init__(self, null: _Null) -> None:
        self._null = null

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "engram.v1.EngramBus",
            {
                "Append": grpc.unary_unary_rpc_method_handler(self._append),
                "AppendStream": grpc.stream_stream_rpc_method_handler(self._append_stream),
                "Subscribe": grpc.unary_stream_rpc_method_handler(self._subscribe),
                "Keep": grpc.unary_unary_rpc_method_handler(self._keep),
            },
        )

    async def _append(self, request: bytes, context: Any) -> bytes:
        self._null.tell(request)
        return APPENDED

    async def _append_stream(self, _: Any, context: Any) -> None:
        """Each message has as many units as the first."""
        first = await context.read()
        items = append_pb2.AppendStreamRequest.FromString(first).items
        results = [append_pb2.AppendStreamResult(id=item.id, receipt=_RECEIPT) for item in items]
        answer = append_pb2.AppendStreamResponse(results=results).SerializeToString()
        await context.write(answer)
        while await context.read() is not grpc.aio.EOF:
            await context.write(answer)

    async def _subscribe(self, request: bytes, context: Any) -> None:
        await self._null.listen(int(request) if request.isdigit() else 0, context.write)

    async def _keep(self, request: bytes, context: Any) -> bytes:
        self._null.kept = request
        return b""


# --- HTTP, WebSocket, SSE --------------------------------------------------------------------------------------------


class _Web:
    def __init__(self, null: _Null) -> None:
        self._null = null

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = parse_qs(scope["query_string"].decode())
        count = int(asked.get("count", ["0"])[0])
        if scope["path"] == "/stream-sse":
            await self._events(count, receive, send)
        elif scope["type"] == "http":
            await self._answer(receive, send)
        elif asked:
            await receive()
            await send({"type": "websocket.accept"})
            write = partial(_frame, send)
            await _until_left(receive, self._null.listen(count, write))
        else:
            await self._publisher(receive, send)

    async def _publisher(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": '{"event":"subscribed"}'})
        while (said := await receive())["type"] == "websocket.receive":
            self._null.tell((said.get("text") or "").encode())
            await send({"type": "websocket.send", "text": APPENDED_TEXT})

    async def _answer(self, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(APPENDED_BODY))]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": APPENDED_BODY})

    async def _events(self, count: int, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        while (await receive()).get("more_body"):
            pass
        await _until_left(receive, self._null.listen(count, partial(_chunk, send)))


async def _frame(send: Any, data: bytes) -> None:
    await send({"type": "websocket.send", "bytes": data})


async def _chunk(send: Any, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _until_left(receive: Any, listening: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(listening)
    while not (await receive())["type"].endswith("disconnect"):
        pass
    task.cancel()


async def main() -> None:
    """Serve until killed."""
    allow_files()
    null = _Null()
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((_Grpc(null).handlers(),))
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    listener = socket.create_server(("127.0.0.1", 0), backlog=2_048)
    config = uvicorn.Config(
        _Web(null),
        http="httptools",
        ws="websockets-sansio",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        ws_ping_interval=HEARTBEAT_SECONDS,
        ws_ping_timeout=None,  # The load reads and answers nothing; the bus, too, lets it.
        ws_per_message_deflate=False,
    )
    print(listener.getsockname()[1], grpc_port, flush=True)
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(main())
