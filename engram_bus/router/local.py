"""A subscriber in this process: units as an async iterator, with the same promises as over a socket."""

import asyncio
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from engram_bus.codec import Entry
from engram_bus.errors import EngramError
from engram_bus.limits import CATCH_UP_UNITS
from engram_bus.log.contract import cursor_text
from engram_bus.router.fanout import Fanout
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

    Raises `Gap` in the place of units that cannot be read, and the bus's error when it stops.
    """

    def __init__(self, fanout: Fanout, wanted: Filter, after: int) -> None:
        self._pending: deque[Entry | Gap] = deque()
        self._arrived = asyncio.Event()
        self._error: EngramError | None = None
        self._closed = False
        self._epoch = fanout.epoch
        self._given = after
        self._feed = fanout.subscribe(wanted, _FRAMING, self, after)

    @property
    def cursor(self) -> str:
        """Everything wanted up to here was given."""
        return cursor_text(self._epoch, self._given if self._pending else max(self._given, self._feed.cursor))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WorkUnit:
        while not self._pending:
            if self._closed:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        pending = self._pending.popleft()
        if len(self._pending) < CATCH_UP_UNITS // 2:
            self._feed.drained()
        if isinstance(pending, Gap):
            self._given = max(self._given, pending.last)
            raise pending
        self._given = pending.seq
        return pending.unit

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription; closing again does nothing."""
        self._closed = True
        self._feed.close()
        self._arrived.set()

    # --- As the feed sees it -----------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return len(self._pending) < CATCH_UP_UNITS

    def write(self, frame: _Frame) -> None:
        match frame:
            case None:
                return
            case Gap():
                self._pending.append(frame)
            case entries:
                self._pending.extend(entries)
        self._arrived.set()

    def end(self, error: EngramError, cursor: str) -> None:
        self._error = error
        self._arrived.set()
