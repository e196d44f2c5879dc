"""The newest records in memory, found as the index finds older ones, until it holds them too."""

from collections.abc import Sequence

from engram_bus.log.index import targets
from engram_bus.log.record import Record


class Tail:
    """Records that follow one another. Looking one up costs what was added since the last look, and then nothing."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.held_bytes = 0
        self._sorted = 0
        self._ids: dict[str, int] = {}
        self._keys: dict[tuple[str, str], int] = {}
        self._contexts: set[str] = set()
        self._targets: set[str] = set()

    def __len__(self) -> int:
        return len(self.records)

    def extend(self, records: Sequence[Record]) -> None:
        """Add the next ones."""
        self.records += records
        self.held_bytes += sum([len(record.raw) for record in records])

    def seq_of_id(self, unit_id: str) -> int | None:
        """Where the unit of this id lies, if it is here."""
        self._sort()
        return self._ids.get(unit_id)

    def seq_of_key(self, agent_id: str, key: str) -> int | None:
        """Where the first unit of the command with this idempotency key lies, if it is here."""
        self._sort()
        return self._keys.get((agent_id, key))

    def has_context(self, context_id: str) -> bool:
        """Whether a unit of this context is here."""
        self._sort()
        return context_id in self._contexts

    def has_target(self, target_id: str) -> bool:
        """Whether a unit here relates to this one."""
        self._sort()
        return target_id in self._targets

    def _sort(self) -> None:
        for record in self.records[self._sorted :]:
            unit = record.unit
            self._ids[unit.id] = unit.seq
            self._contexts.add(unit.context_id)
            if unit.relationships:
                self._targets |= targets(unit)
            if record.private.key is not None:
                self._keys[unit.agent_id, record.private.key] = unit.seq
        self._sorted = len(self.records)
