"""One Subscribe call: a feed whose messages wait here while the call takes one, joined as far as they can be."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from engram_bus.embedded import Bus
from engram_bus.errors import EngramError, SlowConsumer
from engram_bus.limits import FRAME_BYTES_MAX, SOCKET_BUFFER_BYTES
from engram_bus.pb import subscription_pb2
from engram_bus.router.fanout import Feed
from engram_bus.subscribers.frames import ProtobufFraming, is_units
from engram_bus.subscribers.requests import SubscribeRequest

_FRAMING = ProtobufFraming()

Write = Callable[[bytes], Awaitable[None]]
"""Hands a message to the call; returns when its flow control lets the next one come."""


class Stream:
    """The sink of one call's feed. `run` is the task that serves it."""

    def __init__(self, bus: Bus, request: SubscribeRequest, after: int) -> None:
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._news: asyncio.Future[None] | None = None
        self._end: EngramError | None = None
        self._writing: asyncio.Task[Any] | None = None
        self._feed: Feed = bus.feed(request.wanted, _FRAMING, self, after)

    async def run(self, write: Write) -> None:
        """Write until the feed is over, and raise why it is."""
        try:
            while True:
                while self._waiting:
                    await self._write(write, self._take())
                if self._end is not None:
                    raise self._end
                self._news = asyncio.get_running_loop().create_future()
                await self._news
        finally:
            self._feed.close()

    async def _write(self, write: Write, message: bytes) -> None:
        """Raises SlowConsumer where the call does not take it in time: it will, if ever, before it hears of its end."""
        self._writing = asyncio.current_task()
        try:
            await write(message)
        except asyncio.CancelledError:
            if not isinstance(self._end, SlowConsumer) or self._writing is None:
                raise
            self._writing.uncancel()
            cursor = subscription_pb2.SubscribeResponse.FromString(message).cursor
            raise SlowConsumer(f"nothing was taken for too long: resume after {cursor}") from None
        finally:
            self._writing = None
        self._waiting_bytes -= len(message)
        self._feed.drained()

    def _take(self) -> bytes:
        """The next message: of units, all that wait and fit one."""
        first = self._waiting.popleft()
        if not self._waiting or not is_units(first):
            return first
        parts, size_bytes = [first], len(first)
        while self._waiting and is_units(self._waiting[0]) and size_bytes + len(self._waiting[0]) <= FRAME_BYTES_MAX:
            parts.append(self._waiting.popleft())
            size_bytes += len(parts[-1])
        return b"".join(parts)

    # --- As a feed's sink --------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return self._waiting_bytes < SOCKET_BUFFER_BYTES

    def write(self, frame: bytes) -> None:
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
        self._wake()
        if not self.writable:  # Which the first frame, a small one, does not bring about.
            self._feed.full()

    @property
    def push(self) -> Callable[[bytes], object]:
        return self.write

    def end(self, error: EngramError, cursor: str) -> None:
        self._end = error
        self._wake()
        if isinstance(error, SlowConsumer) and self._writing is not None:
            # It waits for a client that takes nothing: the message under way stays with the connection, the rest goes.
            self._writing.cancel()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
