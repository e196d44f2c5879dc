"""How many processes a bus is served by: as it was told, or by what a flush of its disk costs."""

import os
import statistics
import tempfile
import time
from pathlib import Path

from engram_bus.limits import FLUSH_SLOW_US_MIN, FLUSH_TRIAL_SECONDS_MAX, FLUSH_TRIALS_MAX, KIB, WORKERS_BY_ITSELF_MAX
from engram_bus.settings import Settings

_PAGE = bytes(4 * KIB)


def chosen_workers(settings: Settings) -> tuple[int, str]:
    """How many workers beside a log process (0: all in one process), and why."""
    if settings.workers is not None:
        return (settings.workers if settings.workers > 1 else 0), "as it was told"
    flush_us = flush_p50_us(Path(settings.data_dir))
    cpus = len(os.sched_getaffinity(0))
    if flush_us is None:
        return 0, "the disk's flush could not be measured"
    told = f"a flush of the disk takes {flush_us} us (p50), slow is {FLUSH_SLOW_US_MIN}; {cpus} processors"
    return workers_for(flush_us, cpus), told


def workers_for(flush_us: int, cpus: int) -> int:
    """A log process where the disk is slow, and a worker for each processor it leaves."""
    return min(max(cpus - 1, 1), WORKERS_BY_ITSELF_MAX) if flush_us >= FLUSH_SLOW_US_MIN else 0


def flush_p50_us(path: Path) -> int | None:
    """What a write of one page and its flush take on the disk of a directory that need not be there yet; None where it
    cannot be told. The file has no name, so nothing is left of it."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    taken: list[float] = []
    try:
        with tempfile.TemporaryFile(dir=path, buffering=0) as file:
            file.write(_PAGE)
            os.fdatasync(file.fileno())
            until = time.perf_counter() + FLUSH_TRIAL_SECONDS_MAX
            while len(taken) < FLUSH_TRIALS_MAX and time.perf_counter() < until:
                started = time.perf_counter()
                os.pwrite(file.fileno(), _PAGE, 0)
                os.fdatasync(file.fileno())
                taken.append(time.perf_counter() - started)
    except OSError:
        return None
    return round(statistics.median(taken) * 1_000_000) if taken else None
