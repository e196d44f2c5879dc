"""The C programs of load/: built from source when they are older than it, run on a processor of their own."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import ROOT
from benchmarks.histogram import Histogram

SOURCES = Path(__file__).parent / "load"
BUILT = ROOT / ".benchmarks" / "load"
SERVER_CORE, LOAD_CORE = 0, 1
RUN_SECONDS_MAX = 180


class Appended(NamedTuple):
    """What one run of `appends` found."""

    per_second: float
    times: Histogram
    load_cpu_share: float
    unanswered: int


class Delivered(NamedTuple):
    """What one run of `fan` found: deliveries, and times from publish to each, to the last, and to the answer."""

    per_second: float
    late: Histogram
    last: Histogram
    answers: Histogram
    probe: Histogram
    load_cpu_share: float
    units: int
    lost: int
    disorder: int


def appends(wire: str, port: int, **what: float | str) -> Appended:
    """Appends of 300 bytes, in a closed loop or (`per_second`) at a pace; see load/appends.c."""
    said = _ran("appends", wire=wire, port=port, **what)
    return Appended(said["per_second"], Histogram(said["histogram_ns"]), said["load_cpu_share"], said["unanswered"])


def fan(wire: str, port: int, **what: float | str) -> Delivered:
    """One publisher and many subscribers; see load/fan.c."""
    said = _ran("fan", wire=wire, port=port, **what)
    late, last, answers, probe = (Histogram(said.get(f"{name}_ns", ())) for name in ("late", "last", "answer", "probe"))
    return Delivered(
        per_second=said["per_second"],
        late=late,
        last=last,
        answers=answers,
        probe=probe,
        load_cpu_share=said["load_cpu_share"],
        units=said["units"],
        lost=said["lost"],
        disorder=said["disorder"],
    )


def read_all(wire: str, port: int, units: int, **what: float | str) -> float:
    """Units a second of one subscriber that reads so many from the beginning."""
    return float(_ran("fan", wire=wire, port=port, read=units, **what)["per_second"])


@contextlib.contextmanager
def null_server(wire: str) -> Iterator[tuple[int, int]]:
    """One that answers everything at once; its port and pid."""
    command = [*on_core(SERVER_CORE), str(built("null")), f"wire={wire}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "it is a pipe"
            yield int(process.stdout.readline()), process.pid
        finally:
            process.kill()


def on_core(core: int) -> Sequence[str]:
    """What a command begins with to stay on one processor; nothing where there are not enough of them."""
    can = shutil.which("taskset") is not None and len(os.sched_getaffinity(0)) > max(SERVER_CORE, LOAD_CORE)
    return ("taskset", "-c", str(core)) if can else ()


def pinned() -> str:
    """For a report."""
    return f"server on core {SERVER_CORE}, load on core {LOAD_CORE}" if on_core(0) else "nothing is pinned"


def built(name: str) -> Path:
    """The program, built when a source is newer."""
    program = BUILT / name
    newest = max(path.stat().st_mtime for path in SOURCES.iterdir())
    if not program.exists() or program.stat().st_mtime < newest:
        BUILT.mkdir(parents=True, exist_ok=True)
        made = program.with_name(f"{name}.{os.getpid()}")
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(made), str(SOURCES / f"{name}.c")], check=True)
        made.rename(program)
    return program


def _ran(name: str, **what: float | str) -> dict[str, Any]:
    command = [*on_core(LOAD_CORE), str(built(name)), *(f"{key}={value}" for key, value in what.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RUN_SECONDS_MAX)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}{done.stdout[:600]}"
    said: dict[str, Any] = json.loads(done.stdout)
    return said
