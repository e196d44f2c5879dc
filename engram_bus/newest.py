"""The last units of contexts that were asked for lately, with their encodings: what agents read most."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import islice

from engram_bus.codec import Entry
from engram_bus.limits import NEWEST_BYTES_MAX, NEWEST_UNITS_MAX


class Newest:
    """Kept from when a context is read until others push it out; what is recorded in it meanwhile is added."""

    def __init__(self, *, bytes_max: int = NEWEST_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._held_bytes = 0
        self._kept: OrderedDict[str, deque[Entry]] = OrderedDict()

    def of(self, context_id: str, units: int) -> Sequence[Entry] | None:
        """The last so many units of a context, newest first, or all there are; None where that is not known."""
        kept = self._kept.get(context_id)
        if kept is None or not (len(kept) >= units or kept[-1].unit.version == 1):
            return None
        self._kept.move_to_end(context_id)
        return list(islice(kept, units))

    def keep(self, context_id: str, entries: Sequence[Entry]) -> None:
        """These are its last, newest first."""
        if entries and len(entries) <= NEWEST_UNITS_MAX:
            self._forget(context_id)
            self._kept[context_id] = deque(entries)
            self._held_bytes += sum([len(entry.body) for entry in entries])
            self._make_room()

    def take(self, entries: Sequence[Entry]) -> None:
        """These were recorded."""
        if not self._kept:
            return
        for entry in entries:
            kept = self._kept.get(entry.unit.context_id)
            if kept is not None:
                kept.appendleft(entry)
                self._held_bytes += len(entry.body)
                if len(kept) > NEWEST_UNITS_MAX:
                    self._held_bytes -= len(kept.pop().body)
        self._make_room()

    def _make_room(self) -> None:
        while self._held_bytes > self._bytes_max:
            self._forget(next(iter(self._kept)))

    def _forget(self, context_id: str) -> None:
        for entry in self._kept.pop(context_id, ()):
            self._held_bytes -= len(entry.body)
