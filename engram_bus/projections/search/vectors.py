"""The vector leg: one int8 row per unit in a file that only grows, and an exact scan over it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 8_192
"""Rows widened at a time: what the processor's cache holds."""


class Rows:
    """The vectors of one embedder, row n of unit seqs[n]. Appended before the index that counts them is committed."""

    def __init__(self, path: Path, *, dimension: int, count: int) -> None:
        """Open with the first `count` rows; what lies after them was never counted, and goes. Raises ValueError where
        there are fewer."""
        path.mkdir(parents=True, exist_ok=True)
        self._vectors = _Growing(path / "vectors.i8", np.dtype((np.int8, (dimension,))), count)
        self._seqs = _Growing(path / "seqs.u64", np.dtype(np.uint64), count)

    @property
    def count(self) -> int:
        return self._vectors.count

    @property
    def seqs(self) -> NDArray[np.uint64]:
        """Which unit each row is of; they grow."""
        return self._seqs.array

    def add(self, vector: NDArray[np.float32], seq: int) -> int:
        """Keep one vector; gives its row, from 1."""
        peak = float(np.abs(vector).max())
        self._vectors.add(np.rint(vector * (127.0 / peak)).astype(np.int8))
        self._seqs.add(np.array(seq, np.uint64))
        return self.count

    def flush(self) -> None:
        """Make what was added durable."""
        self._vectors.flush()
        self._seqs.flush()

    def close(self) -> None:
        self._vectors.close()
        self._seqs.close()

    def nearest(self, query: NDArray[np.float32], rows: NDArray[np.intp] | None, limit: int) -> dict[int, float]:
        """The nearest of these rows (None: all) by cosine: seq -> cosine."""
        if self.count == 0 or (rows is not None and len(rows) == 0):
            return {}
        cosines = self._cosines(query, rows)
        best = np.argpartition(-cosines, limit - 1)[:limit] if limit < len(cosines) else np.arange(len(cosines))
        chosen = best if rows is None else rows[best]
        seqs = self._seqs.array[chosen]
        return dict(zip(seqs.tolist(), cosines[best].tolist(), strict=True))

    def cosines_of(self, query: NDArray[np.float32], seqs: list[int]) -> dict[int, float]:
        """The cosine of each of these units that has a vector."""
        known = self._seqs.array
        places = np.searchsorted(known, np.array(seqs, np.uint64))
        rows = np.array(
            [at for at, seq in zip(places, seqs, strict=True) if at < len(known) and known[at] == seq], np.intp
        )
        return self.nearest(query, rows, len(rows)) if len(rows) else {}

    def _cosines(self, query: NDArray[np.float32], rows: NDArray[np.intp] | None) -> NDArray[np.float32]:
        vectors = self._vectors.array
        count = len(vectors) if rows is None else len(rows)
        cosines = np.empty(count, np.float32)
        for first in range(0, count, BLOCK_ROWS):
            part = slice(first, min(first + BLOCK_ROWS, count))
            block = (vectors[part] if rows is None else vectors[rows[part]]).astype(np.float32)
            lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
            cosines[part] = (block @ query) / np.maximum(lengths, 1.0)
        return cosines


class _Growing:
    """An array in memory and in a file, to whose end both grow."""

    def __init__(self, path: Path, dtype: np.dtype[Any], count: int) -> None:
        self._dtype = dtype
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        size = count * dtype.itemsize
        if os.fstat(self._file).st_size < size:
            os.close(self._file)
            raise ValueError(f"{path} holds fewer than {count} rows")
        os.ftruncate(self._file, size)
        base = dtype.base
        read = np.fromfile(path, base).reshape((count, *dtype.shape)) if count else np.empty((0, *dtype.shape), base)
        self._rows = np.empty((max(1_024, count + count // 4), *dtype.shape), base)
        self._rows[:count] = read
        self.count = count
        self._written = count

    @property
    def array(self) -> NDArray[Any]:
        return self._rows[: self.count]

    def add(self, row: NDArray[Any]) -> None:
        if self.count == len(self._rows):
            grown = np.empty((len(self._rows) * 3 // 2, *self._rows.shape[1:]), self._rows.dtype)
            grown[: self.count] = self._rows
            self._rows = grown
        self._rows[self.count] = row
        self.count += 1

    def flush(self) -> None:
        if self._written < self.count:
            raw = self._rows[self._written : self.count].tobytes()
            os.pwrite(self._file, raw, self._written * self._dtype.itemsize)
            os.fdatasync(self._file)
            self._written = self.count

    def close(self) -> None:
        os.close(self._file)
