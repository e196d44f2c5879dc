"""`engram restore`: a new data directory from a backup, whole or as it was at a seq or a time.

A restored log begins a new epoch behind its head, also when all of the backup was restored: the log it was made of may
have gone on, and what it appended then is not in this one. So cursors resume up to the head, and are EPOCH_CHANGED
above it. Fencing tokens above the head are given anew, too: who keeps the highest one it saw must forget it.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from engram_bus.backup.building import continued, new_directory, refuse_used
from engram_bus.backup.manifest import Manifest, load
from engram_bus.backup.segments import records, segment_records
from engram_bus.errors import BackupError
from engram_bus.log.contract import cursor_text
from engram_bus.log.record import Record
from engram_bus.units import ts_text
from engram_bus.verify import VerifyReport, verify

_TELL_UNITS = 10_000


class Restored(msgspec.Struct, frozen=True):
    """What a restore came to; `report` is what `engram verify` says of it."""

    path: str
    cursor: str
    """Of its head: the new epoch, and the last seq that was restored."""
    head: int
    left_out: int
    """Units of the command at the end that were left out with it, for it was not to be restored whole."""
    report: VerifyReport

    @property
    def epoch(self) -> str:
        return self.report.logs[0].epochs[-1].name


def restore(
    backup: Path,
    data_dir: Path,
    *,
    to_seq: int | None = None,
    to_ts: str | None = None,
    tell: Callable[[int, int], None] = lambda seq, head: None,
) -> Restored:
    """Make `data_dir` of the backup, up to `to_seq` or the last unit at or before `to_ts` (RFC 3339), if given.

    When it returns all of it is durable and was verified. Raises BackupError (BackupDamaged names the file) and
    DataDirectoryError; what was not made whole is taken away again.
    """
    manifest = load(backup)
    refuse_used(data_dir)
    last, head = _end(backup, manifest, to_seq, to_ts)
    epochs = continued(manifest.epochs, head)
    size_bytes = sum(segment.bytes for segment in manifest.segments)
    with new_directory(data_dir, epochs=epochs, tenant=manifest.tenant, log_bytes=size_bytes) as log:
        for record in records(backup, manifest):
            if record.unit.seq > head:
                break
            log.take(record)
            if record.unit.seq % _TELL_UNITS == 0:
                tell(record.unit.seq, head)
        if head == manifest.head and log.history.chain.hex() != manifest.chain:
            raise BackupError(f"{backup} is damaged: its chain digest is not that of its last unit")
    report = verify(data_dir)
    if not report.is_whole:
        raise BackupError(f"{data_dir} was written, but does not read back whole: {report.damage[0]}")
    return Restored(str(data_dir), cursor_text(epochs[-1].name, head), head, last - head, report)


def parse_time(text: str) -> str:
    """A time as it stands in units, from RFC 3339 (with its zone). Raises BackupError."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as exc:
        raise BackupError(f"{text!r} is not a time as RFC 3339 writes it, like 2026-01-31T12:00:00Z") from exc
    if time.tzinfo is None:
        raise BackupError(f"{text!r} does not say its zone: end it with Z, or with +02:00")
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return ts_text((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def _end(backup: Path, manifest: Manifest, to_seq: int | None, to_ts: str | None) -> tuple[int, int]:
    """The last unit that is asked for, and the last that is restored: the end of a command at or before it."""
    if to_seq is not None:
        if not 1 <= to_seq <= manifest.head:
            raise BackupError(f"{backup} holds units 1 to {manifest.head}, not unit {to_seq}")
        wanted = next(one for one in records(backup, manifest, first=to_seq) if one.unit.seq == to_seq)
    elif to_ts is not None:
        wanted = _last_at(backup, manifest, to_ts)
    else:
        return manifest.head, manifest.head
    seq = wanted.unit.seq
    head = seq if wanted.group_index + 1 == wanted.group_units else seq - wanted.group_index - 1
    if head == 0:
        raise BackupError(f"{backup}: nothing would be left, unit {seq} is within the first command")
    return seq, head


def _last_at(backup: Path, manifest: Manifest, ts: str) -> Record:
    """The last record at or before a time: times never go back."""
    for segment in reversed(manifest.segments):
        found = None
        for record in segment_records(backup, segment):
            if record.unit.ts > ts:
                break
            found = record
        if found is not None:
            return found
    raise BackupError(f"{backup} holds no unit at or before {ts}")
