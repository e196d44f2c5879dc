"""The writer and locks: who waits is answered once, by what is on the disk, whatever clock, disk or stop does."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.bus import writer as writer_module
from engram_bus.bus.admission import admit
from engram_bus.bus.writer import Answer, Ticket
from engram_bus.clock import Clock
from engram_bus.decisions import locks as locks_module
from engram_bus.decisions.locks import Locks, change_of
from engram_bus.embedded import Bus
from engram_bus.errors import (
    Deadlock,
    EngramError,
    FenceRequired,
    FenceStale,
    InternalError,
    LockHeld,
    LockLost,
    LogDamaged,
    ShuttingDown,
    StorageReadOnly,
    WaitEnded,
)
from engram_bus.limits import KIB, LOCK_TEND_UNITS_MAX, SNAPSHOT_UNITS
from engram_bus.log.contract import Log, Snapshot
from engram_bus.units import (
    AcquireLock,
    Append,
    AppendAtomic,
    BreakLock,
    Command,
    Fence,
    Lock,
    LockMode,
    RefreshLock,
    ReleaseLock,
    UpdateContext,
)
from tests.bus.test_writer import FULL, Desk, Outcome, RefusingMemoryLog, log_of, raise_, raise_mistake, units_of
from tests.values import append

pytestmark = pytest.mark.anyio

TTL = 30_000
WAIT = 60_000
HOUR = 3_600


class Hands:
    """The clocks of a machine, moved by hand."""

    def __init__(self) -> None:
        self.boot_us = 5_000_000
        self.wall_us = 1_700_000_000_000_000

    def clock(self, not_before_us: int) -> Clock:
        return Clock(not_before_us, boot_us=lambda: self.boot_us, wall_us=lambda: self.wall_us)

    def pass_time(self, seconds: float) -> None:
        self.boot_us += int(seconds * 1_000_000)
        self.wall_us += int(seconds * 1_000_000)

    def set_wall(self, seconds: float) -> None:
        """Somebody sets the clock."""
        self.wall_us += int(seconds * 1_000_000)


class LockDesk(Desk):
    """A writer whose time is moved by hand."""

    def __init__(self, log: Log, hands: Hands | None = None) -> None:
        self.hands = hands or Hands()
        super().__init__(log, self.hands.clock)

    async def lock(self, agent_id: str, *resources: str, **asked: Any) -> Lock:
        answer = await self.ask_one(acquire(agent_id, *resources, **asked))
        assert answer.lock is not None
        return answer.lock

    async def wait(self, agent_id: str, *resources: str, **asked: Any) -> "asyncio.Future[Outcome]":
        """What this one will be told; it stands in line when this returns."""
        before = self.locks.waiting_count
        answered = self.submit(acquire(agent_id, *resources, wait_ms=asked.pop("wait_ms", WAIT), **asked))
        await until(lambda: self.locks.waiting_count > before)
        return answered

    def enqueue(self, command: Command) -> "tuple[Ticket, asyncio.Future[Outcome]]":
        answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        return self.writer.submit(command, admit(command), answered.set_result), answered

    @property
    def locks(self) -> Locks:
        return self.writer.state.locks

    @property
    def said(self) -> list[str]:
        return [f"{unit.kind} {change_of(unit).agent_id}" for unit in self.lock_units]

    @property
    def lock_units(self) -> list[Any]:
        return [unit for unit in units_of(self.log) if (unit.kind or "").startswith("lock.")]

    def holders(self, resource: str) -> list[str]:
        return [lock.holder_agent for lock in self.locks.state(resource, self.writer.now_us()).holders]

    async def settled(self) -> None:
        """Nothing is due."""
        await until(lambda: self.writer.refusal is None and not self.is_due())

    def is_due(self) -> bool:
        return self.writer._turn_due or self.writer._is_due(self.writer.now_us())

    def kill(self) -> None:
        """It does nothing any more, and kept nothing."""
        for timer in (self.writer._timer, self.writer._probe):
            if timer is not None:
                timer.cancel()
        self.writer._refusal = ShuttingDown("killed")

    def restart(self) -> "LockDesk":
        self.kill()
        return LockDesk(self.log, self.hands)


@pytest.fixture(params=["memory", "lmdb"])
async def desk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LockDesk]:
    with log_of(request.param, tmp_path) as log:
        desk = LockDesk(log)
        yield desk
        desk.kill()


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Time is moved by hand: the timer looks whether it was."""
    monkeypatch.setattr(writer_module, "LOCK_TIMER_SECONDS_MAX", 0.001)
    monkeypatch.setattr(writer_module, "STORAGE_RETRY_SECONDS", 0.001)
    caplog.set_level(logging.ERROR)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.0005)


def acquire(agent_id: str, *resources: str, ttl_ms: int = TTL, **asked: Any) -> AcquireLock:
    return AcquireLock(resources=resources, agent_id=agent_id, ttl_ms=ttl_ms, **asked)


def release(lock: Lock) -> ReleaseLock:
    return ReleaseLock(lock_id=lock.lock_id, agent_id=lock.holder_agent)


def refresh(lock: Lock, ttl_ms: int | None = None) -> RefreshLock:
    return RefreshLock(lock_id=lock.lock_id, agent_id=lock.holder_agent, ttl_ms=ttl_ms)


def lock_of(outcome: Outcome) -> Lock:
    assert isinstance(outcome, Answer), outcome
    assert outcome.lock is not None
    return outcome.lock


def folded(log: Log) -> bytes:
    """The locks that the log alone gives."""
    locks = Locks()
    for unit in units_of(log):
        locks.evolve(unit)
    return locks.snapshot()


# --- One commit ------------------------------------------------------------------------------------------------------


async def test_a_release_and_the_grants_it_makes_possible_are_one_commit(desk: LockDesk) -> None:
    lock = await desk.lock("ann", "a")
    waits = [await desk.wait(agent, "a", mode=LockMode.SHARED) for agent in ("bob", "eve")]
    commits = desk.writer.commits
    await desk.ask(release(lock))
    assert desk.writer.commits == commits + 1
    assert [lock_of(wait.result()).fencing_token for wait in waits] == [5, 6]
    assert desk.said[3:] == ["lock.released ann", "lock.granted bob", "lock.granted eve"]


async def test_who_asks_behind_a_release_in_the_same_turn_stands_behind_who_waited(desk: LockDesk) -> None:
    lock = await desk.lock("ann", "a")
    bobs = await desk.wait("bob", "a")
    _, refused = await desk.ask(release(lock), acquire("eve", "a"))
    assert isinstance(refused, LockHeld)
    assert refused.details["holder_agent"] == "bob"
    assert bobs.done()


async def test_a_refusal_is_not_told_before_the_commit_that_it_saw(desk: LockDesk) -> None:
    desk.log.refuse_at = 1
    assert await desk.ask(acquire("ann", "a"), acquire("bob", "a")) == [FULL, FULL]
    assert desk.log.head == 0


async def test_an_answer_comes_after_its_commit(desk: LockDesk) -> None:
    """`submit` checks that; and nobody is told of a grant that is not on the disk."""
    lock = await desk.lock("ann", "a")
    heads = []
    bobs = acquire("bob", "a", wait_ms=WAIT)
    desk.writer.submit(bobs, admit(bobs), lambda outcome: heads.append((lock_of(outcome), desk.log.head)))
    await desk.ask(append())
    await desk.ask(release(lock))
    ((granted, head),) = heads
    assert granted.fencing_token <= head


async def test_a_commit_that_fails_after_a_grant_was_decided_gives_nobody_the_lock(desk: LockDesk) -> None:
    lock = await desk.lock("ann", "a")
    bobs = await desk.wait("bob", "a")
    desk.log.refuse_at = desk.log.appends + 1
    assert await desk.ask(release(lock), acquire("eve", "b")) == [FULL, FULL]
    assert bobs.result() is FULL
    assert (desk.holders("a"), desk.holders("b")) == (["ann"], [])
    await desk.settled()
    assert desk.said == ["lock.granted ann", "lock.queued bob", "lock.wait_ended bob"]
    assert desk.locks.snapshot() == folded(desk.log)
    assert (await desk.ask_one(release(lock))).entries


async def test_a_mistake_of_ours_gives_nobody_the_lock_either(desk: LockDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = await desk.lock("ann", "a")
    bobs = await desk.wait("bob", "a")
    with monkeypatch.context() as mistaken:
        mistaken.setattr(writer_module, "seal", raise_mistake)
        (outcome,) = await desk.ask(release(lock))
    assert isinstance(outcome, InternalError)
    assert isinstance(bobs.result(), InternalError)
    await desk.settled()
    assert (desk.holders("a"), desk.locks.waiting_count) == (["ann"], 0)
    assert change_of(units_of(desk.log)[-1]).why == "INTERRUPTED"


async def test_a_deadlock_is_told_at_once(desk: LockDesk) -> None:
    await desk.lock("ann", "a")
    await desk.lock("bob", "b")
    anns, bobs = [desk.submit(acquire(*names, wait_ms=WAIT)) for names in (("ann", "b"), ("bob", "a"))]
    assert isinstance(await bobs, Deadlock)
    assert not anns.done()


# --- Time ------------------------------------------------------------------------------------------------------------


async def test_a_lease_that_runs_out_in_silence_is_found(desk: LockDesk) -> None:
    await desk.lock("ann", "a")
    desk.hands.pass_time(29.9)
    await asyncio.sleep(0.01)
    assert desk.said == ["lock.granted ann"]
    desk.hands.pass_time(0.1)
    await until(lambda: desk.said == ["lock.granted ann", "lock.expired ann"])
    assert desk.told[-1].unit.kind == "lock.expired"


async def test_who_waits_is_granted_what_runs_out(desk: LockDesk) -> None:
    await desk.lock("ann", "a")
    bobs = await desk.wait("bob", "a")
    desk.hands.pass_time(30)
    assert lock_of(await bobs).remaining_ms == TTL


async def test_who_waits_is_refused_at_the_deadline(desk: LockDesk) -> None:
    await desk.lock("ann", "a", reason="long")
    bobs = await desk.wait("bob", "a", wait_ms=5_000)
    desk.hands.pass_time(5)
    refused = await bobs
    assert isinstance(refused, LockHeld)
    assert (refused.details["holder_agent"], refused.details["reason"]) == ("ann", "long")
    assert desk.said[-1] == "lock.wait_ended bob"


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
async def test_a_clock_that_is_set_moves_no_lease(desk: LockDesk, seconds: int) -> None:
    """What is slewed is half a percent: of thirty seconds, 150 ms."""
    await desk.lock("ann", "a")
    bobs = await desk.wait("bob", "a")
    desk.hands.set_wall(seconds)
    desk.hands.pass_time(29.8)
    await asyncio.sleep(0.01)
    assert (desk.holders("a"), bobs.done()) == (["ann"], False)
    desk.hands.pass_time(0.4)
    granted = lock_of(await bobs)
    assert desk.said == ["lock.granted ann", "lock.queued bob", "lock.expired ann", "lock.granted bob"]
    desk.hands.set_wall(-seconds)
    desk.hands.pass_time(29.8)
    assert (await desk.ask_one(refresh(granted))).lock is not None
    desk.hands.pass_time(30.3)
    (lost,) = await desk.ask(refresh(granted))
    assert isinstance(lost, LockLost)


async def test_a_clock_that_was_set_back_over_a_restart_lets_no_lease_live_on(desk: LockDesk) -> None:
    """Time goes on from the newest unit of the log."""
    await desk.lock("ann", "a")
    desk.hands.set_wall(-HOUR)
    restarted = desk.restart()
    restarted.hands.pass_time(30.2)
    await until(lambda: restarted.said[-1] == "lock.expired ann")


async def test_a_mass_of_ended_leases_does_not_hold_up_an_append(desk: LockDesk) -> None:
    count = LOCK_TEND_UNITS_MAX + 200
    for number in range(count):
        desk.submit(acquire("ann", f"a{number}"))
    await until(lambda: desk.locks.held_count == count)
    desk.hands.pass_time(30)
    commits = desk.writer.commits
    answer = await desk.ask_one(append())
    assert desk.writer.commits <= commits + 2, "it is in the first commit after it was asked"
    assert answer.entries[0].seq <= count + 2 * LOCK_TEND_UNITS_MAX + 1
    await desk.settled()
    assert desk.locks.held_count == 0
    assert desk.writer.commits <= commits + 3


async def test_what_comes_before_a_break_does_not_make_its_commit_too_large(
    desk: LockDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "BATCH_BYTES_MAX", 64 * KIB)
    for module in (writer_module, locks_module):
        monkeypatch.setattr(module, "LOCK_BREAK_BYTES_MAX", 32 * KIB)
    names = [f"{number}{'x' * 1_000}" for number in range(4)]
    for number in range(4):
        await desk.lock(f"agent-{number}", "a", *names, mode=LockMode.SHARED)
    commits = desk.writer.commits
    _, broken = await desk.ask(
        append(payload=b"x" * 40 * KIB), BreakLock(resource="a", agent_id="root", reason="stuck")
    )
    assert isinstance(broken, Answer)
    assert (len(broken.entries), desk.writer.commits) == (3, commits + 2)


# --- Stop and start --------------------------------------------------------------------------------------------------


async def test_after_a_restart_locks_are_as_they_were_and_nobody_waits(desk: LockDesk) -> None:
    lock = await desk.lock("ann", "a")
    await desk.lock("ann", "b", ttl_ms=1_000)
    await desk.wait("bob", "a")
    desk.hands.pass_time(0.5)
    kept = lock_of(await desk.ask_one(refresh(lock, 20_000)))
    desk.hands.pass_time(10)
    restarted = desk.restart()
    await restarted.settled()
    assert restarted.said[-2:] == ["lock.expired ann", "lock.wait_ended bob"]
    assert change_of(restarted.lock_units[-1]).why == "RESTARTED"
    now = restarted.locks.lock(lock.lock_id, restarted.writer.now_us())
    assert now is not None
    assert (now.fencing_token, now.expires_at) == (lock.fencing_token, kept.expires_at)
    assert (await restarted.lock("bob", "b")).fencing_token > lock.fencing_token


async def test_a_wait_of_before_a_restart_is_granted_nothing(desk: LockDesk) -> None:
    """Its lock would be held by nobody."""
    await desk.lock("ann", "a", ttl_ms=1_000)
    await desk.wait("bob", "a")
    desk.hands.pass_time(10)
    restarted = desk.restart()
    assert (await restarted.lock("eve", "a")).holder_agent == "eve"
    assert "lock.granted bob" not in restarted.said


async def test_who_waits_when_the_bus_closes_may_come_back(desk: LockDesk) -> None:
    await desk.lock("ann", "a")
    bobs = await desk.wait("bob", "a")
    eves = desk.submit(acquire("eve", "a", wait_ms=WAIT))
    desk.writer.close()
    for answered in (bobs, eves):
        outcome = answered.result()
        assert isinstance(outcome, ShuttingDown)
        assert outcome.retryable
    restarted = desk.restart()
    await restarted.settled()
    assert restarted.said[-2:] == ["lock.wait_ended bob", "lock.wait_ended eve"]


async def test_two_snapshots_of_different_age_fold_right(desk: LockDesk) -> None:
    await desk.lock("ann", "a")
    contexts, locks = desk.writer.state.parts
    desk.log.save_snapshot(contexts.name, Snapshot(desk.log.head, contexts.snapshot()))
    await desk.lock("bob", "b", context_id="plan")
    desk.log.save_snapshot(locks.name, Snapshot(desk.log.head, locks.snapshot()))
    await desk.ask(append(), acquire("eve", "c"))
    assert desk.log.head < SNAPSHOT_UNITS
    restarted = desk.restart()
    assert restarted.locks.snapshot() == desk.locks.snapshot() == folded(desk.log)
    assert restarted.writer.state.contexts.snapshot() == desk.writer.state.contexts.snapshot()


async def test_a_log_with_a_snapshot_of_contexts_alone_is_folded_from_its_beginning(desk: LockDesk) -> None:
    """As a bus without locks left it."""
    await desk.lock("ann", "a")
    contexts = desk.writer.state.contexts
    desk.log.save_snapshot(contexts.name, Snapshot(desk.log.head, contexts.snapshot()))
    restarted = desk.restart()
    assert restarted.holders("a") == ["ann"]
    assert restarted.writer.state.contexts.snapshot() == contexts.snapshot()


# --- When the disk refuses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [FULL, StorageReadOnly("read-only")])
async def test_who_waits_when_the_disk_refuses_is_told_and_off_the_line_once_it_works_again(
    desk: LockDesk, refusal: EngramError
) -> None:
    await desk.lock("ann", "a")
    bobs = await desk.wait("bob", "a")
    desk.log.refusal = refusal
    assert await desk.ask(append()) == [refusal]
    assert bobs.result() is refusal
    assert refusal.retryable
    desk.hands.pass_time(30)
    desk.log.refusal = None
    await desk.settled()
    assert desk.said[2:] == ["lock.expired ann", "lock.wait_ended bob"]
    assert change_of(units_of(desk.log)[-1]).why == "INTERRUPTED"


async def test_waits_that_were_read_only_later_are_ended_too(desk: LockDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log could not be folded again at once: who waited is known only when it can."""
    await desk.lock("ann", "a")
    bobs = await desk.wait("bob", "a")
    desk.log.refuse_at = desk.log.appends + 1
    with monkeypatch.context() as broken:
        broken.setattr(type(desk.log), "read", lambda *args, **kwargs: raise_(LogDamaged("damaged", seq=1)))
        assert await desk.ask(append()) == [FULL]
    assert bobs.done()
    await desk.settled()
    assert desk.locks.waiting_count == 0
    assert change_of(units_of(desk.log)[-1]).why == "INTERRUPTED"


async def test_a_session_whose_end_was_not_committed_ends_with_the_next_commit(desk: LockDesk) -> None:
    await desk.lock("ann", "a", session="s")
    desk.log.refuse_at = desk.log.appends + 1
    desk.writer.end_session("s")
    await until(lambda: desk.log.appends == desk.log.refuse_at)
    await desk.settled()
    assert desk.said == ["lock.granted ann", "lock.released ann"]


async def test_a_session_that_ends_while_the_disk_refuses_is_ended_later(desk: LockDesk) -> None:
    await desk.lock("ann", "a", session="s")
    desk.log.refusal = FULL
    await desk.ask(append())
    desk.writer.end_session("s")
    desk.log.refusal = None
    await desk.settled()
    assert desk.said == ["lock.granted ann", "lock.released ann"]


async def test_locks_that_cannot_be_tended_hold_nobody_up(desk: LockDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours: appends go on, and it is tried again now and then, not in every turn of the loop."""
    await desk.lock("ann", "a")
    tries = 0

    def mistake(*_: Any) -> None:
        nonlocal tries
        tries += 1
        raise ZeroDivisionError

    with monkeypatch.context() as mistaken:
        mistaken.setattr(writer_module, "LOCK_TIMER_SECONDS_MAX", 60.0)
        mistaken.setattr(Locks, "_tend", mistake)
        desk.hands.pass_time(30)
        assert (await desk.ask_one(append())).entries
        for _ in range(20):
            await asyncio.sleep(0)
        assert tries == 1
        mistaken.setattr(writer_module, "LOCK_TIMER_SECONDS_MAX", 0.001)
        await desk.ask(append())
        await until(lambda: tries > 3)
    await desk.settled()
    assert desk.said[-1] == "lock.expired ann"


# --- Sessions --------------------------------------------------------------------------------------------------------


async def test_what_is_tied_to_a_session_ends_with_it_and_goes_to_who_waits(desk: LockDesk) -> None:
    await desk.lock("ann", "a", session="s")
    await desk.lock("bob", "b")
    anns = await desk.wait("ann", "b", session="s")
    eves = await desk.wait("eve", "a")
    desk.writer.end_session("unknown")
    desk.writer.end_session("s")
    assert lock_of(await eves).holder_agent == "eve"
    ended = anns.result()
    assert isinstance(ended, WaitEnded)
    assert (ended.retryable, ended.details) == (True, {"why": "SESSION_ENDED"})


async def test_what_a_session_asked_for_last_is_not_granted_after_its_end(desk: LockDesk) -> None:
    """Who stood still for longer than a grace finds both in one turn."""
    anns = desk.submit(acquire("ann", "a", session="s"))
    eves = desk.submit(acquire("eve", "a", wait_ms=WAIT, session="s"))
    bobs = desk.submit(acquire("bob", "a", session="t"))
    desk.writer.end_session("s")
    assert lock_of(await bobs).holder_agent == "bob"
    assert isinstance(anns.result(), WaitEnded)
    assert isinstance(eves.result(), WaitEnded)
    await desk.settled()
    assert desk.said == ["lock.granted bob"]


async def test_a_session_is_ended_also_while_what_is_tied_to_it_cannot_be_read(
    desk: LockDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.lock("ann", "a", session="s")
    with monkeypatch.context() as damaged:
        damaged.setattr(type(desk.log), "read", lambda *args, **kwargs: raise_(LogDamaged("damaged", seq=1)))
        desk.log.refuse_at = desk.log.appends + 1
        assert await desk.ask(append()) == [FULL]
        desk.writer.end_session("s")
    await desk.settled()
    assert desk.said == ["lock.granted ann", "lock.released ann"]


# --- Cancelling ------------------------------------------------------------------------------------------------------


async def test_who_is_cancelled_before_the_turn_never_joins_the_line(desk: LockDesk) -> None:
    ticket, answered = desk.enqueue(acquire("ann", "a"))
    desk.writer.cancel(ticket)
    assert isinstance(await answered, WaitEnded)
    assert desk.log.head == 0


async def test_who_is_cancelled_leaves_the_line_for_the_next(desk: LockDesk) -> None:
    await desk.lock("ann", "a", mode=LockMode.SHARED)
    ticket, bobs = desk.enqueue(acquire("bob", "a", wait_ms=WAIT))
    eves = desk.submit(acquire("eve", "a", mode=LockMode.SHARED, wait_ms=WAIT))
    await until(lambda: desk.locks.waiting_count == 2)
    desk.writer.cancel(ticket)
    assert lock_of(await eves).holder_agent == "eve"
    assert isinstance(bobs.result(), WaitEnded)
    assert change_of(desk.lock_units[-2]).why == "CANCELLED"
    desk.writer.cancel(ticket)
    await desk.settled()
    assert desk.said[-1] == "lock.granted eve"


async def test_who_is_cancelled_in_the_turn_of_the_release_is_granted_nothing(desk: LockDesk) -> None:
    lock = await desk.lock("ann", "a")
    ticket, bobs = desk.enqueue(acquire("bob", "a", wait_ms=WAIT))
    await until(lambda: desk.locks.waiting_count == 1)
    desk.writer.cancel(ticket)
    await desk.ask(release(lock))
    assert isinstance(await bobs, WaitEnded)
    assert desk.said[2:] == ["lock.wait_ended bob", "lock.released ann"]


async def test_who_was_granted_is_not_cancelled(desk: LockDesk) -> None:
    ticket, answered = desk.enqueue(acquire("ann", "a"))
    await until(answered.done)
    desk.writer.cancel(ticket)
    await desk.settled()
    assert desk.said == ["lock.granted ann"]


@pytest.fixture(params=["memory", "lmdb"])
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bus]:
    with log_of(request.param, tmp_path) as log:
        bus = Bus(log)
        yield bus
        await bus.stop("over")


async def test_a_caller_that_goes_away_before_the_turn_holds_nothing(bus: Bus) -> None:
    asking = asyncio.ensure_future(bus.acquire_lock("a", agent_id="ann"))
    await asyncio.sleep(0)
    assert bus.writer.queue_commands == 1
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: bus.lock("a").holders == ())


async def test_a_caller_that_goes_away_while_it_waits_leaves_the_line(bus: Bus) -> None:
    await bus.acquire_lock("a", agent_id="ann")
    asking = asyncio.ensure_future(bus.acquire_lock("a", agent_id="bob", wait_seconds=60))
    await until(lambda: bus.lock("a").queue_length == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: bus.lock("a").queue_length == 0)
    assert [lock.holder_agent for lock in bus.lock("a").holders] == ["ann"]


async def test_a_caller_that_goes_away_in_the_turn_of_its_grant_gives_it_back(bus: Bus) -> None:
    lock = await bus.acquire_lock("a", agent_id="ann")
    asking = asyncio.ensure_future(bus.acquire_lock("a", agent_id="bob", wait_seconds=60))
    await until(lambda: bus.lock("a").queue_length == 1)

    def leave(outcome: Outcome) -> None:
        """Bob's grant is decided by now, and he has not heard of it."""
        asking.cancel()

    bus.submit(release(lock), leave)
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: bus.lock("a").holders == ())
    kinds = [unit.kind for unit in units_of(bus.log)]
    assert kinds == ["lock.granted", "lock.queued", "lock.released", "lock.granted", "lock.released"]


# --- Fences ----------------------------------------------------------------------------------------------------------


def fenced(lock: Lock, resource: str = "a") -> Append:
    return msgspec.structs.replace(append(agent_id=lock.holder_agent), fence=Fence(resource, lock.fencing_token))


async def test_a_fenced_append_is_taken_while_its_lock_is_held(desk: LockDesk) -> None:
    lock = await desk.lock("ann", "a")
    taken, _, stale = await desk.ask(fenced(lock, "a/b"), release(lock), fenced(lock))
    assert isinstance(taken, Answer)
    assert isinstance(stale, FenceStale)
    assert stale.details == {"token": lock.fencing_token}


async def test_a_lease_that_ran_out_fences_off_before_it_is_on_the_record(desk: LockDesk) -> None:
    lock = await desk.lock("ann", "a")
    desk.hands.pass_time(30)
    (stale,) = await desk.ask(fenced(lock))
    assert isinstance(stale, FenceStale)


async def test_in_an_atomic_batch_the_fenced_item_is_named_and_nothing_is_taken(desk: LockDesk) -> None:
    lock = await desk.lock("ann", "a")
    head = desk.log.head
    stale = msgspec.structs.replace(append(), fence=Fence("b", lock.fencing_token))
    (refused,) = await desk.ask(AppendAtomic(appends=(append(), fenced(lock), stale)))
    assert isinstance(refused, FenceStale)
    assert (refused.index, desk.log.head) == (2, head)
    (taken,) = await desk.ask(AppendAtomic(appends=(append(), fenced(lock))))
    assert isinstance(taken, Answer)


async def test_in_a_bulk_each_is_fenced_by_itself(bus: Bus) -> None:
    lock = await bus.acquire_lock("a", agent_id="ann")
    await bus.update_context("plan", fences=["b"])
    unlocked = append()
    unlocked.draft.resources.append("b")
    outcomes = await bus.execute_bulk([fenced(lock), fenced(lock, "b"), append(), unlocked])
    assert [type(outcome) for outcome in outcomes] == [Answer, FenceStale, Answer, FenceRequired]


async def test_a_repeat_is_answered_though_its_fence_is_stale_by_now(desk: LockDesk) -> None:
    lock = await desk.lock("ann", "a")
    command = msgspec.structs.replace(fenced(lock), idempotency_key="k")
    await desk.ask(command)
    await desk.ask(release(lock))
    assert (await desk.ask_one(command)).replayed


async def test_a_fence_set_in_the_same_turn_holds(desk: LockDesk) -> None:
    touching = append()
    touching.draft.resources.append("a")
    free, _, refused = await desk.ask(
        touching, UpdateContext(context_id="plan", agent_id="ann", fences=("a",)), touching
    )
    assert isinstance(free, Answer)
    assert isinstance(refused, FenceRequired)


# --- Everything at once ----------------------------------------------------------------------------------------------

AGENT = st.sampled_from(["ann", "bob", "eve"])
RESOURCE = st.sampled_from(["a", "a/b", "c"])
LOCK_COMMANDS = st.one_of(
    st.builds(
        AcquireLock,
        resources=st.lists(RESOURCE, min_size=1, max_size=2).map(tuple),
        agent_id=AGENT,
        ttl_ms=st.sampled_from([1_000, 30_000]),
        mode=st.sampled_from(LockMode),
        wait_ms=st.sampled_from([0, 2_000, 60_000]),
        session=st.none() | st.just("s"),
    ),
    st.builds(append, st.just("plan")),
    st.builds(BreakLock, resource=RESOURCE, agent_id=AGENT, reason=st.just("stuck")),
    st.sampled_from(["release", "refresh"]),
)
EVENTS = st.sampled_from(["commits", "commits", "fails", "restarts", "time passes", "cancels", "session ends"])
LOCK_TURNS = st.lists(st.tuples(st.lists(LOCK_COMMANDS, max_size=5), EVENTS), max_size=15)


@given(LOCK_TURNS)
def test_whatever_is_asked_and_whatever_fails_locks_are_the_log(turns: list[tuple[list[Any], str]]) -> None:
    asyncio.run(play(turns))


async def play(turns: list[tuple[list[Any], str]]) -> None:
    desk = LockDesk(RefusingMemoryLog())
    asked: list[tuple[Ticket, asyncio.Future[Outcome]]] = []
    granted: list[Lock] = []
    for commands, event in turns:
        desk.log.refusal = FULL if event == "fails" else None
        for command in commands:
            named = command_on(command, granted)
            if named is not None:
                asked.append(desk.enqueue(named))
        await asyncio.sleep(0)
        if event == "time passes":
            desk.hands.pass_time(2)
        if event == "cancels" and asked:
            desk.writer.cancel(asked[-1][0])
        if event == "session ends":
            desk.writer.end_session("s")
        if event == "restarts":
            desk.writer.close()
            assert all(answered.done() for _, answered in asked), "nobody is left without an answer"
            desk = desk.restart()
        desk.log.refusal = None
        await desk.settled()
        assert desk.locks.snapshot() == folded(desk.log)
        assert set(desk.locks.waits) == set(desk.writer._waiters), "who is in line waits for an answer"
        if event == "session ends":
            assert not desk.locks.has_session("s")
        granted += answered_locks(desk.log, asked)
        asked = [(ticket, answered) for ticket, answered in asked if not answered.done()]
    while desk.locks.next_due_us is not None:
        desk.hands.pass_time(120)
        await desk.settled()
    assert all(answered.done() for _, answered in asked)
    desk.writer.close()


def command_on(command: Any, granted: list[Lock]) -> Command | None:
    if not isinstance(command, str):
        return command  # type: ignore[no-any-return]
    if not granted:
        return None
    return release(granted[-1]) if command == "release" else refresh(granted[-1])


def answered_locks(log: Log, asked: "list[tuple[Ticket, asyncio.Future[Outcome]]]") -> list[Lock]:
    """What callers were told they hold: each is on the record."""
    outcomes = [answered.result() for _, answered in asked if answered.done()]
    locks = [outcome.lock for outcome in outcomes if isinstance(outcome, Answer) and outcome.lock is not None]
    for lock in locks:
        unit = log.record(lock.fencing_token).unit
        assert (unit.kind, unit.id, change_of(unit).agent_id) == ("lock.granted", lock.lock_id, lock.holder_agent)
    return locks
