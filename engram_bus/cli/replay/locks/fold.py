"""Folds the lock units of one context from its first unit, independently of the bus, and notes every broken promise.

Two holders never exclude each other, nobody overtakes who waits, fencing tokens grow, a lease does not end before its
time nor is extended after it, and what is written is written under its agent's live, exclusive lock. Pure.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from engram_client import WorkUnit

TOKEN: Final = "fencing_token"  # noqa: S105
"""The entry of a unit's meta that says under which fencing token it was written."""
VIOLATIONS_KEPT: Final = 100
"""Said in full; all are counted."""


class Change(msgspec.Struct, frozen=True):
    """What a lock unit says, as far as this fold looks at it."""

    agent_id: str
    resources: Sequence[str]
    mode: str
    lock_id: str | None = None
    wait_id: str | None = None
    until: str = ""
    why: str = ""


class _Claim(msgspec.Struct):
    """A lock that is held, or the wait for one."""

    change: Change
    since: str
    token: int
    until: str

    @property
    def agent_id(self) -> str:
        return self.change.agent_id

    @property
    def is_exclusive(self) -> bool:
        return self.change.mode == "exclusive"

    def covers(self, resource: str) -> bool:
        return any(_covers(held, resource) for held in self.change.resources)

    def conflicts(self, other: Change) -> bool:
        """Whether one of them keeps the other out."""
        return (
            self.agent_id != other.agent_id
            and (self.is_exclusive or other.mode == "exclusive")
            and any(
                _covers(mine, theirs) or _covers(theirs, mine)
                for mine in self.change.resources
                for theirs in other.resources
            )
        )


class LockFold:
    """The locks and waits of one context as its units tell them; give it every unit, in order."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.violation_count = 0
        self.kinds: Counter[str] = Counter()
        self.waited_ns: list[int] = []
        """Of those who stood in line and were granted, by the bus's clock."""
        self.longest_queue = 0
        self.written = 0
        """Units that touch something, each under its lock or else a violation."""
        self.version = 0
        self._seq = 0
        self._token = 0
        self._locks: dict[str, _Claim] = {}
        self._waits: dict[str, _Claim] = {}

    @property
    def held(self) -> int:
        return len(self._locks)

    @property
    def waiting(self) -> int:
        return len(self._waits)

    def take(self, unit: WorkUnit) -> None:
        """The next unit of the context."""
        if unit.version != self.version + 1 or unit.seq <= self._seq:
            self._violated(unit, f"comes after version {self.version} and seq {self._seq}")
        self.version, self._seq = unit.version, unit.seq
        kind = unit.kind or ""
        if not kind.startswith("lock."):
            if unit.resources and not kind.startswith("context."):
                self._take_written(unit)
            return
        self.kinds[kind] += 1
        change = msgspec.json.decode(unit.payload, type=Change)
        match kind:
            case "lock.granted":
                self._take_granted(unit, change)
            case "lock.refreshed":
                self._take_refreshed(unit, change)
            case "lock.queued":
                self._waits[unit.id] = _Claim(change, unit.ts, unit.seq, change.until)
                self.longest_queue = max(self.longest_queue, *map(self._queue_length, change.resources))
            case "lock.wait_ended":
                self._end_wait(unit, change)
            case "lock.released" | "lock.expired" | "lock.broken":
                self._take_ended(unit, change)
            case _:
                self._violated(unit, f"{kind} is no kind of lock unit")

    def _take_granted(self, unit: WorkUnit, change: Change) -> None:
        wait = self._end_wait(unit, change) if change.wait_id is not None else None
        if wait is not None:
            self.waited_ns.append(_nanoseconds(wait.since, unit.ts))
        if unit.seq <= self._token:
            self._violated(unit, f"its fencing token is {unit.seq}, after {self._token}")
        for held in self._locks.values():
            if held.conflicts(change):
                self._violated(unit, f"{held.agent_id} holds {_names(held.change)} since {held.token}")
        if not self._is_covered(change):
            for other in self._waits.values():
                if other.conflicts(change) and (wait is None or other.token < wait.token):
                    self._violated(unit, f"it overtakes {other.agent_id}, who waits since {other.token}")
        self._token = max(self._token, unit.seq)
        self._locks[unit.id] = _Claim(change, unit.ts, unit.seq, change.until)

    def _take_refreshed(self, unit: WorkUnit, change: Change) -> None:
        if change.wait_id is not None:
            self._end_wait(unit, change)
        lock = self._own(unit, change)
        if lock is None:
            return
        if lock.until <= unit.ts:
            self._violated(unit, f"its lease had run out at {lock.until}")
        lock.until = change.until

    def _take_ended(self, unit: WorkUnit, change: Change) -> None:
        lock = self._own(unit, change)
        if lock is None:
            return
        if unit.kind == "lock.expired" and lock.until > unit.ts:
            self._violated(unit, f"its lease runs until {lock.until}")
        del self._locks[change.lock_id or ""]

    def _take_written(self, unit: WorkUnit) -> None:
        self.written += 1
        token = unit.meta.get(TOKEN)
        for resource in unit.resources:
            live = [
                lock
                for lock in self._locks.values()
                if lock.agent_id == unit.agent_id
                and lock.is_exclusive
                and lock.until > unit.ts
                and lock.covers(resource)
            ]
            if not live:
                self._violated(unit, f"{unit.agent_id} holds no exclusive lock on {resource}")
            elif token is not None and all(str(lock.token) != token for lock in live):
                self._violated(unit, f"{unit.agent_id} does not hold {resource} under fencing token {token}")

    def _own(self, unit: WorkUnit, change: Change) -> _Claim | None:
        lock = self._locks.get(change.lock_id or "")
        if lock is None or (lock.agent_id, lock.change.resources) != (change.agent_id, change.resources):
            self._violated(unit, f"{change.agent_id} holds no lock {change.lock_id} on {_names(change)}")
            return None
        return lock

    def _end_wait(self, unit: WorkUnit, change: Change) -> _Claim | None:
        wait = self._waits.pop(change.wait_id or "", None)
        if wait is None or (wait.agent_id, wait.change.resources) != (change.agent_id, change.resources):
            self._violated(unit, f"{change.agent_id} does not wait as {change.wait_id} for {_names(change)}")
            return None
        return wait

    def _is_covered(self, change: Change) -> bool:
        """Whether its agent already has all of it: then it may pass those who wait for that."""
        return all(
            any(
                held.agent_id == change.agent_id
                and (held.is_exclusive or change.mode == "shared")
                and held.covers(resource)
                for held in self._locks.values()
            )
            for resource in change.resources
        )

    def _queue_length(self, resource: str) -> int:
        return sum(resource in wait.change.resources for wait in self._waits.values())

    def _violated(self, unit: WorkUnit, why: str) -> None:
        self.violation_count += 1
        if len(self.violations) < VIOLATIONS_KEPT:
            named = f"{_names(Change(unit.agent_id, unit.resources, ''))} " if unit.resources else ""
            self.violations.append(f"unit {unit.seq}, {unit.kind or unit.type} {named}by {unit.agent_id}: {why}")


def _covers(resource: str, other: str) -> bool:
    return other == resource or other.startswith(resource if resource.endswith("/") else resource + "/")


def _names(change: Change) -> str:
    return ", ".join(change.resources)


def _nanoseconds(since: str, until: str) -> int:
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)) // timedelta(microseconds=1) * 1_000
