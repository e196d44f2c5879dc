"""The newest commits in a file of their own: one flush each makes them durable, before LMDB takes them many at a time.

    offset  bytes
    0       8     magic: what this file is
    8       16    salt, random: no payload can be made to look like a commit
    24      4     CRC-32 of these 24 bytes
    4096    ...   commits, one behind the other

    a commit:
    0       16    the salt
    16      4     CRC-32 of all that follows
    20      4     size of its records
    24      8     seq of the first
    32      32    chain digest before the first
    64      ...   its records: the size of each (4 bytes), and its bytes
    ...           zeros up to a multiple of 8

All numbers are big-endian. Every block was written when the file was made, so a flush has no size, no extent and no
journal to write: it costs half of an append, and a quarter of what LMDB's commit does. When LMDB holds everything, the
file is written over from its start; what is left of earlier commits has seqs that LMDB holds.

A commit that was torn by a crash was never acknowledged, and ends what is found. One that a whole and later one follows
was: the next is only written when it is durable. So that is damage.
"""

import contextlib
import errno
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from engram_bus.limits import SEGMENT_BYTES
from engram_bus.log.directory import sync_directory
from engram_bus.log.record import DIGEST_BYTES, Record, chain_of

SEGMENT = "segment"
"""Its name, beside LMDB's file."""

MISSING = "is missing, and the log was not closed: units may have been in it"
NOT_THE_ONE = "is not the one that the log was left with: what was recorded last lies there"

_MAGIC = b"engramS1"
_SALT_BYTES = 16
_FILE_HEAD = struct.Struct(f">8s{_SALT_BYTES}sI")
_HEAD = struct.Struct(f">{_SALT_BYTES}sIIQ{DIGEST_BYTES}s")
_COVERED_AT = _SALT_BYTES + 4
_SIZE = struct.Struct(">I")
_FIRST_AT = 4_096
_ALIGNED = 8


class SegmentDamaged(Exception):
    """What is found in the file is not what was made durable there."""


class _Commit(NamedTuple):
    """One commit as it lies in the file."""

    first_seq: int
    previous: bytes
    raws: list[bytes]
    end: int

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.raws) - 1


class Segment:
    """An open segment. `offset` is where the next commit goes."""

    def __init__(self, file: Path) -> None:
        """Raises OSError; SegmentDamaged for what is none."""
        self._fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._salt = _salt(os.pread(self._fd, _FILE_HEAD.size, 0))
            self._size_bytes = os.fstat(self._fd).st_size
            if self._size_bytes < SEGMENT_BYTES:
                raise SegmentDamaged(f"has {self._size_bytes} bytes of {SEGMENT_BYTES}: it was cut")
            os.fdatasync(self._fd)  # Who closed it last may not have.
        except BaseException:
            os.close(self._fd)
            raise
        self._at = _FIRST_AT

    @property
    def name(self) -> str:
        """Which segment it is."""
        return self._salt.hex()

    def has_room(self, records: int, size_bytes: int) -> bool:
        """Whether a commit of so many records, of so many bytes together, fits behind those that are there."""
        return self._at + _HEAD.size + size_bytes + records * _SIZE.size + _ALIGNED <= self._size_bytes

    def append(self, records: Sequence[Record], previous: bytes) -> None:
        """Make a commit durable that follows the chain digest `previous`. Raises OSError, and then nothing of it is
        there; or, without an errno, something may be."""
        raws = [part for record in records for part in (_SIZE.pack(len(record.raw)), record.raw)]
        body = b"".join(raws)
        covered = _HEAD.pack(self._salt, 0, len(body), records[0].unit.seq, previous)[_COVERED_AT:]
        head = _HEAD.pack(self._salt, crc32(body, crc32(covered)), len(body), records[0].unit.seq, previous)
        size_bytes = len(head) + len(body)
        try:
            if os.pwrite(self._fd, head + body, self._at) != size_bytes:
                raise OSError(errno.EIO, f"only a part of {size_bytes} bytes was written")
            os.fdatasync(self._fd)
        except OSError as exc:
            if not self._withdraw():
                raise OSError(f"a commit that failed ({exc}) cannot be withdrawn") from exc
            raise
        self._at += -(-size_bytes // _ALIGNED) * _ALIGNED

    def _withdraw(self) -> bool:
        """What was refused must not be found by the next start, nor be before what is appended next."""
        try:
            os.pwrite(self._fd, bytes(_HEAD.size), self._at)
        except OSError:
            return False
        with contextlib.suppress(OSError):  # The next commit goes to the same place, and is flushed or refused itself.
            os.fdatasync(self._fd)
        return True

    def restart(self) -> None:
        """Everything in it is durable elsewhere: begin from its start."""
        self._at = _FIRST_AT

    def close(self, *, is_empty: bool = False) -> None:
        """Where it `is_empty` nothing is found in it any more. That need not be durable: all of it is so elsewhere."""
        if is_empty:
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, _file_head(), 0)  # With another salt.
        os.close(self._fd)


def make_segment(file: Path) -> None:
    """A new segment, durably, in the place of any other. Raises OSError."""
    head = _file_head()
    made = file.with_suffix(".new")
    with made.open("wb") as content:
        content.write(head)
        content.write(bytes(SEGMENT_BYTES - len(head)))  # Not a hole: only blocks that were written cost no journal.
        content.flush()
        os.fsync(content.fileno())
    made.rename(file)
    sync_directory(file.parent)


def renew_segment(file: Path) -> None:
    """Give it another name, durably, so that no copy of before is taken for it; nothing it held is found any more."""
    fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, _file_head(), 0)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def is_segment(file: Path) -> bool:
    """Whether there is one, of its whole size; not, whether what it holds is whole."""
    try:
        Segment(file).close()
    except (OSError, SegmentDamaged):
        return False
    return True


def name_of(content: bytes) -> str:
    """Which segment this is. Raises SegmentDamaged."""
    return _salt(content).hex()


def content_of(file: Path) -> bytes | None:
    """What lies in a segment; None where there is none.

    Beside the process that writes it, this is read before the head of the log is: what the writer takes over meanwhile
    is then found there. Raises OSError.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def records_after(content: bytes, head: int) -> Iterator[tuple[int, bytes]]:
    """The raw records behind `head`, in order. Raises SegmentDamaged behind the last that is whole."""
    salt = _salt(content)
    at, seq, chain = _FIRST_AT, head, b""
    while (commit := _commit_at(content, salt, at)) is not None:
        if chain and (commit.first_seq, commit.previous) != (seq + 1, chain):
            break  # Of an earlier round.
        if commit.first_seq > seq + 1:
            raise SegmentDamaged(f"begins with unit {commit.first_seq}, the log before it ends with {head}")
        for at_seq, raw in enumerate(commit.raws, start=commit.first_seq):
            if at_seq > head:
                yield at_seq, raw
        at, seq, chain = commit.end, commit.last_seq, chain_of(commit.raws[-1])
    newest = max(head, seq)
    if len(content) < SEGMENT_BYTES:
        raise SegmentDamaged(f"has {len(content)} bytes of {SEGMENT_BYTES}: it was cut")
    while (at := content.find(salt, at)) >= 0:
        later = _commit_at(content, salt, at)
        if later is not None and later.last_seq > newest:
            raise SegmentDamaged(f"is damaged behind unit {newest}: unit {later.last_seq} was recorded, and is whole")
        at += 1


def _commit_at(content: bytes, salt: bytes, at: int) -> _Commit | None:
    """The whole commit at this place, if there is one."""
    if len(content) < at + _HEAD.size:
        return None
    found, crc, size_bytes, first_seq, previous = _HEAD.unpack_from(content, at)
    end = at + _HEAD.size + size_bytes
    if found != salt or end > len(content) or crc32(memoryview(content)[at + _COVERED_AT : end]) != crc:
        return None
    raws: list[bytes] = []
    at += _HEAD.size
    while at < end:
        (raw_bytes,) = _SIZE.unpack_from(content, at)
        raws.append(content[at + _SIZE.size : at + _SIZE.size + raw_bytes])
        at += _SIZE.size + raw_bytes
    return _Commit(first_seq, previous, raws, -(-end // _ALIGNED) * _ALIGNED) if raws else None


def _file_head() -> bytes:
    salt = secrets.token_bytes(_SALT_BYTES)
    return _FILE_HEAD.pack(_MAGIC, salt, crc32(_MAGIC + salt))


def _salt(content: bytes) -> bytes:
    if len(content) < _FILE_HEAD.size:
        raise SegmentDamaged(f"has {len(content)} bytes: it was cut")
    magic, salt, crc = _FILE_HEAD.unpack_from(content)
    if magic != _MAGIC or crc32(content[: _FILE_HEAD.size - 4]) != crc:
        raise SegmentDamaged("does not begin as a segment")
    return bytes(salt)
