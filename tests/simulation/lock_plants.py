"""Lies for a history of locks: each of them could not have been told by a true lock service."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple

import msgspec

from tests.simulation.linearizability import NEVER
from tests.simulation.lock_model import (
    CLOCK_SLACK_NS,
    Acquire,
    Break,
    Granted,
    Held,
    Live,
    LockCall,
    LockOperation,
    LockResult,
    Look,
    Refresh,
    Release,
    Seen,
    Shown,
    Write,
)

Part = Sequence[LockOperation]
Plant = Callable[[Part, Random], list[LockOperation] | None]


class Span(NamedTuple):
    """A time in which this lock was held for certain."""

    token: int
    agent: str
    exclusive: bool
    begin: int
    end: int

    def covers(self, operation: LockOperation) -> bool:
        return self.begin < operation.invoked_at and operation.end < self.end

    def excludes(self, call: Acquire) -> bool:
        return call.agent != self.agent and (call.exclusive or self.exclusive)


def spans(part: Part) -> Iterator[Span]:
    """From its grant to the first thing that may have ended it."""
    breaks = [one for one in part if isinstance(one.call, Break)]
    ends: dict[int, int] = {}
    for one in part:
        match one.call:
            case Release(token=token):
                ends[token] = min(ends.get(token, NEVER), one.invoked_at)
            case Refresh(token=token, ttl_ns=ttl_ns):
                ends[token] = min(ends.get(token, NEVER), one.invoked_at + ttl_ns - CLOCK_SLACK_NS)
            case _:
                pass
    for one, call, token in grants(part):
        end = min(ends.get(token, NEVER), one.invoked_at + call.ttl_ns - CLOCK_SLACK_NS)
        end = min([end, *(other.invoked_at for other in breaks if other.end >= one.invoked_at)])
        if end - one.end > 2:
            yield Span(token, call.agent, call.exclusive, one.end, end)


def grants(part: Part) -> Iterator[tuple[LockOperation, Acquire, int]]:
    """What was granted anew, to whom, and the token."""
    for one in part:
        match one.call, one.result:
            case Acquire() as call, Granted(token, extended=False):
                yield one, call, token
            case _:
                pass


def a_grant_beside_a_holder(part: Part, dice: Random) -> list[LockOperation] | None:
    found = list(spans(part))
    return inserted(part, intrusion(dice.choice(found), dice)) if found else None


def intrusion(span: Span, dice: Random) -> LockOperation:
    at = dice.randrange(span.begin + 1, span.end - 1)
    call = Acquire(resource="", agent="intruder", exclusive=dice.random() < 0.5 or not span.exclusive, ttl_ns=10**9)
    return told(call, Granted(span.token + 1, False), at)


def a_refusal_that_was_a_grant(part: Part, dice: Random) -> list[LockOperation] | None:
    found = list(spans(part))
    refusals = [
        (one, span)
        for one in part
        if isinstance(call := one.call, Acquire) and isinstance(one.result, Held)
        for span in found
        if span.covers(one) and span.excludes(call)
    ]
    if not refusals:
        return None
    one, span = dice.choice(refusals)
    return changed(part, one, Granted(span.token + 1, False))


def a_write_under_a_lock_that_went_to_another(part: Part, dice: Random) -> list[LockOperation] | None:
    ordered = sorted(grants(part), key=lambda grant: grant[2])
    successions = [
        (before, token, later)
        for (_, before, token), (later, after, _) in pairwise(ordered)
        if before.agent != after.agent and (before.exclusive or after.exclusive) and later.end != NEVER
    ]
    if not successions:
        return None
    before, token, later = dice.choice(successions)
    return inserted(part, told(Write(resource="", agent=before.agent, token=token), Live(True), later.end + 1))


def a_token_that_falls(part: Part, dice: Random) -> list[LockOperation] | None:
    ordered = sorted(grants(part), key=lambda grant: grant[2])
    used = {token for _, _, token in ordered}
    falls = [
        (higher, lower - 1)
        for (first, _, lower), (then, _, higher) in pairwise(ordered)
        if first.end < then.invoked_at and lower - 1 not in used
    ]
    if not falls:
        return None
    old, new = dice.choice(falls)
    return [renamed(one, old, new) for one in part]


def a_lock_that_is_forgotten(part: Part, dice: Random) -> list[LockOperation] | None:
    found = {span.token: span for span in spans(part)}
    looks = [
        (one, shown)
        for one in part
        if isinstance(one.result, Seen)
        for shown in one.result.holders
        if shown.token in found and found[shown.token].covers(one)
    ]
    if not looks:
        return None
    one, forgotten = dice.choice(looks)
    assert isinstance(one.result, Seen)
    return changed(part, one, Seen(tuple(shown for shown in one.result.holders if shown != forgotten)))


def a_lock_that_is_said_to_be_lost(part: Part, dice: Random) -> list[LockOperation] | None:
    found = {span.token: span for span in spans(part)}
    uses = [
        one
        for one in part
        if isinstance(one.call, Refresh | Write) and one.result == Live(True)
        if one.call.token in found and found[one.call.token].covers(one)
    ]
    return changed(part, dice.choice(uses), Live(False)) if uses else None


def a_lock_that_is_there_after_its_release(part: Part, dice: Random) -> list[LockOperation] | None:
    modes = {token: call.exclusive for _, call, token in grants(part)}
    releases = [
        (one.end, Shown(call.token, call.agent, modes[call.token]))
        for one in part
        if isinstance(call := one.call, Release) and one.result == Live(True) and call.token in modes
    ]
    if not releases:
        return None
    end, shown = dice.choice(releases)
    return inserted(part, told(Look(resource=""), Seen((shown,)), end + 1))


PLANTS: tuple[Plant, ...] = (
    a_grant_beside_a_holder,
    a_refusal_that_was_a_grant,
    a_write_under_a_lock_that_went_to_another,
    a_token_that_falls,
    a_lock_that_is_forgotten,
    a_lock_that_is_said_to_be_lost,
    a_lock_that_is_there_after_its_release,
)


def told(call: LockCall, result: LockResult, at: int) -> LockOperation:
    return LockOperation(process="intruder", call=call, invoked_at=at, returned_at=at, result=result)


def inserted(part: Part, operation: LockOperation) -> list[LockOperation]:
    call = msgspec.structs.replace(operation.call, resource=part[0].call.resource)
    return [*part, msgspec.structs.replace(operation, call=call)]


def changed(part: Part, operation: LockOperation, result: LockResult) -> list[LockOperation]:
    return [msgspec.structs.replace(one, result=result) if one is operation else one for one in part]


def renamed(operation: LockOperation, old: int, new: int) -> LockOperation:
    call, result = operation.call, operation.result
    if isinstance(call, Refresh | Release | Write) and call.token == old:
        call = msgspec.structs.replace(call, token=new)
    if isinstance(result, Granted) and result.token == old:
        result = Granted(new, result.extended)
    if isinstance(result, Seen):
        result = Seen(
            tuple(Shown(new, one.agent, one.exclusive) if one.token == old else one for one in result.holders)
        )
    return msgspec.structs.replace(operation, call=call, result=result)
