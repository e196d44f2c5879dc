"""`engram verify` of a backup: every file, every checksum, every record, and that they follow one another.

report = check_backup(Path("/mnt/backup"))
report.damage      # empty, or the first damage of each file
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from engram_bus.backup.manifest import MANIFEST, BackupDamaged, Manifest, load
from engram_bus.backup.segments import extra_bytes, segment_records
from engram_bus.errors import BackupError
from engram_bus.log.contract import Epoch, cursor_text
from engram_bus.log.history import History
from engram_bus.log.verify import Damage
from engram_bus.words import counted

_TELL_UNITS = 500


class BackupReport(msgspec.Struct, frozen=True):
    """What a backup holds, and the first damage of each of its files. `whole_units` are whole up to the first."""

    path: str
    epochs: tuple[Epoch, ...] = ()
    head: int = 0
    whole_units: int = 0
    contexts: int = 0
    chain: str = ""
    """Of the last whole unit, in hex."""
    written_at: str = ""
    segments: int = 0
    bytes: int = 0
    unnamed_bytes: int = 0
    """Behind the end of the last segment: of a run that was cut off. The next one writes them again."""
    damage: tuple[Damage, ...] = ()

    @property
    def is_whole(self) -> bool:
        return not self.damage

    def text(self) -> str:
        """A few lines for people."""
        lines = [f"{self.path}: backup, {'whole' if self.is_whole else 'DAMAGED'}"]
        lines += [f"  {damage}" for damage in self.damage]
        if self.epochs:
            cursor = cursor_text(self.epochs[-1].name, self.whole_units)
            units, contexts = counted(self.head, "unit"), counted(self.contexts, "context")
            lines.append(f"  {self.whole_units} of {units} whole, in {contexts}")
            lines.append(f"  cursor {cursor}, chain {self.chain}")
            segments, size = counted(self.segments, "segment"), counted(self.bytes, "byte")
            lines.append(f"  {segments}, {size}, last added to at {self.written_at}")
        if self.unnamed_bytes:
            lines.append(f"  {counted(self.unnamed_bytes, 'byte')} of a run that was cut off are passed over")
        return "\n".join(lines)


def check_backup(path: Path, *, tell: Callable[[str, int], None] = lambda file, seq: None) -> BackupReport:
    """Read the backup at `path` as a whole; changes nothing. `tell` hears of the file and seq that are read next."""
    try:
        manifest = load(path)
    except BackupDamaged as exc:
        return BackupReport(str(path), damage=(exc.damage,))
    except BackupError as exc:
        return BackupReport(str(path), damage=(Damage(MANIFEST, str(exc)),))
    history, damage = _read_all(path, manifest, tell)
    if not damage and history.group_open:
        damage.append(Damage(MANIFEST, "it ends within a command", history.seq))
    if not damage and history.chain.hex() != manifest.chain:
        damage.append(Damage(MANIFEST, "its chain digest is not that of its last unit", history.seq))
    return BackupReport(
        path=str(path),
        epochs=manifest.epochs,
        head=manifest.head,
        whole_units=history.seq,
        contexts=len(history.versions),
        chain=history.chain.hex(),
        written_at=manifest.written_at,
        segments=len(manifest.segments),
        bytes=sum(segment.bytes for segment in manifest.segments),
        unnamed_bytes=sum(extra_bytes(path, segment) for segment in manifest.segments),
        damage=tuple(damage),
    )


def _read_all(path: Path, manifest: Manifest, tell: Callable[[str, int], None]) -> tuple[History, list[Damage]]:
    """What the records came to up to the first damage, and the first damage of each segment."""
    history = History()
    damage: list[Damage] = []
    for segment in manifest.segments:
        file = f"segments/{segment.name}"
        is_first = not damage
        try:
            for record in segment_records(path, segment):
                if record.unit.seq % _TELL_UNITS == 1:
                    tell(file, record.unit.seq)
                if is_first and (wrong := history.take(record)) is not None:
                    damage.append(Damage(file, wrong, record.unit.seq))
                    is_first = False
        except BackupDamaged as exc:
            if not damage or damage[-1].file != file:
                damage.append(exc.damage)
    return history, damage
