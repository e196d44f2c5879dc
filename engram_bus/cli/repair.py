"""`engram repair`: what is damaged, and a directory that is whole where that can be proven."""

from pathlib import Path
from typing import Annotated

import typer

from engram_bus.cli.failures import told_of_data
from engram_bus.cli.options import AsJson
from engram_bus.cli.progress import Progress


def repair(
    data_dir: Annotated[
        Path,
        typer.Argument(metavar="DATA_DIR", help="What `engram serve` was given as --data-dir; stop the bus first."),
    ],
    backup_dir: Annotated[
        Path | None,
        typer.Option("--from", metavar="BACKUP_DIR", help="A backup of this log, to take damaged units from."),
    ] = None,
    drop_after: Annotated[
        int | None,
        typer.Option(metavar="SEQ", help="Keep the log up to this unit, where what is behind it cannot be repaired."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a data directory and repair what is damaged in it. Nothing is deleted: what is replaced is moved aside.

    Index, snapshots and search are folded again from the log. A damaged log is copied into a new directory, with units
    of the backup where the digest chain proves that they are the same ones, and takes its place when it verifies; it
    begins a new epoch. Units that nobody has are lost only when you say so (--drop-after).

    Exit code 0 when the directory is whole now, else 1.
    """
    from engram_bus.backup.repairing import repair

    with told_of_data(), Progress("repairing") as progress:
        repaired = repair(
            data_dir,
            backup=backup_dir,
            drop_after=drop_after,
            tell=lambda what, seq, last: progress(seq, last),
        )
    if as_json:
        import msgspec

        print(msgspec.json.encode(repaired).decode())
        return
    for damage in repaired.damage:
        print(f"damaged: {damage}")
    for done in repaired.done:
        print(f"repaired: {done}")
    if repaired.moved_to is not None:
        print(f"the damaged directory is kept at {repaired.moved_to}")
    elif drop_after is not None:
        print("the log is whole: nothing has to be dropped, and nothing was")
    print(repaired.report.text())
