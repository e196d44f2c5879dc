"""Tantivy's files: those of a commit are kept by names of their own, and laid out for it to work on at each start.

    segments/  the files of the newest commit, each a second name (a link) of one that tantivy wrote
    work/      where tantivy works, made anew at each start

Tantivy merges segments when it likes, in threads of its own, and removes what it merged. So nobody can say beforehand
which files it has. What is in `segments` stays what was committed, whatever happens meanwhile; a merge counts from the
next commit on. A segment's file is written once and never changed.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import msgspec

from engram_bus.codec import UNREADABLE
from engram_bus.limits import MIB
from engram_bus.log.directory import sync_directory
from engram_bus.projections.contract import Damaged
from engram_bus.projections.search.commits import Commit, Stamp

SEGMENTS = "segments"
_PARTS = ("fast", "fieldnorm", "idx", "pos", "store", "term")
"""The files of one segment."""
_META = "meta.json"
_MANAGED = ".managed.json"
"""Which files are tantivy's to remove."""
_WRITER = ".tantivy-writer.lock"
_LENGTH_BYTES = 8
"""At the end of a file: how long its footer is, and a number that is always the same."""
_FOOTER_BYTES_MAX = 1_024
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK})


class Segments:
    """The files of one keyword index. Raises Damaged where they are not those of the commit, OSError."""

    def __init__(self, path: Path, commit: Commit) -> None:
        """Lay out what was committed. Raises BlockingIOError where another one works on it."""
        self._kept = path / SEGMENTS
        self.work = path / "work"
        self._stamps = commit.segments
        self._kept.mkdir(parents=True, exist_ok=True)
        self._check(self._kept)
        _refuse_in_use(self.work)
        _clear(self.work)
        for name in commit.segments:
            _name_also(self._kept / name, self.work / name)
        if commit.meta:
            (self.work / _META).write_text(commit.meta)
            (self.work / _MANAGED).write_bytes(msgspec.json.encode([*commit.segments, _META]))

    def _check(self, path: Path) -> None:
        for name, stamp in self._stamps.items():
            if not (path / name).is_file() or _as_it_is(path / name) != stamp:
                raise Damaged(f"{path / name} is not the file that was committed")

    def check(self) -> None:
        """Whether those that tantivy has open are what it wrote."""
        self._check(self._kept)
        for name in _files_of(self._meta()):
            if _as_it_is(self.work / name) != _as_written(self.work / name):
                raise Damaged(f"{self.work / name} is not what was written")

    def keep(self) -> tuple[str, dict[str, Stamp]]:
        """What tantivy committed, durably: its own words, and the files. What was kept before is still there."""
        meta = self._meta()
        while (stamps := self._kept_of(meta)) is None:
            # Merged meanwhile: other segments say the same.
            before, meta = meta, self._meta()
            if meta == before:
                raise Damaged(f"{self.work} has lost a file")
        sync_directory(self._kept)
        return meta, stamps

    def _kept_of(self, meta: str) -> dict[str, Stamp] | None:
        """None where one of them is not there any more."""
        try:
            return {name: self._stamps.get(name) or self._keep(name) for name in _files_of(meta)}
        except FileNotFoundError:
            return None

    def drop_others(self, stamps: dict[str, Stamp]) -> None:
        """From now on only these count."""
        self._stamps = stamps
        for file in self._kept.iterdir():
            if file.name not in stamps:
                file.unlink()

    def _keep(self, name: str) -> Stamp:
        _name_also(self.work / name, self._kept / name)
        return _as_written(self._kept / name)

    def _meta(self) -> str:
        return (self.work / _META).read_text()


def _refuse_in_use(work: Path) -> None:
    """Before it is cleared away: whoever writes it holds tantivy's own lock."""
    try:
        lock = os.open(work / _WRITER, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise BlockingIOError(errno.EAGAIN, f"another process writes {work}") from exc
    finally:
        os.close(lock)


def _clear(work: Path) -> None:
    if work.is_dir():
        shutil.rmtree(work)
    else:
        work.unlink(missing_ok=True)
    work.mkdir()


def _name_also(file: Path, name: Path) -> None:
    """Give a file a second name, or, where the file system has none, a copy."""
    try:
        name.hardlink_to(file)
    except FileExistsError:
        pass  # Of a commit that did not get to its end.
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        _copy(file, name)


def _copy(file: Path, name: Path) -> None:
    with file.open("rb") as content, name.open("wb") as copy:
        shutil.copyfileobj(content, copy)
        copy.flush()
        os.fsync(copy.fileno())


def _files_of(meta: str) -> Iterable[str]:
    try:
        segments = msgspec.json.decode(meta, type=_Meta).segments
    except UNREADABLE as exc:
        raise Damaged(f"{_META} is not what was written: {exc}") from exc
    return [f"{segment.segment_id.replace('-', '')}.{part}" for segment in segments for part in _PARTS]


def _as_written(file: Path) -> Stamp:
    """By the checksum of all before it that stands at its end. Raises Damaged."""
    with file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(0, size - _FOOTER_BYTES_MAX))
        tail = content.read()
    footer = tail[-_LENGTH_BYTES - int.from_bytes(tail[-_LENGTH_BYTES:-4], "little") :]
    try:
        crc = msgspec.json.decode(footer[:-_LENGTH_BYTES], type=_Footer).crc
    except UNREADABLE as exc:
        raise Damaged(f"{file} has no checksum") from exc
    return Stamp(size, crc32(footer, crc))


def _as_it_is(file: Path) -> Stamp:
    size, crc = 0, 0
    with file.open("rb") as content:
        while part := content.read(MIB):
            size, crc = size + len(part), crc32(part, crc)
    return Stamp(size, crc)


class _Segment(msgspec.Struct):
    segment_id: str


class _Meta(msgspec.Struct):
    segments: list[_Segment]


class _Footer(msgspec.Struct):
    crc: int
