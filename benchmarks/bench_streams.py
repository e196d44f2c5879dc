"""What does an open, idle subscription cost over gRPC, WebSocket and SSE, and when has the last of thousands heard?

Each kind has a server process of its own, so that the memory it takes is its own. Beside it stands a null server on the
same stack (`null_server.py`): what is beyond it is the bus.

    python -m benchmarks.bench_streams [--small]
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.append_load import connected, marked, upgrade
from benchmarks.harness import (
    allow_files,
    cpu_seconds,
    grpc_port,
    machine,
    report,
    resident_bytes,
    scratch,
    serving,
)
from benchmarks.load_process import LoadProcess
from benchmarks.null_server import null_serving
from engram_bus.limits import CONNECTIONS_MAX

QUESTION = "memory of an open, idle subscription, and the time from one append until the last of all has heard"
CLIENTS = 4
"""Processes that listen, so that their own files and time do not set the bounds."""
FILES_BESIDE = 1_000
"""Left of the file limit for what is no stream."""
CONTEXT = "plan"
SETTLE_SECONDS = 0.5


class Sizes(NamedTuple):
    """How much of everything; streams are shared out among CLIENTS."""

    streams: int
    alone: int
    units: int
    idle_seconds: float


SMALL = Sizes(streams=200, alone=40, units=3, idle_seconds=0.2)
FULL = Sizes(streams=10_000, alone=2_000, units=10, idle_seconds=30.0)
STREAMS_A_CONNECTION = 100


class Kind(NamedTuple):
    """A kind of stream."""

    wire: str
    streams: int
    connections: int


class Server(NamedTuple):
    """The bus, or a null."""

    web: str
    grpc: str
    pid: int


def main() -> None:
    """One kind after the other, on the bus and on a null."""
    small = "--small" in sys.argv
    sizes = SMALL if small else FULL
    files = allow_files()
    sockets = min(sizes.streams, files - FILES_BESIDE) // CLIENTS * CLIENTS
    shared = max(CLIENTS, sizes.streams // STREAMS_A_CONNECTION)
    kinds = {
        "grpc, 100 streams a connection": Kind("grpc", sizes.streams, shared),
        "grpc, one stream a connection": Kind("grpc", sizes.alone, sizes.alone),
        "websocket json": Kind("websocket json", sockets, sockets),
        "sse": Kind("sse", sockets, sockets),
    }
    with scratch() as directory, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(LoadProcess("benchmarks.stream_load")) for _ in range(CLIENTS)]
        figures = {
            "machine": machine(directory),
            "bounds": {"files_of_a_process": files, "connections_and_calls_of_the_bus": CONNECTIONS_MAX},
            "kinds": {name: _both(kind, sizes, clients) for name, kind in kinds.items()},
        }
    report(QUESTION, figures, small=small)


def _both(kind: Kind, sizes: Sizes, clients: Sequence[LoadProcess]) -> dict[str, Any]:
    with _bus() as server:
        ours = _held(server, kind, sizes, clients)
    with _null() as server:
        null = _held(server, kind, sizes, clients)
    return {
        "streams": kind.streams,
        "connections": kind.connections,
        **ours,
        **{f"null_{name}": figure for name, figure in null.items()},
    }


@contextlib.contextmanager
def _bus() -> Iterator[Server]:
    with scratch() as directory, serving(directory, "--no-search", "--grpc-port", "0") as bus:
        yield Server(f"{bus.host}:{bus.port}", f"{bus.host}:{grpc_port(bus)}", bus.pid)


@contextlib.contextmanager
def _null() -> Iterator[Server]:
    with null_serving() as null:
        yield Server(f"{null.host}:{null.port}", f"{null.host}:{null.grpc_port}", null.pid)


def _held(server: Server, kind: Kind, sizes: Sizes, clients: Sequence[LoadProcess]) -> dict[str, Any]:
    """All streams open at once; what the first ones bring with them is not the price of the others."""
    _open(server, Kind(kind.wire, 10 * CLIENTS, CLIENTS), clients, units=0)
    time.sleep(SETTLE_SECONDS)
    before = resident_bytes(server.pid)
    opened = _open(server, kind, clients, units=sizes.units)
    time.sleep(SETTLE_SECONDS)
    taken = resident_bytes(server.pid) - before
    used = cpu_seconds(server.pid)
    time.sleep(sizes.idle_seconds)
    used = cpu_seconds(server.pid) - used
    heard = _appended(server, clients, sizes.units)
    return {
        "kib_per_stream": round(taken / 1_024 / kind.streams, 1),
        "opened_per_second": round(kind.streams / opened),
        "idle_cpu_percent": round(100 * used / sizes.idle_seconds, 1),
        "first_has_heard_ms": _milliseconds([first for first, _ in heard]),
        "last_has_heard_ms": _milliseconds([last for _, last in heard]),
    }


def _open(server: Server, kind: Kind, clients: Sequence[LoadProcess], *, units: int) -> float:
    """Begin to listen, until so many units were heard; gives how long it took until all streams were open."""
    started = time.perf_counter()
    for client in clients:
        client.begin(
            "hold",
            streams=kind.streams // CLIENTS,
            connections=kind.connections // CLIENTS,
            units=units,
            wire=kind.wire,
            address=server.grpc if kind.wire == "grpc" else server.web,
            query={"context": CONTEXT},
        )
    assert [client.hear() for client in clients] == ["open"] * CLIENTS
    return time.perf_counter() - started


def _appended(server: Server, clients: Sequence[LoadProcess], units: int) -> list[tuple[float, float]]:
    """One append after the other: when the first and when the last of all streams heard it, from when it was sent."""
    heard = []
    with connected(server.web) as connection:
        upgrade(connection)
        for number in range(units):
            connection.sendall(marked(CONTEXT, number, time.perf_counter_ns()))
            told = [client.hear() for client in clients]
            heard.append((min(one["first"] for one in told), max(one["last"] for one in told)))
            connection.recv(65_536)
    return heard


def _milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": round(1e3 * median(seconds), 1), "max": round(1e3 * max(seconds), 1)}


if __name__ == "__main__":
    main()
