"""The independent fold of lock units: what the bus decides breaks no promise, and every planted breach is told."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.cli.replay.locks.fold import LockFold
from engram_bus.decisions.state import State
from engram_bus.errors import EngramError
from engram_bus.units import (
    AcquireLock,
    BreakLock,
    LockMode,
    RefreshLock,
    ReleaseLock,
    Stamp,
    TendLocks,
    ts_text,
)
from engram_bus.units import WorkUnit as BusUnit
from engram_client import UnitType, WorkUnit

# --- A log written by hand -------------------------------------------------------------------------------------------


def lock(kind: str, agent: str, *resources: str, at: int, **said: Any) -> WorkUnit:
    """A lock unit at a seq, which is also its second; leases last 10 seconds unless `until` says otherwise."""
    until = said.pop("until", at + 10)
    change = {"agent_id": agent, "resources": resources, "mode": "exclusive", "until": ts_text(until * 10**6), **said}
    return unit(f"lock.{kind}", agent, *resources, at=at, payload=msgspec.json.encode(change))


def wrote(agent: str, resource: str, *, at: int, token: int | None = None) -> WorkUnit:
    return unit("file.edit", agent, resource, at=at, meta={} if token is None else {"fencing_token": str(token)})


def unit(kind: str, agent: str, *resources: str, at: int, **fields: Any) -> WorkUnit:
    return WorkUnit(
        seq=at,
        id=f"id{at}",
        context_id="r/locks",
        version=at,
        agent_id=agent,
        type=UnitType.SYSTEM,
        ts=ts_text(at * 10**6),
        content_type="application/json",
        kind=kind,
        resources=list(resources),
        **fields,
    )


def folded(*units: WorkUnit) -> LockFold:
    fold = LockFold()
    for one in units:
        fold.take(one)
    return fold


HONEST = [
    lock("granted", "ann", "a", at=1),
    lock("queued", "bob", "a", at=2),
    wrote("ann", "a/x", at=3, token=1),
    lock("refreshed", "ann", "a", at=4, lock_id="id1", until=9),
    lock("released", "ann", "a", at=5, lock_id="id1"),
    lock("granted", "bob", "a", at=6, wait_id="id2", until=8),
    wrote("bob", "a", at=7, token=6),
    lock("expired", "bob", "a", at=8, lock_id="id6"),
]


def test_an_honest_log_and_its_figures() -> None:
    fold = folded(*HONEST)
    assert fold.violations == []
    assert (fold.written, fold.waited_ns, fold.longest_queue) == (2, [4 * 10**9], 1)
    assert (fold.held, fold.waiting, fold.version) == (0, 0, 8)
    assert fold.kinds["lock.granted"] == 2


def but(at: int, instead: WorkUnit) -> list[WorkUnit]:
    """The honest log with one unit replaced, up to it."""
    return [*HONEST[: at - 1], instead]


PLANTED = {
    "two exclusive holders": (but(2, lock("granted", "bob", "a", at=2)), "ann holds a since 1"),
    "a holder below": (but(2, lock("granted", "bob", "a/x", at=2)), "ann holds a since 1"),
    "a holder above": (but(2, lock("granted", "bob", "/", at=2)), None),
    "a shared holder beside": (but(2, lock("granted", "bob", "a", at=2, mode="shared")), "ann holds a since 1"),
    "a name that only begins alike": (but(2, lock("granted", "bob", "ab", at=2)), None),
    "one overtaken": (but(6, lock("granted", "eve", "a", at=6)), "it overtakes bob, who waits since 2"),
    "a wait that never was": (but(6, lock("granted", "bob", "a", at=6, wait_id="id5")), "bob does not wait as id5"),
    "another's wait": (but(6, lock("granted", "eve", "a", at=6, wait_id="id2")), "eve does not wait as id2"),
    "a write without a lock": (but(6, wrote("ann", "a", at=6, token=1)), "ann holds no exclusive lock on a"),
    "a write beside the lock": (but(3, wrote("ann", "b", at=3)), "ann holds no exclusive lock on b"),
    "a write of another": (but(3, wrote("bob", "a", at=3)), "bob holds no exclusive lock on a"),
    "a write with an old token": (but(7, wrote("bob", "a", at=7, token=1)), "under fencing token 1"),
    "a write after the lease": (
        [lock("granted", "ann", "a", at=1, until=2), wrote("ann", "a", at=2)],
        "ann holds no exclusive lock on a",
    ),
    "a write under a shared lock": (
        [lock("granted", "ann", "a", at=1, mode="shared"), wrote("ann", "a", at=2)],
        "ann holds no exclusive lock on a",
    ),
    "a lease that ended early": (but(2, lock("expired", "ann", "a", at=2, lock_id="id1")), "its lease runs until"),
    "a lease extended too late": (
        [lock("granted", "ann", "a", at=1, until=2), lock("refreshed", "ann", "a", at=2, lock_id="id1")],
        "its lease had run out",
    ),
    "a lock released twice": (
        [*HONEST[:5], lock("released", "ann", "a", at=6, lock_id="id1")],
        "ann holds no lock id1",
    ),
    "a lock released by another": (but(5, lock("released", "bob", "a", at=5, lock_id="id1")), "bob holds no lock id1"),
    "a wait that ended twice": (
        [*HONEST[:6], lock("wait_ended", "bob", "a", at=7, wait_id="id2")],
        "bob does not wait as id2",
    ),
    "a missing unit": (HONEST[:3] + HONEST[4:5], "comes after version 3"),
    "a unit again": (HONEST[:3] + HONEST[2:3], "comes after version 3"),
    "a token that does not grow": (
        [HONEST[0], msgspec.structs.replace(lock("granted", "bob", "b", at=2), seq=1)],
        "its fencing token is 1, after 1",
    ),
    "a kind there is not": (but(2, lock("stolen", "bob", "a", at=2)), "is no kind of lock unit"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_breach_is_told(name: str) -> None:
    units, told = PLANTED[name]
    fold = folded(*units)
    if told is None:
        assert fold.violations == []
    else:
        assert any(told in violation for violation in fold.violations)
        assert fold.violation_count == len(fold.violations) > 0
        assert fold.violations[0].startswith(f"unit {units[-1].seq}, {units[-1].kind}")


def test_all_breaches_are_counted_and_the_first_are_told_in_full() -> None:
    fold = folded(*(wrote("ann", "a", at=at) for at in range(1, 151)))
    assert (fold.violation_count, len(fold.violations)) == (150, 100)


# --- What the bus decides --------------------------------------------------------------------------------------------

AGENTS = st.sampled_from(["ann", "bob", "eve"])
RESOURCES = st.sampled_from([("a",), ("b",), ("a/x",), ("a/x/y",), ("a", "b")])
STEPS = st.one_of(
    st.tuples(
        st.just("acquire"),
        AGENTS,
        RESOURCES,
        st.sampled_from(LockMode),
        st.integers(1, 20),
        st.sampled_from([0, 5, 1000]),
    ),
    st.tuples(st.sampled_from(["release", "refresh"]), st.integers(0, 50)),
    st.tuples(st.just("break"), RESOURCES),
    st.tuples(st.just("pass"), st.integers(1, 10)),
)


def decided(steps: list[Any]) -> Iterator[WorkUnit]:
    """The log that comes of these commands: decided, recorded and tended as the writer does."""
    state, granted, now_us, seq = State(), [], 0, 0

    def asked(command: Any) -> Iterator[WorkUnit]:
        nonlocal seq
        for draft in state.decide(command, Stamp(now_us, 0)):
            seq += 1
            recorded = BusUnit(
                seq=seq,
                id=Stamp(now_us, seq).unit_id(seq),
                context_id=draft.context_id,
                version=seq,
                agent_id=draft.agent_id,
                type=draft.type,
                ts=ts_text(now_us),
                content_type=draft.content_type,
                kind=draft.kind,
                resources=draft.resources,
                payload=draft.payload,
            )
            state.evolve(recorded)
            if draft.kind == "lock.granted":
                granted.append((recorded.id, draft.agent_id))
            yield msgspec.convert(msgspec.to_builtins(recorded, builtin_types=(bytes,)), WorkUnit)

    for name, *how in steps:
        command: Any = None
        if name == "pass":
            now_us += how[0] * 10**6
        elif name == "acquire":
            agent, resources, mode, ttl, wait = how
            command = AcquireLock(
                resources=resources, agent_id=agent, ttl_ms=ttl * 1000, mode=mode, wait_ms=wait * 1000
            )
        elif name == "break":
            command = BreakLock(resource=how[0][0], agent_id="root", reason="test")
        elif granted:
            lock_id, agent = granted[how[0] % len(granted)]
            command = (ReleaseLock if name == "release" else RefreshLock)(lock_id=lock_id, agent_id=agent)
        if command is not None:
            try:
                yield from asked(command)
            except EngramError:
                pass
        while tended := list(asked(TendLocks(units_max=3))):
            yield from tended


@given(st.lists(STEPS, max_size=40))
def test_what_the_bus_decides_breaks_no_promise(steps: list[Any]) -> None:
    fold = folded(*decided(steps))
    assert fold.violations == []
