"""A log as another process of the same bus reads it: what lies in LMDB, and in memory what was told but is not there.

Only what the process that writes told is ever shown: LMDB may already hold a commit whose flush is still under way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from engram_bus.codec import Entry
from engram_bus.log.contract import Epoch, Snapshot
from engram_bus.log.index import Table
from engram_bus.log.lmdb import LmdbLog
from engram_bus.log.lmdb.environments import opened_beside
from engram_bus.log.lmdb.index import index_beside
from engram_bus.log.lmdb.log import damage_named
from engram_bus.log.record import GENESIS, Record, body_of, parse
from engram_bus.log.tail import Tail


class FollowedLog(LmdbLog):
    """The read half of `Log`, opened beside the process that writes it, and kept up by `follow` and `hold`.

    `size_bytes_max` is what that process opened it with. Raises DataDirectoryError.
    """

    def __init__(self, path: Path, *, size_bytes_max: int, epochs: Sequence[Epoch], held: int) -> None:
        self._path = path
        self._size_bytes_max = size_bytes_max
        self._told_epochs = tuple(epochs)
        self._writable = False
        self._failed = None
        self._closed = False
        self._segment = None
        self._tail = Tail()
        self._head = self._stored = held
        self._open()

    def _open(self) -> None:
        self._env, _ = opened_beside(self._path / "log", (), size_bytes=self._size_bytes_max)
        try:
            self._index = index_beside(self._path / "index", seq=self._stored, size_bytes_max=self._size_bytes_max)
        except BaseException:
            self._env.close()
            raise

    @property
    def epochs(self) -> Sequence[Epoch]:
        return self._told_epochs

    @property
    def chain(self) -> bytes:
        return self.record(self._head).chain if self._head else GENESIS

    def follow(self, first: int, raws: Sequence[bytes], held: int) -> list[Entry]:
        """Take in records as they were told, from `first` on, and up to where LMDB holds all. Raises RecordError."""
        assert first == self._head + 1, f"seq {first} after {self._head}"
        last = self._head + len(raws)
        if held >= last:
            entries = [Entry(seq, body_of(raw, seq)) for seq, raw in enumerate(raws, start=first)]
            self._head, self._tail = last, Tail()
        else:
            records = [parse(raw, seq) for seq, raw in enumerate(raws, start=first)]
            entries = [Entry(record.unit.seq, record.body, record.unit) for record in records]
            self._tail.extend(records, sum(map(len, raws)))
            self._head = last
        self.hold(held)
        return entries

    def hold(self, held: int) -> None:
        """LMDB, log and index, holds all up to here."""
        held = min(held, self._head)
        if held > self._stored:
            newest = [record for record in self._tail.records if record.unit.seq > held]
            self._tail = Tail()
            self._tail.extend(newest, sum([len(record.raw) for record in newest]))
            self._stored = self._index.seq = held

    # --- What LMDB shows beyond what it was told to hold --------------------------------------------------------------

    def _lookup(self, table: Table, key: bytes) -> int | None:
        seq = super()._lookup(table, key)
        return None if seq is None or seq > self._stored else seq

    @damage_named
    def context_ids(self, after: str, *, prefix: str, limit: int) -> list[str]:
        ids: list[str] = []
        while len(ids) < limit and (page := super().context_ids(after, prefix=prefix, limit=limit - len(ids))):
            ids += self._begun(page)
            after = page[-1]
        return ids

    def _begun(self, ids: Sequence[str]) -> list[str]:
        """Those contexts that began at or before the head."""
        newest = self._tail.context_ids()
        firsts = self._index.first_seqs(ids)
        return [
            name
            for name, first in zip(ids, firsts, strict=True)
            if name in newest or (first is not None and first <= self._stored)
        ]

    # --- What only the writing process may ---------------------------------------------------------------------------

    def append(self, records: Sequence[Record]) -> NoReturn:
        raise AssertionError("a log that is followed is written by another process")

    def probe(self) -> NoReturn:
        raise AssertionError("a log that is followed is written by another process")

    def settle(self) -> None:
        """Nothing: the process that writes does."""

    def save_snapshot(self, name: str, snapshot: Snapshot) -> None:
        """Nothing: the process that writes keeps them."""
