"""Who holds what and who waits for it, indexed so that a question costs microseconds however large the table is."""

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice

from engram_bus.decisions.claims import LAST, Claim, Ends, Held, Places, Waiting, Want, place, seq_of, weight
from engram_bus.limits import LOCK_LOOKS_AT_ONCE_MAX
from engram_bus.resources import covers, lineage


class LockTable:
    """The claims, and what follows from them: who is in whose way, and which waits nothing is in the way of.

    Every wait watches one claim that is in its way, if possible its predecessor in the queue, and is looked at again
    when that one is gone. So a handover looks at one wait, not at all of the queue.
    """

    def __init__(self) -> None:
        self.locks: dict[str, Held] = {}
        self.waits: dict[str, Waiting] = {}
        self.ready: dict[str, Waiting] = {}
        """Waits that nothing is in the way of. They do not conflict: of two that do, the earlier is in the way."""
        self.unsettled: dict[str, Waiting] = {}
        """Waits of a crowd that are still to be looked at again: they stand in line as before."""
        self.weight = 0
        self._by_token: dict[int, Held] = {}
        self._agents: dict[str, _Agent] = {}
        self._sessions: dict[str, dict[str, Claim]] = {}
        self.exclusive: Places[Held] = Places()
        self.shared: Places[Held] = Places()
        self.exclusive_waits: Places[Waiting] = Places()
        self.shared_waits: Places[Waiting] = Places()
        self._lease_ends = Ends()
        self._wait_ends = Ends()
        self._watched: dict[str, str] = {}
        self._watchers: dict[str, dict[str, Waiting]] = {}

    # --- Changes -----------------------------------------------------------------------------------------------------

    def add_lock(self, lock: Held, *, granted_wait: Waiting | None = None) -> None:
        """Hold it. Who watched the wait that it grants now watches the lock."""
        watchers = {} if granted_wait is None else self._forget_wait(granted_wait)
        self.locks[lock.id] = self._by_token[lock.seq] = lock
        (self.exclusive if lock.exclusive else self.shared).add(lock)
        self._agent(lock.agent_id).add_lock(lock)
        self.weight += weight(lock.resources)
        self._lease_ends.add(lock)
        self._join_session(lock)
        # An agent's own lock is not in its way: its further waits look again.
        own = [wait for wait in watchers.values() if wait.agent_id == lock.agent_id]
        for wait in watchers.values():
            if wait.agent_id != lock.agent_id:
                self._watch(wait, lock)
        self._look_again(own)

    def extend_lock(self, lock: Held, *, until_us: int, session: str | None, granted_wait: Waiting | None) -> None:
        self._lease_ends.remove(lock)
        self._leave_session(lock)
        lock.until_us, lock.session = until_us, session
        self._lease_ends.add(lock)
        self._join_session(lock)
        if granted_wait is not None:
            self.remove_wait(granted_wait)

    def remove_lock(self, lock: Held) -> None:
        del self.locks[lock.id], self._by_token[lock.seq]
        (self.exclusive if lock.exclusive else self.shared).remove(lock)
        self._agent(lock.agent_id).remove_lock(lock)
        self.weight -= weight(lock.resources)
        self._drop_agent(lock.agent_id)
        self._lease_ends.remove(lock)
        self._leave_session(lock)
        self._look_again(self._watchers.pop(lock.id, {}).values())

    def add_wait(self, wait: Waiting) -> None:
        self.waits[wait.id] = wait
        (self.exclusive_waits if wait.exclusive else self.shared_waits).add(wait)
        self._agent(wait.agent_id).add_wait(wait)
        self.weight += weight(wait.resources)
        self._wait_ends.add(wait)
        self._join_session(wait)
        self._look_again([wait])

    def remove_wait(self, wait: Waiting) -> None:
        self._look_again(self._forget_wait(wait).values())

    def _forget_wait(self, wait: Waiting) -> dict[str, Waiting]:
        """Takes it out of every index; gives who watched it."""
        del self.waits[wait.id]
        (self.exclusive_waits if wait.exclusive else self.shared_waits).remove(wait)
        self._agent(wait.agent_id).remove_wait(wait)
        self.weight -= weight(wait.resources)
        self._drop_agent(wait.agent_id)
        self._wait_ends.remove(wait)
        self._leave_session(wait)
        self.ready.pop(wait.id, None)
        self.unsettled.pop(wait.id, None)
        watched = self._watched.pop(wait.id, None)
        if watched is not None:
            watchers = self._watchers[watched]
            del watchers[wait.id]
            if not watchers:
                del self._watchers[watched]
        return self._watchers.pop(wait.id, {})

    def settle(self, waits_max: int) -> int:
        """Look again at some of a crowd; gives how many. What it finds is what the table already says."""
        waits = list(islice(self.unsettled.values(), waits_max))
        for wait in waits:
            del self.unsettled[wait.id]
            self._look_at(wait)
        return len(waits)

    def _look_again(self, waits: Collection[Waiting]) -> None:
        """At once, but at a crowd bit by bit: it must not hold up everybody else."""
        if len(waits) > LOCK_LOOKS_AT_ONCE_MAX:
            self.unsettled.update((wait.id, wait) for wait in waits)
            for wait in waits:
                self._watched.pop(wait.id, None)
        else:
            for wait in waits:
                self._look_at(wait)

    def _look_at(self, wait: Waiting) -> None:
        in_the_way = self.blocking_wait(wait, before=wait.seq) or self.blocking_holder(wait)
        if in_the_way is None:
            self._watched.pop(wait.id, None)
            self.ready[wait.id] = wait
        else:
            self._watch(wait, in_the_way)

    def _watch(self, wait: Waiting, claim: Claim) -> None:
        self._watched[wait.id] = claim.id
        self._watchers.setdefault(claim.id, {})[wait.id] = wait

    def _agent(self, agent_id: str) -> "_Agent":
        agent = self._agents.get(agent_id)
        if agent is None:
            agent = self._agents[agent_id] = _Agent()
        return agent

    def _drop_agent(self, agent_id: str) -> None:
        agent = self._agents[agent_id]
        if not agent.locks and not agent.waits:
            del self._agents[agent_id]

    def _join_session(self, claim: Claim) -> None:
        if claim.session is not None:
            self._sessions.setdefault(claim.session, {})[claim.id] = claim

    def _leave_session(self, claim: Claim) -> None:
        if claim.session is not None:
            claims = self._sessions[claim.session]
            del claims[claim.id]
            if not claims:
                del self._sessions[claim.session]

    # --- Who is in the way -------------------------------------------------------------------------------------------

    def blocking_holder(self, want: Want) -> Held | None:
        """A lock of another agent that conflicts with it."""
        for resource in want.resources:
            names = lineage(resource)
            for places in (self.exclusive, self.shared) if want.exclusive else (self.exclusive,):
                is_below = places.is_below(resource, but=want.agent_id)
                for _, at in chain(places.on_line(names), places.below(resource) if is_below else ()):
                    for held in at:
                        if held.agent_id != want.agent_id:
                            return held
        return None

    def blocking_wait(self, want: Want, *, before: int = LAST) -> Waiting | None:
        """An earlier wait that may not be overtaken, the newest one at a resource first."""
        for resource in want.resources:
            names = lineage(resource)
            for places in self.waits_before(want):
                found = _earlier(places, names, before)
                if found is not None:
                    return found
        return None

    def waits_before(self, want: Want) -> Sequence[Places[Waiting]]:
        """The waits that may not be overtaken where they are earlier: the conflicting ones, and (first come, first
        served, also within an agent) those of the same agent."""
        if want.exclusive:
            return self.exclusive_waits, self.shared_waits
        agent = self._agents.get(want.agent_id)
        if agent is None or agent.shared_waits is None:
            return (self.exclusive_waits,)
        return self.exclusive_waits, agent.shared_waits

    def is_covered(self, want: Want, now_us: int) -> bool:
        """Whether its agent already holds all of it, at least as strongly: then nobody else can be in its way, and who
        waits does so for what this agent holds anyway."""
        agent = self._agents.get(want.agent_id)
        return agent is not None and all(
            agent.holds(lineage(resource), exclusive=want.exclusive, now_us=now_us) for resource in want.resources
        )

    # --- Questions ---------------------------------------------------------------------------------------------------

    def same(self, want: Want) -> Held | None:
        """The lock its agent already has on just these resources in this mode."""
        agent = self._agents.get(want.agent_id)
        if agent is not None:
            for held in agent.places.get(want.resources[0], ()):
                if held.resources == want.resources and held.exclusive == want.exclusive:
                    return held
        return None

    def live(self, token: int, resource: str, now_us: int) -> Held | None:
        """The lock of this fencing token, if it covers the resource and its lease has not run out."""
        held = self._by_token.get(token)
        if held is None or held.until_us <= now_us or not any(covers(name, resource) for name in held.resources):
            return None
        return held

    def holds_exclusively(self, agent_id: str, resource: str, now_us: int) -> bool:
        """Whether the agent has a live exclusive lock that covers the resource."""
        agent = self._agents.get(agent_id)
        return agent is not None and agent.holds(lineage(resource), exclusive=True, now_us=now_us)

    def covering(self, resource: str) -> list[Held]:
        """The locks on a resource or above it, oldest first."""
        names = lineage(resource)
        held = {
            lock.seq: lock for places in (self.exclusive, self.shared) for _, at in places.on_line(names) for lock in at
        }
        return [held[seq] for seq in sorted(held)]

    def held_at(self, resource: str) -> list[Held]:
        """The locks on just this resource, oldest first."""
        return sorted((*self.exclusive.at(resource), *self.shared.at(resource)), key=seq_of)

    def held_from(self, first: str) -> Iterator[str]:
        """The resources that are held, each once, in order of names, from this one on."""
        exclusive, shared = self.exclusive.names(first), self.shared.names(first)
        left, right = next(exclusive, None), next(shared, None)
        while left is not None or right is not None:
            if right is None or (left is not None and left <= right):
                assert left is not None
                yield left
                if left == right:
                    right = next(shared, None)
                left = next(exclusive, None)
            else:
                yield right
                right = next(shared, None)

    def queue_length(self, resource: str, before: int = LAST) -> int:
        """How many wait for just this resource (and came before a seq)."""
        return sum(place(places.at(resource), before) for places in (self.exclusive_waits, self.shared_waits))

    def queue(self, resource: str, count_max: int) -> list[Waiting]:
        """The first who wait for just this resource, in order."""
        first = (*self.exclusive_waits.at(resource)[:count_max], *self.shared_waits.at(resource)[:count_max])
        return sorted(first, key=seq_of)[:count_max]

    def of_agent(self, agent_id: str) -> Sequence[Held]:
        agent = self._agents.get(agent_id)
        return () if agent is None else list(agent.locks.values())

    def may_be_waited_for(self, agent_id: str) -> bool:
        """Whether another agent waits for one of its locks; of one that holds a great many, perhaps."""
        agent = self._agents.get(agent_id)
        return agent is not None and (
            len(agent.locks) > len(self.waits) or any(self._is_waited_for(lock) for lock in agent.locks.values())
        )

    def _is_waited_for(self, lock: Held) -> bool:
        for resource in lock.resources:
            for places in (self.exclusive_waits, self.shared_waits) if lock.exclusive else (self.exclusive_waits,):
                is_below = places.is_below(resource, but=lock.agent_id)
                for _, at in chain(places.on_line(lineage(resource)), places.below(resource) if is_below else ()):
                    if any(wait.agent_id != lock.agent_id for wait in at):
                        return True
        return False

    def claim_count(self, agent_id: str) -> int:
        """Of locks and waits."""
        agent = self._agents.get(agent_id)
        return 0 if agent is None else len(agent.locks) + len(agent.waits)

    def weight_of(self, agent_id: str) -> int:
        """What the names of its locks and waits take, in characters."""
        agent = self._agents.get(agent_id)
        return 0 if agent is None else agent.weight

    def wait_count(self, agent_id: str) -> int:
        agent = self._agents.get(agent_id)
        return 0 if agent is None else len(agent.waits)

    def waits_of(self, agent_id: str) -> Sequence[Waiting]:
        agent = self._agents.get(agent_id)
        return () if agent is None else list(agent.waits.values())

    @property
    def sessions(self) -> Sequence[str]:
        """Connections that locks or waits are tied to."""
        return list(self._sessions)

    def of_session(self, session: str) -> Sequence[Claim]:
        return list(self._sessions.get(session, {}).values())

    def leases_ended(self, now_us: int, count_max: int) -> list[Held]:
        """Locks whose lease has run out, in the order they did."""
        return [self.locks[lock_id] for lock_id in self._lease_ends.ended(now_us, count_max)]

    def waits_ended(self, now_us: int, count_max: int) -> list[Waiting]:
        """Waits whose deadline has passed, in the order they did."""
        return [self.waits[wait_id] for wait_id in self._wait_ends.ended(now_us, count_max)]

    @property
    def next_end_us(self) -> int | None:
        """When the next lease or wait runs out."""
        if not (self.locks or self.waits):
            return None  # Most often, and every commit asks twice.
        lease_us, wait_us = self._lease_ends.next_us, self._wait_ends.next_us
        return wait_us if lease_us is None else lease_us if wait_us is None else min(lease_us, wait_us)


class _Agent:
    """What one agent holds, also by resource, and waits for."""

    __slots__ = ("locks", "places", "shared_waits", "waits", "weight")

    def __init__(self) -> None:
        self.weight = 0
        self.locks: dict[str, Held] = {}
        self.places: dict[str, list[Held]] = {}
        self.waits: dict[str, Waiting] = {}
        self.shared_waits: Places[Waiting] | None = None  # Most agents have none.

    def add_lock(self, lock: Held) -> None:
        self.weight += weight(lock.resources)
        self.locks[lock.id] = lock
        for resource in lock.resources:
            self.places.setdefault(resource, []).append(lock)

    def remove_lock(self, lock: Held) -> None:
        self.weight -= weight(lock.resources)
        del self.locks[lock.id]
        for resource in lock.resources:
            at = self.places[resource]
            at.remove(lock)
            if not at:
                del self.places[resource]

    def add_wait(self, wait: Waiting) -> None:
        self.weight += weight(wait.resources)
        self.waits[wait.id] = wait
        if not wait.exclusive:
            if self.shared_waits is None:
                self.shared_waits = Places()
            self.shared_waits.add(wait)

    def remove_wait(self, wait: Waiting) -> None:
        self.weight -= weight(wait.resources)
        del self.waits[wait.id]
        if not wait.exclusive:
            assert self.shared_waits is not None, "it was added"
            self.shared_waits.remove(wait)

    def holds(self, names: Sequence[str], *, exclusive: bool, now_us: int) -> bool:
        """Whether it has a live lock on one of these names, exclusive if so asked."""
        return bool(self.places) and any(
            held.until_us > now_us and (held.exclusive or not exclusive)
            for name in names
            for held in self.places.get(name, ())
        )


def _earlier(places: Places[Waiting], names: Sequence[str], before: int) -> Waiting | None:
    """The newest wait before a seq at the last of these names, else one above it or below it."""
    for _, at in places.on_line(names[::-1]):
        if at[0].seq < before:
            return at[place(at, before) - 1]
    for _, at in places.below(names[-1]):
        if at[0].seq < before:
            return at[0]
    return None
