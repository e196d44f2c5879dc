"""The segments of a backup: records are added to the last one, and read back with every checksum looked at."""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from engram_bus.backup.manifest import SEGMENTS, BackupDamaged, Manifest, Segment, new_digest, segment_name
from engram_bus.limits import BACKUP_FLUSH_BYTES
from engram_bus.log.directory import sync_directory
from engram_bus.log.record import Record, RecordError, parse
from engram_bus.log.verify import Damage

_MAGIC = b"engrambk"
_BEGINNING = struct.Struct(">8sQ")
_FRAME = struct.Struct(">II")
_BUFFER_BYTES = 1 << 20


class SegmentWriter:
    """One segment that is added to, from where its backup says it ends."""

    def __init__(self, folder: Path, file: BinaryIO, first_seq: int, last_seq: int) -> None:
        self._folder = folder
        self._file = file
        self._digest = new_digest()
        self._unflushed_bytes = 0
        self.first_seq = first_seq
        self.last_seq = last_seq
        self.bytes = 0

    @classmethod
    def begin(cls, path: Path, first_seq: int) -> Self:
        """A new one; what an earlier run left under its name was never part of the backup."""
        folder = path / SEGMENTS
        folder.mkdir(exist_ok=True)
        writer = cls(folder, (folder / segment_name(first_seq)).open("wb"), first_seq, first_seq - 1)
        writer._put(_BEGINNING.pack(_MAGIC, first_seq))
        return writer

    @classmethod
    def go_on(cls, path: Path, segment: Segment) -> Self:
        """Behind what the backup holds of one; what lies further was cut off. Raises BackupDamaged."""
        folder = path / SEGMENTS
        try:
            file = (folder / segment.name).open("r+b")
        except FileNotFoundError as exc:
            raise BackupDamaged(path, Damage(_file(segment), "it is missing")) from exc
        try:
            writer = cls(folder, file, segment.first_seq, segment.last_seq)
            while writer.bytes < segment.bytes and (
                content := file.read(min(_BUFFER_BYTES, segment.bytes - writer.bytes))
            ):
                writer._digest.update(content)
                writer.bytes += len(content)
            if writer.bytes < segment.bytes or writer._digest.hexdigest() != segment.blake2b:
                raise BackupDamaged(path, Damage(_file(segment), "it does not match its checksum"))
            file.truncate(segment.bytes)
            file.seek(segment.bytes)
        except BaseException:
            file.close()
            raise
        return writer

    def add(self, record: Record) -> None:
        """Behind the last one. In the file, not durable yet."""
        assert record.unit.seq == self.last_seq + 1, f"{record.unit.seq} does not follow {self.last_seq}"
        size = len(record.raw).to_bytes(4, "big")
        self._put(_FRAME.pack(len(record.raw), zlib.crc32(record.raw, zlib.crc32(size))) + record.raw)
        self.last_seq += 1

    def flush(self) -> Segment:
        """Make it durable, name and all; what a manifest may now say of it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        sync_directory(self._folder)
        sync_directory(self._folder.parent)
        return Segment(
            segment_name(self.first_seq), self.first_seq, self.last_seq, self.bytes, self._digest.hexdigest()
        )

    def close(self) -> None:
        self._file.close()

    def _put(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.bytes += len(content)
        self._unflushed_bytes += len(content)
        if self._unflushed_bytes >= BACKUP_FLUSH_BYTES:
            # In small pieces: one large flush would hold up those of a bus on the same disk.
            self._unflushed_bytes = 0
            self._file.flush()
            os.fdatasync(self._file.fileno())


def records(path: Path, manifest: Manifest, *, first: int = 1) -> Iterator[Record]:
    """The records of a backup from the segment on that holds `first`. Raises BackupDamaged."""
    for segment in manifest.segments:
        if segment.last_seq >= first:
            yield from segment_records(path, segment)


def segment_records(path: Path, segment: Segment) -> Iterator[Record]:
    """The records of one segment; at its end, that it is the one that was written. Raises BackupDamaged."""

    def damaged(what: str, seq: int | None = None) -> BackupDamaged:
        return BackupDamaged(path, Damage(_file(segment), what, seq))

    try:
        with (path / SEGMENTS / segment.name).open("rb", buffering=_BUFFER_BYTES) as file:
            digest = new_digest()
            left = segment.bytes - _BEGINNING.size
            begins = file.read(_BEGINNING.size)
            if begins != _BEGINNING.pack(_MAGIC, segment.first_seq):
                raise damaged("it does not begin as it was written")
            digest.update(begins)
            for seq in range(segment.first_seq, segment.last_seq + 1):
                head = file.read(_FRAME.size)
                size, crc = _FRAME.unpack(head) if len(head) == _FRAME.size else (left, 0)
                raw = file.read(size) if size <= left - _FRAME.size else b""
                if len(raw) < size or zlib.crc32(raw, zlib.crc32(head[:4])) != crc:
                    raise damaged("it does not match its checksum", seq)
                digest.update(head)
                digest.update(raw)
                left -= _FRAME.size + size
                try:
                    yield parse(raw, seq)
                except RecordError as exc:
                    raise damaged(str(exc), seq) from exc
            if left or digest.hexdigest() != segment.blake2b:
                raise damaged("it does not match its checksum")
    except OSError as exc:
        raise damaged(f"it cannot be read: {exc.strerror}") from exc


def extra_bytes(path: Path, segment: Segment) -> int:
    """What lies behind the end of a segment: left by a run that was cut off."""
    try:
        return max(0, (path / SEGMENTS / segment.name).stat().st_size - segment.bytes)
    except OSError:
        return 0


def _file(segment: Segment) -> str:
    return f"{SEGMENTS}/{segment.name}"
