"""The newest records, which LMDB has not taken over yet, in memory: found as older ones are found there."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence

from engram_bus.log.index import targets
from engram_bus.log.record import Record


class Tail:
    """Records that follow one another. Looking one up costs what was added since the last look, and then little."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.held_bytes = 0
        self._sorted = 0
        self._ids: dict[str, int] = {}
        self._keys: dict[tuple[str, str], int] = {}
        self._contexts: defaultdict[str, list[int]] = defaultdict(list)
        self._targets: defaultdict[str, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self.records)

    def extend(self, records: Sequence[Record], size_bytes: int) -> None:
        """Add the next ones, of so many bytes together."""
        self.records += records
        self.held_bytes += size_bytes

    def after(self, seq: int, units_max: int) -> Sequence[Record]:
        """The records behind a seq; `seq` is not before the first."""
        start = seq + 1 - self.records[0].unit.seq if self.records else 0
        return self.records[start : start + units_max]

    def record(self, seq: int) -> Record:
        """The record of a seq that is here."""
        return self.records[seq - self.records[0].unit.seq]

    def seq_of_id(self, unit_id: str) -> int | None:
        """Where the unit of this id lies, if it is here."""
        self._sort()
        return self._ids.get(unit_id)

    def seq_of_key(self, agent_id: str, key: str) -> int | None:
        """Where the first unit of the command with this idempotency key lies, if it is here."""
        self._sort()
        return self._keys.get((agent_id, key))

    def of_context(self, context_id: str, after: int, before: int) -> Sequence[Record]:
        """The units of a context with after < seq < before, oldest first."""
        self._sort()
        seqs = self._contexts.get(context_id, ())
        return [self.record(seq) for seq in seqs[bisect_right(seqs, after) : bisect_right(seqs, before - 1)]]

    def context_ids(self) -> set[str]:
        """The contexts that have units here."""
        self._sort()
        return set(self._contexts)

    def relating_to(self, target_id: str) -> Sequence[int]:
        """The units with a relationship to this one, oldest first."""
        self._sort()
        return self._targets.get(target_id, ())

    def _sort(self) -> None:
        for record in self.records[self._sorted :]:
            unit = record.unit
            self._ids[unit.id] = unit.seq
            self._contexts[unit.context_id].append(unit.seq)
            for target_id in targets(unit) if unit.relationships else ():
                self._targets[target_id].append(unit.seq)
            if record.private.key is not None:
                self._keys[unit.agent_id, record.private.key] = unit.seq
        self._sorted = len(self.records)
