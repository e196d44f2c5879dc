"""The data directory: who it is, who may write it, and whether its file system keeps what it is given.

    identity                      {"format": 1, "id": ..., "created_at": ...}: written first
    lock                          held by the one process that writes; its content says who that is
    keys/                         secrets of the bus, mode 0700
    tenants/default/identity      {"format": 1, "tenant": ..., "epochs": [...], "established": true}
    tenants/default/log/          the log's LMDB environment
    tenants/default/index/        what can be folded again from the log
    tenants/default/search/       likewise
"""

import errno
import fcntl
import os
import secrets
from pathlib import Path
from typing import TypeVar

import msgspec

from engram_bus.errors import DataDirectoryError
from engram_bus.log.contract import Epoch

FORMAT = 1
DEFAULT_TENANT = "default"

_NETWORK_FILE_SYSTEMS = frozenset(
    "nfs nfs4 cifs smb smb2 smb3 smbfs 9p afs ceph glusterfs fuse.glusterfs lustre ncpfs fuse.sshfs fuse.s3fs "
    "fuse.rclone fuse.gcsfuse beegfs gfs2 ocfs2 orangefs virtiofs".split()
)


class Identity(msgspec.Struct, frozen=True):
    """Of a data directory: made once, never changed."""

    format: int
    id: str
    created_at: str


class TenantIdentity(msgspec.Struct, frozen=True):
    """Of one log: its epochs, and whether its log was ever opened (a missing log is then damage, not a beginning)."""

    format: int
    tenant: str
    epochs: list[Epoch]
    established: bool


T = TypeVar("T", Identity, TenantIdentity)


class DataDirectory:
    """An opened data directory. `writable` is False on a read-only file system, where only reads are served."""

    def __init__(self, path: Path, *, created_at: str) -> None:
        self.path = path
        self._lock_fd: int | None = None
        self.writable = _prepare(path)
        _refuse_network(path)
        self._lock()
        try:
            self.identity = self._load_identity(created_at)
        except BaseException:
            self.close()
            raise

    def tenant(self, name: str = DEFAULT_TENANT) -> Path:
        """The directory of one tenant's log, made when it is new."""
        path = self.path / "tenants" / name
        if self.writable:
            for part in (path / "log", path / "index", path / "search"):
                part.mkdir(parents=True, exist_ok=True)
        return path

    def close(self) -> None:
        """Let the next process in; calling it again does nothing."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _lock(self) -> None:
        flags = os.O_RDWR | os.O_CREAT if self.writable else os.O_RDONLY
        path = self.path / "lock"
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            return  # A read-only directory that no bus ever opened: told by its missing identity.
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = path.read_text(errors="replace").strip() or "another process"
            os.close(fd)
            raise DataDirectoryError(
                f"{self.path} is in use by {holder}: one process writes a data directory. "
                f"Stop that process, or choose another directory with --data-dir."
            ) from exc
        if self.writable:
            os.truncate(fd, 0)
            os.write(fd, f"process {os.getpid()}\n".encode())
        self._lock_fd = fd

    def _load_identity(self, created_at: str) -> Identity:
        path = self.path / "identity"
        if not path.exists():
            if any((self.path / "tenants").glob("*/log/data.mdb")):
                raise DataDirectoryError(f"{path} is missing beside a log: restore it from a backup of this directory")
            if not self.writable:
                raise DataDirectoryError(f"{self.path} holds no log and is read-only")
            write_durably(path, msgspec.json.encode(Identity(FORMAT, secrets.token_hex(8), created_at)))
            (self.path / "keys").mkdir(mode=0o700, exist_ok=True)
        return _read(path, Identity)


def load_tenant(path: Path, name: str, *, writable: bool) -> TenantIdentity:
    """The identity of a tenant's log, made when it is new. Raises DataDirectoryError when it cannot be trusted."""
    file = path / "identity"
    if file.exists():
        return _read(file, TenantIdentity)
    if (path / "log" / "data.mdb").exists():
        raise DataDirectoryError(f"{file} is missing beside a log: restore it from a backup of this directory")
    if not writable:
        raise DataDirectoryError(f"{path} holds no log and is read-only")
    identity = TenantIdentity(FORMAT, name, [Epoch(new_epoch(), 1)], established=False)
    write_durably(file, msgspec.json.encode(identity))
    return identity


def establish_tenant(path: Path, identity: TenantIdentity) -> TenantIdentity:
    """Note that the log exists: from now on its absence is damage."""
    identity = msgspec.structs.replace(identity, established=True)
    write_durably(path / "identity", msgspec.json.encode(identity))
    return identity


def new_epoch() -> str:
    """A name for a new stretch of history: 48 random bits, letters and digits only."""
    return f"e{secrets.token_hex(6)}"


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file so that a power cut leaves the old one or the new one."""
    temporary = path.with_suffix(".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


def _refuse_network(path: Path) -> None:
    kind = _file_system(path.resolve())
    if kind in _NETWORK_FILE_SYSTEMS:
        raise DataDirectoryError(
            f"{path} is on a network file system ({kind}): its locks and memory maps do not keep what the log needs. "
            f"Choose a local directory with --data-dir."
        )


def _file_system(path: Path) -> str:
    """The type of the file system a path lies on, from proc_pid_mountinfo(5); empty where that cannot be read."""
    best, kind = "", ""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        mount, _, rest = line.partition(" - ")
        point = mount.split()[4].encode().decode("unicode_escape")
        if len(point) >= len(best) and (path == Path(point) or Path(point) in path.parents):
            best, kind = point, rest.split()[0]
    return kind


def _read(path: Path, kind: type[T]) -> T:
    try:
        value = msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise DataDirectoryError(f"{path} cannot be read ({exc}): restore it from a backup of this directory") from exc
    if value.format != FORMAT:
        raise DataDirectoryError(f"{path} has format {value.format}, this version reads format {FORMAT}")
    return value
