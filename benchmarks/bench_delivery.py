"""How long from publish to delivery with 100 subscribers at 1,000 units a second, and what does a frozen one cost them?

The load is `load/fan.c`: it counts from when a unit was due, so a bus that holds up its publisher shows.

    python -m benchmarks.bench_delivery [--small]
"""

import sys
from collections.abc import Sequence

from benchmarks import native
from benchmarks.harness import machine, report, scratch, serving
from benchmarks.rounds import delivered, in_turn, ratio

QUESTION = "publish to delivery, durable, 100 WebSocket subscribers at 1,000 units/s: with and without a frozen one"


def main() -> None:
    """Runs with and without a frozen subscriber in turn; medians over the rounds."""
    small = "--small" in sys.argv
    rounds, seconds, per_second, subscribers = (1, 0.4, 500, 10) if small else (5, 5.0, 1_000, 100)
    load = {"seconds": seconds, "per_second": per_second}
    with scratch() as directory, serving(directory, "--grpc-port", "0", core=native.SERVER_CORE) as bus:
        about = machine(directory)
        runs = in_turn(
            {
                "healthy": lambda: native.fan("ws", bus.port, subscribers=subscribers, **load),
                "beside_a_frozen_one": lambda: native.fan(
                    "ws", bus.port, subscribers=subscribers - 1, frozen=1, **load
                ),
            },
            rounds=rounds,
        )
    figures = {
        "machine": about,
        "pinned": native.pinned(),
        "subscribers": subscribers,
        "units_per_second": per_second,
        **{name: delivered(some) for name, some in runs.items()},
        "p99_ratio": ratio(_p99s(runs["beside_a_frozen_one"]), _p99s(runs["healthy"])),
    }
    report(QUESTION, figures, small=small)


def _p99s(runs: Sequence[native.Delivered]) -> list[float]:
    return [run.late.at_us(0.99) for run in runs]


if __name__ == "__main__":
    main()
