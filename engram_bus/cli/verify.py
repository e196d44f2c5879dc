"""`engram verify`: is the log what was written?"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_bus.cli.failures import Failure
from engram_bus.cli.options import AsJson

if TYPE_CHECKING:
    from engram_bus.verify import Reading

_SHOW_UNITS = 10_000
_CLEAR = "\r\x1b[K"


def verify(
    data_dir: Annotated[Path, typer.Argument(metavar="DATA_DIR", help="What `engram serve` was given as --data-dir.")],
    as_json: AsJson = False,
) -> None:
    """Check a data directory: every unit, every index, every snapshot. Changes nothing; a bus may be running on it.

    Exit code 0 when all is whole, 1 when something is damaged (the first damage is named), 2 when it is no data
    directory.
    """
    from engram_bus.verify import verify

    if not (data_dir / "identity").exists() and not (data_dir / "tenants").exists():
        raise Failure(f"{data_dir} is not a data directory: it has no identity", code=2)
    shown = sys.stderr.isatty()
    report = verify(data_dir, tell=_show if shown else lambda _: None)
    if shown:
        print(_CLEAR, end="", file=sys.stderr, flush=True)
    if as_json:
        import msgspec

        print(msgspec.json.encode(report).decode())
    else:
        print(report.text())
    if not report.is_whole:
        sys.stdout.flush()
        raise Failure(f"{data_dir} is damaged: restore it from a backup, or ask before changing anything in it")


def _show(reading: "Reading") -> None:
    if reading.seq % _SHOW_UNITS == 0:
        print(f"{_CLEAR}reading {reading.file}, unit {reading.seq:,}", end="", file=sys.stderr, flush=True)
