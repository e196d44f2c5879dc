"""Claims on resources: what one agent holds, waits for or asks for, and the order they are kept in."""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from typing import Generic, TypeVar

import msgspec
from sortedcontainers import SortedDict, SortedList

from engram_bus.resources import below, lineage

LAST = 2**63
"""After every seq."""


class Want(msgspec.Struct, kw_only=True):
    """What one agent holds, waits for or asks for. Two of different agents conflict where a resource of one is, or
    lies above, a resource of the other, unless both are shared."""

    agent_id: str
    resources: tuple[str, ...]
    exclusive: bool


class Claim(Want, kw_only=True):
    """A want with a place in the log: the seq of the unit that granted or queued it."""

    id: str
    seq: int
    since: str
    """`ts` of that unit."""
    ttl_ms: int
    until_us: int
    """When the lease, or the wait, ends."""
    reason: str
    context_id: str
    session: str | None


class Held(Claim, kw_only=True):
    """A lock: its id is the id of its grant, its fencing token the seq of it."""


class Waiting(Claim, kw_only=True):
    """A place in the queue."""


T = TypeVar("T", bound=Claim)


class Places(Generic[T]):
    """Claims by resource, in the order of names (so that a subtree is a range); at one resource oldest first."""

    def __init__(self) -> None:
        self._claims: SortedDict[str, list[T]] = SortedDict()
        self._inner: dict[str, dict[str, int]] = {}
        """How often each agent claims what lies below a name: mostly nobody, which is then known without a search."""

    def add(self, claim: T) -> None:
        for resource in claim.resources:
            at = self._claims.get(resource)
            if at is None:
                self._claims[resource] = [claim]
            else:
                at.append(claim)
            for name in lineage(resource)[:-1]:
                agents = self._inner.setdefault(name, {})
                agents[claim.agent_id] = agents.get(claim.agent_id, 0) + 1

    def remove(self, claim: T) -> None:
        for resource in claim.resources:
            at = self._claims[resource]
            if len(at) == 1:
                del self._claims[resource]
            else:
                del at[place(at, claim.seq)]
            for name in lineage(resource)[:-1]:
                self._forget_below(name, claim.agent_id)

    def _forget_below(self, name: str, agent_id: str) -> None:
        agents = self._inner[name]
        if agents[agent_id] > 1:
            agents[agent_id] -= 1
        elif len(agents) > 1:
            del agents[agent_id]
        else:
            del self._inner[name]

    def agents_below(self, resource: str) -> Collection[str]:
        """Who claims anything below it."""
        return self._inner.get(resource, ())

    def is_below(self, resource: str, *, but: str) -> bool:
        """Whether anything below it is claimed, but by this agent."""
        agents = self._inner.get(resource)
        return agents is not None and (len(agents) > 1 or but not in agents)

    def at(self, resource: str) -> Sequence[T]:
        return self._claims.get(resource, ())

    def on_line(self, names: Sequence[str]) -> Iterator[tuple[str, list[T]]]:
        """The claims at each of these names where there are any."""
        for name in names:
            at = self._claims.get(name)
            if at is not None:
                yield name, at

    def below(self, resource: str) -> Iterator[tuple[str, list[T]]]:
        """The claims at each resource below this one."""
        if resource in self._inner:
            first, last = below(resource)
            for name in self._claims.irange(first, last, inclusive=(False, False)):
                yield name, self._claims[name]

    def names(self, first: str) -> Iterator[str]:
        """The resources claimed, from this name on."""
        return self._claims.irange(first)


class Ends:
    """When claims end, soonest first."""

    def __init__(self) -> None:
        self._ends: SortedList[tuple[int, int, str]] = SortedList()

    def add(self, claim: Claim) -> None:
        self._ends.add((claim.until_us, claim.seq, claim.id))

    def remove(self, claim: Claim) -> None:
        self._ends.remove((claim.until_us, claim.seq, claim.id))

    def ended(self, now_us: int, count_max: int) -> list[str]:
        """The ids of the first that have ended, in the order they did."""
        count = self._ends.bisect_right((now_us, LAST, ""))
        return [claim_id for _, _, claim_id in self._ends.islice(0, min(count_max, count))]

    @property
    def next_us(self) -> int | None:
        return self._ends[0][0] if self._ends else None


def weight(resources: Sequence[str]) -> int:
    """What the names of a claim take: each is kept with all that is above it. Characters."""
    return sum(len(resource) * (resource.count("/") + 1) for resource in resources)


def seq_of(claim: Claim) -> int:
    """The order of claims."""
    return claim.seq


def place(at: Sequence[Claim], seq: int) -> int:
    """Where the first claim that is not before this seq stands."""
    return bisect_left(at, seq, key=seq_of)
