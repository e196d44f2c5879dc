"""`engram backup`: what the log has more than its backup, added to it beside the bus."""

import os
from pathlib import Path
from typing import Annotated

import typer

from engram_bus.cli.failures import told_of_data
from engram_bus.cli.options import AsJson, DataDir
from engram_bus.cli.progress import Progress
from engram_bus.words import counted


def backup(
    data_dir: DataDir,
    backup_dir: Annotated[
        Path, typer.Argument(metavar="BACKUP_DIR", help="A new directory, or one this log was backed up to before.")
    ],
    as_json: AsJson = False,
) -> None:
    """Bring a backup up to the head of the log, while a bus may be writing it.

    The first run copies all, a later one only what is new, after it has seen that the log still is the one backed up.
    Everything is checked as it is read, and durable when the command ends; `engram verify BACKUP_DIR` reads it again.
    A run that is cut off leaves the backup as it was before, or with more of it.

    Exit code 0 when the backup holds everything up to the head it names, else 1.
    """
    from engram_bus.backup.making import backup

    os.nice(10)  # The bus comes first.
    with told_of_data(), Progress("backing up") as progress:
        made = backup(data_dir, backup_dir, tell=progress)
    if as_json:
        import msgspec

        print(msgspec.json.encode(made).decode())
    else:
        print(f"{made.path}: everything up to {made.epoch}.{made.head}, chain {made.chain}")
        more = f"{counted(made.new_units, 'unit')} more, {counted(made.new_bytes, 'byte')}"
        print(f"  {more}; {counted(made.segments, 'segment')}")
