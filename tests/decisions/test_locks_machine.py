"""Locks against a second, slow and obvious book of them: whatever is asked in whatever order, both say the same.

The book knows nothing of indexes or of who watches whom: it looks at everything, every time. A resource is its list of
segments, and two overlap where one list begins the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engram_bus.decisions.locks import Locks, change_of
from engram_bus.errors import EngramError
from engram_bus.units import AcquireLock, BreakLock, Command, Lock, LockMode, Stamp, TendLocks, WorkUnit
from tests.decisions.tables import SECOND, Table
from tests.decisions.tables import refresh as refresh_command
from tests.decisions.tables import release as release_command
from tests.values import append

AGENTS = ("ann", "bob", "eve", "dan")
RESOURCES = ("a", "a/b", "a/b/c", "a/d", "e", "ab")
Event = tuple[str, str, tuple[str, ...], str, str]
"""What happened, to whose claim, on what, to which one, and why."""


@dataclass
class Row:
    """One line of the book: a lock, or a wait."""

    agent: str
    resources: tuple[str, ...]
    exclusive: bool
    ttl_us: int
    until_us: int
    session: str | None
    id: str = ""
    seq: int = 0


def overlap(one: Row, other: Row) -> bool:
    for left in one.resources:
        for right in other.resources:
            if all(a == b for a, b in zip(left.split("/"), right.split("/"), strict=False)):
                return True
    return False


def outermost(resources: Sequence[str]) -> tuple[str, ...]:
    """Each once, and none that lies below another one."""
    return tuple(sorted({one for one in resources if not any(one.startswith(f"{other}/") for other in resources)}))


def conflict(one: Row, other: Row) -> bool:
    return one.agent != other.agent and (one.exclusive or other.exclusive) and overlap(one, other)


def may_not_pass(later: Row, earlier: Row) -> bool:
    return overlap(later, earlier) and (later.exclusive or earlier.exclusive or later.agent == earlier.agent)


class Book:
    """What should be."""

    def __init__(self) -> None:
        self.held: list[Row] = []
        self.waits: list[Row] = []

    # --- What is asked -----------------------------------------------------------------------------------------------

    def verdict(self, want: Row, now_us: int, *, waits: bool) -> str:
        if self.same(want, now_us):
            return "refreshed"
        if self.is_covered(want, now_us) or not (self.holders_against(want) or self.waits_before(want, self.waits)):
            return "granted"
        if not waits:
            return "LOCK_HELD"
        return "DEADLOCK" if self.would_never_end(want) else "queued"

    def same(self, want: Row, now_us: int) -> Row | None:
        alike = [row for row in self.held if (row.agent, row.resources) == (want.agent, want.resources)]
        return next((row for row in alike if row.exclusive == want.exclusive and row.until_us > now_us), None)

    def is_covered(self, want: Row, now_us: int) -> bool:
        return all(self._covers_one(want, resource, now_us) for resource in want.resources)

    def _covers_one(self, want: Row, resource: str, now_us: int) -> bool:
        own = [row for row in self.held if row.agent == want.agent and row.until_us > now_us]
        strong = [row for row in own if row.exclusive or not want.exclusive]
        names = [name.split("/") for row in strong for name in row.resources]
        return any(resource.split("/")[: len(name)] == name for name in names)

    def holders_against(self, want: Row) -> list[Row]:
        return [row for row in self.held if conflict(row, want)]

    def waits_before(self, want: Row, earlier: Sequence[Row]) -> list[Row]:
        return [row for row in earlier if may_not_pass(want, row)]

    def earlier(self, row: Row) -> list[Row]:
        """The waits before this one; before what is only asked for, all."""
        return self.waits[: self.waits.index(row)] if row in self.waits else self.waits

    # --- Who waits for whom ------------------------------------------------------------------------------------------

    def would_never_end(self, want: Row) -> bool:
        """Whether it comes back to a lock of who asks: a lock is held until all waits of its agent have ended."""
        seen: list[Row] = []
        ahead = [want]
        while ahead:
            row = ahead.pop()
            if row in seen:
                continue
            seen.append(row)
            holders = {holder.agent for holder in self.holders_against(row)}
            if want.agent in holders:
                return True
            ahead += [wait for wait in self.waits if wait.agent in holders]
            ahead += self.waits_before(row, self.earlier(row))
        return False

    def waits_for(self, row: Row) -> set[str]:
        """The agents that a wait is for: an edge each."""
        others = self.holders_against(row) + self.waits_before(row, self.earlier(row))
        return {other.agent for other in others}

    def agents_in_a_circle(self, extra: Sequence[Row] = ()) -> set[str]:
        """The other way to find one, exact where everyone waits for one lock at a time."""
        edges = {agent: set[str]() for agent in AGENTS}
        for row in (*self.waits, *extra):
            edges[row.agent] |= self.waits_for(row)
        for _ in AGENTS:
            for agent in AGENTS:
                edges[agent] |= {further for other in edges[agent] for further in edges[other]}
        return {agent for agent in AGENTS if agent in edges[agent]}

    # --- What comes by itself ----------------------------------------------------------------------------------------

    def settle(
        self, now_us: int, *, room: int, sessions: Sequence[str] = (), ended: dict[str, str] | None = None
    ) -> Iterator[Event]:
        """Everything that is due, to the end."""
        yield from self._expire(now_us)
        for row in [row for row in self.held if row.session in sessions]:
            self.held.remove(row)
            yield _event("released", row, "SESSION_ENDED")
        for row in [row for row in self.waits if row.session in sessions]:
            self.waits.remove(row)
            yield _event("wait_ended", row, "SESSION_ENDED")
        for row in [row for row in self.waits if row.id in (ended or {})]:
            self.waits.remove(row)
            yield _event("wait_ended", row, "CANCELLED")
        while True:
            yield from self._grant_all(now_us)
            over = sorted((row.until_us, row.seq) for row in self.waits if row.until_us <= now_us)[:room]
            if not over:
                return
            for row in [row for row in self.waits if (row.until_us, row.seq) in over]:
                self.waits.remove(row)
                yield _event("wait_ended", row, "DEADLINE")

    def _expire(self, now_us: int) -> Iterator[Event]:
        for row in [row for row in self.held if row.until_us <= now_us]:
            self.held.remove(row)
            yield _event("expired", row)

    def _grant_all(self, now_us: int) -> Iterator[Event]:
        while True:
            for row in self.waits:
                if not self.holders_against(row) and not self.waits_before(row, self.earlier(row)):
                    break
            else:
                return
            self.waits.remove(row)
            same = self.same(row, now_us)
            if same:
                same.until_us = max(same.until_us, now_us + row.ttl_us)
                same.session = row.session
                yield _event("refreshed", row)
            else:
                self.held.append(Row(**{**vars(row), "until_us": now_us + row.ttl_us}))
                yield _event("granted", row)

    def named(self, wait_id: str, unit: WorkUnit) -> None:
        """The lock that this wait was granted has an id and a token now."""
        (row,) = [row for row in self.held if row.id == wait_id]
        row.id, row.seq = unit.id, unit.seq


def _event(what: str, row: Row, why: str = "") -> Event:
    return (what, row.agent, row.resources, row.id, why)


def event_of(unit: WorkUnit) -> Event:
    change = change_of(unit)
    claim_id = change.wait_id or change.lock_id or ""
    return str(unit.kind).removeprefix("lock."), change.agent_id, change.resources, claim_id, change.why or ""


ACQUIRES = st.builds(
    AcquireLock,
    agent_id=st.sampled_from(AGENTS),
    resources=st.lists(st.sampled_from(RESOURCES), min_size=1, max_size=3).map(tuple),
    mode=st.sampled_from(LockMode),
    ttl_ms=st.sampled_from([1_000, 5_000, 20_000, 60_000]),
    wait_ms=st.sampled_from([0, 2_000, 10_000, 30_000, 60_000]),
    session=st.sampled_from([None, None, "s", "t"]),
)


class LocksMachine(RuleBasedStateMachine):
    """Both are asked the same, and compared after every step. Everyone may wait for several locks at a time."""

    waits_per_agent_max = 3

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.book = Book()
        self.room = 512
        self.kept: list[tuple[int, bytes]] = []
        self.newest_token = 0

    @initialize(room=st.sampled_from([1, 2, 512]))
    def steps_are_small_or_large(self, room: int) -> None:
        self.room = room

    # --- What is asked -----------------------------------------------------------------------------------------------

    @rule(commands=st.lists(ACQUIRES, min_size=1, max_size=6))
    def ask(self, commands: list[AcquireLock]) -> None:
        for command in commands:
            self.ask_one(command)

    def ask_one(self, command: AcquireLock) -> None:
        if len([row for row in self.book.waits if row.agent == command.agent_id]) >= self.waits_per_agent_max:
            command = msgspec.structs.replace(command, wait_ms=0)
        want = Row(
            agent=command.agent_id,
            resources=outermost(command.resources),
            exclusive=command.mode is LockMode.EXCLUSIVE,
            ttl_us=command.ttl_ms * 1_000,
            until_us=self.table.now_us + command.ttl_ms * 1_000,
            session=command.session,
        )
        expected = self.book.verdict(want, self.table.now_us, waits=command.wait_ms > 0)
        units, refusal = self.asked(command)
        if refusal is not None:
            assert refusal.code == expected
            self.check_refusal(refusal, want)
            return
        assert [str(unit.kind) for unit in units] == [f"lock.{expected}"]
        self.write(units[0], want, wait_us=command.wait_ms * 1_000)
        self.settle()

    def check_refusal(self, exc: EngramError, want: Row) -> None:
        """It names somebody who is in the way, or a circle there is."""
        if exc.code == "LOCK_HELD":
            holders = self.book.holders_against(want)
            named = holders or self.book.waits_before(want, self.book.waits)
            assert exc.details["waits"] == (not holders)
            assert exc.details["holder_agent"] in {row.agent for row in named}
            return
        circle = [(step["agent_id"], step["waits_for"]) for step in exc.details["cycle"]]
        assert circle[0][0] == circle[-1][1] == want.agent
        assert [other for _, other in circle[:-1]] == [agent for agent, _ in circle[1:]]
        for agent, other in circle:
            rows = [row for row in self.book.waits if row.agent == agent] + [want] * (agent == want.agent)
            assert any(other in self.book.waits_for(row) for row in rows)

    def write(self, unit: WorkUnit, want: Row, *, wait_us: int) -> None:
        now_us = self.table.now_us
        match unit.kind:
            case "lock.refreshed":
                row = self.book.same(want, now_us)
                assert row is not None
                row.until_us, row.session = max(row.until_us, want.until_us), want.session
            case "lock.granted":
                want.id, want.seq = unit.id, unit.seq
                self.book.held.append(want)
                self.check_token(unit)
            case "lock.queued":
                want.id, want.seq, want.until_us = unit.id, unit.seq, now_us + wait_us
                self.book.waits.append(want)

    def check_token(self, unit: WorkUnit) -> None:
        assert unit.seq > self.newest_token, "tokens grow"
        self.newest_token = unit.seq

    @precondition(lambda self: self.book.held)
    @rule(data=st.data(), agent=st.none() | st.sampled_from(AGENTS), ttl=st.sampled_from([None, 1, 5]))
    def refresh(self, data: st.DataObject, agent: str | None, ttl: int | None) -> None:
        row = data.draw(st.sampled_from(self.book.held))
        lock = self.unit_of(row)
        command = refresh_command(agent or row.agent, lock, ttl_ms=None if ttl is None else ttl * 1_000)
        refusal = "NOT_HOLDER" if agent not in (None, row.agent) else ""
        if not refusal and row.until_us <= self.table.now_us:
            refusal = "LOCK_LOST"
        if not self.is_refused(command, refusal):
            asked_us = self.table.now_us + (row.ttl_us if ttl is None else ttl * SECOND)
            row.until_us = max(row.until_us, asked_us)
        self.settle()

    @precondition(lambda self: self.book.held)
    @rule(data=st.data(), agent=st.none() | st.sampled_from(AGENTS))
    def release(self, data: st.DataObject, agent: str | None) -> None:
        row = data.draw(st.sampled_from(self.book.held))
        refusal = "NOT_HOLDER" if agent not in (None, row.agent) else ""
        if not self.is_refused(release_command(agent or row.agent, self.unit_of(row)), refusal):
            self.book.held.remove(row)
        self.settle()

    @rule(data=st.data())
    def what_is_not_held_any_more_is_not_found(self, data: st.DataObject) -> None:
        held = {row.id for row in self.book.held}
        gone = [unit for unit in self.table.units if unit.kind == "lock.granted" and unit.id not in held]
        if gone:
            unit = data.draw(st.sampled_from(gone))
            assert self.table.ask(release_command("ann", unit)) == []
            assert self.is_refused(refresh_command(unit.agent_id, unit), "LOCK_LOST")
            assert not self.table.locks.is_valid(unit.resources[0], unit.seq, self.table.now_us)

    @rule(resource=st.sampled_from(RESOURCES))
    def break_open(self, resource: str) -> None:
        taken = [row for row in self.book.held if resource in row.resources]
        refusal = "" if taken else "LOCK_NOT_FOUND"
        self.is_refused(BreakLock(resource=resource, agent_id="root", reason="stuck"), refusal)
        self.book.held = [row for row in self.book.held if row not in taken]
        self.settle()

    def asked(self, command: Command) -> tuple[list[WorkUnit], EngramError | None]:
        try:
            return self.table.ask(command), None
        except EngramError as exc:
            return [], exc

    def is_refused(self, command: Command, refusal: str) -> bool:
        """Whether it is, as it should be (or not: "")."""
        _, refused = self.asked(command)
        assert (refused.code if refused else "") == refusal
        return bool(refusal)

    def unit_of(self, row: Row) -> WorkUnit:
        return self.table.units[row.seq - 1]

    @rule()
    def somebody_writes(self) -> None:
        self.table.ask(append())

    # --- What comes by itself ----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 1, 2, 5, 20]))
    def time_passes(self, seconds: float) -> None:
        self.table.now_us += int(seconds * SECOND)
        self.settle()

    @rule(seconds=st.sampled_from([1, 5, 20]))
    def time_passes_unnoticed(self, seconds: int) -> None:
        """More ran out at once than one commit takes: the next commands come before it is on the record."""
        self.table.now_us += seconds * SECOND

    @precondition(lambda self: self.book.waits)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.book.waits))
        self.settle(ended={row.id: "CANCELLED"})

    @rule(session=st.sampled_from(["s", "t"]))
    def a_session_ends(self, session: str) -> None:
        self.settle(sessions=(session,))

    def settle(self, *, sessions: tuple[str, ...] = (), ended: dict[str, str] | None = None) -> None:
        first = len(self.table.units)
        self.table.tend(units_max=self.room, ended_sessions=sessions, ended_waits=ended or {})
        units = self.table.units[first:]
        due = list(self.book.settle(self.table.now_us, room=self.room, sessions=sessions, ended=ended))
        assert sorted(map(event_of, units)) == sorted(due)
        for unit in units:
            if unit.kind == "lock.granted":
                self.check_token(unit)
                self.book.named(change_of(unit).wait_id or "", unit)

    # --- The same again ----------------------------------------------------------------------------------------------

    @rule()
    def keep_a_snapshot(self) -> None:
        self.kept.append((len(self.table.units), self.table.locks.snapshot()))

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """From any snapshot, or from nothing; and on with that."""
        seq, state = data.draw(st.sampled_from([(0, None), *self.kept]))
        restarted = Locks()
        restarted.restore(state)
        for unit in self.table.units[seq:]:
            restarted.evolve(unit)
        live = self.table.locks
        assert restarted.snapshot() == live.snapshot()
        assert (restarted.next_due_us, restarted.waits) == (live.next_due_us, live.waits)
        for us in (live.next_due_us or 0, self.table.now_us + 5 * SECOND):
            step = [
                sorted(draft.payload for draft in locks.decide(TendLocks(units_max=512), Stamp(us, 0)))
                for locks in (restarted, live)
            ]
            assert step[0] == step[1]
        self.table.state.locks = restarted

    # --- What always holds -------------------------------------------------------------------------------------------

    @invariant()
    def nobody_holds_what_another_one_holds(self) -> None:
        held = [lock for _, lock in self.listed()]
        rows = [
            Row(lock.holder_agent, lock.resources, lock.mode is LockMode.EXCLUSIVE, 0, 0, None, lock.lock_id)
            for lock in held
        ]
        assert not any(conflict(one, other) for one in rows for other in rows)

    @invariant()
    def the_table_is_the_book(self) -> None:
        now_us = self.table.now_us
        rows = sorted((name, row.seq, row.agent, row.id) for row in self.book.held for name in row.resources)
        assert rows == [(name, lock.fencing_token, lock.holder_agent, lock.lock_id) for name, lock in self.listed()]
        assert self.table.locks.waits == [row.id for row in self.book.waits]
        for row in self.book.held:
            lock = self.table.locks.lock(row.id, now_us)
            assert lock is not None
            assert lock.remaining_ms == max(0, row.until_us - now_us) // 1_000
            assert lock.session == row.session
            assert self.table.locks.is_valid(f"{row.resources[0]}/x", row.seq, now_us) == (row.until_us > now_us)

    def listed(self) -> list[tuple[str, Lock]]:
        return self.table.locks.held(after=("", 0), prefix="", holder=None, limit=1_000, now_us=self.table.now_us)

    def teardown(self) -> None:
        """Every wait ends, every lease runs out: only time has to pass."""
        while (due_us := self.table.locks.next_due_us) is not None:
            self.table.now_us = max(self.table.now_us, due_us)
            before = len(self.table.units)
            self.settle()
            assert len(self.table.units) > before, "what is due happens"
        assert (self.table.locks.held_count, self.table.locks.waiting_count) == (0, 0)
        assert not self.table.locks.sessions
        self.table.state.locks.restore(self.table.locks.snapshot())
        assert self.table.locks.snapshot() == Locks().snapshot()


class OneWaitMachine(LocksMachine):
    """Everyone waits for one lock at a time: then a circle is refused exactly where there would be one."""

    waits_per_agent_max = 1

    def check_refusal(self, exc: EngramError, want: Row) -> None:
        super().check_refusal(exc, want)
        if exc.code == "DEADLOCK":
            assert want.agent in self.book.agents_in_a_circle([want])

    @invariant()
    def nobody_waits_in_a_circle(self) -> None:
        assert self.book.agents_in_a_circle() == set()


MACHINES = pytest.mark.parametrize("machine", [LocksMachine, OneWaitMachine])


@MACHINES
def test_locks_do_as_the_book_says(machine: type[LocksMachine]) -> None:
    run(machine, examples=600, steps=40)


@MACHINES
@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_locks_do_as_the_book_says_for_a_long_time(machine: type[LocksMachine]) -> None:
    run(machine, examples=5_000, steps=80)


def run(machine: type[LocksMachine], *, examples: int, steps: int) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=steps))
