"""Does the bus meet its targets? Each in interleaved rounds with what it is compared to, all promises on.

Search is on unless a row says otherwise. Ratios count; absolute figures stand beside the disk's own flush and a server
that does nothing, of the same rounds. Parts that this commit has measured are kept: a run that was ended goes on. Each
part says where it was measured, for parts of other commits stay beside it.

    python -m benchmarks.bench_targets [--small] [--again] [PART ...]
"""

import argparse
import contextlib
import json
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import uvloop

from benchmarks import native, peers
from benchmarks.bench_large_log import got, last_100, last_100_of
from benchmarks.frame_server import frame_serving
from benchmarks.harness import (
    RESULTS,
    Served,
    allow_files,
    caught_up,
    commit,
    grpc_port,
    in_memory,
    keep,
    machine,
    percentiles_us,
    resident_bytes,
    scratch,
    serving,
)
from benchmarks.histogram import Histogram
from benchmarks.load_process import LoadProcess
from benchmarks.lock_load import UPGRADE
from benchmarks.null_server import null_serving
from benchmarks.peers import Peer
from benchmarks.rounds import Flushes, appended, delivered, in_turn
from engram_bus import Bus, Draft, UnitType

QUESTION = "every target of the bus: what was found, what it must be, what it aims at"
LARGE = 10_000_000
FILES_BESIDE = 200
"""Open files of a load or a bus besides its subscribers."""

T = TypeVar("T")


class Sizes(NamedTuple):
    """How much of everything."""

    rounds: int
    seconds: float
    read: int
    reads: int
    idle: int


SMALL = Sizes(rounds=1, seconds=0.1, read=5_000, reads=20, idle=50)
FULL = Sizes(rounds=7, seconds=1.0, read=300_000, reads=1_000, idle=10_000)


class Row(NamedTuple):
    """One target. A figure is the median over the rounds; `found` is None where there are none, for want of what it
    `needs`.

    Of the same rounds: what the same load finds at the null server, and its share of a processor beside the bus.
    """

    figure: str
    unit: str
    must: float
    aim: float
    rounds: Sequence[float]
    at_most: bool = False
    null: Sequence[float] = ()
    load_cpu: Sequence[float] = ()
    needs: str = ""

    def line(self) -> str:
        """As it is printed."""
        found = f"{_rounded(self.rounds)} {self.unit}" if self.rounds else f"for want of {self.needs}"
        return f"{self.figures()['met']:>12}  {found} (must / aim {self.must} / {self.aim})  {self.figure}"

    def figures(self) -> dict[str, Any]:
        """As JSON, judged."""
        found = median(self.rounds) if self.rounds else None
        return {
            "figure": self.figure,
            "found": _rounded(self.rounds),
            "unit": self.unit,
            "must": self.must,
            "aim": self.aim,
            "better": "lower" if self.at_most else "higher",
            "met": self._met(found),
            "null": _rounded(self.null),
            "load_cpu_share": _rounded(self.load_cpu),
            "rounds": [round(one, 3) for one in self.rounds],
        }

    def _met(self, found: float | None) -> str:
        if found is None:
            return "not measured"
        reached = [found <= bound if self.at_most else found >= bound for bound in (self.must, self.aim)]
        return "aim" if reached[1] else "must" if reached[0] else "no"


def _rounded(rounds: Sequence[float]) -> float | None:
    return round(median(rounds), 3) if rounds else None


class Part(NamedTuple):
    """Rows that come of one set of turns, and all that was measured in them; `elsewhere`, if another benchmark did."""

    rows: Sequence[Row]
    beside: Mapping[str, Any]
    elsewhere: Mapping[str, Any] | None = None


def main() -> None:
    """One part after the other."""
    options = _options()
    sizes = SMALL if options.small else FULL
    parts = {} if options.small else _kept()
    with scratch() as directory, contextlib.ExitStack() as stack:
        house = House(directory, stack, sizes)
        for name in options.parts or PARTS:
            if options.again or parts.get(name, {}).get("commit") != commit():
                parts[name] = _measured(house, PARTS[name])
                if not options.small:
                    keep(QUESTION, {"parts": {part: parts[part] for part in PARTS if part in parts}})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench_targets"
    )
    parser.add_argument("--small", action="store_true", help="a little of everything, and no result is kept")
    parser.add_argument("--again", action="store_true", help="also what this commit has measured")
    parser.add_argument("parts", nargs="*", metavar="PART", type=_part, help=f"all, or some of: {', '.join(PARTS)}")
    return parser.parse_args()


def _part(name: str) -> str:
    # Not `choices`: with `nargs="*"` it refuses the empty list.
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PARTS)}")
    return name


def _measured(house: "House", part: Callable[["House"], Part]) -> dict[str, Any]:
    started = time.monotonic()
    house.flushes = Flushes(house.directory)
    about = {
        **machine(house.directory),
        "pinned": native.pinned(),
        "payload_bytes": 300,
        "rounds": house.sizes.rounds,
    }
    found = part(house)
    for row in found.rows:
        print(row.line(), flush=True)
    if found.elsewhere is not None:
        about = {name: found.elsewhere[name] for name in about if name in found.elsewhere}
    servers = {**found.beside.get("appends", {}), **found.beside.get("deliveries", {})}
    return {
        **about,
        "versions": {name: version for name, version in house.versions.items() if name in servers},
        "seconds": round(time.monotonic() - started),
        "rows": [row.figures() for row in found.rows],
        "disk": house.flushes.figures() if house.flushes.append_us else None,
        **found.beside,
    }


def _kept() -> dict[str, Any]:
    path = RESULTS / "bench_targets.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
    return {name: part for name, part in kept.items() if name in PARTS}


# --- Servers ---------------------------------------------------------------------------------------------------------


class House:
    """All servers, each from the first part that needs it to the end."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack, sizes: Sizes) -> None:
        self.directory = directory
        self.sizes = sizes
        self.flushes = Flushes(directory)
        self.versions: dict[str, str] = {}
        self._stack = stack
        self._nulls: dict[str, int] = {}

    @cached_property
    def bus(self) -> Served:
        return self.serve("bus")

    @cached_property
    def plain(self) -> Served:
        """One without search."""
        return self.serve("plain", "--no-search")

    @cached_property
    def redis(self) -> Peer | None:
        return self._noted("redis, always", peers.redis(self.directory))

    @cached_property
    def nats(self) -> Peer | None:
        return self._noted("nats jetstream, as installed", peers.nats(self.directory))

    @cached_property
    def uvloop(self) -> int:
        return self._stack.enter_context(frame_serving("uvloop")).port

    def null(self, wire: str) -> int:
        if wire not in self._nulls:
            self._nulls[wire], _ = self._stack.enter_context(native.null_server(wire))
        return self._nulls[wire]

    def serve(self, name: str, *flags: str, directory: Path | None = None) -> Served:
        """A bus of its own, under a directory of its own."""
        data = (directory or self.directory) / name
        data.mkdir(exist_ok=True)
        return self._stack.enter_context(serving(data, "--grpc-port", "0", *flags, core=native.SERVER_CORE))

    @cached_property
    def in_memory(self) -> Served:
        """A bus whose disk is memory, without search."""
        return self.serve("memory", "--no-search", directory=self._stack.enter_context(in_memory()))

    def appends(self, wire: str, port: int, **load: float | str) -> Callable[[], native.Appended]:
        """A turn of appends, once search has caught up."""
        return lambda: self._settled(partial(native.appends, wire, port, **{"seconds": self.sizes.seconds, **load}))

    def fan(self, wire: str, port: int, **load: float | str) -> Callable[[], native.Delivered]:
        """A turn of fan-out, once search has caught up."""
        return lambda: self._settled(partial(native.fan, wire, port, **{"seconds": self.sizes.seconds, **load}))

    def turns(self, turns: Mapping[str, Callable[[], Any]]) -> dict[str, list[Any]]:
        """Rounds of each and of the disk."""
        return in_turn({**turns, "disk": self.flushes.measure}, rounds=self.sizes.rounds)

    def _settled(self, turn: Callable[[], T]) -> T:
        if "bus" in self.__dict__:
            caught_up(self.bus.host, self.bus.port)
        return turn()

    def _noted(self, name: str, peer: contextlib.AbstractContextManager[Peer | None]) -> Peer | None:
        found = self._stack.enter_context(peer)
        if found is not None:
            self.versions[name] = found.version
        return found


def _ratios(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    """Of each round; nothing where there are no others."""
    return [one / other for one, other in zip(ours, others, strict=True)] if others else []


def _rates(runs: Sequence[Any]) -> list[float]:
    return [run.per_second for run in runs]


def _cpu(runs: Sequence[Any]) -> list[float]:
    return [run.load_cpu_share for run in runs]


def _appends(runs: Sequence[native.Appended], share: float) -> list[float]:
    return [run.times.at_us(share) for run in runs]


def _late(runs: Sequence[native.Delivered], share: float) -> list[float]:
    return [run.late.at_us(share) for run in runs]


# --- Appends ---------------------------------------------------------------------------------------------------------


def _appenders(house: House, **load: float) -> dict[str, list[native.Appended]]:
    """The bus over WebSocket, and who else is there."""
    turns = {"bus": house.appends("ws", house.bus.port, **load)}
    if house.redis is not None:
        turns["redis, always"] = house.appends("redis", house.redis.port, **load)
    if house.nats is not None:
        turns["nats jetstream, as installed"] = house.appends("nats", house.nats.port, **load)
    turns["null"] = house.appends("ws", house.null("ws"), **load)
    return house.turns(turns)


def _figures(found: Mapping[str, Sequence[native.Appended]]) -> dict[str, Any]:
    return {"appends": {name: appended(runs) for name, runs in found.items() if name != "disk"}}


def one_client(house: House) -> Part:
    """One client, one append after the other."""
    found = _appenders(house, clients=1)
    ours, redis = _appends(found["bus"], 0.5), _appends(found.get("redis, always", ()), 0.5)
    return Part(
        [
            Row(
                "durable append over WebSocket, 1 client, p50, to Redis AOF always",
                "x",
                2.2,
                1.0,
                _ratios(ours, redis),
                at_most=True,
                load_cpu=_cpu(found["bus"]),
                needs="redis-server",
            ),
            Row(
                "the same to raw pre-zeroed fdatasync of the disk",
                "x",
                4,
                2,
                _ratios(ours, house.flushes.overwrite_us),
                at_most=True,
                load_cpu=_cpu(found["bus"]),
            ),
        ],
        _figures(found),
    )


def many_clients(house: House) -> Part:
    """64 clients, each one append after the other."""
    found = _appenders(house, clients=64)
    ours, cpu = _rates(found["bus"]), _cpu(found["bus"])
    redis, nats = (_rates(found.get(name, ())) for name in ("redis, always", "nats jetstream, as installed"))
    return Part(
        [
            Row(
                "durable appends/s, 64 clients, to Redis AOF always",
                "x",
                0.8,
                1.2,
                _ratios(ours, redis),
                load_cpu=cpu,
                needs="redis-server",
            ),
            Row(
                "the same to NATS JetStream as installed (no flush)",
                "x",
                0.8,
                1.3,
                _ratios(ours, nats),
                load_cpu=cpu,
                needs="nats-server",
            ),
        ],
        _figures(found),
    )


def pipelined(house: House) -> Part:
    """16 clients with 16 under way each."""
    found = _appenders(house, clients=16, in_flight=16)
    redis = _rates(found.get("redis, always", ()))
    figure = "pipelined 16 clients x 16 in flight, appends/s, to Redis AOF always"
    ratios = _ratios(_rates(found["bus"]), redis)
    row = Row(figure, "x", 0.5, 1.0, ratios, load_cpu=_cpu(found["bus"]), needs="redis-server")
    return Part([row], _figures(found))


def http(house: House) -> Part:
    """POST /workunit on connections that stay open: 64, and one."""
    loads: dict[str, Callable[[], native.Appended]] = {}
    for name, clients in (("64 connections", 64), ("1 connection", 1)):
        loads[f"bus, {name}"] = house.appends("http", house.bus.port, clients=clients)
        loads[f"null, {name}"] = house.appends("http", house.null("http"), clients=clients)
    found = house.turns(loads)
    many, alone = found["bus, 64 connections"], found["bus, 1 connection"]
    null_many, null_alone = found["null, 64 connections"], found["null, 1 connection"]

    def p99_ms(runs: Sequence[native.Appended]) -> list[float]:
        return [p99 / 1e3 for p99 in _appends(runs, 0.99)]

    return Part(
        [
            Row(
                "HTTP POST durable, 64 connections, one process",
                "units/s",
                20_000,
                30_000,
                _rates(many),
                null=_rates(null_many),
                load_cpu=_cpu(many),
            ),
            Row(
                "HTTP POST durable, 64 connections, p99",
                "ms",
                5,
                3,
                p99_ms(many),
                at_most=True,
                null=p99_ms(null_many),
                load_cpu=_cpu(many),
            ),
            Row(
                "HTTP POST durable, 1 client, p99",
                "ms",
                0.5,
                0.25,
                p99_ms(alone),
                at_most=True,
                null=p99_ms(null_alone),
                load_cpu=_cpu(alone),
            ),
        ],
        _figures(found),
    )


def grpc_stream(house: House) -> Part:
    """AppendStream, pipelined; the load is a Python process of grpc.aio for both."""
    units = {1: 20_000, 16: 40_000, 64: 80_000}
    with null_serving() as null, LoadProcess("benchmarks.append_load") as load:

        def turn(address: str, per_message: int) -> Callable[[], float]:
            what = {"units": units[per_message], "seconds": house.sizes.seconds, "per_message": per_message}
            return lambda: float(load.turn("grpc_stream", address=address, under_way=512, **what)["per_second"])

        ours, theirs = f"127.0.0.1:{grpc_port(house.bus)}", f"127.0.0.1:{null.grpc_port}"
        turns = {
            f"{name}, {size} a message": turn(address, size)
            for name, address in (("bus", ours), ("null", theirs))
            for size in units
        }
        found = house.turns(turns)
    figures = {
        1: "gRPC AppendStream, units/s, to grpc.aio null bidi on the same box",
        16: "the same, 16 units a message",
        64: "the same, 64 units a message",
    }
    return Part(
        [
            Row(figure, "x", 0.5, 0.8, _ratios(found[f"bus, {size} a message"], found[f"null, {size} a message"]))
            for size, figure in figures.items()
        ],
        {"units_per_second": {name: round(median(found[name])) for name in turns}},
    )


def search_on_off(house: House) -> Part:
    """64 clients, on a bus with search and on one without."""
    found = house.turns(
        {
            "search on": house.appends("ws", house.bus.port, clients=64),
            "search off": house.appends("ws", house.plain.port, clients=64),
            "null": house.appends("ws", house.null("ws"), clients=64),
        }
    )
    ratios = _ratios(_rates(found["search on"]), _rates(found["search off"]))
    figure = "append throughput with search indexing on to off"
    return Part([Row(figure, "x", 0.85, 0.95, ratios, load_cpu=_cpu(found["search on"]))], _figures(found))


# --- Deliveries ------------------------------------------------------------------------------------------------------


def _fans(found: Mapping[str, Sequence[native.Delivered]]) -> dict[str, Any]:
    return {"deliveries": {name: delivered(runs) for name, runs in found.items() if name != "disk"}}


def fanout(house: House) -> Part:
    """100 subscribers, one unit at a time; also in memory, where no flush is in the way, and over Redis Streams."""
    turns = {
        "bus": house.fan("ws", house.bus.port),
        "bus, its disk in memory": house.fan("ws", house.in_memory.port),
        "uvloop": house.fan("ws", house.uvloop),
        "null": house.fan("ws", house.null("ws")),
    }
    if house.redis is not None:
        turns["redis, always"] = house.fan("redis", house.redis.port)
    found = house.turns(turns)
    uvloop_rates = _rates(found["uvloop"])
    redis = _late(found.get("redis, always", ()), 0.5)
    return Part(
        [
            Row(
                "fan-out, 100 subscribers, deliveries/s, to a raw uvloop loop writing one frame (disk in memory)",
                "x",
                0.8,
                0.95,
                _ratios(_rates(found["bus, its disk in memory"]), uvloop_rates),
                load_cpu=_cpu(found["bus, its disk in memory"]),
            ),
            Row(
                "the same with every unit flushed to the disk before it is delivered, which the raw loop has not to do",
                "x",
                0.8,
                0.95,
                _ratios(_rates(found["bus"]), uvloop_rates),
                load_cpu=_cpu(found["bus"]),
            ),
            Row(
                "durable publish to delivery, 100 subscribers, p50, to Redis Streams AOF always with blocked readers",
                "x",
                0.6,
                0.35,
                _ratios(_late(found["bus"], 0.5), redis),
                at_most=True,
                load_cpu=_cpu(found["bus"]),
                needs="redis-server",
            ),
        ],
        _fans(found),
    )


def saturated(house: House) -> Part:
    """100 subscribers, 32 units under way."""
    turns = {
        "bus": house.fan("ws", house.bus.port, window=32),
        "bus, msgpack": house.fan("ws-msgpack", house.bus.port, window=32),
        "uvloop": house.fan("ws", house.uvloop, window=32),
        "null": house.fan("ws", house.null("ws"), window=32),
    }
    if house.redis is not None:
        turns["redis, always"] = house.fan("redis", house.redis.port, window=32)
    found = house.turns(turns)
    figure = "saturated fan-out, 100 subscribers, deliveries/s (coalesced, durable)"
    ours, null = found["bus"], found["null"]
    row = Row(figure, "deliveries/s", 1.5e6, 3e6, _rates(ours), null=_rates(null), load_cpu=_cpu(ours))
    return Part([row], _fans(found))


def thousand(house: House) -> Part:
    """1,000 subscribers, one unit at a time."""
    found = house.turns(
        {
            "bus": house.fan("ws", house.bus.port, subscribers=1_000),
            "uvloop": house.fan("ws", house.uvloop, subscribers=1_000),
            "null": house.fan("ws", house.null("ws"), subscribers=1_000),
        }
    )

    def row(percentile: str, share: float, must: float, aim: float) -> Row:
        ours, null = ([run.last.at_us(share) / 1e3 for run in found[name]] for name in ("bus", "null"))
        figure = f"1,000 subscribers, publish to last delivery, durable, {percentile}"
        return Row(figure, "ms", must, aim, ours, at_most=True, null=null, load_cpu=_cpu(found["bus"]))

    return Part([row("p50", 0.5, 3, 1.2), row("p99", 0.99, 6, 3.5)], _fans(found))


def beside_fanout(house: House) -> Part:
    """One who appends elsewhere, one after the other, beside 100 subscribers who take all there is."""
    load = {"window": 32, "probe": 1}
    found = house.turns(
        {"bus": house.fan("ws", house.bus.port, **load), "null": house.fan("ws", house.null("ws"), **load)}
    )
    ours, null = ([run.probe.at_us(0.99) / 1e3 for run in found[name]] for name in ("bus", "null"))
    figure = "append p99 while fan-out saturates the process"
    row = Row(figure, "ms", 10, 3, ours, at_most=True, null=null, load_cpu=_cpu(found["bus"]))
    answers = {name: _together(found[name]).percentiles_us() for name in ("bus", "null")}
    return Part([row], {**_fans(found), "append_us": answers})


def _together(runs: Sequence[native.Delivered]) -> Histogram:
    together = Histogram()
    for run in runs:
        together += run.probe
    return together


# --- Reading and holding ---------------------------------------------------------------------------------------------


def reading(house: House) -> Part:
    """A log of some size: a subscriber from zero, and the last 100 of a context."""
    data, contexts = house.directory / "read", 100
    data.mkdir(exist_ok=True)
    uvloop.run(_written(data / "data", house.sizes.read, contexts))
    in_process = [uvloop.run(last_100(data / "data", house.sizes.reads, contexts)) for _ in range(house.sizes.rounds)]
    bus = house.serve("read", "--no-search")
    first_over_http = [one.seconds * 1e3 for one in got(bus, (last_100_of(f"context/{n}") for n in range(contexts)))]
    draw = random.Random(1)

    def get(port: int) -> Callable[[], native.Appended]:
        def turn() -> native.Appended:
            path = last_100_of(f"context/{draw.randrange(contexts)}")
            return native.appends("http-get", port, path=path, seconds=house.sizes.seconds / 2)

        return turn

    found = house.turns(
        {
            "msgpack": lambda: native.read_all("ws-msgpack", bus.port, house.sizes.read, context="*"),
            "json": lambda: native.read_all("ws", bus.port, house.sizes.read, context="*"),
            "last 100 over http": get(bus.port),
            "null": get(house.null("http")),
        }
    )
    over_http = [one / 1e3 for one in _appends(found["last 100 over http"], 0.5)]
    again, first = (
        [percentiles_us(times)["p99"] / 1e3 for times in of_rounds] for of_rounds in zip(*in_process, strict=True)
    )
    return Part(
        [
            Row(
                "catch-up from zero, to one WebSocket msgpack subscriber (search off)",
                "units/s",
                200_000,
                500_000,
                found["msgpack"],
            ),
            Row("last 100 units of a context read before, in process, p99", "ms", 0.1, 0.01, again, at_most=True),
            Row("the same in process, of a context's first read since the start", "ms", 0.1, 0.01, first, at_most=True),
            Row(
                "last 100 units of a context read before, over HTTP, p50",
                "ms",
                0.5,
                0.2,
                over_http,
                at_most=True,
                null=[p50 / 1e3 for p50 in _appends(found["null"], 0.5)],
                load_cpu=_cpu(found["last 100 over http"]),
            ),
            Row(
                "the same over HTTP, of a context's first read since the start",
                "ms",
                0.5,
                0.2,
                [median(first_over_http[number :: house.sizes.rounds]) for number in range(house.sizes.rounds)],
                at_most=True,
            ),
        ],
        {
            "units": house.sizes.read,
            "json_units_per_second": round(median(found["json"])),
            **_figures({name: found[name] for name in ("last 100 over http", "null")}),
        },
    )


async def _written(path: Path, units: int, contexts: int) -> None:
    """As the load would: each payload with a mark, so that it is counted when it is read."""
    payload = b"@due=%016x,%08x " % (0, 0) + b"the build of the parser failed since a token was read twice; " * 5
    draw = random.Random(2)
    async with Bus.open(path) as bus:
        for _ in range(units // 1_000):
            await bus.append_bulk(
                Draft(
                    context_id=f"context/{draw.randrange(contexts)}",
                    agent_id="load",
                    type=UnitType.MESSAGE,
                    payload=payload[:300],
                )
                for _ in range(1_000)
            )


def idle(house: House) -> Part:
    """Sockets that are open and say nothing; what the first ones bring with them is not the price of the others."""
    subscribers = min(house.sizes.idle, allow_files() - FILES_BESIDE)
    if subscribers < house.sizes.idle:
        print(f"only {subscribers} of {house.sizes.idle} subscribers: more files may not be open", flush=True)
    bus = house.serve("idle", "--no-search")
    with contextlib.ExitStack() as stack:
        _listen(bus, 20, stack)
        time.sleep(0.5)
        before = resident_bytes(bus.pid)
        _listen(bus, subscribers, stack)
        time.sleep(0.5)
        taken = (resident_bytes(bus.pid) - before) / subscribers / 1_024
    figure = "memory per idle subscriber, WebSocket"
    return Part([Row(figure, "KB", 25, 12, [taken], at_most=True)], {"subscribers": subscribers})


def _listen(bus: Served, count: int, stack: contextlib.ExitStack) -> None:
    for _ in range(count):
        connection = stack.enter_context(socket.create_connection((bus.host, bus.port)))
        connection.sendall(UPGRADE.replace(b"/stream ", b"/stream?context=plan "))
        while b'"subscribed"' not in connection.recv(65_536):
            pass


def large_log(house: House) -> Part:
    """What `bench_large_log` found, which takes its own time."""
    largest = json.loads((RESULTS / "bench_large_log.json").read_text(encoding="utf-8"))["sizes"][-1]
    rounds = largest["restart_after_kill_seconds"] if largest["units"] >= LARGE else []
    size = f"{LARGE // 1_000_000} million units"
    beside = {name: largest[name] for name in ("units", "restart_after_kill_seconds", "restart_after_stop_seconds")}
    row = Row(f"ready after kill -9 with {size}", "s", 3, 1, rounds, at_most=True, needs=f"a large log of {size}")
    return Part([row], {"bench_large_log": beside}, elsewhere=largest)


PARTS: Mapping[str, Callable[[House], Part]] = {
    part.__name__: part
    for part in (
        one_client,
        many_clients,
        pipelined,
        http,
        grpc_stream,
        fanout,
        saturated,
        thousand,
        reading,
        beside_fanout,
        search_on_off,
        idle,
        large_log,
    )
}


if __name__ == "__main__":
    main()
