"""What is read for those who are behind: pages from the ring or the log, made once for all who can share them."""

from collections.abc import Hashable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from engram_bus.codec import Entry
from engram_bus.errors import LogDamaged
from engram_bus.limits import CATCH_UP_BYTES, CATCH_UP_UNITS
from engram_bus.log.contract import Log
from engram_bus.router.contract import Framing
from engram_bus.router.filters import Filter, Predicate
from engram_bus.router.ring import Ring

_READS_KEPT = 4
_PAGES_KEPT = 8
"""After a restart everyone resumes at about one place: with a few filters and framings, or each with its own filter."""
_UNIT_COST_BYTES = 512
"""What reading and encoding a unit costs beside its bytes, as bytes."""
_SHARED_COST_DIVISOR = 8
"""Picking from what was read before costs about this fraction of reading it."""


class Page(NamedTuple):
    """A frame of what is wanted after some seq (None: nothing is), and the seq up to which that is all."""

    frame: Any
    units: int
    upto: int


class _Read(NamedTuple):
    entries: Sequence[Entry]
    upto: int
    cost_bytes: int


V = TypeVar("V")


class _Kept(Generic[V]):
    """The newest few values."""

    def __init__(self, count_max: int) -> None:
        self._values: dict[Hashable, V] = {}
        self._count_max = count_max

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        return self._values.get(key)

    def keep(self, key: Hashable, value: V) -> V:
        if len(self._values) == self._count_max:
            del self._values[next(iter(self._values))]
        self._values[key] = value
        return value

    def clear(self) -> None:
        self._values.clear()


class Pages:
    """Reads on after a seq. `cost_bytes` grows with the work that was really done.

    Pages end at multiples of CATCH_UP_UNITS, so that a crowd which resumes at many places soon stands at the same ones.
    """

    def __init__(self, log: Log, ring: Ring, epoch: str) -> None:
        self.cost_bytes = 0
        self._log = log
        self._ring = ring
        self._epoch = epoch
        self._reads: _Kept[_Read] = _Kept(_READS_KEPT)
        self._pages: _Kept[Page] = _Kept(_PAGES_KEPT)

    def __len__(self) -> int:
        return len(self._reads) + len(self._pages)

    def after(self, seq: int, wanted: Filter, wants: Predicate, framing: Framing[Any]) -> Page:
        """The next page after a seq below the head. Raises LogDamaged, Unavailable."""
        key = (wanted, framing, seq)
        return self._pages.get(key) or self._pages.keep(key, self._picked(seq, wanted, wants, framing))

    def forget(self) -> None:
        """Nobody is behind: keep nothing."""
        self._reads.clear()
        self._pages.clear()

    def _picked(self, seq: int, wanted: Filter, wants: Predicate, framing: Framing[Any]) -> Page:
        read = self._read_for(seq, wanted)
        self.cost_bytes += read.cost_bytes // _SHARED_COST_DIVISOR
        entries = [entry for entry in read.entries if wants(entry.unit)]
        if not entries:
            return Page(None, 0, read.upto)
        return Page(framing.units(entries, self._epoch, read.upto), len(entries), read.upto)

    def _read_for(self, seq: int, wanted: Filter) -> _Read:
        """By the index where it is of one context and out of the ring; whatever is wrong with that, by the log."""
        context_id = None if self._ring.holds(seq) else wanted.only_context
        if context_id is not None:
            try:
                return self._read(seq, context_id)
            except LogDamaged:
                # The index may name any seq, and hide what lies before it. The log itself is in order.
                pass
        return self._read(seq, None)

    def _read(self, seq: int, context_id: str | None) -> _Read:
        key = (seq, context_id)
        kept = self._reads.get(key)
        if kept is not None:
            return kept
        entries = self._entries(seq) if context_id is None else self._entries_of(context_id, seq)
        cost_bytes = sum(len(entry.body) + _UNIT_COST_BYTES for entry in entries)
        self.cost_bytes += cost_bytes
        return self._reads.keep(key, _Read(entries, entries[-1].seq if entries else self._ring.head, cost_bytes))

    def _entries(self, seq: int) -> Sequence[Entry]:
        """What follows in the log, wanted or not."""
        units_max = CATCH_UP_UNITS - seq % CATCH_UP_UNITS
        if self._ring.holds(seq):
            return self._ring.read(seq, units_max=units_max, bytes_max=CATCH_UP_BYTES)
        return self._log.read(seq, units_max=units_max, bytes_max=CATCH_UP_BYTES)

    def _entries_of(self, context_id: str, seq: int) -> Sequence[Entry]:
        """What follows in one context, by its index; none when there is nothing up to the head."""
        return self._log.read_context(
            context_id, after=seq, before=None, reverse=False, units_max=CATCH_UP_UNITS, bytes_max=CATCH_UP_BYTES
        )
