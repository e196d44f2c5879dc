"""What a projection that costs promises to the runner that feeds it."""

from collections.abc import Sequence
from typing import Protocol, Self

from engram_bus.units import WorkUnit


class Damaged(ValueError):
    """A file of a projection does not hold what was written."""


class Source(Protocol):
    """The log, as far as a projection reads it again."""

    def unit(self, seq: int) -> WorkUnit:
        """The unit at this seq, which must be there."""

    def before(self, unit: WorkUnit, count: int) -> Sequence[WorkUnit]:
        """The last units before this one in its context, oldest first, up to so many."""

    def chain(self, seq: int) -> bytes:
        """A digest of this record, which must be there, and of all before it. Raises RecordError."""


class Followed(Source, Protocol):
    """The log, as a runner follows it."""

    @property
    def head(self) -> int:
        """The seq of its newest unit."""

    def units(self, after: int, *, units_max: int, bytes_max: int) -> Sequence[WorkUnit]:
        """The next units, in order, at least one if there is one. Raises RecordError where that cannot be read."""


class Projection(Protocol):
    """State folded from the log's units, in a directory of its own; with it is kept up to which seq it was folded.

    The same units give the same state, however they were sliced and however often it was opened between them. Opening
    one raises where its files are not those of its newest commit, or cannot be used; it is then folded again.
    """

    @property
    def cursor(self) -> int:
        """The seq of the newest unit that outlives a restart."""

    @property
    def taken(self) -> int:
        """The seq of the newest unit that was taken in."""

    @property
    def uncommitted(self) -> int:
        """How many units would be taken in again after a restart."""

    def is_of(self, source: Source, head: int) -> bool:
        """Whether it was folded from this log, which goes up to `head`."""

    def take(self, units: Sequence[WorkUnit]) -> None:
        """Fold in the next units of the log, in order."""

    def commit(self) -> None:
        """Make state and cursor outlive a restart, together."""

    def check(self) -> None:
        """Look at the files it answers from. Raises Damaged, OSError."""

    def succeed(self, older: Self) -> None:
        """Take the place of one that will be closed, and what it held besides its files."""

    def close(self) -> None:
        """Let go of files and threads. What was not committed is in the log."""
