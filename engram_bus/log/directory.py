"""The data directory: who it is, who may write it, and whether its file system keeps what it is given.

    identity                      {"format": 1, "id": ..., "created_at": ...}: written first
    lock                          held by the one process that writes; its content says who that is
    keys/                         secrets of the bus, mode 0700
    tenants/default/identity      {"format": 2, "tenant": ..., "epochs": [{"name", "first_seq"}], "established": true}
    tenants/default/log/          the log's LMDB environment; its key 0 says which log it is (`LogHeader`)
    tenants/default/log/segment   the newest commits, until LMDB has taken them over
    tenants/default/index/        what can be folded again from the log
    tenants/default/index/mark    {"format": 1, "boot": ..., "clean": false}: whether that can be trusted
    tenants/default/search/       likewise

The files are JSON maps, the header is MessagePack: readers pass over keys they do not know and compare values, not
bytes, so a later version may add some. A change they must not miss raises `format`. The mark lies beside its
environment, not in it: an index that a power cut tore is not even opened.

A name is flushed with its directory before anything is written that counts on it: the directories before the identity,
the identity before the log, the log before it is established. What a start finds it flushes too, for the process that
wrote it may have been killed before it could.
"""

import errno
import fcntl
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from zlib import crc32

import msgspec

from engram_bus.codec import UNREADABLE
from engram_bus.errors import DataDamaged, DataDirectoryError
from engram_bus.limits import MIB, STAMP_TELLS_SECONDS
from engram_bus.log.contract import Epoch

log = logging.getLogger(__name__)

FORMAT = 1
TENANT_FORMAT = 2
"""From 2 on a log has a segment, which a program that does not know of it would not read."""
INDEX_FORMAT = 1
DEFAULT_TENANT = "default"

_BEGUN = frozenset({"lock", "keys", "tenants", "identity.new", "lost+found"})
"""What a directory may hold before it has an identity: of a start that was cut off, and of a new file system."""

_NETWORK_FILE_SYSTEMS = frozenset(
    "nfs nfs4 cifs smb smb2 smb3 smbfs 9p afs ceph glusterfs fuse.glusterfs lustre ncpfs fuse.sshfs fuse.s3fs "
    "fuse.rclone fuse.gcsfuse beegfs gfs2 ocfs2 orangefs virtiofs".split()
)


class Identity(msgspec.Struct, frozen=True):
    """Of a data directory: made once, never changed."""

    format: int
    id: str
    created_at: str


class TenantIdentity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of one log: its epochs, and whether its log was ever opened (a missing log is then damage, not a beginning)."""

    format: int
    tenant: str
    epochs: list[Epoch]
    established: bool

    @property
    def has_segment(self) -> bool:
        """Whether it was ever opened by a version that keeps a segment."""
        return self.format >= TENANT_FORMAT

    directory: str | None = None
    """The id of the data directory it is in. None where no bus has opened it yet, and of earlier versions: the next
    start writes it."""


class LogHeader(msgspec.Struct, frozen=True):
    """Inside the log's own environment: which log this is. A copy of what the identity beside it says."""

    format: int
    tenant: str
    epochs: list[Epoch]


class FileStamp(msgspec.Struct, frozen=True):
    """Of a file: nothing writes to it without leaving another one, while the machine runs."""

    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


class IndexMark(msgspec.Struct, frozen=True):
    """Of an index: it is whole when it was closed cleanly, or when no power was lost since (the same boot)."""

    format: int
    boot: str
    clean: bool
    crc: int | None = None
    """CRC-32 of the index's file as it was closed: LMDB has no checksums, and what a damaged page does not lead to any
    more would be taken for new. None where it is open, and of earlier versions."""
    segment: str | None = None
    """While it is open, which segment the log's newest commits may lie in: another one would hide them."""
    stamp: FileStamp | None = None
    """Of the index's file as it was closed: with it, and in the same run of the machine, nobody has to read all of it.
    None where a later write might leave the same one."""


T = TypeVar("T", Identity, TenantIdentity)
_FORMATS: dict[type[Identity | TenantIdentity], int] = {Identity: FORMAT, TenantIdentity: TENANT_FORMAT}


class DataDirectory:
    """An opened data directory. `writable` is False on a read-only file system, where only reads are served."""

    def __init__(self, path: Path, *, created_at: str) -> None:
        self.path = path
        self._lock_fd: int | None = None
        self.writable = _prepare(path)
        refuse_network(path)
        try:
            _refuse_foreign(path)
            self._lock_fd = lock_directory(path, writable=self.writable)
            self.identity = self._load_identity(created_at)
        except OSError as exc:
            self.close()
            raise DataDirectoryError(f"{path} cannot be used: {exc}") from exc
        except BaseException:
            self.close()
            raise

    def tenant(self, name: str = DEFAULT_TENANT) -> Path:
        """The directory of one tenant's log, made when it is new."""
        path = self.path / "tenants" / name
        if self.writable:
            try:
                for part in (path / "log", path / "index", path / "search"):
                    part.mkdir(parents=True, exist_ok=True)
                for holder in (path, path.parent, self.path):
                    sync_directory(holder)
            except OSError as exc:
                raise DataDirectoryError(f"{path} cannot be made: {exc}") from exc
        tenant = load_tenant(path, name, writable=self.writable)
        refuse_elsewhere(self.path, self.identity, tenant)
        if self.writable:
            bind_tenant(path, tenant, self.identity)
        return path

    def close(self) -> None:
        """Let the next process in; calling it again does nothing."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _load_identity(self, created_at: str) -> Identity:
        path = self.path / "identity"
        if not path.exists():
            if _has_log(self.path):
                raise DataDamaged(f"{path} is missing beside a log: restore it from a backup of this directory")
            if not self.writable:
                raise DataDirectoryError(f"{self.path} holds no log and is read-only")
            begin_directory(self.path, created_at)
        return read_identity(self.path)


def lock_directory(path: Path, *, writable: bool) -> int | None:
    """Hold the lock of a data directory: the file to close. None where there is nothing to hold.

    Raises DataDirectoryError when another process does, OSError.
    """
    flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
    file = path / "lock"
    try:
        fd = os.open(file, flags | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        return None  # A read-only directory that no bus ever opened: told by its missing identity.
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        holder = file.read_text(errors="replace").strip() or "another process"
        os.close(fd)
        raise DataDirectoryError(
            f"{path} is in use by {holder}: one process writes a data directory. "
            f"Stop that process, or choose another directory with --data-dir."
        ) from exc
    if writable:
        _sign(fd)
    return fd


def begin_directory(path: Path, created_at: str) -> None:
    """Say durably that this is a data directory; before, a log in it is refused."""
    (path / "keys").mkdir(mode=0o700, exist_ok=True)
    try:
        _sync_above(path)
    except OSError as exc:
        raise DataDirectoryError(f"{path} cannot be made: {exc}") from exc
    _write_identity(path / "identity", Identity(FORMAT, secrets.token_hex(8), created_at))


def refuse_network(path: Path) -> None:
    """Raises DataDirectoryError for a path on a file system that loses writes."""
    kind = _file_system(path.resolve())
    if kind in _NETWORK_FILE_SYSTEMS:
        raise DataDirectoryError(
            f"{path} is on a network file system ({kind}): its locks and memory maps do not keep what the log needs. "
            f"Choose a local directory with --data-dir."
        )


def _has_log(path: Path) -> bool:
    return any((path / "tenants").glob("*/log/data.mdb"))


def _refuse_foreign(path: Path) -> None:
    """Raises DataDirectoryError for a directory without an identity that holds what no start has left in it."""
    if (path / "identity").exists() or _has_log(path):
        return
    if others := sorted(one.name for one in path.iterdir() if one.name not in _BEGUN):
        raise DataDirectoryError(
            f"{path} is no data directory and not empty (it holds {others[0]!r}): choose another one with --data-dir. "
            f"Of a backup `engram restore` makes one"
        )


def load_tenant(path: Path, name: str, *, writable: bool) -> TenantIdentity:
    """The identity of a tenant's log, made when it is new. Raises DataDirectoryError when it cannot be trusted."""
    file = path / "identity"
    if file.exists():
        return read_tenant(path, name)
    if (path / "log" / "data.mdb").exists():
        raise DataDamaged(f"{file} is missing beside a log: restore it from a backup of this directory")
    if not writable:
        raise DataDirectoryError(f"{path} holds no log and is read-only")
    return begin_tenant(path, name, [Epoch(new_epoch(), 1)])


def read_identity(path: Path) -> Identity:
    """The identity of a data directory. Raises DataDirectoryError when it is missing or damaged."""
    return _read(path / "identity", Identity)


def read_tenant(path: Path, name: str) -> TenantIdentity:
    """The identity of the log of tenant `name`. Raises DataDirectoryError when it is missing, damaged or another's."""
    identity = _read(path / "identity", TenantIdentity)
    if identity.tenant != name:
        raise DataDamaged(f"{path / 'identity'} is of tenant {identity.tenant!r}: its log was moved here")
    if not identity.epochs:
        raise DataDamaged(f"{path / 'identity'} names no epoch: restore it from a backup of this directory")
    return identity


def refuse_elsewhere(path: Path, directory: Identity, tenant: TenantIdentity) -> None:
    """Raises DataDamaged where a log is of another data directory than the one at `path` says to be."""
    if tenant.directory not in (None, directory.id):
        raise DataDamaged(
            f"{path / 'identity'} is of data directory {directory.id}, and tenants/{tenant.tenant} of "
            f"{tenant.directory}: restore the identity from a backup of this directory"
        )


def bind_tenant(path: Path, tenant: TenantIdentity, directory: Identity) -> None:
    """Note durably in which directory a log is."""
    if tenant.directory != directory.id:
        _write_identity(path / "identity", msgspec.structs.replace(tenant, directory=directory.id))


def begin_tenant(path: Path, name: str, epochs: Sequence[Epoch]) -> TenantIdentity:
    """Write the identity of a log that is about to be made, with the history it continues."""
    identity = TenantIdentity(TENANT_FORMAT, name, list(epochs), established=False)
    _write_identity(path / "identity", identity)
    return identity


def establish_tenant(path: Path, identity: TenantIdentity) -> TenantIdentity:
    """Note that the log and its segment exist: from now on their absence is damage."""
    identity = msgspec.structs.replace(identity, format=TENANT_FORMAT, established=True)
    _write_identity(path / "identity", identity)
    return identity


def header_of(identity: TenantIdentity) -> LogHeader:
    """What the log of this identity says of itself."""
    return LogHeader(FORMAT, identity.tenant, identity.epochs)


def index_is_trusted(path: Path) -> bool:
    """Whether the index in `path` is whole, as far as its mark says."""
    mark = _index_mark(path)
    return mark is not None and (mark.clean or mark.boot == boot_id())


def index_was_closed(path: Path) -> bool:
    """Whether the log was closed after everything was taken over from its segment: the mark is written last."""
    mark = _index_mark(path)
    return mark is not None and mark.clean


def needs_segment(path: Path, identity: TenantIdentity) -> bool:
    """Whether the newest commits of the log in `path` may lie in its segment alone: to miss it is damage."""
    return identity.established and identity.has_segment and not index_was_closed(path / "index")


def segment_in_use(path: Path) -> str | None:
    """The segment that the log was left with by who did not close it, as far as the mark of its index says."""
    mark = _index_mark(path)
    return None if mark is None or mark.clean else mark.segment


def index_is_as_closed(path: Path) -> bool:
    """Whether the file of an index that was closed cleanly is the one that was closed.

    Where the machine ran anew since, or anything touched the file, this reads all of it; else it would find its pages
    as they were written, in memory.
    """
    mark = _index_mark(path)
    if mark is None or mark.crc is None:
        return True
    file = path / "data.mdb"
    try:
        if mark.stamp is not None and mark.boot == boot_id() and mark.stamp == _stamp(file):
            return True
        return mark.crc == _crc(file)
    except OSError:
        return False


def _index_mark(path: Path) -> IndexMark | None:
    try:
        mark = msgspec.json.decode((path / "mark").read_bytes(), type=IndexMark)
    except (OSError, *UNREADABLE):
        return None
    return mark if mark.format == INDEX_FORMAT else None


def _crc(file: Path) -> int:
    crc = 0
    with file.open("rb") as content:
        while part := content.read(MIB):
            crc = crc32(part, crc)
    return crc


def _stamp(file: Path) -> FileStamp:
    found = file.stat()
    return FileStamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _is_telling(stamp: FileStamp, now_ns: int) -> bool:
    """Whether a write from now on leaves another stamp: not within the tick of the file system's clock in which the
    last one was, nor where that clock counts seconds."""
    return now_ns - stamp.changed_ns >= STAMP_TELLS_SECONDS * 1e9 and stamp.changed_ns % 10**9 != 0


def mark_index(
    path: Path, *, clean: bool, segment: str | None = None, now_ns: Callable[[], int] = time.time_ns
) -> None:
    """Say so durably, of a closed index where it is clean, of an open one with the log's segment. Where that is not
    possible there is no mark afterwards: the index is then folded again."""
    file = path / "mark"
    mark = IndexMark(INDEX_FORMAT, boot_id(), clean, segment=segment)
    try:
        if clean:
            mark = _closed(mark, path / "data.mdb", now_ns)
        write_durably(file, msgspec.json.encode(mark))
    except OSError as exc:
        log.warning("%s cannot be written, the next start folds the index again: %s", file, exc)
        file.unlink(missing_ok=True)
        sync_directory(path)


def _closed(mark: IndexMark, file: Path, now_ns: Callable[[], int]) -> IndexMark:
    """The mark with what tells whether the file is this one."""
    crc, stamp = _crc(file), _stamp(file)
    return msgspec.structs.replace(mark, crc=crc, stamp=stamp if _is_telling(stamp, now_ns()) else None)


def forget_index(path: Path) -> None:
    """The next start folds it again: it is not what was written."""
    (path / "mark").unlink(missing_ok=True)
    sync_directory(path)


def boot_id() -> str:
    """Which run of the machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def new_epoch() -> str:
    """A name for a new stretch of history: 48 random bits, letters and digits only."""
    return f"e{secrets.token_hex(6)}"


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file so that a power cut leaves the old one or the new one."""
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_above(path: Path) -> None:
    """Make durable that a directory is there: some of those above it may be new as well."""
    for above in path.resolve().parents:
        try:
            sync_directory(above)
        except PermissionError:
            os.sync()  # Who may make a name there may not have it flushed alone.


def is_read_only(path: Path) -> bool:
    """Whether the file system refuses writes (permissions aside: they do not bind root)."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _prepare(path: Path) -> bool:
    """Make the directory; whether it can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise DataDirectoryError(f"{path} cannot be made: {exc.strerror}") from exc
    if is_read_only(path):
        return False
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataDirectoryError(f"{path} cannot be written by this user: {os.strerror(errno.EACCES)}")
    return True


def _file_system(path: Path) -> str:
    """The type of the file system a path lies on, from proc_pid_mountinfo(5); empty where that cannot be read."""
    best, kind = "", ""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for line in lines:
        mount, _, rest = line.partition(" - ")
        # Spaces, tabs, line ends and backslashes stand there as three octal digits.
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount.split()[4])
        if len(point) >= len(best) and (path == Path(point) or Path(point) in path.parents):
            best, kind = point, rest.split()[0]
    return kind


def _read(path: Path, kind: type[T]) -> T:
    try:
        value = msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, *UNREADABLE) as exc:
        raise DataDamaged(f"{path} cannot be read ({exc}): restore it from a backup of this directory") from exc
    newest = _FORMATS[kind]
    if not FORMAT <= value.format <= newest:
        raise DataDirectoryError(f"{path} has format {value.format}, this version reads format {newest}")
    return value


def _write_identity(file: Path, identity: Identity | TenantIdentity) -> None:
    try:
        write_durably(file, msgspec.json.encode(identity))
    except OSError as exc:
        raise DataDirectoryError(f"{file} cannot be written: {exc}") from exc


def _sign(fd: int) -> None:
    """Who holds the lock, for who is refused. On a full disk it stays unsigned."""
    os.truncate(fd, 0)
    try:
        os.write(fd, f"process {os.getpid()}\n".encode())
    except OSError as exc:
        log.warning("the lock is held, but not signed: %s", exc)
