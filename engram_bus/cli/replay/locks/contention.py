"""What a lock replay showed: who stood in line for how long, what was refused, which promise was broken. Pure."""

from collections.abc import Mapping, Sequence

import msgspec

from engram_bus.cli.replay.locks.fold import LockFold
from engram_bus.cli.replay.locks.workload import Workload
from engram_bus.cli.replay.summary import Percentiles, percentiles


class Contention(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome. `violations` are of the independent fold, and 0 when all is well."""

    run: str
    operations: int
    """Of the recording; those that read are among them."""
    edits: int
    agents: int
    """Those that write."""
    files: int
    seconds: float
    units: int
    """Of the run's context: lock units and what was written under them."""
    units_per_second: float
    locks: int
    waits: int
    """Those who stood in line."""
    wait_ms: Percentiles | None
    longest_queue: int
    """On one file at one time."""
    written: int
    refusals: Mapping[str, int]
    """By code; such an edit was not made."""
    violations: int
    violations_told: Sequence[str]

    @property
    def is_clean(self) -> bool:
        return not self.violations


def contention(
    workload: Workload, fold: LockFold, *, refusals: Mapping[str, int], seconds: float, last_version: int
) -> Contention:
    """The figures, once everything is over: `last_version` is the version that the context has come to."""
    told = list(fold.violations)
    for is_so, violation in (
        (fold.version < last_version, f"only {fold.version} of {last_version} units came to the subscriber"),
        (fold.held > 0, f"{fold.held} locks are held still"),
        (fold.waiting > 0, f"{fold.waiting} still wait"),
        (
            fold.written + sum(refusals.values()) != len(workload.edits),
            f"of {len(workload.edits)} edits {fold.written} were written and {sum(refusals.values())} refused",
        ),
    ):
        if is_so:
            told.append(violation)
    return Contention(
        run=workload.run,
        operations=workload.operations,
        edits=len(workload.edits),
        agents=len(workload.by_agent),
        files=len({edit.resource for edit in workload.edits}),
        seconds=round(seconds, 3),
        units=fold.version,
        units_per_second=round(fold.version / seconds, 1) if seconds else 0.0,
        locks=fold.kinds["lock.granted"],
        waits=fold.kinds["lock.queued"],
        wait_ms=percentiles(fold.waited_ns),
        longest_queue=fold.longest_queue,
        written=fold.written,
        refusals=dict(refusals),
        violations=fold.violation_count + len(told) - len(fold.violations),
        violations_told=told,
    )
