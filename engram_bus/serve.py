"""The only place where the parts meet: open the bus, put the edge around it, drain, stop."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Generator
from types import FrameType
from typing import NamedTuple

import uvicorn
import uvloop

from engram_bus import __version__, process
from engram_bus.api.documents import pages
from engram_bus.api.edge.http import USUAL, Bounds, edge_http
from engram_bus.api.edge.websocket import EdgeWebSocket
from engram_bus.api.grpc import GrpcServer
from engram_bus.api.health import Health
from engram_bus.api.http import HttpApi
from engram_bus.api.origins import LOOPBACK, Origins
from engram_bus.embedded import Bus
from engram_bus.limits import (
    DRAIN_SECONDS_MAX,
    GIB,
    HEARTBEAT_SECONDS,
    KEEP_ALIVE_SECONDS,
    WEBSOCKET_MESSAGE_BYTES_MAX,
)
from engram_bus.ports import PortTaken, address_of, listen, url_of
from engram_bus.projections.search.choice import check as check_embedder
from engram_bus.settings import GRPC_PORT, Settings, SettingsError, is_loopback

log = logging.getLogger("engram_bus")

_LOOK_SECONDS = 0.005
"""How often a stop looks whether everyone has gone."""


class GrpcAddress(NamedTuple):
    """Where gRPC is served beside HTTP."""

    host: str
    port: int | None
    """None: the usual one, or none at all where that is taken."""
    reflects: bool
    is_shared: bool = False
    """Whether the port was looked at, and other processes of this bus listen there too."""


class _Server(uvicorn.Server):
    """uvicorn's server with gRPC beside it. Before it stops it tells every stream to go, so that none is cut without a
    cursor; it stops when it is told to and everyone has gone, where uvicorn's own looks ten times a second for both."""

    def __init__(
        self, config: uvicorn.Config, bus: Bus, api: HttpApi, health: Health, *, started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._bus = bus
        self._api = api
        self._health = health
        self._started = started
        self.grpc_address: GrpcAddress | None = None
        self._grpc: GrpcServer | None = None
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._loop.call_soon_threadsafe(self._told.set)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, which afterwards raises the signal again: that would end us before the log is closed."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.grpc_address is not None:
            await self._start_grpc(self.grpc_address)
        await super().startup(sockets)
        self._started()

    async def _start_grpc(self, address: GrpcAddress) -> None:
        """Raises PortTaken where a port was asked for."""
        port = GRPC_PORT if address.port is None else address.port
        try:
            if not address.is_shared:
                # Looked at first: where it is taken, gRPC itself would write to stderr, whatever the log level.
                listen(address.host, port, "--grpc-port").close()
            server = GrpcServer(
                self._bus,
                self._health,
                self._api.metrics,
                reflects=address.reflects,
                shares_port=address.is_shared,
            )
            self._health.grpc_port = await server.start(address.host, port)
        except (PortTaken, OSError) as exc:
            if address.port is not None:
                raise PortTaken(str(exc)) from exc
            self._health.grpc_detail = f"port {port} is taken"
            log.warning("no gRPC: port %d is taken; choose another with --grpc-port", port)
            return
        self._health.grpc_detail = None
        self._grpc = server
        if not address.is_shared:
            log.info("gRPC is at %s", address_of(address.host, self._health.grpc_port))

    async def main_loop(self) -> None:
        await self._told.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        self._api.goaway("shutdown")
        if self._grpc is None:
            await self._see_off()
            return
        self._grpc.goaway()
        await asyncio.gather(self._grpc.stop(), self._see_off())

    async def _see_off(self) -> None:
        """Answer what was asked, and wait a while for everyone to leave; a second SIGINT ends the wait."""
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(DRAIN_SECONDS_MAX):
                while (state.connections or state.tasks) and not self.force_exit:  # noqa: ASYNC110 - neither set tells
                    await asyncio.sleep(_LOOK_SECONDS)
                for server in self.servers:
                    await server.wait_closed()
        except TimeoutError:
            log.warning("%d requests were under way %g s after the stop: cut", len(state.tasks), DRAIN_SECONDS_MAX)
            for task in state.tasks:
                task.cancel()


def run(settings: Settings, *, ready: Callable[[str], None] = lambda url: None, why: str = "as it was told") -> None:
    """Serve in this process until SIGINT or SIGTERM; `ready` is told the address, the log `why` it is this one alone.

    Raises DataDirectoryError, PortTaken, SettingsError.
    """
    try:
        check_embedder(settings.embedder)
    except ValueError as exc:
        raise SettingsError(f"embedder: {exc}") from exc
    process.set_up(settings.log_level)
    uvloop.run(serve(settings, ready=ready, why=why))


async def serve(
    settings: Settings, *, ready: Callable[[str], None] = lambda url: None, why: str = "as it was told"
) -> None:
    """Serve in the running loop until the process is told to stop."""
    listener = listen(settings.host, settings.port)
    async with Bus.open(
        settings.data_dir,
        size_bytes_max=settings.log_size_gib * GIB,
        heartbeat_seconds=settings.heartbeat_seconds,
        stall_seconds=settings.stall_seconds,
        embedder=settings.embedder,
    ) as bus:
        if settings.search:
            bus.start_search()
        url = url_of(listener)
        log.info("the bus is at %s: head %d, epoch %s, data in %s", url, bus.head, bus.epoch, settings.data_dir)
        log.info("all in one process: %s", why)
        grpc = GrpcAddress(settings.host, settings.grpc_port, is_reflecting(settings)) if settings.grpc else None
        edge = edge_of(bus, origins=origins_of(settings), grpc=grpc, started=lambda: ready(url))
        await edge.serve(sockets=[listener])
        log.info("the bus has stopped at head %d", bus.head)


def origins_of(settings: Settings) -> Origins:
    """Whose web pages are let in."""
    return Origins(frozenset(settings.allow_origins), on_loopback=is_loopback(settings.host))


def is_reflecting(settings: Settings) -> bool:
    """Whether gRPC tells its services."""
    return is_loopback(settings.host) if settings.grpc_reflection is None else settings.grpc_reflection


def edge_of(
    bus: Bus,
    *,
    started: Callable[[], None],
    origins: Origins = LOOPBACK,
    bounds: Bounds = USUAL,
    grpc: GrpcAddress | None = None,
    no_grpc: str = "gRPC is off",
    worker: int | None = None,
) -> uvicorn.Server:
    """The server that puts HTTP, WebSocket, SSE and gRPC around a bus; whoever opened the bus closes it afterwards.

    `no_grpc` says why there is none; `worker` is which of several processes of one bus this is.
    """
    health = Health(bus, version=__version__, worker=worker)
    health.grpc_detail = no_grpc
    api = HttpApi(bus, health=health, pages=pages(__version__), origins=origins)
    server = _Server(_config(api, bounds), bus, api, health, started=started)
    server.grpc_address = grpc
    return server


def _config(api: HttpApi, bounds: Bounds) -> uvicorn.Config:
    return uvicorn.Config(
        api,
        http=edge_http(bounds, api.direct),
        ws=EdgeWebSocket,
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # A middleware per request for an address nobody asks for.
        server_header=False,
        date_header=False,
        backlog=2_048,
        timeout_keep_alive=int(KEEP_ALIVE_SECONDS),
        ws_max_size=WEBSOCKET_MESSAGE_BYTES_MAX,
        ws_ping_interval=HEARTBEAT_SECONDS,
        ws_ping_timeout=None,  # A frozen reader is told by its full socket, a dead one by TCP.
        ws_per_message_deflate=False,
    )
