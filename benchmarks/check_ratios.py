"""Has the bus become slower than it was when the ratios in results/check_ratios.json were recorded?

Each figure is a ratio to what stands beside it in the same round: a bare uvloop server that answers at once and keeps
nothing, and for a flushed append the disk's own flush. Time is the client's; work is what the bus's loop had of the
processor. Both are of a bus whose disk is memory, so that a busy disk is no excuse and no alarm, but for the one that
is flushed. No absolute figure is compared. What lies beyond its bound is measured again, three times at most: noise
passes, a regression stays. A bound is how far recordings lie from their median, several times over, so that no single
one of them sets it. Where it may, the check goes before all else that runs on the machine.

    python -m benchmarks.check_ratios [--record]
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, TypeVar

from benchmarks import native
from benchmarks.frame_server import frame_serving
from benchmarks.harness import RESULTS, Served, grpc_port, in_memory, machine, scratch, serving
from benchmarks.histogram import Histogram
from benchmarks.load_process import LoadProcess
from benchmarks.rounds import Flushes, in_turn

L = TypeVar("L", native.Appended, native.Delivered)
T = TypeVar("T")

RECORDED = RESULTS / "check_ratios.json"
ROUNDS = 5
TRIES = 4
SILENT_MAX = 10
"""Turns in which nothing is answered: for a second somebody else may have the processor, or the disk."""
RECORDINGS = 9
SECONDS = 0.15
READ = 5_000
BOUND_MIN = 1.5
"""Below this a difference is not looked at, however alike the recordings were: a calmer machine is another one."""
SPREADS = 6
"""What a bound is away from the median, in median distances from it: four sigma, of noise that is normal."""
NICE = -15
"""A process that spins beside it doubles the cost of a delivery; with this it cannot be told from none."""
FLAGS = ("--no-search", "--grpc-port", "0")
ROOM_BYTES = 48 << 20
"""What one round may write to memory: about 20 MiB here, more where the processor is faster."""

ACKS = "null, 64 clients"
"""What the null does for one of 64 clients is what all else that it has not is counted in."""
LOADS: Mapping[str, Mapping[str, float]] = {
    "1 client": {"clients": 1},
    "64 clients": {"clients": 64},
    "16 clients, 16 in flight each": {"clients": 16, "in_flight": 16},
}
FANS: Mapping[str, Mapping[str, float]] = {
    "100 subscribers": {"window": 1},
    "100 subscribers, 32 units under way": {"window": 32},
}
WIRES: Mapping[str, str] = {"http": "http, 64 connections", "ws-msgpack": "msgpack, 64 clients"}
SSE = "100 subscribers by SSE"
GRPC = "gRPC stream, 64 in flight"
SEARCHED = "64 clients, search on"
READING = "reading the log"
FLUSHED = "1 client, flushed"


class Figure(NamedTuple):
    """A ratio: of what, of which turn, to which other in the same round."""

    of: Literal["time_us", "work_us"]
    ours: str
    beside: str


FIGURES: Mapping[str, Figure] = {
    **{f"time, {name}": Figure("time_us", f"bus, {name}", f"null, {name}") for name in (*LOADS, *FANS)},
    **{f"work, {name}": Figure("work_us", f"bus, {name}", f"null, {name}") for name in (*LOADS, *FANS)},
    **{f"time, {name}": Figure("time_us", f"bus, {name}", ACKS) for name in WIRES.values()},
    **{f"work, {name}": Figure("work_us", f"bus, {name}", ACKS) for name in (*WIRES.values(), GRPC, SEARCHED, READING)},
    f"work, {SSE}": Figure("work_us", f"bus, {SSE}", "null, 100 subscribers"),
    f"time, {FLUSHED}, to answer and flush": Figure("time_us", f"bus, {FLUSHED}", f"null, {FLUSHED}"),
}
Measure = Callable[[Sequence[str]], Mapping[str, float]]
"""Gives the figures of these names, each measured once."""


class Turn(NamedTuple):
    """What one turn cost: time and work in microseconds, for each unit or delivery."""

    time_us: float
    work_us: float


def main(flags: Sequence[str], measure: Measure) -> None:
    """Compare, or record anew."""
    if "--record" in flags:
        _record(measure)
        return
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))["figures"]
    if not (names := slower(recorded, measure)):
        print("no figure is beyond its bound")
        return
    print(f"slower than recorded, in each of {TRIES} runs: {', '.join(names)}", file=sys.stderr)
    print("where that is meant: python -m benchmarks.check_ratios --record", file=sys.stderr)
    sys.exit(1)


def slower(recorded: Mapping[str, Any], measure: Measure) -> Sequence[str]:
    """Those that are beyond their bounds in every try; only what was beyond in one is measured in the next."""
    names = sorted(recorded)
    for number in range(TRIES):
        if number:
            print(f"measured again: {', '.join(names)}")
        found = measure(names)
        _tell(recorded, found, names)
        names = [name for name in names if found[name] > recorded[name]["ratio"] * recorded[name]["bound"]]
        if not names:
            break
    return names


def _tell(recorded: Mapping[str, Any], found: Mapping[str, float], names: Sequence[str]) -> None:
    for name in names:
        kept = recorded[name]
        change = found[name] / kept["ratio"]
        print(
            f"{found[name]:8.2f}  recorded {kept['ratio']:8.2f}  x{change:4.2f}, at most x{kept['bound']:4.2f}  {name}"
        )


def _record(measure: Measure) -> None:
    runs = []
    for number in range(RECORDINGS):
        runs.append(measure([*FIGURES]))
        print(f"{number + 1} of {RECORDINGS}", flush=True)
    figures = {name: figure([run[name] for run in runs]) for name in FIGURES}
    with scratch() as directory:
        about = machine(directory)
    recorded = {"question": (__doc__ or "").partition("\n")[0], "machine": about, "figures": figures}
    RECORDED.write_text(json.dumps(recorded, indent=2) + "\n")


def figure(ratios: Sequence[float]) -> dict[str, Any]:
    """What is kept of recordings: their median and how far from it another may be."""
    ratio = median(ratios)
    spread = median(abs(one - ratio) for one in ratios) / ratio
    return {
        "ratio": round(ratio, 2),
        "bound": round(max(BOUND_MIN, 1 + SPREADS * spread), 2),
        "seen": [round(one, 2) for one in ratios],
    }


# --- One run ---------------------------------------------------------------------------------------------------------


def _measured(names: Sequence[str]) -> Mapping[str, float]:
    """These figures, each the median of its rounds."""
    wanted = {name: FIGURES[name] for name in names}
    found: dict[str, list[Turn]] = {}
    with scratch() as disk, serving(disk, *FLAGS, core=native.SERVER_CORE) as flushing:
        turns = {turn for one in wanted.values() for turn in (one.ours, one.beside)}
        for number in range(ROUNDS):
            for name, turn in _round(number, turns, flushing, Flushes(disk, count=100)).items():
                found.setdefault(name, []).append(turn)
    return {
        name: median(
            getattr(ours, one.of) / getattr(other, one.of)
            for ours, other in zip(found[one.ours], found[one.beside], strict=True)
        )
        for name, one in wanted.items()
    }


def _round(number: int, wanted: Container[str], flushing: Served, flushes: Flushes) -> dict[str, Turn]:
    """Every turn that is wanted, once. What keeps units in memory is new, and so stays small."""
    with (
        in_memory(room_bytes=ROOM_BYTES) as memory,
        serving(memory, *FLAGS, core=native.SERVER_CORE) as bus,
        frame_serving("uvloop") as null,
    ):
        _warm(bus, null)
        turns = _turns(bus, null, flushing, flushes)
        heard = {name: partial(answered, name, turn) for name, turn in turns.items() if name in wanted}
        said = in_turn(heard, rounds=1, first=number)
    return {name: turn for name, (turn,) in said.items()}


def _warm(bus: Served, null: Served) -> None:
    """Nobody's first appends are measured; those of the bus are what is read later."""
    native.appends("ws", null.port, clients=64, seconds=SECONDS)
    filled = 0
    while filled < READ:
        filled += len(answered("bus, being filled", lambda: _fill(bus)))


def _fill(bus: Served) -> Histogram | None:
    return native.appends("ws", bus.port, clients=64, seconds=SECONDS).times or None


def answered(name: str, turn: Callable[[], T | None]) -> T:
    """What a turn said, which is None where its server answered nothing: a few times that may be."""
    for _ in range(SILENT_MAX):
        if (said := turn()) is not None:
            return said
    raise TimeoutError(f"{name}: the server answered nothing in {SILENT_MAX} turns of {SECONDS} s, one after the other")


def _turns(bus: Served, null: Served, flushing: Served, flushes: Flushes) -> dict[str, Callable[[], Turn | None]]:
    """What is divided by another stands beside it."""
    turns: dict[str, Callable[[], Turn | None]] = {
        f"null, {FLUSHED}": lambda: _answered_and_flushed(null, flushes),
        f"bus, {FLUSHED}": _appends(flushing, "ws", LOADS["1 client"]),
    }
    for name, load in LOADS.items():
        turns[f"null, {name}"] = _appends(null, "ws", load)
        turns[f"bus, {name}"] = _appends(bus, "ws", load)
        if f"null, {name}" == ACKS:
            for wire, over in WIRES.items():
                turns[f"bus, {over}"] = _appends(bus, wire, load)
            turns[f"bus, {SEARCHED}"] = _searched
            turns[f"bus, {GRPC}"] = lambda: _streamed(bus)
            turns[f"bus, {READING}"] = lambda: _read(bus)
    for name, load in FANS.items():
        turns[f"null, {name}"] = _fan(null, load)
        turns[f"bus, {name}"] = _fan(bus, load)
        if name == "100 subscribers":
            turns[f"bus, {SSE}"] = _fan(bus, {**load, "publish": "ws"}, wire="sse")
    return turns


def _answered_and_flushed(null: Served, flushes: Flushes) -> Turn | None:
    flushes.measure()
    said = _appends(null, "ws", LOADS["1 client"])()
    return said and said._replace(time_us=said.time_us + flushes.overwrite_us[-1])


def _appends(place: Served, wire: str, load: Mapping[str, float]) -> Callable[[], Turn | None]:
    run = partial(native.appends, wire, place.port, **load, seconds=SECONDS, warm_seconds=0)
    return lambda: _turn(place, run, lambda appended: appended.times, is_alone=load["clients"] == 1)


def _fan(place: Served, load: Mapping[str, float | str], wire: str = "ws") -> Callable[[], Turn | None]:
    run = partial(native.fan, wire, place.port, **load, seconds=SECONDS)
    return lambda: _turn(place, run, lambda delivered: delivered.late, is_alone=load["window"] == 1)


def _turn(place: Served, load: Callable[[], L], times_of: Callable[[L], Histogram], *, is_alone: bool) -> Turn | None:
    """What a load cost. Its time is that of one after the other where it `is_alone`, else what its rate tells."""
    before = _work_ns(place.pid)
    run = load()
    if not (times := times_of(run)):
        return None
    work = (_work_ns(place.pid) - before) / 1e3 / len(times)
    return Turn(times.at_us(0.5) if is_alone else 1e6 / run.per_second, work)


def _read(place: Served) -> Turn:
    before = _work_ns(place.pid)
    per_second = native.read_all("ws-msgpack", place.port, READ)
    return Turn(1e6 / per_second, (_work_ns(place.pid) - before) / 1e3 / READ)


def _streamed(place: Served) -> Turn:
    """Over one AppendStream. Its load is Python, so its time is the load's."""
    address = f"{place.host}:{grpc_port(place)}"
    with LoadProcess("benchmarks.append_load") as load:
        load.turn("grpc_stream", address=address, units=1_000, seconds=0.1, under_way=64)
        before = _work_ns(place.pid)
        said = load.turn("grpc_stream", address=address, units=1_000_000, seconds=SECONDS, under_way=64)
    return Turn(1e6 / said["per_second"], (_work_ns(place.pid) - before) / 1e3 / said["units"])


def _searched() -> Turn | None:
    """A bus of its own, so that what it has yet to index is in nobody's way."""
    with in_memory() as memory, serving(memory, *FLAGS[1:], core=native.SERVER_CORE) as bus:
        native.appends("ws", bus.port, clients=64, seconds=SECONDS)
        return _appends(bus, "ws", LOADS["64 clients"])()


def _work_ns(pid: int) -> int:
    """How long the main thread of a process, which is its loop, was on a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    main(sys.argv[1:], _measured)
