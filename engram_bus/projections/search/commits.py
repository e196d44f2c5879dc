"""What counts of a search index: its files as they were at its newest commit, and the log they were made of.

    commit     CRC-32 of what follows, in hex, then the JSON of a `Commit`

Every file has a checksum of its own as well; but one that is replaced by another index's, or by what it was itself a
while before, agrees with that.
"""

from pathlib import Path
from zlib import crc32

import msgspec

from engram_bus.codec import UNREADABLE
from engram_bus.log.directory import write_durably
from engram_bus.projections.contract import Damaged

COMMIT = "commit"
_CRC_DIGITS = 8


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """A file as it was written."""

    size_bytes: int
    crc: int


class Commit(msgspec.Struct, frozen=True):
    """An index as it outlives a restart."""

    count: int
    """How many units it holds."""
    cursor: int
    """The seq of the newest of them."""
    chain: str
    """The log's chain digest there, in hex: of no other log, and of no other past of this one."""
    tables: dict[str, Stamp]
    segments: dict[str, Stamp]
    """The files of the keyword index."""
    meta: str
    """Which segments they are, in tantivy's words."""


NO_ROWS = Stamp(0, 0)
NOTHING = Commit(0, 0, "", {}, {}, "")


def read_commit(path: Path) -> Commit | None:
    """The newest commit of the index in a directory; None where there was none. Raises Damaged."""
    file = path / COMMIT
    try:
        crc, _, said = file.read_bytes().partition(b"\n")
        if crc != _crc(said):
            raise Damaged(f"{file} does not match its checksum")
        return msgspec.json.decode(said, type=Commit)
    except FileNotFoundError:
        return None
    except (IsADirectoryError, *UNREADABLE) as exc:
        raise Damaged(f"{file} is not what was written: {exc}") from exc


def write_commit(path: Path, commit: Commit) -> None:
    """Durably; what was there before is replaced as a whole."""
    said = msgspec.json.encode(commit)
    write_durably(path / COMMIT, _crc(said) + b"\n" + said)


def _crc(said: bytes) -> bytes:
    return f"{crc32(said):0{_CRC_DIGITS}x}".encode()
