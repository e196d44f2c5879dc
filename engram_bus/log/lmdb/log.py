"""The log on disk: a segment that makes commits durable, an LMDB environment that takes them over, one to find them.

A commit is one flush of the segment (`segment.py`); its records are in memory as well (`Tail`), until LMDB takes over
many at a time, and syncs them. Two environments because it is the clearer idea and the faster one: the log's commit
dirties few pages and is flushed; the index's is left to the operating system and folded again after a power cut.
Never NOSYNC, WRITEMAP, NOMETASYNC or MAPASYNC on the log. A read transaction never outlives the call that opened it:
one open reader keeps every page from being reused.
"""

import errno
import logging
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Concatenate, NoReturn, ParamSpec, TypeVar

import lmdb
import msgspec

from engram_bus.codec import Entry
from engram_bus.errors import (
    DataDamaged,
    DataDirectoryError,
    EngramError,
    LogDamaged,
    StorageFailed,
    StorageFull,
    StorageReadOnly,
)
from engram_bus.limits import LOG_SIZE_BYTES_MAX, MIB, TAIL_BYTES_MAX, TAIL_UNITS_MAX
from engram_bus.log import record as records
from engram_bus.log.contract import Epoch, Sizes, Snapshot
from engram_bus.log.directory import (
    LogHeader,
    establish_tenant,
    header_of,
    index_was_closed,
    is_read_only,
    load_tenant,
    needs_segment,
    segment_in_use,
    sync_directory,
)
from engram_bus.log.index import Table, idempotency_key, key_seq, may_be_name, seq_key
from engram_bus.log.lmdb.cells import HEADER_KEY, parse_header, parse_snapshot
from engram_bus.log.lmdb.environments import (
    NOT_LMDB,
    allocate_lock_file,
    allocated_bytes,
    opened,
    refuse_short,
    refuse_wrong_pages,
    unopened,
)
from engram_bus.log.lmdb.index import LmdbIndex, index_to_read, index_to_write
from engram_bus.log.lmdb.places import decoded, raws
from engram_bus.log.record import GENESIS, Record, RecordError
from engram_bus.log.room import room
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

_FOLD_UNITS = 2_000
_SHORT_WRITE_BYTES = 1 * MIB
"""Where less is free, a write may end at the end of the disk."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
L = TypeVar("L", bound="LmdbLog")
P = ParamSpec("P")
T = TypeVar("T")


def damage_named(read: "Callable[Concatenate[L, P], T]") -> "Callable[Concatenate[L, P], T]":
    """What LMDB cannot read is told in the contract's words."""

    @wraps(read)
    def reading(self: L, /, *args: P.args, **kwargs: P.kwargs) -> T:
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
        self._env = self._open_log()
        try:
            self._stored, chain = self._find_head()
            self._tail = self._recovered(chain)
            self._head = self._stored + len(self._tail)
            self._chain = self._tail.records[-1].chain if self._tail else chain
            if self._writable:
                self._segment = Segment(self._segment_file)
            self._index = self._open_index()
            try:
                self._fold_index()
                if self._writable:
                    self._take_over_what_is_left()
            except BaseException:
                self._index.close(clean=False)
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
            allocated_bytes(self._path / "log" / "data.mdb"),
            allocated_bytes(self._path / "index" / "data.mdb"),
            room(self._path).free_bytes,
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
            self._take_over()
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
        return min(self._stored, self._index.seq)

    def settle(self) -> None:
        if self.settled < self._head:
            self._require_not_refused()
            self._take_over()
            self._fold_index()

    def _take_over(self) -> None:
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
        if self._index.seq == records[0].unit.seq - 1:
            self._index.take(records)

    def probe(self) -> None:
        if not self._writable and not is_read_only(self._path):
            self._reopen_writable()
        self._require_writable(0)
        self._take_over()
        try:
            with self._env.begin(write=True) as txn:
                header = txn.get(HEADER_KEY)
                assert header is not None, "the header is written when the log is made"
                txn.put(HEADER_KEY, bytes(header))
        except lmdb.Error as exc:
            self._refuse(exc, exc.code)
        self._fold_index()
        if not self._index.probe():
            raise self._index_refused()

    def _require_not_refused(self) -> None:
        if self._failed is not None:
            raise self._failed.with_traceback(None)
        if not self._writable:
            raise StorageReadOnly(f"{self._path} is on a read-only file system")

    def _require_writable(self, batch_bytes: int) -> None:
        self._require_not_refused()
        free_bytes, reserve_bytes = room(self._path)
        # Twice: the pages of the log and, later, those of the index.
        if free_bytes < reserve_bytes + 2 * batch_bytes:
            raise StorageFull(
                f"{free_bytes} bytes are free on the disk of {self._path}; {reserve_bytes} are kept in reserve "
                f"and this commit may take {2 * batch_bytes}",
                limit=reserve_bytes,
                free_bytes=free_bytes,
            )
        if len(self._tail) >= TAIL_UNITS_MAX or self._tail.held_bytes >= TAIL_BYTES_MAX:
            self._take_over()
        self._fold_index()

    def _refuse(self, exc: Exception, code: int | None) -> NoReturn:
        """Say what kind of failure this is. After anything but a full or read-only disk the page cache may lie."""
        # A write that came out short is EIO to LMDB, as to the segment; the reason is what the disk has left.
        is_short = code == errno.EIO and room(self._path).free_bytes < _SHORT_WRITE_BYTES
        if code in _FULL or isinstance(exc, lmdb.MapFullError) or is_short:
            raise StorageFull(f"no room for the log in {self._path}: {exc}") from exc
        if code in _READ_ONLY:
            raise StorageReadOnly(f"{self._path} refuses writes: {exc}") from exc
        if isinstance(exc, NOT_LMDB):  # What says which of its pages are free is read by writes alone.
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
                    for seq, raw in raws(cursor, after + 1, min(last, self._stored)):
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

    @damage_named
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
        places, beside = self._index.places(
            context_id,
            after=after,
            end=min(end, self._stored + 1),
            reverse=reverse,
            units_max=units_max - len(entries),
        )
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

    @damage_named
    def seq_of_id(self, unit_id: str) -> int | None:
        if not may_be_name(unit_id):
            return None
        if (newest := self._tail.seq_of_id(unit_id)) is not None:
            return newest
        seq = self._lookup(Table.IDS, unit_id.encode())
        if seq is not None and self.record(seq).unit.id != unit_id:
            raise LogDamaged(f"the index leads from unit {unit_id} to another at {seq}", seq=seq)
        return seq

    @damage_named
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
        return self._index.lookup(table, key)

    @damage_named
    def seqs_relating_to(self, target_id: str, *, units_max: int) -> list[int]:
        if not may_be_name(target_id):
            return []
        self._fold_index()
        seqs = self._index.relating_to(target_id, last=self._stored, units_max=units_max)
        seqs += self._tail.relating_to(target_id)[: units_max - len(seqs)]
        return seqs

    @damage_named
    def context_ids(self, after: str, *, prefix: str, limit: int) -> list[str]:
        if prefix and not may_be_name(prefix):
            return []
        self._fold_index()
        wanted = prefix.encode()
        start_after = after.encode(errors="surrogatepass")
        # One past every key of `after`: its zero byte becomes a one, which no name holds.
        start = max(wanted, start_after + b"\1") if after else wanted
        names = self._index.context_names(start, prefix=wanted, limit=limit)
        newest = [context_id.encode() for context_id in self._tail.context_ids()]
        names |= {name for name in newest if name > start_after and name.startswith(wanted)}
        return [decoded(name) for name in sorted(names)[:limit]]

    # --- Snapshots ---------------------------------------------------------------------------------------------------

    def save_snapshot(self, name: str, snapshot: Snapshot) -> None:
        if not self._writable:
            return
        try:
            self._index.keep(name, snapshot)
        except lmdb.Error as exc:
            # A start folds a little longer: nothing depends on a snapshot.
            log.warning("the snapshot of %s at %d was not kept: %s", name, snapshot.seq, exc)

    @damage_named
    def load_snapshot(self, name: str) -> Snapshot | None:
        value = self._index.kept(name)
        if value is None:
            return None
        snapshot = parse_snapshot(value)
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
            self._take_over()
        except (StorageFull, StorageReadOnly, StorageFailed) as exc:
            log.warning("the newest units of %s stay in its segment: %s", self._path, exc)
        is_clean = self._index.close(clean=self._writable and self._failed is None and not self._tail)
        self._close_segment(is_empty=is_clean)
        self._env.close()

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
                allocate_lock_file(self._path / "log")
            env = opened(self._path / "log", self._size_bytes_max, writable=self._writable, sync=True, tables=0)
        except (lmdb.Error, OSError) as exc:
            raise unopened(exc)(f"{file} cannot be opened: {exc}") from exc
        try:
            refuse_short(env, file)
            env.reader_check()
            if self._writable:
                # What is read may be in memory alone: who wrote it may have been killed before its flush.
                env.sync(True)
                sync_directory(self._path / "log")
            refuse_wrong_pages(env, file)
            self._check_header(env)
        except (lmdb.Error, OSError) as exc:
            env.close()
            raise unopened(exc)(f"{file} cannot be opened: {exc}") from exc
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
                txn.put(HEADER_KEY, msgspec.msgpack.encode(header_of(self._identity)), append=True)
        finally:
            env.close()
        made.rename(made.with_name("data.mdb"))

    def _check_header(self, env: lmdb.Environment) -> None:
        with env.begin() as txn:
            header = txn.get(HEADER_KEY)
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
            self._take_over()
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
        self._index.close(clean=False)
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

    def _open_index(self) -> LmdbIndex:
        path = self._path / "index"
        if not self._writable:
            return index_to_read(
                path, size_bytes_max=self._size_bytes_max, stored=self._stored, has_chain=self._has_chain
            )
        assert self._segment is not None, "it is writable"
        return index_to_write(
            path, size_bytes_max=self._size_bytes_max, segment=self._segment.name, has_chain=self._has_chain
        )

    def _has_chain(self, seq: int, chain: bytes) -> bool:
        if seq > self._stored:
            raise DataDamaged(
                f"{self._path / 'index'} knows {seq} records, {self._path / 'log'} holds {self._stored}: the log is an "
                f"older copy or lost its end. Restore the newest log."
            )
        return self.record(seq).chain == chain

    def _fold_index(self) -> None:
        """Bring the index up to what LMDB holds: after a start, and after a commit of it that found no room."""
        while self._index.seq < self._stored:
            last = min(self._index.seq + _FOLD_UNITS, self._stored)
            if not self._index.take(self._records(self._index.seq + 1, last)):
                raise self._index_refused()

    def _index_refused(self) -> EngramError:
        if self._index.is_damaged:
            return LogDamaged(f"{self._path / 'index'} is damaged: the next start folds it again")
        return StorageFull(f"no room for the index in {self._path}: lookups wait for it")

    def _records(self, first: int, last: int) -> list[Record]:
        found: list[Record] = []
        try:
            with self._env.begin() as txn, txn.cursor() as cursor:
                for seq, raw in raws(cursor, first, last):
                    found.append(records.parse(raw, seq))
        except (RecordError, lmdb.Error) as exc:
            raise self._damaged(first + len(found), exc) from exc
        return found


class _MisplacedError(RecordError):
    """The index leads to a record under a name that it does not have."""


def _refuse_foreign(header: bytes, expected: LogHeader, path: Path) -> None:
    try:
        found = parse_header(header)
    except RecordError as exc:
        raise DataDamaged(f"{path / 'log'} has a damaged header: restore it from a backup") from exc
    if found != expected:
        raise DataDamaged(f"{path / 'log'} is another log than {path / 'identity'} says")


def _extend(entries: list[Entry], newest: Sequence[Record], bytes_max: int) -> bool:
    """Add these while they fit, at least one where there is none yet. Whether one did not fit."""
    for record in newest:
        if entries and len(record.body) > bytes_max:
            return True
        bytes_max -= len(record.body)
        entries.append(Entry(record.unit.seq, record.body, record.unit))
    return False
