"""Columns in memory whose rows are appended to a file: a process that dies leaves whole rows behind, in their order."""

import os
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from engram_bus.projections.contract import Damaged
from engram_bus.projections.search.commits import Stamp

Array = NDArray[Any]

_CRC = "crc"
_CRC_BYTES = 4


class AppendedFile:
    """A file of which the first `size_bytes` count; what lies behind them is cut off."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        with path.open("ab") as file:
            if file.tell() < size_bytes:
                raise Damaged(f"{path} has {file.tell()} bytes of {size_bytes}")
            file.truncate(size_bytes)
        self.raw = path.read_bytes()
        """What was read, until it is forgotten."""
        self.crc = crc32(self.raw)
        self._written_bytes = size_bytes

    def forget(self) -> None:
        self.raw = b""

    def append(self, raw: bytes) -> None:
        """Durable when it returns. What failed can be tried again: it lands in the same place."""
        if not raw:
            return
        # Opened anew: it fails where someone has taken the file away.
        file = os.open(self._path, os.O_WRONLY)
        try:
            written = os.pwrite(file, raw, self._written_bytes)
            if written < len(raw):
                raise OSError(f"{self._path} took {written} of {len(raw)} bytes")
            os.fdatasync(file)
        finally:
            os.close(file)
        self._written_bytes += len(raw)
        self.crc = crc32(raw, self.crc)

    @property
    def stamp(self) -> Stamp:
        """Of what was written."""
        return Stamp(self._written_bytes, self.crc)


class Table:
    """Rows of named fields. The last row of each flush holds a checksum of all the file before it."""

    def __init__(self, path: Path, fields: list[Any], count: int) -> None:
        """Open with the first `count` rows, which were the last of a flush. Raises Damaged."""
        self._dtype = np.dtype([*fields, (_CRC, "<u4")])
        self._file = AppendedFile(path, count * self._dtype.itemsize)
        rows = np.frombuffer(self._file.raw, self._dtype)
        if count and int(rows[_CRC][-1]) != crc32(memoryview(self._file.raw)[:-_CRC_BYTES]):
            raise Damaged(f"{path} is not what was written")
        assert self._dtype.fields is not None
        self._columns = {name: Growing(field[0], rows[name]) for name, field in self._dtype.fields.items()}
        self.count = self._written = count
        self._file.forget()

    @property
    def stamp(self) -> Stamp:
        """Of its file, as it was flushed. (The CRC of what ends with its own CRC is the same for all files.)"""
        return Stamp(self._file.stamp.size_bytes, int(self.column(_CRC)[self._written - 1]) if self._written else 0)

    @property
    def unwritten(self) -> int:
        return self.count - self._written

    def column(self, name: str) -> Array:
        return self._columns[name].array

    def last(self, name: str) -> int:
        """The newest value; 0 where there is none."""
        return int(self.column(name)[-1]) if self.count else 0

    def set_last(self, name: str, value: int) -> None:
        self.column(name)[-1] = value

    def add(self, **values: Any) -> None:
        """One more row; what is not named is 0."""
        for name, column in self._columns.items():
            column.add(values.get(name, 0))
        self.count += 1

    def extend(self, **values: Array) -> None:
        """More rows, all of the same number; what is not named is 0."""
        count = len(next(iter(values.values())))
        for name, column in self._columns.items():
            column.extend(values[name] if name in values else np.zeros((count, *column.array.shape[1:])))
        self.count += count

    def flush(self) -> None:
        """Make what was added durable."""
        if self.unwritten:
            self.set_last(_CRC, crc32(memoryview(self._packed())[:-_CRC_BYTES], self._file.crc))
            self._file.append(self._packed())
            self._written = self.count

    def _packed(self) -> bytes:
        rows = np.empty(self.unwritten, self._dtype)
        for name, column in self._columns.items():
            rows[name] = column.array[self._written :]
        return rows.tobytes()


class Growing:
    """An array with room at its end."""

    def __init__(self, dtype: np.dtype[Any], first: Array) -> None:
        self.count = len(first)
        self._room = np.empty((max(1_024, self.count + self.count // 4), *dtype.shape), dtype.base)
        self._room[: self.count] = first

    @property
    def array(self) -> Array:
        return self._room[: self.count]

    def add(self, value: Any) -> None:
        """One more at the end."""
        self._make_room(self.count + 1)
        self._room[self.count] = value
        self.count += 1

    def extend(self, values: Array) -> None:
        """More at the end."""
        end = self.count + len(values)
        self._make_room(end)
        self._room[self.count : end] = values
        self.count = end

    def _make_room(self, count: int) -> None:
        if count > len(self._room):
            more = np.empty((max(count, len(self._room) * 3 // 2), *self._room.shape[1:]), self._room.dtype)
            more[: self.count] = self._room[: self.count]
            self._room = more
