"""A log on the disk as a worker reads it, written beside it by the one that may: both halves of one `Log`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engram_bus.log.contract import Snapshot
from engram_bus.log.followed import FollowedLog
from engram_bus.log.lmdb import LmdbLog
from engram_bus.log.lmdb.index import LmdbIndex
from engram_bus.log.record import Record
from tests.disk import opened


class _SharedLog(FollowedLog):
    """LMDB opens an environment only once in a process: the writer's are read."""

    def __init__(self, written: LmdbLog) -> None:
        self._written = written
        written.settle()
        super().__init__(
            written._path, size_bytes_max=written._size_bytes_max, epochs=written.epochs, held=written.head
        )

    def _open(self) -> None:
        index = self._written._index
        self._env, self._index = self._written._env, LmdbIndex(index._path, index._env, index._tables, self._stored)

    def close(self) -> None:
        """They are the writer's."""


class WrittenAndFollowed:
    """What is appended goes to the writer's log and is told; everything else is asked of the follower, whose LMDB is
    taken to be some records behind, or (None) now more and now fewer."""

    def __init__(self, written: LmdbLog, followed: FollowedLog, *, behind: int | None) -> None:
        self._written = written
        self._followed = followed
        self._behind = behind

    def append(self, records: Sequence[Record]) -> None:
        self._written.append(records)
        self._written.settle()
        behind = self._written.head % 7 if self._behind is None else self._behind
        held = max(self._followed.settled, self._written.head - behind)
        self._followed.follow(records[0].unit.seq, [record.raw for record in records], held)

    def settle(self) -> None:
        self._followed.hold(self._written.head)

    def save_snapshot(self, name: str, snapshot: Snapshot) -> None:
        self._written.save_snapshot(name, snapshot)

    def load_snapshot(self, name: str) -> Snapshot | None:
        # One that is ahead of what the follower knows to lie in LMDB is none to it.
        self._followed.hold(self._written.head)
        return self._followed.load_snapshot(name)

    def close(self) -> None:
        self._followed.close()
        self._written.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._followed, name)


@contextmanager
def opened_and_followed(path: Path, *, behind: int | None = None) -> Iterator[Any]:
    """A data directory's log, written and followed from where it stands."""
    with opened(path) as written:
        yield WrittenAndFollowed(written, _SharedLog(written), behind=behind)
