"""Times as a histogram: counts of nanoseconds, which add up over rounds without losing a percentile."""

from collections import Counter
from collections.abc import Iterable
from typing import Self

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}


class Histogram:
    """What a load printed (buckets within 0.8 percent), or several of them together."""

    def __init__(self, buckets: Iterable[tuple[int, int]] = ()) -> None:
        self._counts: Counter[int] = Counter()
        for nanoseconds, count in buckets:
            self._counts[nanoseconds] += count

    def __len__(self) -> int:
        return self._counts.total()

    def __iadd__(self, other: "Histogram") -> Self:
        self._counts += other._counts
        return self

    def at_us(self, share: float) -> float:
        """The time below which this share of all lies, in microseconds."""
        wanted, passed = share * self._counts.total(), 0
        for nanoseconds in sorted(self._counts):
            passed += self._counts[nanoseconds]
            if passed >= wanted:
                return round(nanoseconds / 1e3, 1)
        raise AssertionError("a share is at most 1, and something was counted")

    def percentiles_us(self) -> dict[str, float]:
        """p50, p90, p99, p99.9 and the largest, in microseconds."""
        return {name: self.at_us(share) for name, share in PERCENTILES.items()}
