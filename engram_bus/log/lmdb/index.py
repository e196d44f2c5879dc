"""The index's environment: what finds a record, folded from the log and folded again where it is not whole.

Nothing in it is flushed but at a clean end: what an operating system had not written yet is derived from the log.
Except for opening, taking in and closing, what LMDB raises (`lmdb.Error`) is the caller's to name.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import lmdb

from engram_bus.errors import DataDirectoryError
from engram_bus.log.contract import Snapshot
from engram_bus.log.directory import forget_index, index_is_as_closed, index_is_trusted, mark_index
from engram_bus.log.index import Table, context_key, key_seq, puts, target_prefix
from engram_bus.log.lmdb.cells import CURSOR, SNAPSHOT, cursor_value, parse_cursor, snapshot_value
from engram_bus.log.lmdb.environments import (
    NOT_LMDB,
    allocate_lock_file,
    opened,
    opened_beside,
    refuse_short,
    short_by,
    wrong_page_of,
)
from engram_bus.log.lmdb.places import context_name, context_places, context_versions, places_beside
from engram_bus.log.record import Record

log = logging.getLogger(__name__)

Place = tuple[int, int]
"""A version and its seq."""
HasChain = Callable[[int, bytes], bool]
"""Whether the log's record at a seq has this chain digest. Raises DataDamaged where the log has no such record."""


class LmdbIndex:
    """One that is open. `seq` is how far it goes."""

    def __init__(self, path: Path, env: lmdb.Environment, tables: dict[Table, lmdb._Database], seq: int) -> None:
        self._path = path
        self._env = env
        self._tables = tables
        self.seq = seq
        self.is_damaged = False

    # --- Taking in ---------------------------------------------------------------------------------------------------

    def take(self, newest: Sequence[Record]) -> bool:
        """Whether it took these records, which follow what it has. If not, they are folded when there is room."""
        last = newest[-1]
        try:
            with self._env.begin(write=True) as txn:
                for table, entries in puts(newest).items():
                    with txn.cursor(self._tables[table]) as cursor:
                        cursor.putmulti(entries)
                txn.put(CURSOR, cursor_value(last), db=self._tables[Table.STATE])
        except lmdb.Error as exc:
            self._failed(exc)
            return False
        self.seq = last.unit.seq
        return True

    def probe(self) -> bool:
        """Whether it can be written; who opens it beside this process then finds the size that it has now."""
        try:
            with self._env.begin(write=True) as txn:
                cursor = txn.get(CURSOR, db=self._tables[Table.STATE])
                if cursor is not None:
                    txn.put(CURSOR, bytes(cursor), db=self._tables[Table.STATE])
        except lmdb.Error as exc:
            self._failed(exc)
            return False
        return True

    def _failed(self, exc: lmdb.Error) -> None:
        log.error("%s cannot be written: %s", self._path, exc)
        if isinstance(exc, NOT_LMDB):
            self.is_damaged = True
            forget_index(self._path)

    def keep(self, name: str, snapshot: Snapshot) -> None:
        """Keep a state under a name, in place of the one before."""
        with self._env.begin(write=True) as txn:
            txn.put(SNAPSHOT + name.encode(), snapshot_value(snapshot), db=self._tables[Table.STATE])

    def forget_dead_readers(self) -> None:
        """Give back the place of a reader that died: the pages it saw cannot be used again before."""
        self._env.reader_check()

    def close(self, *, clean: bool) -> bool:
        """Whether it could be marked clean, which may only be on the disk when all before it is."""
        clean = clean and not self.is_damaged
        try:
            if clean:
                self._env.sync(True)
        except lmdb.Error as exc:
            log.warning("%s is not marked clean: %s", self._path, exc)
            clean = False
        self._env.close()
        if clean:
            mark_index(self._path, clean=True)
        return clean

    # --- Finding -----------------------------------------------------------------------------------------------------

    def lookup(self, table: Table, key: bytes) -> int | None:
        """The seq that stands under a key."""
        with self._env.begin() as txn:
            value = txn.get(key, db=self._tables[table])
        return None if value is None else key_seq(bytes(value))

    def places(
        self, context_id: str, *, after: int, end: int, reverse: bool, units_max: int
    ) -> tuple[list[Place], list[Place]]:
        """Where units of a context with after < seq < end lie, the first `units_max`; and those beside them all."""
        with self._env.begin() as txn, txn.cursor(self._tables[Table.CONTEXTS]) as cursor:
            versions = context_versions(cursor, context_id, after, end)
            places = context_places(cursor, context_id, versions[::-1] if reverse else versions, units_max)
            return [*places], [*places_beside(cursor, context_id, versions)]

    def relating_to(self, target_id: str, *, last: int, units_max: int) -> list[int]:
        """The seqs up to `last` of the units that relate to this one, oldest first."""
        prefix = target_prefix(target_id)
        seqs: list[int] = []
        with self._env.begin() as txn, txn.cursor(self._tables[Table.TARGETS]) as cursor:
            found = cursor.set_range(prefix)
            while found and len(seqs) < units_max and bytes(cursor.key()).startswith(prefix):
                if (seq := key_seq(bytes(cursor.key()))) > last:
                    break
                seqs.append(seq)
                found = cursor.next()
        return seqs

    def context_names(self, start: bytes, *, prefix: bytes, limit: int) -> set[bytes]:
        """The first names of contexts from `start` on that have the prefix."""
        names: set[bytes] = set()
        with self._env.begin() as txn, txn.cursor(self._tables[Table.CONTEXTS]) as cursor:
            found = cursor.set_range(start) if start else cursor.first()
            while found and len(names) < limit:
                name = context_name(bytes(cursor.key()))
                if not name.startswith(prefix):
                    break
                names.add(name)
                found = cursor.set_range(name + b"\1")
        return names

    def first_seqs(self, context_ids: Sequence[str]) -> list[int | None]:
        """Where these contexts began."""
        with self._env.begin() as txn:
            firsts = [txn.get(context_key(name, 1), db=self._tables[Table.CONTEXTS]) for name in context_ids]
        return [None if first is None else key_seq(bytes(first)) for first in firsts]

    def kept(self, name: str) -> bytes | None:
        """What `keep` kept, for `parse_snapshot`."""
        with self._env.begin() as txn:
            value = txn.get(SNAPSHOT + name.encode(), db=self._tables[Table.STATE])
        return None if value is None else bytes(value)


# --- Opening ---------------------------------------------------------------------------------------------------------


def index_to_write(path: Path, *, size_bytes_max: int, segment: str, has_chain: HasChain) -> LmdbIndex:
    """The index in `path`; an empty one in the place of one that is not whole or of another log.

    Raises DataDamaged where the log has lost records that the index knows, DataDirectoryError where none can be made.
    """
    try:
        if not index_is_trusted(path):
            if (path / "data.mdb").exists():
                log.warning("%s is folded again: nothing says that it is whole", path)
            _empty(path)
        elif not index_is_as_closed(path):
            log.warning("%s is not as it was closed: it is folded again", path)
            _empty(path)
        try:
            return _opened_to_write(path, size_bytes_max, segment, has_chain)
        except (_UnusableError, lmdb.Error) as exc:
            log.warning("%s is folded again: %s", path, exc)
            _empty(path)
            return _opened_to_write(path, size_bytes_max, segment, has_chain)
    except OSError as exc:
        raise DataDirectoryError(f"{path} cannot be made: {exc}") from exc


def index_to_read(path: Path, *, size_bytes_max: int, stored: int, has_chain: HasChain) -> LmdbIndex:
    """The same on a file system that takes no writes. Raises DataDirectoryError where it does not go up to `stored`."""
    if not index_is_trusted(path) or not index_is_as_closed(path):
        raise DataDirectoryError(f"{path} is not whole and cannot be folded on a read-only file system")
    env = opened(path, size_bytes_max, writable=False, sync=False, tables=len(Table))
    try:
        refuse_short(env, path / "data.mdb")
        tables = {table: env.open_db(table.value.encode(), create=False) for table in Table}
        seq = _how_far(env, tables, has_chain)
        if seq != stored:
            raise DataDirectoryError(f"{path} is behind its log and cannot be folded on a read-only file system")
    except BaseException:
        env.close()
        raise
    return LmdbIndex(path, env, tables, seq)


def index_beside(path: Path, *, seq: int, size_bytes_max: int) -> LmdbIndex:
    """The index that another process writes, which said how far it goes and what size it may grow to."""
    env, tables = opened_beside(path, tuple(Table), size_bytes=size_bytes_max)
    return LmdbIndex(path, env, tables, seq)


class _UnusableError(Exception):
    """The index is not one that this log can be looked up in: it is made again."""


def _opened_to_write(path: Path, size_bytes_max: int, segment: str, has_chain: HasChain) -> LmdbIndex:
    # Before anything is written: whoever finds the index from now on must not take it for a clean one.
    mark_index(path, clean=False, segment=segment)
    allocate_lock_file(path)
    env = opened(path, size_bytes_max, writable=True, sync=False, tables=len(Table))
    try:
        if (short := short_by(env, path / "data.mdb")) > 0:
            raise _UnusableError(f"it is {short} bytes short")
        if (wrong := wrong_page_of(env, path / "data.mdb")) is not None:
            raise _UnusableError(wrong)
        tables = {table: env.open_db(table.value.encode()) for table in Table}
        seq = _how_far(env, tables, has_chain)
    except BaseException:
        env.close()
        raise
    return LmdbIndex(path, env, tables, seq)


def _how_far(env: lmdb.Environment, tables: dict[Table, lmdb._Database], has_chain: HasChain) -> int:
    with env.begin() as txn:
        value = txn.get(CURSOR, db=tables[Table.STATE])
    if value is None:
        return 0
    seq, chain = parse_cursor(bytes(value))
    if not has_chain(seq, chain):
        raise _UnusableError(f"record {seq} is not the one it was made from")
    return seq


def _empty(path: Path) -> None:
    """Remove an index: every entry of it is derived from the log, and the log itself is never removed."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()
