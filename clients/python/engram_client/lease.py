"""A lock held for as long as a block runs: refreshed by itself, given back in the end, and never believed in for too
long."""

import asyncio
import logging
import random
import time
from types import TracebackType
from typing import Any, Final, Literal, Self

from anyio import CancelScope

from engram_client.backoff import Backoff
from engram_client.errors import EngramConnectionError, EngramError, LockLost, NotHolder
from engram_client.holds import Hold
from engram_client.limits import LEASE_RELEASE_SECONDS
from engram_client.retry import pause, waiting
from engram_client.term import Term
from engram_client.values import Fence, Lock

OnLost = Literal["cancel", "raise"]
"""What becomes of the block when the lock is lost: it is cancelled, or runs to its end."""

_log: Final = logging.getLogger("engram_client")
_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def now() -> float:
    """Seconds that, where the machine can tell, also pass while it sleeps: on the bus they do."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


class Lease:
    """A lock of a block: `async with bus.lock("plan.md") as lease`. Made by `Client.lock`.

    It counts from before the bus was asked, so that it runs out here no later than there, whatever terms others of the
    same agent ask for: the bus never shortens it. So `is_held` and `check()` tell even after the loop, or the machine,
    stood still. What ends it before its time, a break or a release by the same agent, they know from the next refresh
    on. What is written elsewhere meanwhile is safe only if it shows `lease.fence()`, or the other side checks
    `lease.token`.
    """

    def __init__(
        self,
        hold: Hold,
        *,
        resources: tuple[str, ...],
        wait_seconds: float,
        max_retries: int | None,
        on_lost: OnLost,
        running: set[Any],
    ) -> None:
        self._hold = hold
        self._name = ", ".join(resources)
        self._wait_seconds = wait_seconds
        self._max_retries = max_retries
        self._on_lost = on_lost
        self._running = running
        self._lock: Lock | None = None
        self._term = Term(0.0, 0.0)
        self._loss: LockLost | None = None
        self._has_left = False
        self._refreshed = asyncio.Event()
        self._settled = asyncio.Event()
        self._scope: CancelScope | None = None
        self._task: asyncio.Task[None] | None = None
        self._end: asyncio.Task[None] | None = None

    # --- For the block -----------------------------------------------------------------------------------------------

    @property
    def lock(self) -> Lock:
        """The lock as of its last refresh. Raises LockLost where there is none yet."""
        if self._lock is None:
            raise self._not_begun()
        return self._lock

    @property
    def token(self) -> int:
        """The fencing token: who writes elsewhere shows it, and who is written to refuses a smaller one."""
        return self.lock.fencing_token

    def fence(self, resource: str | None = None) -> Fence:
        """What an append shows as its `fence`: this lock, by one of its resources (the first) or what lies below."""
        return self.lock.fence(resource)

    @property
    def is_held(self) -> bool:
        """Whether it runs at this moment: nobody else holds it, unless it was broken, or released by a task or process
        of the same agent, since its last refresh."""
        return self._why_not_held() is None

    def check(self) -> None:
        """Raises LockLost unless `is_held`: say it before what cannot be undone."""
        if (loss := self._why_not_held()) is not None:
            raise loss

    async def lost(self) -> LockLost | None:
        """Wait until it is lost, and why; None when it was given back instead."""
        await self._settled.wait()
        return self._loss

    @property
    def ends_at(self) -> float:
        """Until when it is held if nothing more is heard of it, by `now()`: for whoever watches over this process."""
        if self._lock is None:
            raise self._not_begun()
        return self._sure_term.ends_at

    async def refreshed(self) -> None:
        """Wait until it is refreshed the next time; for ever, if it is lost or given back."""
        await self._refreshed.wait()

    # --- Coming and going --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        assert self._end is None, "a lease is entered once"
        self._running.add(self)
        try:
            await self._enter()
        except BaseException:
            await self._give_back()
            raise
        self._task = asyncio.create_task(self._keep(), name="engram lease")
        if self._on_lost == "cancel":
            self._scope = CancelScope()
            self._scope.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        was_cut_short = False
        try:
            if self._scope is not None:
                was_cut_short = self._scope.__exit__(kind, error, traceback)
        finally:
            was_cancelled = await self._leave()
        loss = self._loss
        if error is not None and not was_cut_short:
            if loss is not None:
                _explain(error, loss)
            return False
        if was_cancelled:
            raise asyncio.CancelledError
        if loss is not None:
            raise loss
        return False

    async def _enter(self) -> None:
        # In a task of its own, which `_release` ends: who waits in line when the client is closed is granted nothing.
        self._task = asyncio.create_task(self._begin(), name="engram lease")
        await asyncio.wait([self._task])
        if self._end is not None:
            raise EngramConnectionError("the client was closed", retryable=False)
        self._task.result()

    async def _leave(self) -> bool:
        self._scope = None
        if (loss := self._overdue(self._sure_term)) is not None:
            self._lose(loss)
        self._has_left = True
        return await self._give_back()

    async def aclose(self) -> None:
        """Give it back at once; a block that still runs has lost it, one that waits for it does not begin."""
        await self._give_back()
        if not self._has_left:
            self._lose(LockLost(f"the lease on {self._name} ended with its client"))

    # --- Keeping it --------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        asked_at = now()
        lock = await waiting(
            self._hold.acquire,
            wait_seconds=self._wait_seconds,
            max_retries=self._max_retries,
            what=f"lock {self._name}",
        )
        self._lock, self._term = lock, Term.of(lock, asked_at=asked_at)
        if self._term.refresh_in(now(), chance=0) == 0:
            # It waited, and when within that time the lease began, only the bus knows. A refresh tells.
            self._term = Term.of(lock, asked_at=now())
            if (loss := await self._refresh()) is not None:
                raise loss

    async def _keep(self) -> None:
        """Refresh in time, until it is lost."""
        loss: LockLost | None = None
        try:
            while loss is None:
                await self._hold.watch(self._term.refresh_in(now(), chance=random.random()))
                loss = await self._refresh()
        except Exception as error:  # whatever it is, nobody refreshes any more
            loss = LockLost(f"the lease on {self._name} is not refreshed any more: {error!r}")
            loss.__cause__ = error
        self._lose(loss)

    async def _refresh(self) -> LockLost | None:
        """Try until it works, or the bus says that it is lost, or the lease is over."""
        failures = 0
        failure: EngramError | None = None
        while True:
            asked_at, sure = now(), self._sure_term
            if (loss := self._overdue(sure, failure)) is not None:
                return loss
            try:
                lock = await self._hold.refresh(self.lock, timeout_seconds=sure.try_seconds(asked_at))
            except LockLost as error:
                return error
            except NotHolder as error:
                return _lost_to(error)
            except EngramError as error:
                failure = error
            else:
                loss = self._overdue(sure)
                if loss is None:
                    self._lock, self._term = lock, Term.of(lock, asked_at=asked_at)
                    self._refreshed.set()
                    self._refreshed = asyncio.Event()
                return loss
            failures += 1
            await self._pause(failure, failures)

    async def _pause(self, failure: EngramError, failures: int) -> None:
        seconds = self._sure_term.pause_seconds(
            now(), failures=failures, asked_seconds=failure.retry_after_seconds, chance=random.random()
        )
        _log.warning("lease on %s: again in %.2f s, after %s", self._name, seconds, failure)
        await asyncio.sleep(seconds)

    def _lose(self, loss: LockLost) -> None:
        if self._loss is None:
            _log.warning("lease on %s: %s", self._name, loss)
            self._loss = loss
            self._settled.set()
            if self._scope is not None:
                self._scope.cancel()

    def _why_not_held(self) -> LockLost | None:
        if self._lock is None:
            return self._not_begun()
        if self._has_left:
            return self._loss or LockLost(f"the lease on {self._name} was given back")
        return self._loss or self._overdue(self._sure_term)

    def _not_begun(self) -> LockLost:
        return LockLost(f"the lease on {self._name} has not begun")

    @property
    def _sure_term(self) -> Term:
        return self._term.cut(self._hold.over_at)

    def _overdue(self, term: Term, failure: EngramError | None = None) -> LockLost | None:
        if self._lock is None or not term.is_over(now()):
            return None
        why = "heard of" if term.ends_at < self._term.ends_at else "refreshed"
        loss = LockLost(
            f"the lease on {self._name} was not {why} for {term.ends_at - term.asked_at:.3g} s",
            details={"lock_id": self._lock.lock_id},
        )
        loss.__cause__ = failure
        return loss

    # --- Giving it back ----------------------------------------------------------------------------------------------

    async def _give_back(self) -> bool:
        """Once, within a bound, and to the end even if cancelled meanwhile: whether it was."""
        was_cancelled = False
        if self._end is None:
            self._end = asyncio.create_task(self._release(), name="engram lease end")
        with CancelScope(shield=True):
            while not self._end.done():
                try:
                    await asyncio.wait([self._end])
                except asyncio.CancelledError:
                    was_cancelled = True
        return was_cancelled

    async def _release(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None  # It may have an exception, and that this lease.
        try:
            async with asyncio.timeout(LEASE_RELEASE_SECONDS):
                # Of what is lost, nothing is left to give back.
                if self._lock is not None and self._loss is None:
                    await self._release_patiently(self._lock)
        except (EngramError, TimeoutError) as error:
            _log.warning("lease on %s was not released, and runs out by itself: %r", self._name, error)
        finally:
            await self._hold.aclose()
            self._running.discard(self)
            self._settled.set()

    async def _release_patiently(self, lock: Lock) -> None:
        backoff = Backoff(None)
        while True:
            try:
                return await self._hold.release(lock)
            except EngramError as error:
                await pause(backoff, error, f"release of {self._name}")


def _lost_to(error: NotHolder) -> LockLost:
    loss = LockLost(error.message, details=error.details)
    loss.__cause__ = error
    return loss


def _explain(error: BaseException, loss: LockLost) -> None:
    """Let an exception tell that the lock was lost when it was raised: at the root, below what it tells already."""
    while error is not loss and error.__context__ is not None:
        error = error.__context__
    if error is not loss:
        error.__context__ = loss
