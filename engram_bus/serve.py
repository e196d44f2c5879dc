"""The only place where the parts meet: open the bus, put the edge around it, drain, stop."""

import asyncio
import contextlib
import faulthandler
import gc
import logging
import resource
import socket
import sys
from collections.abc import Callable, Generator
from typing import NamedTuple

import uvicorn
import uvloop

from engram_bus import __version__
from engram_bus.api.documents import pages
from engram_bus.api.edge.http import USUAL, Bounds, edge_http
from engram_bus.api.edge.websocket import EdgeWebSocket
from engram_bus.api.grpc import GrpcServer
from engram_bus.api.health import Health
from engram_bus.api.http import HttpApi
from engram_bus.api.origins import LOOPBACK, Origins
from engram_bus.embedded import Bus
from engram_bus.limits import (
    CONNECTIONS_MAX,
    DRAIN_SECONDS_MAX,
    GIB,
    HEARTBEAT_SECONDS,
    KEEP_ALIVE_SECONDS,
    WEBSOCKET_MESSAGE_BYTES_MAX,
)
from engram_bus.projections.search.choice import check as check_embedder
from engram_bus.settings import GRPC_PORT, Settings, SettingsError, is_loopback

log = logging.getLogger("engram_bus")

STDERR = 2
"""The descriptor: `sys.stderr` may be something that has none."""


class PortTaken(Exception):
    """Another process listens on the port that was asked for."""


class GrpcAddress(NamedTuple):
    """Where gRPC is served beside HTTP."""

    host: str
    port: int | None
    """None: the usual one, or none at all where that is taken."""
    reflects: bool


class _Server(uvicorn.Server):
    """uvicorn's server with gRPC beside it. Before it stops it tells every stream to go, so that none is cut without a
    cursor."""

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
            # Looked at first: where it is taken, gRPC itself would write to stderr, whatever the log level.
            _listen(address.host, port, "--grpc-port").close()
            server = GrpcServer(self._bus, self._health, self._api.metrics, reflects=address.reflects)
            self._health.grpc_port = await server.start(address.host, port)
        except (PortTaken, OSError) as exc:
            if address.port is not None:
                raise PortTaken(str(exc)) from exc
            self._health.grpc_detail = f"port {port} is taken"
            log.warning("no gRPC: port %d is taken; choose another with --grpc-port", port)
            return
        self._health.grpc_detail = None
        self._grpc = server
        log.info("gRPC is at %s:%d", address.host, self._health.grpc_port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        self._api.goaway("shutdown")
        if self._grpc is None:
            await super().shutdown(sockets)
            return
        self._grpc.goaway()
        await asyncio.gather(self._grpc.stop(), super().shutdown(sockets))


def run(settings: Settings, *, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is told the address.

    Raises DataDirectoryError, PortTaken, SettingsError.
    """
    try:
        check_embedder(settings.embedder)
    except ValueError as exc:
        raise SettingsError(f"embedder: {exc}") from exc
    # A page of the log whose length leads out of its file ends the process (SIGBUS): it says where, at least.
    faulthandler.enable(STDERR)
    _set_up_logging(settings.log_level)
    _raise_file_limit()
    _calm_collector()
    uvloop.run(serve(settings, ready=ready))


async def serve(settings: Settings, *, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve in the running loop until the process is told to stop."""
    listener = _listen(settings.host, settings.port)
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
        on_loopback = is_loopback(settings.host)
        origins = Origins(frozenset(settings.allow_origins), on_loopback=on_loopback)
        reflects = on_loopback if settings.grpc_reflection is None else settings.grpc_reflection
        grpc = GrpcAddress(settings.host, settings.grpc_port, reflects) if settings.grpc else None
        await edge_of(bus, origins=origins, grpc=grpc, started=lambda: ready(url)).serve(sockets=[listener])
        log.info("the bus has stopped at head %d", bus.head)


def edge_of(
    bus: Bus,
    *,
    started: Callable[[], None],
    origins: Origins = LOOPBACK,
    bounds: Bounds = USUAL,
    grpc: GrpcAddress | None = None,
) -> uvicorn.Server:
    """The server that puts HTTP, WebSocket, SSE and gRPC around a bus; whoever opened the bus closes it afterwards."""
    health = Health(bus, version=__version__)
    api = HttpApi(bus, health=health, pages=pages(__version__), origins=origins)
    server = _Server(_config(api, bounds), bus, api, health, started=started)
    server.grpc_address = grpc
    return server


def url_of(listener: socket.socket) -> str:
    """Where a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
        timeout_graceful_shutdown=int(DRAIN_SECONDS_MAX),
        ws_max_size=WEBSOCKET_MESSAGE_BYTES_MAX,
        ws_ping_interval=HEARTBEAT_SECONDS,
        ws_ping_timeout=None,  # A frozen reader is told by its full socket, a dead one by TCP.
        ws_per_message_deflate=False,
    )


def _listen(host: str, port: int, flag: str = "--port") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        raise PortTaken(f"cannot listen on {host}:{port}: {exc.strerror}. Choose another with {flag}.") from exc
    listener.set_inheritable(True)
    return listener


def _raise_file_limit() -> None:
    """A socket is a file, and the usual soft limit of 1,024 is for programs that use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + 1_024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _calm_collector() -> None:
    """What was imported lives as long as the process: the cycle collector need not walk it, and it comes less often,
    because the hot paths make no cycles and a full collection holds the loop for some 10 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def _set_up_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    # Its every connection and shutdown step is news to no one.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
