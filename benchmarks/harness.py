"""What every benchmark shares: the machine and its disk in figures, percentiles, a bus in its own process, a report."""

import contextlib
import functools
import http.client
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
MEMORY = Path("/dev/shm")


def percentiles_us(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99, p99.9 and the largest, in microseconds."""
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {name: round(ordered[int((len(ordered) - 1) * share)] * 1e6, 1) for name, share in at.items()}


def fdatasync_seconds(
    directory: Path, *, count: int = 500, size_bytes: int = 4_096, overwrite: bool = False
) -> list[float]:
    """How long the disk under `directory` takes for one write and its flush: appended, or over zeros that it holds."""
    path = directory / "fdatasync.probe"
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    page = b"x" * size_bytes
    times = []
    try:
        if overwrite:
            os.pwrite(file, bytes(count * size_bytes), 0)
            os.fsync(file)
        for place in range(0, count * size_bytes, size_bytes):
            started = time.perf_counter()
            os.pwrite(file, page, place)
            os.fdatasync(file)
            times.append(time.perf_counter() - started)
    finally:
        os.close(file)
        path.unlink()
    return times


def machine(directory: Path) -> dict[str, Any]:
    """Where a figure comes from, and when."""
    return {
        "commit": commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": _said("stat", "-f", "-c", "%T", str(directory)),
        "fdatasync_us": percentiles_us(fdatasync_seconds(directory)),
        "prezeroed_overwrite_fdatasync_us": percentiles_us(fdatasync_seconds(directory, overwrite=True)),
    }


@functools.cache
def commit() -> str:
    """What is measured: what is committed while it runs is not."""
    return _said("git", "rev-parse", "--short", "HEAD")


def _said(*command: str) -> str:
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return said or "unknown"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory on a disk, not on a tmpfs: ENGRAM_BENCH_DIR, or /var/tmp. SIGTERM leaves it, and no server behind."""
    leave_nothing_behind()
    with tempfile.TemporaryDirectory(
        prefix="engram-bench-", dir=os.environ.get("ENGRAM_BENCH_DIR", "/var/tmp")
    ) as path:
        yield Path(path)


def leave_nothing_behind() -> None:
    """SIGTERM ends this process as an exception would: servers that it started are stopped first."""
    signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def in_memory(*, room_bytes: int = 0) -> Iterator[Path]:
    """A directory whose disk is memory: what a bus does besides waiting for a flush. Says so where it has no room."""
    free_bytes = shutil.disk_usage(MEMORY).free
    if free_bytes < room_bytes:
        sys.exit(f"{MEMORY} has {free_bytes} bytes free, of {room_bytes} needed (of a container: --shm-size)")
    with tempfile.TemporaryDirectory(prefix="engram-bench-", dir=MEMORY) as path:
        yield Path(path)


class Served(NamedTuple):
    """A bus in a process of its own."""

    host: str
    port: int
    pid: int


@contextlib.contextmanager
def serving(directory: Path, *flags: str, kill: bool = False, core: int | None = None) -> Iterator[Served]:
    """A bus in a process of its own (one, however slow the disk) on a free port of loopback. It ends by SIGTERM, or
    killed.

    `core` is the processor of its loop; what indexes for search beside it may be anywhere.
    """
    directory.mkdir(parents=True, exist_ok=True)
    where = ["--port", "0", "--data-dir", str(directory / "data"), "--workers", "0"]
    command = [sys.executable, "-m", "engram_bus.cli", "serve", *where]
    said = directory / "serve.log"
    with said.open("w") as stderr:
        process = subprocess.Popen([*command, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert process.stdout is not None
        url = next((word for line in process.stdout for word in line.split() if word.startswith("http://")), "")
        assert url, f"the bus did not start: {said.read_text()}"
        host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
        if core is not None and (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(process.pid, {core})
        yield Served(host, int(port), process.pid)
    finally:
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        process.wait(timeout=30)


@contextlib.contextmanager
def served(directory: Path, *flags: str, kill: bool = False) -> Iterator[tuple[str, int]]:
    """The same, for who wants its host and port alone."""
    with serving(directory, *flags, kill=kill) as bus:
        yield bus.host, bus.port


def allow_files() -> int:
    """As many open files, and so sockets, as this process may have; gives how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def grpc_port(bus: Served) -> int:
    """Where it serves gRPC; it was started with `--grpc-port 0`."""
    connection = http.client.HTTPConnection(bus.host, bus.port, timeout=30)
    connection.request("GET", "/readyz")
    port = json.loads(connection.getresponse().read())["grpc_port"]
    connection.close()
    assert isinstance(port, int), "gRPC is off"
    return port


def caught_up(host: str, port: int) -> float:
    """Return when search has taken in all of the log, where it is on; how many seconds that took."""
    started = time.perf_counter()
    while True:
        status = _status(host, port)
        if not status["search"] or status["search"]["taken_seq"] >= status["head"]:
            return time.perf_counter() - started
        time.sleep(0.02)


def _status(host: str, port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("GET", "/status")
    status: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return status


def cpu_seconds(pid: int) -> float:
    """What one process has used, its threads included, its children not."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """The memory one process has by itself: its own pages, not those of files, such as the log, that it maps."""
    return _status_bytes(pid, "RssAnon:")


def mapped_bytes(pid: int) -> int:
    """What it has in memory of the files that it maps."""
    return _status_bytes(pid, "RssFile:")


def _status_bytes(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1_024 for line in lines if line.startswith(name))


def children(pid: int) -> list[int]:
    """The processes that one has started."""
    said = (task.joinpath("children").read_text(encoding="ascii") for task in Path(f"/proc/{pid}/task").iterdir())
    return [int(child) for one in said for child in one.split()]


def report(question: str, figures: dict[str, Any], *, small: bool) -> None:
    """Print the figures; keep those of a full run in results/."""
    print(json.dumps({"question": question, **figures}, indent=2))
    if not small:
        keep(question, figures)


def keep(question: str, figures: dict[str, Any]) -> None:
    """Write the figures into results/."""
    RESULTS.mkdir(exist_ok=True)
    name = Path(sys.argv[0]).stem
    (RESULTS / f"{name}.json").write_text(json.dumps({"question": question, **figures}, indent=2) + "\n")
