"""The lock model takes what a true lock service answered, and nothing else."""

from collections.abc import Iterator
from itertools import chain, combinations
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulation.all_orders import has_order
from tests.simulation.linearizability import Operation, beginning, find_order, is_linearizable
from tests.simulation.lock_model import (
    Acquire,
    Break,
    Granted,
    Held,
    Holding,
    Live,
    LockCall,
    LockOperation,
    LockResult,
    Locks,
    Look,
    Refresh,
    Release,
    Seen,
    Shown,
    Write,
    tokens_that_fell,
)
from tests.simulation.lock_plants import PLANTS, Plant

MS = 1_000_000
AGENTS = ("ann", "bob", "cid")
SEEDS = st.integers(0, 2**32)


class Lease(msgspec.Struct):
    agent: str
    exclusive: bool
    token: int
    until: int


class Table:
    """A true lock service for one resource, said in another way than the model: time is known, and leases just end."""

    def __init__(self) -> None:
        self._leases: list[Lease] = []
        self._token = 0

    def answer(self, call: LockCall, now: int) -> LockResult:
        self._leases = [lease for lease in self._leases if lease.until > now]
        match call:
            case Acquire():
                return self._acquire(call, now)
            case Look():
                return Seen(tuple(Shown(lease.token, lease.agent, lease.exclusive) for lease in self._leases))
            case Break():
                was_held, self._leases = bool(self._leases), []
                return Live(was_held)
            case Refresh() | Release() | Write():
                return self._use(call, now)

    def _acquire(self, call: Acquire, now: int) -> LockResult:
        for lease in self._leases:
            if (lease.agent, lease.exclusive) == (call.agent, call.exclusive):
                lease.until = max(lease.until, now + call.ttl_ns)
                return Granted(lease.token, extended=True)
        for lease in self._leases:
            if lease.agent != call.agent and (lease.exclusive or call.exclusive):
                return Held(lease.agent, waits=False)
        self._token += 3
        self._leases.append(Lease(call.agent, call.exclusive, self._token, now + call.ttl_ns))
        return Granted(self._token, extended=False)

    def _use(self, call: Refresh | Release | Write, now: int) -> LockResult:
        for lease in self._leases:
            if (lease.token, lease.agent) == (call.token, call.agent):
                if isinstance(call, Refresh):
                    lease.until = max(lease.until, now + call.ttl_ns)
                if isinstance(call, Release):
                    self._leases.remove(lease)
                return Live(True)
        return Live(False)


def made(seed: int, count: int, *, span_ns: int = 12 * MS) -> list[LockOperation]:
    """What clients of a table may have seen, each calling when it likes; some answers are lost, some calls too."""
    dice, table, now, history = Random(seed), Table(), 1_000 * MS, list[LockOperation]()
    known: dict[str, list[int]] = {agent: [] for agent in AGENTS}
    for _ in range(count):
        now += dice.randrange(1, 10 * MS)
        agent = dice.choice(AGENTS)
        call = some_call(agent, known[agent], dice)
        first, last = now - dice.randrange(span_ns), now + dice.randrange(span_ns)
        end: int | None = last
        result: LockResult | None = None
        if (fate := dice.random()) < 0.98:
            result = table.answer(call, now)
        if fate > 0.95:
            result, end = None, last if dice.random() < 0.7 else None
        learn(known, result, agent)
        history.append(Operation(process=agent, call=call, invoked_at=first, returned_at=end, result=result))
    return history


def some_call(agent: str, tokens: list[int], dice: Random) -> LockCall:
    ttl_ns = dice.choice([30, 60, 500]) * MS
    calls: list[LockCall]
    if not tokens or dice.random() < 0.4:
        acquire = Acquire(resource="r", agent=agent, exclusive=dice.random() < 0.6, ttl_ns=ttl_ns)
        calls = [
            acquire,
            acquire,
            Look(resource="r"),
            Look(resource="r") if dice.random() < 0.9 else Break(resource="r"),
        ]
    else:
        token = tokens[-1] if dice.random() < 0.8 else dice.choice(tokens)
        calls = [
            Refresh(resource="r", agent=agent, token=token, ttl_ns=ttl_ns),
            Release(resource="r", agent=agent, token=token),
            Write(resource="r", agent=agent, token=token),
        ]
    return dice.choice(calls)


def learn(known: dict[str, list[int]], result: LockResult | None, agent: str) -> None:
    """Tokens that were told: to whom they were granted, or of whom another saw them."""
    match result:
        case Granted(token):
            told = [(agent, token)]
        case Seen(holders):
            told = [(shown.agent, shown.token) for shown in holders]
        case _:
            told = []
    for whom, token in told:
        if token not in known[whom]:
            known[whom].append(token)


@given(SEEDS)
def test_what_a_true_lock_service_answered_is_accepted(seed: int) -> None:
    history = made(seed, 80)
    assert is_linearizable(history, Locks())
    assert tokens_that_fell(history) == []


@given(SEEDS, st.integers(0, 600))
def test_and_so_is_every_beginning_of_it(seed: int, end: int) -> None:
    assert is_linearizable(beginning(made(seed, 80), 1_000 * MS + end * MS), Locks())


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: str(plant.__name__))
@given(seed=SEEDS)
def test_a_lie_is_rejected(plant: Plant, seed: int) -> None:
    planted = plant(made(seed, 80), Random(seed))
    assert planted is None or find_order(planted, Locks()) is None


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: str(plant.__name__))
def test_a_history_has_room_for_each_lie(plant: Plant) -> None:
    assert any(plant(made(seed, 80), Random(seed)) is not None for seed in range(20))


class EagerLocks(Locks):
    """The same object, but the ends of leases come by themselves: before each answer, any that may have come."""

    def observes(self, operation: LockOperation) -> bool:
        return False

    def step(self, state: Holding, operation: LockOperation, until: int) -> Iterator[Holding]:
        may_end = [holder for holder in state.holders if holder.ends_from <= until]
        for ended in chain.from_iterable(combinations(may_end, count) for count in range(len(may_end) + 1)):
            yield from super().step(state.without(ended), operation, -1)


@given(SEEDS, st.integers(2, 6), st.booleans())
def test_ends_of_leases_where_they_show_are_all_that_is_needed(seed: int, count: int, is_told_wrong: bool) -> None:
    history = made(seed, 30)[:count]
    if is_told_wrong:
        dice = Random(seed)
        results = [one.result for one in made(seed + 1, 30) if one.result is not None]
        index = dice.randrange(count)
        history[index] = fitted(history[index], results, dice)
    assert is_linearizable(history, Locks()) is has_order(history, EagerLocks())


def fitted(operation: LockOperation, results: list[LockResult], dice: Random) -> LockOperation:
    """Another result than it had, of a kind that it may have."""
    kinds: tuple[type, ...] = {Acquire: (Granted, Held), Look: (Seen,)}.get(type(operation.call), (Live,))
    fitting = [result for result in results if isinstance(result, kinds)]
    return msgspec.structs.replace(operation, result=dice.choice(fitting)) if fitting else operation
