"""What became of all exchanges: counted by transport, told line by line."""

from collections import Counter
from collections.abc import Iterator

from engram_bus.conformance.runner import Outcome


class Report:
    """Takes outcomes as they come."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.left_out: Counter[tuple[str, str]] = Counter()
        """By transport and by what was needed."""

    def take(self, outcome: Outcome) -> None:
        if outcome.left_out is not None:
            self.left_out[outcome.transport, outcome.left_out] += 1
        elif outcome.failure is not None:
            self.failed[outcome.transport] += 1
        else:
            self.passed[outcome.transport] += 1

    @property
    def is_well(self) -> bool:
        """Something was played, and nothing failed."""
        return not self.failed and bool(self.passed)

    def lines(self) -> Iterator[str]:
        """A line for each transport."""
        names = dict.fromkeys([*self.passed, *self.failed, *(name for name, _ in self.left_out)])
        for name in sorted(names):
            left_out = {need: count for (transport, need), count in self.left_out.items() if transport == name}
            told = f"{name:<18} {self.passed[name]:>4} passed {self.failed[name]:>4} failed"
            needed = ", ".join(f"{count} need {need}" for need, count in sorted(left_out.items()))
            yield f"{told} {sum(left_out.values()):>4} left out{f' ({needed})' if needed else ''}"


def failure_line(outcome: Outcome) -> str:
    """One exchange that failed, on one line."""
    return f"{outcome.transport}: {outcome.file}: {outcome.exchange}: {outcome.failure}"
