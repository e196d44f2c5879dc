"""The vector leg: a scan over int8 rows, row n of the n-th unit, kept in a file of their own.

Up to EXACT_ROWS_MAX that are let through are all compared; of more, the CANDIDATES whose sketches are closest. Which
they are depends on the query and on the rows let through, never on how or when the index was made.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_bus.projections.search.commits import Stamp
from engram_bus.projections.search.sketches import Sketches
from engram_bus.projections.search.tables import Growing, Table

EXACT_ROWS_MAX = 50_000
"""Three milliseconds of comparing. From here on, comparing sketches first costs less, at any size of the index."""
CANDIDATES = 20_000
"""Of a million rows, .98 of the 10 and .93 of the 200 nearest are among so many where half of the queries are about
something else altogether, and .998 and .996 where they are about what is there. Comparing them takes three
milliseconds; 10,000 would take half of that, and lose another .05 of the 200."""
BLOCK_NUMBERS = 262_144
"""Widened at a time: what the processor's cache holds."""
DIGITS = 4
"""Of a score that count, so that equal texts are equally near."""
_NONE = -2.0
"""Below every cosine."""

assert CANDIDATES <= EXACT_ROWS_MAX, "there are as many to choose from"

Places = NDArray[np.intp]
Query = NDArray[np.float32]


class Rows:
    """Vectors that are looked through, with their scales and sketches. A mask may be longer than they are."""

    def __init__(self, vectors: NDArray[np.int8], scales: NDArray[np.float32], sketches: Sketches) -> None:
        self._vectors = vectors
        self._scales = scales
        self._sketches = sketches

    @property
    def count(self) -> int:
        return len(self._vectors)

    def nearest(self, query: Query, mask: NDArray[np.bool_] | None, limit: int) -> tuple[Places, list[float]]:
        """The nearest by cosine among those that the mask lets through (None: all); of equally near ones the newest."""
        compared = self._compared(query, None if mask is None else mask[: len(self._vectors)])
        cosines = self._cosines(query, compared)
        best = _best(cosines, limit)
        return best if compared is None else compared[best], _told(cosines[best])

    def cosines(self, query: Query, places: Places) -> list[float | None]:
        """The cosine of each of these; None where there is no vector."""
        return [None if cosine == _NONE else cosine for cosine in _told(self._cosines(query, places))]

    def _compared(self, query: Query, mask: NDArray[np.bool_] | None) -> Places | None:
        """Which are compared; None for all."""
        places = None if mask is None else np.flatnonzero(mask)
        if len(self._vectors if places is None else places) > EXACT_ROWS_MAX:
            return self._sketches.nearest(quantized(query), places, CANDIDATES)
        return places

    def _cosines(self, query: Query, places: Places | None) -> NDArray[np.float32]:
        vectors = self._vectors
        count = len(vectors) if places is None else len(places)
        cosines = np.empty(count, np.float32)
        step = max(1, BLOCK_NUMBERS // vectors.shape[1])
        for first in range(0, count, step):
            part = slice(first, first + step)
            block = vectors[part] if places is None else vectors.take(places[part], axis=0)
            # Not a matrix product: it would take all cores, and its last digits depend on which rows stand together.
            np.vecdot(block.astype(np.float32), query, out=cosines[part])
        scales = self._scales if places is None else self._scales[places]
        cosines *= scales
        cosines[scales == 0] = _NONE
        return cosines


class KeptRows:
    """The vectors of one embedder in a file. Opened with the first `count`. Raises Damaged where they are not there."""

    def __init__(self, path: Path, *, dimension: int, count: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._table = Table(path / "rows", [("vector", "i1", (dimension,))], count)
        self._scales = Growing(np.dtype(np.float32), scales_of(self._table.column("vector")))
        self._sketches = Sketches(dimension)
        self._sketch()

    @property
    def stamp(self) -> Stamp:
        """Of its file, as it was flushed."""
        return self._table.stamp

    @property
    def rows(self) -> Rows:
        """Those there are now."""
        self._sketch()
        return Rows(self._table.column("vector"), self._scales.array, self._sketches)

    def kept(self, places: Places) -> NDArray[np.int8]:
        """The rows of these units, as they are kept."""
        return np.asarray(self._table.column("vector")[places])

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Keep the vectors of the next units, a row each."""
        rows = quantized(vectors)
        self._table.extend(vector=rows)
        self._scales.extend(scales_of(rows))

    def flush(self) -> None:
        """Make what was added durable."""
        self._sketch()
        self._table.flush()

    def _sketch(self) -> None:
        """Many at a time, which costs a hundredth of one by one."""
        self._sketches.add(self._table.column("vector")[self._sketches.count :])


def quantized(vectors: NDArray[np.float32]) -> NDArray[np.int8]:
    """One vector or a row each, as whole numbers: a length does not matter for a cosine."""
    peaks = np.abs(vectors).max(axis=-1, keepdims=True).astype(np.float64)
    factors = np.divide(127.0, peaks, out=np.zeros_like(peaks), where=peaks > 0).astype(np.float32)
    rows: NDArray[np.int8] = np.rint(vectors * factors).astype(np.int8)
    return rows


def scales_of(vectors: NDArray[np.int8]) -> NDArray[np.float32]:
    """1 / length of each; 0 of a vector of zeros, which is none."""
    scales = np.empty(len(vectors), np.float32)
    step = max(1, BLOCK_NUMBERS // vectors.shape[1])
    for first in range(0, len(vectors), step):
        block = vectors[first : first + step].astype(np.float32)
        lengths = np.sqrt(np.vecdot(block, block))
        scales[first : first + step] = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return scales


def _best(cosines: NDArray[np.float32], limit: int) -> Places:
    """The places of the largest, as far as their digits count; of equal ones the last. None that is no cosine."""
    if limit < len(cosines):
        least = np.partition(cosines, -limit)[-limit]
        places = np.flatnonzero(cosines > max(least - 10.0**-DIGITS, _NONE))
    else:
        places = np.flatnonzero(cosines > _NONE)
    order = np.lexsort((-places, -np.array(_told(cosines[places]))))
    return places[order[:limit]]


def _told(cosines: Sequence[float] | NDArray[np.float32]) -> list[float]:
    return [round(float(one), DIGITS) for one in cosines]
