"""The graph of who waits for whom: it finds the cycle that one more wait would close."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from engram_bus.decisions.claims import LAST, Waiting, Want, place
from engram_bus.decisions.lock_table import LockTable
from engram_bus.limits import LOCK_GRAPH_LOOKS_MAX, LOCK_GRAPH_WAITS_MAX
from engram_bus.resources import lineage


class Step(NamedTuple):
    """One edge of the wait-for graph."""

    agent_id: str
    waits_for: str
    resource: str


def cycle(table: LockTable, want: Want) -> list[Step] | None:
    """The cycle that this wait would close, from its agent back to it.

    A wait ends after every lock and every earlier wait in its way; a lock is taken to be held until its agent's waits
    have ended. For agents that wait for one lock at a time that is exact, and only a new wait brings new edges: who is
    granted was in the way before. Among more than `LOCK_GRAPH_WAITS_MAX` waits a circle may be missed.
    """
    if not table.may_be_waited_for(want.agent_id):
        return None  # Then nothing leads back to it, and there is no need to walk through a long queue.
    return _Search(table, want.agent_id).run(want)


class _Search:
    """One walk through the wait-for graph. It looks at each claim once or twice, however many wait behind it."""

    def __init__(self, table: LockTable, start: str) -> None:
        self._table = table
        self._start = start
        self._came_from: dict[str, tuple[Want, str]] = {}
        self._looks = 0
        self._holders: set[str] = set()
        self._waits_seen: dict[tuple[int, str], int] = {}
        self._locks_seen: dict[tuple[int, str], str | None] = {}

    def run(self, want: Want) -> list[Step] | None:
        to_follow: list[tuple[Want, int]] = [(want, LAST)]
        while to_follow and len(self._came_from) < LOCK_GRAPH_WAITS_MAX and self._looks < LOCK_GRAPH_LOOKS_MAX:
            waiting, before = to_follow.pop()
            holding: list[tuple[Want, int]] = []
            for agent_id, resource in self._holders_in_the_way(waiting):
                self._looks += 1
                if agent_id == self._start:
                    return self._path(waiting, resource)
                if agent_id not in self._holders:
                    self._holders.add(agent_id)
                    holding += self._reached(self._table.waits_of(agent_id), waiting, resource)
            in_line = islice(self._waits_in_the_way(waiting, before), LOCK_GRAPH_WAITS_MAX)
            for wait, resource in in_line:
                to_follow += self._reached((wait,), waiting, resource)
            # Those who hold come next: who stands in the same line is mostly held up by the same.
            to_follow += holding
        return None

    def _reached(self, waits: Sequence[Waiting], by: Want, resource: str) -> Iterator[tuple[Waiting, int]]:
        for wait in waits:
            if wait.id not in self._came_from:
                self._came_from[wait.id] = by, resource
                yield wait, wait.seq

    def _path(self, last: Want, resource: str) -> list[Step]:
        path = [Step(last.agent_id, self._start, resource)]
        claim = last
        while isinstance(claim, Waiting):
            by, resource = self._came_from[claim.id]
            if by.agent_id != claim.agent_id:
                path.append(Step(by.agent_id, claim.agent_id, resource))
            claim = by
        return path[::-1]

    def _holders_in_the_way(self, want: Want) -> Iterator[tuple[str, str]]:
        table = self._table
        for resource in want.resources:
            for places in (table.exclusive, table.shared) if want.exclusive else (table.exclusive,):
                for name, at in places.on_line(lineage(resource)):
                    if self._is_new_to(want.agent_id, (id(places), name)):
                        yield from ((lock.agent_id, resource) for lock in at if lock.agent_id != want.agent_id)
                if self._is_new_to(want.agent_id, (id(places), _below(resource))):
                    agents = places.agents_below(resource)
                    yield from ((agent_id, resource) for agent_id in agents if agent_id != want.agent_id)

    def _is_new_to(self, agent_id: str, key: tuple[int, str]) -> bool:
        """Whether looking there may show something new. Who looks passes over its own locks, so a second agent may see
        those of the first, and a third nothing more."""
        seen_by = self._locks_seen.get(key, "")
        if seen_by is None or seen_by == agent_id:
            return False
        self._locks_seen[key] = None if seen_by else agent_id
        return True

    def _waits_in_the_way(self, want: Want, before: int) -> Iterator[tuple[Waiting, str]]:
        table = self._table
        for resource in want.resources:
            for places in table.waits_before(want):
                for name, at in places.on_line(lineage(resource)):
                    yield from ((wait, resource) for wait in self._unseen(at, (id(places), name), before))
                key = (id(places), _below(resource))
                if self._waits_seen.get(key, 0) < before:
                    self._waits_seen[key] = before
                    for name, at in places.below(resource):
                        yield from ((wait, resource) for wait in self._unseen(at, (id(places), name), before))

    def _unseen(self, at: list[Waiting], key: tuple[int, str], before: int) -> Sequence[Waiting]:
        seen_to = self._waits_seen.get(key, 0)
        if seen_to >= before:
            return ()
        self._waits_seen[key] = before
        return at[place(at, seen_to) : place(at, before)]


def _below(resource: str) -> str:
    """A name for all that is below it. No resource ends like this."""
    return f"{resource}//"
