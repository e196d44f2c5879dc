"""A data directory made of records that were written before: refused by every bus until all of it is on the disk.

with new_directory(path, epochs=epochs) as log:
    for record in records:
        log.take(record)

Its root identity is written last. A log without one is refused, so what was cut off is never taken for a whole log.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engram_bus import clock
from engram_bus.errors import BackupError, EngramError
from engram_bus.limits import BULK_BYTES_MAX, LOG_SIZE_BYTES_MAX
from engram_bus.log.contract import Epoch
from engram_bus.log.directory import (
    DEFAULT_TENANT,
    begin_directory,
    begin_tenant,
    lock_directory,
    new_epoch,
    refuse_network,
    sync_directory,
)
from engram_bus.log.history import History
from engram_bus.log.lmdb import LmdbLog
from engram_bus.log.record import Record
from engram_bus.units import ts_text

_COMMIT_UNITS = 2_000


class NewLog:
    """The log of a directory that is being made; every record is held to what was taken before it."""

    def __init__(self, log: LmdbLog) -> None:
        self.log = log
        self.history = History()
        self._uncommitted: list[Record] = []
        self._uncommitted_bytes = 0
        self._uncommitted_ids: set[str] = set()

    def has_id(self, unit_id: str) -> bool:
        """Whether a unit of this id was taken."""
        return unit_id in self._uncommitted_ids or self.log.seq_of_id(unit_id) is not None

    def take(self, record: Record) -> None:
        """Add a record. Raises BackupError where it does not follow."""
        if (wrong := self.history.take(record)) is not None:
            raise BackupError(f"unit {record.unit.seq} cannot be taken: {wrong}")
        self._uncommitted.append(record)
        self._uncommitted_ids.add(record.unit.id)
        self._uncommitted_bytes += len(record.raw)
        is_much = len(self._uncommitted) >= _COMMIT_UNITS or self._uncommitted_bytes >= BULK_BYTES_MAX
        if is_much and not self.history.group_open:
            self._commit()

    def finish(self) -> None:
        """Commit what is left."""
        if self.history.group_open:
            raise BackupError(f"the command of unit {self.history.whole_seq + 1} is not whole")
        self._commit()

    def _commit(self) -> None:
        if self._uncommitted:
            self.log.append(self._uncommitted)
            self._uncommitted = []
            self._uncommitted_bytes = 0
            self._uncommitted_ids.clear()


@contextmanager
def new_directory(
    path: Path, *, epochs: Sequence[Epoch], tenant: str = DEFAULT_TENANT, log_bytes: int = 0, keys: Path | None = None
) -> Iterator[NewLog]:
    """A new data directory at `path`, which is new or empty; when the block ends without an error it is durable.

    An error takes away what was made. Raises BackupError, DataDirectoryError.
    """
    is_made = refuse_used(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        refuse_network(path)
        # Size and place of the log as a bus would have them, twice as large as it is: appends go on.
        with _locked(path), _log(path, tenant, epochs, max(LOG_SIZE_BYTES_MAX, 2 * log_bytes)) as log:
            building = NewLog(log)
            yield building
            building.finish()
        if keys is not None and keys.is_dir():
            shutil.copytree(keys, path / "keys")
        _sync_all(path)
        begin_directory(path, ts_text(clock.wall_us()))
        sync_directory(path.parent)
    except BaseException as exc:
        _remove(path, is_made=is_made)
        if isinstance(exc, EngramError):
            raise BackupError(f"{path} cannot be made: {exc.message}") from exc
        if isinstance(exc, OSError):
            raise BackupError(f"{path} cannot be made: {exc.strerror or exc}") from exc
        raise


def continued(epochs: Sequence[Epoch], head: int) -> list[Epoch]:
    """The history of a log that is made of the units up to `head` of another: a new epoch begins behind them.

    Also behind the very head: the other may have gone on, and what it appended then is not this log's. Every earlier
    epoch ends at the head at the latest, so that any of its cursors up to there resumes, and none above.
    """
    earlier = [Epoch(epoch.name, min(epoch.first_seq, head + 1)) for epoch in epochs]
    return [*earlier, Epoch(new_epoch(), head + 1)]


def refuse_used(path: Path) -> bool:
    """Whether a directory at `path` has to be made. Raises BackupError when it is there and not empty."""
    if not path.exists():
        return True
    if not path.is_dir():
        raise BackupError(f"{path} is not a directory")
    if any((path / "tenants").glob("*/log/data.mdb")) and not (path / "identity").exists():
        raise BackupError(f"{path} was not finished when it was made (it has no identity): remove it first")
    if any(path.iterdir()):
        raise BackupError(f"{path} is not empty: name a new directory")
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = lock_directory(path, writable=True)
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)


@contextmanager
def _log(path: Path, tenant: str, epochs: Sequence[Epoch], size_bytes_max: int) -> Iterator[LmdbLog]:
    folder = path / "tenants" / tenant
    for part in ("log", "index", "search"):
        (folder / part).mkdir(parents=True)
    begin_tenant(folder, tenant, epochs)
    log = LmdbLog(folder, tenant=tenant, size_bytes_max=size_bytes_max)
    try:
        yield log
    finally:
        log.close()


def _sync_all(path: Path) -> None:
    """Every file and every name below: contents before the names that lead to them."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            fd = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_directory(Path(folder))


def _remove(path: Path, *, is_made: bool) -> None:
    """What was made here and is not finished; the directory was new or empty before."""
    (path / "identity").unlink(missing_ok=True)
    for name in ("tenants", "keys"):
        shutil.rmtree(path / name, ignore_errors=True)
    for name in ("lock", "identity.new"):
        (path / name).unlink(missing_ok=True)
    if is_made and path.is_dir():
        path.rmdir()
