"""A disk that may lose its power: what lies on it for sure after each step of a trace, and what else may.

The model. What was written to a file is on its way until a flush of that file that began after it has ended; then it is
kept. Of what is on its way, a power cut leaves any part: writes whole or not, in any order, torn at pages of 4 KiB or
sectors of 512 bytes; and the file is as long as any of these writes made it, with zeros where nothing came. Names
(files made, renamed, removed, directories) are on their way likewise:

    strict  until their directory was flushed, which is all that POSIX promises; any of them may be lost, each alone
    usual   as a journal does it (ext4, xfs): in order, and a flush of a file or directory keeps all up to its last one

Neither is gentler than a real disk. Within a sector nothing is torn, and what was once kept does not rot: that is
damage, not loss of power.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple, Self

import msgspec

from tests.simulation.power_trace import Kind, Step

SECTOR_BYTES = 512
PAGE_BYTES = 4_096
_ROOT = 0


class Change(NamedTuple):
    """Something on its way to a file, the `at`-th step: data at an offset, or a new size."""

    at: int
    offset: int
    data: bytes | None
    """None: the offset is the new size."""

    @property
    def end(self) -> int:
        return self.offset + (0 if self.data is None else len(self.data))


class Move(NamedTuple):
    """A name on its way into a directory, or out of it, or both at once; directories and what is named by number."""

    at: int
    directory: int
    gone: str | None
    come: str | None
    named: int


class File:
    """What is kept of it, what it looks like to a process, and what is between the two."""

    def __init__(self, kept: bytes = b"") -> None:
        self.kept = bytearray(kept)
        self.seen = bytearray(kept)
        self.coming: list[Change] = []

    def change(self, change: Change) -> None:
        _apply(self.seen, change, change.offset, change.end)
        self.coming.append(change)

    def keep(self, before: int) -> None:
        """All that came before this step is on the disk."""
        kept = bisect_left(self.coming, before, key=lambda change: change.at)
        for change in self.coming[:kept]:
            _apply(self.kept, change, change.offset, change.end)
        del self.coming[:kept]


def _apply(content: bytearray, change: Change, begin: int, end: int) -> None:
    """A change, or so much of its data."""
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if change.data is None:
        del content[change.offset :]
    else:
        content[begin:end] = change.data[begin - change.offset : end - change.offset]


Names = dict[int, dict[str, int]]
"""Of each directory its names, and what they name."""


class Journal:
    """Names that are kept, by one rule, and those on their way."""

    def __init__(self, names: Names, *, strict: bool) -> None:
        self.kept = {directory: dict(entries) for directory, entries in names.items()}
        self.coming: list[Move] = []
        self._strict = strict

    def keep(self, flushed: int, before: int) -> None:
        """A file or directory was flushed; the flush began at this step."""
        if self._strict:
            kept = [move for move in self.coming if move.directory == flushed and move.at < before]
            self.coming = [move for move in self.coming if move.directory != flushed or move.at >= before]
        else:
            last = max(
                (
                    n
                    for n, move in enumerate(self.coming)
                    if flushed in (move.named, move.directory) and move.at < before
                ),
                default=-1,
            )
            kept, self.coming = self.coming[: last + 1], self.coming[last + 1 :]
        for move in kept:
            _move(self.kept, move)

    def left(self, dice: Random) -> Names:
        """What a power cut leaves."""
        names = {directory: dict(entries) for directory, entries in self.kept.items()}
        if self._strict:
            share = dice.choice([0.0, 0.1, 0.5, 0.9, 1.0])
            moves = [move for move in self.coming if dice.random() < share]
        else:
            moves = self.coming[: dice.randint(0, len(self.coming))]
        for move in moves:
            _move(names, move)
        return names


def _move(names: Names, move: Move) -> None:
    entries = names.setdefault(move.directory, {})
    if move.gone is not None:
        entries.pop(move.gone, None)
    if move.come is not None:
        entries[move.come] = move.named


class Begun(msgspec.Struct, frozen=True):
    """What is below a directory before the first step: of each path its inode, and what is in it (None: a directory).
    The directory itself is `.`."""

    root: str
    found: dict[str, tuple[int, bytes | None]]

    @classmethod
    def of(cls, root: Path) -> Self:
        paths = [root, *sorted(root.rglob("*"))]  # So that a directory comes before what is in it.
        return cls(
            str(root),
            {
                str(path.relative_to(root)): (path.stat().st_ino, None if path.is_dir() else path.read_bytes())
                for path in paths
            },
        )


class Disk:
    """Everything below a directory. What was there when the trace began is kept."""

    def __init__(self, begun: Begun) -> None:
        self._files: dict[int, File] = {}
        self._names: Names = {}
        self._numbers: dict[int, int] = {}
        self._at = 0
        self._flushes: dict[int, int] = {}
        self._path = begun.root
        for path, (inode, content) in begun.found.items():
            number = self._number(inode)
            if content is None:
                self._names[number] = {}
            else:
                self._files[number] = File(content)
            if path != ".":
                directory, name = self._place(f"{begun.root}/{path}")
                self._names[directory][name] = number
        self.strict = Journal(self._names, strict=True)
        self.usual = Journal(self._names, strict=False)

    def _number(self, inode: int) -> int:
        """Of something new: an inode is used again, while what had it before may still be found after a power cut."""
        number = self._numbers[inode] = len(self._names) + len(self._files)
        return number

    # --- What happens ------------------------------------------------------------------------------------------------

    def take(self, step: Step) -> None:
        """The next step of the trace."""
        match step.kind:
            case Kind.WRITE:
                self._files[self._numbers[step.inode]].change(Change(self._at, step.number, step.data))
            case Kind.RESIZE:
                self._resize(self._files[self._numbers[step.inode]], step.number)
            case Kind.SYNC_BEGIN:
                self._flushes[step.number] = self._at
            case Kind.SYNC_END:
                self._keep(self._numbers[step.inode], self._flushes.pop(step.number))
            case Kind.CREATE | Kind.MKDIR | Kind.LINK | Kind.REMOVE | Kind.RENAME:
                self._name(step)
            case Kind.MARK | Kind.ESCAPE:
                pass
        self._at += 1

    def _resize(self, file: File, size: int) -> None:
        if size > len(file.seen):
            file.change(Change(self._at, size - 1, b"\0"))  # What is between is zeros already.
        elif size < len(file.seen):
            file.change(Change(self._at, size, None))

    def _keep(self, flushed: int, before: int) -> None:
        if flushed in self._files:
            self._files[flushed].keep(before)
        for journal in (self.strict, self.usual):
            journal.keep(flushed, before)

    def _name(self, step: Step) -> None:
        directory, name = self._place(step.path)
        gone: str | None = name
        come: str | None = name
        match step.kind:
            case Kind.CREATE:
                gone, named = None, self._number(step.inode)
                self._files[named] = File()
            case Kind.MKDIR:
                gone, named = None, self._number(step.inode)
                self._names[named] = {}
            case Kind.REMOVE:
                come, named = None, self._names[directory][name]
            case Kind.LINK:
                gone, named = None, self._names[directory][name]
                directory, come = self._place(step.data.decode())
            case _:
                named = self._names[directory][name]
                into, come = self._place(step.data.decode())
                assert into == directory, f"{step.path} goes into another directory, which is not one step on a disk"
        move = Move(self._at, directory, gone, come, named)
        _move(self._names, move)
        for journal in (self.strict, self.usual):
            journal.coming.append(move)

    def _place(self, path: str) -> tuple[int, str]:
        *above, name = path.removeprefix(self._path).strip("/").split("/")
        directory = _ROOT
        for one in above:
            directory = self._names[directory][one]
        return directory, name

    # --- What it looks like ------------------------------------------------------------------------------------------

    def seen(self) -> dict[str, bytes | None]:
        """Every path and what a process reads there; None for a directory."""
        return dict(self._walk(self._names, lambda file: bytes(file.seen)))

    def left(self, dice: Random, *, strict: bool) -> dict[str, bytes | None]:
        """Every path and what lies there after a power cut now."""
        names = (self.strict if strict else self.usual).left(dice)
        tear = _tearing(dice, now=self._at)
        left = dict(self._walk(names, tear))
        # LMDB's lock files are written through a map, unseen: they hold anything.
        unseen = {name: content for name, content in left.items() if content and name.endswith("/lock.mdb")}
        return left | {name: dice.randbytes(len(content)) for name, content in unseen.items()}

    def _walk(
        self, names: Names, content: Callable[[File], bytes], directory: int = _ROOT, path: str = ""
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, named in names.get(directory, {}).items():
            below = f"{path}{name}"
            if named in self._files:
                yield below, content(self._files[named])
            else:
                yield below, None
                yield from self._walk(names, content, named, f"{below}/")


Tear = Callable[[File], bytes]


def _tearing(dice: Random, *, now: int) -> Tear:
    """One way to lose what is on its way, for all files or for each another one."""
    ways: tuple[Callable[[Random, int], Tear], ...] = (_none, _all, _until, _some, _pages, _sectors)
    way = dice.choice([None, *ways])
    if way is not None:
        return way(dice, now)

    def another_each(file: File) -> bytes:
        return dice.choice(ways)(dice, now)(file)

    return another_each


def _none(_: Random, __: int) -> Tear:
    return lambda file: bytes(file.kept)


def _all(_: Random, __: int) -> Tear:
    return lambda file: bytes(file.seen)


def _until(dice: Random, now: int) -> Tear:
    """What came before a moment, and nothing after it. Most often it is one of the last steps that counts."""
    moment = now - int(dice.paretovariate(0.3)) if dice.random() < 0.8 else dice.randint(0, now)

    def tear(file: File) -> bytes:
        content = bytearray(file.kept)
        for change in file.coming[: bisect_left(file.coming, moment, key=lambda change: change.at)]:
            _apply(content, change, change.offset, change.end)
        return bytes(content)

    return tear


def _some(dice: Random, _: int) -> Tear:
    """Whole writes, not in their order, and any of the lengths there were."""
    share, shuffled = dice.choice([0.1, 0.5, 0.9]), dice.random() < 0.3

    def tear(file: File) -> bytes:
        chosen = [change for change in file.coming if dice.random() < share]
        if shuffled:
            dice.shuffle(chosen)
        content = bytearray(file.kept)
        for change in chosen:
            _apply(content, change, change.offset, change.end)
        return _resized(content, file, dice)

    return tear


def _pages(dice: Random, _: int) -> Tear:
    return _torn(dice, PAGE_BYTES)


def _sectors(dice: Random, _: int) -> Tear:
    return _torn(dice, SECTOR_BYTES)


def _torn(dice: Random, unit: int) -> Tear:
    """Of each write some pages or sectors."""
    share = dice.choice([1, 2, 3])

    def mask(count: int) -> int:
        """About a quarter, half or three quarters of so many bits."""
        some, others = dice.getrandbits(count), dice.getrandbits(count)
        return {1: some & others, 2: some, 3: some | others}[share]

    def tear(file: File) -> bytes:
        content = bytearray(file.kept)
        for change in file.coming:
            if change.data is None:
                if mask(1):
                    _apply(content, change, change.offset, change.offset)
                continue
            first = change.offset // unit
            left = mask(-(-change.end // unit) - first)
            for number in range(left.bit_length()):
                if left >> number & 1:
                    begin = max(change.offset, (first + number) * unit)
                    _apply(content, change, begin, min(change.end, (first + number + 1) * unit))
        return _resized(content, file, dice)

    return tear


def _resized(content: bytearray, file: File, dice: Random) -> bytes:
    """As long as it was at some time: a size may come without its data, and data without its size is lost."""
    size = len(file.kept)
    sizes = [size]
    for change in file.coming:
        size = change.offset if change.data is None else max(size, change.end)
        sizes.append(size)
    size = dice.choice([sizes[0], sizes[-1], dice.choice(sizes)])
    return bytes(content[:size].ljust(size, b"\0"))


def write(image: dict[str, bytes | None], path: Path) -> None:
    """An image as files. Pages of zeros at the end become holes."""
    path.mkdir()
    for name, content in image.items():
        if content is None:
            (path / name).mkdir()
        else:
            with (path / name).open("wb") as file:
                file.write(content.rstrip(b"\0"))
                os.truncate(file.fileno(), len(content))
