"""The room that a disk has left, and how much of it is kept in reserve."""

import os
from pathlib import Path
from typing import NamedTuple

from engram_bus.limits import DISK_RESERVE_BYTES, DISK_RESERVE_DIVISOR


class Room(NamedTuple):
    free_bytes: int
    reserve_bytes: int
    """Of these, what is left to others: nothing of ours is written where less is free."""


def room(path: Path) -> Room:
    """Of the disk that a path is on. Raises OSError where there is no such path."""
    disk = os.statvfs(path)
    size_bytes = disk.f_blocks * disk.f_frsize
    return Room(disk.f_bavail * disk.f_frsize, min(DISK_RESERVE_BYTES, size_bytes // DISK_RESERVE_DIVISOR))
