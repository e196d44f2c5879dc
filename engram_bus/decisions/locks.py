"""Who may hold what: leases, queues and fences, as a decision over the log.

A lock is held from its grant until it is released, broken, or its lease has run out and `lock.expired` says so. The
fencing token of a lock is the seq of its grant, so it grows with every grant over all resources.
"""

from collections.abc import Callable, Sequence, Set
from functools import lru_cache
from itertools import islice
from typing import Any

import msgspec

from engram_bus.decisions.claims import LAST, Claim, Held, Waiting, Want, weight
from engram_bus.decisions.lock_table import LockTable
from engram_bus.decisions.wait_graph import cycle
from engram_bus.errors import (
    Busy,
    Deadlock,
    EngramError,
    FenceRequired,
    FenceStale,
    InvalidRequest,
    LockHeld,
    LockLost,
    LockNotFound,
    NotHolder,
    TooLarge,
    WaitEnded,
)
from engram_bus.globs import matcher
from engram_bus.limits import (
    LOCK_BREAK_BYTES_MAX,
    LOCK_BREAK_MAX,
    LOCK_HOLDERS_SHOWN_MAX,
    LOCK_NAMES_MAX,
    LOCK_NAMES_PER_AGENT_MAX,
    LOCK_QUEUE_SHOWN_MAX,
    LOCK_WAITS_MAX,
    LOCK_WAITS_PER_AGENT_MAX,
    LOCKS_MAX,
    LOCKS_PER_AGENT_MAX,
)
from engram_bus.resources import canonical, covers, lineage
from engram_bus.units import (
    BUS_AGENT,
    FORMAT_JSON,
    AcquireLock,
    Append,
    BreakLock,
    Draft,
    Lock,
    LockCommand,
    LockMode,
    LockWait,
    Placed,
    RefreshLock,
    ReleaseLock,
    Stamp,
    TendLocks,
    UnitType,
    WorkUnit,
    ts_text,
    ts_us,
)

GRANTED = "lock.granted"
REFRESHED = "lock.refreshed"
QUEUED = "lock.queued"
WAIT_ENDED = "lock.wait_ended"
RELEASED = "lock.released"
EXPIRED = "lock.expired"
BROKEN = "lock.broken"

DEADLINE = "DEADLINE"
CANCELLED = "CANCELLED"
RESTARTED = "RESTARTED"
INTERRUPTED = "INTERRUPTED"
SESSION_ENDED = "SESSION_ENDED"
"""Why a wait ended without a grant: its time was over, who waited left, the bus or its disk came back, or (of a lock
too) the connection it was tied to ended."""

_ENDINGS = {
    CANCELLED: "it was cancelled",
    RESTARTED: "the bus was restarted",
    INTERRUPTED: "the disk refused writes meanwhile",
    SESSION_ENDED: "its connection ended",
}


class Obstacle(msgspec.Struct, frozen=True):
    """Who is in the way of a wait: a holder, or (`waits`) one who came first."""

    holder_agent: str
    resource: str
    since: str
    until: str
    queue_length: int
    reason: str = ""
    waits: bool = False


class LockChange(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The payload of every lock unit: whose lock or wait it is, on what, and what changed.

    A `lock.granted` is itself the lock (its id the `lock_id`, its seq the fencing token), a `lock.queued` the wait;
    later units name them. `until` is when the lease, or the wait, runs out.
    """

    agent_id: str
    resources: tuple[str, ...]
    mode: LockMode
    lock_id: str | None = None
    wait_id: str | None = None
    ttl_ms: int = 0
    until: str | None = None
    reason: str = ""
    session: str | None = None
    why: str | None = None
    obstacle: Obstacle | None = None


class LockState(msgspec.Struct, frozen=True):
    """One resource, as of when it was read: the locks on it or above it, and who waits for it."""

    resource: str
    holders: tuple[Lock, ...]
    """The first of them."""
    holder_count: int
    queue_length: int
    queue: tuple[LockWait, ...]
    """The first who wait for just this resource."""


class _Snapshot(msgspec.Struct):
    locks: list[Held]
    waits: list[Waiting]


_encode = msgspec.json.Encoder().encode
_decode_change = msgspec.json.Decoder(LockChange).decode
_decode_snapshot = msgspec.msgpack.Decoder(_Snapshot).decode


class Locks:
    """The decision over locks."""

    name = "locks.1"

    def __init__(self) -> None:
        self._table = LockTable()

    # --- decide ------------------------------------------------------------------------------------------------------

    def decide(self, command: LockCommand | TendLocks, stamp: Stamp) -> Sequence[Draft]:
        """Raises LockHeld, Deadlock, LockLost, LockNotFound, NotHolder, InvalidRequest, TooLarge, Busy."""
        match command:
            case AcquireLock():
                return (self._acquire(command, stamp.ts_us),)
            case RefreshLock():
                return (self._refresh(command, stamp.ts_us),)
            case ReleaseLock():
                return self._release(command)
            case BreakLock():
                return self._break(command)
            case TendLocks():
                return self._tend(command, stamp.ts_us)

    def _acquire(self, command: AcquireLock, now_us: int) -> Draft:
        want = Want(
            agent_id=command.agent_id,
            resources=_outermost({canonical(resource) for resource in command.resources}),
            exclusive=command.mode is LockMode.EXCLUSIVE,
        )
        held = self._table.same(want)
        if held is not None and held.until_us > now_us:
            until_us = max(held.until_us, now_us + command.ttl_ms * 1_000)
            return _draft(REFRESHED, held, lock_id=held.id, until_us=until_us, session=command.session)
        if self._table.is_covered(want, now_us):
            self._check_room(want)
            return _granted(want, command, now_us)
        holder, first = self._table.blocking_holder(want), self._table.blocking_wait(want)
        in_the_way = holder or first
        if in_the_way is None:
            self._check_room(want)
            return _granted(want, command, now_us)
        obstacle = self._obstacle(in_the_way, want)
        if command.wait_ms == 0:
            raise _held(obstacle)
        self._check_room(want)
        self._check_room_for_wait(want.agent_id)
        self._check_cycle(want)
        return _draft(
            QUEUED,
            want,
            context_id=command.context_id,
            ttl_ms=command.ttl_ms,
            until_us=now_us + command.wait_ms * 1_000,
            reason=command.reason,
            session=command.session,
            obstacle=obstacle,
        )

    def _check_cycle(self, want: Want) -> None:
        steps = cycle(self._table, want)
        if steps is None:
            return
        told = ", ".join(f"{step.agent_id} waits for {step.waits_for} ({step.resource})" for step in steps)
        raise Deadlock(
            f"the wait would never end: {told}",
            cycle=[{"agent_id": agent, "waits_for": other, "resource": resource} for agent, other, resource in steps],
        )

    def _check_room(self, want: Want) -> None:
        """For one more lock; waits count as locks, for they become such."""
        table, agent_id = self._table, want.agent_id
        if (count := table.claim_count(agent_id)) >= LOCKS_PER_AGENT_MAX:
            raise TooLarge(
                f"{agent_id!r} has {count} locks and waits, at most {LOCKS_PER_AGENT_MAX}", limit=LOCKS_PER_AGENT_MAX
            )
        if (count := len(table.locks) + len(table.waits)) >= LOCKS_MAX:
            raise Busy(f"{count} locks are held or waited for, at most {LOCKS_MAX}", limit=LOCKS_MAX)
        more = weight(want.resources)
        if table.weight_of(agent_id) + more > LOCK_NAMES_PER_AGENT_MAX:
            raise TooLarge(
                f"the names of what {agent_id!r} holds and waits for are too long together: each counts with all that "
                f"is above it, at most {LOCK_NAMES_PER_AGENT_MAX} characters",
                field="resource",
                limit=LOCK_NAMES_PER_AGENT_MAX,
            )
        if table.weight + more > LOCK_NAMES_MAX:
            raise Busy("the names of all that is held are too long together", limit=LOCK_NAMES_MAX)

    def _check_room_for_wait(self, agent_id: str) -> None:
        if (count := self._table.wait_count(agent_id)) >= LOCK_WAITS_PER_AGENT_MAX:
            raise TooLarge(
                f"{agent_id!r} waits for {count} locks, at most {LOCK_WAITS_PER_AGENT_MAX}",
                limit=LOCK_WAITS_PER_AGENT_MAX,
            )
        if (count := len(self._table.waits)) >= LOCK_WAITS_MAX:
            raise Busy(f"{count} wait for locks, at most {LOCK_WAITS_MAX}", limit=LOCK_WAITS_MAX)

    def _refresh(self, command: RefreshLock, now_us: int) -> Draft:
        held = self._own(command)
        if held is None or held.until_us <= now_us:
            raise LockLost(f"lock {command.lock_id} is not held any more", lock_id=command.lock_id)
        ttl_ms = held.ttl_ms if command.ttl_ms is None else command.ttl_ms
        # Never shorter: another task of the same agent may count on what it was told.
        until_us = max(held.until_us, now_us + ttl_ms * 1_000)
        return _draft(REFRESHED, held, lock_id=held.id, until_us=until_us, session=held.session)

    def _release(self, command: ReleaseLock) -> Sequence[Draft]:
        held = self._own(command)
        return () if held is None else (_draft(RELEASED, held, lock_id=held.id),)

    def _own(self, command: RefreshLock | ReleaseLock) -> Held | None:
        held = self._table.locks.get(command.lock_id)
        if held is None:
            return None
        if held.agent_id != command.agent_id:
            raise NotHolder(
                f"lock {held.id} is held by {held.agent_id!r}, not by {command.agent_id!r}",
                field="agent_id",
                holder_agent=held.agent_id,
            )
        if command.resource is not None and canonical(command.resource) not in held.resources:
            raise InvalidRequest(f"lock {held.id} is not on {command.resource!r}", field="resource")
        return held

    def _break(self, command: BreakLock) -> Sequence[Draft]:
        resource = canonical(command.resource)
        held = self._table.held_at(resource)
        if command.lock_id is not None:
            held = [lock for lock in held if lock.id == command.lock_id]
        if not held:
            raise LockNotFound(f"nobody holds {resource!r}", field="resource")
        drafts: list[Draft] = []
        size_bytes = 0
        for lock in held[:LOCK_BREAK_MAX]:
            draft = _draft(BROKEN, lock, by=command.agent_id, lock_id=lock.id, reason=command.reason)
            size_bytes += 2 * len(draft.payload)  # All its names are in it, and stand beside it once more.
            if drafts and size_bytes > LOCK_BREAK_BYTES_MAX:
                break
            drafts.append(draft)
        return drafts

    def _tend(self, command: TendLocks, now_us: int) -> Sequence[Draft]:
        """One step of what is due, up to `units_max`; the writer asks again. What came first goes first: a lease that
        ran out may be granted to one whose own time was over a little later."""
        room = command.units_max
        if leases := self._table.leases_ended(now_us, room):
            return [_draft(EXPIRED, lock, by=BUS_AGENT, lock_id=lock.id) for lock in leases]
        if claims := [claim for name in command.ended_sessions for claim in self._table.of_session(name)]:
            return [_session_ended(claim) for claim in claims[:room]]
        if ended := [
            (self._table.waits[name], why) for name, why in command.ended_waits.items() if name in self._table.waits
        ]:
            return [_wait_ended(wait, why) for wait, why in ended[:room]]
        if self._table.ready:
            return [self._grant(wait, now_us) for wait in islice(self._table.ready.values(), room)]
        if self._table.unsettled:
            return ()  # One whose time is over may be due a grant.
        return [
            _wait_ended(wait, DEADLINE, obstacle=self._obstacle(self._in_the_way(wait), wait))
            for wait in self._table.waits_ended(now_us, room)
        ]

    def _grant(self, wait: Waiting, now_us: int) -> Draft:
        until_us = now_us + wait.ttl_ms * 1_000
        held = self._table.same(wait)
        if held is not None:
            until_us = max(held.until_us, until_us)
            return _draft(REFRESHED, held, lock_id=held.id, wait_id=wait.id, until_us=until_us, session=wait.session)
        return _draft(
            GRANTED,
            wait,
            context_id=wait.context_id,
            wait_id=wait.id,
            ttl_ms=wait.ttl_ms,
            until_us=until_us,
            reason=wait.reason,
            session=wait.session,
        )

    def _in_the_way(self, wait: Waiting) -> Claim:
        in_the_way = self._table.blocking_holder(wait) or self._table.blocking_wait(wait, before=wait.seq)
        assert in_the_way is not None, (
            "a wait that nothing is in the way of was granted before its deadline is looked at"
        )
        return in_the_way

    def _obstacle(self, claim: Claim, want: Want) -> Obstacle:
        resource = next(
            name for name in claim.resources if any(covers(name, own) or covers(own, name) for own in want.resources)
        )
        return Obstacle(
            holder_agent=claim.agent_id,
            resource=resource,
            since=claim.since,
            until=ts_text(claim.until_us),
            queue_length=self._ahead(want),
            reason=claim.reason,
            waits=isinstance(claim, Waiting),
        )

    def _ahead(self, want: Want) -> int:
        """How many already wait for what it wants."""
        before = want.seq if isinstance(want, Waiting) else LAST
        return max(self._table.queue_length(resource, before) for resource in want.resources)

    # --- Fences ------------------------------------------------------------------------------------------------------

    def check_fences(self, append: Append, fences: Sequence[str], now_us: int) -> None:
        """Whether the agent still holds what it shows, and what the context's fences (globs) ask of the resources that
        the unit touches. Raises FenceStale, FenceRequired."""
        agent_id = append.draft.agent_id
        if append.fence is not None:
            resource, token = canonical(append.fence.resource), append.fence.token
            held = self._table.live(token, resource, now_us)
            if held is None or held.agent_id != agent_id:
                raise FenceStale(
                    f"{agent_id!r} does not hold {resource!r} under fencing token {token}", field="fence", token=token
                )
        if fences and append.draft.resources:
            is_fenced = _fence_matcher(tuple(fences))
            for index, name in enumerate(append.draft.resources):
                resource = canonical(name)
                if is_fenced(resource) and not self._table.holds_exclusively(agent_id, resource, now_us):
                    raise FenceRequired(
                        f"{append.draft.context_id!r} asks for an exclusive lock on {resource!r}, "
                        f"and {agent_id!r} holds none",
                        field=f"resources[{index}]",
                        resource=resource,
                    )

    # --- evolve ------------------------------------------------------------------------------------------------------

    def evolve(self, unit: WorkUnit | Placed) -> None:
        kind = unit.kind
        if kind is None or isinstance(unit, Placed) or not kind.startswith("lock."):
            return
        table, change = self._table, _decode_change(unit.payload)
        match kind:
            case "lock.granted":
                wait = None if change.wait_id is None else table.waits[change.wait_id]
                table.add_lock(_claim(Held, unit, change), granted_wait=wait)
            case "lock.refreshed":
                wait = None if change.wait_id is None else table.waits[change.wait_id]
                lock = table.locks[_named(change.lock_id)]
                table.extend_lock(lock, until_us=ts_us(_named(change.until)), session=change.session, granted_wait=wait)
            case "lock.queued":
                table.add_wait(_claim(Waiting, unit, change))
            case "lock.wait_ended":
                table.remove_wait(table.waits[_named(change.wait_id)])
            case "lock.released" | "lock.expired" | "lock.broken":
                table.remove_lock(table.locks[_named(change.lock_id)])
            case _:
                raise AssertionError(f"{kind}: clients cannot write lock units, and this version writes no such kind")

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode(_Snapshot(list(self._table.locks.values()), list(self._table.waits.values())))

    def restore(self, state: bytes | None) -> None:
        self._table = LockTable()
        if state is not None:
            snapshot = _decode_snapshot(state)
            for lock in snapshot.locks:
                self._table.add_lock(lock)
            for wait in snapshot.waits:
                self._table.add_wait(wait)

    # --- Questions ---------------------------------------------------------------------------------------------------

    @property
    def next_due_us(self) -> int | None:
        """When `TendLocks` will next find something to do by itself: 0 where it does already, None for never."""
        table = self._table
        return 0 if table.ready or table.unsettled else table.next_end_us

    def settle(self, looks_max: int) -> int:
        """Find out what follows from what was recorded, as far as that was put off; gives how much was looked at.

        It changes what the table knows of itself, not what it says: that is folded from the log alone.
        """
        return self._table.settle(looks_max)

    @property
    def waits(self) -> Sequence[str]:
        """Everyone who waits, by wait_id, in the order they came."""
        return list(self._table.waits)

    def is_waiting(self, wait_id: str) -> bool:
        return wait_id in self._table.waits

    @property
    def sessions(self) -> Sequence[str]:
        """Connections that something is tied to."""
        return self._table.sessions

    def has_session(self, session: str) -> bool:
        return bool(self._table.of_session(session))

    @property
    def held_count(self) -> int:
        return len(self._table.locks)

    @property
    def waiting_count(self) -> int:
        return len(self._table.waits)

    def lock(self, lock_id: str, now_us: int) -> Lock | None:
        """The lock of this id."""
        held = self._table.locks.get(lock_id)
        return None if held is None else _lock(held, now_us)

    def state(self, resource: str, now_us: int) -> LockState:
        """Who holds and who waits for a resource."""
        name = canonical(resource)
        covering = self._table.covering(name)
        return LockState(
            resource=name,
            holders=tuple(_lock(held, now_us) for held in covering[:LOCK_HOLDERS_SHOWN_MAX]),
            holder_count=len(covering),
            queue_length=self._table.queue_length(name),
            queue=tuple(_wait(wait) for wait in self._table.queue(name, LOCK_QUEUE_SHOWN_MAX)),
        )

    def is_valid(self, resource: str, token: int, now_us: int) -> bool:
        """Whether this fencing token is of a live lock that covers the resource."""
        return self._table.live(token, canonical(resource), now_us) is not None

    def held(
        self, *, after: tuple[str, int], prefix: str, holder: str | None, limit: int, now_us: int
    ) -> list[tuple[str, Lock]]:
        """Resources that begin with `prefix` and the locks on them, in order of names and then of grants, after a place
        in that order; a lock on several resources comes once for each."""
        if holder is not None:
            places = sorted(
                (resource, held.seq, held)
                for held in self._table.of_agent(holder)
                for resource in held.resources
                if resource.startswith(prefix)
            )
            found = ((resource, held) for resource, seq, held in places if (resource, seq) > after)
        else:
            found = (
                (resource, held)
                for resource in _while_prefixed(self._table.held_from(max(prefix, after[0])), prefix)
                for held in self._table.held_at(resource)
                if (resource, held.seq) > after
            )
        return [(resource, _lock(held, now_us)) for resource, held in islice(found, limit)]


@lru_cache(maxsize=256)
def _fence_matcher(fences: tuple[str, ...]) -> Callable[[str], object]:
    """Finds resources, which are canonical, by globs as they were written."""
    return matcher([canonical(fence) for fence in fences])


def change_of(unit: WorkUnit) -> LockChange:
    """What a lock unit says."""
    return _decode_change(unit.payload)


def refusal_of(change: LockChange) -> EngramError:
    """What one who waited is told by a `lock.wait_ended`."""
    if change.why == DEADLINE and change.obstacle is not None:
        return _held(change.obstacle)
    why = change.why or CANCELLED
    return WaitEnded(f"the wait for {', '.join(change.resources)} ended: {_ENDINGS[why]}", why=why)


def _held(obstacle: Obstacle) -> LockHeld:
    verb = "waits first for" if obstacle.waits else "holds"
    because = f" ({obstacle.reason})" if obstacle.reason else ""
    return LockHeld(
        f"{obstacle.holder_agent!r} {verb} {obstacle.resource!r} since {obstacle.since} until {obstacle.until}"
        f"{because}; {obstacle.queue_length} wait for it",
        field="resource",
        **msgspec.to_builtins(obstacle),
    )


def _granted(want: Want, command: AcquireLock, now_us: int) -> Draft:
    return _draft(
        GRANTED,
        want,
        context_id=command.context_id,
        ttl_ms=command.ttl_ms,
        until_us=now_us + command.ttl_ms * 1_000,
        reason=command.reason,
        session=command.session,
    )


def _session_ended(claim: Claim) -> Draft:
    if isinstance(claim, Waiting):
        return _wait_ended(claim, SESSION_ENDED)
    return _draft(RELEASED, claim, by=BUS_AGENT, lock_id=claim.id, why=SESSION_ENDED)


def _wait_ended(wait: Waiting, why: str, **said: Any) -> Draft:
    return _draft(WAIT_ENDED, wait, by=BUS_AGENT, wait_id=wait.id, why=why, **said)


def _outermost(resources: Set[str]) -> tuple[str, ...]:
    """Without those that another one covers, in order."""
    return tuple(sorted(one for one in resources if resources.isdisjoint(lineage(one)[:-1])))


def _draft(
    kind: str,
    want: Want,
    *,
    by: str | None = None,
    context_id: str | None = None,
    until_us: int | None = None,
    **said: Any,
) -> Draft:
    """The unit that says it, in the context of the claim it is about, by its agent unless another one (`by`) acts."""
    if context_id is None:
        assert isinstance(want, Claim), "only a new claim names its context"
        context_id = want.context_id
    change = LockChange(
        agent_id=want.agent_id,
        resources=want.resources,
        mode=LockMode.EXCLUSIVE if want.exclusive else LockMode.SHARED,
        until=None if until_us is None else ts_text(until_us),
        **said,
    )
    return Draft(
        context_id=context_id,
        agent_id=by or want.agent_id,
        type=UnitType.SYSTEM,
        kind=kind,
        content_type=FORMAT_JSON,
        payload=_encode(change),
        resources=list(want.resources),
    )


def _claim(kind: type[Any], unit: WorkUnit, change: LockChange) -> Any:
    return kind(
        agent_id=change.agent_id,
        resources=change.resources,
        exclusive=change.mode is LockMode.EXCLUSIVE,
        id=unit.id,
        seq=unit.seq,
        since=unit.ts,
        ttl_ms=change.ttl_ms,
        until_us=ts_us(_named(change.until)),
        reason=change.reason,
        context_id=unit.context_id,
        session=change.session,
    )


def _named(value: str | None) -> str:
    assert value is not None, "every kind of lock unit is written with what it needs"
    return value


def _mode(claim: Claim) -> LockMode:
    return LockMode.EXCLUSIVE if claim.exclusive else LockMode.SHARED


def _lock(held: Held, now_us: int) -> Lock:
    return Lock(
        lock_id=held.id,
        resources=held.resources,
        holder_agent=held.agent_id,
        mode=_mode(held),
        fencing_token=held.seq,
        granted_at=held.since,
        expires_at=ts_text(held.until_us),
        remaining_ms=max(0, held.until_us - now_us) // 1_000,
        reason=held.reason,
        context_id=held.context_id,
        session=held.session,
    )


def _wait(wait: Waiting) -> LockWait:
    return LockWait(
        wait_id=wait.id,
        resources=wait.resources,
        agent_id=wait.agent_id,
        mode=_mode(wait),
        queued_at=wait.since,
        deadline=ts_text(wait.until_us),
        reason=wait.reason,
    )


def _while_prefixed(names: Any, prefix: str) -> Any:
    for name in names:
        if not name.startswith(prefix):
            return
        yield name
