"""`engram export`: a log as NDJSON, written as it is read, beside the bus that writes it.

exported = export(Path("data"), sys.stdout.buffer)
exported.head      # everything up to here was written
"""

from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from engram_bus.backup.lines import FORMAT, End, Header, Sum, unit_line
from engram_bus.backup.manifest import new_digest
from engram_bus.backup.source import Source
from engram_bus.codec import encode_json
from engram_bus.log.record import GENESIS

_TELL_UNITS = 10_000


class Exported(msgspec.Struct, frozen=True):
    """What was written."""

    epoch: str
    head: int
    bytes: int


def export(data_dir: Path, out: IO[bytes], *, tell: Callable[[int, int], None] = lambda seq, head: None) -> Exported:
    """Write every unit of a log up to its head now. `tell` hears of the progress.

    Every record is checked as it is read. Raises DataDirectoryError (DataDamaged names the unit; what was written by
    then is refused by an import), and OSError of `out`.
    """
    source = Source(data_dir)
    digest = new_digest()
    written_bytes = 0

    def write(line: bytes) -> None:
        nonlocal written_bytes
        digest.update(line)
        out.write(line)
        written_bytes += len(line)

    write(encode_json(Header(FORMAT, source.tenant, source.epochs, source.head)) + b"\n")
    for record in source.records(0, GENESIS):
        write(unit_line(record.unit))
        if record.unit.seq % _TELL_UNITS == 0:
            tell(record.unit.seq, source.head)
    write(encode_json(End(Sum(source.head, digest.hexdigest()))) + b"\n")
    out.flush()
    return Exported(source.epochs[-1].name, source.head, written_bytes)
