"""What the log holds, read in bounded pieces: a unit, pages of a context, and walks along relationships."""

from collections.abc import Iterator, Sequence

import msgspec

from engram_bus.codec import Entry
from engram_bus.errors import LogDamaged, UnitNotFound
from engram_bus.limits import PAGE_BYTES_MAX, RELATED_EDGES_MAX, RELATED_UNITS_MAX, SCAN_UNITS_MAX
from engram_bus.log.contract import Log
from engram_bus.units import Relationship, RelationshipType, WorkUnit


class Page(msgspec.Struct, frozen=True):
    """A part of a list: its units, where it goes on (None at the end), and the seq it reflects."""

    entries: tuple[Entry, ...]
    next_page: str | None
    applied_seq: int

    @property
    def work_units(self) -> list[WorkUnit]:
        return [entry.unit for entry in self.entries]


class Related(msgspec.Struct, frozen=True):
    """A unit reached over relationships: by which edge, from which unit, and after how many steps."""

    entry: Entry
    relationship: RelationshipType
    direction: str
    from_id: str
    depth: int


class RelatedPage(msgspec.Struct, frozen=True):
    """Everything reached, nearest first; targets that are not in the log; whether a bound ended the search."""

    related: tuple[Related, ...]
    missing: tuple[str, ...]
    truncated: bool
    applied_seq: int


def entry_of(log: Log, unit_id: str) -> Entry:
    """The unit of this id. Raises UnitNotFound, LogDamaged."""
    seq = log.seq_of_id(unit_id) if len(unit_id) == 36 and unit_id.isascii() else None
    if seq is None:
        raise UnitNotFound(f"no unit of id {unit_id[:64]!r}")
    record = log.record(seq)
    return Entry(seq, record.body, record.unit)


class Scan:
    """Reads through a context, as far as one page may go."""

    def __init__(self, log: Log, context_id: str, *, reverse: bool, after: int, before: int | None) -> None:
        self.position = 0
        self._log = log
        self._context_id = context_id
        self._reverse = reverse
        self._after = after
        self._before = before
        self._room_units = SCAN_UNITS_MAX
        self._room_bytes = PAGE_BYTES_MAX
        self._at_end = False
        self._at_damage = False

    @property
    def may_go_on(self) -> bool:
        return self._room_units > 0 and self._room_bytes > 0 and not self._at_end and not self._at_damage

    def next(self, units_max: int) -> Sequence[Entry]:
        """The next entries. Raises LogDamaged when the damage is the first thing met; later, the next page tells."""
        try:
            entries = self._read(min(units_max, self._room_units), self._room_bytes)
        except LogDamaged:
            if self.position == 0:
                raise
            self._at_damage = True
            return ()
        self._at_end = not entries
        return entries

    def passed(self, entry: Entry) -> None:
        """This one was looked at."""
        self.position = entry.seq
        self._room_units -= 1
        self._room_bytes -= len(entry.body)
        if self._reverse:
            self._before = entry.seq
        else:
            self._after = entry.seq

    def is_at_end(self) -> bool:
        """Whether nothing follows."""
        if self._at_end or self._at_damage:
            return self._at_end
        try:
            return not self._read(units_max=1, bytes_max=1)
        except LogDamaged:
            return False

    def _read(self, units_max: int, bytes_max: int) -> Sequence[Entry]:
        return self._log.read_context(
            self._context_id,
            after=self._after,
            before=self._before,
            reverse=self._reverse,
            units_max=units_max,
            bytes_max=bytes_max,
        )


class Walk:
    """One search along relationships, a step of all units it stands on at a time."""

    def __init__(self, log: Log, start: Entry, direction: str, types: Sequence[RelationshipType]) -> None:
        self.found: list[Related] = []
        self.missing: dict[str, None] = {}
        self.truncated = False
        self._log = log
        self._directions = ("out", "in") if direction == "both" else (direction,)
        self._types = frozenset(types)
        self._level = [start]
        self._seen = {start.unit.id}
        self._room_edges = RELATED_EDGES_MAX

    def step(self, depth: int) -> None:
        """Go one relationship further from every unit of the last step."""
        level, self._level = self._level, []
        for entry in level:
            for direction in self._directions:
                edges = self._out(entry) if direction == "out" else self._in(entry)
                for relationship, target in edges:
                    if self.truncated:
                        return
                    self._take(Related(target, relationship, direction, entry.unit.id, depth))

    def _take(self, related: Related) -> None:
        unit_id = related.entry.unit.id
        if unit_id in self._seen:
            return
        if len(self.found) == RELATED_UNITS_MAX:
            self.truncated = True
            return
        self._seen.add(unit_id)
        self.found.append(related)
        self._level.append(related.entry)

    def _out(self, entry: Entry) -> Iterator[tuple[RelationshipType, Entry]]:
        for relationship in entry.unit.relationships:
            if not self._may_follow() or not self._is_wanted(relationship):
                continue
            try:
                target = entry_of(self._log, relationship.target_id)
            except UnitNotFound:
                self.missing[relationship.target_id] = None
            else:
                yield relationship.type, target

    def _in(self, entry: Entry) -> Iterator[tuple[RelationshipType, Entry]]:
        # One more than there is room for tells whether there are more.
        for seq in self._log.seqs_relating_to(entry.unit.id, units_max=self._room_edges + 1):
            if not self._may_follow():
                return
            record = self._log.record(seq)
            for relationship in record.unit.relationships:
                if relationship.target_id == entry.unit.id and self._is_wanted(relationship):
                    yield relationship.type, Entry(seq, record.body, record.unit)

    def _is_wanted(self, relationship: Relationship) -> bool:
        return not self._types or relationship.type in self._types

    def _may_follow(self) -> bool:
        """Each relationship looked at is read from the disk: there is an end to it, which is told."""
        if self._room_edges == 0:
            self.truncated = True
        self._room_edges = max(0, self._room_edges - 1)
        return not self.truncated
