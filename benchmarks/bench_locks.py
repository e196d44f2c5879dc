"""What does a lock cost beside a plain durable append, and how long from a release to the next in line?

python -m benchmarks.bench_locks [--small]

Redis (AOF, flushed on every write) and etcd stand beside it in the same rounds where they are installed
(`make tools-peers`; etcd: Debian's etcd-server); stderr names those that are not. etcd has fair queues and revisions
too, Redis neither.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import uvloop

from benchmarks import lock_load, peers
from benchmarks.harness import machine, percentiles_us, report, scratch, served
from benchmarks.lock_load import Client, Http, Redis, WebSocket, Wire

QUESTION = "acquire and release of a free lock as a ratio to a plain durable append; release to the next one's grant"

Address = tuple[str, int]
Load = tuple[Address, Callable[[], Wire], Callable[[int], Client]]


def main() -> None:
    """Every kind of load in turn, so that all meet the machine in the same mood."""
    small = "--small" in sys.argv
    rounds, single, many, turns = (1, 60, 4, 40) if small else (7, 1_000, 60, 800)
    with scratch() as directory, contextlib.ExitStack() as stack:
        bus = stack.enter_context(served(directory))
        loads: dict[str, Load] = {
            "http append": (bus, Http, lock_load.HttpAppends),
            "http lock": (bus, Http, lock_load.HttpLocks),
            "websocket append": (bus, WebSocket, lock_load.WebSocketAppends),
            "websocket lock": (bus, WebSocket, lock_load.WebSocketLocks),
        }
        contended: dict[str, Load] = {
            "http": (bus, Http, lambda number: lock_load.HttpLocks(number, shared_name="plan.md")),
            "websocket": (bus, WebSocket, lambda number: lock_load.WebSocketLocks(number, shared_name="plan.md")),
        }
        if (redis := stack.enter_context(peers.redis(directory))) is not None:
            loads["redis lock"] = (redis.address, Redis, lock_load.RedisLocks)
        if (etcd := stack.enter_context(peers.etcd(directory))) is not None:
            address, lease = etcd.address, peers.etcd_lease
            loads["etcd lock"] = (address, Http, lambda number: lock_load.EtcdLocks(number, lease=lease(address)))
            contended["etcd"] = (
                address,
                Http,
                lambda number: lock_load.EtcdLocks(number, lease=lease(address), shared_name="plan.md"),
            )
        figures = {
            "machine": machine(directory),
            "one_client": _compared(loads, clients=1, count=single, rounds=rounds),
            "clients_64": _compared(loads, clients=64, count=many, rounds=rounds),
            "handover": {name: _handover(load, turns=turns) for name, load in contended.items()},
        }
    report(QUESTION, figures, small=small)


def _compared(loads: dict[str, Load], *, clients: int, count: int, rounds: int) -> dict[str, Any]:
    times: dict[str, dict[str, list[float]]] = {name: {} for name in loads}
    rates: dict[str, list[float]] = {name: [] for name in loads}
    medians: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, (address, wire, make) in loads.items():
            found, took = uvloop.run(
                lock_load.run(address, wire, [make(number) for number in range(clients)], count=count)
            )
            rates[name].append(clients * count / took)
            for step, seconds in found.items():
                times[name].setdefault(step, []).extend(seconds)
                medians.setdefault(f"{name}/{step}", []).append(median(seconds))
    figures: dict[str, Any] = {
        name: {
            "per_second": round(median(rates[name])),
            **{f"{step}_us": percentiles_us(seconds) for step, seconds in steps.items()},
        }
        for name, steps in times.items()
    }
    for transport in ("http", "websocket"):
        appends = medians[f"{transport} append/append"]
        for step in ("acquire", "release"):
            ratios = [a / b for a, b in zip(medians[f"{transport} lock/{step}"], appends, strict=True)]
            figures[f"{transport} {step}_to_append_p50"] = round(median(ratios), 2)
    return figures


def _handover(load: Load, *, turns: int) -> dict[str, Any]:
    """Two clients want one lock all the time: from one's release being sent until the other's grant is read.

    An acquire that follows the own release waits for the other's whole turn; what is left of it without the other's
    exchange is the hand-over. So it is measured at the wire: both share a clock.
    """
    address, wire, make = load
    grants: list[float] = []
    marks: dict[str, float] = {}

    class Watching:
        """A client that notes when it let go, and how long after the other's letting go it was granted."""

        def __init__(self, number: int) -> None:
            self._client = make(number)
            self._number = number
            self._last = ""

        def first(self) -> bytes:
            return self._client.first()

        def next(self, answer: bytes) -> lock_load.Exchange:
            now = time.perf_counter()
            if self._last == "acquire" and "released" in marks and marks["by"] != self._number:
                grants.append(now - marks["released"])
            exchange = self._client.next(answer)
            self._last = exchange.name
            if exchange.name == "release":
                marks["released"], marks["by"] = time.perf_counter(), self._number
            return exchange

    uvloop.run(lock_load.run(address, wire, [Watching(0), Watching(1)], count=turns))
    return {"handovers": len(grants), "release_sent_to_grant_read_us": percentiles_us(grants)}


if __name__ == "__main__":
    main()
