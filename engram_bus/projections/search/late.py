"""The vectors of an embedder that may be slow or away: they come after their units, and rank once all are there.

The units have vectors of the shipped model meanwhile, and words always; so a server that is down takes the better
ranking away, never the search. Row n is of the n-th unit of the index. What is in the file outlives the index: it may
have cost money.
"""

import logging
import os
import queue
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from engram_bus.codec import UNREADABLE
from engram_bus.log.record import RecordError
from engram_bus.projections.contract import Damaged
from engram_bus.projections.search.embedders.contract import Embedder, EmbedderError, EmbedderRefused, Vectors
from engram_bus.projections.search.vectors import KeptRows, Rows

log = logging.getLogger(__name__)

VERSION = "late-1"
BATCH_UNITS = 32
QUERY_SECONDS = 2.0
"""How long a search waits for the embedder; then it is answered without."""
AWAITED_UNITS = 64
"""So few are waited for, that a unit is found by its meaning as soon as it is acknowledged."""
MISSING_UNITS_MAX = 1_000
"""With more units without a vector, the ranking would be of what happens to have one."""
PAUSE_SECONDS = 1.0
"""After the embedder failed, before it is asked again; doubled each time."""
PAUSE_SECONDS_MAX = 60.0
_QUERIES_KEPT = 256
_LATE = f"no answer within {QUERY_SECONDS:g} seconds"


class Wanted(msgspec.Struct, frozen=True):
    """A unit that is to get its vector."""

    seq: int
    id: str
    text: str


class Units(msgspec.Struct, frozen=True):
    """How the index tells which its units are."""

    count: Callable[[], int]
    wanted: Callable[[int, int], Sequence[Wanted]]
    """From which number on, and at most how many."""


class Late:
    """Called from one thread; the embedder runs in two others (texts of units, and queries), which `wakes` tells of."""

    def __init__(
        self, path: Path, embedder: Embedder, units: Units, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.trouble: str | None = None
        """Why it is out of use, if it failed last time."""
        self.wakes, self._done = socket.socketpair()
        self.wakes.setblocking(False)
        self.path = path
        self._embedder = embedder
        self.units = units
        """Of the index that is ranked: another one of the same log has the same."""
        self._now = now
        self._kept = _Kept(path)
        self._is_known = False
        self._background, self._asking = _Worker("units"), _Worker("queries")
        self._batch: tuple[Sequence[Wanted], Future[Vectors]] | None = None
        self._query: Future[Vectors] | None = None
        self._again_at = 0.0
        self._pause = PAUSE_SECONDS
        self._queries: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    @property
    def name(self) -> str:
        return self._embedder.name

    @property
    def missing(self) -> int:
        """Units of the index without a vector."""
        return max(0, self.units.count() - self._kept.count)

    @property
    def count(self) -> int:
        """Units with a vector: the first ones."""
        return self._kept.count

    @property
    def rows(self) -> Rows:
        """Their vectors, where `vector_of` gave something to compare them with."""
        return self._kept.rows

    def work(self) -> float | None:
        """Take what came, ask for more. Gives the seconds after which to call again; None: as soon as `wakes` says."""
        self._drain()
        if not self._is_ours():
            return None
        if self._batch is not None and self._batch[1].done():
            self._take()
        if self._batch is None and self.missing and self._now() >= self._again_at:
            self._ask()
        if self._batch is None and self.missing:
            return max(0.0, self._again_at - self._now())
        return None

    def vector_of(self, query: str) -> NDArray[np.float32] | None:
        """Where a query is; None if it cannot be said in time, or too few units have a vector to compare with."""
        until = self._now() + QUERY_SECONDS
        if not self._is_ours():
            return None
        if self._now() >= self._again_at:
            self._await_units(until)
        if self._kept.count == 0 or self.missing > MISSING_UNITS_MAX:
            return None
        known = self._queries.get(query)
        if known is not None:
            self._queries.move_to_end(query)
            return known
        if self._now() < self._again_at or (self._query is not None and not self._query.done()):
            return None
        self._query = self._asking.call(lambda: self._embedder.embed([query]))
        vectors = self._outcome(self._query, max(0.0, until - self._now()))
        if vectors is None:
            return None
        vector: NDArray[np.float32] = vectors[0]
        self._queries[query] = vector
        if len(self._queries) > _QUERIES_KEPT:
            self._queries.popitem(last=False)
        return vector

    def _is_ours(self) -> bool:
        """Whether the rows are of this index's units, as far as it is built; those of another log are made again."""
        newest = self._kept.newest
        if not self._is_known and newest is not None:
            if self.units.count() < newest.count:
                return False
            read = self._read(newest.count - 1, 1)
            if read is None:
                return False
            last = read[0]
            if (last.seq, last.id) != (newest.seq, newest.id):
                log.warning("the vectors in %s are of another log, and made again", self._kept.path)
                self._kept.clear()
        self._is_known = True
        return True

    def _read(self, first: int, count: int) -> Sequence[Wanted] | None:
        """Units, unless the log is damaged there."""
        try:
            return self.units.wanted(first, count)
        except RecordError as exc:
            self._failed(f"a unit that it needs cannot be read: {exc}")
            return None

    def _await_units(self, until: float) -> None:
        """If there are few to wait for, and it is not known to be in vain."""
        while 0 < self.missing <= AWAITED_UNITS and self._now() < until:
            self.work()
            if self._batch is None:
                return
            try:
                self._batch[1].exception(max(0.0, until - self._now()))
            except TimeoutError:
                self._failed(_LATE)
                return
            self.work()

    def _ask(self) -> None:
        wanted = self._read(self._kept.count, BATCH_UNITS)
        if wanted is None:
            return
        texts = [one.text for one in wanted]
        future = self._background.call(lambda: self._embedder.embed(texts))
        future.add_done_callback(lambda _: self._wake())
        self._batch = (wanted, future)

    def _take(self) -> None:
        assert self._batch is not None
        wanted, future = self._batch
        self._batch = None
        vectors = self._outcome(future, 0.0)
        if vectors is None:
            return
        try:
            self._kept.append(wanted, vectors)
        except OSError as exc:
            self._kept = _Kept(self._kept.path)
            self._failed(f"its vectors cannot be kept: {exc}")

    def _outcome(self, future: Future[Vectors], seconds: float) -> Vectors | None:
        """What the embedder gave, if anything."""
        try:
            vectors = future.result(seconds)
            self._kept.require(vectors.shape[1])
        except TimeoutError:
            self._failed(_LATE)
            return None
        except EmbedderError as exc:
            self._failed(str(exc))
            return None
        if self.trouble is not None:
            log.warning("search goes on with %s", self.name)
        self.trouble, self._pause, self._again_at = None, PAUSE_SECONDS, 0.0
        return vectors

    def _failed(self, problem: str) -> None:
        """It is left alone for a while."""
        if self.trouble is None:
            log.warning("search goes on without %s: %s", self.name, problem)
        self.trouble = problem
        self._again_at = self._now() + self._pause
        self._pause = min(2 * self._pause, PAUSE_SECONDS_MAX)

    def _wake(self) -> None:
        try:
            self._done.send(b"!", socket.MSG_DONTWAIT)
        except OSError:
            pass  # Full: it is awake; closed: nobody listens.

    def _drain(self) -> None:
        try:
            self.wakes.recv(4096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """What is on its way is not waited for."""
        self._background.end()
        self._asking.end()
        self._embedder.close()
        self.wakes.close()
        self._done.close()


class _Newest(msgspec.Struct, frozen=True):
    """Which rows count, and of which unit the newest is."""

    dimension: int
    count: int
    seq: int
    id: str
    crc: int | None = None
    """Of the rows' file: another one may be whole, too. None where an earlier version wrote them."""


class _Kept:
    """Rows that outlive a restart, as many as `newest` says, which is written after them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.newest: _Newest | None = None
        self._rows: KeptRows | None = None
        path.mkdir(parents=True, exist_ok=True)
        try:
            newest = msgspec.json.decode((path / "newest").read_bytes(), type=_Newest)
            rows = KeptRows(path, dimension=newest.dimension, count=newest.count)
            if newest.crc not in (None, rows.stamp.crc):
                raise Damaged(f"{path / 'rows'} is not the file that was written")
            self._rows, self.newest = rows, newest
        except FileNotFoundError as exc:
            if (path / "rows").exists():
                log.warning("the vectors in %s are made again: %s", path, exc)
        except (Damaged, ValueError, *UNREADABLE) as exc:
            log.warning("the vectors in %s are made again: %s", path, exc)

    @property
    def count(self) -> int:
        return 0 if self.newest is None else self.newest.count

    @property
    def rows(self) -> Rows:
        assert self._rows is not None, "only what there is, is looked through"
        return self._rows.rows

    def require(self, dimension: int) -> None:
        """Rows are all of one dimension: the first one's. Raises EmbedderRefused."""
        if self.newest is not None and dimension != self.newest.dimension:
            raise EmbedderRefused(
                f"vectors of {dimension} numbers come, and what is indexed has {self.newest.dimension}: another model "
                f"by the same name? Then remove {self.path}"
            )

    def append(self, units: Sequence[Wanted], vectors: Vectors) -> None:
        """Durable when it returns."""
        if self._rows is None:
            self._rows = KeptRows(self.path, dimension=vectors.shape[1], count=0)
        self._rows.add(vectors)
        self._rows.flush()
        count, crc = self.count + len(units), self._rows.stamp.crc
        self.newest = _Newest(vectors.shape[1], count, units[-1].seq, units[-1].id, crc)
        written = self.path / "newest.new"
        with written.open("wb") as file:
            file.write(msgspec.json.encode(self.newest))
            file.flush()
            os.fsync(file.fileno())
        written.replace(self.path / "newest")

    def clear(self) -> None:
        (self.path / "newest").unlink(missing_ok=True)
        self.newest = self._rows = None


class _Worker:
    """One thread that does what it is told, one after another, and does not hold up the process's end."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Vectors], Future[Vectors]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=f"embedder, {name}", daemon=True).start()

    def call(self, function: Callable[[], Vectors]) -> Future[Vectors]:
        future: Future[Vectors] = Future()
        self._calls.put((function, future))
        return future

    def end(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            try:
                future.set_result(function())
            except BaseException as exc:
                future.set_exception(exc)
