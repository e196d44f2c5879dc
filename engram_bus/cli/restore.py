"""`engram restore`: a new data directory from a backup, as it was at its head, at a seq or at a time."""

from pathlib import Path
from typing import Annotated

import typer

from engram_bus.cli.failures import Failure, told_of_data
from engram_bus.cli.options import AsJson, NewDataDir
from engram_bus.cli.progress import Progress
from engram_bus.words import counted


def restore(
    backup_dir: Annotated[Path, typer.Argument(metavar="BACKUP_DIR", help="What `engram backup` wrote.")],
    data_dir: NewDataDir,
    to_seq: Annotated[int | None, typer.Option(metavar="N", help="Only up to this unit.")] = None,
    to_time: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only up to the last unit at or before this, like 2026-01-31T12:00:00Z."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a new data directory from a backup, whole or up to a unit or a time, and verify it.

    The restored log begins a new epoch behind its head: cursors resume up to there, and are told EPOCH_CHANGED above.
    Units that were appended together are never parted: where the end lies within them, they are left out.

    Exit code 0 when all is durable and whole, 2 when the options make no sense, else 1.
    """
    from engram_bus.backup.restoring import parse_time, restore

    if to_seq is not None and to_time is not None:
        raise Failure("--to-seq and --to-time exclude each other", code=2)
    with told_of_data(code=2):
        to_ts = None if to_time is None else parse_time(to_time)
    with told_of_data(), Progress("restoring") as progress:
        restored = restore(backup_dir, data_dir, to_seq=to_seq, to_ts=to_ts, tell=progress)
    if as_json:
        import msgspec

        print(msgspec.json.encode(restored).decode())
        return
    print(restored.report.text())
    if restored.left_out:
        left_out, were = counted(restored.left_out, "unit"), "was" if restored.left_out == 1 else "were"
        print(f"  {left_out} more {were} asked for, but only together with later ones: left out")
    print(f"  epoch {restored.epoch} begins: cursors up to {restored.head} go on, later ones are told EPOCH_CHANGED")
