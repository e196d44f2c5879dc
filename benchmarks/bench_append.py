"""What does a durable append cost in the bus itself, beside a bare write and fdatasync of as many bytes?

The floor and the bus take turns on the same disk in the same run: a disk's mood passes over both.

    python -m benchmarks.bench_append [--small]
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import lmdb
import uvloop

from benchmarks.harness import machine, percentiles_us, report, scratch
from engram_bus import Bus

QUESTION = "one durable append in process: the bus, bare LMDB, and a bare write with fdatasync, in turns"
PAYLOAD = "x" * 300
TOGETHER = 64


def main() -> None:
    """Rounds of each in turn; percentiles over all rounds, the ratio from their medians."""
    small = "--small" in sys.argv
    rounds, count = (3, 30) if small else (20, 500)
    with scratch() as directory:
        figures = {"machine": machine(directory), **uvloop.run(_measure(directory, rounds, count))}
    report(QUESTION, figures, small=small)


async def _measure(directory: Path, rounds: int, count: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {"fdatasync": [], "lmdb": [], "bus": [], "bus_together": []}
    env = lmdb.open(str(directory / "bare"), map_size=1 << 30)
    file = os.open(directory / "floor", os.O_WRONLY | os.O_CREAT)
    async with Bus.open(directory / "data") as bus:
        record = bytes(len(bus.log.record((await bus.append("plan", PAYLOAD, agent_id="ann")).seq).raw))
        for number in range(rounds):
            times["fdatasync"] += _written(file, record, number * count, count)
            times["lmdb"] += _put(env, record, number * count, count)
            times["bus"] += await _appended(bus, count)
            times["bus_together"] += await _appended_together(bus, max(1, count // TOGETHER))
    os.close(file)
    env.close()
    figures: dict[str, Any] = {f"{name}_us": percentiles_us(some) for name, some in times.items()}
    return {
        "record_bytes": len(record),
        **figures,
        "ratio_to_fdatasync_p50": round(figures["bus_us"]["p50"] / figures["fdatasync_us"]["p50"], 2),
        "ratio_to_lmdb_p50": round(figures["bus_us"]["p50"] / figures["lmdb_us"]["p50"], 2),
        "together": TOGETHER,
        "appends_per_second_together": round(TOGETHER / (figures["bus_together_us"]["p50"] / 1e6)),
    }


def _written(file: int, record: bytes, first: int, count: int) -> list[float]:
    times = []
    for place in range(first, first + count):
        started = time.perf_counter()
        os.pwrite(file, record, place * len(record))
        os.fdatasync(file)
        times.append(time.perf_counter() - started)
    return times


def _put(env: lmdb.Environment, record: bytes, first: int, count: int) -> list[float]:
    times = []
    for place in range(first, first + count):
        started = time.perf_counter()
        with env.begin(write=True) as txn:
            txn.put(place.to_bytes(8, "big"), record, append=True)
        times.append(time.perf_counter() - started)
    return times


async def _appended(bus: Bus, count: int) -> list[float]:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        await bus.append("plan", PAYLOAD, agent_id="ann")
        times.append(time.perf_counter() - started)
    return times


async def _appended_together(bus: Bus, count: int) -> list[float]:
    """As many in one turn as share a commit."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        await asyncio.gather(*(bus.append("plan", PAYLOAD, agent_id="ann") for _ in range(TOGETHER)))
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
