"""The one writer: stamp, decide, record, then tell. Nothing else may append.

What arrived in one turn of the loop is one commit, inline in the loop; a lone append commits at once. Every answer, a
refusal too, leaves after the commit of the batch whose state it saw.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from engram_bus.bus.gathering import Gathering
from engram_bus.clock import Clock
from engram_bus.codec import UNREADABLE, Entry, command_digest, decode_placed, payloads
from engram_bus.decisions.contract import Part
from engram_bus.decisions.locks import (
    CANCELLED,
    GRANTED,
    INTERRUPTED,
    QUEUED,
    REFRESHED,
    RESTARTED,
    WAIT_ENDED,
    change_of,
    refusal_of,
)
from engram_bus.decisions.state import State
from engram_bus.errors import (
    Busy,
    EngramError,
    IdempotencyConflict,
    IdTaken,
    InternalError,
    LogDamaged,
    ShuttingDown,
    StorageFailed,
    Unavailable,
    WaitEnded,
)
from engram_bus.limits import (
    BATCH_BYTES_MAX,
    BATCH_UNITS_MAX,
    CATCH_UP_BYTES,
    CATCH_UP_UNITS,
    LOCK_BREAK_BYTES_MAX,
    LOCK_BREAK_MAX,
    LOCK_LOOKS_MAX,
    LOCK_TEND_STEP_UNITS,
    LOCK_TEND_UNITS_MAX,
    LOCK_TIMER_SECONDS_MAX,
    QUEUE_BYTES_MAX,
    QUEUE_COMMANDS_MAX,
    SETTLE_QUIET_SECONDS,
    SETTLE_SECONDS,
    SNAPSHOT_UNITS,
    STORAGE_RETRY_SECONDS,
)
from engram_bus.log.contract import Log, Snapshot
from engram_bus.log.record import NOTHING_PRIVATE, SALT_BYTES, Private, Record, seal
from engram_bus.units import (
    FORMAT_JSON,
    AcquireLock,
    Append,
    AppendAtomic,
    BreakLock,
    Command,
    Context,
    Draft,
    KeyedCommand,
    Lock,
    Placed,
    RefreshLock,
    ReleaseLock,
    Stamp,
    TendLocks,
    UnitType,
    UpdateContext,
    WorkUnit,
    ts_text,
    ts_us,
)

log = logging.getLogger(__name__)

NOOP = "bus.noop"
_SEED_BYTES = 8


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a command came to: its units, and for a context update the context, for an acquire or refresh the lock."""

    entries: tuple[Entry, ...]
    context: Context | None = None
    lock: Lock | None = None
    replayed: bool = False


Done = Callable[[Answer | EngramError], None]
"""Called once for every command submitted, never before what it tells is durable."""


class Ticket(msgspec.Struct, gc=False, eq=False):
    """A command on its way. `wait_id` is set while it waits for a lock."""

    command: Command
    held_bytes: int
    done: Done
    wait_id: str | None = None
    is_cancelled: bool = False


class _Known(msgspec.Struct, frozen=True):
    """The use of an idempotency key: what the command was, and what it was answered."""

    digest: bytes
    payloads: tuple[bytes | None, ...]
    """Of its units; None in the place of one that was redacted and can no longer be compared."""
    answer: Answer

    def is_of(self, command: KeyedCommand, digest: bytes) -> bool:
        """Whether this was the same command. Its first units carry its payloads, in their order."""
        return digest == self.digest and all(
            known is None or known == payload for known, payload in zip(self.payloads, payloads(command), strict=False)
        )


class _Batch:
    """One commit while it is built: what is decided of it so far. `chain` is the digest of the newest record."""

    __slots__ = (
        "chain",
        "deciding",
        "ended_sessions",
        "entries",
        "first_seq",
        "ids",
        "is_recording",
        "keys",
        "looks",
        "next_seq",
        "outcomes",
        "raw_bytes",
        "records",
        "salts",
        "stamp",
        "tended_units",
        "ts",
    )

    def __init__(self, stamp: Stamp, *, head: int, chain: bytes, salts: list[bytes]) -> None:
        self.stamp = stamp
        self.ts = ts_text(stamp.ts_us)
        self.first_seq = self.next_seq = head + 1
        self.chain = chain
        self.salts = salts
        """Not used yet; drawn for all commands at once, because each draw is a call of the system."""
        self.records: list[Record] = []
        self.entries: list[Entry] = []
        self.ids: set[str] = set()
        self.keys: dict[tuple[str, str], _Known] = {}
        self.deciding: Done | None = None
        """Whose command is being decided, and has no outcome yet."""
        self.outcomes: list[tuple[Done, Answer | EngramError]] = []
        self.raw_bytes = 0
        self.tended_units = 0
        self.looks = 0
        self.ended_sessions: set[str] = set()
        self.is_recording = False

    @property
    def room_for_tending(self) -> int:
        if self.raw_bytes >= BATCH_BYTES_MAX // 2:
            return 0
        room = min(LOCK_TEND_UNITS_MAX - self.tended_units, BATCH_UNITS_MAX - len(self.records))
        return min(room, LOCK_TEND_STEP_UNITS)


class Writer:
    """Owns the log's end and the decisions' state. All of it runs in the loop's thread.

    `tell` is called with every committed batch, in order, after its callers were answered; `tell_ready` whenever
    `refusal` may have changed; `tell_settled` with the seq up to which the log can be read beside the bus.
    """

    def __init__(
        self,
        log: Log,
        *,
        clock: Callable[[int], Clock] = Clock,
        entropy: Callable[[int], bytes] = os.urandom,
        tell: Callable[[Sequence[Entry]], None],
        tell_ready: Callable[[], None] = lambda: None,
        tell_settled: Callable[[int], None] = lambda seq: None,
    ) -> None:
        self._state = State()
        self._log = log
        self._entropy = entropy
        self._tell = tell
        self._tell_ready = tell_ready
        self._tell_settled = tell_settled
        self._settling: asyncio.TimerHandle | None = None
        self._queue: deque[Ticket] = deque()
        self._queue_bytes = 0
        self._turn_due = False
        self._gathers = False
        self._gathering = Gathering()
        self._refusal: EngramError | None = None
        self._probe: asyncio.TimerHandle | None = None
        self._snapshot_seq = 0
        self._unfolded: Unavailable | None = None
        self._folded_seq = 0
        """Up to here the log was folded, last."""
        self._waiters: dict[str, Ticket] = {}
        self._ended_waits: dict[str, str] = {}
        self._ended_sessions: set[str] = set()
        self._tending_failed = False
        self._timer: asyncio.TimerHandle | None = None
        self._fold()
        self._clock = clock(ts_us(log.record(log.head).unit.ts) if log.head else 0)
        self.commits = 0
        # Nobody waits any more who waited before: their waits are ended on the record.
        self._ended_waits = dict.fromkeys(self._state.locks.waits, RESTARTED)
        self.check()

    # --- Taking commands ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The decisions' state. Raises why it is not that of the log's head: a commit failed, and then a read did."""
        if self._unfolded is not None:
            raise self._unfolded.with_traceback(None)
        return self._state

    @property
    def refusal(self) -> EngramError | None:
        """Why nothing is appended now; None while all is well."""
        return self._refusal

    @property
    def is_closed(self) -> bool:
        """Whether the bus is stopping."""
        return isinstance(self._refusal, ShuttingDown)

    @property
    def queue_commands(self) -> int:
        """Commands that wait for their commit."""
        return len(self._queue)

    def now_us(self) -> int:
        """The writer's time, by which leases run out."""
        return self._clock.now_us()

    def submit(self, command: Command, held_bytes: int, done: Done, *, gathers: bool = False) -> Ticket:
        """Queue an admitted command. One that `gathers` comes from where one comes in a turn: it waits for others.

        Raises Busy, StorageFull, ... at once rather than let it wait without bound.
        """
        if self._refusal is not None:
            # The one refusal is raised for every caller: it must not keep the frames of them all.
            raise self._refusal.with_traceback(None)
        if len(self._queue) >= QUEUE_COMMANDS_MAX:
            raise Busy(f"{len(self._queue)} commands wait, at most {QUEUE_COMMANDS_MAX}", limit=QUEUE_COMMANDS_MAX)
        if self._queue_bytes + held_bytes > QUEUE_BYTES_MAX:
            raise Busy(f"{self._queue_bytes} bytes wait, at most {QUEUE_BYTES_MAX}", limit=QUEUE_BYTES_MAX)
        ticket = Ticket(command, held_bytes, done)
        # Beside one that does not wait, nobody has to.
        self._gathers = gathers and (self._gathers or not self._queue)
        self._queue.append(ticket)
        self._queue_bytes += held_bytes
        self._schedule()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Leave the queue for a lock, or never join it: `done` is then told WaitEnded. What was granted stays so."""
        ticket.is_cancelled = True
        if ticket.wait_id in self._waiters:
            self._ended_waits[ticket.wait_id] = CANCELLED
            self._tend_soon()

    def end_session(self, session: str) -> None:
        """Release what is tied to a connection that ended. What it asked for last, and is not decided, is cancelled."""
        for ticket in self._queue:
            if isinstance(ticket.command, AcquireLock) and ticket.command.session == session:
                ticket.is_cancelled = True
        # A state that could not be folded does not know what is tied to it.
        if not self.is_folded or self._state.locks.has_session(session):
            self._ended_sessions.add(session)
            self._tend_soon()

    def catch_up(self) -> None:
        """Nothing: what was answered was decided here."""

    @property
    def is_folded(self) -> bool:
        """Whether there is a `state` to give."""
        return self._unfolded is None

    def _schedule(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def close(self) -> None:
        """Commit what waits, keep a snapshot, and refuse from now on."""
        while self._queue and self._refusal is None:
            self._commit()
        for timer in (self._probe, self._timer, self._settling):
            if timer is not None:
                timer.cancel()
        if self._refusal is None and self._log.head > self._snapshot_seq:
            self._keep_snapshot()
        self._refuse(ShuttingDown("the bus is stopping"))
        for ticket in self._take_waiters():
            _answer(ticket.done, ShuttingDown("the bus is stopping"))

    # --- One commit --------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._turn_due = False
        if self._refusal is not None:
            return
        if self._gathers and self._gathering.goes_on(len(self._queue)):
            self._schedule()
            return
        self._commit()

    def _commit(self) -> None:
        self._gathers = False
        batch = self._begin()
        try:
            self._build(batch)
            if batch.records:
                self._log.append(batch.records)
                self.commits += 1
        except Unavailable as exc:
            self._refuse_all(batch, exc)
            return
        except Exception as exc:
            log.exception("a commit failed")
            self._refuse_all(batch, InternalError(f"the commit failed: {type(exc).__name__}"))
            return
        if self._queue:
            self._schedule()
        self._tend_later()
        for done, outcome in batch.outcomes:
            _answer(done, outcome)
        if batch.entries:
            self._tell(batch.entries)
            if self._settling is None:
                self._settle_later(self._log.head, asyncio.get_running_loop().time() + SETTLE_SECONDS)
            if self._log.head - self._snapshot_seq >= SNAPSHOT_UNITS:
                self._keep_snapshot()

    def _settle_later(self, head: int, latest: float) -> None:
        loop = asyncio.get_running_loop()
        self._settling = loop.call_later(SETTLE_QUIET_SECONDS, self._settle_when_quiet, head, latest)

    def _settle_when_quiet(self, head: int, latest: float) -> None:
        """`latest`, in the loop's seconds, is when it is done though appends go on."""
        if self._log.head != head and asyncio.get_running_loop().time() < latest:
            self._settle_later(self._log.head, latest)
        else:
            self._settle()

    def _settle(self) -> None:
        try:
            self.settle()
        except Unavailable as exc:
            # It is durable where it is, and the next append that needs the room is refused.
            log.error("what was appended lately could not be taken over: %s", exc)

    def settle(self) -> None:
        """Let the log take over what was appended lately, and tell whoever reads it beside the bus. Raises as
        `Log.settle`; where that may pass, it is tried again."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        try:
            self._log.settle()
        except Unavailable as exc:
            if self._refusal is None and not isinstance(exc, StorageFailed | LogDamaged):
                self._settling = asyncio.get_running_loop().call_later(STORAGE_RETRY_SECONDS, self._settle)
            raise
        finally:
            self._tell_settled(self._log.settled)

    def _begin(self) -> _Batch:
        units = min(len(self._queue), BATCH_UNITS_MAX)
        random = self._entropy(_SEED_BYTES + SALT_BYTES * units)
        stamp = Stamp(self._clock.now_us(), int.from_bytes(random[:_SEED_BYTES], "big") >> 2)
        salts = [random[at : at + SALT_BYTES] for at in range(_SEED_BYTES, len(random), SALT_BYTES)]
        return _Batch(stamp, head=self._log.head, chain=self._log.chain, salts=salts)

    def _build(self, batch: _Batch) -> None:
        self._tend(batch)
        queue, outcomes = self._queue, batch.outcomes
        while queue and self._has_room(batch, queue[0]):
            ticket = queue.popleft()
            self._queue_bytes -= ticket.held_bytes
            if ticket.is_cancelled:
                outcomes.append((ticket.done, WaitEnded("the request was cancelled", why=CANCELLED)))
                continue
            batch.deciding = ticket.done
            outcome = self._outcome(batch, ticket)
            batch.deciding = None
            if outcome is not None:  # Else it waits for a lock, and is answered when that wait ends.
                outcomes.append((ticket.done, outcome))
            if not isinstance(ticket.command, Append):
                self._tend(batch)  # So that who waits for what is free now hears of it with this commit.

    def _has_room(self, batch: _Batch, ticket: Ticket) -> bool:
        units, size_bytes = len(batch.records), batch.raw_bytes + ticket.held_bytes
        if not units:
            return True
        match ticket.command:
            case Append():
                units += 1
            case AppendAtomic(appends=appends):
                units += len(appends)
            case BreakLock():
                units += LOCK_BREAK_MAX
                size_bytes += LOCK_BREAK_BYTES_MAX
            case _:
                units += 1
        return units <= BATCH_UNITS_MAX and size_bytes <= BATCH_BYTES_MAX

    def _outcome(self, batch: _Batch, ticket: Ticket) -> Answer | EngramError | None:
        """What it came to; None where it waits for a lock."""
        try:
            match ticket.command:
                case Append(idempotency_key=None) as command:
                    return self._take_append(batch, command)
                case Append() | AppendAtomic() | UpdateContext() as command:
                    return self._take(batch, command)
                case AcquireLock() | RefreshLock() | ReleaseLock() | BreakLock():
                    return self._take_lock(batch, ticket)
        except EngramError as exc:
            return exc
        except Exception as exc:
            log.exception("a command could not be decided")
            failure = InternalError(f"the command could not be decided: {type(exc).__name__}")
            if batch.is_recording:
                # The state holds a part of it: the whole batch goes, and the state is folded again.
                raise failure from exc
            return failure

    def _take_append(self, batch: _Batch, command: Append) -> Answer:
        """As `_take`, of the command that nearly all are: one unit, and nothing to recognise it by."""
        self._state.check_append(command, batch.stamp)
        draft = command.draft
        if draft.id is not None:
            self._check_ids(batch, (draft,))
        batch.is_recording = True
        entry = self._seal(batch, self._place(batch, draft), NOTHING_PRIVATE, 1, 0)
        batch.is_recording = False
        return Answer((entry,))

    def _take(self, batch: _Batch, command: KeyedCommand) -> Answer:
        digest = b""
        if command.idempotency_key is not None:
            digest = command_digest(command)
            repeated = self._repeat(batch, command, command.idempotency_key, digest)
            if repeated is not None:
                return repeated
        drafts = self._state.decide(command, batch.stamp)
        if not drafts and command.idempotency_key is not None:
            drafts = (_noop(command),)
        self._check_ids(batch, drafts)
        return self._record(batch, command, drafts, digest)

    def _check_ids(self, batch: _Batch, drafts: Sequence[Draft]) -> None:
        brought: set[str] = set()
        for index, draft in enumerate(drafts):
            if draft.id is None:
                continue
            if draft.id in brought or draft.id in batch.ids or self._log.seq_of_id(draft.id) is not None:
                taken = IdTaken(f"a unit of id {draft.id} exists", field="id")
                raise taken.at(index) if len(drafts) > 1 else taken
            brought.add(draft.id)

    def _record(self, batch: _Batch, command: KeyedCommand, drafts: Sequence[Draft], digest: bytes) -> Answer:
        batch.is_recording = True
        units = [self._place(batch, draft) for draft in drafts]
        context = self._state.contexts.view(command.context_id) if isinstance(command, UpdateContext) else None
        private = NOTHING_PRIVATE
        if command.idempotency_key is not None:
            kept = b"" if context is None else msgspec.msgpack.encode(context)
            private = Private(command.idempotency_key, digest, kept)
        entries = self._seal_all(batch, units, private)
        answer = Answer(entries, context)
        if command.idempotency_key is not None:
            batch.keys[_agent(command), command.idempotency_key] = _Known(
                digest, tuple(unit.payload for unit in units), Answer(entries, context, replayed=True)
            )
        batch.is_recording = False
        return answer

    # --- Locks -------------------------------------------------------------------------------------------------------

    def _take_lock(self, batch: _Batch, ticket: Ticket) -> Answer | None:
        """The answer to a lock command; None where it waits from now on."""
        entries = self._record_locks(batch, self._state.decide(ticket.command, batch.stamp))
        if not entries:
            return Answer(())
        unit = entries[0].unit
        if unit.kind == QUEUED:
            ticket.wait_id = unit.id
            self._waiters[unit.id] = ticket
            return None
        return Answer(entries, lock=self._lock_of(unit, batch))

    def _tend(self, batch: _Batch) -> None:
        """Record what comes to locks without a command of anyone: what ran out, and who is granted what is free now."""
        while self._is_due(batch.stamp.ts_us) and (room := batch.room_for_tending) > 0:
            command = TendLocks(
                units_max=room,
                ended_waits=self._ended_waits,
                ended_sessions=tuple(self._ended_sessions),
            )
            try:
                batch.looks += self._state.locks.settle(LOCK_LOOKS_MAX - batch.looks)
                drafts = self._state.decide(command, batch.stamp)
            except Exception:
                log.exception("locks could not be tended; what is appended goes on")
                batch.tended_units = LOCK_TEND_UNITS_MAX
                self._tending_failed = True
                return
            self._tending_failed = False
            batch.ended_sessions |= self._ended_sessions
            if not drafts and batch.looks >= LOCK_LOOKS_MAX:
                return  # The rest of the crowd is looked at in the next turns.
            entries = self._record_locks(batch, drafts)
            batch.tended_units += len(entries)
            for entry in entries:
                self._end_wait(batch, entry)
            self._ended_waits = {
                name: why for name, why in self._ended_waits.items() if self._state.locks.is_waiting(name)
            }
            self._ended_sessions = set(filter(self._state.locks.has_session, self._ended_sessions))

    def _is_due(self, now_us: int) -> bool:
        if self._ended_waits or self._ended_sessions:
            return True
        due_us = self._state.locks.next_due_us
        return due_us is not None and due_us <= now_us

    def _record_locks(self, batch: _Batch, drafts: Sequence[Draft]) -> tuple[Entry, ...]:
        batch.is_recording = True
        units = [self._place(batch, draft) for draft in drafts]
        entries = self._seal_all(batch, units, NOTHING_PRIVATE)
        batch.is_recording = False
        return entries

    def _end_wait(self, batch: _Batch, entry: Entry) -> None:
        """Whose wait ended with this unit is answered with the rest of the commit."""
        unit = entry.unit
        if unit.kind not in (GRANTED, REFRESHED, WAIT_ENDED):
            return
        change = change_of(unit)
        ticket = self._waiters.pop(change.wait_id or "", None)
        if ticket is None:
            return
        ticket.wait_id = None
        if unit.kind == WAIT_ENDED:
            batch.outcomes.append((ticket.done, refusal_of(change)))
        else:
            batch.outcomes.append((ticket.done, Answer((entry,), lock=self._lock_of(unit, batch))))

    def _lock_of(self, unit: WorkUnit, batch: _Batch) -> Lock | None:
        """The lock that a unit granted or extended."""
        match unit.kind:
            case "lock.granted":
                return self._state.locks.lock(unit.id, batch.stamp.ts_us)
            case "lock.refreshed":
                return self._state.locks.lock(change_of(unit).lock_id or "", batch.stamp.ts_us)
            case _:
                return None

    def _tend_soon(self) -> None:
        if self._refusal is None:
            self._schedule()

    def _tend_later(self) -> None:
        """Wake up when the next lease or wait runs out."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._refusal is not None:
            return
        due_us = 0 if self._ended_waits or self._ended_sessions else self._state.locks.next_due_us
        if due_us is None:
            return
        seconds = (due_us - self.now_us()) / 1_000_000
        if self._tending_failed:
            seconds = LOCK_TIMER_SECONDS_MAX  # Not in every turn of the loop.
        if seconds <= 0:
            self._schedule()
        else:
            # The loop's clock stands still while the machine sleeps; ours does not: look again now and then.
            seconds = min(seconds, LOCK_TIMER_SECONDS_MAX)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._tending_failed = False
        self._tend_later()

    def _take_waiters(self) -> list[Ticket]:
        """All who wait for a lock, who are then answered otherwise."""
        tickets = list(self._waiters.values())
        self._waiters.clear()
        return tickets

    # --- Places and proofs -------------------------------------------------------------------------------------------

    def _place(self, batch: _Batch, draft: Draft) -> WorkUnit:
        """Give a draft its seq, version, id and time; the state takes it in."""
        seq = batch.next_seq
        batch.next_seq = seq + 1
        context_id = draft.context_id
        unit = WorkUnit(
            seq=seq,
            id=draft.id or batch.stamp.unit_id(seq - batch.first_seq),
            context_id=context_id,
            version=self._state.contexts.version(context_id) + 1,
            agent_id=draft.agent_id,
            type=draft.type,
            ts=batch.ts,
            content_type=draft.content_type,
            kind=draft.kind,
            meta=draft.meta,
            resources=draft.resources,
            relationships=draft.relationships,
            traceparent=draft.traceparent,
            payload=draft.payload,
        )
        self._state.evolve(unit)
        return unit

    def _seal_all(self, batch: _Batch, units: Sequence[WorkUnit], private: Private) -> tuple[Entry, ...]:
        return tuple(self._seal(batch, unit, private, len(units), index) for index, unit in enumerate(units))

    def _seal(self, batch: _Batch, unit: WorkUnit, private: Private, group_units: int, group_index: int) -> Entry:
        record = seal(
            unit,
            previous=batch.chain,
            salt=batch.salts.pop() if batch.salts else self._entropy(SALT_BYTES),
            private=private if group_index == 0 else NOTHING_PRIVATE,
            group_units=group_units,
            group_index=group_index,
        )
        batch.chain = record.chain
        entry = Entry(unit.seq, record.body, unit)
        batch.records.append(record)
        batch.entries.append(entry)
        batch.ids.add(unit.id)
        batch.raw_bytes += len(record.raw)
        return entry

    # --- Repeats -----------------------------------------------------------------------------------------------------

    def _repeat(self, batch: _Batch, command: KeyedCommand, key: str, digest: bytes) -> Answer | None:
        """The first answer to this idempotency key, in this batch or ever. Raises IdempotencyConflict."""
        agent_id = _agent(command)
        known = batch.keys.get((agent_id, key)) or self._recorded(agent_id, key)
        if known is None:
            return None
        if not known.is_of(command, digest):
            raise IdempotencyConflict(
                f"idempotency key {key!r} was used by {agent_id!r} with another body", field="idempotency_key"
            )
        return known.answer

    def _recorded(self, agent_id: str, key: str) -> _Known | None:
        seq = self._log.seq_of_key(agent_id, key)
        if seq is None:
            return None
        first = self._log.record(seq)
        group = [first, *(self._log.record(seq + offset) for offset in range(1, first.group_units))]
        kept = first.private.answer
        context = msgspec.msgpack.decode(kept, type=Context) if kept else None
        return _Known(
            first.private.body_digest,
            tuple(None if record.redacted else record.unit.payload for record in group),
            Answer(tuple(Entry(record.unit.seq, record.body, record.unit) for record in group), context, replayed=True),
        )

    # --- When the disk refuses ---------------------------------------------------------------------------------------

    def _refuse_all(self, batch: _Batch, exc: Unavailable) -> None:
        """The state is ahead of the disk: fold it again, tell everyone who waits, and try again later."""
        log.error("a commit of %d units failed: %s", len(batch.records), exc)
        waiting = [done for done, _ in batch.outcomes]
        if batch.deciding is not None:
            waiting.append(batch.deciding)
        waiting += [ticket.done for ticket in self._take_waiters()]
        unfolded = self._fold_again()
        # Sessions that ended in this batch end with the next; nobody waits any more.
        self._ended_sessions |= batch.ended_sessions
        self._ended_waits = dict.fromkeys(self._state.locks.waits, INTERRUPTED)
        if isinstance(exc, InternalError) and unfolded is None:
            # Ours, not the disk's: what waits behind this batch may well succeed.
            for done in waiting:
                _answer(done, exc)
            if self._queue:
                self._schedule()
            self._tend_later()
            return
        self._refuse(unfolded or exc)
        waiting += [ticket.done for ticket in self._queue]
        self._queue.clear()
        self._queue_bytes = 0
        for done in waiting:
            _answer(done, exc)
        self._probe_later()

    def check(self) -> None:
        """Ask the log whether it takes appends; a refusal is asked again until it is gone."""
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None
        try:
            self._log.probe()
            if self._unfolded is not None:
                # Raises at once where all of the folding would only end there again.
                self._log.read(self._folded_seq, units_max=1, bytes_max=0)
                self._fold()
                self._ended_waits = dict.fromkeys(self._state.locks.waits, INTERRUPTED)
        except Unavailable as exc:
            self._refuse(exc)
            self._probe_later()
        else:
            if self._refusal is not None:
                log.warning("appends go on")
            self._refuse(None)
            self._tend_later()

    def _refuse(self, refusal: EngramError | None) -> None:
        """From now on, for this reason; None: no more."""
        self._refusal = refusal
        self._tell_ready()

    def _probe_later(self) -> None:
        if self._probe is None and not isinstance(self._refusal, StorageFailed):
            self._probe = asyncio.get_running_loop().call_later(STORAGE_RETRY_SECONDS, self.check)

    # --- State -------------------------------------------------------------------------------------------------------

    def _fold_again(self) -> Unavailable | None:
        """Make the state equal to the log after a commit that failed. Why not, where the log cannot be read either."""
        try:
            self._fold()
        except Unavailable as exc:
            return exc
        return None

    def _fold(self) -> None:
        """The decisions' state, each from its newest snapshot and the log after it. Raises Unavailable, and then there
        is no state."""
        self._unfolded = InternalError("the log was not folded to its end")
        self._folded_seq = 0
        try:
            self._fold_all()
        except Unavailable as exc:
            self._unfolded = exc
            raise
        self._unfolded = None

    def _fold_all(self) -> None:
        seqs = [self._restore(part) for part in self._state.parts]
        parts = [*zip(self._state.parts, seqs, strict=True)]
        self._folded_seq = self._snapshot_seq = min(seqs)
        while entries := self._log.read(self._folded_seq, units_max=CATCH_UP_UNITS, bytes_max=CATCH_UP_BYTES):
            for entry in entries:
                unit = _folded(entry)
                for part, part_seq in parts:
                    if entry.seq > part_seq:
                        part.evolve(unit)
            self._folded_seq = entries[-1].seq

    def _restore(self, part: Part) -> int:
        """From its newest snapshot: as of which seq, 0 where there is none that can be read."""
        snapshot = self._log.load_snapshot(part.name)
        if snapshot is not None:
            try:
                part.restore(snapshot.state)
                return snapshot.seq
            except UNREADABLE as exc:
                log.warning("the snapshot of %s cannot be read: all of the log is folded instead: %s", part.name, exc)
        part.restore(None)
        return 0

    def _keep_snapshot(self) -> None:
        for part in self._state.parts:
            self._log.save_snapshot(part.name, Snapshot(self._log.head, part.snapshot()))
        self._snapshot_seq = self._log.head


def _folded(entry: Entry) -> WorkUnit | Placed:
    """As much of it as the state takes in."""
    placed = decode_placed(entry.body)
    return placed if placed.kind is None else entry.unit


def _agent(command: KeyedCommand) -> str:
    return command.draft.agent_id if isinstance(command, Append) else command.agent_id


def _noop(command: KeyedCommand) -> Draft:
    """The record of a command that changed nothing but must answer the same again."""
    assert isinstance(command, UpdateContext), "appends always change something"
    return Draft(
        context_id=command.context_id,
        agent_id=command.agent_id,
        type=UnitType.SYSTEM,
        kind=NOOP,
        content_type=FORMAT_JSON,
        payload=b"{}",
    )


def _answer(done: Done, outcome: Answer | EngramError) -> None:
    try:
        done(outcome)
    except Exception:
        # One caller's fault must not keep the others of this commit from their answers.
        log.exception("an answer could not be given")
