"""How long from publish to delivery with 100 subscribers at 1,000 units a second, and what does a frozen one cost them?

The load is `load/fan.c`, built here: it counts from when a unit was due, so a bus that holds up its publisher shows.

    python -m benchmarks.bench_delivery [--small]
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, report, scratch, served

QUESTION = "publish to delivery, durable, 100 WebSocket subscribers at 1,000 units/s: with and without a frozen one"
SOURCE = Path(__file__).parent / "load" / "fan.c"


def main() -> None:
    """Runs with and without a frozen subscriber in turn; medians over the rounds."""
    small = "--small" in sys.argv
    rounds, units, per_second, subscribers = (1, 200, 500, 10) if small else (5, 5_000, 1_000, 100)
    healthy: list[dict[str, Any]] = []
    beside_frozen: list[dict[str, Any]] = []
    with scratch() as directory:
        program = directory / "fan"
        subprocess.run(["cc", "-O2", "-o", str(program), str(SOURCE)], check=True)
        with served(directory) as (host, port):
            about = machine(directory)
            for _ in range(rounds):
                healthy.append(_run(program, host, port, subscribers - 1, 0, units, per_second))
                beside_frozen.append(_run(program, host, port, subscribers - 1, 1, units, per_second))
    without, beside = _median(healthy, "p99_ms"), _median(beside_frozen, "p99_ms")
    figures = {
        "machine": about,
        "subscribers": subscribers,
        "units_per_second": per_second,
        "healthy": healthy,
        "beside_a_frozen_one": beside_frozen,
        "p50_ms": _median(healthy, "p50_ms"),
        "p99_ms": without,
        "p99_ms_beside_a_frozen_one": beside,
        "p99_ratio": round(beside / without, 2),
        "lost": sum(run["lost"] for run in healthy + beside_frozen),
        "out_of_order": sum(run["disorder"] for run in healthy + beside_frozen),
    }
    report(QUESTION, figures, small=small)


def _run(program: Path, host: str, port: int, healthy: int, frozen: int, units: int, per_second: int) -> dict[str, Any]:
    arguments = [str(program), host, str(port), str(healthy), str(frozen), str(units), str(per_second), "300"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return float(sorted(run[name] for run in runs)[len(runs) // 2])


if __name__ == "__main__":
    main()
