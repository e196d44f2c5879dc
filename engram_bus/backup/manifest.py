"""Format 1 of a backup: a manifest that names what is in it, and segments that are only ever added to.

    manifest.json                               {"blake2b": of the bytes of what follows, "engram_backup": `Manifest`}
    segments/00000000000000000001.segment       the records from seq 1 on
    segments/00000000000000731094.segment       and so on; each but the last has about 64 MiB

A segment begins with `engrambk` and its first seq (8 bytes). Each record follows as its length and its CRC-32 (4 bytes
each, the CRC over the length too) and exactly the bytes it has in the log: private part, proof and all. All numbers are
big-endian.

The manifest is replaced as a whole and durably, after the segments it names are. So a backup that is cut off is the one
before it, and bytes and segments that its manifest does not name yet, which nobody reads and the next run writes again.
A manifest names only whole commands, and readers pass over keys they do not know; a change they must not miss raises
`format`. What a backup does not hold: `keys/`, settings, and what is folded again from the log (index, snapshots,
search). What is redacted in the log later stays as it was in a backup made before.
"""

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import msgspec

from engram_bus.codec import UNREADABLE
from engram_bus.errors import BackupError
from engram_bus.log.contract import Epoch
from engram_bus.log.directory import write_durably
from engram_bus.log.record import GENESIS
from engram_bus.log.verify import Damage

FORMAT = 1
MANIFEST = "manifest.json"
SEGMENTS = "segments"
_DIGEST_BYTES = 32


class Segment(msgspec.Struct, frozen=True):
    """A file of records: its first `bytes` bytes are what the backup holds of it."""

    name: str
    first_seq: int
    last_seq: int
    bytes: int
    blake2b: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds: everything up to `head`, whose chain digest is `chain`."""

    format: int
    tenant: str
    epochs: tuple[Epoch, ...]
    head: int
    chain: str
    written_at: str
    segments: tuple[Segment, ...] = ()


class _Sealed(msgspec.Struct, frozen=True):
    blake2b: str
    engram_backup: msgspec.Raw


class BackupDamaged(BackupError):
    """What lies in a backup is not what was written there."""

    def __init__(self, path: Path, damage: Damage) -> None:
        super().__init__(f"{path} is damaged: {damage}")
        self.damage = damage


def empty(tenant: str, epochs: Sequence[Epoch], written_at: str) -> Manifest:
    """Of a backup that holds nothing yet."""
    return Manifest(FORMAT, tenant, tuple(epochs), 0, GENESIS.hex(), written_at)


def segment_name(first_seq: int) -> str:
    """So that the order of the names is that of the log."""
    return f"{first_seq:020}.segment"


def new_digest() -> "blake2b":
    """The digest that manifest and segments are held to."""
    return blake2b(digest_size=_DIGEST_BYTES)


def is_backup(path: Path) -> bool:
    """Whether this is, or was, a backup."""
    return (path / MANIFEST).exists() or any((path / SEGMENTS).glob("*.segment"))


def save(path: Path, manifest: Manifest) -> None:
    """Replace the manifest so that a power cut leaves the old one or the new one."""
    content = msgspec.json.encode(manifest)
    write_durably(path / MANIFEST, msgspec.json.encode(_Sealed(_digest(content), msgspec.Raw(content))))


def load(path: Path) -> Manifest:
    """The manifest of a backup. Raises BackupDamaged; BackupError for what is no backup, or of a later format."""
    if not is_backup(path):
        raise BackupError(f"{path} is no backup: it has no {MANIFEST}")
    try:
        sealed = msgspec.json.decode((path / MANIFEST).read_bytes(), type=_Sealed)
        if _digest(bytes(sealed.engram_backup)) != sealed.blake2b:
            raise BackupDamaged(path, Damage(MANIFEST, "it does not match its checksum"))
        manifest = msgspec.json.decode(sealed.engram_backup, type=Manifest)
    except (OSError, *UNREADABLE) as exc:
        raise BackupDamaged(path, Damage(MANIFEST, f"it cannot be read: {exc}")) from exc
    if manifest.format != FORMAT:
        raise BackupError(f"{path} is a backup of format {manifest.format}, this version reads format {FORMAT}")
    if (wrong := _wrong(manifest)) is not None:
        raise BackupDamaged(path, Damage(MANIFEST, wrong))
    return manifest


def _digest(content: bytes) -> str:
    digest = new_digest()
    digest.update(content)
    return digest.hexdigest()


def _wrong(manifest: Manifest) -> str | None:
    """What a manifest of ours never says; who reads on relies on it."""
    segments = manifest.segments
    follow = all(one.last_seq + 1 == other.first_seq for one, other in pairwise(segments))
    ends = (segments[0].first_seq, segments[-1].last_seq) if segments else (1, 0)
    if not follow or ends != (1, manifest.head) or any(one.last_seq < one.first_seq for one in segments):
        return "its segments do not follow one another from unit 1 to its head"
    if any(one.name != segment_name(one.first_seq) for one in segments):
        return "it names a segment by another name than its own"
    return None if manifest.epochs else "it names no epoch"
