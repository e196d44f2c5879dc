"""The log as a process beside the bus reads it: what comes after a seq, and what came before a unit."""

from collections.abc import Sequence
from pathlib import Path

from engram_bus.codec import decode_unit
from engram_bus.log.index import Table, context_key
from engram_bus.log.lmdb import IndexReader, LogReader
from engram_bus.log.record import body_of, parse
from engram_bus.units import WorkUnit


class Follower:
    """Read-only, in short transactions: the bus is not held up. Raises DataDirectoryError, RecordError."""

    def __init__(self, tenant: Path) -> None:
        self._log = LogReader(tenant / "log")
        self._index = IndexReader(tenant / "index")

    def close(self) -> None:
        self._log.close()
        self._index.close()

    @property
    def head(self) -> int:
        return self._log.head()

    def units(self, after: int, *, units_max: int, bytes_max: int) -> list[WorkUnit]:
        """The next units, in order."""
        return [
            decode_unit(body_of(raw, seq))
            for seq, raw in self._log.page(after, units_max=units_max, bytes_max=bytes_max)
        ]

    def unit(self, seq: int) -> WorkUnit:
        """The unit at this seq, which must be there."""
        raw = self._log.raw(seq)
        assert raw is not None, "what was indexed is in the log, which only grows"
        return parse(raw, seq).unit

    def before(self, unit: WorkUnit, count: int) -> Sequence[WorkUnit]:
        """The last units before this one in its context, oldest first."""
        versions = range(max(1, unit.version - count), unit.version)
        seqs = self._index.values([(Table.CONTEXTS, context_key(unit.context_id, version)) for version in versions])
        return [self.unit(int.from_bytes(seq, "big")) for seq in seqs if seq is not None]
