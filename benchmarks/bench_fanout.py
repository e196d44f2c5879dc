"""What does handing one committed unit to many subscribers cost the loop, their sockets aside?

The sinks take a frame and forget it; the floor is calling their `write` in a plain loop. A crowd that comes back at
once reads from the log of a real directory.

    python -m benchmarks.bench_fanout [--small]
"""

import asyncio
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.harness import machine, percentiles_us, report, scratch
from engram_bus import Bus, Draft, UnitType
from engram_bus.codec import Entry
from engram_bus.errors import EngramError
from engram_bus.log.memory import MemoryLog
from engram_bus.router.fanout import Fanout
from engram_bus.router.filters import Filter, make_filter
from engram_bus.subscribers.frames import JsonFraming

QUESTION = "one unit to N subscribers without sockets: in one lane, each with its own filter; and a crowd coming back"
FRAMING = JsonFraming()
PLAN = make_filter(contexts=["plan"])


class NullSink:
    """Takes everything and counts it."""

    __slots__ = ("frames",)

    def __init__(self) -> None:
        self.frames = 0

    @property
    def writable(self) -> bool:
        return True

    def write(self, frame: bytes) -> None:
        self.frames += 1

    @property
    def push(self) -> Callable[[bytes], object]:
        return self.write

    def end(self, error: EngramError, cursor: str) -> None:
        """The bench is over."""


def main() -> None:
    """Live first, then catching up, then memory."""
    small = "--small" in sys.argv
    offers, crowd_units = (20, 2_000) if small else (2_000, 50_000)
    with scratch() as directory:
        figures: dict[str, Any] = {"machine": machine(directory)}
        entries = uvloop.run(_entries(offers))
        for count in (100, 1_000):
            figures[f"{count}_subscribers"] = {
                "floor_us": percentiles_us(_floor(count, entries)),
                "one_filter_us": percentiles_us(uvloop.run(_offers(count, entries, lambda number: PLAN))),
                "own_filters_us": percentiles_us(uvloop.run(_offers(count, entries, _own_filter))),
            }
        figures["crowd"] = {
            name: uvloop.run(_crowd(directory / name, crowd_units, wanted))
            for name, wanted in (("one_filter", lambda number: PLAN), ("own_filters", _own_filter))
        }
        figures["bytes_per_live_feed"] = uvloop.run(_feed_bytes())
    report(QUESTION, figures, small=small)


def _own_filter(number: int) -> Filter:
    """Everyone but myself: what an agent usually wants."""
    return make_filter(contexts=["plan"], exclude_agents=[f"agent{number}"])


async def _entries(count: int) -> list[Entry]:
    async with Bus.open(None) as bus:
        units = [await bus.append("plan", "x" * 300, agent_id="ann") for _ in range(count)]
        return [bus.get(unit.id) for unit in units]


def _floor(count: int, entries: Sequence[Entry]) -> list[float]:
    sinks = [NullSink() for _ in range(count)]
    times = []
    for entry in entries:
        started = time.perf_counter()
        frame = FRAMING.units((entry,), "floor", entry.seq)
        for sink in sinks:
            sink.write(frame)
        times.append(time.perf_counter() - started)
    return times


async def _offers(count: int, entries: Sequence[Entry], wanted: Callable[[int], Filter]) -> list[float]:
    fanout = _fanout()
    sinks = [NullSink() for _ in range(count)]
    for number, sink in enumerate(sinks):
        fanout.subscribe(wanted(number), FRAMING, sink, 0)
    await _settled(fanout)
    times = []
    for entry in entries:
        # Anew, as the writer gives it: its JSON is made once for all of them.
        batch = (Entry(entry.seq, entry.body, entry.unit),)
        started = time.perf_counter()
        fanout.offer(batch)
        times.append(time.perf_counter() - started)
    assert all(sink.frames == 1 + len(entries) for sink in sinks)
    return times


async def _crowd(path: Path, units: int, wanted: Callable[[int], Filter]) -> dict[str, float]:
    """A hundred come back to the beginning of a log that is not in the ring: until all are live, and the turns."""
    async with Bus.open(path) as bus:
        for _ in range(units // 1_000):
            await bus.append_bulk(
                [Draft(context_id="plan", agent_id="ann", type=UnitType.MESSAGE, payload=b"x" * 300)] * 1_000
            )
    async with Bus.open(path) as bus:
        started = time.perf_counter()
        for number in range(100):
            bus.feed(wanted(number), FRAMING, NullSink(), 0)
        turns = []
        while bus.fanout.furthest_behind:
            turn = time.perf_counter()
            await asyncio.sleep(0)
            turns.append(time.perf_counter() - turn)
        seconds = time.perf_counter() - started
    return {
        "units": units,
        "seconds": round(seconds, 3),
        "delivered_units_per_second": round(100 * units / seconds),
        **{f"turn_{name}_us": value for name, value in percentiles_us(turns).items()},
    }


async def _feed_bytes(count: int = 1_000) -> int:
    """What one more live feed holds in memory, its socket aside."""
    fanout = _fanout()
    sinks = [NullSink() for _ in range(count)]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for sink in sinks:
        fanout.subscribe(PLAN, FRAMING, sink, 0)
    await _settled(fanout)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) // count


def _fanout() -> Fanout:
    return Fanout(MemoryLog(), heartbeat_seconds=15, stall_seconds=30)


async def _settled(fanout: Fanout) -> None:
    """Until everyone is live."""
    while fanout._catching_up:
        await asyncio.sleep(0)


if __name__ == "__main__":
    main()
