"""What is read for those who are behind: pages from the ring or the log, made once for all who stand at one place."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from engram_bus.codec import Entry
from engram_bus.limits import CATCH_UP_BYTES, CATCH_UP_UNITS
from engram_bus.log.contract import Log
from engram_bus.router.contract import Framing
from engram_bus.router.filters import Filter, Predicate
from engram_bus.router.ring import Ring

_KEPT_PAGES = 8
"""After a restart everyone resumes at one place, in a few framings."""
_UNIT_COST_BYTES = 512
"""What reading and encoding a unit costs beside its bytes, as bytes."""


class Page(NamedTuple):
    """A frame of what is wanted after some seq (None: nothing is), and the seq up to which that is all."""

    frame: Any
    units: int
    upto: int


class Pages:
    """Reads on after a seq. `cost_bytes` counts what was really read: a page that another made before costs nothing."""

    def __init__(self, log: Log, ring: Ring, epoch: str) -> None:
        self.cost_bytes = 0
        self._log = log
        self._ring = ring
        self._epoch = epoch
        self._kept: dict[tuple[Filter, Framing[Any], int], Page] = {}

    def after(self, seq: int, wanted: Filter, wants: Predicate, framing: Framing[Any]) -> Page:
        """The next page after a seq below the head. Raises LogDamaged, Unavailable."""
        key = (wanted, framing, seq)
        page = self._kept.get(key)
        if page is None:
            page = self._made(seq, wanted, wants, framing)
            if len(self._kept) == _KEPT_PAGES:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = page
        return page

    def forget(self) -> None:
        """Nobody is behind: keep no page."""
        self._kept.clear()

    def _made(self, seq: int, wanted: Filter, wants: Predicate, framing: Framing[Any]) -> Page:
        entries, upto = self._read(seq, wanted)
        self.cost_bytes += sum(len(entry.body) + _UNIT_COST_BYTES for entry in entries)
        entries = [entry for entry in entries if wants(entry.unit)]
        if not entries:
            return Page(None, 0, upto)
        return Page(framing.units(entries, self._epoch, upto), len(entries), upto)

    def _read(self, seq: int, wanted: Filter) -> tuple[Sequence[Entry], int]:
        """Some entries after a seq, and the seq up to which nothing else is wanted."""
        if self._ring.holds(seq):
            entries = self._ring.read(seq, units_max=CATCH_UP_UNITS, bytes_max=CATCH_UP_BYTES)
        elif wanted.only_context is not None:
            return self._read_context(seq, wanted.only_context)
        else:
            entries = self._log.read(seq, units_max=CATCH_UP_UNITS, bytes_max=CATCH_UP_BYTES)
        return entries, entries[-1].seq

    def _read_context(self, seq: int, context_id: str) -> tuple[Sequence[Entry], int]:
        head = self._ring.head
        entries = self._log.read_context(
            context_id, after=seq, before=head + 1, reverse=False, units_max=CATCH_UP_UNITS, bytes_max=CATCH_UP_BYTES
        )
        return entries, entries[-1].seq if entries else head
