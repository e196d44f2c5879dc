"""A bus that can be brought into the stages of proto/vectors/README.md: `python -m tests.conformance.staged_bus DATA`.

It prints where it is (URL and gRPC port, of the bus and of one with a history), is told a stage in a line over stdin,
and says `ok` when it is so. Faults lie below the contracts of the bus's parts: the log refuses and cannot be read, the
sink of a subscription takes nothing, the search process dies or is behind. It ends with its stdin.

The buses run in a child, which is forked (nothing is imported again), killed and forked again.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import uvloop

from engram_bus.clock import wall_us
from engram_bus.codec import Entry
from engram_bus.embedded import Bus
from engram_bus.errors import EngramError, LogSilent, StorageFailed, StorageFull, StorageReadOnly
from engram_bus.limits import MIB, QUEUE_BYTES_MAX
from engram_bus.log.contract import Epoch
from engram_bus.log.directory import DataDirectory
from engram_bus.log.lmdb import LmdbLog
from engram_bus.log.memory import MemoryLog
from engram_bus.log.record import Record, RecordError
from engram_bus.newest import Newest
from engram_bus.ports import listen
from engram_bus.projections.search.messages import Ask, Behind, ToSearch, packed
from engram_bus.projections.search.searcher import RESTART_SECONDS, Searcher
from engram_bus.router.fanout import Feed
from engram_bus.serve import GrpcAddress, _Server, edge_of
from engram_bus.units import Draft, UnitType, ts_text

EPOCHS = (Epoch("e1", 1), Epoch("e2", 4), Epoch("e3", 6))
HISTORY_UNITS = 8
Ports = Sequence[int]
"""HTTP and gRPC of the usual bus, then of the one with a history; 0 takes a free one."""
NEVER_SECONDS = 1e6


class StagedLog(LmdbLog):
    """A log on a disk that refuses what it is told to, and does not give back what it is told to have lost."""

    def __init__(self, path: Path) -> None:
        self.refusal: EngramError | None = None
        self.damaged: set[int] = set()
        super().__init__(path)

    def append(self, records: Sequence[Record]) -> None:
        if self.refusal is not None:
            raise self.refusal
        super().append(records)

    def probe(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        super().probe()

    def read(self, after: int, *, units_max: int, bytes_max: int) -> list[Entry]:
        if after + 1 in self.damaged:
            raise self._damaged(after + 1, RecordError("checksum does not match"))
        first = min((seq for seq in self.damaged if seq > after), default=self.head + 1)
        return super().read(after, units_max=min(units_max, first - after - 1), bytes_max=bytes_max)

    def _raw(self, txn: lmdb.Transaction, seq: int) -> bytes:
        raw = super()._raw(txn, seq)
        return bytes((*raw[:-1], raw[-1] ^ 1)) if seq in self.damaged else raw


class Frozen:
    """The sink of a subscriber that takes nothing any more, until it is ended."""

    writable = False

    def __init__(self, sink: Any) -> None:  # of its transport's own frames
        self._sink = sink

    def write(self, frame: Any) -> None:
        """It does not arrive."""

    @property
    def push(self) -> Callable[[Any], object]:
        return self.write

    def end(self, error: EngramError, cursor: str) -> None:
        self._sink.end(error, cursor)


class Stage:
    """One bus and what can be done to it."""

    def __init__(self, data: Path) -> None:
        self._directory = DataDirectory(data, created_at=ts_text(wall_us()))
        self._log = StagedLog(self._directory.tenant())
        self.bus = Bus(self._log, directory=self._directory)
        self._is_search_away = False
        self._stages: dict[str, Callable[[], None]] = {
            "storage_full": lambda: self._refuse(StorageFull("1 MiB is kept in reserve", limit=MIB)),
            "storage_read_only": lambda: self._refuse(StorageReadOnly("the disk is mounted to be read only")),
            "storage_failed": lambda: self._refuse(StorageFailed("the disk failed: Input/output error")),
            "log_silent": lambda: self._refuse(LogSilent("the log process has said nothing for 5 s")),
            "storage_well": self._storage_well,
            "damage": self._damage,
            "busy": self._busy,
            "idle": self._idle,
            "stall": self._stall,
            "mistake": self._mistake,
            "search_building": self._search_building,
            "search_away": self._search_away,
            "search_well": self._search_well,
            "well": self._well,
        }

    def set(self, stage: str) -> None:
        self._stages[stage]()

    # --- The disk ----------------------------------------------------------------------------------------------------

    def _refuse(self, refusal: EngramError) -> None:
        self._log.refusal = refusal

    def _storage_well(self) -> None:
        self._log.refusal = None
        if self.bus.writer._probe is not None:
            self.bus.writer._probe.cancel()
        self.bus.writer.check()  # now, and not half a second later

    def _damage(self) -> None:
        self._log.settle()  # What is in memory alone is not damaged.
        self.bus._newest = Newest()
        self._log.damaged.add(self.bus.head)
        ring = self.bus.fanout._ring
        ring._entries.clear()  # who is behind reads the log
        ring._bytes = 0
        self.bus.fanout.pages.forget()

    # --- The writer --------------------------------------------------------------------------------------------------

    def _busy(self) -> None:
        self._idle()
        self.bus.writer._queue_bytes += QUEUE_BYTES_MAX

    def _idle(self) -> None:
        if self.bus.writer._queue_bytes >= QUEUE_BYTES_MAX:
            self.bus.writer._queue_bytes -= QUEUE_BYTES_MAX

    def _mistake(self) -> None:
        state = self.bus.writer.state

        def mistaken(append: Any, stamp: Any) -> None:
            del state.check_append  # type: ignore[method-assign]
            raise ZeroDivisionError("a mistake")

        state.check_append = mistaken  # type: ignore[method-assign]

    # --- Subscribers -------------------------------------------------------------------------------------------------

    def _stall(self) -> None:
        self.bus.fanout._stall_seconds = 1
        for feed in list(self.bus.fanout._feeds):
            _freeze(feed)

    # --- Search ------------------------------------------------------------------------------------------------------

    def _search_building(self) -> None:
        self._search_well()
        searcher = self._searcher()

        def behind(message: ToSearch) -> None:
            if isinstance(message, Ask):
                asyncio.get_running_loop().call_soon(searcher.data_received, packed(Behind(message.id, 0)))

        searcher._send = behind  # type: ignore[method-assign]

    def _search_away(self) -> None:
        self._search_well()
        searcher = self._searcher()
        searcher._restart_seconds = NEVER_SECONDS
        self._is_search_away = True
        assert searcher._process is not None
        searcher._process.kill()

    def _search_well(self) -> None:
        if not isinstance(self.bus.searcher, Searcher):
            return
        searcher = self.bus.searcher
        vars(searcher).pop("_send", None)
        if self._is_search_away:
            self._is_search_away = False
            searcher._restart_seconds = RESTART_SECONDS
            if searcher._restart is not None:
                searcher._restart.cancel()
                searcher._again()

    def _searcher(self) -> Searcher:
        searcher = self.bus.start_search()
        assert isinstance(searcher, Searcher)
        return searcher

    def _well(self) -> None:
        if self._log.refusal is not None:
            self._storage_well()
        self._idle()
        self._search_well()
        vars(self.bus.writer.state).pop("check_append", None)
        self._log.damaged.clear()


def _freeze(feed: Feed) -> None:
    feed.sink = Frozen(feed.sink)
    feed.full()


async def history() -> Bus:
    """A bus with a past: its log was restored to an earlier place, twice."""
    bus = Bus(MemoryLog(EPOCHS))
    drafts = [
        Draft(context_id="plan", agent_id="ann", type=UnitType.MESSAGE, payload=str(number).encode())
        for number in range(1, HISTORY_UNITS + 1)
    ]
    await bus.append_bulk(drafts)
    return bus


async def serve(data: Path, ports: Ports, line: socket.socket) -> None:
    """In the child: both buses, until SIGTERM or the end of the line, over which stages come."""
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    stage, past = Stage(data), await history()

    def obey() -> None:
        if said := line.recv(100):
            stage.set(said.decode())
            line.sendall(b"ok")
        else:
            loop.remove_reader(line)
            end.set()

    async with _served(stage.bus, ports[:2], end) as usual, _served(past, ports[2:], end) as other:
        line.sendall(" ".join(map(str, (*usual, *other))).encode())
        loop.add_reader(line, obey)
        await end.wait()
    await stage.bus.stop("shutdown")
    await past.stop("shutdown")


@contextlib.asynccontextmanager
async def _served(bus: Bus, ports: Sequence[int], end: asyncio.Event) -> AsyncIterator[tuple[int, int]]:
    """A bus that answers, at these ports (of HTTP and gRPC)."""
    started = asyncio.Event()
    with listen("127.0.0.1", ports[0]) as listener:
        server = edge_of(bus, grpc=GrpcAddress("127.0.0.1", ports[1], reflects=False), started=started.set)
        # uvicorn's own looks ten times a second whether it should end.
        server.main_loop = end.wait  # type: ignore[method-assign, assignment]
        serving = asyncio.create_task(server._serve(sockets=[listener]))
        await started.wait()
        assert isinstance(server, _Server)
        assert server._health.grpc_port is not None
        yield listener.getsockname()[1], server._health.grpc_port
        await serving


class Child:
    """The process that serves."""

    def __init__(self, data: Path, ports: Ports) -> None:
        self._line, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            self._line.close()
            sys.stdin.close()
            uvloop.run(serve(data, ports, theirs))
            os._exit(0)
        theirs.close()
        self.ports = [int(port) for port in self._line.recv(100).split()]

    def set(self, stage: str) -> None:
        self._line.sendall(stage.encode())
        assert self._line.recv(100) == b"ok", f"no answer to {stage!r}"

    def end(self, how: signal.Signals) -> None:
        os.kill(self._pid, how)
        os.waitpid(self._pid, 0)
        self._line.close()


def main() -> None:
    data = Path(sys.argv[1])
    child = Child(data, [0, 0, 0, 0])
    print(*child.ports, flush=True)
    for line in sys.stdin:
        match line.strip():
            case "restart" | "kill" as how:
                child.end(signal.SIGTERM if how == "restart" else signal.SIGKILL)
                child = Child(data, child.ports)
            case stage:
                child.set(stage)
        print("ok", flush=True)
    child.end(signal.SIGTERM)


if __name__ == "__main__":
    logging.basicConfig(level="CRITICAL")
    main()
