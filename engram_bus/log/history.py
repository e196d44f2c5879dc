"""What the records of a log came to so far, and whether the next one follows them."""

from engram_bus.log.record import GENESIS, Record, chain_follows
from engram_bus.units import ts_us


class History:
    """What the records so far came to: what the next one must follow."""

    def __init__(self) -> None:
        self.seq = 0
        self.chain = GENESIS
        self.ts = ""
        self.versions: dict[str, int] = {}
        self.group = (1, 0)

    @property
    def group_open(self) -> bool:
        units, index = self.group
        return index + 1 < units

    @property
    def whole_seq(self) -> int:
        """The seq with which the last whole command ended."""
        return self.seq - self.group[1] - 1 if self.group_open else self.seq

    def take(self, record: Record) -> str | None:
        """Add a record, or say why it does not follow."""
        wrong = self.wrong(record)
        if wrong is None:
            unit = record.unit
            self.seq, self.chain, self.ts = unit.seq, record.chain, unit.ts
            self.versions[unit.context_id] = unit.version
            self.group = (record.group_units, record.group_index)
        return wrong

    def wrong(self, record: Record) -> str | None:
        """Why a record does not follow; None where it does."""
        unit = record.unit
        if not chain_follows(record, self.chain):
            return "the digest chain does not hold"
        version = self.versions.get(unit.context_id, 0) + 1
        if unit.version != version:
            return f"it has version {unit.version} of context {unit.context_id!r}, {version} is next"
        if not is_ts(unit.ts) or unit.ts < self.ts:
            return f"its time {unit.ts} does not follow {self.ts}"
        units, index = self.group
        expected = (units, index + 1) if self.group_open else (record.group_units, 0)
        if (record.group_units, record.group_index) != expected or record.group_units < 1:
            return f"it is {record.group_index} of {record.group_units} units of a command, after {index} of {units}"
        return None


def is_ts(text: str) -> bool:
    """Whether this is a time as the writer writes it, so that text order is time order."""
    try:
        return len(text) == len("2026-01-01T00:00:00.000000Z") and ts_us(text) >= 0
    except ValueError:
        return False
