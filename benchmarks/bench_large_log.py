"""What grows with the log? Appends, reads, restarts, memory and disk, from ten thousand units to ten million.

One log grows from each size to the next, over 100,000 contexts. What was measured of it is kept beside it, so a run
that was ended goes on. A size that the log has outgrown keeps the figures it had, and says which commit measured them:
name a new directory for new ones.

    python -m benchmarks.bench_large_log [--small] [--dir DIR] [--again] [--search-alone] [--units-max N]
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from benchmarks import native
from benchmarks.harness import (
    Served,
    caught_up,
    children,
    commit,
    cpu_seconds,
    keep,
    leave_nothing_behind,
    machine,
    mapped_bytes,
    percentiles_us,
    resident_bytes,
    scratch,
    serving,
)
from benchmarks.large_log import CONTEXTS, PAYLOAD_BYTES, Content, conversations, grow
from benchmarks.rounds import Flushes, appended, in_turn
from engram_bus import Bus, Draft
from engram_bus.limits import MIB, SNAPSHOT_UNITS

QUESTION = "what grows with the log: appends, reads, restarts, memory and disk at each size"
HTTP_BULK = 500
STEP = 1_000_000
"""So many units are written between two looks at whether the run is ended: minutes, at most."""


class Sizes(NamedTuple):
    """How much of everything."""

    logs: Sequence[int]
    with_search: int
    rounds: int
    seconds: float
    reads: int
    restarts: int
    from_zero: int


SMALL = Sizes([1_000, 10_000], with_search=500, rounds=1, seconds=0.1, reads=20, restarts=1, from_zero=1_000)
FULL = Sizes(
    [10_000, 100_000, 1_000_000, 10_000_000],
    with_search=1_000_000,
    rounds=5,
    seconds=1.0,
    reads=1_000,
    restarts=5,
    from_zero=1_000_000,
)


def main() -> None:
    """Every size that this commit has not measured, then the log with search."""
    options = _options()
    sizes = SMALL if options.small else FULL
    leave_nothing_behind()
    with contextlib.ExitStack() as stack:
        if options.small:
            options.dir = stack.enter_context(scratch())
        options.dir.mkdir(parents=True, exist_ok=True)
        _measure(LargeLog(options.dir, sizes), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench_large_log"
    )
    usual = Path(os.environ.get("ENGRAM_BENCH_DIR", "/var/tmp")) / "engram-large-log"
    parser.add_argument("--small", action="store_true", help="a thousand units and ten thousand, in a few seconds")
    parser.add_argument("--dir", type=Path, default=usual, help="where the log lies and stays (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="also what this commit has measured")
    parser.add_argument("--search-alone", action="store_true", help="the log with search, and no other size")
    parser.add_argument("--units-max", type=int, default=FULL.logs[-1], help="no larger log (default: %(default)s)")
    return parser.parse_args()


def _measure(log: "LargeLog", options: argparse.Namespace) -> None:
    done = log.kept()
    rows: dict[str, Any] = {} if options.again else {name: row for name, row in done.items() if _is_of_now(row)}
    wanted: dict[str, Callable[[], Mapping[str, Any]]] = {
        str(units): partial(log.row, units)
        for units in log.sizes.logs
        if units <= options.units_max and not options.search_alone
    }
    if log.sizes.with_search <= options.units_max:
        wanted["search"] = log.with_search
    for name, row in wanted.items():
        if name in rows:
            continue
        if name != "search" and log.has_outgrown(int(name)):
            print(f"{log.directory} holds more than {name} units already", file=sys.stderr)
            continue
        done[name] = {**log.about(), **row()}
        log.keep(done)
        print(json.dumps({name: done[name]}, indent=2), flush=True)
        if not options.small:
            keep(QUESTION, _figures(log, done))


def _is_of_now(row: Mapping[str, Any]) -> bool:
    return bool(row["commit"] == commit())


def _figures(log: "LargeLog", done: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "sizes": [done[str(units)] for units in log.sizes.logs if str(units) in done],
        "with_search": done.get("search"),
    }


class LargeLog:
    """A log in a directory, and what was measured of it."""

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        self.directory = directory
        self.sizes = sizes
        self._content = Content()
        self._draw = random.Random(1)

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def kept(self) -> dict[str, Any]:
        return _read(self.directory / "measured.json")

    def keep(self, done: Mapping[str, Any]) -> None:
        _write(self.directory / "measured.json", done)

    def about(self) -> Mapping[str, Any]:
        """Where what is measured now comes from: each row keeps its own."""
        return {
            **machine(self.directory),
            "pinned": native.pinned(),
            "payload_bytes": PAYLOAD_BYTES,
            "contexts": CONTEXTS,
            "rounds": self.sizes.rounds,
        }

    def has_outgrown(self, units: int) -> bool:
        """Whether what was measured at another size, or an append of a measurement, is not all that is beyond it."""
        return self._data.exists() and uvloop.run(_head(self._data)) > units + units // 2 + SNAPSHOT_UNITS

    def row(self, units: int) -> Mapping[str, Any]:
        """All figures at one size."""
        row: dict[str, Any] = {"units": units}
        row |= self._grown(units)
        fold = min(SNAPSHOT_UNITS - 10 * HTTP_BULK, units // 2)
        row |= {"units_folded_after_kill": fold, **_restarts("kill", self._killed(fold))}
        for file in self._data.rglob("data.mdb"):
            _remember_pages(file)
        row |= self._served(units)
        row |= _restarts("stop", [self._restarted() for _ in range(self.sizes.restarts)])
        row |= uvloop.run(self._in_process())
        row |= {"disk_bytes_per_unit": self._disk_bytes_per_unit()}
        # Last, for then little of the files is in memory.
        reboot = self._rebooted()
        row |= {"restart_after_reboot_seconds": reboot.seconds, "restart_after_reboot_cpu_seconds": reboot.cpu_seconds}
        return row

    def _grown(self, units: int) -> Mapping[str, Any]:
        """How fast the last of them were written, as this commit or an earlier one found it."""
        written: dict[str, Any] = _read(self.directory / "written.json")
        while (head := uvloop.run(_head(self._data))) < units:
            step = uvloop.run(grow(self._data, self._content, units=min(units, head + STEP)))
            written[str(units)] = {
                "commit": commit(),
                "units": step.units,
                "units_per_second": round(step.units / step.seconds),
                "cpu_us_per_unit": round(step.cpu_seconds / step.units * 1e6, 1),
            }
            _write(self.directory / "written.json", written)
        return {"write": written.get(str(units))}

    # --- Restarts ----------------------------------------------------------------------------------------------------

    def _killed(self, fold: int) -> Sequence["Restart"]:
        """Restarts after kills, with so many units behind the newest snapshot: 100,000 at most are ever there."""
        with serving(self.directory, "--no-search", kill=True) as bus:
            _post(bus, self._content, fold)
        return [self._restarted(kill=True) for _ in range(self.sizes.restarts)]

    def _restarted(self, *, kill: bool = False) -> "Restart":
        started = time.perf_counter()
        with serving(self.directory, "--no-search", kill=kill) as bus:
            assert json.loads(next(got(bus, ["/readyz"])).body)["ready"]
            return Restart(round(time.perf_counter() - started, 3), round(cpu_seconds(bus.pid), 2))

    def _rebooted(self) -> "Restart":
        """As after a clean stop and a new start of the machine: nothing of the files is in memory."""
        for file in self._data.rglob("data.mdb"):
            _forget_pages(file)
        mark = self._data / "tenants" / "default" / "index" / "mark"
        mark.write_text(
            json.dumps(json.loads(mark.read_text(encoding="utf-8")) | {"boot": "another"}), encoding="utf-8"
        )
        return self._restarted()

    # --- Over sockets ------------------------------------------------------------------------------------------------

    def _served(self, units: int) -> Mapping[str, Any]:
        """Of one process that was started after a kill, until it was told to stop."""
        asked = self._asked()
        with serving(self.directory, "--no-search", core=native.SERVER_CORE) as bus:
            started_mib = _memory_mib(bus.pid)
            figures = {**_appends({"append": bus}, self.directory, self.sizes), **_asked_over_http(bus, asked)}
            from_zero = min(units, self.sizes.from_zero)
            figures |= {
                "read_from_zero_units": from_zero,
                "read_from_zero_units_per_second": round(
                    native.read_all("ws-msgpack", bus.port, from_zero, context="*")
                ),
                "memory_mib": {"after_start": started_mib, "after_reads": _memory_mib(bus.pid)},
            }
            stopped = time.perf_counter()
        return figures | {"stop_seconds": round(time.perf_counter() - stopped, 3)}

    def _asked(self) -> "Asked":
        return uvloop.run(_drawn(self._data, self.sizes.reads, self._draw))

    # --- In process --------------------------------------------------------------------------------------------------

    async def _in_process(self) -> Mapping[str, Any]:
        asked = await _drawn(self._data, self.sizes.reads, self._draw)
        async with Bus.open(self._data) as bus:
            first, units = _timed_lists(bus, asked.conversations)
            lately, _ = _timed_lists(bus, [*asked.conversations[-20:]] * (len(asked.conversations) // 20 + 1))
            scattered, scattered_units = _timed_lists(bus, asked.contexts)
            gets = [_timed(partial(bus.get, unit_id)) for unit_id in asked.ids]
        return {
            "last_100_in_process_us": {
                "first": percentiles_us(first),
                "lately": percentiles_us(lately),
                "units": units,
                "scattered": percentiles_us(scattered),
                "scattered_units": scattered_units,
            },
            "get_in_process_us": percentiles_us(gets),
        }

    def _disk_bytes_per_unit(self) -> Mapping[str, int]:
        head = uvloop.run(_head(self._data))
        tenant = self._data / "tenants" / "default"
        return {name: (tenant / name / "data.mdb").stat().st_blocks * 512 // head for name in ("log", "index")}

    # --- With search -------------------------------------------------------------------------------------------------

    def with_search(self) -> Mapping[str, Any]:
        """Two logs of their own, one with search: how fast it takes them in, and what appends get beside it."""
        directory, units = self.directory / "search", self.sizes.with_search
        logs = {name: directory / name for name in ("search on", "search off")}
        uvloop.run(grow(logs["search on"] / "data", self._content, units=units))
        shutil.copytree(logs["search on"] / "data", logs["search off"] / "data", dirs_exist_ok=True)
        with (
            serving(logs["search on"], "--search", core=native.SERVER_CORE) as bus,
            serving(logs["search off"], "--no-search", core=native.SERVER_CORE) as without,
        ):
            taken, seconds = _taken_seq(bus), caught_up(bus.host, bus.port)
            taken_mib = {"bus": _memory_mib(bus.pid), "search": _memory_mib(*children(bus.pid))}
            buses = {"search on": bus, "search off": without}
            one = _appends(buses, directory, self.sizes)
            many = _appends(buses, directory, self.sizes, clients=64)
        shutil.rmtree(directory)
        return {
            "units": units,
            "taken_in_units_per_second": round((units - taken) / seconds) if taken < units else None,
            "memory_mib": taken_mib,
            "one_client": one,
            "clients_64": many,
        }


def _taken_seq(bus: Served) -> int:
    """How far search has come: not at the beginning, where a run that was ended goes on."""
    return int(json.loads(next(got(bus, ["/status"])).body)["search"]["taken_seq"])


class Restart(NamedTuple):
    """From the start of the process until it is ready."""

    seconds: float
    cpu_seconds: float


def _restarts(after: str, restarts: Sequence[Restart]) -> Mapping[str, Any]:
    return {
        f"restart_after_{after}_seconds": [one.seconds for one in restarts],
        f"restart_after_{after}_cpu_seconds": [one.cpu_seconds for one in restarts],
    }


class Asked(NamedTuple):
    """What is read: each for the first time by who is asked."""

    conversations: Sequence[str]
    contexts: Sequence[str]
    ids: Sequence[str]


async def _drawn(path: Path, reads: int, draw: random.Random) -> Asked:
    async with Bus.open(path) as bus:
        names = conversations(bus.head)
        ids = [bus.log.record(draw.randint(1, bus.head)).unit.id for _ in range(reads)]
    names = draw.sample(names, min(reads, len(names)))
    return Asked(names, [f"context/{number}" for number in draw.sample(range(CONTEXTS), reads)], ids)


async def _head(path: Path) -> int:
    async with Bus.open(path) as bus:
        return bus.head


async def last_100(path: Path, reads: int, contexts: int) -> tuple[list[float], list[float]]:
    """How long each read of the last 100 of one of `context/0`, `context/1`, ... takes, in seconds: of each context
    after its first, and those first."""
    draw = random.Random(2)
    async with Bus.open(path) as bus:
        first, _ = _timed_lists(bus, [f"context/{number}" for number in range(contexts)])
        again, _ = _timed_lists(bus, [f"context/{draw.randrange(contexts)}" for _ in range(reads)])
    return again, first


def _timed_lists(bus: Bus, context_ids: Iterable[str]) -> tuple[list[float], float]:
    """Of each the last 100: how long it took, and how many units it held on average."""
    times, units = [], 0
    for context_id in context_ids:
        started = time.perf_counter()
        page = bus.list(context_id, limit=100, reverse=True)
        times.append(time.perf_counter() - started)
        units += len(page.entries)
    return times, round(units / len(times), 1)


def _timed(what: Callable[[], object]) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def _appends(buses: Mapping[str, Served], directory: Path, sizes: Sizes, *, clients: int = 1) -> dict[str, Any]:
    """Durable appends over WebSocket, in turns of each bus, once its search has caught up, and of the disk's own
    flushes."""
    flushes, used = Flushes(directory), dict.fromkeys(buses, 0.0)

    def turn(name: str, bus: Served) -> native.Appended:
        caught_up(bus.host, bus.port)
        before = cpu_seconds(bus.pid)
        run = native.appends("ws", bus.port, clients=clients, seconds=sizes.seconds)
        used[name] += cpu_seconds(bus.pid) - before
        return run

    turns: dict[str, Callable[[], Any]] = {name: partial(turn, name, bus) for name, bus in buses.items()}
    found = in_turn({**turns, "disk": flushes.measure}, rounds=sizes.rounds)
    figures = {}
    for name in buses:
        units = sum([len(run.times) for run in found[name]])
        figures[name] = {**appended(found[name]), "bus_cpu_us": round(used[name] / units * 1e6, 1)}
    return {**figures, "disk": flushes.figures()}


def _asked_over_http(bus: Served, asked: Asked) -> dict[str, Any]:
    first = [last_100_of(name) for name in asked.conversations]
    lately = first[-20:] * (len(first) // 20 + 1)
    return {
        "last_100_over_http_us": {
            "first": percentiles_us([one.seconds for one in got(bus, first)]),
            "lately": percentiles_us([one.seconds for one in got(bus, lately)]),
            "scattered": percentiles_us([one.seconds for one in got(bus, map(last_100_of, asked.contexts))]),
        },
        "get_over_http_us": percentiles_us(
            [one.seconds for one in got(bus, [f"/workunit/{unit_id}" for unit_id in asked.ids])]
        ),
    }


def last_100_of(context_id: str) -> str:
    """What to GET for the last 100 of a context."""
    return f"/workunits/{context_id}?reverse=true&limit=100"


# --- HTTP ------------------------------------------------------------------------------------------------------------


class Got(NamedTuple):
    """One answer."""

    seconds: float
    body: bytes


def got(bus: Served, paths: Iterable[str]) -> Iterator[Got]:
    """One after the other, on one connection."""
    with _connected(bus) as connection:
        for path in paths:
            started = time.perf_counter()
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: {bus.host}\r\n\r\n".encode())
            body = _body(connection)
            yield Got(time.perf_counter() - started, body)


def _post(bus: Served, content: Content, units: int) -> None:
    """Append so many, as they would have been next."""
    head = json.loads(next(got(bus, ["/status"])).body)["head"]
    with _connected(bus) as connection:
        for first in range(head + 1, head + units + 1, HTTP_BULK):
            drafts = content.drafts(first, min(HTTP_BULK, head + units + 1 - first))
            body = json.dumps([_said(draft) for draft in drafts]).encode()
            said = f"POST /workunits HTTP/1.1\r\nhost: {bus.host}\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{said}content-length: {len(body)}\r\n\r\n".encode() + body)
            _body(connection)


def _said(draft: Draft) -> Mapping[str, str]:
    return {"context_id": draft.context_id, "agent_id": draft.agent_id, "payload": draft.payload.decode()}


def _connected(bus: Served) -> socket.socket:
    connection = socket.create_connection((bus.host, bus.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _body(connection: socket.socket) -> bytes:
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(262_144)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b" ", 2)[1].startswith(b"2"), answer[:600]
    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    parts = [body]
    left = size - len(body)
    while left > 0:
        parts.append(connection.recv(262_144))
        left -= len(parts[-1])
    return b"".join(parts)


# --- The process and its files ---------------------------------------------------------------------------------------


def _memory_mib(*pids: int) -> Mapping[str, float]:
    """Its own pages, and those of files that it maps: the operating system takes these back where it needs them."""
    return {
        "own": round(sum(map(resident_bytes, pids)) / MIB, 1),
        "of_files": round(sum(map(mapped_bytes, pids)) / MIB, 1),
    }


def _read(file: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return kept


def _write(file: Path, kept: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _remember_pages(file: Path) -> None:
    """Have all of it in memory, as after it was written; an earlier run may have left it on the disk alone."""
    with file.open("rb") as content:
        while content.read(MIB):
            pass


def _forget_pages(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())
        os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
