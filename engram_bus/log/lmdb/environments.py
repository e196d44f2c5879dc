"""LMDB environments: how they are opened, and what is refused before LMDB ends the process over it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb

from engram_bus.errors import DataDamaged, DataDirectoryError
from engram_bus.log.directory import is_read_only
from engram_bus.log.index import Table
from engram_bus.log.pages import wrong_page
from engram_bus.log.record import RecordError

_READERS_MAX = 126
_LOCK_FILE_BYTES = 64 * (_READERS_MAX + 2)
"""As LMDB makes it: a header, and a cache line for each reader."""
NOT_LMDB = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)


def opened(path: Path, size_bytes: int, *, writable: bool, sync: bool, tables: int) -> lmdb.Environment:
    """An environment for the process that owns it, of `size_bytes` at most."""
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


def opened_beside(
    path: Path, tables: Sequence[Table], *, size_bytes: int = 0
) -> tuple[lmdb.Environment, dict[Table, lmdb._Database]]:
    """An environment read-only, of the size its writer had given it when it last wrote, or of `size_bytes`: what grows
    beyond cannot be read. Where no lock file is, nobody writes; none is made."""
    try:
        env = lmdb.open(
            str(path),
            map_size=size_bytes,
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
        refuse_short(env, path / "data.mdb")
        return env, {table: db for table in tables if (db := _opened_table(env, table)) is not None}
    except lmdb.Error as exc:
        env.close()
        raise DataDirectoryError(f"{path} cannot be opened: {exc}") from exc
    except BaseException:
        env.close()
        raise


@contextmanager
def reading(env: lmdb.Environment) -> Iterator[lmdb.Transaction]:
    """A transaction, and LMDB's errors as RecordError."""
    try:
        with env.begin() as txn:
            yield txn
    except lmdb.Error as exc:
        raise RecordError(f"cannot be read: {exc}") from exc


def unopened(exc: lmdb.Error | OSError) -> type[DataDirectoryError]:
    """Whether it is the file that is at fault, or what is around it."""
    return DataDamaged if isinstance(exc, NOT_LMDB) else DataDirectoryError


def refuse_short(env: lmdb.Environment, file: Path) -> None:
    """A map that is longer than its file ends the process (SIGBUS) when its lost end is read: look first."""
    if (short := short_by(env, file)) > 0:
        raise DataDamaged(f"{file} is {short} bytes shorter than its pages: it was cut")


def refuse_wrong_pages(env: lmdb.Environment, file: Path) -> None:
    """An append that comes across such a page may end the process: look first."""
    if (wrong := wrong_page_of(env, file)) is not None:
        raise DataDamaged(f"{file} is damaged: {wrong}")


def wrong_page_of(env: lmdb.Environment, file: Path, *, everywhere: bool = False) -> str | None:
    """What is wrong with a page that a write may come across, or `everywhere`."""
    with env.begin() as txn:
        return wrong_page(file, int(txn.id()), everywhere=everywhere)


def short_by(env: lmdb.Environment, file: Path) -> int:
    """How many bytes a file lacks of its pages."""
    pages_bytes = (int(env.info()["last_pgno"]) + 1) * int(env.stat()["psize"])
    return pages_bytes - file.stat().st_size


def _opened_table(env: lmdb.Environment, table: Table) -> lmdb._Database | None:
    """A table of an environment that is only read; None where it does not exist."""
    try:
        return env.open_db(table.value.encode(), create=False)
    except lmdb.NotFoundError:
        return None


def allocate_lock_file(path: Path) -> None:
    """Make the lock file with room for all readers there may be: LMDB writes it through a map, and where the disk is
    full by then, that ends the process (SIGBUS).

    Only before LMDB opens it: whoever closes a file gives up all its process's locks on it, LMDB's too.
    """
    with (path / "lock.mdb").open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, _LOCK_FILE_BYTES)


def allocated_bytes(path: Path) -> int:
    """What a file takes up on the disk."""
    return path.stat().st_blocks * 512
