"""The recent units, encoded, so that who is nearly there need not read the log."""

from collections import deque
from collections.abc import Sequence
from itertools import islice

from engram_bus.codec import Entry


class Ring:
    """The newest entries, contiguous up to `head`, bounded by count and by bytes."""

    def __init__(self, head: int, *, units_max: int, bytes_max: int) -> None:
        self.head = head
        self._entries: deque[Entry] = deque()
        self._units_max = units_max
        self._bytes_max = bytes_max
        self._bytes = 0

    def extend(self, entries: Sequence[Entry]) -> None:
        """Take a committed batch; the oldest make room, this batch never does."""
        assert entries[0].seq == self.head + 1, f"seq {entries[0].seq} after {self.head}"
        self._entries.extend(entries)
        self._bytes += sum(len(entry.body) for entry in entries)
        self.head = entries[-1].seq
        while len(self._entries) > len(entries) and (
            len(self._entries) > self._units_max or self._bytes > self._bytes_max
        ):
            self._bytes -= len(self._entries.popleft().body)

    def holds(self, after: int) -> bool:
        """Whether every unit after this seq is here."""
        return after + 1 > self.head - len(self._entries)

    def read(self, after: int, *, units_max: int, bytes_max: int) -> list[Entry]:
        """The units after a seq that `holds`, as the log would give them."""
        first = after - (self.head - len(self._entries))
        page: list[Entry] = []
        for entry in islice(self._entries, first, first + units_max):
            if page and len(entry.body) > bytes_max:
                break
            bytes_max -= len(entry.body)
            page.append(entry)
        return page
