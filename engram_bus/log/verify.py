"""Walk one log read-only, with its identity, indexes and snapshots, and name the first damage.

The walk runs beside a running bus: it takes the index's cursor, then the log's head, and looks at what they cover;
what comes later is left alone. Records are read in short transactions, and nothing is written, locked or repaired.
Run it in a process of its own (`engram_bus.verify`): reading a torn map may end the process.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import msgspec

from engram_bus.codec import UNREADABLE
from engram_bus.errors import DataDirectoryError
from engram_bus.log.contract import Epoch, Snapshot
from engram_bus.log.directory import (
    TenantIdentity,
    header_of,
    index_is_trusted,
    needs_segment,
    read_tenant,
)
from engram_bus.log.history import History
from engram_bus.log.index import RECORD_TABLES, Table, entry_seq, puts
from engram_bus.log.lmdb import IndexReader, LogReader
from engram_bus.log.record import Record, RecordError, parse
from engram_bus.log.segment import MISSING, SEGMENT
from engram_bus.units import WorkUnit

_PAGE_UNITS = 500

FOLDED_AGAIN = "folded again at the next start"


class Damage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is not as it was written: where (in the data directory), at which unit, and how."""

    file: str
    what: str
    seq: int | None = None

    def __str__(self) -> str:
        place = self.file if self.seq is None else f"{self.file}, unit {self.seq}"
        return f"{place}: {self.what}"


class LogReport(msgspec.Struct, frozen=True):
    """What a walk saw of one log. `whole_units` were checked, up to the first damage."""

    tenant: str
    epochs: tuple[Epoch, ...]
    head: int
    whole_units: int
    contexts: int
    chain: str
    """Of the last whole unit, in hex: whoever wrote it down can tell whether this is the same history."""
    index: str
    indexed: int
    """Up to where the index goes: further than `head` where the log lost its end."""
    snapshots: dict[str, int]
    damage: tuple[Damage, ...]
    """The first of the log itself, then the first of what is derived from it."""


class Fold(Protocol):
    """A decision, as far as its snapshots are compared."""

    name: str

    def evolve(self, unit: WorkUnit) -> None:
        """Take in one unit."""

    def snapshot(self) -> bytes:
        """The state."""

    def restore(self, state: bytes | None) -> None:
        """Start from a state, or from nothing."""


Tell = Callable[[str, int], None]
"""Called with a file and a seq before they are read: where a reader was that dies."""


def walk(path: Path, tenant: str, folds: Sequence[Fold], tell: Tell) -> LogReport:
    """The state of the log in `path`. `folds` are fresh decisions, whose snapshots are compared."""
    found = _Walk(path, tenant, tell)
    has_log = (path / "log" / "data.mdb").exists()
    if not has_log and not (path / "identity").exists():
        return found.report()  # A crash before anything was written.
    try:
        identity = read_tenant(path, tenant)
    except DataDirectoryError as exc:
        found.damage.append(Damage(f"tenants/{tenant}/identity", str(exc)))
        return found.report()
    found.epochs = tuple(identity.epochs)
    if has_log or identity.established:
        try:
            is_log = found.open_log(identity)
            found.open_index()
            if is_log:
                found.walk(folds)
        finally:
            found.close()
    return found.report()


class _Walk:
    """One walk: what it reads, and what it has seen so far."""

    def __init__(self, path: Path, tenant: str, tell: Tell) -> None:
        self.path = path
        self.tenant = tenant
        self.tell = tell
        self.epochs: tuple[Epoch, ...] = ()
        self.log: LogReader | None = None
        self.index: IndexReader | None = None
        self.indexed = 0
        self.index_note = f"missing, {FOLDED_AGAIN}"
        self.head = 0
        self.history = History()
        self.puts: Counter[Table] = Counter()
        self.snapshots: dict[str, Snapshot] = {}
        self.damage: list[Damage] = []

    def report(self) -> LogReport:
        return LogReport(
            tenant=self.tenant,
            epochs=self.epochs,
            head=self.head,
            whole_units=self.history.seq,
            contexts=len(self.history.versions),
            chain=self.history.chain.hex(),
            index=self.index_note,
            indexed=self.indexed,
            snapshots={name: snapshot.seq for name, snapshot in self.snapshots.items()},
            damage=tuple(self.damage),
        )

    def close(self) -> None:
        if self.index is not None:
            self.index.close()
        if self.log is not None:
            self.log.close()

    def _file(self, name: str) -> str:
        return f"tenants/{self.tenant}/{name}"

    def _log_damage(self, what: object, seq: int | None = None) -> None:
        self.damage.append(Damage(self._file("log"), str(what), seq))

    def _index_damage(self, what: object, seq: int | None = None) -> None:
        """Only the first, and then the index is left alone."""
        assert self.index is not None, "it was read"
        self.damage.append(Damage(self._file("index"), str(what), seq))
        self.index_note = "damaged"
        self.index.close()
        self.index = None

    # --- Opening -----------------------------------------------------------------------------------------------------

    def open_log(self, identity: TenantIdentity) -> bool:
        """Whether there is a log to walk, and it is the one of this identity."""
        self.tell(self._file("log"), 0)
        try:
            self.log = LogReader(self.path / "log")
            if (wrong := self.log.wrong_page()) is not None:
                self._log_damage(wrong)
            header = self.log.header()
            begun = header is None and not identity.established and self.log.head() == 0
        except DataDirectoryError as exc:
            self._log_damage(exc)
            return False
        except RecordError as exc:
            self._log_damage(f"the header {exc}")
            return False
        if self.log.segment_damage:
            self._log_damage(self.log.segment_damage)
        elif needs_segment(self.path, identity) and not (self.path / "log" / SEGMENT).exists():
            self._log_damage(f"{SEGMENT} {MISSING}")
        if header is None and not begun:
            self._log_damage("the header is missing")
        elif header not in (None, header_of(identity)):
            self._log_damage("this is another log than the identity beside it says")
        return header == header_of(identity)

    def open_index(self) -> None:
        path = self.path / "index"
        if not (path / "data.mdb").exists():
            return
        if not index_is_trusted(path):
            self.index_note = f"not closed cleanly before a restart of the machine, {FOLDED_AGAIN}"
            return
        self.tell(self._file("index"), 0)
        try:
            self.index = IndexReader(path)
            if (wrong := self.index.wrong_page()) is not None:
                self._index_damage(wrong)
                return
            self.indexed, self.indexed_chain = self.index.cursor()
            self._open_snapshots(self.index)
        except DataDirectoryError as exc:
            self.damage.append(Damage(self._file("index"), str(exc)))
            self.index_note = "damaged"
        except RecordError as exc:
            self._index_damage(exc)

    def _open_snapshots(self, index: IndexReader) -> None:
        for name, snapshot in index.snapshots():
            if snapshot is None:
                self.damage.append(Damage(self._file("index"), f"the snapshot of {name} does not match its checksum"))
            else:
                self.snapshots[name] = snapshot

    # --- The log, and what leads to it -------------------------------------------------------------------------------

    def walk(self, folds: Sequence[Fold]) -> None:
        assert self.log is not None
        try:
            # After the index's cursor was read: it is never ahead of its log.
            self.head = self.log.head()
        except RecordError as exc:
            self._log_damage(exc)
            return
        for page in _pages(self._whole_records()):
            self._look_up(page)
            self._fold(page, folds)
        if self.index is not None:
            self._compare_ends(self.index)
        if self.index is not None and self.history.seq == self.head:
            self._look_back(self.index)

    def _whole_records(self) -> Iterator[Record]:
        """The records up to the first that is damaged, which is noted."""
        assert self.log is not None
        raws = self.log.raws(self.head)
        while self.history.seq < self.head:
            seq = self.history.seq + 1
            if seq % _PAGE_UNITS == 1:
                self.tell(self._file("log"), seq)
            try:
                record = parse(next(raws)[1], seq)
            except RecordError as exc:
                self._log_damage(exc, seq)
                return
            if (wrong := self.history.take(record)) is not None:
                self._log_damage(wrong, seq)
                return
            if not self._is_found(record):
                self._log_damage("is there, and is not found by its seq", seq)
                return
            yield record
        if self.history.group_open:
            self._log_damage("the command it is part of was not recorded whole", self.head)
        if (wrong := self.log.wrong_count()) is not None:
            self._log_damage(wrong)

    def _is_found(self, record: Record) -> bool:
        """Whether the tree's branches lead to it: one record after the other is read without them."""
        assert self.log is not None
        try:
            return self.log.raw(record.unit.seq) == record.raw
        except RecordError:
            return False

    def _look_up(self, page: Sequence[Record]) -> None:
        """Each record is found under each of its keys."""
        if self.index is None:
            return
        covered = [record for record in page if record.unit.seq <= self.indexed]
        wanted = [
            (entry_seq(table, key, value), table, key, value)
            for table, entries in puts(covered).items()
            for key, value in entries
        ]
        try:
            found = self.index.values([(table, key) for _, table, key, _ in wanted])
        except RecordError as exc:
            self._index_damage(exc, page[0].unit.seq)
            return
        for (seq, table, _, expected), value in zip(wanted, found, strict=True):
            if value != expected:
                self._index_damage(f"it is not found in {table}" if value is None else f"{table} leads elsewhere", seq)
                return
            self.puts[table] += 1

    def _fold(self, page: Sequence[Record], folds: Sequence[Fold]) -> None:
        for record in page:
            for fold in folds:
                fold.evolve(record.unit)
                snapshot = self.snapshots.get(fold.name)
                if snapshot is not None and snapshot.seq == record.unit.seq:
                    self._compare(fold, snapshot)

    def _compare(self, fold: Fold, snapshot: Snapshot) -> None:
        kept = type(fold)()
        try:
            kept.restore(snapshot.state)
            is_equal = kept.snapshot() == fold.snapshot()
        except UNREADABLE:
            is_equal = False
        if not is_equal:
            what = f"the snapshot of {fold.name} is not what its log folds to"
            self.damage.append(Damage(self._file("index"), what, snapshot.seq))

    def _compare_ends(self, index: IndexReader) -> None:
        self.index_note = "current"
        if self.indexed > self.head:
            self._index_damage(f"it knows {self.indexed} units, the log holds {self.head}: the log lost its end")
        elif self.indexed < self.head:
            self.index_note = f"{self.head - self.indexed} units behind, {FOLDED_AGAIN}"

    def _look_back(self, index: IndexReader) -> None:
        """Each entry leads to a record that has it. Every record was found, so as many entries as that are all."""
        self.tell(self._file("index"), self.head)
        try:
            for table in RECORD_TABLES:
                if sum(1 for _ in self._covered(index, table)) != self.puts[table]:
                    self._name_stray(index, table)
                    return
        except RecordError as exc:
            self._index_damage(exc)

    def _covered(self, index: IndexReader, table: Table) -> Iterator[tuple[int, bytes, bytes]]:
        """The entries that lead to a unit the walk covers; a running bus may have added others."""
        for cursor, key, value in index.entries(table):
            seq = entry_seq(table, key, value)
            if seq <= self.indexed or seq > cursor:
                yield seq, key, value

    def _name_stray(self, index: IndexReader, table: Table) -> None:
        assert self.log is not None
        for seq, key, value in self._covered(index, table):
            raw = self.log.raw(seq) if 1 <= seq <= self.head else None
            if raw is None:
                self._index_damage(f"{table} leads to unit {seq}, which the index does not cover", seq)
                return
            if (key, value) not in puts([parse(raw, seq)]).get(table, ()):
                self._index_damage(f"{table} leads to it under a key it does not have", seq)
                return
        self._index_damage(f"{table} has other entries than its log folds to")


def _pages(records: Iterator[Record]) -> Iterator[list[Record]]:
    while page := list(islice(records, _PAGE_UNITS)):
        yield page
