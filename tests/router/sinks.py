"""A simulated subscriber: frames that are plain values, and a socket that fills and drains when told to."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from engram_bus.codec import Entry
from engram_bus.errors import EngramError
from engram_bus.router.fanout import Feed


class Frame(msgspec.Struct, frozen=True):
    """What was said to a subscriber. Frames that are one object were made once."""

    event: str
    cursor: str
    seqs: tuple[int, ...] = ()
    more: Any = None


class PlainFraming(msgspec.Struct, frozen=True):
    """The contract's framing over plain values; `name` tells framings apart."""

    name: str = ""

    def subscribed(self, cursor: str, head: int) -> Frame:
        return Frame("subscribed", cursor, more=head)

    def units(self, entries: Sequence[Entry], epoch: str, seq: int) -> Frame:
        assert entries, "a frame without units says nothing"
        return Frame("units", f"{epoch}.{seq}", tuple(entry.seq for entry in entries))

    def heartbeat(self, cursor: str, head: int) -> Frame:
        return Frame("heartbeat", cursor, more=head)

    def gap(self, first: int, last: int, reason: str, cursor: str) -> Frame:
        return Frame("gap", cursor, more=(first, last, reason))

    def goaway(self, reason: str, retry_after_ms: int, cursor: str) -> Frame:
        return Frame("goaway", cursor, more=(reason, retry_after_ms))


class PlainSink:
    """Holds up to `room` frames (the first aside) until they are taken, as a socket does; hears all, in order."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.heard: list[Frame] = []
        self.waiting = 0
        self.ended: tuple[EngramError, str] | None = None
        self.on_write: Callable[[Frame], None] | None = None
        self.feeds: list[Feed] = []
        """Who is told when it is full."""

    @property
    def writable(self) -> bool:
        return self.waiting < self.room

    def write(self, frame: Frame) -> None:
        assert frame.event != "units" or self.writable, "units were written to a full socket"
        self.heard.append(frame)
        self.waiting += frame.event != "subscribed"
        if self.on_write is not None:
            self.on_write(frame)
        self._tell_when_full()

    def fill(self) -> None:
        """Something else took all the room there was."""
        self.waiting = self.room
        self._tell_when_full()

    def _tell_when_full(self) -> None:
        if not self.writable:
            for feed in self.feeds:
                feed.full()

    @property
    def push(self) -> Callable[[Frame], object]:
        return self.write

    def end(self, error: EngramError, cursor: str) -> None:
        assert self.ended is None, "it ended twice"
        self.ended = (error, cursor)

    def drain(self) -> None:
        """The other side read everything."""
        self.waiting = 0

    @property
    def events(self) -> list[str]:
        return [frame.event for frame in self.heard]

    @property
    def seqs(self) -> list[int]:
        """Every unit heard, in the order it was heard."""
        return [seq for frame in self.heard for seq in frame.seqs]

    @property
    def cursor(self) -> str:
        """After the last frame: where this subscriber would resume."""
        return self.heard[-1].cursor
