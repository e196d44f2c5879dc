"""A lock service as one sequential object: who holds each resource, and what it may answer.

Nobody calls the end of a lease. It may come at any time after the lease ran out, so it comes where an answer shows it:
every answer that does without a holder lets it go, if its lease may have run out by then.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from tests.simulation.linearizability import NEVER, Operation

CLOCK_SLACK_NS = 20_000_000
"""By how much the bus's clock and the one that times operations may differ over one lease."""

# --- What is asked ----------------------------------------------------------------------------------------------------


class _Call(msgspec.Struct, frozen=True, tag_field="call"):
    resource: str


class Acquire(_Call, frozen=True, tag="acquire"):
    agent: str
    exclusive: bool
    ttl_ns: int
    wait_ns: int = 0


class Refresh(_Call, frozen=True, tag="refresh"):
    agent: str
    token: int
    ttl_ns: int


class Release(_Call, frozen=True, tag="release"):
    agent: str
    token: int


class Break(_Call, frozen=True, tag="break"):
    """Take it from all who hold it."""


class Write(_Call, frozen=True, tag="write"):
    """An append with a fence."""

    agent: str
    token: int


class Look(_Call, frozen=True, tag="look"):
    """Ask who holds it."""


# --- What is answered -------------------------------------------------------------------------------------------------


class Granted(msgspec.Struct, frozen=True, tag_field="result", tag="granted"):
    token: int
    extended: bool
    """Whether it was held before."""


class Held(msgspec.Struct, frozen=True, tag_field="result", tag="held"):
    """Refused, because of one who holds it, or (`waits`) who came first."""

    by: str
    waits: bool


class Refused(msgspec.Struct, frozen=True, tag_field="result", tag="refused"):
    """Refused for what is not told here: a wait that would never have ended."""


class Live(msgspec.Struct, frozen=True, tag_field="result", tag="live"):
    """Whether it was held still, and so refreshed, released, broken, or good for a write."""

    live: bool


class Shown(msgspec.Struct, frozen=True):
    token: int
    agent: str
    exclusive: bool


class Seen(msgspec.Struct, frozen=True, tag_field="result", tag="seen"):
    holders: tuple[Shown, ...]


LockCall = Acquire | Refresh | Release | Break | Write | Look
LockResult = Granted | Held | Refused | Live | Seen
LockOperation = Operation[LockCall, LockResult]

# --- The object -------------------------------------------------------------------------------------------------------


class Holder(NamedTuple):
    """One lock. Nobody has seen the token of a grant whose answer was lost; it lies between two others."""

    agent: str
    exclusive: bool
    token: int | None
    above: int
    below: int
    ends_from: int
    """Its lease cannot have run out before."""
    ends_by: int
    """Its lease must have run out after this."""

    def named(self, token: int) -> "Holder | None":
        """This one, if the token may be its own."""
        if self.token is None and self.above < token < self.below:
            return self._replace(token=token, above=0, below=NEVER)
        return self if self.token == token else None

    def extended(self, ends: tuple[int, int]) -> "Holder":
        """Neither a refresh nor asking again shortens a lease."""
        return self._replace(ends_from=max(self.ends_from, ends[0]), ends_by=max(self.ends_by, ends[1]))


class Holding(NamedTuple):
    """The state of one resource: an agent has at most one lock in each mode."""

    holders: tuple[Holder, ...] = ()
    last_token: int = 0

    def same(self, agent: str, *, exclusive: bool) -> Holder | None:
        return next((one for one in self.holders if one.agent == agent and one.exclusive == exclusive), None)

    def of_token(self, agent: str, token: int) -> Holder | None:
        return next((one for one in self.holders if one.agent == agent and one.named(token) is not None), None)

    def in_the_way(self, agent: str, *, exclusive: bool) -> list[Holder]:
        return [one for one in self.holders if one.agent != agent and (exclusive or one.exclusive)]

    def without(self, gone: Iterable[Holder]) -> "Holding":
        left = tuple(one for one in self.holders if one not in gone)
        return Holding(left, self.last_token)

    def outlasting(self, gone: Sequence[Holder], until: int) -> Iterator["Holding"]:
        """Without these, if their leases may have run out by then."""
        if all(one.ends_from <= until for one in gone):
            yield self.without(gone) if gone else self

    def replacing(self, old: Holder, new: Holder) -> "Holding":
        last_token = self.last_token if new.token is None else max(self.last_token, new.token)
        return Holding(tuple(new if one is old else one for one in self.holders), last_token)

    def granting(self, holder: Holder) -> "Holding":
        token = holder.token
        if token is None:
            return Holding(tuple(sorted((*self.holders, holder))), self.last_token)
        # Whatever was granted before has a lower token, seen or not.
        before = (one._replace(below=min(one.below, token)) if one.token is None else one for one in self.holders)
        return Holding(tuple(sorted((*before, holder))), token)


class Locks:
    """Every resource by itself; what holds between them (tokens grow over all) is looked at by `tokens_that_fell`."""

    initial = Holding()

    def part(self, call: LockCall) -> Hashable:
        return call.resource

    def observes(self, operation: LockOperation) -> bool:
        return isinstance(operation.call, Look | Write) or (
            isinstance(operation.result, Held | Refused) or operation.result == Live(False)
        )

    def step(self, state: Holding, operation: LockOperation, until: int) -> Iterator[Holding]:
        match operation.call:
            case Acquire():
                return self._acquire(state, operation.call, operation, until)
            case Refresh() | Release() | Write():
                return self._use(state, operation.call, operation, until)
            case Break():
                return self._break(state, operation.result, until)
            case Look():
                return self._look(state, operation.result, until)

    def _acquire(self, state: Holding, call: Acquire, operation: LockOperation, until: int) -> Iterator[Holding]:
        same = state.same(call.agent, exclusive=call.exclusive)
        match operation.result:
            case Granted(token, extended):
                if extended and same is not None and (named := same.named(token)) is not None:
                    yield state.replacing(same, named.extended(_ends(operation, call.ttl_ns)))
                if not extended and token > state.last_token:
                    yield from self._grant(state, call, operation, token, until)
            case Held(by, waits):
                if waits or any(one.agent == by for one in state.in_the_way(call.agent, exclusive=call.exclusive)):
                    own = [state.same(call.agent, exclusive=True), same]
                    yield from state.outlasting([one for one in own if one is not None], until)
            case Refused():
                yield state
            case None:
                if same is not None:
                    yield state.replacing(same, same.extended(_ends(operation, call.ttl_ns)))
                yield from self._grant(state, call, operation, None, until)
            case Live() | Seen():
                raise AssertionError("not the result of an acquire")

    def _grant(
        self, state: Holding, call: Acquire, operation: LockOperation, token: int | None, until: int
    ) -> Iterator[Holding]:
        gone = state.in_the_way(call.agent, exclusive=call.exclusive)
        if (same := state.same(call.agent, exclusive=call.exclusive)) is not None:
            gone.append(same)
        for left in state.outlasting(gone, until):
            ends_from, ends_by = _ends(operation, call.ttl_ns)
            above = state.last_token if token is None else 0
            yield left.granting(Holder(call.agent, call.exclusive, token, above, NEVER, ends_from, ends_by))

    def _use(
        self, state: Holding, call: Refresh | Release | Write, operation: LockOperation, until: int
    ) -> Iterator[Holding]:
        held = state.of_token(call.agent, call.token)
        if operation.result == Live(False):
            yield from state.outlasting([held] if held is not None else [], until)
        elif held is not None and operation.invoked_at <= held.ends_by:
            yield self._used(state, call, operation, held)

    def _used(self, state: Holding, call: Refresh | Release | Write, operation: LockOperation, held: Holder) -> Holding:
        named = held.named(call.token)
        assert named is not None, "it was found by this token"
        if named != held:
            state = state.replacing(held, named)
        match call:
            case Refresh():
                return state.replacing(named, named.extended(_ends(operation, call.ttl_ns)))
            case Release():
                return state.without([named])
            case Write():
                return state

    def _break(self, state: Holding, result: LockResult | None, until: int) -> Iterator[Holding]:
        if result == Live(False):
            yield from state.outlasting(state.holders, until)
        elif state.holders:
            yield state.without(state.holders)

    def _look(self, state: Holding, result: LockResult | None, until: int) -> Iterator[Holding]:
        if result is None:
            yield state
            return
        assert isinstance(result, Seen)
        after, shown = state, []
        for one in result.holders:
            held = after.same(one.agent, exclusive=one.exclusive)
            named = None if held is None else held.named(one.token)
            if held is None or named is None:
                return
            if named != held:
                after = after.replacing(held, named)
            shown.append(named)
        yield from after.outlasting([one for one in after.holders if one not in shown], until)


def _ends(operation: LockOperation, ttl_ns: int) -> tuple[int, int]:
    """When a lease that began with this operation runs out: no sooner, no later."""
    return operation.invoked_at + ttl_ns - CLOCK_SLACK_NS, min(operation.end + ttl_ns + CLOCK_SLACK_NS, NEVER)


def tokens_that_fell(history: Iterable[LockOperation]) -> list[tuple[LockOperation, LockOperation]]:
    """Grants of any resources, one after the other has returned, whose tokens did not grow; and tokens given twice."""
    grants = [(one.result.token, one) for one in history if isinstance(one.result, Granted) and not one.result.extended]
    grants.sort(key=lambda grant: grant[0], reverse=True)
    fallen: list[tuple[LockOperation, LockOperation]] = []
    higher, first_to_return = None, None
    for token, one in grants:
        if first_to_return is not None and (token == higher or first_to_return.end < one.invoked_at):
            fallen.append((first_to_return, one))
        higher = token
        if first_to_return is None or one.end < first_to_return.end:
            first_to_return = one
    return fallen
