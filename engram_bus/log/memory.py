"""The log in memory: the reference that says what the contract means, and a bus for tests that need no disk."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence

from engram_bus.codec import Entry
from engram_bus.log.contract import Epoch, Sizes, Snapshot
from engram_bus.log.record import GENESIS, Record


class MemoryLog:
    """Lists and dictionaries; forgets everything when it is closed."""

    durability = "memory"

    def __init__(self, epochs: Sequence[Epoch] = (Epoch("memory", 1),)) -> None:
        self.epochs = tuple(epochs)
        self._records: list[Record] = []
        self._by_id: dict[str, int] = {}
        self._by_key: dict[tuple[str, str], int] = {}
        self._by_context: dict[str, list[int]] = {}
        self._by_target: defaultdict[str, list[int]] = defaultdict(list)
        self._snapshots: dict[str, Snapshot] = {}

    @property
    def head(self) -> int:
        return len(self._records)

    @property
    def chain(self) -> bytes:
        return self._records[-1].chain if self._records else GENESIS

    def append(self, records: Sequence[Record]) -> None:
        for seq, record in enumerate(records, start=self.head + 1):
            assert record.unit.seq == seq, f"seq {record.unit.seq} is not {seq}, the next one"
        for record in records:
            unit = record.unit
            self._records.append(record)
            self._by_id[unit.id] = unit.seq
            self._by_context.setdefault(unit.context_id, []).append(unit.seq)
            for target_id in {relationship.target_id for relationship in unit.relationships}:
                self._by_target[target_id].append(unit.seq)
            if record.private.key is not None:
                self._by_key[unit.agent_id, record.private.key] = unit.seq

    @property
    def settled(self) -> int:
        return self.head

    def settle(self) -> None:
        """Everything is where it is."""

    def probe(self) -> None:
        """Memory always takes more."""

    def read(self, after: int, *, units_max: int, bytes_max: int) -> list[Entry]:
        return self._entries(range(after + 1, min(after + units_max, self.head) + 1), bytes_max)

    def read_context(
        self, context_id: str, *, after: int, before: int | None, reverse: bool, units_max: int, bytes_max: int
    ) -> list[Entry]:
        seqs = self._by_context.get(context_id, [])
        first = bisect_right(seqs, after)
        end = len(seqs) if before is None else bisect_right(seqs, before - 1)
        chosen = seqs[first:end][::-1][:units_max] if reverse else seqs[first:end][:units_max]
        return self._entries(chosen, bytes_max)

    def _entries(self, seqs: Sequence[int], bytes_max: int) -> list[Entry]:
        entries: list[Entry] = []
        for seq in seqs:
            record = self._records[seq - 1]
            if entries and bytes_max < len(record.body):
                break
            bytes_max -= len(record.body)
            entries.append(Entry(seq, record.body, record.unit))
        return entries

    def record(self, seq: int) -> Record:
        return self._records[seq - 1]

    def seq_of_id(self, unit_id: str) -> int | None:
        return self._by_id.get(unit_id)

    def seq_of_key(self, agent_id: str, key: str) -> int | None:
        return self._by_key.get((agent_id, key))

    def seqs_relating_to(self, target_id: str, *, units_max: int) -> list[int]:
        return self._by_target.get(target_id, [])[:units_max]

    def context_ids(self, after: str, *, prefix: str, limit: int) -> list[str]:
        start = after.encode(errors="surrogatepass")
        ids = (name for name in self._by_context if name.encode() > start and name.startswith(prefix))
        return sorted(ids, key=str.encode)[:limit]

    def save_snapshot(self, name: str, snapshot: Snapshot) -> None:
        self._snapshots[name] = snapshot

    def load_snapshot(self, name: str) -> Snapshot | None:
        return self._snapshots.get(name)

    def sizes(self) -> Sizes:
        return Sizes(0, 0, None)

    def close(self) -> None:
        """Nothing is held."""
