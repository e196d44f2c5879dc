"""The one process that decides and records: `python -m engram_bus.workers.log_process ORDER`.

It is a `Bus` without an edge. Each worker is a subscriber of everything, with the records themselves as its frames: so
one that is slow falls behind and reads on from the log as any other, and one that takes nothing is cut off.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from engram_bus import clock, process
from engram_bus.bus.writer import Answer, Ticket, Writer
from engram_bus.codec import Entry
from engram_bus.embedded import Bus, Counts
from engram_bus.errors import DataDirectoryError, EngramError, InternalError
from engram_bus.limits import GIB, WORKER_LINE_BYTES, WORKER_STALL_SECONDS, WORKER_TALLY_SECONDS
from engram_bus.log.lmdb import LmdbLog
from engram_bus.log.record import Record
from engram_bus.projections.search.messages import State as IndexState
from engram_bus.router.filters import make_filter
from engram_bus.units import AcquireLock
from engram_bus.workers.line import HeadWord, Line, Silence
from engram_bus.workers.messages import (
    Answered,
    Answers,
    Cancel,
    Committed,
    EndSession,
    Find,
    Hello,
    Outcome,
    Readiness,
    SearchState,
    Settled,
    Skipped,
    StartSearch,
    Submit,
    Tally,
    Totals,
    ToWorker,
    command_of,
    decode_to_log_process,
    framed,
    refusal_of,
)
from engram_bus.workers.orders import Cut, Failed, LogOrder, Opened, control_of, decode_order, taken, told

log = logging.getLogger("engram_bus")

EVERYTHING = make_filter(contexts=("*",))


class ToldLog(LmdbLog):
    """The log on the disk, whose newest records are at hand as they lie there."""

    on_durable: Callable[[int], None] | None = None
    """Called with the head when a commit is durable, before anyone else hears of it."""
    on_reopened: Callable[[], None] | None = None
    """Called when its files were closed and opened again: who reads them beside this process may hold others now."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self._newest: Sequence[Record] = ()
        super().__init__(*args, **named)

    @property
    def path(self) -> Path:
        return self._path

    @property
    def size_bytes_max(self) -> int:
        return self._size_bytes_max

    def append(self, records: Sequence[Record]) -> None:
        super().append(records)
        self._newest = records
        if self.on_durable is not None:
            self.on_durable(self.head)

    def _reopen_writable(self) -> None:
        super()._reopen_writable()
        if self.on_reopened is not None:
            self.on_reopened()

    def raw_record(self, seq: int) -> bytes:
        """Raises LogDamaged."""
        place = seq - self._newest[0].unit.seq if self._newest else -1
        return self._newest[place].raw if 0 <= place < len(self._newest) else self.record(seq).raw

    def forget_dead_readers(self) -> None:
        """A process died that may have been reading: the pages it saw cannot be used again before."""
        self._env.reader_check()
        self._index.forget_dead_readers()


class _Framing:
    """Committed records as workers take them: made once for all of them."""

    def __init__(self, told_log: ToldLog) -> None:
        self._log = told_log

    def subscribed(self, cursor: str, head: int) -> bytes:
        return b""

    def units(self, entries: Sequence[Entry], epoch: str, seq: int) -> bytes:
        raws = [self._log.raw_record(entry.seq) for entry in entries]
        return framed(Committed(entries[0].seq, raws, self._log.settled))

    def heartbeat(self, cursor: str, head: int) -> bytes:
        return b""

    def gap(self, first: int, last: int, reason: str, cursor: str) -> bytes:
        return framed(Skipped(first, last))

    def goaway(self, reason: str, retry_after_ms: int, cursor: str) -> bytes:
        return b""


class LogBus(Bus):
    """The bus that all workers share."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self.workers: dict[int, Worker] = {}
        super().__init__(*args, **named)

    def share(self, word: HeadWord, cut: Callable[[Cut], None]) -> None:
        """Begin to hand out what is committed; `cut` is told of a worker that has to be started again."""
        assert isinstance(self.log, ToldLog), "it was opened with one"
        assert isinstance(self.writer, Writer), "it decides itself"
        self.told_log = self.log
        self.own_writer = self.writer
        self.cut = cut
        self.framing = _Framing(self.log)
        self._word = word
        word.head = self.log.head
        self.log.on_durable = self._set_head
        self.log.on_reopened = self._begin_all_anew
        self._told_search: IndexState | None = None
        self._next_tally = asyncio.get_running_loop().call_later(WORKER_TALLY_SECONDS, self._tally)
        self.on_ready.append(self._tell_workers_ready)

    def add(self, serial: int, end: socket.socket) -> None:
        """A worker begins, for the first time or again. It hears of everything after the state it is given."""
        if not self.own_writer.is_folded:
            end.close()
            self.cut(Cut(serial, "the log cannot be read"))
            return
        # Who was there before has ended by now.
        self.told_log.forget_dead_readers()
        worker = self.workers[serial] = Worker(self, serial, end)
        worker.say(self._hello())
        worker.begin()

    def forget(self, worker: "Worker", why: str) -> None:
        """A worker is gone, or takes nothing any more."""
        if self.workers.get(worker.serial) is worker:
            del self.workers[worker.serial]
            worker.leave()
            self.cut(Cut(worker.serial, why))

    def _hello(self) -> Hello:
        held = self.told_log.settled
        return Hello(
            path=str(self.told_log.path),
            size_bytes_max=self.told_log.size_bytes_max,
            epochs=list(self.log.epochs),
            durability=self.durability,
            started_at=self.started_at,
            head=self.head,
            held=held,
            tail=[self.told_log.raw_record(seq) for seq in range(held + 1, self.head + 1)],
            states={part.name: part.snapshot() for part in self.writer.state.parts},
            readiness=self._readiness(),
            totals=self._totals(Counts()),
            search=None if self.searcher is None else self.searcher.state,
        )

    def _readiness(self) -> Readiness:
        refusal = self.writer.refusal
        return Readiness(None if refusal is None else refusal_of(refusal))

    def _totals(self, elsewhere: Counts) -> Totals:
        return Totals(elsewhere, self.writer.commits, self.writer.now_us() - clock.boot_us())

    # --- What happens here -------------------------------------------------------------------------------------------

    def _set_head(self, head: int) -> None:
        self._word.head = head

    def _begin_all_anew(self) -> None:
        for worker in list(self.workers.values()):
            self.forget(worker, "the log was opened again")

    def _tell(self, entries: Sequence[Entry]) -> None:
        workers = list(self.workers.values())
        for worker in workers:
            worker.say_answers()
        super()._tell(entries)
        for worker in workers:
            worker.line.flush()

    def _tell_settled(self, seq: int) -> None:
        super()._tell_settled(seq)
        for worker in self.workers.values():
            worker.say(Settled(seq))

    def _tell_workers_ready(self) -> None:
        for worker in self.workers.values():
            worker.say(self._readiness())

    def _tally(self) -> None:
        self._next_tally = asyncio.get_running_loop().call_later(WORKER_TALLY_SECONDS, self._tally)
        self.tell_search()
        for worker in list(self.workers.values()):
            worker.look()
        for worker in self.workers.values():
            elsewhere = Counts()
            for other in self.workers.values():
                if other is not worker:
                    elsewhere = elsewhere.plus(other.counts)
            worker.say(self._totals(elsewhere))

    def tell_search(self) -> None:
        """How far the index is, where that changed."""
        if self.searcher is None or self.searcher.state is self._told_search:
            return
        self._told_search = self.searcher.state
        for worker in self.workers.values():
            worker.say(SearchState(self._told_search))

    async def stop(self, reason: str) -> None:
        """As any bus. What was committed last still reaches the workers."""
        if hasattr(self, "_next_tally"):
            self._next_tally.cancel()
            self.on_ready.remove(self._tell_workers_ready)
        await super().stop(reason)
        for worker in self.workers.values():
            worker.say_answers()
            worker.line.flush()


class Worker:
    """One worker as the log process sees it: the sink of a subscription, and whom commands are taken from."""

    def __init__(self, bus: LogBus, serial: int, end: socket.socket) -> None:
        self.serial = serial
        self.counts = Counts()
        self.line = Line(end, received=self._received, ended=self._ended, drained=self._drained)
        self._bus = bus
        self._tickets: dict[int, Ticket] = {}
        self._outcomes: list[Outcome] = []
        self._sessions: set[str] = set()
        self._searching: set[asyncio.Task[None]] = set()
        self._answers_due = False
        self._is_gone = False
        self._silence = Silence(WORKER_STALL_SECONDS)

    def begin(self) -> None:
        """Hear of everything from now on."""
        self._feed = self._bus.feed(EVERYTHING, self._bus.framing, self, self._bus.head)

    def say(self, message: ToWorker) -> None:
        self.line.send(framed(message))

    def look(self) -> None:
        """Whether it still lives."""
        if self._silence.look():
            self._bus.forget(self, f"it said nothing for {WORKER_STALL_SECONDS:g} s")

    # --- As a sink ---------------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return self.line.unsent_bytes < WORKER_LINE_BYTES

    def write(self, frame: bytes) -> None:
        if not frame:  # As the first one is, which comes before the feed is known here.
            return
        self.line.send(frame)
        if not self.writable:
            self._feed.full()

    @property
    def push(self) -> Callable[[bytes], object]:
        return self.write

    def end(self, error: EngramError, cursor: str) -> None:
        """Its subscription is over: it took nothing for too long, or the bus stops."""
        if not self._bus.writer.is_closed:
            self._bus.forget(self, error.message)

    def _drained(self) -> None:
        self._feed.drained()

    # --- Commands ----------------------------------------------------------------------------------------------------

    def _received(self, body: memoryview) -> None:
        self._silence.heard()
        match decode_to_log_process(body):
            case Submit() as message:
                self._submit(message)
            case Cancel(id=number):
                if (ticket := self._tickets.get(number)) is not None:
                    self._bus.writer.cancel(ticket)
            case EndSession(session=session):
                self._sessions.discard(session)
                self._bus.writer.end_session(session)
            case Find() as message:
                searching = asyncio.ensure_future(self._find(message))
                self._searching.add(searching)
                searching.add_done_callback(self._searching.discard)
            case StartSearch(rebuild=rebuild):
                self._start_search(rebuild=rebuild)
            case Tally(counts=counts):
                self.counts = counts

    def _submit(self, message: Submit) -> None:
        command = command_of(message)
        if isinstance(command, AcquireLock) and command.session is not None:
            self._sessions.add(command.session)
        done = partial(self._done, message.id)
        try:
            self._tickets[message.id] = self._bus.writer.submit(
                command, message.held_bytes, done, gathers=message.gathers
            )
        except EngramError as exc:
            done(exc)

    def _done(self, number: int, outcome: Answer | EngramError) -> None:
        self._tickets.pop(number, None)
        if self._is_gone:
            self._bus.give_back(outcome)
            return
        self._outcomes.append(_outcome(number, outcome))
        if not self._answers_due:
            # With the batch they are of, where there is one.
            self._answers_due = True
            asyncio.get_running_loop().call_soon(self.say_answers)

    def say_answers(self) -> None:
        """What commands came to since the last time."""
        self._answers_due = False
        if self._outcomes:
            outcomes, self._outcomes = self._outcomes, []
            self.say(Answers(self._bus.head, outcomes))

    # --- Search ------------------------------------------------------------------------------------------------------

    async def _find(self, message: Find) -> None:
        try:
            answer = Answered(message.id, await self._bus.ask_search(message.asked))
        except EngramError as exc:
            answer = Answered(message.id, None, refusal_of(exc))
        except Exception as exc:
            log.exception("a search failed")
            answer = Answered(message.id, None, refusal_of(InternalError(f"the search failed: {type(exc).__name__}")))
        self._bus.tell_search()
        self.say(answer)

    def _start_search(self, *, rebuild: bool) -> None:
        try:
            search = self._bus.start_search()
            if rebuild:
                search.rebuild()
        except EngramError as exc:
            log.warning("search is not built again: %s", exc)
        self._bus.tell_search()

    # --- The end -----------------------------------------------------------------------------------------------------

    def _ended(self, why: str) -> None:
        self._bus.forget(self, f"its line {why}")

    def leave(self) -> None:
        """Nobody is there any more: leave all lines, and end what was tied to its connections after a grace."""
        self._is_gone = True
        self.line.close()
        self._feed.close()
        for searching in self._searching:
            searching.cancel()
        for ticket in list(self._tickets.values()):
            self._bus.writer.cancel(ticket)
        for session in self._sessions:
            self._bus.end_session(session)


def _outcome(number: int, outcome: Answer | EngramError) -> Outcome:
    if isinstance(outcome, EngramError):
        return Outcome(number, refusal=refusal_of(outcome))
    entries = outcome.entries
    return Outcome(
        number,
        first=entries[0].seq if entries else 0,
        count=len(entries),
        replayed=outcome.replayed,
        context=outcome.context,
        lock=outcome.lock,
    )


def main(arguments: Sequence[str]) -> None:
    """Serve workers until the supervisor says so, or is gone."""
    order = decode_order(arguments[0], LogOrder)
    process.die_with(order.parent_pid)
    process.set_up(order.settings.log_level, name="log process")
    uvloop.run(_serve(order))


async def _serve(order: LogOrder) -> None:
    settings = order.settings
    control = control_of(order.control_fd)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # The supervisor's, who ends the workers first.
    try:
        bus = LogBus.start(
            Path(settings.data_dir),
            size_bytes_max=settings.log_size_gib * GIB,
            heartbeat_seconds=settings.heartbeat_seconds,
            stall_seconds=WORKER_STALL_SECONDS,
            embedder=settings.embedder,
            log_type=ToldLog,
        )
    except DataDirectoryError as exc:
        told(control, Failed(str(exc)))
        raise SystemExit(1) from exc
    try:
        bus.share(HeadWord(order.head_fd), partial(told, control))
        if settings.search:
            bus.start_search()
        told(control, Opened(bus.head, bus.epoch))

        def take() -> None:
            for serial, end in taken(control):
                if end is None:
                    stopped.set()
                else:
                    bus.add(serial, end)

        loop.add_reader(control.fileno(), take)
        await stopped.wait()
        loop.remove_reader(control.fileno())
    finally:
        await bus.stop("shutdown")
    log.info("the bus has stopped at head %d", bus.head)


if __name__ == "__main__":
    main(sys.argv[1:])
