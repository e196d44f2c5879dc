"""The log on disk: a segment that makes commits durable, an LMDB environment that takes them over, one to find them.

The only place that knows LMDB. A commit is one flush of the segment (`segment.py`); its records are in memory as well
(`Tail`), until LMDB takes over many at a time, and syncs them. Two environments because it is the clearer idea and the
faster one: the log's commit dirties few pages and is flushed; the index's is left to the operating system and folded
again after a power cut.
Never NOSYNC, WRITEMAP, NOMETASYNC or MAPASYNC on the log. A read transaction never outlives the call that opened it:
one open reader keeps every page from being reused.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Concatenate, NoReturn, ParamSpec, TypeVar

import lmdb
import msgspec

from engram_bus.codec import UNREADABLE, Entry
from engram_bus.errors import (
    DataDamaged,
    DataDirectoryError,
    EngramError,
    LogDamaged,
    StorageFailed,
    StorageFull,
    StorageReadOnly,
)
from engram_bus.limits import (
    DISK_RESERVE_BYTES,
    DISK_RESERVE_DIVISOR,
    LOG_SIZE_BYTES_MAX,
    MIB,
    TAIL_BYTES_MAX,
    TAIL_UNITS_MAX,
)
from engram_bus.log import record as records
from engram_bus.log.contract import Epoch, Sizes, Snapshot
from engram_bus.log.directory import (
    LogHeader,
    establish_tenant,
    forget_index,
    header_of,
    index_is_as_closed,
    index_is_trusted,
    index_was_closed,
    is_read_only,
    load_tenant,
    mark_index,
    needs_segment,
    segment_in_use,
    sync_directory,
)
from engram_bus.log.index import (
    SEQ_BYTES,
    Table,
    context_key,
    context_prefix,
    idempotency_key,
    key_seq,
    may_be_name,
    puts,
    seq_key,
    target_prefix,
)
from engram_bus.log.pages import wrong_page
from engram_bus.log.record import GENESIS, Record, RecordError
from engram_bus.log.segment import (
    MISSING,
    NOT_THE_ONE,
    SEGMENT,
    Segment,
    SegmentDamaged,
    content_of,
    is_segment,
    make_segment,
    name_of,
    records_after,
    renew_segment,
)
from engram_bus.log.tail import Tail

log = logging.getLogger(__name__)

_HEADER_KEY = seq_key(0)
"""Before every seq: which log this is (`LogHeader` as MessagePack)."""
_CURSOR = b"cursor"
"""Up to where the index goes: a seq and the chain digest there, so that it is never taken for another log's."""
_SNAPSHOT = b"snapshot:"
_STATE_DIGEST_BYTES = 16
NOTHING: Mapping[int, bytes] = {}
_FOLD_UNITS = 2_000
_WALK_UNITS = 500
_SEGMENT_LOOKS = 20
_WALK_BYTES = 8 * MIB
_READERS_MAX = 126
_VERSIONS_END = 2 ** (8 * SEQ_BYTES)
_LOCK_FILE_BYTES = 64 * (_READERS_MAX + 2)
"""As LMDB makes it: a header, and a cache line for each reader."""

_SHORT_WRITE_BYTES = 1 * MIB
"""Where less is free, a write may end at the end of the disk."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_LMDB = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


P = ParamSpec("P")
T = TypeVar("T")


def _damage_named(read: "Callable[Concatenate[LmdbLog, P], T]") -> "Callable[Concatenate[LmdbLog, P], T]":
    """What LMDB cannot read is told in the contract's words."""

    @wraps(read)
    def reading(self: "LmdbLog", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(self, *args, **kwargs)
        except lmdb.Error as exc:
            raise self._unreadable(exc) from exc

    return reading


class LmdbLog:
    """A log in `path` (a tenant's directory), for one writing process that holds the data directory's lock.

    `size_bytes_max` is the size of the sparse map. Raises DataDirectoryError when what is found is damaged or of
    another log.
    """

    def __init__(
        self, path: Path, *, tenant: str = "default", size_bytes_max: int = LOG_SIZE_BYTES_MAX, writable: bool = True
    ) -> None:
        self._path = path
        self._size_bytes_max = size_bytes_max
        self._writable = writable
        self._failed: StorageFailed | None = None
        self._closed = False
        self._tail = Tail()
        self._segment: Segment | None = None
        self._must_settle = False
        """Whether the segment holds what a start could not take over: nothing may be written before that is done."""
        self._identity = load_tenant(path, tenant, writable=writable)
        self._open()

    def _open(self) -> None:
        self._index_is_damaged = False
        self._env = self._open_log()
        try:
            self._stored, chain = self._find_head()
            self._tail = self._recovered(chain)
            self._head = self._stored + len(self._tail)
            self._chain = self._tail.records[-1].chain if self._tail else chain
            if self._writable:
                self._segment = Segment(self._segment_file)
            self._index, self._tables = self._open_index()
            try:
                self._fold_index()
                if self._writable:
                    self._take_over_what_is_left()
            except BaseException:
                self._index.close()
                raise
        except (lmdb.Error, LogDamaged, StorageFailed, StorageFull, SegmentDamaged, OSError) as exc:
            self._close_segment()
            self._env.close()
            error = DataDirectoryError if isinstance(exc, StorageFull | StorageFailed | OSError) else DataDamaged
            raise error(f"{self._part(exc)}: {exc}") from exc
        except BaseException:
            self._close_segment()
            self._env.close()
            raise

    def _part(self, exc: Exception) -> Path:
        """What an error at the opening is about."""
        match exc:
            case LogDamaged():
                return self._path / "log"
            case SegmentDamaged():
                return self._segment_file
            case _:
                return self._path

    # --- What it is --------------------------------------------------------------------------------------------------

    durability = "fsync"

    @property
    def epochs(self) -> Sequence[Epoch]:
        return self._identity.epochs

    @property
    def head(self) -> int:
        return self._head

    @property
    def chain(self) -> bytes:
        return self._chain

    def sizes(self) -> Sizes:
        return Sizes(
            _allocated_bytes(self._path / "log" / "data.mdb"),
            _allocated_bytes(self._path / "index" / "data.mdb"),
            _free_bytes(self._path),
        )

    # --- Appending ---------------------------------------------------------------------------------------------------

    def append(self, records: Sequence[Record]) -> None:
        size_bytes = sum([len(record.raw) for record in records])
        self._require_writable(size_bytes)
        seqs = [record.unit.seq for record in records]
        if seqs != [*range(self._head + 1, self._head + 1 + len(seqs))]:
            raise AssertionError(f"seqs {seqs} do not follow {self._head}")
        assert self._segment is not None, "it is writable"
        if self._must_settle or not self._segment.has_room(len(records), size_bytes):
            self.settle()
        if self._segment.has_room(len(records), size_bytes):
            try:
                self._segment.append(records, self._chain)
            except OSError as exc:
                self._refuse(exc, exc.errno)
            self._tail.extend(records, size_bytes)
        else:
            self._store(records)
        self._head = records[-1].unit.seq
        self._chain = records[-1].chain

    @property
    def settled(self) -> int:
        return self._stored

    def settle(self) -> None:
        if self._tail and self._failed is None and self._writable:
            self._store(self._tail.records)
            self._tail = Tail()
            assert self._segment is not None, "it is writable"
            self._segment.restart()
            self._must_settle = False

    def _store(self, records: Sequence[Record]) -> None:
        """Let LMDB have the next ones."""
        try:
            with self._env.begin(write=True) as txn:
                for record in records:
                    # Out of order, LMDB answers False instead of raising.
                    if not txn.put(seq_key(record.unit.seq), record.raw, append=True):
                        raise AssertionError(f"seq {record.unit.seq} is not behind the last one")
        except lmdb.Error as exc:
            self._refuse(exc, exc.code)
        self._stored = records[-1].unit.seq
        if self._indexed == records[0].unit.seq - 1:
            self._index_records(records)

    def probe(self) -> None:
        if not self._writable and not is_read_only(self._path):
            self._reopen_writable()
        self._require_writable(0)
        self.settle()
        try:
            with self._env.begin(write=True) as txn:
                header = txn.get(_HEADER_KEY)
                assert header is not None, "the header is written when the log is made"
                txn.put(_HEADER_KEY, bytes(header))
        except lmdb.Error as exc:
            self._refuse(exc, exc.code)
        self._fold_index()

    def _require_writable(self, batch_bytes: int) -> None:
        if self._failed is not None:
            raise self._failed.with_traceback(None)
        if not self._writable:
            raise StorageReadOnly(f"{self._path} is on a read-only file system")
        disk = os.statvfs(self._path)
        free_bytes = disk.f_bavail * disk.f_frsize
        reserve_bytes = min(DISK_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // DISK_RESERVE_DIVISOR)
        # Twice: the pages of the log and, later, those of the index.
        if free_bytes < reserve_bytes + 2 * batch_bytes:
            raise StorageFull(
                f"{free_bytes} bytes are free on the disk of {self._path}; {reserve_bytes} are kept in reserve "
                f"and this commit may take {2 * batch_bytes}",
                limit=reserve_bytes,
                free_bytes=free_bytes,
            )
        if len(self._tail) >= TAIL_UNITS_MAX or self._tail.held_bytes >= TAIL_BYTES_MAX:
            self.settle()
        if self._indexed < self._stored:
            self._fold_index()

    def _refuse(self, exc: Exception, code: int | None) -> NoReturn:
        """Say what kind of failure this is. After anything but a full or read-only disk the page cache may lie."""
        # A write that came out short is EIO to LMDB; the reason is what the disk has left.
        is_short = code == errno.EIO and _free_bytes(self._path) < _SHORT_WRITE_BYTES
        if code in _FULL or isinstance(exc, lmdb.MapFullError) or is_short:
            raise StorageFull(f"no room for the log in {self._path}: {exc}") from exc
        if code in _READ_ONLY:
            raise StorageReadOnly(f"{self._path} refuses writes: {exc}") from exc
        if isinstance(exc, _NOT_LMDB):  # What says which of its pages are free is read by writes alone.
            file = self._path / "log" / "data.mdb"
            self._failed = StorageFailed(
                f"{file} is damaged and takes no appends: {exc}; `engram repair` makes it whole"
            )
        else:
            self._failed = StorageFailed(f"the disk of {self._path} failed: {exc}; appends go on after a restart")
        raise self._failed from exc

    def _unreadable(self, exc: lmdb.Error, seq: int | None = None) -> EngramError:
        if self._failed is not None:
            return self._failed
        message = f"{self._path} cannot be read: {exc}"
        return LogDamaged(message) if seq is None else LogDamaged(message, seq=seq)

    # --- Reading -----------------------------------------------------------------------------------------------------

    def read(self, after: int, *, units_max: int, bytes_max: int) -> list[Entry]:
        last = min(after + units_max, self._head)
        entries: list[Entry] = []
        try:
            if after < min(last, self._stored):
                with self._env.begin() as txn, txn.cursor() as cursor:
                    for seq, raw in _raws(cursor, after + 1, min(last, self._stored)):
                        body = records.body_of(raw, seq)
                        if entries and len(body) > bytes_max:
                            return entries
                        bytes_max -= len(body)
                        entries.append(Entry(seq, body))
        except (RecordError, lmdb.Error) as exc:
            if not entries:
                raise self._damaged(after + 1, exc) from exc
            return entries
        if last > self._stored:
            newest = self._tail.after(max(after, self._stored), last - max(after, self._stored))
            _extend(entries, newest, bytes_max)
        return entries

    def _damaged(self, seq: int, exc: RecordError | lmdb.Error) -> EngramError:
        if isinstance(exc, lmdb.Error):
            return self._unreadable(exc, seq)
        return LogDamaged(f"record {seq} {exc}", seq=seq)

    @_damage_named
    def read_context(
        self, context_id: str, *, after: int, before: int | None, reverse: bool, units_max: int, bytes_max: int
    ) -> list[Entry]:
        if not may_be_name(context_id):
            return []
        end = self._head + 1 if before is None else before
        newest = self._tail.of_context(context_id, after, end)
        entries: list[Entry] = []
        if reverse and _extend(entries, newest[::-1][:units_max], bytes_max):
            return entries
        bytes_max -= sum([len(entry.body) for entry in entries])
        self._fold_index()
        with self._index.begin() as txn, txn.cursor(self._tables[Table.CONTEXTS]) as cursor:
            units_left = units_max - len(entries)
            versions = _context_versions(cursor, context_id, after, min(end, self._stored + 1))
            places = list(_context_places(cursor, context_id, versions[::-1] if reverse else versions, units_left))
            beside = [*_places_beside(cursor, context_id, versions)]
        self._check_beside(beside, context_id)
        stored = self._stored_entries(places, bytes_max, context_id, is_first=not entries)
        entries += stored
        if not reverse and len(stored) == len(places):
            bytes_max -= sum([len(entry.body) for entry in stored])
            _extend(entries, newest[: units_max - len(entries)], bytes_max)
        return entries

    def _check_beside(self, places: Sequence[tuple[int, int]], context_id: str) -> None:
        """A search for where a page begins or ends may have been led past a unit by an entry that is not right."""
        with self._env.begin() as txn:
            for version, seq in places:
                try:
                    self._placed(txn, context_id, version, seq)
                except _MisplacedError as exc:
                    raise self._damaged(seq, exc) from exc
                except (RecordError, lmdb.Error):
                    pass  # A damaged record keeps nobody from those after it.

    def _stored_entries(
        self, places: Sequence[tuple[int, int]], bytes_max: int, context_id: str, *, is_first: bool
    ) -> list[Entry]:
        """What lies in LMDB at these places, as far as bytes go; where it `is_first`, at least one."""
        entries: list[Entry] = []
        with self._env.begin() as txn:
            for version, seq in places:
                try:
                    entry = self._placed(txn, context_id, version, seq)
                except (RecordError, lmdb.Error) as exc:
                    if entries or not is_first:
                        break
                    raise self._damaged(seq, exc) from exc
                if (entries or not is_first) and len(entry.body) > bytes_max:
                    break
                bytes_max -= len(entry.body)
                entries.append(entry)
        return entries

    def _placed(self, txn: lmdb.Transaction, context_id: str, version: int, seq: int) -> Entry:
        entry = Entry(seq, records.body_of(self._raw(txn, seq), seq))
        if (entry.unit.context_id, entry.unit.version) != (context_id, version):
            raise _MisplacedError(f"is not version {version} of {context_id!r}, as the index says")
        return entry

    def _raw(self, txn: lmdb.Transaction, seq: int) -> bytes:
        # An index entry that a power cut tore, or a record of a commit that failed, may lie after the head.
        raw = txn.get(seq_key(seq)) if 1 <= seq <= self._stored else None
        if raw is None:
            raise RecordError("is missing")
        return bytes(raw)

    def record(self, seq: int) -> Record:
        if self._stored < seq <= self._head:
            return self._tail.record(seq)
        try:
            with self._env.begin() as txn:
                raw = self._raw(txn, seq)
            return records.parse(raw, seq)
        except (RecordError, lmdb.Error) as exc:
            raise self._damaged(seq, exc) from exc

    @_damage_named
    def seq_of_id(self, unit_id: str) -> int | None:
        if not may_be_name(unit_id):
            return None
        if (newest := self._tail.seq_of_id(unit_id)) is not None:
            return newest
        seq = self._lookup(Table.IDS, unit_id.encode())
        if seq is not None and self.record(seq).unit.id != unit_id:
            raise LogDamaged(f"the index leads from unit {unit_id} to another at {seq}", seq=seq)
        return seq

    @_damage_named
    def seq_of_key(self, agent_id: str, key: str) -> int | None:
        if (newest := self._tail.seq_of_key(agent_id, key)) is not None:
            return newest
        seq = self._lookup(Table.KEYS, idempotency_key(agent_id, key))
        if seq is None:
            return None
        record = self.record(seq)
        if (record.unit.agent_id, record.private.key) != (agent_id, key):
            raise LogDamaged(f"the index leads from idempotency key {key!r} to another at {seq}", seq=seq)
        return seq

    def _lookup(self, table: Table, key: bytes) -> int | None:
        self._fold_index()
        with self._index.begin() as txn:
            value = txn.get(key, db=self._tables[table])
        return None if value is None else key_seq(bytes(value))

    @_damage_named
    def seqs_relating_to(self, target_id: str, *, units_max: int) -> list[int]:
        if not may_be_name(target_id):
            return []
        self._fold_index()
        prefix = target_prefix(target_id)
        seqs: list[int] = []
        with self._index.begin() as txn, txn.cursor(self._tables[Table.TARGETS]) as cursor:
            found = cursor.set_range(prefix)
            while found and len(seqs) < units_max and bytes(cursor.key()).startswith(prefix):
                if (seq := key_seq(bytes(cursor.key()))) > self._stored:
                    break
                seqs.append(seq)
                found = cursor.next()
        seqs += self._tail.relating_to(target_id)[: units_max - len(seqs)]
        return seqs

    @_damage_named
    def context_ids(self, after: str, *, prefix: str, limit: int) -> list[str]:
        if prefix and not may_be_name(prefix):
            return []
        self._fold_index()
        wanted = prefix.encode()
        start_after = after.encode(errors="surrogatepass")
        # One past every key of `after`: its zero byte becomes a one, which no name holds.
        start = max(wanted, start_after + b"\1") if after else wanted
        names: set[bytes] = set()
        with self._index.begin() as txn, txn.cursor(self._tables[Table.CONTEXTS]) as cursor:
            found = cursor.set_range(start) if start else cursor.first()
            while found and len(names) < limit:
                name = _context_name(bytes(cursor.key()))
                if not name.startswith(wanted):
                    break
                names.add(name)
                found = cursor.set_range(name + b"\1")
        newest = [context_id.encode() for context_id in self._tail.context_ids()]
        names |= {name for name in newest if name > start_after and name.startswith(wanted)}
        return [_decoded(name) for name in sorted(names)[:limit]]

    # --- Snapshots ---------------------------------------------------------------------------------------------------

    def save_snapshot(self, name: str, snapshot: Snapshot) -> None:
        if not self._writable:
            return
        try:
            with self._index.begin(write=True) as txn:
                value = seq_key(snapshot.seq) + _state_digest(snapshot.seq, snapshot.state) + snapshot.state
                txn.put(_SNAPSHOT + name.encode(), value, db=self._tables[Table.STATE])
        except lmdb.Error as exc:
            # A start folds a little longer: nothing depends on a snapshot.
            log.warning("the snapshot of %s at %d was not kept: %s", name, snapshot.seq, exc)

    @_damage_named
    def load_snapshot(self, name: str) -> Snapshot | None:
        with self._index.begin() as txn:
            value = txn.get(_SNAPSHOT + name.encode(), db=self._tables[Table.STATE])
        if value is None:
            return None
        snapshot = _parse_snapshot(bytes(value))
        if snapshot is None:
            log.warning("the snapshot of %s in %s is damaged: all of the log is folded instead", name, self._path)
        elif snapshot.seq > self._head:
            return None
        return snapshot

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self.settle()
        except (StorageFull, StorageReadOnly, StorageFailed) as exc:
            log.warning("the newest units of %s stay in its segment: %s", self._path, exc)
        is_clean = self._close_index()
        self._close_segment(is_empty=is_clean)
        self._env.close()

    def _close_index(self) -> bool:
        """Whether it could be marked clean, which may only be on the disk when all before it is."""
        clean = self._writable and self._failed is None and not self._tail and not self._index_is_damaged
        try:
            if clean:
                self._index.sync(True)
        except lmdb.Error as exc:
            log.warning("the index of %s is not marked clean: %s", self._path, exc)
            clean = False
        self._index.close()
        if clean:
            mark_index(self._path / "index", clean=True)
        return clean

    # --- Opening the log ---------------------------------------------------------------------------------------------

    def _open_log(self) -> lmdb.Environment:
        file = self._path / "log" / "data.mdb"
        size_bytes = file.stat().st_size if file.exists() else 0
        if self._identity.established and size_bytes == 0:
            raise DataDamaged(f"{file} is missing or empty, but this log was written before: restore it")
        try:
            if self._writable:
                if not self._identity.established and not file.exists():
                    self._make_log()
                _allocate_lock_file(self._path / "log")
            env = _open(self._path / "log", self._size_bytes_max, writable=self._writable, sync=True, tables=0)
        except (lmdb.Error, OSError) as exc:
            raise _unopened(exc)(f"{file} cannot be opened: {exc}") from exc
        try:
            _refuse_short(env, file)
            env.reader_check()
            if self._writable:
                # What is read may be in memory alone: who wrote it may have been killed before its flush.
                env.sync(True)
                sync_directory(self._path / "log")
            _refuse_wrong_pages(env, file)
            self._check_header(env)
        except (lmdb.Error, OSError) as exc:
            env.close()
            raise _unopened(exc)(f"{file} cannot be opened: {exc}") from exc
        except BaseException:
            env.close()
            raise
        return env

    def _make_log(self) -> None:
        """A log appears with its header, by one rename: no power cut leaves half of it, which nobody could open."""
        made = self._path / "log" / "data.new"
        made.unlink(missing_ok=True)
        # Without LMDB's lock file: who holds the data directory's lock is alone.
        env = lmdb.open(str(made), subdir=False, lock=False, map_size=self._size_bytes_max)
        try:
            with env.begin(write=True) as txn:
                txn.put(_HEADER_KEY, msgspec.msgpack.encode(header_of(self._identity)), append=True)
        finally:
            env.close()
        made.rename(made.with_name("data.mdb"))

    def _check_header(self, env: lmdb.Environment) -> None:
        with env.begin() as txn:
            header = txn.get(_HEADER_KEY)
        if header is not None:
            _refuse_foreign(bytes(header), header_of(self._identity), self._path)
        else:
            raise DataDamaged(f"{self._path / 'log'} has lost its header: restore it from a backup")
        if self._writable:
            self._keep_segment()
            if not (self._identity.established and self._identity.has_segment):
                self._identity = establish_tenant(self._path, self._identity)

    @property
    def _segment_file(self) -> Path:
        return self._path / "log" / SEGMENT

    def _keep_segment(self) -> None:
        """Make the segment where it holds nothing: of a new log, of one of an older version, of one that was closed.

        Anywhere else its absence is damage: what was acknowledged last lay there.
        """
        file = self._segment_file
        is_whole = is_segment(file)
        if is_whole:
            return
        if needs_segment(self._path, self._identity):
            raise DataDamaged(
                f"{file} is {'damaged' if file.exists() else 'missing'}, and the log was not closed: the units "
                f"that were recorded last may have been in it. Restore it, or let `engram repair` end the log there"
            )
        if self._identity.established and self._identity.has_segment:
            log.warning("%s is made again: it held nothing, for the log was closed", file)
        make_segment(file)

    def _recovered(self, chain: bytes) -> Tail:
        """The records that only the segment holds. Raises SegmentDamaged, RecordError's kin as LogDamaged."""
        tail = Tail()
        content = content_of(self._segment_file) if self._identity.has_segment else None
        if content is None:
            if needs_segment(self._path, self._identity):
                raise SegmentDamaged(f"{self._segment_file} {MISSING}")
            return tail
        if segment_in_use(self._path / "index") not in (None, name_of(content)):
            raise SegmentDamaged(f"{self._segment_file} {NOT_THE_ONE}")
        for seq, raw in records_after(content, self._stored):
            try:
                record = records.parse(raw, seq)
            except RecordError as exc:
                raise LogDamaged(f"record {seq} {exc}", seq=seq) from exc
            if not records.chain_follows(record, chain):
                raise SegmentDamaged(f"holds a unit {seq} that does not follow the log's unit {seq - 1}")
            tail.extend([record], len(record.raw))
            chain = record.chain
        if self._writable and not tail and index_was_closed(self._path / "index"):
            # Only what is seen to hold nothing: the mark may be an older copy.
            renew_segment(self._segment_file)
        return tail

    def _take_over_what_is_left(self) -> None:
        """What a process that was killed left in the segment; where the disk has no room, it stays there."""
        try:
            self.settle()
        except (StorageFull, StorageReadOnly) as exc:
            log.warning("the newest units of %s stay in its segment: %s", self._path, exc)
            self._must_settle = True

    def _close_segment(self, *, is_empty: bool = False) -> None:
        if self._segment is not None:
            self._segment.close(is_empty=is_empty)
            self._segment = None

    def _find_head(self) -> tuple[int, bytes]:
        with self._env.begin() as txn, txn.cursor() as cursor:
            cursor.last()
            head = key_seq(bytes(cursor.key()))
            raw = bytes(cursor.value())
            count = int(txn.stat()["entries"])
        if count != head + 1:
            raise DataDamaged(f"{self._path / 'log'} holds {count - 1} records up to seq {head}: it has gaps")
        if head == 0:
            return 0, GENESIS
        try:
            return head, records.parse(raw, head).chain
        except RecordError as exc:
            raise DataDamaged(f"{self._path / 'log'}: the newest record, {head}, {exc}") from exc

    def _reopen_writable(self) -> None:
        """The file system takes writes again: open both environments anew, or else as they were."""
        self._close_segment()
        self._index.close()
        self._env.close()
        self._writable = True
        try:
            self._open()
        except DataDirectoryError as exc:
            self._writable = False
            self._open_again_to_read()
            raise StorageReadOnly(f"{self._path} cannot be opened to write: {exc}") from exc

    def _open_again_to_read(self) -> None:
        try:
            self._open()
        except DataDirectoryError as exc:
            self._failed = StorageFailed(f"{self._path} cannot be read any more: {exc}")
            raise self._failed from exc

    # --- The index ---------------------------------------------------------------------------------------------------

    def _open_index(self) -> tuple[lmdb.Environment, dict[Table, lmdb._Database]]:
        path = self._path / "index"
        if not self._writable:
            return self._open_index_to_read(path)
        try:
            if not index_is_trusted(path):
                if (path / "data.mdb").exists():
                    log.warning("%s is folded again: nothing says that it is whole", path)
                _empty(path)
            elif not index_is_as_closed(path):
                log.warning("%s is not as it was closed: it is folded again", path)
                _empty(path)
            try:
                return self._open_index_to_write(path)
            except (_IndexUnusableError, lmdb.Error) as exc:
                log.warning("%s is folded again: %s", path, exc)
                _empty(path)
                return self._open_index_to_write(path)
        except OSError as exc:
            raise DataDirectoryError(f"{path} cannot be made: {exc}") from exc

    def _open_index_to_write(self, path: Path) -> tuple[lmdb.Environment, dict[Table, lmdb._Database]]:
        # Before anything is written: whoever finds the index from now on must not take it for a clean one.
        assert self._segment is not None, "it is writable"
        mark_index(path, clean=False, segment=self._segment.name)
        _allocate_lock_file(path)
        env = _open(path, self._size_bytes_max, writable=True, sync=False, tables=len(Table))
        try:
            if (short := _short_by(env, path / "data.mdb")) > 0:
                raise _IndexUnusableError(f"it is {short} bytes short")
            if (wrong := _wrong_page(env, path / "data.mdb")) is not None:
                raise _IndexUnusableError(wrong)
            tables = {table: env.open_db(table.value.encode()) for table in Table}
            self._indexed = self._index_cursor(env, tables)
        except BaseException:
            env.close()
            raise
        return env, tables

    def _open_index_to_read(self, path: Path) -> tuple[lmdb.Environment, dict[Table, lmdb._Database]]:
        if not index_is_trusted(path) or not index_is_as_closed(path):
            raise DataDirectoryError(f"{path} is not whole and cannot be folded on a read-only file system")
        env = _open(path, self._size_bytes_max, writable=False, sync=False, tables=len(Table))
        try:
            _refuse_short(env, path / "data.mdb")
            tables = {table: env.open_db(table.value.encode(), create=False) for table in Table}
            self._indexed = self._index_cursor(env, tables)
            if self._indexed != self._stored:
                raise DataDirectoryError(f"{path} is behind its log and cannot be folded on a read-only file system")
        except BaseException:
            env.close()
            raise
        return env, tables

    def _index_cursor(self, env: lmdb.Environment, tables: dict[Table, lmdb._Database]) -> int:
        """Up to where the index goes. Raises when it is not an index of this log."""
        with env.begin() as txn:
            value = txn.get(_CURSOR, db=tables[Table.STATE])
        if value is None:
            return 0
        seq, chain = _parse_cursor(bytes(value))
        if seq > self._stored:
            raise DataDamaged(
                f"{self._path / 'index'} knows {seq} records, {self._path / 'log'} holds {self._stored}: the log is an "
                f"older copy or lost its end. Restore the newest log."
            )
        if self.record(seq).chain != chain:
            raise _IndexUnusableError(f"record {seq} is not the one it was made from")
        return seq

    def _fold_index(self) -> None:
        """Bring the index up to what LMDB holds: after a start, and after a commit of it that found no room."""
        while self._indexed < self._stored:
            last = min(self._indexed + _FOLD_UNITS, self._stored)
            if not self._index_records(self._records(self._indexed + 1, last)):
                raise self._index_refused()

    def _index_refused(self) -> EngramError:
        if self._index_is_damaged:
            return LogDamaged(f"{self._path / 'index'} is damaged: the next start folds it again")
        return StorageFull(f"no room for the index in {self._path}: lookups wait for it")

    def _records(self, first: int, last: int) -> list[Record]:
        found: list[Record] = []
        try:
            with self._env.begin() as txn, txn.cursor() as cursor:
                for seq, raw in _raws(cursor, first, last):
                    found.append(records.parse(raw, seq))
        except (RecordError, lmdb.Error) as exc:
            raise self._damaged(first + len(found), exc) from exc
        return found

    def _index_records(self, records: Sequence[Record]) -> bool:
        """Whether the index took them. If not, they are durable all the same, and folded when there is room."""
        newest = records[-1]
        try:
            with self._index.begin(write=True) as txn:
                for table, entries in puts(records).items():
                    with txn.cursor(self._tables[table]) as cursor:
                        cursor.putmulti(entries)
                txn.put(_CURSOR, seq_key(newest.unit.seq) + newest.chain, db=self._tables[Table.STATE])
        except lmdb.Error as exc:
            log.error("the index of %s is behind its log: %s", self._path, exc)
            if isinstance(exc, _NOT_LMDB):
                self._index_is_damaged = True
                forget_index(self._path / "index")
            return False
        self._indexed = newest.unit.seq
        return True


class LogReader:
    """The log, read-only, beside the process that writes it: what `verify` walks.

    Every transaction is short, so a running bus is not held up, and what is asked for is compared with what is found:
    records are only ever added. Raises DataDirectoryError when the environment cannot be opened, RecordError for what
    LMDB cannot read.
    """

    def __init__(self, path: Path) -> None:
        self._env, _ = _open_beside(path, ())
        self._newest: dict[int, bytes] = {}
        self.segment_damage = ""
        """What is wrong with the segment, where something is: what it holds behind that is not known."""
        for _ in range(_SEGMENT_LOOKS):
            self.segment_damage = self._read_segment(path)
            if not self.segment_damage:
                break  # What is only being written, while it is read, is whole at another look.

    def _read_segment(self, path: Path) -> str:
        """Keep what LMDB had not taken over yet; what is wrong with the segment, if anything."""
        self._newest = {}
        index = path.parent / "index"
        in_use = segment_in_use(index)
        try:
            content = content_of(path / SEGMENT)
        except OSError as exc:
            return f"{SEGMENT} cannot be read: {exc}"
        if content is None:
            return f"{SEGMENT} {MISSING}" if in_use is not None and in_use == segment_in_use(index) else ""
        try:
            if in_use not in (None, name_of(content)) and in_use == segment_in_use(index):
                return f"{SEGMENT} {NOT_THE_ONE}"
            with _reading(self._env) as txn, txn.cursor() as cursor:
                stored = _last_seq(cursor)
            for seq, raw in records_after(content, stored):
                self._newest[seq] = raw
        except SegmentDamaged as exc:
            return "" if index_was_closed(index) else f"{SEGMENT} {exc}"  # Of a closed log it holds nothing.
        except RecordError:
            pass  # LMDB's own: told by who reads it.
        return ""

    def close(self) -> None:
        self._env.close()

    def header(self) -> LogHeader | None:
        """What the log says of itself."""
        with _reading(self._env) as txn:
            header = txn.get(_HEADER_KEY)
        return None if header is None else _parse_header(bytes(header))

    def head(self) -> int:
        """The seq of the last record, 0 where there is none."""
        with _reading(self._env) as txn, txn.cursor() as cursor:
            stored = _last_seq(cursor)
        return max(stored, max(self._newest, default=0))

    def raws(self, last: int, *, after: int = 0, page_units: int = _WALK_UNITS) -> Iterator[tuple[int, bytes]]:
        """The raw records with after < seq <= last, as far as they follow one another."""
        seq = after
        while seq < last:
            page: list[tuple[int, bytes]] = []
            held_bytes = 0
            with _reading(self._env) as txn, txn.cursor() as cursor:
                try:
                    for found in _raws(cursor, seq + 1, min(seq + page_units, last), self._newest):
                        page.append(found)
                        held_bytes += len(found[1])
                        if held_bytes >= _WALK_BYTES:
                            break
                except (RecordError, lmdb.Error):
                    if not page:
                        raise
            yield from page
            seq = page[-1][0]

    def page(self, after: int, *, units_max: int, bytes_max: int) -> list[tuple[int, bytes]]:
        """The raw records after a seq, up to `units_max` and about `bytes_max` (at least one)."""
        page: list[tuple[int, bytes]] = []
        held_bytes = 0
        with _reading(self._env) as txn, txn.cursor() as cursor:
            last = key_seq(bytes(cursor.key())) if cursor.last() and len(cursor.key()) == SEQ_BYTES else 0
            last = max(last, max(self._newest, default=0))
            for found in _raws(cursor, after + 1, min(after + units_max, last), self._newest):
                page.append(found)
                held_bytes += len(found[1])
                if held_bytes >= bytes_max:
                    break
        return page

    def raw(self, seq: int) -> bytes | None:
        """The raw record of one seq."""
        with _reading(self._env) as txn:
            raw = txn.get(seq_key(seq))
        return self._newest.get(seq) if raw is None else bytes(raw)

    def wrong_page(self) -> str | None:
        """What is wrong with the first page that is not what it should be; an append may trip over it."""
        return _wrong_page(self._env, Path(self._env.path()) / "data.mdb", everywhere=True)

    def wrong_count(self) -> str | None:
        """Whether as many records are counted as there are, which a start looks at."""
        with _reading(self._env) as txn, txn.cursor() as cursor:
            count = int(txn.stat()["entries"]) - 1
            head = key_seq(bytes(cursor.key())) if cursor.last() else -1
        return None if count in (head, -1) else f"it holds {count} records up to seq {head}: it has gaps"

    def forget_dead_readers(self) -> None:
        """Give back the place of a reader that died: the pages it saw cannot be used again before."""
        self._env.reader_check()


class IndexReader:
    """The index's environment, likewise. A table that is not there holds nothing."""

    def __init__(self, path: Path) -> None:
        self._env, self._tables = _open_beside(path, tuple(Table))

    def close(self) -> None:
        self._env.close()

    def wrong_page(self) -> str | None:
        """What is wrong with the first page that is not what it should be: any may be written to."""
        return _wrong_page(self._env, Path(self._env.path()) / "data.mdb", everywhere=True)

    def cursor(self) -> tuple[int, bytes]:
        """Up to where the index goes, and the chain digest there."""
        with _reading(self._env) as txn:
            return self._cursor(txn)

    def _cursor(self, txn: lmdb.Transaction) -> tuple[int, bytes]:
        state = self._tables.get(Table.STATE)
        value = None if state is None else txn.get(_CURSOR, db=state)
        return (0, GENESIS) if value is None else _parse_cursor(bytes(value))

    def values(self, entries: Sequence[tuple[Table, bytes]]) -> list[bytes | None]:
        """What stands under these keys."""
        with _reading(self._env) as txn:
            found = [txn.get(key, db=self._tables[table]) if table in self._tables else None for table, key in entries]
        return [None if value is None else bytes(value) for value in found]

    def entries(self, table: Table) -> Iterator[tuple[int, bytes, bytes]]:
        """All (cursor of the index when it was read, key, value) of a table, in byte order of the keys."""
        after = b""
        while table in self._tables:
            page: list[tuple[int, bytes, bytes]] = []
            with _reading(self._env) as txn, txn.cursor(self._tables[table]) as cursor:
                upto, _ = self._cursor(txn)
                found = cursor.set_range(after + b"\0") if after else cursor.first()
                while found and len(page) < _WALK_UNITS:
                    page.append((upto, bytes(cursor.key()), bytes(cursor.value())))
                    found = cursor.next()
            if not page:
                return
            if page[0][1] <= after or any(one[1] >= other[1] for one, other in pairwise(page)):
                raise RecordError(f"has keys of {table} that are out of order")
            yield from page
            after = page[-1][1]

    def snapshots(self) -> Iterator[tuple[str, Snapshot | None]]:
        """The kept states by name, None in the place of a damaged one."""
        if Table.STATE not in self._tables:
            return
        with _reading(self._env) as txn, txn.cursor(self._tables[Table.STATE]) as cursor:
            found = cursor.set_range(_SNAPSHOT)
            kept: list[tuple[bytes, bytes]] = []
            while found and bytes(cursor.key()).startswith(_SNAPSHOT):
                kept.append((bytes(cursor.key()), bytes(cursor.value())))
                found = cursor.next()
        for key, value in kept:
            yield key[len(_SNAPSHOT) :].decode(errors="replace"), _parse_snapshot(value)


@contextmanager
def _reading(env: lmdb.Environment) -> Iterator[lmdb.Transaction]:
    try:
        with env.begin() as txn:
            yield txn
    except lmdb.Error as exc:
        raise RecordError(f"cannot be read: {exc}") from exc


def _open_beside(path: Path, tables: Sequence[Table]) -> tuple[lmdb.Environment, dict[Table, lmdb._Database]]:
    """An environment read-only, of the size its writer gave it. Where no lock file is, nobody writes; none is made."""
    try:
        env = lmdb.open(
            str(path),
            map_size=0,
            max_dbs=len(tables),
            max_readers=_READERS_MAX,
            readonly=True,
            create=False,
            lock=(path / "lock.mdb").exists(),
            readahead=False,
        )
    except lmdb.Error as exc:
        raise DataDirectoryError(f"{path} cannot be opened: {exc}") from exc
    try:
        _refuse_short(env, path / "data.mdb")
        return env, {table: db for table in tables if (db := _open_table(env, table)) is not None}
    except lmdb.Error as exc:
        env.close()
        raise DataDirectoryError(f"{path} cannot be opened: {exc}") from exc
    except BaseException:
        env.close()
        raise


def _open(path: Path, size_bytes: int, *, writable: bool, sync: bool, tables: int) -> lmdb.Environment:
    return lmdb.open(
        str(path),
        map_size=size_bytes,
        max_dbs=tables,
        max_readers=_READERS_MAX,
        readonly=not writable,
        create=writable,
        lock=writable or not is_read_only(path),
        sync=sync,
        metasync=True,
        writemap=False,
        map_async=False,
        readahead=False,
    )


def _unopened(exc: lmdb.Error | OSError) -> type[DataDirectoryError]:
    """Whether it is the file that is at fault, or what is around it."""
    return DataDamaged if isinstance(exc, _NOT_LMDB) else DataDirectoryError


def _refuse_short(env: lmdb.Environment, file: Path) -> None:
    """A map that is longer than its file ends the process (SIGBUS) when its lost end is read: look first."""
    if (short := _short_by(env, file)) > 0:
        raise DataDamaged(f"{file} is {short} bytes shorter than its pages: it was cut")


def _refuse_wrong_pages(env: lmdb.Environment, file: Path) -> None:
    """An append that comes across such a page may end the process: look first."""
    if (wrong := _wrong_page(env, file)) is not None:
        raise DataDamaged(f"{file} is damaged: {wrong}")


def _wrong_page(env: lmdb.Environment, file: Path, *, everywhere: bool = False) -> str | None:
    with env.begin() as txn:
        return wrong_page(file, int(txn.id()), everywhere=everywhere)


def _short_by(env: lmdb.Environment, file: Path) -> int:
    pages_bytes = (int(env.info()["last_pgno"]) + 1) * int(env.stat()["psize"])
    return pages_bytes - file.stat().st_size


def _open_table(env: lmdb.Environment, table: Table) -> lmdb._Database | None:
    """A table of an environment that is only read; None where it does not exist."""
    try:
        return env.open_db(table.value.encode(), create=False)
    except lmdb.NotFoundError:
        return None


class _IndexUnusableError(Exception):
    """The index is not one that this log can be looked up in: it is made again."""


class _MisplacedError(RecordError):
    """The index leads to a record under a name that it does not have."""


def _empty(path: Path) -> None:
    """Remove an index: every entry of it is derived from the log, and the log itself is never removed."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()


def _allocate_lock_file(path: Path) -> None:
    """Make the lock file with room for all readers there may be: LMDB writes it through a map, and where the disk is
    full by then, that ends the process (SIGBUS).

    Only before LMDB opens it: whoever closes a file gives up all its process's locks on it, LMDB's too.
    """
    with (path / "lock.mdb").open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, _LOCK_FILE_BYTES)


def _refuse_foreign(header: bytes, expected: LogHeader, path: Path) -> None:
    try:
        found = _parse_header(header)
    except RecordError as exc:
        raise DataDamaged(f"{path / 'log'} has a damaged header: restore it from a backup") from exc
    if found != expected:
        raise DataDamaged(f"{path / 'log'} is another log than {path / 'identity'} says")


def _raws(
    cursor: lmdb.Cursor, first: int, last: int, newest: Mapping[int, bytes] = NOTHING
) -> Iterator[tuple[int, bytes]]:
    """The raw records `first` to `last`, of LMDB or else `newest`. Raises RecordError at the first that is missing."""
    for seq in range(first, last + 1):
        # Never `next`: at a page that is no leaf it ends the process (an assertion of LMDB), where this raises.
        if cursor.set_key(seq_key(seq)):
            yield seq, bytes(cursor.value())
        elif seq in newest:
            yield seq, newest[seq]
        else:
            raise RecordError("is missing")


def _last_seq(cursor: lmdb.Cursor) -> int:
    key = bytes(cursor.key()) if cursor.last() else _HEADER_KEY
    if len(key) != SEQ_BYTES:
        raise RecordError(f"ends with a key of {len(key)} bytes")
    return key_seq(key)


def _extend(entries: list[Entry], newest: Sequence[Record], bytes_max: int) -> bool:
    """Add these while they fit, at least one where there is none yet. Whether one did not fit."""
    for record in newest:
        if entries and len(record.body) > bytes_max:
            return True
        bytes_max -= len(record.body)
        entries.append(Entry(record.unit.seq, record.body, record.unit))
    return False


def _context_versions(cursor: lmdb.Cursor, context_id: str, after: int, before: int) -> range:
    """The versions of a context with after < seq < before."""
    last = _last_version(cursor, context_id)
    first_version = 1 if after <= 0 else _version_from(cursor, context_id, after + 1, last)
    end_version = _version_from(cursor, context_id, before, last)
    return range(first_version, end_version)


def _context_places(cursor: lmdb.Cursor, context_id: str, versions: range, units_max: int) -> Iterator[tuple[int, int]]:
    """The (version, seq) of these versions of a context, in their order."""
    found = bool(versions) and cursor.set_key(context_key(context_id, versions[0]))
    for version in versions[:units_max]:
        if not found or bytes(cursor.key()) != context_key(context_id, version):
            raise LogDamaged(f"the index of context {context_id!r} has a gap")
        yield version, key_seq(bytes(cursor.value()))
        found = cursor.next() if versions.step > 0 else cursor.prev()


def _places_beside(cursor: lmdb.Cursor, context_id: str, versions: range) -> Iterator[tuple[int, int]]:
    """The (version, seq) before and behind these versions, where there are any."""
    for version in (versions.start - 1, versions.stop):
        if version < _VERSIONS_END and cursor.set_key(context_key(context_id, version)):
            yield version, key_seq(bytes(cursor.value()))


def _last_version(cursor: lmdb.Cursor, context_id: str) -> int:
    """The newest version of a context, 0 where there is none."""
    end = context_prefix(context_id)[:-1] + b"\1"
    found = cursor.prev() if cursor.set_range(end) else cursor.last()
    if not found or not bytes(cursor.key()).startswith(context_prefix(context_id)):
        return 0
    return key_seq(bytes(cursor.key()))


def _version_from(cursor: lmdb.Cursor, context_id: str, seq: int, last: int) -> int:
    """The first version whose seq is at least `seq`; versions rise with seqs, so halving finds it."""
    low, high = 1, last + 1
    if last and cursor.set_key(context_key(context_id, last)) and key_seq(bytes(cursor.value())) < seq:
        return last + 1
    while low < high:
        middle = (low + high) // 2
        if not cursor.set_key(context_key(context_id, middle)):
            raise LogDamaged(f"the index of context {context_id!r} lost version {middle}")
        if key_seq(bytes(cursor.value())) < seq:
            low = middle + 1
        else:
            high = middle
    return low


def _context_name(key: bytes) -> bytes:
    """Of a `context_key`; what lies behind all of its keys then lies behind this one, too."""
    if key[-SEQ_BYTES - 1 : -SEQ_BYTES] != b"\0":
        raise LogDamaged(f"the index of contexts has the key {key!r}, which names none")
    return key[: -SEQ_BYTES - 1]


def _decoded(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as exc:
        raise LogDamaged(f"the index names a context {name!r}, which none can be: {exc}") from exc


def _parse_header(value: bytes) -> LogHeader:
    try:
        return msgspec.msgpack.decode(value, type=LogHeader)
    except UNREADABLE as exc:
        raise RecordError(f"is not a header: {exc}") from exc


def _parse_cursor(value: bytes) -> tuple[int, bytes]:
    return key_seq(value[:SEQ_BYTES]), value[SEQ_BYTES:]


def _parse_snapshot(value: bytes) -> Snapshot | None:
    """A kept state, None when it is not what was kept: LMDB has no checksums of its own."""
    digest_at, state_at = SEQ_BYTES, SEQ_BYTES + _STATE_DIGEST_BYTES
    seq = key_seq(value[:digest_at])
    state = value[state_at:]
    return Snapshot(seq, state) if value[digest_at:state_at] == _state_digest(seq, state) else None


def _state_digest(seq: int, state: bytes) -> bytes:
    return blake2b(seq_key(seq) + state, digest_size=_STATE_DIGEST_BYTES).digest()


def _allocated_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def _free_bytes(path: Path) -> int:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize
