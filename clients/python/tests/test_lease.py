"""What a lease makes of the answers it gets: without a bus, every answer prepared."""

import asyncio
import time
from collections.abc import Callable

import pytest
from anyio import CancelScope

from engram_client import Lease, Lock, LockMode
from engram_client.errors import Busy, EngramConnectionError, EngramError, InvalidRequest, LockHeld, LockLost, NotHolder
from engram_client.lease import OnLost, now

pytestmark = pytest.mark.usefixtures("refreshed_soon")
LONG = 10.0
"""What is left of a lease that has to outlive its test, also where the machine stands still for a while."""


def lock(seconds: float = 60, token: int = 7) -> Lock:
    return Lock(
        lock_id="l1",
        resources=["plan.md", "src"],
        holder_agent="ann",
        mode=LockMode.EXCLUSIVE,
        fencing_token=token,
        granted_at="",
        expires_at="",
        remaining_seconds=seconds,
    )


class Prepared:
    """A hold whose bus says what a test wants to hear: the last answer again and again."""

    def __init__(
        self,
        *refreshes: Lock | EngramError,
        acquired: Lock | EngramError | None = None,
        released: EngramError | None = None,
    ) -> None:
        self.over_at: float | None = None
        self.said: list[str] = []
        self.changed = asyncio.Event()
        self._acquired = acquired or lock()
        self._refreshes = list(refreshes) or [lock()]
        self._released = released

    async def acquire(self, wait_seconds: float) -> Lock:
        return await self._say("acquire", self._acquired)

    async def refresh(self, lock: Lock, *, timeout_seconds: float) -> Lock:
        return await self._say("refresh", self._refreshes.pop(0) if len(self._refreshes) > 1 else self._refreshes[0])

    async def release(self, lock: Lock) -> None:
        self.said.append("release")
        if self._released is not None:
            raise self._released

    async def watch(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def aclose(self) -> None:
        self.said.append("close")

    async def _say(self, verb: str, answer: Lock | EngramError) -> Lock:
        self.said.append(verb)
        self.changed.set()
        if isinstance(answer, EngramError):
            raise answer
        return answer

    async def heard(self, verb: str, times: int) -> None:
        while self.said.count(verb) < times:
            self.changed.clear()
            await self.changed.wait()


def leased(hold: Prepared, on_lost: OnLost = "cancel", running: set[object] | None = None) -> Lease:
    return Lease(
        hold,
        resources=("plan.md", "src"),
        wait_seconds=0,
        max_retries=2,
        on_lost=on_lost,
        running=set() if running is None else running,
    )


def chain(error: BaseException) -> list[BaseException]:
    """An exception and all it was raised during."""
    return [error] if error.__context__ is None else [error, *chain(error.__context__)]


def freeze(lease: Lease) -> None:
    """As long as the lease is held, nothing else runs."""
    while lease.is_held:
        pass


async def for_ever() -> None:
    await asyncio.Event().wait()


@pytest.fixture
def lost() -> LockLost:
    return LockLost("broken", details={"lock_id": "l1"})


async def test_a_block_holds_the_lock_and_gives_it_back() -> None:
    hold, running = Prepared(), set[object]()
    async with leased(hold, running=running) as lease:
        assert running == {lease}
        assert lease.is_held
        lease.check()
        assert lease.token == 7
        assert lease.fence() == lease.lock.fence("plan.md")
        assert lease.fence("src/a.py").resource == "src/a.py"
    assert hold.said == ["acquire", "release", "close"]
    assert running == set()
    assert not lease.is_held
    assert await lease.lost() is None
    with pytest.raises(LockLost, match="given back"):
        lease.check()


async def test_before_it_begins_there_is_nothing_to_show() -> None:
    lease = leased(Prepared())
    assert not lease.is_held
    for look in (lease.check, lambda: lease.token, lease.fence, lambda: lease.ends_at):
        with pytest.raises(LockLost, match="not begun"):
            look()


async def test_a_refusal_is_raised_and_nothing_is_left_behind() -> None:
    hold, running = Prepared(acquired=LockHeld("held")), set[object]()
    with pytest.raises(LockHeld):
        async with leased(hold, running=running):
            pytest.fail("it is not held")
    assert (hold.said, running) == (["acquire", "close"], set())


async def test_it_is_refreshed_for_as_long_as_the_block_runs() -> None:
    hold = Prepared(lock(LONG), acquired=lock(LONG))
    async with leased(hold) as lease:
        await hold.heard("refresh", 10)
        assert lease.is_held


async def test_who_watches_over_it_hears_of_every_refresh_and_until_when_it_is_held() -> None:
    async with leased(Prepared(lock(60), acquired=lock(LONG))) as lease:
        first = lease.ends_at
        assert now() < first <= now() + LONG
        await lease.refreshed()
        assert now() + 50 < lease.ends_at <= now() + 60
        assert lease.lock.remaining_seconds == 60


async def test_a_lost_lock_cancels_the_block_and_is_raised_out_of_it(lost: LockLost) -> None:
    hold = Prepared(lost, acquired=lock(LONG))
    with pytest.raises(LockLost, match="broken") as told:
        async with leased(hold) as lease:
            await for_ever()
    assert told.value is await lease.lost()
    assert not lease.is_held
    assert "release" not in hold.said  # of what is lost, nothing is left


async def test_a_lock_that_became_anothers_is_lost() -> None:
    with pytest.raises(LockLost) as told:
        async with leased(Prepared(NotHolder("bob's"), acquired=lock(LONG))):
            await for_ever()
    assert isinstance(told.value.__cause__, NotHolder)


async def test_a_block_that_does_not_want_to_be_cancelled_is_told_when_it_asks_and_at_its_end(lost: LockLost) -> None:
    reached = False

    async def block() -> None:
        nonlocal reached
        async with leased(Prepared(lost, acquired=lock(LONG)), on_lost="raise") as lease:
            assert await lease.lost() is lost
            with pytest.raises(LockLost):
                lease.check()
            await asyncio.sleep(0)
            reached = True

    with pytest.raises(LockLost) as told:
        await block()
    assert told.value is lost
    assert reached


async def test_failures_are_met_by_trying_again() -> None:
    hold = Prepared(Busy("later"), EngramConnectionError("cut"), InvalidRequest("odd"), lock(60), acquired=lock(LONG))
    async with leased(hold) as lease:
        await hold.heard("refresh", 4)
        await asyncio.sleep(0)
        assert lease.is_held
        assert lease.lock.remaining_seconds == 60


async def test_without_an_answer_it_is_over_when_the_lease_is() -> None:
    hold = Prepared(EngramConnectionError("nobody there"), acquired=lock(0.3))
    started = time.monotonic()
    with pytest.raises(LockLost, match=r"not refreshed for 0.3 s") as told:
        async with leased(hold):
            await for_ever()
    assert isinstance(told.value.__cause__, EngramConnectionError)
    assert told.value.lock_id == "l1"
    assert 0.29 < time.monotonic() - started < 5


async def test_after_a_frozen_loop_the_next_await_is_the_last() -> None:
    reached = "start"

    async def block() -> None:
        nonlocal reached
        async with leased(Prepared(acquired=lock(0.1))) as lease:
            freeze(lease)
            reached = "frozen"
            with pytest.raises(LockLost):
                lease.check()
            await for_ever()
            reached = "too far"

    with pytest.raises(LockLost, match="not refreshed"):
        await block()
    assert reached == "frozen"


async def test_a_block_that_froze_and_ended_is_told_at_its_end() -> None:
    hold = Prepared(acquired=lock(0.1))
    with pytest.raises(LockLost, match="not refreshed"):
        async with leased(hold) as lease:
            freeze(lease)
    assert "refresh" not in hold.said


async def test_a_grant_after_a_long_wait_is_refreshed_before_the_block_begins(lost: LockLost) -> None:
    class Slow(Prepared):
        async def acquire(self, wait_seconds: float) -> Lock:
            await asyncio.sleep(0.2)
            return await super().acquire(wait_seconds)

    hold = Slow(lock(60), acquired=lock(0.1))
    async with leased(hold) as lease:
        assert hold.said == ["acquire", "refresh"]
        assert lease.lock.remaining_seconds == 60

    hold = Slow(lost, acquired=lock(0.1))
    with pytest.raises(LockLost):
        async with leased(hold):
            pytest.fail("it is not held any more")


async def test_an_answer_that_comes_after_the_end_comes_too_late() -> None:
    class Freezing(Prepared):
        async def refresh(self, lock: Lock, *, timeout_seconds: float) -> Lock:
            refreshed = await super().refresh(lock, timeout_seconds=timeout_seconds)
            freeze(lease)
            return refreshed

    lease = leased(Freezing(lock(60), acquired=lock(0.2)))
    with pytest.raises(LockLost):
        async with lease:
            await for_ever()
    assert not lease.is_held


async def test_a_hold_that_is_over_earlier_cuts_the_lease() -> None:
    hold = Prepared(EngramConnectionError("cut"), acquired=lock(0.3))
    hold.over_at = 0.0
    with pytest.raises(LockLost):
        async with leased(hold):
            await for_ever()
    assert "refresh" not in hold.said


# --- What the block raises, and who cancels it


async def test_an_exception_of_the_block_wins_and_the_lock_is_released() -> None:
    hold = Prepared()
    with pytest.raises(ZeroDivisionError) as told:
        async with leased(hold):
            raise ZeroDivisionError
    assert told.value.__context__ is None
    assert hold.said == ["acquire", "release", "close"]


@pytest.mark.parametrize("on_lost", ["cancel", "raise"])
async def test_an_exception_of_the_block_tells_that_the_lock_was_lost(on_lost: OnLost, lost: LockLost) -> None:
    async def block() -> None:
        async with leased(Prepared(lost, acquired=lock(LONG)), on_lost) as lease:
            try:
                await lease.lost()
                await asyncio.sleep(0)
            finally:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as told:
        await block()
    assert lost in chain(told.value)


async def test_what_check_raises_is_raised_as_it_is(lost: LockLost) -> None:
    async def block() -> None:
        async with leased(Prepared(lost, acquired=lock(LONG)), "raise") as lease:
            await lease.lost()
            lease.check()

    with pytest.raises(LockLost) as told:
        await block()
    assert told.value is lost


async def test_in_a_group_of_tasks_all_are_cancelled_and_what_else_they_raise_is_kept(lost: LockLost) -> None:
    async def stubborn() -> None:
        try:
            await for_ever()
        finally:
            raise ZeroDivisionError

    with pytest.raises(LockLost):
        async with leased(Prepared(lost, acquired=lock(LONG))), asyncio.TaskGroup() as group:
            group.create_task(for_ever())
    with pytest.raises(ExceptionGroup) as told:
        async with leased(Prepared(lost, acquired=lock(LONG))), asyncio.TaskGroup() as group:
            group.create_task(stubborn())
    assert told.group_contains(ZeroDivisionError)


async def cancelled_when(hold: Prepared, ready: Callable[[asyncio.Task[None]], object]) -> None:
    begun = asyncio.Event()

    async def block() -> None:
        async with leased(hold):
            begun.set()
            await for_ever()

    task = asyncio.create_task(block())
    await begun.wait()
    ready(task)
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_cancellation_from_outside_stays_one_and_the_lock_is_released() -> None:
    hold = Prepared()
    await cancelled_when(hold, lambda task: task.cancel())
    assert hold.said == ["acquire", "release", "close"]


async def test_a_timeout_around_it_stays_a_timeout() -> None:
    hold = Prepared()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), leased(hold):
            await for_ever()
    assert hold.said == ["acquire", "release", "close"]


async def test_a_scope_around_it_stays_a_scope() -> None:
    hold = Prepared()
    with CancelScope() as scope:
        async with leased(hold):
            scope.cancel()
            await for_ever()
    assert scope.cancelled_caught
    assert hold.said == ["acquire", "release", "close"]


async def test_who_is_cancelled_while_it_gives_back_still_gives_back() -> None:
    class Slow(Prepared):
        async def release(self, lock: Lock) -> None:
            asyncio.get_running_loop().call_soon(task.cancel)
            for _ in range(5):
                await asyncio.sleep(0)
            await super().release(lock)

    async def block() -> None:
        async with leased(hold):
            pass

    hold = Slow()
    task = asyncio.create_task(block())
    await asyncio.wait([task])
    assert task.cancelled()
    assert hold.said == ["acquire", "release", "close"]


async def test_a_release_that_fails_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with leased(Prepared(released=NotHolder("bob's"))):
        pass
    with pytest.raises(ZeroDivisionError):
        async with leased(Prepared(released=NotHolder("bob's"))):
            raise ZeroDivisionError
    assert "runs out by itself" in caplog.text


async def test_a_release_has_a_bound(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("engram_client.lease.LEASE_RELEASE_SECONDS", 0.05)
    async with leased(Prepared(released=EngramConnectionError("cut"))):
        pass
    assert "runs out by itself" in caplog.text


async def test_a_client_that_closes_gives_it_back_and_ends_the_block() -> None:
    hold = Prepared()

    async def block() -> None:
        async with leased(hold) as lease:
            await lease.aclose()
            assert hold.said == ["acquire", "release", "close"]
            await for_ever()

    with pytest.raises(LockLost, match="with its client"):
        await block()


async def test_a_mistake_of_ours_is_a_lost_lock_and_not_silence() -> None:
    class Broken(Prepared):
        async def watch(self, seconds: float) -> None:
            raise KeyError("ours")

    with pytest.raises(LockLost, match="ours"):
        async with leased(Broken()):
            await for_ever()


async def test_a_client_that_closes_ends_the_wait_of_who_has_not_begun() -> None:
    class InLine(Prepared):
        async def acquire(self, wait_seconds: float) -> Lock:
            await super().acquire(wait_seconds)
            await for_ever()
            raise AssertionError

    async def block() -> None:
        async with lease:
            pytest.fail("it has ended")

    hold, running = InLine(), set[object]()
    lease = leased(hold, running=running)
    waiting = asyncio.create_task(block())
    await hold.heard("acquire", 1)
    await lease.aclose()
    with pytest.raises(EngramConnectionError, match="closed") as told:
        await waiting
    assert not told.value.retryable
    assert (hold.said, running) == (["acquire", "close"], set())


async def test_a_client_that_closes_gives_back_what_was_granted_to_who_has_not_begun() -> None:
    class Closing(Prepared):
        async def acquire(self, wait_seconds: float) -> Lock:
            closing.append(asyncio.create_task(lease.aclose()))
            return await super().acquire(wait_seconds)

    closing: list[asyncio.Task[None]] = []
    hold = Closing()
    lease = leased(hold)
    with pytest.raises(EngramConnectionError, match="closed"):
        async with lease:
            pytest.fail("it has ended")
    await closing[0]
    assert hold.said == ["acquire", "release", "close"]
