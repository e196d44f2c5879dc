"""`engram verify`: is the log, or the backup, what was written?"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_bus.cli.failures import Failure
from engram_bus.cli.options import AsJson

if TYPE_CHECKING:
    from engram_bus.backup.checking import BackupReport
    from engram_bus.verify import Reading, VerifyReport

_SHOW_UNITS = 10_000
_CLEAR = "\r\x1b[K"


def verify(
    data_dir: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --data-dir of a bus, or what `engram backup` wrote.")
    ],
    as_json: AsJson = False,
) -> None:
    """Check a data directory: every unit, every index, every snapshot. Changes nothing; a bus may be running on it.

    Of a backup: every file of it, every checksum, every unit.

    Exit code 0 when all is whole, 1 when something is damaged (the first damage is named), 2 when it is neither a data
    directory nor a backup.
    """
    from engram_bus.backup.checking import check_backup
    from engram_bus.backup.manifest import is_backup
    from engram_bus.verify import Reading, verify

    shown = sys.stderr.isatty()
    tell = _show if shown else lambda _: None
    report: BackupReport | VerifyReport
    if (data_dir / "identity").exists() or (data_dir / "tenants").exists():
        report = verify(data_dir, tell=tell)
        advice = f"`engram repair {data_dir}` says what can be done; change nothing in it by hand"
    elif is_backup(data_dir):
        report = check_backup(data_dir, tell=lambda file, seq: tell(Reading(file, seq)))
        advice = "keep it, and make another one elsewhere"
    else:
        raise Failure(f"{data_dir} is no data directory (it has no identity) and no backup (no manifest.json)", code=2)
    if shown:
        print(_CLEAR, end="", file=sys.stderr, flush=True)
    if as_json:
        import msgspec

        print(msgspec.json.encode(report).decode())
    else:
        print(report.text())
    if not report.is_whole:
        sys.stdout.flush()
        raise Failure(f"{data_dir} is damaged: {advice}")


def _show(reading: "Reading") -> None:
    if reading.seq % _SHOW_UNITS == 1:  # Pages begin there.
        print(f"{_CLEAR}reading {reading.file}, unit {reading.seq:,}", end="", file=sys.stderr, flush=True)
