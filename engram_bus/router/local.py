"""A subscriber in this process: units as an async iterator, with the same promises as over a socket."""

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from engram_bus.codec import Entry
from engram_bus.errors import EngramError
from engram_bus.limits import CATCH_UP_UNITS, FRAME_BYTES_MAX
from engram_bus.log.contract import cursor_text
from engram_bus.router.fanout import Fanout, Feed
from engram_bus.router.filters import Filter
from engram_bus.units import WorkUnit


class Gap(Exception):
    """These seqs cannot be given. Iterating goes on after them."""

    def __init__(self, first: int, last: int, reason: str) -> None:
        super().__init__(f"seqs {first} to {last} cannot be given: {reason}")
        self.first = first
        self.last = last
        self.reason = reason


_Frame = Sequence[Entry] | Gap | None


class _LocalFraming:
    """Frames that are the values themselves. All local subscribers of one filter share them."""

    def subscribed(self, cursor: str, head: int) -> _Frame:
        return None

    def units(self, entries: Sequence[Entry], epoch: str, seq: int) -> _Frame:
        return entries

    def heartbeat(self, cursor: str, head: int) -> _Frame:
        return None

    def gap(self, first: int, last: int, reason: str, cursor: str) -> _Frame:
        return Gap(first, last, reason)

    def goaway(self, reason: str, retry_after_ms: int, cursor: str) -> _Frame:
        return None


_FRAMING = _LocalFraming()


class LocalSubscription:
    """An async iterator of units. `cursor` is after the unit given last: subscribe after it to go on.

    Raises `Gap` in the place of units that cannot be read, and the bus's error when it stops. Who reads slowly is
    waited for; who drops it without `close` (leaving an `async for` early) costs nothing either.
    """

    def __init__(self, fanout: Fanout, wanted: Filter, after: int) -> None:
        self._inbox = _Inbox()
        self._closed = False
        self._epoch = fanout.epoch
        self._feed = fanout.subscribe(wanted, _FRAMING, self._inbox, after, patient=True)
        self._inbox.feed = self._feed
        # The router holds the feed and its inbox, but not this object: the feed ends with it.
        self._dropped = weakref.finalize(self, _close_soon, asyncio.get_running_loop(), self._feed)
        self._dropped.atexit = False

    @property
    def cursor(self) -> str:
        """Everything wanted up to here was given. It never goes back."""
        first = self._inbox.first_seq
        return cursor_text(self._epoch, self._feed.cursor if first is None else first - 1)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WorkUnit:
        while self._closed or self._inbox.first_seq is None:
            if self._closed:
                raise StopAsyncIteration
            await self._inbox.wait()
        pending = self._inbox.take()
        if self._inbox.is_half_empty:
            self._feed.drained()
        if isinstance(pending, Gap):
            raise pending
        return pending.unit

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription at once; closing again does nothing."""
        self._closed = True
        self._dropped.detach()
        self._feed.close()
        self._inbox.wake()


class _Inbox:
    """The sink of a local feed: as bounded as a socket's buffer."""

    def __init__(self) -> None:
        self._pending: deque[Entry | Gap] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._error: EngramError | None = None
        self.feed: Feed | None = None

    @property
    def first_seq(self) -> int | None:
        """Where what waits here begins."""
        if not self._pending:
            return None
        first = self._pending[0]
        return first.first if isinstance(first, Gap) else first.seq

    @property
    def is_half_empty(self) -> bool:
        return len(self._pending) <= CATCH_UP_UNITS // 2 and self._bytes <= FRAME_BYTES_MAX // 2

    async def wait(self) -> None:
        """Return when something arrived. Raises why nothing will."""
        if self._error is not None:
            raise self._error
        self._arrived.clear()
        await self._arrived.wait()

    def wake(self) -> None:
        self._arrived.set()

    def take(self) -> Entry | Gap:
        """The oldest of what waits here."""
        pending = self._pending.popleft()
        if isinstance(pending, Entry):
            self._bytes -= len(pending.body)
        return pending

    # --- As the feed sees it -----------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return len(self._pending) < CATCH_UP_UNITS and self._bytes < FRAME_BYTES_MAX

    def write(self, frame: _Frame) -> None:
        match frame:
            case None:
                return
            case Gap():
                self._pending.append(frame)
            case entries:
                self._pending.extend(entries)
                self._bytes += sum(len(entry.body) for entry in entries)
        self.wake()
        if not self.writable and self.feed is not None:
            self.feed.full()

    @property
    def push(self) -> Callable[[_Frame], object]:
        return self.write

    def end(self, error: EngramError, cursor: str) -> None:
        self._error = error
        self.wake()


def _close_soon(loop: asyncio.AbstractEventLoop, feed: Feed) -> None:
    """Garbage may be collected in any thread, and after the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(feed.close)
