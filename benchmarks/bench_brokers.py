"""How do durable appends and deliveries compare with Redis Streams, NATS JetStream and Centrifugo, round by round?

One C program is the load of all (load/), with the same 300 bytes and as many clients; beside every figure stands what
it gets of a server that does nothing. Those that are installed take part (`make tools-peers`); stderr names those
that are not.

    python -m benchmarks.bench_brokers [--small] [--appends | --deliveries]
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import native, peers
from benchmarks.frame_server import frame_serving
from benchmarks.harness import caught_up, machine, report, scratch, serving
from benchmarks.rounds import Flushes, appended, delivered, in_turn, ratio

QUESTION = "durable appends and deliveries of the bus, beside Redis Streams, NATS JetStream and Centrifugo in turn"

APPENDS: Mapping[str, Mapping[str, float]] = {
    "1 client": {"clients": 1},
    "64 clients": {"clients": 64},
    "16 clients, 16 in flight each": {"clients": 16, "in_flight": 16},
    "2,000 a second, from when each was due": {"clients": 16, "per_second": 2_000},
}
DELIVERIES: Mapping[str, Mapping[str, float]] = {
    "1 subscriber": {"subscribers": 1},
    "100 subscribers": {"subscribers": 100},
    "100 subscribers, 32 units under way": {"subscribers": 100, "window": 32},
    "1,000 subscribers": {"subscribers": 1_000},
    "100 subscribers, 500 a second, from when each was due": {"subscribers": 100, "per_second": 500},
}
APPEND_FLOOR = "redis, always"
DELIVERY_FLOOR = "a uvloop server that writes one frame each"


class Server(NamedTuple):
    """Who is measured, over which wire; `search` must be caught up before a turn."""

    wire: str
    port: int
    search: bool = False


def main() -> None:
    """All servers stand from the beginning; each load goes over all of them, some rounds long."""
    small = "--small" in sys.argv
    rounds, seconds = (1, 0.1) if small else (5, 1.0)
    loads = {name: some for name, some in APPENDS.items() if not small or name in ("1 client", "64 clients")}
    fans = {name: some for name, some in DELIVERIES.items() if not small or name.startswith("100 subscribers,")}
    figures: dict[str, Any] = {}
    with scratch() as directory, contextlib.ExitStack() as stack:
        about = machine(directory)
        versions: dict[str, str] = {}
        flushes = Flushes(directory, count=50 if small else 300)
        appenders = dict(_appenders(directory, stack, versions))
        if "--deliveries" not in sys.argv:
            figures["appends"] = {
                name: _appends(appenders, flushes, rounds, {**load, "seconds": seconds}) for name, load in loads.items()
            }
        if "--appends" not in sys.argv:
            fanning = {**_fans(directory, stack, versions, appenders)}
            figures["deliveries"] = {
                name: _deliveries(fanning, flushes, rounds, {**load, "seconds": seconds}) for name, load in fans.items()
            }
    head = {"machine": about, "pinned": native.pinned(), "payload_bytes": 300, "rounds": rounds, "versions": versions}
    report(QUESTION, {**head, "disk": flushes.figures(), **figures}, small=small)


def _appenders(directory: Path, stack: contextlib.ExitStack, versions: dict[str, str]) -> Iterator[tuple[str, Server]]:
    bus = stack.enter_context(serving(directory, "--grpc-port", "0", core=native.SERVER_CORE))
    yield "bus, websocket", Server("ws", bus.port, search=True)
    (directory / "plain").mkdir()
    plain = stack.enter_context(
        serving(directory / "plain", "--grpc-port", "0", "--no-search", core=native.SERVER_CORE)
    )
    for kind, wire in (("websocket", "ws"), ("websocket msgpack", "ws-msgpack"), ("http", "http")):
        yield f"bus without search, {kind}", Server(wire, plain.port)
    others = {
        "redis, always": ("redis", peers.redis(directory, fsync="always")),
        "redis, everysec": ("redis", peers.redis(directory, fsync="everysec")),
        "nats jetstream, as installed (no flush)": ("nats", peers.nats(directory)),
        "nats jetstream, sync always": ("nats", peers.nats(directory, sync="always")),
    }
    for name, (wire, peer) in others.items():
        if (found := stack.enter_context(peer)) is not None:
            versions[name] = found.version
            yield name, Server(wire, found.port)
    for wire in ("ws", "http", "redis", "nats"):
        yield f"null, {wire}", Server(wire, stack.enter_context(native.null_server(wire))[0])


def _fans(
    directory: Path, stack: contextlib.ExitStack, versions: dict[str, str], appenders: Mapping[str, Server]
) -> Mapping[str, Server]:
    kept = {
        name: server for name, server in appenders.items() if not name.endswith(("http", "null, redis", "null, nats"))
    }
    if (found := stack.enter_context(peers.centrifugo(directory))) is not None:
        versions["centrifugo, in memory"] = found.version
        kept["centrifugo, in memory"] = Server("centrifugo", found.port)
    for name, way in FRAME_WAYS.items():
        kept[name] = Server("ws", stack.enter_context(frame_serving(way)).port)
    return kept


FRAME_WAYS = {
    DELIVERY_FLOOR: "uvloop",
    "websockets.broadcast": "websockets",
    "starlette on uvicorn": "starlette",
}


def _appends(servers: Mapping[str, Server], flushes: Flushes, rounds: int, load: Mapping[str, float]) -> dict[str, Any]:
    def turn(server: Server) -> native.Appended:
        _settled(servers)
        return native.appends(server.wire, server.port, **load)

    def flush() -> None:
        flushes.measure()

    turns: dict[str, Any] = {name: partial(turn, server) for name, server in servers.items()}
    found = in_turn({**turns, "disk": flush}, rounds=rounds)
    figures: dict[str, Any] = {}
    overwrites = flushes.overwrite_us[-rounds:]
    for name in servers:
        runs = found[name]
        medians = [run.times.at_us(0.5) for run in runs]
        figures[name] = {**appended(runs), "p50_to_overwrite_fdatasync": ratio(medians, overwrites)}
        if APPEND_FLOOR in servers:
            others = found[APPEND_FLOOR]
            figures[name]["p50_to_redis_always"] = ratio(medians, [run.times.at_us(0.5) for run in others])
            rates = [run.per_second for run in others]
            figures[name]["rate_to_redis_always"] = ratio([run.per_second for run in runs], rates)
    return figures


def _deliveries(
    servers: Mapping[str, Server], flushes: Flushes, rounds: int, load: Mapping[str, float]
) -> dict[str, Any]:
    def turn(server: Server) -> native.Delivered:
        _settled(servers)
        return native.fan(server.wire, server.port, **load)

    turns: dict[str, Any] = {name: partial(turn, server) for name, server in servers.items()}
    found = in_turn({**turns, "disk": flushes.measure}, rounds=rounds)
    floor = found[DELIVERY_FLOOR]
    return {
        name: {
            **delivered(found[name]),
            "rate_to_uvloop": ratio([run.per_second for run in found[name]], [run.per_second for run in floor]),
            "p50_to_uvloop": ratio(
                [run.late.at_us(0.5) for run in found[name]], [run.late.at_us(0.5) for run in floor]
            ),
        }
        for name in servers
    }


def _settled(servers: Mapping[str, Server]) -> None:
    """What search has yet to take in would be someone else's bad luck."""
    for port in {server.port for server in servers.values() if server.search}:
        caught_up("127.0.0.1", port)


if __name__ == "__main__":
    main()
