"""How a lease speaks to the bus: requests, or a session of its own that the lock is tied to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from engram_client.errors import Deadlock, EngramConnectionError, EngramError, LockHeld, LockLost
from engram_client.limits import SESSION_ANSWER_SECONDS, SESSION_GRACE_SECONDS, SESSION_PING_SECONDS
from engram_client.requests import LockRequest
from engram_client.values import Lock
from engram_client.verbs import Session, Verbs

T = TypeVar("T")


class Hold(Protocol):
    """A lock as a lease works with it. Each verb is one try, and raises EngramError."""

    @property
    def over_at(self) -> float | None:
        """When the bus may give the lock away, however long the lease; None while nothing is wrong."""

    async def acquire(self, wait_seconds: float) -> Lock: ...

    async def refresh(self, lock: Lock, *, timeout_seconds: float) -> Lock:
        """The same lock, for longer. Raises LockLost; EngramConnectionError where no answer comes in time."""

    async def release(self, lock: Lock) -> None: ...

    async def watch(self, seconds: float) -> None:
        """For so long, or until the lock needs care earlier."""

    async def aclose(self) -> None: ...


class OverRequests:
    """Each verb a request."""

    over_at = None

    def __init__(self, verbs: Verbs, request: LockRequest) -> None:
        self._verbs = verbs
        self._request = request

    async def acquire(self, wait_seconds: float) -> Lock:
        return await self._verbs.acquire_lock(self._request, wait_seconds=wait_seconds)

    async def refresh(self, lock: Lock, *, timeout_seconds: float) -> Lock:
        async with _answered_within(timeout_seconds):
            return await self._verbs.refresh_lock(lock, self._request.ttl_seconds, agent_id=self._request.agent_id)

    async def release(self, lock: Lock) -> None:
        await self._verbs.release_lock(lock, agent_id=self._request.agent_id)

    async def watch(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def aclose(self) -> None:
        pass


class OverSession:
    """The bus gives the lock away a while after the session it is tied to has ended, so it is held only as long as the
    bus has answered in that session lately; a new session takes it over in time, or not at all."""

    def __init__(
        self,
        begin: Callable[[], Session],
        request: LockRequest,
        *,
        timeout_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        """`begin` counts by this `clock`, too."""
        self._begin = begin
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._session: Session | None = None
        self._tied_to: Session | None = None

    @property
    def over_at(self) -> float | None:
        return None if self._tied_to is None else self._tied_to.heard_at + SESSION_GRACE_SECONDS

    async def acquire(self, wait_seconds: float) -> Lock:
        lock = await self._acquire(wait_seconds, timeout_seconds=self._timeout_seconds + wait_seconds)
        if self._ping_in() == 0:  # It waited: the session was there when it began to.
            await self._ping(timeout_seconds=SESSION_ANSWER_SECONDS)
        return lock

    async def refresh(self, lock: Lock, *, timeout_seconds: float) -> Lock:
        if self._tie is None:
            return await self._take_over(lock, timeout_seconds=timeout_seconds)
        return await self._ask(lambda session: self._refresh(session, lock), timeout_seconds=timeout_seconds)

    async def release(self, lock: Lock) -> None:
        await self._open().release(lock, agent_id=self._request.agent_id)

    async def watch(self, seconds: float) -> None:
        until = self._clock() + seconds
        while (tie := self._tie) is not None and (seconds_left := min(until, self._over()) - self._clock()) > 0:
            await tie.wait_ended(min(seconds_left, self._ping_in()))
            if self._ping_in() == 0 and not await self._is_answered():
                return

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.aclose()

    async def _acquire(self, wait_seconds: float, *, timeout_seconds: float) -> Lock:
        session = self._open()
        try:
            lock = await self._ask(
                lambda session: session.acquire(self._request, wait_seconds=wait_seconds),
                timeout_seconds=timeout_seconds,
            )
        except asyncio.CancelledError:
            await session.aclose()  # A wait ends with its session.
            raise
        self._tied_to = session
        return lock

    async def _refresh(self, session: Session, lock: Lock) -> Lock:
        if self._ping_in() == 0:  # Nobody watches while a refresh is refused, and tried again.
            await session.ping()
        return await session.refresh(lock, self._request.ttl_seconds, agent_id=self._request.agent_id)

    async def _take_over(self, lock: Lock, *, timeout_seconds: float) -> Lock:
        """In a new session, ask for it as if for the first time: the bus extends what is still held."""
        try:
            taken = await self._acquire(0, timeout_seconds=timeout_seconds)
        except (LockHeld, Deadlock) as error:
            raise LockLost(f"lock {lock.lock_id} was released: {error}", details={"lock_id": lock.lock_id}) from error
        if (taken.lock_id, taken.fencing_token) != (lock.lock_id, lock.fencing_token):
            # Whatever was done under the old token, others may have done something since.
            try:
                await self.release(taken)
            except EngramError:
                await self.aclose()  # then the bus releases it
            raise LockLost(f"lock {lock.lock_id} was released meanwhile", details={"lock_id": lock.lock_id})
        return taken

    async def _is_answered(self) -> bool:
        # An answer that comes when it is over comes too late, even if a frozen loop finds it waiting.
        seconds_left = max(0.0, self._over() - self._clock())
        try:
            await self._ping(timeout_seconds=min(SESSION_ANSWER_SECONDS, seconds_left))
        except EngramError:
            return False
        return True

    async def _ping(self, *, timeout_seconds: float) -> None:
        await self._ask(lambda session: session.ping(), timeout_seconds=timeout_seconds)

    def _ping_in(self) -> float:
        return max(0.0, self._over() - SESSION_GRACE_SECONDS + SESSION_PING_SECONDS - self._clock())

    def _over(self) -> float:
        assert self.over_at is not None, "a lock was acquired"
        return self.over_at

    async def _ask(self, ask: Callable[[Session], Awaitable[T]], *, timeout_seconds: float) -> T:
        session = self._open()
        try:
            async with _answered_within(timeout_seconds):
                return await ask(session)
        except EngramConnectionError:
            await session.aclose()  # One that does not answer is not asked again.
            raise

    @property
    def _tie(self) -> Session | None:
        """The session that the lock is tied to, while it lives."""
        return None if self._tied_to is None or self._tied_to.has_ended else self._tied_to

    def _open(self) -> Session:
        if self._session is None or self._session.has_ended:
            self._session = self._begin()
        return self._session


@asynccontextmanager
async def _answered_within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        raise EngramConnectionError(f"no answer for {seconds:.3g} s") from exc
