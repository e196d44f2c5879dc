"""Logs on the disk, as a bus opens them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engram_bus.log.directory import DataDirectory
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
