"""The log on disk: one LMDB environment for the records, synced on every commit, and one for what finds them.

The only place that knows LMDB. Two environments because it is the clearer idea and the faster one: the log's commit
dirties few pages and is flushed; the index's is left to the operating system and folded again after a power cut.
Never NOSYNC, WRITEMAP, NOMETASYNC or MAPASYNC on the log. A read transaction never outlives the call that opened it:
one open reader keeps every page from being reused.
"""

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import lmdb
import msgspec

from engram_bus.codec import Entry
from engram_bus.errors import DataDirectoryError, LogDamaged, StorageFailed, StorageFull, StorageReadOnly
from engram_bus.limits import DISK_RESERVE_BYTES, DISK_RESERVE_DIVISOR, LOG_SIZE_BYTES_MAX
from engram_bus.log import record as records
from engram_bus.log.contract import Epoch, Sizes, Snapshot
from engram_bus.log.directory import TenantIdentity, establish_tenant, is_read_only, load_tenant
from engram_bus.log.index import (
    Table,
    context_key,
    context_prefix,
    idempotency_key,
    key_seq,
    puts,
    seq_key,
    target_prefix,
)
from engram_bus.log.record import GENESIS, Record, RecordError

log = logging.getLogger(__name__)

_HEADER_KEY = seq_key(0)
"""Before every seq: what this environment is (`TenantIdentity` as MessagePack)."""
_INDEX_FORMAT = b"1"
_CURSOR = b"cursor"
_BOOT = b"boot"
_CLEAN = b"clean"
_FORMAT = b"format"
_SNAPSHOT = b"snapshot:"
_FOLD_UNITS = 2_000
_READERS_MAX = 126

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class LmdbLog:
    """A log in `path` (a tenant's directory), for one writing process that holds the data directory's lock.

    `size_bytes_max` is the size of the sparse map; `fsync=False` is for benchmarks' floor only and says so in
    `durability`. Raises DataDirectoryError when what is found is damaged or of another log.
    """

    def __init__(
        self, path: Path, *, tenant: str = "default", size_bytes_max: int = LOG_SIZE_BYTES_MAX, writable: bool = True
    ) -> None:
        self._path = path
        self._size_bytes_max = size_bytes_max
        self._writable = writable
        self._failed: StorageFailed | None = None
        self._identity = load_tenant(path, tenant, writable=writable)
        self._env = self._open_log()
        try:
            self._head, self._chain = self._find_head()
            self._index, self._tables = self._open_index()
            self._fold_index()
        except BaseException:
            self._env.close()
            raise

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
        self._require_writable(sum(len(record.raw) for record in records))
        try:
            with self._env.begin(write=True) as txn:
                for record in records:
                    # Out of order, LMDB answers False instead of raising.
                    if not txn.put(seq_key(record.unit.seq), record.raw, append=True):
                        raise AssertionError(f"seq {record.unit.seq} is not after {self._head}")
        except lmdb.Error as exc:
            self._refuse(exc)
        self._head = records[-1].unit.seq
        self._chain = records[-1].chain
        if self._indexed == records[0].unit.seq - 1:
            self._index_records(records)

    def probe(self) -> None:
        if not self._writable and not is_read_only(self._path):
            self._reopen_writable()
        self._require_writable(0)
        try:
            with self._env.begin(write=True) as txn:
                header = txn.get(_HEADER_KEY)
                assert header is not None, "the header is written when the log is made"
                txn.put(_HEADER_KEY, bytes(header))
        except lmdb.Error as exc:
            self._refuse(exc)
        self._fold_index()

    def _require_writable(self, batch_bytes: int) -> None:
        if self._failed is not None:
            raise self._failed
        if not self._writable:
            raise StorageReadOnly(f"{self._path} is on a read-only file system")
        disk = os.statvfs(self._path)
        free_bytes = disk.f_bavail * disk.f_frsize
        reserve_bytes = min(DISK_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // DISK_RESERVE_DIVISOR)
        # Twice: the pages of the log and, later, those of the index.
        if free_bytes < reserve_bytes + 2 * batch_bytes:
            raise StorageFull(
                f"{free_bytes} bytes are free on the disk of {self._path}, {reserve_bytes} are kept in reserve",
                limit=reserve_bytes,
                free_bytes=free_bytes,
            )
        if self._indexed < self._head:
            self._fold_index()

    def _refuse(self, exc: lmdb.Error) -> NoReturn:
        """Say what kind of failure this is. After anything but a full or read-only disk the page cache may lie."""
        if exc.code in _FULL or isinstance(exc, lmdb.MapFullError):
            raise StorageFull(f"no room for the log in {self._path}: {exc}") from exc
        if exc.code in _READ_ONLY:
            raise StorageReadOnly(f"{self._path} refuses writes: {exc}") from exc
        self._failed = StorageFailed(f"the disk of {self._path} failed: {exc}; appends go on after a restart")
        raise self._failed from exc

    # --- Reading -----------------------------------------------------------------------------------------------------

    def read(self, after: int, *, units_max: int, bytes_max: int) -> list[Entry]:
        entries: list[Entry] = []
        last = min(after + units_max, self._head)
        if after >= last:
            return entries
        with self._env.begin() as txn, txn.cursor() as cursor:
            found = cursor.set_key(seq_key(after + 1))
            for seq in range(after + 1, last + 1):
                if not found or key_seq(cursor.key()) != seq:
                    _damaged_unless(entries, seq, "is missing")
                    break
                try:
                    body = records.body_of(cursor.value())
                except RecordError as exc:
                    _damaged_unless(entries, seq, str(exc))
                    break
                if entries and len(body) > bytes_max:
                    break
                bytes_max -= len(body)
                entries.append(Entry(seq, body))
                found = cursor.next()
        return entries

    def read_context(
        self, context_id: str, *, after: int, before: int | None, reverse: bool, units_max: int, bytes_max: int
    ) -> list[Entry]:
        self._fold_index()
        with self._index.begin() as txn, txn.cursor(self._tables[Table.CONTEXTS]) as cursor:
            seqs = list(_context_seqs(cursor, context_id, after, before or self._head + 1, reverse, units_max))
        return self._entries(seqs, bytes_max, context_id)

    def _entries(self, seqs: Sequence[int], bytes_max: int, context_id: str) -> list[Entry]:
        entries: list[Entry] = []
        with self._env.begin() as txn:
            for seq in seqs:
                try:
                    entry = self._entry(txn, seq)
                    if entry.unit.context_id != context_id:
                        raise LogDamaged(f"the index leads from {context_id!r} to unit {seq} of another", seq=seq)
                except LogDamaged:
                    if entries:
                        break
                    raise
                if entries and len(entry.body) > bytes_max:
                    break
                bytes_max -= len(entry.body)
                entries.append(entry)
        return entries

    def _entry(self, txn: lmdb.Transaction, seq: int) -> Entry:
        raw = txn.get(seq_key(seq)) if seq <= self._head else None
        try:
            if raw is None:
                raise RecordError("is missing")
            return Entry(seq, records.body_of(bytes(raw)))
        except RecordError as exc:
            raise LogDamaged(f"record {seq} {exc}", seq=seq) from exc

    def record(self, seq: int) -> Record:
        assert 1 <= seq <= self._head, f"seq {seq} of a log at {self._head}"
        with self._env.begin() as txn:
            raw = txn.get(seq_key(seq))
        try:
            if raw is None:
                raise RecordError("is missing")
            return records.parse(bytes(raw))
        except RecordError as exc:
            raise LogDamaged(f"record {seq} {exc}", seq=seq) from exc

    def seq_of_id(self, unit_id: str) -> int | None:
        seq = self._lookup(Table.IDS, unit_id.encode())
        if seq is not None and self.record(seq).unit.id != unit_id:
            raise LogDamaged(f"the index leads from unit {unit_id} to another at {seq}", seq=seq)
        return seq

    def seq_of_key(self, agent_id: str, key: str) -> int | None:
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

    def seqs_relating_to(self, target_id: str, *, units_max: int) -> list[int]:
        self._fold_index()
        prefix = target_prefix(target_id)
        if len(prefix) + 8 > 511:
            return []
        seqs: list[int] = []
        with self._index.begin() as txn, txn.cursor(self._tables[Table.TARGETS]) as cursor:
            found = cursor.set_range(prefix)
            while found and len(seqs) < units_max and bytes(cursor.key()).startswith(prefix):
                seqs.append(key_seq(bytes(cursor.key())))
                found = cursor.next()
        return seqs

    def context_ids(self, after: str, *, prefix: str, limit: int) -> list[str]:
        self._fold_index()
        wanted = prefix.encode()
        # One past every key of `after`: its zero byte becomes a one, which no name holds.
        start = max(wanted, after.encode() + b"\1") if after else wanted
        ids: list[str] = []
        with self._index.begin() as txn, txn.cursor(self._tables[Table.CONTEXTS]) as cursor:
            found = cursor.set_range(start) if start else cursor.first()
            while found and len(ids) < limit:
                name = bytes(cursor.key())[:-9]
                if not name.startswith(wanted):
                    break
                ids.append(name.decode())
                found = cursor.set_range(name + b"\1")
        return ids

    # --- Snapshots ---------------------------------------------------------------------------------------------------

    def save_snapshot(self, name: str, snapshot: Snapshot) -> None:
        if not self._writable:
            return
        try:
            with self._index.begin(write=True) as txn:
                value = seq_key(snapshot.seq) + snapshot.state
                txn.put(_SNAPSHOT + name.encode(), value, db=self._tables[Table.STATE])
        except lmdb.Error as exc:
            # A start folds a little longer: nothing depends on a snapshot.
            log.warning("the snapshot of %s at %d was not kept: %s", name, snapshot.seq, exc)

    def load_snapshot(self, name: str) -> Snapshot | None:
        with self._index.begin() as txn:
            value = txn.get(_SNAPSHOT + name.encode(), db=self._tables[Table.STATE])
        if value is None:
            return None
        value = bytes(value)
        snapshot = Snapshot(key_seq(value[:8]), value[8:])
        return snapshot if snapshot.seq <= self._head else None

    def close(self) -> None:
        if self._env is None:
            return
        if self._writable and self._failed is None:
            self._mark_clean()
        self._index.close()
        self._env.close()
        self._env = None  # type: ignore[assignment]

    # --- Opening the log ---------------------------------------------------------------------------------------------

    def _open_log(self) -> lmdb.Environment:
        file = self._path / "log" / "data.mdb"
        size_bytes = file.stat().st_size if file.exists() else 0
        if self._identity.established and size_bytes == 0:
            raise DataDirectoryError(f"{file} is missing or empty, but this log was written before: restore it")
        env = _open(self._path / "log", self._size_bytes_max, writable=self._writable, sync=True, tables=0)
        try:
            _refuse_short(env, file)
            env.reader_check()
            self._check_header(env)
        except BaseException:
            env.close()
            raise
        return env

    def _check_header(self, env: lmdb.Environment) -> None:
        with env.begin() as txn:
            header = txn.get(_HEADER_KEY)
        if header is None:
            if self._identity.established:
                raise DataDirectoryError(f"{self._path / 'log'} has lost its header: restore it from a backup")
            with env.begin(write=True) as txn:
                txn.put(_HEADER_KEY, _header(self._identity), append=True)
        elif bytes(header) != _header(self._identity):
            raise DataDirectoryError(f"{self._path / 'log'} is another log than {self._path / 'identity'} says")
        if not self._identity.established and self._writable:
            self._identity = establish_tenant(self._path, self._identity)

    def _find_head(self) -> tuple[int, bytes]:
        with self._env.begin() as txn, txn.cursor() as cursor:
            cursor.last()
            head = key_seq(bytes(cursor.key()))
            raw = bytes(cursor.value())
            count = int(txn.stat()["entries"])
        if count != head + 1:
            raise DataDirectoryError(f"{self._path / 'log'} holds {count - 1} records up to seq {head}: it has gaps")
        if head == 0:
            return 0, GENESIS
        try:
            return head, records.parse(raw).chain
        except RecordError as exc:
            raise DataDirectoryError(f"{self._path / 'log'}: the newest record, {head}, is damaged: {exc}") from exc

    def _reopen_writable(self) -> None:
        """The file system takes writes again: open both environments anew."""
        self._index.close()
        self._env.close()
        self._writable = True
        self._env = self._open_log()
        self._index, self._tables = self._open_index()

    # --- The index ---------------------------------------------------------------------------------------------------

    def _open_index(self) -> tuple[lmdb.Environment, dict[Table, lmdb._Database]]:
        path = self._path / "index"
        boot = _boot_id()
        if not self._writable:
            return self._open_index_to_read(path)
        if not _index_is_trusted(path, self._size_bytes_max, boot):
            shutil.rmtree(path)  # Derived from the log, every entry of it: the log itself is never removed.
            path.mkdir()
        env = _open(path, self._size_bytes_max, writable=True, sync=False, tables=len(Table))
        tables = {table: env.open_db(table.value.encode()) for table in Table}
        with env.begin(write=True) as txn:
            state = tables[Table.STATE]
            txn.put(_FORMAT, _INDEX_FORMAT, db=state)
            txn.put(_BOOT, boot, db=state)
            txn.put(_CLEAN, b"", db=state)
            cursor = txn.get(_CURSOR, db=state)
        env.sync(True)
        self._indexed = 0 if cursor is None else key_seq(bytes(cursor))
        if self._indexed > self._head:
            env.close()
            raise DataDirectoryError(
                f"{path} knows {self._indexed} records, {self._path / 'log'} holds {self._head}: the log is an older "
                f"copy or lost its end. Restore the newest log."
            )
        return env, tables

    def _open_index_to_read(self, path: Path) -> tuple[lmdb.Environment, dict[Table, lmdb._Database]]:
        try:
            env = _open(path, self._size_bytes_max, writable=False, sync=False, tables=len(Table))
            tables = {table: env.open_db(table.value.encode(), create=False) for table in Table}
        except lmdb.Error as exc:
            raise DataDirectoryError(f"{path} is missing and cannot be made on a read-only file system") from exc
        with env.begin() as txn:
            cursor = txn.get(_CURSOR, db=tables[Table.STATE])
        self._indexed = 0 if cursor is None else key_seq(bytes(cursor))
        if self._indexed != self._head:
            env.close()
            raise DataDirectoryError(f"{path} is behind its log and cannot be folded on a read-only file system")
        return env, tables

    def _fold_index(self) -> None:
        """Bring the index up to the head: after a start, and after a commit of the index that found no room."""
        while self._indexed < self._head:
            last = min(self._indexed + _FOLD_UNITS, self._head)
            if not self._index_records([self.record(seq) for seq in range(self._indexed + 1, last + 1)]):
                raise StorageFull(f"no room for the index in {self._path}: lookups wait for it")

    def _index_records(self, records: Sequence[Record]) -> bool:
        """Whether the index took them. If not, they are durable all the same, and folded when there is room."""
        try:
            with self._index.begin(write=True) as txn:
                for record in records:
                    for table, key, value in puts(record):
                        txn.put(key, value, db=self._tables[table])
                txn.put(_CURSOR, seq_key(records[-1].unit.seq), db=self._tables[Table.STATE])
        except lmdb.Error as exc:
            log.error("the index of %s is behind its log: %s", self._path, exc)
            return False
        self._indexed = records[-1].unit.seq
        return True

    def _mark_clean(self) -> None:
        """Two steps: the mark may only be on the disk when all before it is."""
        try:
            self._index.sync(True)
            with self._index.begin(write=True) as txn:
                txn.put(_CLEAN, b"1", db=self._tables[Table.STATE])
            self._index.sync(True)
        except lmdb.Error as exc:
            log.warning("the index of %s is not marked clean: %s", self._path, exc)


def _open(path: Path, size_bytes: int, *, writable: bool, sync: bool, tables: int) -> lmdb.Environment:
    try:
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
    except lmdb.Error as exc:
        raise DataDirectoryError(f"{path} cannot be opened: {exc}") from exc


def _refuse_short(env: lmdb.Environment, file: Path) -> None:
    """A map that is longer than its file ends the process (SIGBUS) when its lost end is read: look first."""
    needed_bytes = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if needed_bytes > file.stat().st_size:
        raise DataDirectoryError(f"{file} has {file.stat().st_size} bytes, its pages need {needed_bytes}: it was cut")


def _index_is_trusted(path: Path, size_bytes: int, boot: bytes) -> bool:
    """Whether the index in `path` is whole: of this format, and closed cleanly or written since this boot."""
    file = path / "data.mdb"
    if not file.exists() or file.stat().st_size == 0:
        return False
    try:
        env = _open(path, size_bytes, writable=True, sync=False, tables=len(Table))
    except DataDirectoryError:
        return False
    try:
        _refuse_short(env, file)
        state = env.open_db(Table.STATE.value.encode(), create=False)
        with env.begin() as txn:
            known = {key: txn.get(key, db=state) for key in (_FORMAT, _BOOT, _CLEAN)}
    except (DataDirectoryError, lmdb.Error):
        return False
    finally:
        env.close()
    return known[_FORMAT] == _INDEX_FORMAT and (known[_BOOT] == boot or known[_CLEAN] == b"1")


def _context_seqs(
    cursor: lmdb.Cursor, context_id: str, after: int, before: int, reverse: bool, units_max: int
) -> Iterator[int]:
    """The seqs of a context with after < seq < before, in the order asked for."""
    prefix = context_prefix(context_id)
    last = _last_version(cursor, context_id)
    first_version = 1 if after <= 0 else _version_from(cursor, context_id, after + 1, last)
    end_version = _version_from(cursor, context_id, before, last)
    if first_version >= end_version:
        return
    found = cursor.set_key(context_key(context_id, end_version - 1 if reverse else first_version))
    for _ in range(min(units_max, end_version - first_version)):
        if not found or not bytes(cursor.key()).startswith(prefix):
            raise LogDamaged(f"the index of context {context_id!r} has a gap")
        yield key_seq(bytes(cursor.value()))
        found = cursor.prev() if reverse else cursor.next()


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


def _damaged_unless(entries: list[Entry], seq: int, why: str) -> None:
    if not entries:
        raise LogDamaged(f"record {seq} {why}", seq=seq)


def _header(identity: TenantIdentity) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(identity, established=True))


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()


def _allocated_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def _free_bytes(path: Path) -> int:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize
