"""What do appends and subscriptions cost over gRPC, beside HTTP, WebSocket and SSE, and beside servers that do nothing?

Beside every figure stands what the same load gets of a null server on the same stack (`null_server.py`): it is the
floor of the stack, and the ceiling of the load.

    python -m benchmarks.bench_grpc [--small]
"""

import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.harness import (
    cpu_seconds,
    fdatasync_seconds,
    grpc_port,
    machine,
    percentiles_us,
    report,
    scratch,
    serving,
)
from benchmarks.load_process import LoadProcess
from benchmarks.null_server import null_serving

QUESTION = "durable appends and subscriptions over gRPC, HTTP, WebSocket and SSE, beside null servers on their stacks"


class Way(NamedTuple):
    """A way to append: a turn of `append_load`."""

    turn: str
    what: Mapping[str, Any]


UNDER_WAY = 512
WAYS = {
    "grpc unary": Way("grpc_unary", {}),
    "grpc unary, 64 calls at once": Way("grpc_unary", {"together": 64}),
    "grpc stream, one at a time": Way("grpc_stream", {}),
    **{
        f"grpc stream, pipelined, {units} a message": Way("grpc_stream", {"under_way": UNDER_WAY, "per_message": units})
        for units in (1, 16, 64)
    },
    **{f"http {encoding}": Way("http_append", {"encoding": encoding}) for encoding in ("json", "msgpack", "protobuf")},
    "websocket, one at a time": Way("websocket", {}),
    "websocket, pipelined": Way("websocket", {"under_way": UNDER_WAY}),
}
WIRES = ("grpc", "websocket json", "websocket msgpack", "sse")
CROWDS = ((1, 500), (16, 100))
"""Subscribers, and units a second."""
UNITS_A_FRAME = 256
"""What the bus puts into one when it reads the log for a subscriber."""


class Sizes(NamedTuple):
    """How much of everything."""

    rounds: int
    seconds: float
    alone: int
    pipelined: int
    live_seconds: float
    read: int


SMALL = Sizes(rounds=1, seconds=0.2, alone=100, pipelined=1_500, live_seconds=0.3, read=2_000)
FULL = Sizes(rounds=7, seconds=1.0, alone=2_000, pipelined=20_000, live_seconds=2.0, read=20_000)


class Server(NamedTuple):
    """The bus, or the nulls."""

    web: str
    grpc: str
    pid: int

    def address(self, name: str) -> str:
        """Of a way or wire of this name."""
        return self.grpc if name.startswith("grpc") else self.web


def main() -> None:
    """Rounds of everything in turn, so that all meet the machine in the same mood."""
    small = "--small" in sys.argv
    sizes = SMALL if small else FULL
    with (
        scratch() as directory,
        serving(directory, "--no-search", "--grpc-port", "0") as bus,
        null_serving() as nulls,
        LoadProcess("benchmarks.append_load") as appending,
        LoadProcess("benchmarks.stream_load") as listening,
    ):
        ours = Server(f"{bus.host}:{bus.port}", f"{bus.host}:{grpc_port(bus)}", bus.pid)
        null = Server(f"{nulls.host}:{nulls.port}", f"{nulls.host}:{nulls.grpc_port}", nulls.pid)
        bench = Bench(sizes, ours, null, appending, listening)
        about = machine(directory)
        flushes: list[float] = []
        for _ in range(sizes.rounds):
            flushes += fdatasync_seconds(directory, count=200)
            bench.appends()
            bench.reads()
            bench.lives()
    report(QUESTION, {"machine": about, "fdatasync_us": percentiles_us(flushes), **bench.figures()}, small=small)


class Turns:
    """What one load got of one server, turn by turn."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.times: list[float] = []
        self.medians: list[float] = []
        self.cpu: list[float] = []

    def add(self, rate: float, times: Sequence[float], cpu: float) -> None:
        self.rates.append(rate)
        self.times += times
        self.medians.append(median(times) if times else 0.0)
        self.cpu.append(cpu)


class Pair:
    """The same load on the bus and on a null server."""

    def __init__(self) -> None:
        self.bus = Turns()
        self.null = Turns()


class Bench:
    """Everything that is measured, a round at a time."""

    def __init__(self, sizes: Sizes, bus: Server, null: Server, appending: LoadProcess, listening: LoadProcess) -> None:
        self._sizes = sizes
        self._bus = bus
        self._null = null
        self._appending = appending
        self._listening = listening
        self._appends = {name: Pair() for name in WAYS}
        self._reads = {wire: Pair() for wire in WIRES}
        self._lives = {crowd: {wire: Pair() for wire in WIRES} for crowd in CROWDS}
        self._turn = 0
        self._before_read = appending.turn("fill", address=bus.web, context="read", units=sizes.read)

    # --- Appends -----------------------------------------------------------------------------------------------------

    def appends(self) -> None:
        """Each way, on the bus and on the null."""
        for name, way in WAYS.items():
            units = self._sizes.pipelined if "under_way" in way.what else self._sizes.alone
            for server, turns in self._both(self._appends[name]):
                before = cpu_seconds(server.pid)
                told = self._appending.turn(
                    way.turn, address=server.address(name), units=units, seconds=self._sizes.seconds, **way.what
                )
                turns.add(told["per_second"], told["times"], (cpu_seconds(server.pid) - before) / told["units"])

    # --- Subscriptions -----------------------------------------------------------------------------------------------

    def reads(self) -> None:
        """One subscriber reads what is there, from the log."""
        units = self._sizes.read
        for wire, pair in self._reads.items():
            query = {"context": "read", "after": self._before_read}
            before = cpu_seconds(self._bus.pid)
            where = {"wire": wire, "address": self._bus.address(wire), "query": query}
            told = self._listening.turn("read", units=units, **where)
            pair.bus.add(told["per_second"], [], (cpu_seconds(self._bus.pid) - before) / units)
            kept = {"units": UNITS_A_FRAME, "bytes_per_unit": told["bytes_per_unit"]}
            self._listening.turn("keep", address=self._null.grpc, **kept)
            query = {"count": str(units // UNITS_A_FRAME + 1)}
            before = cpu_seconds(self._null.pid)
            where = {"wire": wire, "address": self._null.address(wire), "query": query}
            told = self._listening.turn("read", units=units, cycle=UNITS_A_FRAME, **where)
            pair.null.add(told["per_second"], [], (cpu_seconds(self._null.pid) - before) / units)

    def lives(self) -> None:
        """Units that come at a pace, published over a WebSocket: how late each is where it is heard."""
        for (streams, per_second), pairs in self._lives.items():
            units = round(per_second * self._sizes.live_seconds)
            for wire, pair in pairs.items():
                for server, turns in self._both(pair):
                    self._turn += 1
                    context = f"live-{self._turn}"
                    before = cpu_seconds(server.pid)
                    where = {"wire": wire, "address": server.address(wire), "query": {"context": context}}
                    self._listening.begin("live", streams=streams, units=units, **where)
                    assert self._listening.hear() == "open"
                    self._appending.turn(
                        "publish", address=server.web, context=context, units=units, per_second=per_second
                    )
                    late = self._listening.hear()
                    used = cpu_seconds(server.pid) - before
                    turns.add(streams * per_second, late, used / (streams * units))

    def _both(self, pair: Pair) -> Sequence[tuple[Server, Turns]]:
        """Who goes first takes turns."""
        self._turn += 1
        both = [(self._bus, pair.bus), (self._null, pair.null)]
        return both if self._turn % 2 else both[::-1]

    # --- Figures -----------------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """Medians over the rounds; percentiles over all of them."""
        return {
            "appends": {name: _appended(pair) for name, pair in self._appends.items()},
            "reading_the_log": {wire: _read(pair) for wire, pair in self._reads.items()},
            "live": {
                f"{streams} subscribers, {per_second} units/s": {wire: _live(pair) for wire, pair in pairs.items()}
                for (streams, per_second), pairs in self._lives.items()
            },
        }


def _appended(pair: Pair) -> dict[str, Any]:
    return {
        "units_per_second": round(median(pair.bus.rates)),
        "null_units_per_second": round(median(pair.null.rates)),
        "message_us": percentiles_us(pair.bus.times),
        "null_message_us": percentiles_us(pair.null.times),
        "p50_to_null": _ratio(pair.bus.medians, pair.null.medians),
        "null_rate_to_rate": _ratio(pair.null.rates, pair.bus.rates),
        **_cpu(pair),
    }


def _read(pair: Pair) -> dict[str, Any]:
    return {
        "units_per_second": round(median(pair.bus.rates)),
        "null_units_per_second": round(median(pair.null.rates)),
        "null_rate_to_rate": _ratio(pair.null.rates, pair.bus.rates),
        **_cpu(pair),
    }


def _live(pair: Pair) -> dict[str, Any]:
    return {
        "late_us": percentiles_us(pair.bus.times),
        "null_late_us": percentiles_us(pair.null.times),
        "p50_to_null": _ratio(pair.bus.medians, pair.null.medians),
        **_cpu(pair),
    }


def _cpu(pair: Pair) -> dict[str, Any]:
    """Of the server, for each unit that came or went."""
    return {
        "cpu_us_per_unit": round(1e6 * median(pair.bus.cpu), 1),
        "null_cpu_us_per_unit": round(1e6 * median(pair.null.cpu), 1),
    }


def _ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """The median of each round's."""
    return round(median(one / other for one, other in zip(ours, others, strict=True)), 2)


if __name__ == "__main__":
    main()
