"""The log and its index, read-only, beside the process that writes them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import lmdb

from engram_bus.limits import MIB
from engram_bus.log.contract import Snapshot
from engram_bus.log.directory import LogHeader, index_was_closed, segment_in_use
from engram_bus.log.index import SEQ_BYTES, Table, key_seq, seq_key
from engram_bus.log.lmdb.cells import CURSOR, HEADER_KEY, SNAPSHOT, parse_cursor, parse_header, parse_snapshot
from engram_bus.log.lmdb.environments import opened_beside, reading, wrong_page_of
from engram_bus.log.lmdb.places import last_seq, raws
from engram_bus.log.record import GENESIS, RecordError
from engram_bus.log.segment import MISSING, NOT_THE_ONE, SEGMENT, SegmentDamaged, content_of, name_of, records_after

_SEGMENT_LOOKS = 20
_WALK_UNITS = 500
_WALK_BYTES = 8 * MIB


class LogReader:
    """The log, read-only, beside the process that writes it: what `verify` walks.

    Every transaction is short, so a running bus is not held up, and what is asked for is compared with what is found:
    records are only ever added. Raises DataDirectoryError when the environment cannot be opened, RecordError for what
    LMDB cannot read.
    """

    def __init__(self, path: Path) -> None:
        self._env, _ = opened_beside(path, ())
        self._newest: dict[int, bytes] = {}
        self.segment_damage = ""
        """What is wrong with the segment, where something is: what it holds behind that is not known."""
        for _ in range(_SEGMENT_LOOKS):
            self.segment_damage = self._read_segment(path)
            if not self.segment_damage:
                break  # What is only being written, while it is read, is whole at another look.

    def _read_segment(self, path: Path) -> str:
        """Keep what LMDB had not taken over yet; what is wrong with the segment, if anything."""
        self._newest = {}
        index = path.parent / "index"
        in_use = segment_in_use(index)
        try:
            content = content_of(path / SEGMENT)
        except OSError as exc:
            return f"{SEGMENT} cannot be read: {exc}"
        if content is None:
            return f"{SEGMENT} {MISSING}" if in_use is not None and in_use == segment_in_use(index) else ""
        try:
            if in_use not in (None, name_of(content)) and in_use == segment_in_use(index):
                return f"{SEGMENT} {NOT_THE_ONE}"
            with reading(self._env) as txn, txn.cursor() as cursor:
                stored = last_seq(cursor)
            for seq, raw in records_after(content, stored):
                self._newest[seq] = raw
        except SegmentDamaged as exc:
            return "" if index_was_closed(index) else f"{SEGMENT} {exc}"  # Of a closed log it holds nothing.
        except RecordError:
            pass  # LMDB's own: told by who reads it.
        return ""

    def close(self) -> None:
        self._env.close()

    def header(self) -> LogHeader | None:
        """What the log says of itself."""
        with reading(self._env) as txn:
            header = txn.get(HEADER_KEY)
        return None if header is None else parse_header(bytes(header))

    def head(self) -> int:
        """The seq of the last record, 0 where there is none."""
        with reading(self._env) as txn, txn.cursor() as cursor:
            stored = last_seq(cursor)
        return max(stored, max(self._newest, default=0))

    def raws(self, last: int, *, after: int = 0, page_units: int = _WALK_UNITS) -> Iterator[tuple[int, bytes]]:
        """The raw records with after < seq <= last, as far as they follow one another."""
        seq = after
        while seq < last:
            page: list[tuple[int, bytes]] = []
            held_bytes = 0
            with reading(self._env) as txn, txn.cursor() as cursor:
                try:
                    for found in raws(cursor, seq + 1, min(seq + page_units, last), self._newest):
                        page.append(found)
                        held_bytes += len(found[1])
                        if held_bytes >= _WALK_BYTES:
                            break
                except (RecordError, lmdb.Error):
                    if not page:
                        raise
            yield from page
            seq = page[-1][0]

    def page(self, after: int, *, units_max: int, bytes_max: int) -> list[tuple[int, bytes]]:
        """The raw records after a seq, up to `units_max` and about `bytes_max` (at least one)."""
        page: list[tuple[int, bytes]] = []
        held_bytes = 0
        with reading(self._env) as txn, txn.cursor() as cursor:
            last = key_seq(bytes(cursor.key())) if cursor.last() and len(cursor.key()) == SEQ_BYTES else 0
            last = max(last, max(self._newest, default=0))
            for found in raws(cursor, after + 1, min(after + units_max, last), self._newest):
                page.append(found)
                held_bytes += len(found[1])
                if held_bytes >= bytes_max:
                    break
        return page

    def raw(self, seq: int) -> bytes | None:
        """The raw record of one seq."""
        with reading(self._env) as txn:
            raw = txn.get(seq_key(seq))
        return self._newest.get(seq) if raw is None else bytes(raw)

    def wrong_page(self) -> str | None:
        """What is wrong with the first page that is not what it should be; an append may trip over it."""
        return wrong_page_of(self._env, Path(self._env.path()) / "data.mdb", everywhere=True)

    def wrong_count(self) -> str | None:
        """Whether as many records are counted as there are, which a start looks at."""
        with reading(self._env) as txn, txn.cursor() as cursor:
            count = int(txn.stat()["entries"]) - 1
            head = key_seq(bytes(cursor.key())) if cursor.last() else -1
        return None if count in (head, -1) else f"it holds {count} records up to seq {head}: it has gaps"

    def forget_dead_readers(self) -> None:
        """Give back the place of a reader that died: the pages it saw cannot be used again before."""
        self._env.reader_check()


class IndexReader:
    """The index's environment, likewise. A table that is not there holds nothing."""

    def __init__(self, path: Path) -> None:
        self._env, self._tables = opened_beside(path, tuple(Table))

    def close(self) -> None:
        self._env.close()

    def wrong_page(self) -> str | None:
        """What is wrong with the first page that is not what it should be: any may be written to."""
        return wrong_page_of(self._env, Path(self._env.path()) / "data.mdb", everywhere=True)

    def cursor(self) -> tuple[int, bytes]:
        """Up to where the index goes, and the chain digest there."""
        with reading(self._env) as txn:
            return self._cursor(txn)

    def _cursor(self, txn: lmdb.Transaction) -> tuple[int, bytes]:
        state = self._tables.get(Table.STATE)
        value = None if state is None else txn.get(CURSOR, db=state)
        return (0, GENESIS) if value is None else parse_cursor(bytes(value))

    def values(self, entries: Sequence[tuple[Table, bytes]]) -> list[bytes | None]:
        """What stands under these keys."""
        with reading(self._env) as txn:
            found = [txn.get(key, db=self._tables[table]) if table in self._tables else None for table, key in entries]
        return [None if value is None else bytes(value) for value in found]

    def entries(self, table: Table) -> Iterator[tuple[int, bytes, bytes]]:
        """All (cursor of the index when it was read, key, value) of a table, in byte order of the keys."""
        after = b""
        while table in self._tables:
            page: list[tuple[int, bytes, bytes]] = []
            with reading(self._env) as txn, txn.cursor(self._tables[table]) as cursor:
                upto, _ = self._cursor(txn)
                found = cursor.set_range(after + b"\0") if after else cursor.first()
                while found and len(page) < _WALK_UNITS:
                    page.append((upto, bytes(cursor.key()), bytes(cursor.value())))
                    found = cursor.next()
            if not page:
                return
            if page[0][1] <= after or any(one[1] >= other[1] for one, other in pairwise(page)):
                raise RecordError(f"has keys of {table} that are out of order")
            yield from page
            after = page[-1][1]

    def snapshots(self) -> Iterator[tuple[str, Snapshot | None]]:
        """The kept states by name, None in the place of a damaged one."""
        if Table.STATE not in self._tables:
            return
        with reading(self._env) as txn, txn.cursor(self._tables[Table.STATE]) as cursor:
            found = cursor.set_range(SNAPSHOT)
            kept: list[tuple[bytes, bytes]] = []
            while found and bytes(cursor.key()).startswith(SNAPSHOT):
                kept.append((bytes(cursor.key()), bytes(cursor.value())))
                found = cursor.next()
        for key, value in kept:
            yield key[len(SNAPSHOT) :].decode(errors="replace"), parse_snapshot(value)
