"""Has the bus become slower than it was when the ratios in results/check_ratios.json were recorded?

Each figure is a ratio to what stands beside it in the same round: a bare uvloop server that answers at once and keeps
nothing, and for a flushed append the disk's own flush. Time is the client's; work is what the bus's loop had of the
processor. Both are of a bus whose disk is memory, so that a busy disk is no excuse and no alarm, but for the one that
is flushed. No absolute figure is compared. What lies beyond its bound is measured again, three times at most: noise
passes, a regression stays. A bound is what the figure itself did over several recordings, and some more.

    python -m benchmarks.check_ratios [--record]
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import native
from benchmarks.frame_server import frame_serving
from benchmarks.harness import RESULTS, Served, in_memory, machine, scratch, serving
from benchmarks.rounds import Flushes, in_turn

RECORDED = RESULTS / "check_ratios.json"
ROUNDS = 7
TRIES = 4
RECORDINGS = 8
SECONDS = 0.2
READ = 5_000
BOUND_MIN = 1.5
"""Below this a difference is not looked at, however alike the recordings were: a calmer machine is another one."""
ROOM = 1.25
"""What a bound has beyond the worst that was seen."""

FLAGS = ("--no-search", "--grpc-port", "0")
ROOM_BYTES = 48 << 20
"""What one round may write to memory: about 20 MiB here, more where the processor is faster."""

ALONE, UNIT_OF_WORK = "1 client", "64 clients"
"""What the null does for one of 64 clients is what all else that it has not is counted in."""
LOADS: Mapping[str, Mapping[str, float]] = {
    ALONE: {"clients": 1},
    UNIT_OF_WORK: {"clients": 64},
    "16 clients, 16 in flight each": {"clients": 16, "in_flight": 16},
}
FANS: Mapping[str, Mapping[str, float]] = {
    "100 subscribers": {"window": 1},
    "100 subscribers, 32 units under way": {"window": 32},
}


class Turn(NamedTuple):
    """What one turn cost: time and work in microseconds, for each unit or delivery."""

    time_us: float
    work_us: float


def main() -> None:
    """Compare, or record anew."""
    if "--record" in sys.argv:
        _record()
        return
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))["figures"]
    slower = sorted(recorded)
    for number in range(TRIES):
        found = _measured()
        _tell(recorded, found, slower)
        slower = [name for name in slower if found[name] > recorded[name]["ratio"] * recorded[name]["bound"]]
        if not slower:
            print("no figure is beyond its bound")
            return
        if number < TRIES - 1:
            print(f"measured again: {', '.join(slower)}")
    print(f"slower than recorded, in each of {TRIES} runs: {', '.join(slower)}", file=sys.stderr)
    print("where that is meant: python -m benchmarks.check_ratios --record", file=sys.stderr)
    sys.exit(1)


def _tell(recorded: Mapping[str, Any], found: Mapping[str, float], names: Sequence[str]) -> None:
    for name in names:
        kept = recorded[name]
        change = found[name] / kept["ratio"]
        print(
            f"{found[name]:8.2f}  recorded {kept['ratio']:8.2f}  x{change:4.2f}, at most x{kept['bound']:4.2f}  {name}"
        )


def _record() -> None:
    runs = []
    for number in range(RECORDINGS):
        runs.append(_measured())
        print(f"{number + 1} of {RECORDINGS}", flush=True)
    figures = {}
    for name in runs[0]:
        ratios = [run[name] for run in runs]
        bound = max(BOUND_MIN, ROOM * max(ratios) / median(ratios))
        figures[name] = {
            "ratio": round(median(ratios), 2),
            "bound": round(bound, 2),
            "seen": [round(one, 2) for one in ratios],
        }
    with scratch() as directory:
        about = machine(directory)
    recorded = {"question": (__doc__ or "").partition("\n")[0], "machine": about, "figures": figures}
    RECORDED.write_text(json.dumps(recorded, indent=2) + "\n")


# --- One run ---------------------------------------------------------------------------------------------------------


def _measured() -> dict[str, float]:
    """Every figure, the median of its rounds."""
    found: dict[str, list[Any]] = {}
    with scratch() as disk, serving(disk, *FLAGS, core=native.SERVER_CORE) as flushing:
        flushes = Flushes(disk, count=100)
        for number in range(ROUNDS):
            for name, turn in _round(number, flushing, flushes).items():
                found.setdefault(name, []).append(turn)
    figures = {}
    for name in (*LOADS, *FANS):
        ours, theirs = found[f"bus, {name}"], found[f"null, {name}"]
        figures[f"time, {name}"] = _ratio([one.time_us for one in ours], [one.time_us for one in theirs])
        figures[f"work, {name}"] = _ratio([one.work_us for one in ours], [one.work_us for one in theirs])
    acks = [one.work_us for one in found[f"null, {UNIT_OF_WORK}"]]
    figures["work, http, 64 connections"] = _ratio([one.work_us for one in found["bus, http"]], acks)
    figures["work, reading the log"] = _ratio([one.work_us for one in found["bus, read"]], acks)
    alone = [one.time_us for one in found[f"null, {ALONE}"]]
    floor = [answer + flush for answer, flush in zip(alone, flushes.overwrite_us, strict=True)]
    figures["time, 1 client, flushed, to answer and flush"] = _ratio([one.time_us for one in found["flushed"]], floor)
    return figures


def _round(number: int, flushing: Served, flushes: Flushes) -> dict[str, Any]:
    """Every turn once. What keeps units in memory is new, and so stays small."""
    with (
        in_memory(room_bytes=ROOM_BYTES) as memory,
        serving(memory, *FLAGS, core=native.SERVER_CORE) as bus,
        frame_serving("uvloop") as null,
    ):
        _fill(bus)
        said = in_turn(_turns(bus, null, flushing, flushes), rounds=1, first=number)
    return {name: turn for name, (turn,) in said.items()}


def _fill(bus: Served) -> None:
    """What is read later."""
    filled = 0
    while filled < READ:
        filled += len(native.appends("ws", bus.port, clients=64, seconds=SECONDS).times)


def _ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    return median(one / other for one, other in zip(ours, others, strict=True))


def _turns(bus: Served, null: Served, flushing: Served, flushes: Flushes) -> dict[str, Callable[[], Any]]:
    """What is divided by another stands beside it."""
    turns: dict[str, Callable[[], Any]] = {"disk": flushes.measure, "flushed": _appends(flushing, "ws", LOADS[ALONE])}
    for name, load in LOADS.items():
        turns[f"null, {name}"] = _appends(null, "ws", load)
        turns[f"bus, {name}"] = _appends(bus, "ws", load)
        if name == UNIT_OF_WORK:
            turns["bus, http"] = _appends(bus, "http", load)
            turns["bus, read"] = lambda: _read(bus)
    for name, load in FANS.items():
        turns[f"null, {name}"] = _fan(null, load)
        turns[f"bus, {name}"] = _fan(bus, load)
    return turns


def _appends(place: Served, wire: str, load: Mapping[str, float]) -> Callable[[], Turn]:
    def turn() -> Turn:
        before = _work_ns(place.pid)
        run = native.appends(wire, place.port, **load, seconds=SECONDS, warm_seconds=0)
        if not run.times:
            return turn()  # Somebody else had the disk for all of it.
        work = (_work_ns(place.pid) - before) / 1e3 / len(run.times)
        return Turn(run.times.at_us(0.5) if load["clients"] == 1 else 1e6 / run.per_second, work)

    return turn


def _fan(place: Served, load: Mapping[str, float]) -> Callable[[], Turn]:
    def turn() -> Turn:
        before = _work_ns(place.pid)
        run = native.fan("ws", place.port, **load, seconds=SECONDS)
        work = (_work_ns(place.pid) - before) / 1e3 / len(run.late)
        return Turn(run.late.at_us(0.5) if load["window"] == 1 else 1e6 / run.per_second, work)

    return turn


def _read(place: Served) -> Turn:
    before = _work_ns(place.pid)
    per_second = native.read_all("ws-msgpack", place.port, READ)
    return Turn(1e6 / per_second, (_work_ns(place.pid) - before) / 1e3 / READ)


def _work_ns(pid: int) -> int:
    """How long the main thread of a process, which is its loop, was on a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])


if __name__ == "__main__":
    main()
