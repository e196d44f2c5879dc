"""`engram export`: a log as lines of JSON on stdout."""

import os
import sys

from engram_bus.cli.failures import told_of_data
from engram_bus.cli.options import DataDir
from engram_bus.cli.progress import Progress
from engram_bus.words import counted


def export(data_dir: DataDir) -> None:
    """Write all units of a log to stdout as NDJSON, for other programs and for `engram import`; a bus may be running.

    A line about the log comes first, then a line for every unit in its order, then one with the checksum of them all.
    Idempotency keys, digests, and which units were appended together are not in it: a backup has them.

    Exit code 0 when everything up to the head was written, else 1.
    """
    from engram_bus.backup.exporting import export

    os.nice(10)  # The bus comes first.
    with told_of_data(), Progress("exporting") as progress:
        exported = export(data_dir, sys.stdout.buffer, tell=progress)
    print(f"everything up to {exported.epoch}.{exported.head}, {counted(exported.bytes, 'byte')}", file=sys.stderr)
