"""What the router needs of a transport: how frames are made, and where they are written."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from engram_bus.codec import Entry
from engram_bus.errors import EngramError

F = TypeVar("F")
"""A frame: bytes for a socket, values for a subscriber in this process."""


class Framing(Protocol[F]):
    """How one kind of subscriber is spoken to. Pure, hashable and equal by value: what one of them makes for a cursor
    serves every subscriber of the same filter and framing that stands there."""

    def subscribed(self, cursor: str, head: int) -> F:
        """The first frame: where this subscription stands, before any unit."""

    def units(self, entries: Sequence[Entry], epoch: str, seq: int) -> F:
        """These units; after them the cursor is `epoch.seq`."""

    def heartbeat(self, cursor: str, head: int) -> F:
        """Nothing for you, all is well, and this is where you stand."""

    def gap(self, first: int, last: int, reason: str, cursor: str) -> F:
        """These seqs cannot be given; the stream goes on after them."""

    def goaway(self, reason: str, retry_after_ms: int, cursor: str) -> F:
        """This connection ends; come back after a while and resume."""


class Sink(Protocol[F]):
    """Where a feed writes. Never blocks, never raises: a socket that is gone swallows."""

    def write(self, frame: F) -> None:
        """Hand a frame to the socket."""

    @property
    def writable(self) -> bool:
        """False while the socket holds more than its high-water mark."""

    def end(self, error: EngramError, cursor: str) -> None:
        """The feed is over, for this reason."""
