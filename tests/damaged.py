"""Logs that fail as their contract says, where a test wants it."""

from collections.abc import Sequence

from engram_bus.codec import Entry
from engram_bus.errors import LogDamaged, StorageFull
from engram_bus.log.memory import MemoryLog
from engram_bus.log.record import Record


class DamagedLog(MemoryLog):
    """Some records cannot be read: pages end before them, or raise when they come first."""

    def __init__(self, *damaged: int) -> None:
        super().__init__()
        self.damaged = damaged

    def _entries(self, seqs: Sequence[int], bytes_max: int) -> list[Entry]:
        whole = list(seqs)
        for place, seq in enumerate(whole):
            if seq in self.damaged:
                if place == 0:
                    raise _damage(seq)
                return super()._entries(whole[:place], bytes_max)
        return super()._entries(whole, bytes_max)

    def record(self, seq: int) -> Record:
        if seq in self.damaged:
            raise _damage(seq)
        return super().record(seq)


class FullDamagedLog(DamagedLog):
    """Nor does it take appends while it `is_full`."""

    is_full = False

    def append(self, records: Sequence[Record]) -> None:
        self.probe()
        super().append(records)

    def probe(self) -> None:
        if self.is_full:
            raise StorageFull("no room")


def _damage(seq: int) -> LogDamaged:
    return LogDamaged(f"record {seq} checksum does not match", seq=seq)


class FailingLog(MemoryLog):
    """No page can be read while there is an `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def _entries(self, seqs: Sequence[int], bytes_max: int) -> list[Entry]:
        if seqs and self.error is not None:
            raise self.error
        return super()._entries(seqs, bytes_max)
