"""What does search cost the bus: appends with the index being made beside them and without, and the longest stalls?

Two buses, one with search and one without, take the same load in turn, A B, B A; before each turn the index has caught
up. A stall is what a ping over a WebSocket of its own waits, one every millisecond, from a process of its own: the
bus's loop, and whatever keeps it from a processor.

    python -m benchmarks.bench_search_cost [--small]
"""

import asyncio
import contextlib
import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import uvloop

from benchmarks.harness import ROOT, Served, caught_up, cpu_seconds, machine, percentiles_us, report, scratch, serving
from benchmarks.lock_load import UPGRADE, Client, Exchange, Http, WebSocket, Wire, frame, http, run
from benchmarks.search_texts import grown, recorded, remembered

QUESTION = "appends with search on against off (aim: 0.85), one client and 64; the longest wait of a ping"
TEXTS = 20_000
QUERIES = 500
SEARCHERS = 4
APPENDERS = 64
PING_SECONDS = 0.001
CATCHES_UP = "the index catches up"
"""With what the load before it appended."""


class Sizes(NamedTuple):
    """How much of everything."""

    rounds: int
    alone: int
    together: int
    stall_seconds: float


SMALL = Sizes(rounds=1, alone=50, together=5, stall_seconds=0.3)
FULL = Sizes(rounds=8, alone=2_000, together=200, stall_seconds=10.0)


def main() -> None:
    """First the appends, then the stalls."""
    if "--ping" in sys.argv:
        _ping(*sys.argv[sys.argv.index("--ping") + 1 :])
        return
    small = "--small" in sys.argv
    sizes = SMALL if small else FULL
    texts = list(grown(recorded(), TEXTS))
    with (
        scratch() as directory,
        serving(directory / "off", "--no-search") as off,
        serving(directory / "on", "--search") as on,
    ):
        buses = {"off": off, "on": on}
        figures = {
            "machine": machine(directory),
            "text_bytes": round(sum(map(len, texts)) / len(texts)),
            "one_client": _appends(buses, texts, clients=1, count=sizes.alone, rounds=sizes.rounds),
            f"clients_{APPENDERS}": _appends(
                buses, texts, clients=APPENDERS, count=sizes.together, rounds=sizes.rounds
            ),
            "stalls": _stalls(buses, texts, seconds=sizes.stall_seconds, rounds=sizes.rounds // 4 + 1),
        }
    report(QUESTION, figures, small=small)


# --- Appends ---------------------------------------------------------------------------------------------------------


class Says:
    """Appends over a WebSocket: the texts from its own place on, one after another."""

    def __init__(self, number: int, texts: Sequence[str]) -> None:
        self._frames = itertools.cycle(_said(number, text) for text in texts)

    def first(self) -> bytes:
        return UPGRADE

    def next(self, answer: bytes) -> Exchange:
        return Exchange("append", next(self._frames))


def _said(number: int, text: str) -> bytes:
    unit = {"context_id": f"session-{number}", "agent_id": f"agent-{number}", "payload": text[:20_000]}
    return frame({"op": "append", "id": 1, "unit": unit})


def _appenders(texts: Sequence[str], clients: int, count: int) -> list[Client]:
    return [Says(number, texts[number * count :] or texts) for number in range(clients)]


def _appends(
    buses: dict[str, Served], texts: Sequence[str], *, clients: int, count: int, rounds: int
) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in buses}
    rates: dict[str, list[float]] = {name: [] for name in buses}
    used: dict[str, list[float]] = {name: [] for name in buses}
    behind: list[float] = []
    for turn in range(rounds):
        for name in (*buses,) if turn % 2 == 0 else (*reversed(buses),):
            bus = buses[name]
            caught_up(buses["on"].host, buses["on"].port)
            before = cpu_seconds(bus.pid)
            found, took = uvloop.run(
                run((bus.host, bus.port), WebSocket, _appenders(texts, clients, count), count=count)
            )
            used[name].append((cpu_seconds(bus.pid) - before) / (clients * count))
            times[name] += found["append"]
            rates[name].append(clients * count / took)
            if name == "on":
                behind.append(caught_up(bus.host, bus.port))
    return {
        **{
            f"search_{name}": {
                "per_second": round(median(rates[name])),
                "append_us": percentiles_us(times[name]),
                "bus_cpu_us_per_append": round(1e6 * median(used[name]), 1),
            }
            for name in buses
        },
        "throughput_on_to_off": _ratio(rates["on"], rates["off"]),
        "bus_cpu_on_to_off": _ratio(used["on"], used["off"]),
        "seconds_the_index_needs_after_a_turn": round(median(behind), 2),
    }


def _ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """The median of each round's."""
    return round(median(one / max(other, 1e-9) for one, other in zip(ours, others, strict=True)), 2)


# --- Stalls ----------------------------------------------------------------------------------------------------------


class SearchAnswers(Http):
    """An index that appends left behind says so, and is an answer too."""

    accepted = (b"2", b"503")


class Searches:
    """One search after another."""

    def __init__(self, number: int, queries: Sequence[str]) -> None:
        asked = [*queries[number:], *queries[:number]]
        self._requests = itertools.cycle(http("POST", "/search", {"query": query}) for query in asked)
        self.answered = self.behind = 0

    def first(self) -> bytes:
        return b""

    def next(self, answer: bytes) -> Exchange:
        if answer:
            self.answered += 1
            self.behind += b'"SEARCH_BUILDING"' in answer
        return Exchange("search", next(self._requests))


Load = tuple[Callable[[], Wire], Sequence[Client]]


def _stalls(buses: dict[str, Served], texts: Sequence[str], *, seconds: float, rounds: int) -> dict[str, Any]:
    """What a ping waits under each kind of load, and what searches were answered meanwhile."""
    queries = remembered(texts, QUERIES)
    appending: Load = (WebSocket, _appenders(texts, 16, 1_000))
    alone, beside = ([Searches(number, queries) for number in range(SEARCHERS)] for _ in range(2))
    loads: dict[str, tuple[str, list[Load]]] = {
        "idle, search off": ("off", []),
        "idle, search on": ("on", []),
        "16 append, search off": ("off", [appending]),
        "16 append, search on": ("on", [appending]),
        CATCHES_UP: ("on", []),
        "4 search": ("on", [(SearchAnswers, alone)]),
        "4 search, 16 append": ("on", [(SearchAnswers, beside), appending]),
    }
    waits: dict[str, list[float]] = {name: [] for name in loads}
    for _ in range(rounds):
        for name, (bus, some) in loads.items():
            if name != CATCHES_UP:
                caught_up(buses["on"].host, buses["on"].port)
            with _pinged(buses[bus], seconds) as waited:
                uvloop.run(_loaded(buses[bus], some, seconds))
            waits[name] += waited
    return {
        "ping_us": {name: percentiles_us(some) for name, some in waits.items()},
        "searches": {
            name: {
                "answered_per_second": round(sum(one.answered for one in some) / (rounds * seconds), 1),
                "of_them_told_that_the_index_is_behind": sum(one.behind for one in some),
            }
            for name, some in (("4 search", alone), ("4 search, 16 append", beside))
        },
    }


async def _loaded(bus: Served, loads: Sequence[Load], seconds: float) -> None:
    """All of these at once, for so long."""
    tasks = [asyncio.ensure_future(run((bus.host, bus.port), wire, clients, count=10**9)) for wire, clients in loads]
    await asyncio.wait([*tasks, asyncio.ensure_future(asyncio.sleep(seconds))], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        assert not task.done(), task.exception()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _pinged(bus: Served, seconds: float) -> Iterator[list[float]]:
    """A list that holds how long each ping waited, once this is left."""
    waits: list[float] = []
    command = [sys.executable, "-m", "benchmarks.bench_search_cost", "--ping", bus.host, str(bus.port), str(seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None, "it is a pipe"
        assert process.stdout.readline() == b"begins\n"
        yield waits
        waits += json.loads(process.stdout.readline())
    assert process.returncode == 0


def _ping(host: str, port: str, seconds: str) -> None:
    """The other process: it pings, and says how long each took."""
    waits = []
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(UPGRADE)
        received = b""
        while b'"subscribed"' not in received:
            received += connection.recv(65_536)
        print("begins", flush=True)
        ping = frame({"op": "ping", "id": 1})
        end = time.perf_counter() + float(seconds)
        while (started := time.perf_counter()) < end:
            connection.sendall(ping)
            assert b'"pong"' in connection.recv(65_536)
            waits.append(time.perf_counter() - started)
            time.sleep(PING_SECONDS)
    print(json.dumps(waits), flush=True)


if __name__ == "__main__":
    main()
