"""`engram repair`: name what is damaged in a data directory, and make it whole where that can be proven.

What is folded from the log (index, snapshots, search) is moved aside and folded again at the next start. A log is
copied, record by record, into a new directory beside the damaged one; what cannot be read there is taken from a backup
where the digest chain proves that both are of one history. Only when the copy verifies does it take the damaged one's
place, which is kept under another name. Nothing is ever deleted, and nothing is left out that was not named.

A repaired log begins a new epoch behind its head: whether units were lost there, a torn log cannot tell.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engram_bus import clock
from engram_bus.backup.building import continued, new_directory
from engram_bus.backup.manifest import Manifest, load
from engram_bus.backup.merging import Merging, Range, epoch_at, extend
from engram_bus.backup.segments import records
from engram_bus.errors import BackupError, DataDamaged, DataDirectoryError
from engram_bus.log.beside import Wrong, beginning_beside, raws_beside
from engram_bus.log.contract import Epoch
from engram_bus.log.directory import (
    DEFAULT_TENANT,
    LogHeader,
    begin_directory,
    begin_tenant,
    bind_tenant,
    establish_tenant,
    header_of,
    lock_directory,
    read_identity,
    read_tenant,
    refuse_elsewhere,
    sync_directory,
)
from engram_bus.log.record import Record, RecordError, parse
from engram_bus.log.segment import SEGMENT
from engram_bus.log.verify import Damage
from engram_bus.units import ts_text
from engram_bus.verify import VerifyReport, verify

_RECORD_BYTES_MIN = 64
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_TELL_UNITS = 10_000
_RANGES_TOLD = 10

Tell = Callable[[str, int, int], None]
"""Called with what is done, a seq and the last one."""


class Repaired(msgspec.Struct, frozen=True):
    """What a repair came to."""

    path: str
    damage: tuple[Damage, ...]
    """What was found; empty where all was whole and nothing was done."""
    done: tuple[str, ...]
    moved_to: str | None
    """Where the damaged files are now."""
    report: VerifyReport


def repair(
    data_dir: Path,
    *,
    backup: Path | None = None,
    drop_after: int | None = None,
    tell: Tell = lambda what, seq, last: None,
) -> Repaired:
    """Verify `data_dir`, which no bus may be using, and repair what is damaged.

    Units that are damaged and that `backup` does not have are only given up with `drop_after`: the log is then kept up
    to that unit. Raises BackupError, which says what is lost, and DataDirectoryError.
    """
    data_dir = data_dir.resolve()
    if not (data_dir / "tenants").is_dir():
        raise BackupError(f"{data_dir} is no data directory: it has no tenants/")
    manifest = None if backup is None else _load(backup)
    with _locked(data_dir):
        return _Repair(data_dir, backup, manifest, drop_after, tell).run()


class _Plan(msgspec.Struct, frozen=True):
    """Which log is made of what there is."""

    epochs: tuple[Epoch, ...]
    log_head: int
    keep: int
    """The last unit of it."""


class _Repair:
    """One repair of one directory."""

    def __init__(
        self, data_dir: Path, backup: Path | None, manifest: Manifest | None, drop_after: int | None, tell: Tell
    ) -> None:
        self._data_dir = data_dir
        self._tenant = data_dir / "tenants" / DEFAULT_TENANT
        self._backup = backup
        self._manifest = manifest
        self._drop_after = drop_after
        self._tell = tell
        self._stamp = ts_text(clock.wall_us())[:19].replace("-", "").replace(":", "") + "Z"
        self._done: list[str] = []
        self._found: list[Damage] = []

    def run(self) -> Repaired:
        self._refuse_others()
        self._repair_identities()
        report = self._verify()
        if not report.is_whole and self._is_only_index(report):
            self._move_aside("index", "search")
            report = self._verify()
        if report.is_whole:
            return Repaired(str(self._data_dir), tuple(self._found), tuple(self._done), None, report)
        return self._rebuild(report)

    def _verify(self) -> VerifyReport:
        report = verify(self._data_dir, tell=lambda reading: self._tell("verifying", reading.seq, 0))
        self._found += [damage for damage in report.damage if damage not in self._found]
        return report

    def _refuse_others(self) -> None:
        others = [path.name for path in (self._data_dir / "tenants").glob("*") if path.name != DEFAULT_TENANT]
        if others:
            raise BackupError(f"{self._data_dir} holds logs of other tenants ({', '.join(sorted(others))})")

    # --- Who it is ---------------------------------------------------------------------------------------------------

    def _repair_identities(self) -> None:
        """Both are small and said twice: the directory's says nothing of the log, the log's stands in its header."""
        try:
            self._look_at_directory()
        except DataDamaged as exc:
            self._found.append(Damage("identity", str(exc)))
            self._move_file_aside(self._data_dir / "identity")
            begin_directory(self._data_dir, ts_text(clock.wall_us()))
            self._done.append("the directory has a new identity: it says nothing that is anywhere else")
        try:
            read_tenant(self._tenant, DEFAULT_TENANT)
        except DataDamaged as exc:
            self._found.append(Damage(f"tenants/{DEFAULT_TENANT}/identity", str(exc)))
            header = beginning_beside(self._tenant / "log").header
            epochs = self._epochs_of(header)
            self._move_file_aside(self._tenant / "identity")
            establish_tenant(self._tenant, begin_tenant(self._tenant, DEFAULT_TENANT, epochs))
            source = "the log itself" if header else "the backup"
            self._done.append(f"the identity of the log was written again, as {source} has it")
        if self._done:
            bind_tenant(self._tenant, read_tenant(self._tenant, DEFAULT_TENANT), read_identity(self._data_dir))

    def _look_at_directory(self) -> None:
        """Raises DataDamaged where its identity cannot be read, or the log is of another directory for sure: it names
        one, and what it says of itself is what the log says."""
        identity = read_identity(self._data_dir)
        try:
            tenant = read_tenant(self._tenant, DEFAULT_TENANT)
        except DataDirectoryError:
            return  # That is looked at next.
        if beginning_beside(self._tenant / "log").header == header_of(tenant):
            refuse_elsewhere(self._data_dir, identity, tenant)

    def _epochs_of(self, header: LogHeader | None) -> tuple[Epoch, ...]:
        """The epochs of a log whose identity is lost."""
        if header is not None:
            if header.tenant != DEFAULT_TENANT or not header.epochs:
                raise BackupError(f"{self._tenant} holds the log of tenant {header.tenant!r}: it was moved here")
            return tuple(header.epochs)
        if self._manifest is None:
            raise BackupError(
                f"{self._tenant / 'identity'} and the header of the log are damaged: which log this is, only a backup "
                f"can tell (--from BACKUP_DIR)"
            )
        return self._manifest.epochs

    def _move_file_aside(self, file: Path) -> None:
        if file.exists():
            file.rename(file.with_name(f"{file.name}.damaged-{self._stamp}"))

    # --- What is folded again ----------------------------------------------------------------------------------------

    def _is_only_index(self, report: VerifyReport) -> bool:
        is_index = all(damage.file == f"tenants/{DEFAULT_TENANT}/index" for damage in report.damage)
        return is_index and all(log.indexed <= log.head for log in report.logs)

    def _move_aside(self, *parts: str) -> None:
        for part in parts:
            if (self._tenant / part).exists():
                (self._tenant / part).rename(self._tenant / f"{part}.damaged-{self._stamp}")
                self._done.append(f"{part} was moved to {part}.damaged-{self._stamp}: it is folded again from the log")
        sync_directory(self._tenant)

    # --- The log -----------------------------------------------------------------------------------------------------

    def _rebuild(self, report: VerifyReport) -> Repaired:
        plan = self._plan(report)
        beside = self._data_dir.with_name(f"{self._data_dir.name}.repaired-{self._stamp}")
        size_bytes = sum(path.stat().st_size for path in (self._tenant / "log").glob("data.mdb"))
        merging = self._merging(plan.epochs, plan.log_head)
        epochs = continued(plan.epochs, plan.keep)
        with new_directory(beside, epochs=epochs, log_bytes=size_bytes, keys=self._data_dir / "keys") as log:
            for record in merging.records():
                if record.unit.seq > plan.keep:
                    break
                log.take(record)
                if record.unit.seq % _TELL_UNITS == 0:
                    self._tell("copying", record.unit.seq, plan.keep)
        made = verify(beside)
        if not made.is_whole:
            raise BackupError(f"the copy at {beside} does not read back whole: {made.damage[0]}; nothing was replaced")
        taken = [part for part in merging.from_backup if part.first <= plan.keep]
        self._done += [f"{part} came from the backup" for part in taken]
        self._done.append(f"the log goes up to unit {plan.keep}, epoch {epochs[-1].name} begins behind it")
        aside = self._take_place(beside)
        return Repaired(
            str(self._data_dir),
            tuple(self._found),
            tuple(self._done),
            str(aside),
            msgspec.structs.replace(made, path=str(self._data_dir)),
        )

    def _plan(self, report: VerifyReport) -> _Plan:
        """What can be kept. Raises BackupError, which says what is lost, unless it may be dropped."""
        beginning = beginning_beside(self._tenant / "log")
        epochs = self._own_epochs(beginning.header)
        log_head = self._plausible(beginning.head)
        known_head = max([log_head or 0, *(log.indexed for log in report.logs)])
        merging = self._merging(epochs, log_head or 0)
        keep = 0
        for record in merging.records():
            whole = merging.history.whole_seq
            keep = whole if self._drop_after is None or whole <= self._drop_after else keep
            if record.unit.seq % _TELL_UNITS == 0:
                self._tell("reading", record.unit.seq, known_head)
        end = merging.settled_seq
        is_complete = log_head is not None and end >= known_head
        if is_complete and beginning.wrong.startswith(SEGMENT):
            is_complete = False
            if self._drop_after is None:
                raise BackupError(
                    f"{self._data_dir} cannot be repaired: {beginning.wrong}; units behind {end} may be lost with it. "
                    f"Give them up: `--drop-after {end}` keeps the log up to there"
                )
        if self._drop_after is None and not is_complete:
            raise BackupError(self._loss(end, known_head, log_head))
        if self._drop_after is not None and is_complete:
            raise BackupError(f"nothing has to be dropped: all of {known_head} units can be repaired")
        if self._drop_after is not None and not 1 <= self._drop_after <= end:
            raise BackupError(f"the log can be kept up to unit {end} at most, not up to {self._drop_after}")
        if self._drop_after is not None and keep == 0:
            raise BackupError(f"unit {self._drop_after} is within the first command: nothing would be left")
        return _Plan(epochs, log_head or 0, min(keep, end))

    def _plausible(self, head: int | None) -> int | None:
        """A head that the file has room for: a torn page may say anything."""
        file = self._tenant / "log" / "data.mdb"
        if head is None or not file.exists():
            return None
        size_bytes = sum(part.stat().st_size for part in (file, file.with_name(SEGMENT)) if part.exists())
        return head if head <= size_bytes // _RECORD_BYTES_MIN else None

    def _own_epochs(self, header: LogHeader | None) -> tuple[Epoch, ...]:
        """The epochs of the log: its identity and its header agree, or the backup says which of them is right."""
        identity = read_tenant(self._tenant, DEFAULT_TENANT)
        if header is None or header == header_of(identity):
            return tuple(identity.epochs)
        for epochs in (tuple(header.epochs), tuple(identity.epochs)):
            if self._manifest is not None and _is_one(epochs, self._manifest.epochs):
                self._done.append("identity and log named different epochs: those of the backup are right")
                return epochs
        raise BackupError(
            f"{self._tenant / 'log'} is another log than {self._tenant / 'identity'} says, and "
            + ("no backup was named (--from BACKUP_DIR)" if self._manifest is None else "the backup is of neither")
        )

    def _merging(self, epochs: tuple[Epoch, ...], log_head: int) -> Merging:
        manifest = self._manifest
        backup: Iterator[Record] = iter(())
        if manifest is not None and self._backup is not None:
            backup = records(self._backup, manifest)

        def is_one(seq: int) -> bool:
            # A directory has its epochs from its making on: what is of another one was written elsewhere.
            return manifest is not None and epoch_at(epochs, seq) == epoch_at(manifest.epochs, seq)

        return Merging(_own_records(self._tenant / "log", log_head), backup, is_one=is_one)

    def _loss(self, end: int, known_head: int, log_head: int | None) -> str:
        """What cannot be repaired, and what can be done about it."""
        if log_head is None and known_head <= end:
            lost = f"how far the log went cannot be told; what is known of it ends with unit {end}"
        else:
            lost = self._lost_units(end, known_head, log_head or 0)
        if self._manifest is None:
            missing = "name a backup that has them (--from BACKUP_DIR)"
        elif self._manifest.head > end:
            missing = f"the backup {self._backup} has another history behind unit {end}"
        else:
            missing = f"the backup {self._backup} goes up to unit {self._manifest.head} and does not have them"
        keep = f"`--drop-after {end}` keeps the log up to there" if end else "nothing before them can be kept"
        return f"{self._data_dir} cannot be repaired: {lost}; {missing}, or give them up: {keep}"

    def _lost_units(self, end: int, known_head: int, log_head: int) -> str:
        """Those that cannot be read, and those behind them of which nothing proves that they follow."""
        unreadable: list[Range] = []
        for seq, record in enumerate(_own_records(self._tenant / "log", log_head, after=end), start=end + 1):
            if record is None:
                extend(unreadable, Range(seq, seq))
        if known_head > log_head:
            extend(unreadable, Range(max(log_head, end) + 1, known_head))
        lost = Range(end + 1, known_head)
        said = f"{lost} {'is' if lost.first == lost.last else 'are'} lost"
        if unreadable == [lost]:
            return f"{said}, and cannot be read"
        damaged = f"{', '.join(map(str, unreadable[:_RANGES_TOLD]))} cannot be read, and " if unreadable else ""
        return f"{said}: {damaged}nothing proves that what can be read follows unit {end}"

    # --- Taking its place --------------------------------------------------------------------------------------------

    def _take_place(self, beside: Path) -> Path:
        """The repaired directory gets the name of the damaged one, which is kept: at no moment is there neither."""
        aside = self._data_dir.with_name(f"{self._data_dir.name}.damaged-{self._stamp}")
        try:
            if _exchange(beside, self._data_dir):
                beside.rename(aside)
            else:
                self._data_dir.rename(aside)
                beside.rename(self._data_dir)
        except OSError as exc:
            raise BackupError(
                f"{self._data_dir} cannot be renamed ({exc.strerror}). The repaired copy is whole and stands at "
                f"{beside}: start the bus on it"
            ) from exc
        sync_directory(self._data_dir.parent)
        return aside


def _is_one(epochs: tuple[Epoch, ...], others: tuple[Epoch, ...]) -> bool:
    """Whether one of both accounts of a history goes on from the other."""
    shorter, longer = sorted((epochs, others), key=len)
    return longer[: len(shorter)] == shorter


def _own_records(log: Path, head: int, *, after: int = 0) -> Iterator[Record | None]:
    """What a damaged log still has, None in the place of what cannot be read."""
    for seq, raw in raws_beside(log, after=after, last=head):
        try:
            yield None if isinstance(raw, Wrong) else parse(raw, seq)
        except RecordError:
            yield None


def _load(backup: Path) -> Manifest:
    if backup.is_file():
        raise BackupError(
            f"{backup} is a file: an export has no digests, so nothing proves that it is of the same history. "
            f"`engram import` makes a new data directory of it"
        )
    return load(backup)


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    try:
        fd = lock_directory(data_dir, writable=True)
    except OSError as exc:
        raise BackupError(f"{data_dir} cannot be repaired: {exc.strerror}") from exc
    try:
        yield
    except OSError as exc:
        raise BackupError(f"{data_dir} cannot be repaired: {exc.strerror or exc}") from exc
    finally:
        if fd is not None:
            os.close(fd)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once; False where the system does not know how."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    swapped = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(swapped == 0)
