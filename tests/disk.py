"""Logs on the disk, as a bus opens them, and disks that are small enough to be filled."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from engram_bus.limits import KIB, LOG_SIZE_BYTES_MAX
from engram_bus.log.directory import DataDirectory, mark_index
from engram_bus.log.index import Table
from engram_bus.log.lmdb import LmdbLog

CREATED_AT = "2026-01-01T00:00:00.000000Z"


@contextmanager
def opened(path: Path) -> Iterator[LmdbLog]:
    """The default tenant's log in a data directory, with the directory's lock held."""
    directory = DataDirectory(path, created_at=CREATED_AT)
    try:
        log = LmdbLog(directory.tenant(), writable=directory.writable)
        try:
            yield log
        finally:
            log.close()
    finally:
        directory.close()


def tenant(path: Path) -> Path:
    return path / "tenants" / "default"


@contextmanager
def tampering(path: Path, part: str, table: Table | None = None) -> Iterator[lmdb.Transaction]:
    """A write to the files of a closed log behind its back: `part` is log or index."""
    env = lmdb.open(str(tenant(path) / part), map_size=LOG_SIZE_BYTES_MAX, max_dbs=len(Table))
    try:
        db = None if table is None else env.open_db(table.value.encode(), create=False)
        with env.begin(write=True, db=db) as txn:
            yield txn
    finally:
        env.close()
        if part == "index":
            mark_index(tenant(path) / part, clean=False)  # Else the next start folds it again.


def stored(txn: lmdb.Transaction, key: bytes) -> bytes:
    """The value of a key that is there."""
    value = txn.get(key)
    assert value is not None, key
    return bytes(value)


def image(path: Path) -> dict[str, bytes]:
    """All files of a data directory but LMDB's lock files, which say only who reads."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "lock.mdb")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


class Disk:
    """A small disk of its own, in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data"
        self._filler = path / "filler"

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all the room but some."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4 * KIB))
            except OSError:
                file.truncate(max(0, self._filler.stat().st_size - leave_bytes))

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", self.path], check=True)


@contextmanager
def small_disk(path: Path, *, size_mib: int) -> Iterator[Disk]:
    """A file system of its own at a path that does not exist yet; skips where mounting is not permitted."""
    path.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a small disk (root): {mounted.stderr.decode().strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", path], check=True)
