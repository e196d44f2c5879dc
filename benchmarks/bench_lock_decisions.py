"""What does a decision about locks cost in a full table: 100,000 locks held, 10,000 waiting in one queue?

Each figure is a decision and its evolve, without log and loop. The floor is the same in a table that holds one lock for
which one waits; both take turns in every round.

    python -m benchmarks.bench_lock_decisions [--small]
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from benchmarks.harness import machine, percentiles_us, report, scratch
from engram_bus.decisions.locks import Locks
from engram_bus.decisions.state import State
from engram_bus.errors import EngramError
from engram_bus.limits import LOCK_GRAPH_WAITS_MAX
from engram_bus.units import (
    AcquireLock,
    Append,
    Command,
    Draft,
    Fence,
    LockMode,
    ReleaseLock,
    Stamp,
    TendLocks,
    UnitType,
    UpdateContext,
    WorkUnit,
    ts_text,
)

QUESTION = "decide and evolve of lock commands in a full table, as a ratio to a table with one lock and one wait"
LOCKS_PER_AGENT = 100
HOUR_MS = 3_600_000
STAMP = Stamp(1_700_000_000_000_000, 0)
HOT = "shared/plan.md"


class Table:
    """The decisions, fed as the writer feeds them. One resource is held, and all who wait do so for it."""

    def __init__(self, *, locks: int, waiters: int) -> None:
        self.state = State()
        self.seq = 0
        self.line: list[str] = []
        """Who holds the hot resource, and who waits for it, in order."""
        for number in range(locks - 1):
            self.do(acquire(f"agent{number // LOCKS_PER_AGENT}", path(number)))
        for number in range(waiters + 1):
            self.join(f"waiter{number}")
        self.hot = self.held(HOT)
        self.do(UpdateContext(context_id="fenced", agent_id="ann", fences=("repo*/src/*", "secret/*")))
        self.mine = self.do(acquire("ann", "mine/src"))[0]

    def do(self, command: Command | TendLocks) -> list[WorkUnit]:
        return [self.take(draft) for draft in self.state.decide(command, STAMP)]

    def take(self, draft: Draft) -> WorkUnit:
        self.seq += 1
        unit = WorkUnit(
            seq=self.seq,
            id=STAMP.unit_id(self.seq),
            context_id=draft.context_id,
            version=self.state.contexts.version(draft.context_id) + 1,
            agent_id=draft.agent_id,
            type=draft.type,
            ts=ts_text(STAMP.ts_us),
            content_type=draft.content_type,
            kind=draft.kind,
            resources=draft.resources,
            payload=draft.payload,
        )
        self.state.evolve(unit)
        return unit

    def join(self, agent_id: str) -> None:
        self.line.append(agent_id)
        self.do(acquire(agent_id, HOT, wait_ms=HOUR_MS))

    def held(self, resource: str) -> str:
        (lock,) = self.state.locks.state(resource, STAMP.ts_us).holders
        return lock.lock_id


def acquire(agent_id: str, resource: str, **asked: Any) -> AcquireLock:
    return AcquireLock(resources=(resource,), agent_id=agent_id, ttl_ms=HOUR_MS, **asked)


def path(number: int) -> str:
    return f"repo{number // 10_000}/src/module{number // 100}/file{number}.py"


def main() -> None:
    """The same questions to both tables, in turns."""
    small = "--small" in sys.argv
    locks, waiters, rounds, count = (1_000, 100, 2, 20) if small else (100_000, 10_000, 20, 100)
    full, floor = Table(locks=locks, waiters=waiters), Table(locks=1, waiters=1)
    # As many as one search looks at: with more, nothing is found any more.
    searched = Table(locks=1, waiters=min(waiters, LOCK_GRAPH_WAITS_MAX - 10))
    # As serve does: what lives for ever is not walked again and again.
    gc.collect()
    gc.freeze()
    questions: dict[str, Callable[[Table, int], Iterator[float]]] = {
        "free_acquire": _free_acquire,
        "refused_try": _refused_try,
        "enqueue": _enqueue,
        "enqueue_of_a_holder": _enqueue_of_holder,
        "release_and_grant_at_the_head_of_the_queue": _hand_over,
        "deadlock_search_through_the_queue": _deadlock,
        "append": _append,
        "append_with_fence": _append_with_fence,
        "append_of_a_fenced_resource": _append_of_fenced,
    }
    times: dict[str, dict[str, list[float]]] = {name: {"full": [], "floor": []} for name in questions}
    for _ in range(rounds):
        for name, question in questions.items():
            is_search = question is _deadlock
            for which, table in (("full", searched if is_search else full), ("floor", floor)):
                times[name][which] += question(table, 3 if is_search else count)
    with scratch() as directory:
        figures: dict[str, Any] = {
            "machine": machine(directory),
            "locks": locks,
            "waiters": waiters,
            "waiters_of_the_deadlock_search": len(searched.line) - 1,
        }
    for name, of in times.items():
        figures[name] = {
            "us": percentiles_us(of["full"]),
            "floor_us": percentiles_us(of["floor"]),
            "ratio": round(median(of["full"]) / median(of["floor"]), 2),
        }
    figures["release_before_a_queue_of_sharers"] = _sharers(waiters)
    figures["restart"] = _restart(full)
    report(QUESTION, figures, small=small)


def _timed(table: Table, command: Command | TendLocks) -> float:
    started = time.perf_counter()
    drafts = table.state.decide(command, STAMP)
    for draft in drafts:
        table.take(draft)
    return time.perf_counter() - started


def _refused(table: Table, command: Command, code: str) -> float:
    refusal = None
    started = time.perf_counter()
    try:
        table.state.decide(command, STAMP)
    except EngramError as exc:
        refusal = exc
    seconds = time.perf_counter() - started
    assert refusal is not None
    assert refusal.code == code
    return seconds


def _free_acquire(table: Table, count: int) -> Iterator[float]:
    for number in range(count):
        resource = f"repo3/src/module{number}/new{table.seq}.py"
        yield _timed(table, acquire("ann", resource))
        table.do(ReleaseLock(lock_id=table.held(resource), agent_id="ann"))


def _refused_try(table: Table, count: int) -> Iterator[float]:
    for _ in range(count):
        yield _refused(table, acquire("ann", HOT), "LOCK_HELD")


def _enqueue(table: Table, count: int) -> Iterator[float]:
    for number in range(count):
        yield _timed(table, acquire(f"late{number}", HOT, wait_ms=HOUR_MS))
        table.do(TendLocks(units_max=1, ended_waits={table.state.locks.waits[-1]: "CANCELLED"}))


def _enqueue_of_holder(table: Table, count: int) -> Iterator[float]:
    """Ann holds something, so it could close a circle; but nobody waits for it."""
    for _ in range(count):
        yield _timed(table, acquire("ann", HOT, wait_ms=HOUR_MS))
        table.do(TendLocks(units_max=1, ended_waits={table.state.locks.waits[-1]: "CANCELLED"}))


def _hand_over(table: Table, count: int) -> Iterator[float]:
    for _ in range(count):
        holder = table.line.pop(0)
        seconds = _timed(table, ReleaseLock(lock_id=table.hot, agent_id=holder))
        yield seconds + _timed(table, TendLocks(units_max=512))
        table.hot = table.held(HOT)
        table.join(holder)


def _deadlock(table: Table, count: int) -> Iterator[float]:
    """The one who holds waits for ann, who asks to stand behind all who wait for it."""
    table.do(acquire(table.line[0], "mine/src/a.py", wait_ms=HOUR_MS))
    for _ in range(count):
        yield _refused(table, acquire("ann", HOT, wait_ms=HOUR_MS), "DEADLOCK")
    table.do(TendLocks(units_max=1, ended_waits={table.state.locks.waits[-1]: "CANCELLED"}))


def _write(context_id: str, *resources: str, fence: Fence | None = None) -> Append:
    draft = Draft(context_id=context_id, agent_id="ann", type=UnitType.FILE_CHANGE, resources=list(resources))
    return Append(draft=draft, fence=fence)


def _append(table: Table, count: int) -> Iterator[float]:
    for _ in range(count):
        yield _timed(table, _write("plan", "mine/src/a.py"))


def _append_with_fence(table: Table, count: int) -> Iterator[float]:
    for _ in range(count):
        yield _timed(table, _write("plan", "mine/src/a.py", fence=Fence("mine/src/a.py", table.mine.seq)))


def _append_of_fenced(table: Table, count: int) -> Iterator[float]:
    """One that matches a glob and is covered by a lock, and one that does not."""
    lock = table.do(acquire("ann", "repo_mine"))[0]
    for _ in range(count):
        yield _timed(table, _write("fenced", "repo_mine/src/a.py", "doc/b.md"))
    table.do(ReleaseLock(lock_id=lock.id, agent_id="ann"))


def _sharers(waiters: int) -> dict[str, float]:
    """All of them look again at once, and are granted at most 512 a commit."""
    table = Table(locks=1, waiters=0)
    for number in range(waiters):
        table.do(acquire(f"reader{number}", HOT, mode=LockMode.SHARED, wait_ms=HOUR_MS))
    released = _timed(table, ReleaseLock(lock_id=table.hot, agent_id=table.line[0]))
    granted = _timed(table, TendLocks(units_max=512))
    return {"release_us": round(released * 1e6, 1), "grants_of_one_commit_us": round(granted * 1e6, 1)}


def _restart(table: Table) -> dict[str, float]:
    started = time.perf_counter()
    state = table.state.locks.snapshot()
    kept = time.perf_counter()
    Locks().restore(state)
    restored = time.perf_counter()
    return {
        "snapshot_mib": round(len(state) / 2**20, 1),
        "snapshot_seconds": round(kept - started, 3),
        "restore_seconds": round(restored - kept, 3),
    }


if __name__ == "__main__":
    main()
