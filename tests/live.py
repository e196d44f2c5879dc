"""A bus with its edge in a thread of its own, for tests that speak to it over the wire."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
import uvloop

from engram_bus.api.edge.http import USUAL, Bounds
from engram_bus.api.origins import LOOPBACK, Origins
from engram_bus.embedded import Bus
from engram_bus.limits import HEARTBEAT_SECONDS, LOCK_SESSION_GRACE_SECONDS, SOCKET_STALL_SECONDS
from engram_bus.log.contract import Log
from engram_bus.log.memory import MemoryLog
from engram_bus.ports import url_of
from engram_bus.serve import GrpcAddress, edge_of

T = TypeVar("T")


class LiveBus:
    """Started by `with`, over a data directory, or a log, or nothing (a new log in memory). It can be stopped and
    started again, and is then where it was. (A data directory is opened with the usual grace for sessions.)"""

    def __init__(
        self,
        path: Path | None = None,
        *,
        log: Log | None = None,
        origins: Origins = LOOPBACK,
        bounds: Bounds = USUAL,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stall_seconds: float = SOCKET_STALL_SECONDS,
        session_grace_seconds: float = LOCK_SESSION_GRACE_SECONDS,
    ) -> None:
        self._path = path
        self._log = MemoryLog() if log is None else log
        self._origins = origins
        self._bounds = bounds
        self._heartbeat_seconds = heartbeat_seconds
        self._stall_seconds = stall_seconds
        self._session_grace_seconds = session_grace_seconds
        self._port = 0
        self._grpc_port = 0
        self._loop: asyncio.AbstractEventLoop
        self._end: Callable[[], None]
        self.bus: Bus
        self.http: httpx.Client
        self.url = ""

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self._grpc_port}"

    def stream_url(self, query: str = "") -> str:
        """Where its WebSocket is."""
        return f"ws://127.0.0.1:{self._port}/stream{query}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Return when it answers, where it did before."""
        started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(started,), name="live bus", daemon=True)
        self._thread.start()
        assert started.wait(10)
        if self._failure is not None:
            raise self._failure
        self.http = httpx.Client(base_url=self.url, timeout=30, verify=False)
        self._grpc_port = self.http.get("/readyz").json()["grpc_port"]

    def stop(self) -> None:
        """As an operator stops it; stopping again does nothing."""
        if not self._thread.is_alive():
            return
        self.http.close()
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def call(self, function: Callable[[Bus], T]) -> T:
        """What `function` gives, called in the bus's own thread."""

        async def called() -> T:
            return function(self.bus)

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(10)

    def wait(self, is_so: Callable[[Bus], bool]) -> None:
        """Until it is so in the bus."""
        deadline = time.monotonic() + 20
        while not self.call(is_so):
            assert time.monotonic() < deadline, "it never was"

    def append(self, context_id: str = "plan", payload: object = "hello", **fields: object) -> dict[str, object]:
        """One unit, over HTTP."""
        body = {"context_id": context_id, "agent_id": "ann", "payload": payload, **fields}
        response = self.http.post("/workunit", json=body)
        assert response.status_code == 201, response.text
        unit: dict[str, object] = response.json()
        return unit

    def is_well(self) -> bool:
        """Whether it still appends and reads."""
        unit = self.append("well")
        read = self.http.get("/workunits/well", params={"reverse": True, "limit": 1})
        return bool(read.json()["work_units"] == [unit])

    def _run(self, started: threading.Event) -> None:
        try:
            uvloop.run(self._serve(started))
        except BaseException as exc:
            self._failure = exc
            started.set()

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", self._port), reuse_port=False)
        self._port = listener.getsockname()[1]
        self.url = url_of(listener)
        async with self._open() as bus:
            self.bus = bus
            server = edge_of(
                bus,
                started=started.set,
                origins=self._origins,
                bounds=self._bounds,
                grpc=GrpcAddress("127.0.0.1", self._grpc_port, reflects=True),
            )
            ended = asyncio.Event()
            self._end = ended.set
            # uvicorn's own looks ten times a second whether it should end.
            server.main_loop = ended.wait  # type: ignore[method-assign, assignment]
            with contextlib.closing(listener):
                await server.serve(sockets=[listener])

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[Bus]:
        heartbeat_seconds, stall_seconds = self._heartbeat_seconds, self._stall_seconds
        if self._path is not None:
            async with Bus.open(self._path, heartbeat_seconds=heartbeat_seconds, stall_seconds=stall_seconds) as bus:
                yield bus
            return
        bus = Bus(
            self._log,
            heartbeat_seconds=heartbeat_seconds,
            stall_seconds=stall_seconds,
            session_grace_seconds=self._session_grace_seconds,
        )
        try:
            yield bus
        finally:
            await bus.stop("the test is over")
