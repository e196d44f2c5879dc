"""What is compared takes turns: A B A B, forwards and backwards, so that all meet the machine in the same mood."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from benchmarks.harness import fdatasync_seconds, percentiles_us
from benchmarks.histogram import Histogram
from benchmarks.native import Appended, Delivered

T = TypeVar("T")


def in_turn(turns: Mapping[str, Callable[[], T]], *, rounds: int, first: int = 0) -> dict[str, list[T]]:
    """What each said in each round; every second round goes backwards."""
    said: dict[str, list[T]] = {name: [] for name in turns}
    for number in range(first, first + rounds):
        for name in [*turns] if number % 2 == 0 else [*turns][::-1]:
            said[name].append(turns[name]())
    return said


def ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """The median of each round's: a round shares one mood of the machine."""
    return round(median(one / max(other, 1e-9) for one, other in zip(ours, others, strict=True)), 3)


class Flushes:
    """The disk's own flushes, round by round, p50 in microseconds: of an append, and of what was written before."""

    def __init__(self, directory: Path, *, count: int = 300) -> None:
        self._directory = directory
        self._count = count
        self.append_us: list[float] = []
        self.overwrite_us: list[float] = []

    def measure(self) -> None:
        """One round of both."""
        for overwrite, times in ((False, self.append_us), (True, self.overwrite_us)):
            seconds = fdatasync_seconds(self._directory, count=self._count, overwrite=overwrite)
            times.append(percentiles_us(seconds)["p50"])

    def figures(self) -> dict[str, Any]:
        """For a report."""
        return {
            "append_fdatasync_p50_us": _both(self.append_us, best=min),
            "prezeroed_overwrite_fdatasync_p50_us": _both(self.overwrite_us, best=min),
        }


def appended(runs: Sequence[Appended]) -> dict[str, Any]:
    """Medians over the rounds and the best of them; percentiles over all units too."""
    return {
        "per_second": _both([run.per_second for run in runs], best=max, digits=0),
        **_times(run.times for run in runs),
        "load_cpu_share": round(median(run.load_cpu_share for run in runs), 2),
        **({"unanswered": lost} if (lost := sum(run.unanswered for run in runs)) else {}),
    }


def delivered(runs: Sequence[Delivered]) -> dict[str, Any]:
    """The same of a fan-out: deliveries, and times to each subscriber and to the last of them."""
    return {
        "deliveries_per_second": _both([run.per_second for run in runs], best=max, digits=0),
        **_times(run.late for run in runs),
        "to_the_last": _times(run.last for run in runs),
        "load_cpu_share": round(median(run.load_cpu_share for run in runs), 2),
        "lost": sum(run.lost for run in runs),
        "out_of_order": sum(run.disorder for run in runs),
    }


def _times(histograms: Any) -> dict[str, Any]:
    rounds = list(histograms)
    together = Histogram()
    for one in rounds:
        together += one
    return {
        "p50_us": _both([one.at_us(0.5) for one in rounds], best=min),
        "p99_us": _both([one.at_us(0.99) for one in rounds], best=min),
        "all_us": together.percentiles_us(),
    }


def _both(values: Sequence[float], *, best: Callable[[Sequence[float]], float], digits: int = 1) -> dict[str, float]:
    return {"median": round(median(values), digits), "best": round(best(values), digits)}
