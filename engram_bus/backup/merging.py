"""Two accounts of one history put together: a damaged log's own records, and a backup's where the chain proves them.

A record of the backup stands in for one of the log when it follows the digest chain and belongs to the same epoch. What
the log has after it must follow in turn. Where the log goes on otherwise, the two are not of one history there.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from engram_bus.log.contract import Epoch
from engram_bus.log.history import History
from engram_bus.log.record import Record, chain_follows


class Range(NamedTuple):
    """Units `first` to `last`."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"unit {self.first}" if self.first == self.last else f"units {self.first} to {self.last}"


class Merging:
    """One pass over both. `log` gives None in the place of a record that cannot be read."""

    def __init__(
        self, log: Iterator[Record | None], backup: Iterator[Record], *, is_one: Callable[[int], bool]
    ) -> None:
        self._log = log
        self._backup = backup
        self._is_one = is_one
        self._next: Record | None = None
        # From where on the log has other units than the backup, whose units before were taken for damaged ones.
        self._parted_from: int | None = None
        self.history = History()
        self._confirmed_seq = 0
        self.from_backup: list[Range] = []

    @property
    def settled_seq(self) -> int:
        """The end of the last command that nothing in the log speaks against."""
        return self.history.whole_seq if self._parted_from is None else self._confirmed_seq

    def records(self) -> Iterator[Record]:
        """The records of the history, as far as it can be proven."""
        own, self._next = next(self._log, None), next(self._log, None)
        other = next(self._backup, None)
        while (record := self._choice(own, other)) is not None:
            self._note(record, own)
            yield record
            own, self._next = self._next, next(self._log, None)
            other = next(self._backup, None)

    def _choice(self, own: Record | None, other: Record | None) -> Record | None:
        seq = self.history.seq + 1
        is_own = own is not None and self.history.wrong(own) is None
        is_other = other is not None and self._is_one(seq) and self.history.wrong(other) is None
        if is_own and is_other and own is not None and other is not None and own.chain != other.chain:
            return other if self._comes_before_next(other) and not self._comes_before_next(own) else own
        if is_own:
            return own
        return other if is_other else None

    def _comes_before_next(self, record: Record) -> bool:
        return self._next is not None and chain_follows(self._next, record.chain)

    def _note(self, record: Record, own: Record | None) -> None:
        seq = record.unit.seq
        wrong = self.history.take(record)
        assert wrong is None, "it was chosen because it follows"
        if record is own:
            # What was taken before it is what the log itself goes on from.
            self._parted_from = None
            self._confirmed_seq = self.history.whole_seq
        else:
            if own is not None and self._parted_from is None:
                self._parted_from = seq
            extend(self.from_backup, Range(seq, seq))


def extend(ranges: list[Range], more: Range) -> None:
    """Add a range, to the last one where it goes on from there."""
    if ranges and ranges[-1].last == more.first - 1:
        more = Range(ranges.pop().first, more.last)
    ranges.append(more)


def epoch_at(epochs: Sequence[Epoch], seq: int) -> str:
    """The epoch in which a seq was given."""
    return [epoch.name for epoch in epochs if epoch.first_seq <= seq][-1]
