"""What a session says, over whatever carries its frames: each operation with an id, each answer to one of them."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Protocol, TypeVar, assert_never

from engram_client import codec
from engram_client.errors import EngramConnectionError, EngramError
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
from engram_client.requests import LockRequest
from engram_client.values import Lock
from engram_client.websocket import OpenSocket, Socket


class Line(Protocol):
    """What carries frames. Whatever ends it is an EngramError."""

    async def send(self, message: bytes) -> None: ...

    async def receive(self) -> Frame: ...


L = TypeVar("L", bound=Line)
T = TypeVar("T")


class Conversation(Generic[L]):
    """Operations and answers on one line, from its opening to its end."""

    def __init__(self, open_line: Callable[[], AbstractAsyncContextManager[L]], clock: Callable[[], float]) -> None:
        self._open_line = open_line
        self._clock = clock
        self._heard_at = clock()
        self._opened: asyncio.Future[L] = asyncio.get_running_loop().create_future()
        self._answers: dict[int, asyncio.Future[Lock | bool]] = {}
        self._last_id = 0
        self._is_ending = False
        self._end: Exception = EngramConnectionError("the session was closed")
        self._reader = asyncio.create_task(self._read(), name="engram session")

    @property
    def has_ended(self) -> bool:
        return self._reader.done()

    @property
    def heard_at(self) -> float:
        return self._heard_at

    async def opened(self) -> L:
        """Once it is. Raises what ended it."""
        return await asyncio.shield(self._opened)

    async def ask(self, frame: Callable[[int], bytes]) -> Lock | bool:
        """The answer to an operation: the lock, or whether it was still held (a pong is True)."""
        line = await self.opened()
        self._last_id += 1
        frame_id = self._last_id
        answer: asyncio.Future[Lock | bool] = asyncio.get_running_loop().create_future()
        self._answers[frame_id] = answer
        asked_at = self._clock()
        try:
            await line.send(frame(frame_id))
            found = await answer
        except EngramConnectionError:
            await asyncio.wait([self._reader])
            raise self._end from None  # The reader knows more: a refusal, a goodbye.
        finally:
            self._answers.pop(frame_id, None)
        self._heard_at = asked_at
        return found

    async def beside(self, asking: Awaitable[T]) -> T:
        """What is asked in other words on the same connection, which ends with this."""
        try:
            return await asking
        except EngramConnectionError:
            if not self._is_ending:
                raise
            await asyncio.wait([self._reader])
            raise self._end from None

    async def wait_ended(self, seconds: float) -> None:
        await asyncio.wait([self._reader], timeout=seconds)

    async def aclose(self) -> None:
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _read(self) -> None:
        try:
            async with self._open_line() as line:
                self._opened.set_result(line)
                await self._listen(line)
        except Exception as error:  # whatever it is, it belongs to whoever waits for an answer
            self._end = error
        finally:
            _fail(self._opened, self._end)
            for answer in self._answers.values():
                _fail(answer, self._end)

    async def _listen(self, line: L) -> None:
        try:
            while True:
                self._hear(await line.receive())
        finally:
            self._is_ending = True

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


class SocketSession(Conversation[Socket]):
    """A WebSocket is one, and everything is said on it."""

    def __init__(self, open_socket: OpenSocket, clock: Callable[[], float]) -> None:
        super().__init__(open_socket, clock)

    async def acquire(self, asked: LockRequest, *, wait_seconds: float) -> Lock:
        return await self._locked(
            lambda frame_id: codec.acquire_frame(asked, wait_seconds=wait_seconds, frame_id=frame_id)
        )

    async def refresh(self, lock: Lock, ttl_seconds: float | None, *, agent_id: str) -> Lock:
        return await self._locked(
            lambda frame_id: codec.refresh_frame(lock, ttl_seconds, agent_id=agent_id, frame_id=frame_id)
        )

    async def release(self, lock: Lock, *, agent_id: str) -> None:
        await self.ask(lambda frame_id: codec.release_frame(lock, agent_id=agent_id, frame_id=frame_id))

    async def ping(self) -> None:
        await self.ask(codec.ping_frame)

    async def _locked(self, frame: Callable[[int], bytes]) -> Lock:
        answer = await self.ask(frame)
        assert isinstance(answer, Lock), "an acquire and a refresh are answered with the lock"
        return answer


def _fail(waited_for: "asyncio.Future[Any]", error: Exception) -> None:
    if not waited_for.done():
        waited_for.set_exception(error)
        waited_for.exception()  # raised to whoever waits, if anybody does: no warning is due
