"""The log as a process beside the bus reads it: what comes after a seq, and what came before a unit."""

from collections.abc import Sequence
from pathlib import Path

from engram_bus.codec import decode_unit
from engram_bus.limits import MIB
from engram_bus.log.index import Table, context_key, key_seq
from engram_bus.log.lmdb import IndexReader, LogReader
from engram_bus.log.record import RecordError, body_of, parse
from engram_bus.units import WorkUnit

_SCAN_UNITS = 1_000
_SCAN_BYTES = 4 * MIB


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
        """The next units, in order. One that cannot be read ends them; as the first of them, it raises RecordError."""
        units: list[WorkUnit] = []
        for seq, raw in self._log.page(after, units_max=units_max, bytes_max=bytes_max):
            try:
                units.append(decode_unit(body_of(raw, seq)))
            except RecordError:
                if not units:
                    raise
                break
        return units

    def unit(self, seq: int) -> WorkUnit:
        """The unit at this seq, which must be there."""
        return parse(self._raw(seq), seq).unit

    def chain(self, seq: int) -> bytes:
        """The chain digest of the record at this seq, which must be there."""
        return parse(self._raw(seq), seq).chain

    def before(self, unit: WorkUnit, count: int) -> Sequence[WorkUnit]:
        """The last units before this one in its context, oldest first."""
        versions = range(max(1, unit.version - count), unit.version)
        indexed, _ = self._index.cursor()
        seqs = self._index.values([(Table.CONTEXTS, context_key(unit.context_id, version)) for version in versions])
        found = {version: self.unit(key_seq(seq)) for version, seq in zip(versions, seqs, strict=True) if seq}
        if len(found) < len(versions):
            found.update(self._between(indexed, unit))
        if len(found.keys() & set(versions)) < len(versions):
            raise RecordError(f"{unit.seq} is version {unit.version} of {unit.context_id!r}, and others are not found")
        return [found[version] for version in versions]

    def _between(self, after: int, unit: WorkUnit) -> dict[int, WorkUnit]:
        """Its context's units after a seq and before it: the bus's index is committed after its log, or even later."""
        found: dict[int, WorkUnit] = {}
        while after < unit.seq - 1:
            units = self.units(after, units_max=_SCAN_UNITS, bytes_max=_SCAN_BYTES)
            found.update((one.version, one) for one in units if one.context_id == unit.context_id)
            after = units[-1].seq
        return found

    def _raw(self, seq: int) -> bytes:
        raw = self._log.raw(seq)
        assert raw is not None, "what was indexed is in the log, which only grows"
        return raw
