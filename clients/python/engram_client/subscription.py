"""A subscription that outlives its connections: comes back by itself, hands out each unit once."""

import asyncio
from contextlib import aclosing
from typing import Any, Self

from engram_client.backoff import Backoff
from engram_client.errors import EngramConnectionError, EngramError
from engram_client.frames import Subscribed
from engram_client.limits import PENDING_BYTES, PENDING_UNITS, STEADY_SECONDS
from engram_client.resume import Resume
from engram_client.retry import pause
from engram_client.values import WorkUnit
from engram_client.verbs import OpenStream


class Subscription:
    """Units as they come: `async for unit in subscription`. Made by `Client.subscribe`.

    Enter it (`async with`) to start, to know that the bus has taken it up, and to leave without a trace; iterating
    alone starts it too, and it then ends with its client. A lost connection is made again after a pause, and goes on
    after the last unit: nothing is repeated, nothing left out. Units that the bus cannot give any more raise `Gap`
    once; iterate again and it goes on behind them. An error that will not pass is raised, and then again every time.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        *,
        after: str | int | None,
        max_retries: int | None,
        running: set[Any],
    ) -> None:
        self._open_stream = open_stream
        self._resume = Resume(after)
        self._backoff = Backoff(max_retries)
        self._running = running
        self._reader: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._closed = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def cursor(self) -> str | None:
        """Everything up to here was handed to you: save it after your work, and pass it as `after` next time.

        None until the bus has said where a subscription without `after` starts.
        """
        return self._resume.cursor

    @property
    def head(self) -> int:
        """The newest seq of the log that this subscription has heard of."""
        return self._resume.head

    @property
    def repeats(self) -> int:
        """How many units came again, or late, and were left out. Of a bus that keeps its promises: 0."""
        return self._resume.repeats

    async def wait_subscribed(self) -> None:
        """Until the bus has taken up the subscription: what is appended from now on is seen. Raises if it refuses."""
        self._start()
        while not self._resume.subscribed:
            if self._closed:
                raise EngramConnectionError("the subscription is closed", retryable=False)
            await self._wait_news()

    async def __aenter__(self) -> Self:
        try:
            await self.wait_subscribed()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WorkUnit:
        self._start()
        while not self._closed:
            taken = self._resume.take()
            if taken is None:
                await self._wait_news()
                continue
            self._room.set()
            if isinstance(taken, WorkUnit):
                return taken
            raise taken
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Leave. What was read ahead and not handed out can be had again after `cursor`."""
        self._closed = True
        self._news.set()
        self._running.discard(self)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])

    def _start(self) -> None:
        if self._reader is None and not self._closed:
            self._running.add(self)
            self._reader = asyncio.create_task(self._read(), name="engram subscription")

    async def _wait_news(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._news.clear()
        await self._news.wait()

    async def _read(self) -> None:
        """Connection after connection, until it is closed or an error will not pass."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                connected_at = loop.time()
                try:
                    await self._read_connection()
                except EngramError as error:
                    if loop.time() - connected_at > STEADY_SECONDS:
                        self._backoff.worked()
                    await pause(self._backoff, error, f"subscription after {self._resume.after}")
        except Exception as error:  # whatever it is, it belongs to whoever waits for units
            self._failure = error
        finally:
            self._news.set()

    async def _read_connection(self) -> None:
        async with aclosing(self._open_stream(self._resume.after)) as frames:
            async for frame in frames:
                self._resume.receive(frame)
                if not isinstance(frame, Subscribed):
                    self._backoff.worked()
                self._news.set()
                while len(self._resume) >= PENDING_UNITS or self._resume.pending_bytes >= PENDING_BYTES:
                    self._room.clear()
                    await self._room.wait()
