"""The vector leg: an exact scan over int8 rows, row n of the n-th unit, kept in a file of their own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_bus.projections.search.tables import Growing, Table

BLOCK_ROWS = 8_192
"""Rows widened at a time: what the processor's cache holds."""
WIDE = 0.5
"""Of all rows: where more are let through, scanning all is cheaper than picking them."""
DIGITS = 4
"""Of a score that count: what lies behind them depends on which rows were multiplied together, so that without this
the order of equal texts would."""
_NONE = -2.0
"""Below every cosine."""

Places = NDArray[np.intp]
Query = NDArray[np.float32]


class Rows:
    """Vectors that are looked through, with their scales. A mask may be longer than they are."""

    def __init__(self, vectors: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        self._vectors = vectors
        self._scales = scales

    def nearest(self, query: Query, mask: NDArray[np.bool_] | None, limit: int) -> tuple[Places, list[float]]:
        """The nearest by cosine among those that the mask lets through (None: all); of equally near ones the newest."""
        mask = None if mask is None else mask[: len(self._vectors)]
        if mask is None or np.count_nonzero(mask) >= WIDE * len(mask):
            cosines = self._cosines(query, None)
            if mask is not None:
                cosines[~mask] = _NONE
            best = _best(cosines, limit)
            return best, _told(cosines[best])
        places = np.flatnonzero(mask)
        cosines = self._cosines(query, places)
        best = _best(cosines, limit)
        return places[best], _told(cosines[best])

    def cosines(self, query: Query, places: Places) -> list[float | None]:
        """The cosine of each of these; None where there is no vector."""
        return [None if cosine == _NONE else cosine for cosine in _told(self._cosines(query, places))]

    def _cosines(self, query: Query, places: Places | None) -> NDArray[np.float32]:
        vectors = self._vectors
        count = len(vectors) if places is None else len(places)
        cosines = np.empty(count, np.float32)
        for first in range(0, count, BLOCK_ROWS):
            part = slice(first, first + BLOCK_ROWS)
            block = vectors[part] if places is None else vectors[places[part]]
            cosines[part] = block.astype(np.float32) @ query
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

    @property
    def rows(self) -> Rows:
        """Those there are now."""
        return Rows(self._table.column("vector"), self._scales.array)

    def add(self, vector: NDArray[np.float32]) -> None:
        """Keep the vector of the next unit."""
        row = quantized(vector)
        self._table.add(vector=row)
        self._scales.add(scales_of(row[None])[0])

    def flush(self) -> None:
        """Make what was added durable."""
        self._table.flush()


def quantized(vector: NDArray[np.float32]) -> NDArray[np.int8]:
    """As whole numbers: a length does not matter for a cosine."""
    peak = float(np.abs(vector).max())
    return np.rint(vector * (127.0 / peak)).astype(np.int8) if peak > 0 else np.zeros(len(vector), np.int8)


def scales_of(vectors: NDArray[np.int8]) -> NDArray[np.float32]:
    """1 / length of each; 0 of a vector of zeros, which is none."""
    scales = np.empty(len(vectors), np.float32)
    for first in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[first : first + BLOCK_ROWS].astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
        scales[first : first + BLOCK_ROWS] = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
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
