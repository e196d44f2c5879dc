"""`engram backup`: bring a backup up to the head of a log, beside the bus that writes it.

made = backup(Path("data"), Path("/mnt/backup"))
made.head          # everything up to here is in it, durably
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engram_bus import clock
from engram_bus.backup.manifest import MANIFEST, Manifest, empty, is_backup, load, save
from engram_bus.backup.segments import SegmentWriter
from engram_bus.backup.source import Source
from engram_bus.errors import BackupError, DataDamaged
from engram_bus.limits import BACKUP_SEGMENT_BYTES
from engram_bus.log.contract import Epoch
from engram_bus.log.record import Record
from engram_bus.units import ts_text

_TELL_UNITS = 10_000


class BackupMade(msgspec.Struct, frozen=True):
    """What a run came to: the backup now holds everything up to `head`."""

    path: str
    epoch: str
    head: int
    chain: str
    new_units: int
    new_bytes: int
    segments: int


def backup(data_dir: Path, path: Path, *, tell: Callable[[int, int], None] = lambda seq, head: None) -> BackupMade:
    """Add to the backup at `path` what the log of `data_dir` has more, up to its head now. `tell` hears of progress.

    Raises BackupError when the log does not continue this backup, when there is no room, and for what is no backup;
    DataDirectoryError when the log cannot be read. What was in the backup before is then still in it.
    """
    source = Source(data_dir)
    _refuse_inside(path, data_dir)
    try:
        with _held(path):
            kept = _load_or_begin(path, source)
            return _Run(path, kept, source, tell).run()
    except OSError as exc:
        raise BackupError(f"the backup {path} cannot be written: {exc.strerror or exc}") from exc


class _Run:
    """One run: the backup as it is durable, and the segment that is being added to."""

    def __init__(self, path: Path, kept: Manifest, source: Source, tell: Callable[[int, int], None]) -> None:
        self._path = path
        self._kept = kept
        self._began_head = kept.head
        self._began_bytes = _bytes(kept)
        self._source = source
        self._tell = tell
        self._segment: SegmentWriter | None = None

    def run(self) -> BackupMade:
        _refuse_other_history(self._path, self._kept, self._source)
        try:
            self._add_all()
        finally:
            if self._segment is not None:
                self._segment.close()
        if self._kept.epochs != self._source.epochs:
            self._keep(self._kept.head, bytes.fromhex(self._kept.chain))
        kept = self._kept
        return BackupMade(
            path=str(self._path),
            epoch=kept.epochs[-1].name,
            head=kept.head,
            chain=kept.chain,
            new_units=kept.head - self._began_head,
            new_bytes=_bytes(kept) - self._began_bytes,
            segments=len(kept.segments),
        )

    def _add_all(self) -> None:
        """A command at a time: its units are in a backup together, or not at all."""
        command: list[Record] = []
        records = self._source.records(self._kept.head, bytes.fromhex(self._kept.chain))
        try:
            for record in records:
                command.append(record)
                if record.group_index + 1 == record.group_units:
                    self._add(command)
                    command = []
                if record.unit.seq % _TELL_UNITS == 0:
                    self._tell(record.unit.seq, self._source.head)
            if command:
                raise DataDamaged(f"the command of unit {command[0].unit.seq} was not recorded whole")
        except DataDamaged as exc:
            if self._segment is None and not command:
                # The very first one: it may be whole, and of another history.
                _refuse_other_chain(self._path, self._kept, self._source)
            self._keep_segment()
            raise DataDamaged(
                f"{exc}; the backup {self._path} holds what is before it, up to {self._kept.head}"
            ) from exc
        self._keep_segment()

    def _add(self, command: list[Record]) -> None:
        segment = self._open()
        for record in command:
            segment.add(record)
        self._chain = command[-1].chain
        if segment.bytes >= BACKUP_SEGMENT_BYTES:
            self._keep_segment()

    def _open(self) -> SegmentWriter:
        if self._segment is None:
            last = self._kept.segments[-1] if self._kept.segments else None
            if last is None or last.bytes >= BACKUP_SEGMENT_BYTES:
                self._segment = SegmentWriter.begin(self._path, self._kept.head + 1)
            else:
                self._segment = SegmentWriter.go_on(self._path, last)
        return self._segment

    def _keep_segment(self) -> None:
        """From now on the backup holds what was added."""
        if self._segment is None:
            return
        segment = self._segment.flush()
        earlier = [one for one in self._kept.segments if one.first_seq < segment.first_seq]
        self._kept = msgspec.structs.replace(self._kept, segments=(*earlier, segment))
        self._keep(segment.last_seq, self._chain)
        self._segment.close()
        self._segment = None

    def _keep(self, head: int, chain: bytes) -> None:
        self._kept = msgspec.structs.replace(
            self._kept,
            epochs=epochs_up_to(self._source.epochs, head, is_whole=head == self._source.head),
            head=head,
            chain=chain.hex(),
            written_at=ts_text(clock.wall_us()),
        )
        save(self._path, self._kept)


def epochs_up_to(epochs: tuple[Epoch, ...], head: int, *, is_whole: bool) -> tuple[Epoch, ...]:
    """The epochs of a log of which units up to `head` are taken: of a part, those that had begun by then."""
    return epochs if is_whole else tuple(epoch for epoch in epochs if epoch.first_seq <= head + 1)


def _refuse_other_history(path: Path, kept: Manifest, source: Source) -> None:
    """A backup is continued by the log it was made of, and by one that was restored from it, up to where they part."""
    if kept.tenant != source.tenant:
        raise BackupError(f"{path} is a backup of tenant {kept.tenant!r}, not of {source.tenant!r}")
    if source.epochs[: len(kept.epochs)] != kept.epochs:
        raise BackupError(
            f"{path} is a backup of another log: it is of epochs {_names(kept.epochs)}, {source.data_dir} is of "
            f"{_names(source.epochs)}. Choose another directory for this log"
        )
    new_epochs = source.epochs[len(kept.epochs) :]
    if new_epochs and new_epochs[0].first_seq <= kept.head:
        raise BackupError(
            f"{path} goes up to unit {kept.head}, but {source.data_dir} has a history of its own since unit "
            f"{new_epochs[0].first_seq - 1}: it was restored to there. Choose another directory for this log"
        )
    if kept.head > source.head:
        raise BackupError(
            f"{path} goes up to unit {kept.head}, the log of {source.data_dir} only to {source.head}: it is an older "
            f"copy or lost its end. `engram verify {source.data_dir}` and `engram repair` say more"
        )
    if kept.head == source.head:
        _refuse_other_chain(path, kept, source)


def _refuse_other_chain(path: Path, kept: Manifest, source: Source) -> None:
    if kept.head and source.record(kept.head).chain.hex() != kept.chain:
        raise BackupError(
            f"{path} is a backup of another history: the digest chains differ at unit {kept.head}. "
            f"Choose another directory for this log"
        )


def _names(epochs: tuple[Epoch, ...]) -> str:
    return ", ".join(epoch.name for epoch in epochs)


def _load_or_begin(path: Path, source: Source) -> Manifest:
    if is_backup(path):
        return load(path)
    if others := sorted(one.name for one in path.iterdir() if one.name != _UNFINISHED):
        raise BackupError(f"{path} is no backup and not empty (it holds {others[0]!r}): choose another directory")
    # First, so that whatever comes after is known to be ours.
    kept = empty(source.tenant, source.epochs[:1], ts_text(clock.wall_us()))
    save(path, kept)
    return kept


_UNFINISHED = Path(MANIFEST).with_suffix(".new").name
"""A first manifest that was cut off."""


def _refuse_inside(path: Path, data_dir: Path) -> None:
    inner, outer = path.resolve(), data_dir.resolve()
    if inner == outer or outer in inner.parents:
        raise BackupError(f"{path} lies in {data_dir} itself: choose a directory elsewhere, best on another disk")


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """The directory, made where it is new, and held: two runs at once would write over each other."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as exc:
        raise BackupError(f"another backup into {path} is running") from exc
    finally:
        os.close(fd)


def _bytes(kept: Manifest) -> int:
    return sum(segment.bytes for segment in kept.segments)
