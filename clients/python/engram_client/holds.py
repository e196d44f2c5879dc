"""How a lease speaks to the bus: requests, or a WebSocket of its own that the lock is tied to."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, assert_never

from engram_client import codec
from engram_client.errors import Deadlock, EngramConnectionError, EngramError, LockHeld, LockLost
from engram_client.frames import (
    Appended,
    Frame,
    Goaway,
    Heartbeat,
    Locked,
    Missing,
    Other,
    Pong,
    Refused,
    Released,
    Subscribed,
    Units,
)
from engram_client.limits import SESSION_ANSWER_SECONDS, SESSION_GRACE_SECONDS, SESSION_PING_SECONDS
from engram_client.requests import LockRequest
from engram_client.values import Lock
from engram_client.verbs import Verbs
from engram_client.websocket import OpenSocket, Socket


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
            return await self._verbs.refresh_lock(lock, self._request.ttl_seconds)

    async def release(self, lock: Lock) -> None:
        await self._verbs.release_lock(lock)

    async def watch(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def aclose(self) -> None:
        pass


class OverSocket:
    """Each verb a frame. The bus gives the lock away a while after the socket it is tied to has gone, so it is held
    only as long as the bus has answered on that socket lately; a new socket takes it over in time, or not at all."""

    def __init__(
        self, open_socket: OpenSocket, request: LockRequest, *, timeout_seconds: float, clock: Callable[[], float]
    ) -> None:
        self._open_socket = open_socket
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._talk: _Talk | None = None
        self._tied_to: _Talk | None = None
        self._heard_at: float | None = None
        """When the newest operation was sent that the socket of the lock has answered."""

    @property
    def over_at(self) -> float | None:
        return None if self._heard_at is None else self._heard_at + SESSION_GRACE_SECONDS

    async def acquire(self, wait_seconds: float) -> Lock:
        lock = await self._acquire(wait_seconds, timeout_seconds=self._timeout_seconds + wait_seconds)
        if self._ping_in() == 0:
            await self._ping(
                timeout_seconds=SESSION_ANSWER_SECONDS
            )  # It waited: the socket was there when it began to.
        return lock

    async def refresh(self, lock: Lock, *, timeout_seconds: float) -> Lock:
        if self._tie is None:
            return await self._take_over(lock, timeout_seconds=timeout_seconds)
        return await self._locked(
            lambda frame_id: codec.refresh_frame(lock, self._request.ttl_seconds, frame_id=frame_id),
            timeout_seconds=timeout_seconds,
        )

    async def release(self, lock: Lock) -> None:
        await self._connected().ask(lambda frame_id: codec.release_frame(lock, frame_id=frame_id))

    async def watch(self, seconds: float) -> None:
        until = self._clock() + seconds
        while (tie := self._tie) is not None and (seconds_left := min(until, self._over()) - self._clock()) > 0:
            await tie.wait_ended(min(seconds_left, self._ping_in()))
            if self._ping_in() == 0 and not await self._is_answered():
                return

    async def aclose(self) -> None:
        if self._talk is not None:
            await self._talk.aclose()

    async def _acquire(self, wait_seconds: float, *, timeout_seconds: float) -> Lock:
        talk = self._connected()
        try:
            lock = await self._locked(
                lambda frame_id: codec.acquire_frame(self._request, wait_seconds=wait_seconds, frame_id=frame_id),
                timeout_seconds=timeout_seconds,
            )
        except asyncio.CancelledError:
            await talk.aclose()  # A wait ends with its socket.
            raise
        self._tied_to = talk
        return lock

    async def _take_over(self, lock: Lock, *, timeout_seconds: float) -> Lock:
        """On a new socket, ask for it as if for the first time: the bus extends what is still held."""
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

    async def _locked(self, frame: Callable[[int], bytes], *, timeout_seconds: float) -> Lock:
        answer = await self._ask(frame, timeout_seconds=timeout_seconds)
        assert isinstance(answer, Lock), "an acquire and a refresh are answered with the lock"
        return answer

    async def _is_answered(self) -> bool:
        # An answer that comes when it is over comes too late, even if a frozen loop finds it waiting.
        seconds_left = max(0.0, self._over() - self._clock())
        try:
            await self._ping(timeout_seconds=min(SESSION_ANSWER_SECONDS, seconds_left))
        except EngramError:
            return False
        return True

    async def _ping(self, *, timeout_seconds: float) -> None:
        await self._ask(codec.ping_frame, timeout_seconds=timeout_seconds)

    def _ping_in(self) -> float:
        return max(0.0, self._over() - SESSION_GRACE_SECONDS + SESSION_PING_SECONDS - self._clock())

    def _over(self) -> float:
        assert self.over_at is not None, "a lock was acquired"
        return self.over_at

    async def _ask(self, frame: Callable[[int], bytes], *, timeout_seconds: float) -> Lock | bool:
        talk, asked_at = self._connected(), self._clock()
        try:
            async with _answered_within(timeout_seconds):
                answer = await talk.ask(frame)
        except EngramConnectionError:
            await talk.aclose()  # One that does not answer is not asked again.
            raise
        self._heard_at = asked_at
        return answer

    @property
    def _tie(self) -> "_Talk | None":
        """The socket that the lock is tied to, while it lives."""
        return None if self._tied_to is None or self._tied_to.has_ended else self._tied_to

    def _connected(self) -> "_Talk":
        if self._talk is None or self._talk.has_ended:
            self._talk = _Talk(self._open_socket)
        return self._talk


@asynccontextmanager
async def _answered_within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        raise EngramConnectionError(f"no answer for {seconds:.3g} s") from exc


class _Talk:
    """One socket: what is asked, and what is answered."""

    def __init__(self, open_socket: OpenSocket) -> None:
        self._open_socket = open_socket
        self._opened: asyncio.Future[Socket] = asyncio.get_running_loop().create_future()
        self._answers: dict[int, asyncio.Future[Lock | bool]] = {}
        self._last_id = 0
        self._end: Exception = EngramConnectionError("the socket was closed")
        self._reader = asyncio.create_task(self._read(), name="engram lease socket")

    @property
    def has_ended(self) -> bool:
        return self._reader.done()

    async def ask(self, frame: Callable[[int], bytes]) -> Lock | bool:
        """The answer to an operation: the lock, or whether it was still held (a pong is True)."""
        socket = await asyncio.shield(self._opened)
        self._last_id += 1
        frame_id = self._last_id
        answer: asyncio.Future[Lock | bool] = asyncio.get_running_loop().create_future()
        self._answers[frame_id] = answer
        try:
            await socket.send(frame(frame_id))
            return await answer
        except EngramConnectionError:
            await asyncio.wait([self._reader])
            raise self._end from None  # The reader knows more: a refusal, a goodbye.
        finally:
            self._answers.pop(frame_id, None)

    async def wait_ended(self, seconds: float) -> None:
        await asyncio.wait([self._reader], timeout=seconds)

    async def aclose(self) -> None:
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _read(self) -> None:
        try:
            async with self._open_socket() as socket:
                self._opened.set_result(socket)
                while True:
                    self._hear(await socket.receive())
        except Exception as error:  # whatever it is, it belongs to whoever waits for an answer
            self._end = error
        finally:
            _fail(self._opened, self._end)
            for answer in self._answers.values():
                _fail(answer, self._end)

    def _hear(self, frame: Frame) -> None:
        match frame:
            case Locked(id=frame_id, lock=lock):
                self._answer(frame_id, lock)
            case Released(id=frame_id, released=released):
                self._answer(frame_id, released)
            case Pong(id=int() as frame_id):
                self._answer(frame_id, True)
            case Refused(id=int() as frame_id, error=error):
                self._answer(frame_id, error)
            case Refused(error=error):
                raise error
            case Goaway():
                raise frame.error
            case Subscribed() | Units() | Heartbeat() | Missing() | Appended() | Pong() | Other():
                pass
            case _:
                assert_never(frame)

    def _answer(self, frame_id: int, said: Lock | bool | EngramError) -> None:
        answer = self._answers.get(frame_id)
        if answer is None or answer.done():
            return
        if isinstance(said, EngramError):
            _fail(answer, said)
        else:
            answer.set_result(said)


def _fail(waited_for: "asyncio.Future[Any]", error: Exception) -> None:
    if not waited_for.done():
        waited_for.set_exception(error)
        waited_for.exception()  # raised to whoever waits, if anybody does: no warning is due
