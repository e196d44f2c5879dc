"""What the router needs of a transport: how frames are made, and where they are written."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from engram_bus.codec import Entry
from engram_bus.errors import EngramError

Made = TypeVar("Made", covariant=True)
Taken = TypeVar("Taken", contravariant=True)
# Both are frames: bytes for a socket, values for a subscriber in this process.


class Framing(Protocol[Made]):
    """How one kind of subscriber is spoken to. Pure, hashable and equal by value: what one of them makes for a cursor
    serves every subscriber of the same filter and framing that stands there."""

    def subscribed(self, cursor: str, head: int) -> Made:
        """The first frame: where this subscription stands, before any unit."""

    def units(self, entries: Sequence[Entry], epoch: str, seq: int) -> Made:
        """These units; after them the cursor is `epoch.seq`."""

    def heartbeat(self, cursor: str, head: int) -> Made:
        """Nothing for you, all is well, and this is where you stand."""

    def gap(self, first: int, last: int, reason: str, cursor: str) -> Made:
        """These seqs cannot be given; the stream goes on after them."""

    def goaway(self, reason: str, retry_after_ms: int, cursor: str) -> Made:
        """This connection ends; come back after a while and resume."""


class Sink(Protocol[Taken]):
    """Where a feed writes. Never blocks, never raises: a socket that is gone swallows.

    It is only written units while it is `writable`, so it holds at most its high-water mark and one frame. Whoever owns
    the socket calls `Feed.full` when it is not any more, from within that very write, and when it begins to close; and
    `Feed.drained` when it is again (a missed call of either is made up for by the next pulse).
    """

    def write(self, frame: Taken) -> None:
        """Hand a frame to the socket."""

    @property
    def push(self) -> Callable[[Taken], object]:
        """What the frames of a live feed are handed to, without a question: for a socket the bare call that writes."""

    @property
    def writable(self) -> bool:
        """False while the socket holds more than its high-water mark."""

    def end(self, error: EngramError, cursor: str) -> None:
        """The feed is over, for this reason."""
