"""What a worker's bus has in the place of a writer and of search: a line to the log process, where both are.

Nothing is decided here. Commands go out together once in a turn of the loop; committed records come in, in order, are
folded into a state of the worker's own, and only then are its callers answered and its subscribers told.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from engram_bus.bus.writer import Answer, Done, Ticket
from engram_bus.clock import boot_us
from engram_bus.codec import Entry
from engram_bus.decisions.state import State
from engram_bus.embedded import Bus
from engram_bus.errors import (
    Busy,
    EngramError,
    LogSilent,
    SearchUnavailable,
    ShuttingDown,
    Unavailable,
    WaitEnded,
)
from engram_bus.limits import (
    DRAIN_SECONDS_MAX,
    LOCK_WAITS_MAX,
    LOG_SILENT_SECONDS,
    QUEUE_BYTES_MAX,
    QUEUE_COMMANDS_MAX,
    SEARCH_ANSWER_SECONDS_MAX,
    SEARCHES_MAX,
    WORKER_CATCH_UP_SECONDS_MAX,
)
from engram_bus.log.followed import FollowedLog
from engram_bus.log.record import RecordError
from engram_bus.projections.search.messages import State as IndexState
from engram_bus.projections.search.values import Asked, Found
from engram_bus.units import AcquireLock, Command
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
    Tally,
    ToLogProcess,
    Totals,
    framed,
    submit,
)

log = logging.getLogger(__name__)


class _Sent(Ticket, gc=False, eq=False):
    """A command that the log process has."""

    number: int = 0
    waits: bool = False


class Remote:
    """The worker's side of the line. `lost` is called when it cannot go on, with the reason."""

    def __init__(self, hello: Hello, word: HeadWord, *, lost: Callable[[str], None]) -> None:
        self.log = FollowedLog(
            Path(hello.path), size_bytes_max=hello.size_bytes_max, epochs=hello.epochs, held=hello.held
        )
        if hello.tail:
            self.log.follow(hello.held + 1, hello.tail, hello.held)
        self.word = word
        self.line: Line
        """Given before anything is said."""
        self.bus: Bus
        """Likewise."""
        self.writer: RemoteWriter
        self.search: RemoteSearch | None = None
        self.totals = hello.totals
        self.hello = hello
        self._lost = lost
        self._silence = Silence(LOG_SILENT_SECONDS)
        self._silence.heard()

    def begin_writer(
        self,
        *,
        tell: Callable[[Sequence[Entry]], None],
        tell_ready: Callable[[], None],
        tell_settled: Callable[[int], None],
    ) -> "RemoteWriter":
        """A `DeciderOf`. (Nobody reads the log beside a worker who would have to hear that it settled.)"""
        self.writer = RemoteWriter(self, tell=tell, tell_ready=tell_ready)
        return self.writer

    def begin_search(self, *, is_started: bool = False) -> "RemoteSearch":
        """What searches are asked of."""
        self.search = RemoteSearch(self)
        if not is_started:
            self.say(StartSearch())
        return self.search

    def say(self, message: ToLogProcess) -> None:
        self.line.send(framed(message))

    def tally(self) -> None:
        """Tell what is open here, and look whether the log process still lives."""
        self.say(Tally(self.bus.counts_here))
        if self._silence.look():
            self.writer.take_silence(LogSilent(f"the log process has said nothing for {LOG_SILENT_SECONDS:g} s"))

    def take(self, message: object) -> None:
        """One message of the log process."""
        self._silence.heard()
        self.writer.take_silence(None)
        match message:
            case Committed():
                self._follow(message)
            case Answers():
                self.writer.take_answers(message)
            case Readiness():
                self.writer.take_readiness(message)
            case Totals():
                self.totals = message
                self.bus.elsewhere = message.elsewhere
            case Settled(held=held):
                self.log.hold(held)
            case SearchState(state=state):
                self._take_search_state(state)
            case Answered():
                if self.search is not None:
                    self.search.take(message)
            case Skipped(first=first, last=last):
                self._lost(f"the records {first} to {last} cannot be read")
            case _:
                raise AssertionError(f"{message} is said once, at the start")

    def _follow(self, committed: Committed) -> None:
        try:
            entries = self.log.follow(committed.first, committed.raws, committed.held)
        except RecordError as exc:
            self._lost(f"of the records from {committed.first} on one {exc}")
            return
        self.writer.take_committed(entries)

    def _take_search_state(self, state: IndexState) -> None:
        if self.search is None:
            self.bus.searcher = self.begin_search(is_started=True)
        assert self.search is not None
        self.search.state = state


class RemoteWriter:
    """A `Decider`: the writer's interface, with the writer elsewhere."""

    def __init__(
        self, remote: Remote, *, tell: Callable[[Sequence[Entry]], None], tell_ready: Callable[[], None]
    ) -> None:
        self._remote = remote
        self._log = remote.log
        self._tell = tell
        self._tell_ready = tell_ready
        self._state = State()
        for part in self._state.parts:
            part.restore(remote.hello.states[part.name])
        self._numbers = itertools.count()
        self._sent: dict[int, _Sent] = {}
        self._sent_bytes = 0
        self._waits = 0
        self._early: deque[Answers] = deque()
        self._recent: dict[int, Entry] = {}
        self._closed: ShuttingDown | None = None
        self._refusal: EngramError | None = None
        self._silence: LogSilent | None = None
        self.take_readiness(remote.hello.readiness)

    # --- As a decider ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        self.catch_up()
        return self._state

    @property
    def commits(self) -> int:
        return self._remote.totals.commits

    @property
    def refusal(self) -> EngramError | None:
        return self._closed or self._silence or self._refusal

    @property
    def is_closed(self) -> bool:
        return isinstance(self.refusal, ShuttingDown)

    @property
    def queue_commands(self) -> int:
        return len(self._sent) - self._waits

    def now_us(self) -> int:
        return boot_us() + self._remote.totals.ahead_us

    def submit(self, command: Command, held_bytes: int, done: Done, *, gathers: bool = False) -> Ticket:
        if (refusal := self.refusal) is not None:
            raise refusal.with_traceback(None)
        waits = isinstance(command, AcquireLock) and command.wait_ms > 0
        self._check_room(held_bytes, waits=waits)
        # Who waits in line, for up to an hour, has left the queue; `Locks` bounds what it holds there.
        queue_bytes = 0 if waits else held_bytes
        ticket = _Sent(command, queue_bytes, done, number=next(self._numbers), waits=waits)
        self._sent[ticket.number] = ticket
        self._sent_bytes += queue_bytes
        self._waits += waits
        self._remote.say(submit(ticket.number, command, held_bytes, gathers=gathers))
        return ticket

    def _check_room(self, held_bytes: int, *, waits: bool) -> None:
        if waits:
            if self._waits >= LOCK_WAITS_MAX:
                raise Busy(f"{self._waits} wait for locks, at most {LOCK_WAITS_MAX}", limit=LOCK_WAITS_MAX)
        elif self.queue_commands >= QUEUE_COMMANDS_MAX:
            raise Busy(f"{self.queue_commands} commands wait, at most {QUEUE_COMMANDS_MAX}", limit=QUEUE_COMMANDS_MAX)
        if self._sent_bytes + held_bytes > QUEUE_BYTES_MAX:
            raise Busy(f"{self._sent_bytes} bytes wait, at most {QUEUE_BYTES_MAX}", limit=QUEUE_BYTES_MAX)

    def cancel(self, ticket: Ticket) -> None:
        assert isinstance(ticket, _Sent), "what is cancelled was submitted here"
        ticket.is_cancelled = True
        if ticket.number in self._sent:
            self._remote.say(Cancel(ticket.number))

    def end_session(self, session: str) -> None:
        self._remote.say(EndSession(session))

    def settle(self) -> None:
        """Nothing: the log process does, before it asks search."""

    def catch_up(self) -> None:
        # In the middle of a batch what is read is as of that batch.
        if self._log.head >= (head := self._remote.word.head) or self._remote.line.is_handling:
            return
        until = time.monotonic() + WORKER_CATCH_UP_SECONDS_MAX
        while self._log.head < head:
            if not self._remote.line.take(until - time.monotonic()):
                raise Busy(
                    f"this worker is at {self._log.head} after {WORKER_CATCH_UP_SECONDS_MAX:g} s, the log at {head}"
                )

    def close(self) -> None:
        """Take who waits for a lock out of the line, wait until all that was sent is answered; refuse from now on."""
        if self._closed is not None:
            return
        self._closed = ShuttingDown("the bus is stopping")
        self._tell_ready()
        for ticket in self._sent.values():
            if ticket.waits:
                self._remote.say(Cancel(ticket.number))
        self._remote.line.flush()
        until = time.monotonic() + DRAIN_SECONDS_MAX
        while self._sent and self._remote.line.take(until - time.monotonic()):
            self._remote.line.flush()
        for ticket in list(self._sent.values()):
            self._settle(ticket, ShuttingDown("the bus is stopping"))

    # --- What the log process says -----------------------------------------------------------------------------------

    def take_committed(self, entries: Sequence[Entry]) -> None:
        """Fold them, answer who asked for them, and tell everyone else."""
        for entry in entries:
            self._state.evolve(entry.unit)
        self._recent = {entry.seq: entry for entry in entries}
        while self._early and self._early[0].head <= self._log.head:
            self._answer_all(self._early.popleft())
        self._tell(entries)

    def take_answers(self, answers: Answers) -> None:
        if answers.head > self._log.head:
            self._early.append(answers)
        else:
            self._answer_all(answers)

    def take_readiness(self, readiness: Readiness) -> None:
        self._refusal = None if readiness.refusal is None else readiness.refusal.error()
        self._tell_ready()

    def take_silence(self, silence: LogSilent | None) -> None:
        """The log process is not heard of, or again. What it was asked before it may yet carry out, and answer."""
        if (silence is None) == (self._silence is None):
            return
        if silence is None:
            log.warning("the log process is heard of again")
        else:
            log.error("no appends are taken: %s", silence.message)
        self._silence = silence
        self._tell_ready()

    def _answer_all(self, answers: Answers) -> None:
        for outcome in answers.outcomes:
            ticket = self._sent.get(outcome.id)
            if ticket is not None:
                self._settle(ticket, self._outcome(outcome))

    def _outcome(self, outcome: Outcome) -> Answer | EngramError:
        if outcome.refusal is not None:
            refusal = outcome.refusal.error()
            if self._closed is not None and isinstance(refusal, WaitEnded):
                return ShuttingDown("the bus is stopping")  # Which is why it ended.
            return refusal
        try:
            entries = tuple(self._entry(seq) for seq in range(outcome.first, outcome.first + outcome.count))
        except Unavailable as exc:
            return exc
        return Answer(entries, outcome.context, outcome.lock, outcome.replayed)

    def _entry(self, seq: int) -> Entry:
        entry = self._recent.get(seq)
        if entry is None:
            record = self._log.record(seq)
            entry = Entry(seq, record.body, record.unit)
        return entry

    def _settle(self, ticket: _Sent, outcome: Answer | EngramError) -> None:
        del self._sent[ticket.number]
        self._sent_bytes -= ticket.held_bytes
        self._waits -= ticket.waits
        try:
            ticket.done(outcome)
        except Exception:
            # One caller's fault must not keep the others of this commit from their answers.
            log.exception("an answer could not be given")


class RemoteSearch:
    """A `Search`, asked of the log process."""

    def __init__(self, remote: Remote) -> None:
        self.state = IndexState(0, 0) if remote.hello.search is None else remote.hello.search
        self._remote = remote
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Found]] = {}
        self._is_closed = False

    @property
    def lag_units(self) -> int:
        return max(0, self._remote.log.head - self.state.taken)

    def tell(self, head: int) -> None:
        """Nothing: the log process rings it."""

    def rebuild(self) -> None:
        self._remote.say(StartSearch(rebuild=True))

    async def search(self, asked: Asked) -> Found:
        if self._is_closed:
            raise ShuttingDown("the bus is closed")
        if len(self._asked) >= SEARCHES_MAX:
            raise Busy(f"{len(self._asked)} searches wait for an answer", limit=SEARCHES_MAX)
        number = next(self._numbers)
        answered = self._asked[number] = asyncio.get_running_loop().create_future()
        self._remote.say(Find(number, asked))
        try:
            async with asyncio.timeout(SEARCH_ANSWER_SECONDS_MAX):
                found: Found = await answered
        except TimeoutError:
            raise SearchUnavailable(f"no answer within {SEARCH_ANSWER_SECONDS_MAX:g} seconds") from None
        finally:
            del self._asked[number]
        self._remote.writer.catch_up()  # What was found there can be read here.
        return found

    def take(self, answered: Answered) -> None:
        waiting = self._asked.get(answered.id)
        if waiting is None or waiting.done():
            return
        if answered.found is not None:
            waiting.set_result(answered.found)
        else:
            assert answered.refusal is not None, "an answer is one or the other"
            waiting.set_exception(answered.refusal.error())

    def close(self) -> None:
        self._is_closed = True
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(ShuttingDown("the bus is stopping"))
