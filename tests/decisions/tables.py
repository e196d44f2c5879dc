"""Locks with the log they came from, for tests: commands are decided, recorded and tended as the writer does."""

from typing import Any

from engram_bus.decisions.locks import Locks, change_of
from engram_bus.decisions.state import State
from engram_bus.units import (
    AcquireLock,
    Command,
    Draft,
    Lock,
    LockMode,
    RefreshLock,
    ReleaseLock,
    Stamp,
    TendLocks,
    WorkUnit,
    ts_text,
)

TTL = 30_000
SECOND = 1_000_000


class Table:
    """The decisions with the log they came from: decides, records and tends as the writer does."""

    def __init__(self) -> None:
        self.state = State()
        self.units: list[WorkUnit] = []
        self.now_us = 0

    @property
    def locks(self) -> Locks:
        return self.state.locks

    def ask(self, command: Command | TendLocks) -> list[WorkUnit]:
        """Decide a command and record it."""
        return [self.record(draft) for draft in self.state.decide(command, Stamp(self.now_us, 0))]

    def record(self, draft: Draft) -> WorkUnit:
        unit = WorkUnit(
            seq=len(self.units) + 1,
            id=Stamp(self.now_us, 0).unit_id(len(self.units)),
            context_id=draft.context_id,
            version=self.state.contexts.version(draft.context_id) + 1,
            agent_id=draft.agent_id,
            type=draft.type,
            ts=ts_text(self.now_us),
            content_type=draft.content_type,
            kind=draft.kind,
            resources=draft.resources,
            payload=draft.payload,
        )
        self.units.append(unit)
        self.state.evolve(unit)
        return unit

    def acquire(self, agent_id: str, *resources: str, **asked: Any) -> WorkUnit:
        """What came of it: granted, refreshed or queued."""
        (unit,) = self.ask(acquire(agent_id, *resources, **asked))
        return unit

    def share(self, agent_id: str, *resources: str, **asked: Any) -> WorkUnit:
        return self.acquire(agent_id, *resources, mode=LockMode.SHARED, **asked)

    def release(self, lock: WorkUnit) -> list[str]:
        """Give it back; what comes of that."""
        self.ask(ReleaseLock(lock_id=lock.id, agent_id=change_of(lock).agent_id))
        return self.tend()

    def pass_time(self, seconds: float) -> list[str]:
        """What comes of it."""
        self.now_us += int(seconds * SECOND)
        return self.tend()

    def tend(self, *, units_max: int = 512, **ended: Any) -> list[str]:
        """All that is due, step by step."""
        told: list[str] = []
        while True:
            looks = self.locks.settle(1_000)
            step = self.ask(TendLocks(units_max=units_max, **ended))
            assert len(step) <= units_max
            told += map(said, step)
            if not step and not looks:
                return told

    def lock(self, unit: WorkUnit) -> Lock:
        lock = self.locks.lock(unit.id, self.now_us)
        assert lock is not None, "it is held"
        return lock

    def holders(self, resource: str) -> list[str]:
        return [lock.holder_agent for lock in self.locks.state(resource, self.now_us).holders]

    def queue(self, resource: str) -> list[str]:
        return [wait.agent_id for wait in self.locks.state(resource, self.now_us).queue]


def acquire(agent_id: str, *resources: str, ttl_ms: int = TTL, **asked: Any) -> AcquireLock:
    return AcquireLock(resources=resources, agent_id=agent_id, ttl_ms=ttl_ms, **asked)


def release(agent_id: str, lock: WorkUnit, **asked: Any) -> ReleaseLock:
    return ReleaseLock(lock_id=lock.id, agent_id=agent_id, **asked)


def refresh(agent_id: str, lock: WorkUnit, **asked: Any) -> RefreshLock:
    return RefreshLock(lock_id=lock.id, agent_id=agent_id, **asked)


def said(unit: WorkUnit) -> str:
    change = change_of(unit)
    words = [str(unit.kind).removeprefix("lock."), change.agent_id, *change.resources, change.why or ""]
    return " ".join(filter(None, words))
