"""`engram import`: a new data directory from lines of JSON."""

import contextlib
import sys
from pathlib import Path
from typing import IO, Annotated

import typer

from engram_bus.cli.failures import Failure, told_of_data
from engram_bus.cli.options import AsJson, NewDataDir
from engram_bus.cli.progress import Progress


def import_log(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `engram export` wrote; - is stdin.")],
    data_dir: NewDataDir,
    as_json: AsJson = False,
) -> None:
    """Make a new data directory from an export, and verify it: ids, seqs, versions, times and order are kept.

    Every line is checked as what a bus records; the first that is not is named with its field, and nothing is left of
    the new directory. A new epoch begins behind the last unit.

    Exit code 0 when all is durable and whole, 2 when the file cannot be read, else 1.
    """
    from engram_bus.backup.importing import import_lines

    with contextlib.ExitStack() as stack:
        lines: IO[bytes] = sys.stdin.buffer
        if str(file) != "-":
            try:
                lines = stack.enter_context(file.open("rb"))
            except OSError as exc:
                raise Failure(f"{file} cannot be read: {exc.strerror}", code=2) from exc
        with told_of_data(), Progress("importing") as progress:
            imported = import_lines(lines, data_dir, tell=progress)
    if as_json:
        import msgspec

        print(msgspec.json.encode(imported).decode())
        return
    print(imported.report.text())
    print(f"  epoch {imported.report.logs[0].epochs[-1].name} begins: cursors up to {imported.head} go on")
    if not imported.is_sealed:
        print("  the file has no last line with a checksum: what was changed in it could not be told")
