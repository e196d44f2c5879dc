"""The recent units, encoded, so that who is nearly there need not read the log."""

from collections.abc import Sequence

from engram_bus.codec import Entry


class Ring:
    """The newest entries, contiguous up to `head`, bounded by count and by the bytes of their bodies."""

    def __init__(self, head: int, *, units_max: int, bytes_max: int) -> None:
        self.head = head
        # By seq: reading a page costs that page, wherever in the ring it lies.
        self._entries: dict[int, Entry] = {}
        self._units_max = units_max
        self._bytes_max = bytes_max
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def extend(self, entries: Sequence[Entry]) -> None:
        """Take a committed batch; the oldest make room, this batch never does."""
        assert entries[0].seq == self.head + 1, f"seq {entries[0].seq} after {self.head}"
        held, first = self._entries, self._first
        held_bytes = self._bytes
        for entry in entries:
            held[entry.seq] = entry
            held_bytes += len(entry.body)
        self.head = entries[-1].seq
        kept, units_max, bytes_max = len(entries), self._units_max, self._bytes_max
        while len(held) > kept and (len(held) > units_max or held_bytes > bytes_max):
            held_bytes -= len(held.pop(first).body)
            first += 1
        self._bytes = held_bytes

    def holds(self, after: int) -> bool:
        """Whether every unit after this seq is here."""
        return after + 1 >= self._first

    def read(self, after: int, *, units_max: int, bytes_max: int) -> list[Entry]:
        """The units after a seq that `holds`, as the log would give them."""
        page: list[Entry] = []
        for seq in range(after + 1, min(after + units_max, self.head) + 1):
            entry = self._entries[seq]
            if page and len(entry.body) > bytes_max:
                break
            bytes_max -= len(entry.body)
            page.append(entry)
        return page

    @property
    def _first(self) -> int:
        return self.head - len(self._entries) + 1
