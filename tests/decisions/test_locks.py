"""Locks: who is granted what and when, who is refused and told why, and the same again after a restart."""

from collections.abc import Sequence

import msgspec
import pytest

from engram_bus.codec import encode_msgpack
from engram_bus.decisions import locks as locks_module
from engram_bus.decisions.locks import Locks, change_of, refusal_of
from engram_bus.decisions.state import State
from engram_bus.errors import (
    Busy,
    ContextClosed,
    Deadlock,
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
from engram_bus.units import (
    BUS_AGENT,
    Append,
    AppendAtomic,
    BreakLock,
    Draft,
    Fence,
    Lock,
    LockMode,
    TendLocks,
    UnitType,
    UpdateContext,
    WorkUnit,
    ts_text,
)
from tests.decisions.tables import SECOND, TTL, Table, refresh, release, said


@pytest.fixture
def table() -> Table:
    return Table()


WAIT = 60_000


# --- Holding ---------------------------------------------------------------------------------------------------------


def test_a_free_resource_is_granted_at_once(table: Table) -> None:
    unit = table.acquire("ann", "plan.md", reason="rewrite")
    assert (unit.kind, unit.agent_id, unit.type, unit.resources) == (
        "lock.granted",
        "ann",
        UnitType.SYSTEM,
        ["plan.md"],
    )
    assert table.lock(unit) == Lock(
        lock_id=unit.id,
        resources=("plan.md",),
        holder_agent="ann",
        mode=LockMode.EXCLUSIVE,
        fencing_token=unit.seq,
        granted_at=ts_text(0),
        expires_at=ts_text(30 * SECOND),
        remaining_ms=TTL,
        reason="rewrite",
        context_id="locks",
        session=None,
    )


def test_a_resource_is_locked_whatever_way_its_name_is_written(table: Table) -> None:
    table.acquire("ann", "./src//lib/../a.py/")
    with pytest.raises(LockHeld):
        table.acquire("bob", "src/a.py")
    assert table.locks.state("src/./a.py", 0).resource == "src/a.py"


def test_who_is_refused_is_told_by_whom_since_when_until_when_and_why(table: Table) -> None:
    table.pass_time(1)
    table.acquire("ann", "plan.md", reason="rewrite")
    table.acquire("eve", "plan.md", wait_ms=WAIT)
    with pytest.raises(LockHeld) as caught:
        table.acquire("bob", "plan.md")
    assert caught.value.field == "resource"
    assert caught.value.details == {
        "holder_agent": "ann",
        "resource": "plan.md",
        "since": ts_text(SECOND),
        "until": ts_text(31 * SECOND),
        "queue_length": 1,
        "reason": "rewrite",
        "waits": False,
    }
    assert caught.value.message == (
        "'ann' holds 'plan.md' since 1970-01-01T00:00:01.000000Z until 1970-01-01T00:00:31.000000Z (rewrite); "
        "1 wait for it"
    )
    assert len(table.units) == 2


def test_who_is_refused_for_one_who_came_first_is_told_so(table: Table) -> None:
    table.share("ann", "plan.md")
    table.acquire("bob", "plan.md", wait_ms=WAIT)
    with pytest.raises(LockHeld, match="'bob' waits first for") as caught:
        table.share("eve", "plan.md")
    assert (caught.value.details["holder_agent"], caught.value.details["waits"]) == ("bob", True)


def test_of_several_resources_the_one_in_the_way_is_named(table: Table) -> None:
    table.acquire("ann", "a", "m", "z")
    with pytest.raises(LockHeld) as caught:
        table.acquire("bob", "b", "m/n")
    assert caught.value.details["resource"] == "m"


def test_several_resources_are_one_lock_with_one_token_or_none(table: Table) -> None:
    unit = table.acquire("ann", "b", "a", "./b")
    assert (table.lock(unit).resources, table.lock(unit).fencing_token) == (("a", "b"), 1)
    with pytest.raises(LockHeld):
        table.acquire("bob", "b", "c")
    table.acquire("eve", "c")
    assert table.release(unit) == []
    assert table.holders("a") == table.holders("b") == []


def test_several_resources_are_waited_for_as_one(table: Table) -> None:
    first, second = table.acquire("ann", "a"), table.acquire("eve", "b")
    table.acquire("bob", "a", "b", wait_ms=WAIT)
    assert table.release(first) == []
    with pytest.raises(LockHeld, match="'bob' waits first"):
        table.acquire("dan", "a")
    assert table.release(second) == ["granted bob a b"]


def test_shared_locks_stand_beside_each_other_and_beside_no_exclusive_one(table: Table) -> None:
    table.share("ann", "plan.md")
    table.share("bob", "plan.md")
    assert table.holders("plan.md") == ["ann", "bob"]
    with pytest.raises(LockHeld):
        table.acquire("eve", "plan.md")
    table.acquire("eve", "notes.md")
    with pytest.raises(LockHeld):
        table.share("ann", "notes.md")


@pytest.mark.parametrize("mode", LockMode)
def test_a_lock_covers_what_is_below_it_and_stands_in_the_way_of_what_is_above(table: Table, mode: LockMode) -> None:
    table.acquire("ann", "repo/src", mode=mode)
    for other in ("repo", "repo/src", "repo/src/a.py"):
        with pytest.raises(LockHeld):
            table.acquire("bob", other)
    for other in ("repo/src2", "repo/docs", "src", "rep"):
        table.acquire("bob", other)
    assert table.holders("repo/src/a.py") == ["ann"]
    assert table.holders("repo") == []


def test_what_is_above_is_free_when_the_last_below_it_is(table: Table) -> None:
    locks = [table.acquire("ann", "repo/src/a"), table.acquire("bob", "repo/src/b")]
    table.acquire("eve", "repo", wait_ms=WAIT)
    assert table.release(locks[0]) == []
    assert table.release(locks[1]) == ["granted eve repo"]


def test_the_root_covers_every_path_from_it(table: Table) -> None:
    table.acquire("ann", "/")
    with pytest.raises(LockHeld):
        table.acquire("bob", "/etc/hosts")
    table.acquire("bob", "etc/hosts")


# --- Holding on ------------------------------------------------------------------------------------------------------


def test_asking_again_extends_and_keeps_the_lock_and_its_token(table: Table) -> None:
    first = table.acquire("ann", "a", "b")
    table.pass_time(10)
    again = table.acquire("ann", "b", "a")
    assert said(again) == "refreshed ann a b"
    assert (change_of(again).lock_id, table.lock(first).fencing_token) == (first.id, first.seq)
    assert table.lock(first).expires_at == ts_text(40 * SECOND)
    assert table.pass_time(29) == []
    assert table.pass_time(1) == ["expired ann a b"]


def test_asking_again_for_less_time_takes_none_away(table: Table) -> None:
    first = table.acquire("ann", "a")
    table.acquire("ann", "a", ttl_ms=100)
    assert table.lock(first).expires_at == ts_text(30 * SECOND)


def test_a_refresh_lets_the_lease_end_that_long_from_now(table: Table) -> None:
    lock = table.acquire("ann", "a")
    table.pass_time(10)
    table.ask(refresh("ann", lock))
    assert table.lock(lock).expires_at == ts_text(40 * SECOND)
    table.ask(refresh("ann", lock, ttl_ms=60_000, resource="./a"))
    assert table.lock(lock).remaining_ms == 60_000
    assert table.pass_time(60) == ["expired ann a"]


def test_a_refresh_never_shortens_a_lease(table: Table) -> None:
    """Another task of the same agent may count on what it was told."""
    lock = table.acquire("ann", "a")
    table.ask(refresh("ann", lock, ttl_ms=1_000))
    assert table.lock(lock).remaining_ms == 30_000


def test_a_lost_lock_is_not_refreshed(table: Table) -> None:
    lock = table.acquire("ann", "a")
    table.now_us = 30 * SECOND
    with pytest.raises(LockLost, match="not held any more"):
        table.ask(refresh("ann", lock))
    table.tend()
    with pytest.raises(LockLost) as caught:
        table.ask(refresh("ann", lock))
    assert caught.value.details == {"lock_id": lock.id}


def test_only_its_holder_refreshes_and_releases_a_lock(table: Table) -> None:
    lock = table.acquire("ann", "a")
    for command in (refresh("bob", lock), release("bob", lock)):
        with pytest.raises(NotHolder) as caught:
            table.ask(command)
        assert (caught.value.field, caught.value.details) == ("agent_id", {"holder_agent": "ann"})


def test_a_resource_named_beside_the_lock_is_one_of_it(table: Table) -> None:
    lock = table.acquire("ann", "a", "b")
    for command in (refresh("ann", lock, resource="c"), release("ann", lock, resource="a/b")):
        with pytest.raises(InvalidRequest, match="is not on"):
            table.ask(command)
    assert len(table.ask(release("ann", lock, resource="b/"))) == 1


def test_a_release_is_idempotent(table: Table) -> None:
    lock = table.acquire("ann", "a")
    assert table.release(lock) == []
    assert table.ask(release("ann", lock)) == table.ask(release("bob", lock)) == []
    assert [said(unit) for unit in table.units] == ["granted ann a", "released ann a"]


def test_a_lease_ends_when_its_time_is_over_and_is_granted_anew_with_a_higher_token(table: Table) -> None:
    first = table.acquire("ann", "a")
    assert table.pass_time(29.999) == []
    assert table.pass_time(0.001) == ["expired ann a"]
    assert table.units[-1].agent_id == BUS_AGENT
    assert table.acquire("bob", "a").seq > first.seq


def test_a_broken_lock_is_taken_from_all_who_hold_it_on_the_record(table: Table) -> None:
    locks = [table.share("ann", "a"), table.share("bob", "a", "b")]
    table.share("ann", "a/b")
    table.acquire("eve", "a", wait_ms=WAIT)
    broken = table.ask(BreakLock(resource="./a", agent_id="root", reason="stuck"))
    assert [(unit.agent_id, said(unit), change_of(unit).reason) for unit in broken] == [
        ("root", "broken ann a", "stuck"),
        ("root", "broken bob a b", "stuck"),
    ]
    assert [change_of(unit).lock_id for unit in broken] == [lock.id for lock in locks]
    assert table.holders("b") == []
    assert table.tend() == []


def test_one_lock_of_several_can_be_broken(table: Table) -> None:
    table.share("ann", "a")
    lock = table.share("bob", "a")
    table.ask(BreakLock(resource="a", agent_id="root", reason="stuck", lock_id=lock.id))
    assert table.holders("a") == ["ann"]


def test_what_nobody_holds_cannot_be_broken(table: Table) -> None:
    lock = table.acquire("ann", "a")
    for resource, lock_id in (("b", None), ("a/b", None), ("b", lock.id), ("a", "another")):
        with pytest.raises(LockNotFound) as caught:
            table.ask(BreakLock(resource=resource, agent_id="root", reason="stuck", lock_id=lock_id))
        assert caught.value.field == "resource"


def test_a_break_takes_no_more_than_fit_a_commit(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks_module, "LOCK_BREAK_MAX", 2)
    for agent in ("ann", "bob", "eve"):
        table.share(agent, "a")
    command = BreakLock(resource="a", agent_id="root", reason="stuck")
    assert [len(table.ask(command)), len(table.ask(command))] == [2, 1]


def test_a_break_of_long_names_takes_fewer_but_always_one(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number}{'x' * 1_000}" for number in range(8)]
    for agent in ("ann", "bob", "eve"):
        table.share(agent, "a", *names)
    command = BreakLock(resource="a", agent_id="root", reason="stuck")
    monkeypatch.setattr(locks_module, "LOCK_BREAK_BYTES_MAX", 40_000)
    broken = table.ask(command)
    assert len(broken) == 2
    assert sum(len(encode_msgpack(unit)) for unit in broken) <= 40_000
    monkeypatch.setattr(locks_module, "LOCK_BREAK_BYTES_MAX", 1)
    assert [said(unit).split()[1] for unit in table.ask(command)] == ["eve"]


# --- Re-entrance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LockMode)
def test_what_an_agents_own_lock_covers_is_granted_past_the_queue(table: Table, mode: LockMode) -> None:
    table.acquire("ann", "src")
    table.acquire("bob", "src/a.py", wait_ms=WAIT)
    assert said(table.acquire("ann", "src/a.py", mode=mode)) == "granted ann src/a.py"
    assert table.holders("src/a.py") == ["ann", "ann"]


def test_what_an_agents_own_lock_covers_in_part_waits_in_line(table: Table) -> None:
    table.acquire("ann", "a")
    table.acquire("bob", "b", wait_ms=WAIT)
    table.acquire("eve", "a", wait_ms=WAIT)
    with pytest.raises(LockHeld, match="'eve' waits first"):
        table.acquire("ann", "a", "c")


def test_an_agents_own_locks_are_not_in_its_way(table: Table) -> None:
    table.acquire("ann", "src/a.py")
    assert said(table.acquire("ann", "src")) == "granted ann src"
    assert said(table.share("ann", "src/a.py")) == "granted ann src/a.py"


def test_a_lock_whose_time_is_over_lets_nobody_past_the_queue(table: Table) -> None:
    """Many leases may have run out at once, and the record of this one comes with a later commit."""
    table.acquire("ann", "a")
    table.acquire("bob", "a", wait_ms=WAIT)
    table.now_us = 30 * SECOND
    for resource in ("a", "a/b"):
        with pytest.raises(LockHeld, match="'bob' waits first"):
            table.acquire("ann", resource)
    assert table.tend() == ["expired ann a", "granted bob a"]


def test_a_sharer_alone_becomes_exclusive_at_once(table: Table) -> None:
    shared = table.share("ann", "a")
    assert said(table.acquire("ann", "a")) == "granted ann a"
    table.release(shared)
    with pytest.raises(LockHeld):
        table.share("bob", "a")


def test_of_two_sharers_that_would_be_exclusive_the_second_is_a_deadlock(table: Table) -> None:
    table.share("ann", "a")
    bobs = table.share("bob", "a")
    assert said(table.acquire("ann", "a", wait_ms=WAIT)) == "queued ann a"
    with pytest.raises(Deadlock):
        table.acquire("bob", "a", wait_ms=WAIT)
    assert table.release(bobs) == ["granted ann a"]


# --- Waiting ---------------------------------------------------------------------------------------------------------


def test_who_waits_is_queued_on_the_record_and_told_who_is_in_the_way(table: Table) -> None:
    table.acquire("ann", "a")
    unit = table.acquire("bob", "a", wait_ms=5_000, reason="mine next")
    change = change_of(unit)
    assert (unit.kind, unit.agent_id, change.until, change.ttl_ms) == ("lock.queued", "bob", ts_text(5 * SECOND), TTL)
    assert change.obstacle is not None
    assert change.obstacle.holder_agent == "ann"
    (wait,) = table.locks.state("a", 0).queue
    assert (wait.wait_id, wait.agent_id, wait.reason, wait.deadline) == (unit.id, "bob", "mine next", change.until)


def test_first_come_first_served(table: Table) -> None:
    lock = table.acquire("ann", "a")
    for agent in ("bob", "eve", "dan"):
        table.acquire(agent, "a", wait_ms=WAIT)
    assert table.queue("a") == ["bob", "eve", "dan"]
    assert table.release(lock) == ["granted bob a"]
    assert table.pass_time(30) == ["expired bob a", "granted eve a"]


def test_a_grants_time_begins_with_the_grant(table: Table) -> None:
    lock = table.acquire("ann", "a")
    table.acquire("bob", "a", wait_ms=WAIT, ttl_ms=1_000)
    table.pass_time(20)
    table.release(lock)
    assert table.lock(table.units[-1]).expires_at == ts_text(21 * SECOND)


def test_a_sharer_does_not_overtake_who_waits_to_be_alone(table: Table) -> None:
    lock = table.share("ann", "a")
    table.acquire("bob", "a", wait_ms=WAIT)
    table.share("eve", "a", wait_ms=WAIT)
    assert table.holders("a") == ["ann"]
    assert table.release(lock) == ["granted bob a"]
    assert table.pass_time(30) == ["expired bob a", "granted eve a"]


def test_nobody_overtakes_who_waits_above_or_below(table: Table) -> None:
    table.share("ann", "a/b/c")
    table.acquire("bob", "a/b", wait_ms=WAIT)
    for resource in ("a", "a/b/d", "a/b"):
        with pytest.raises(LockHeld, match="'bob' waits first"):
            table.share("eve", resource)
    table.acquire("eve", "a/c")


def test_who_waits_above_goes_before_who_waits_below_since_later(table: Table) -> None:
    lock = table.acquire("ann", "a")
    table.acquire("bob", "a", wait_ms=WAIT)
    table.acquire("eve", "a/b", wait_ms=WAIT)
    assert table.release(lock) == ["granted bob a"]
    assert table.pass_time(30) == ["expired bob a", "granted eve a/b"]


def test_all_sharers_that_wait_are_granted_together(table: Table) -> None:
    lock = table.acquire("ann", "a")
    for number in range(1_000):
        table.share(f"reader{number}", "a", wait_ms=WAIT)
    assert table.release(lock) == [f"granted reader{number} a" for number in range(1_000)]


def test_an_agents_own_waits_are_served_in_order_too_and_extend_one_lock(table: Table) -> None:
    lock = table.acquire("ann", "a")
    for mode in (LockMode.SHARED, LockMode.SHARED):
        table.acquire("bob", "a", mode=mode, wait_ms=WAIT)
    table.pass_time(1)
    assert table.release(lock) == ["granted bob a", "refreshed bob a"]
    assert len(table.locks.state("a", table.now_us).holders) == 1


def test_a_further_wait_of_an_agent_takes_no_time_away_from_its_lock(table: Table) -> None:
    lock = table.acquire("ann", "a")
    table.acquire("bob", "a", wait_ms=WAIT, ttl_ms=20_000)
    table.acquire("bob", "a", wait_ms=WAIT, ttl_ms=1_000)
    assert table.release(lock) == ["granted bob a", "refreshed bob a"]
    assert table.pass_time(19) == []
    assert table.pass_time(1) == ["expired bob a"]


def test_when_a_place_in_the_middle_is_given_up_the_order_stays(table: Table) -> None:
    lock = table.acquire("ann", "a")
    waits = [table.acquire(agent, "a", wait_ms=WAIT) for agent in ("bob", "eve", "dan")]
    assert table.tend(ended_waits={waits[1].id: "CANCELLED"}) == ["wait_ended eve a CANCELLED"]
    assert table.release(lock) == ["granted bob a"]
    assert table.release(table.units[-1]) == ["granted dan a"]


def test_of_sharers_that_wait_for_the_same_one_may_leave(table: Table) -> None:
    lock = table.acquire("ann", "a")
    waits = [table.share(agent, "a", wait_ms=WAIT) for agent in ("bob", "eve")]
    table.tend(ended_waits={waits[0].id: "CANCELLED"})
    assert table.release(lock) == ["granted eve a"]


def test_a_wait_ends_at_its_deadline_and_says_who_was_in_the_way(table: Table) -> None:
    table.acquire("ann", "a", reason="long")
    wait = table.acquire("bob", "a", wait_ms=5_000)
    assert table.pass_time(4.999) == []
    assert table.pass_time(0.001) == ["wait_ended bob a DEADLINE"]
    assert not table.locks.is_waiting(wait.id)
    refusal = refusal_of(change_of(table.units[-1]))
    assert isinstance(refusal, LockHeld)
    assert (refusal.details["holder_agent"], refusal.details["reason"]) == ("ann", "long")


def test_who_waited_behind_a_wait_is_told_of_it_at_the_deadline(table: Table) -> None:
    table.share("ann", "a")
    table.acquire("bob", "a", wait_ms=WAIT)
    table.share("eve", "a", wait_ms=1_000)
    table.pass_time(1)
    assert "'bob' waits first for 'a'" in refusal_of(change_of(table.units[-1])).message


def test_what_is_free_in_the_end_is_granted_rather_than_refused(table: Table) -> None:
    table.acquire("ann", "a", ttl_ms=1_000)
    table.acquire("bob", "a", wait_ms=1_000)
    assert table.pass_time(1) == ["expired ann a", "granted bob a"]


@pytest.mark.parametrize("why", ["CANCELLED", "RESTARTED", "INTERRUPTED", "SESSION_ENDED"])
def test_a_wait_that_ended_otherwise_may_be_asked_for_again(table: Table, why: str) -> None:
    table.acquire("ann", "a")
    wait = table.acquire("bob", "a", wait_ms=WAIT)
    assert table.tend(ended_waits={wait.id: why, "gone": why}) == [f"wait_ended bob a {why}"]
    refusal = refusal_of(change_of(table.units[-1]))
    assert isinstance(refusal, WaitEnded)
    assert (refusal.retryable, refusal.details) == (True, {"why": why})


# --- Deadlock --------------------------------------------------------------------------------------------------------


def test_a_wait_that_would_close_a_circle_is_refused_and_the_circle_named(table: Table) -> None:
    for agent, resource in (("ann", "a"), ("bob", "b"), ("eve", "c")):
        table.acquire(agent, resource)
    table.acquire("ann", "b", wait_ms=WAIT)
    table.acquire("bob", "c", wait_ms=WAIT)
    with pytest.raises(Deadlock) as caught:
        table.acquire("eve", "a/x", wait_ms=WAIT)
    assert caught.value.details == {
        "cycle": [
            {"agent_id": "eve", "waits_for": "ann", "resource": "a/x"},
            {"agent_id": "ann", "waits_for": "bob", "resource": "b"},
            {"agent_id": "bob", "waits_for": "eve", "resource": "c"},
        ]
    }
    assert caught.value.message.startswith("the wait would never end: eve waits for ann (a/x), ann waits for bob (b)")


def test_who_does_not_wait_makes_no_deadlock(table: Table) -> None:
    table.acquire("ann", "a")
    table.acquire("bob", "b")
    table.acquire("ann", "b", wait_ms=WAIT)
    with pytest.raises(LockHeld):
        table.acquire("bob", "a")


def test_a_wait_behind_another_wait_counts(table: Table) -> None:
    """Eve holds b and would wait for a behind bob, who waits for b too."""
    table.share("ann", "a")
    table.acquire("eve", "b")
    table.acquire("bob", "a", "b", wait_ms=WAIT)
    with pytest.raises(Deadlock) as caught:
        table.share("eve", "a", wait_ms=WAIT)
    assert caught.value.details["cycle"] == [
        {"agent_id": "eve", "waits_for": "bob", "resource": "a"},
        {"agent_id": "bob", "waits_for": "eve", "resource": "b"},
    ]


def test_a_circle_through_an_agents_own_earlier_wait_is_found(table: Table) -> None:
    """Bob's second wait stands behind his first, and that one waits for ann."""
    table.acquire("ann", "c")
    table.share("bob", "a/b", "c", wait_ms=WAIT)
    table.share("bob", "a", wait_ms=WAIT)
    with pytest.raises(Deadlock) as caught:
        table.acquire("ann", "a/x", wait_ms=WAIT)
    assert caught.value.details["cycle"] == [
        {"agent_id": "ann", "waits_for": "bob", "resource": "a/x"},
        {"agent_id": "bob", "waits_for": "ann", "resource": "c"},
    ]


def test_a_resource_that_looks_like_a_glob_is_looked_at_too(table: Table) -> None:
    table.acquire("ann", "src/*")
    table.acquire("bob", "b")
    table.acquire("ann", "b", wait_ms=WAIT)
    with pytest.raises(Deadlock):
        table.acquire("bob", "src", wait_ms=WAIT)


def test_a_queue_is_looked_at_again_by_who_stands_further_behind(table: Table) -> None:
    """Bob stands before dan in the line for x and is looked at first, eve behind dan; and dan waits for ann too."""
    table.acquire("joe", "x")
    table.acquire("ann", "q")
    table.share("eve", "p")
    table.share("bob", "p")
    table.acquire("bob", "x", wait_ms=WAIT)
    table.acquire("dan", "q", "x", wait_ms=WAIT)
    table.acquire("eve", "x", wait_ms=WAIT)
    with pytest.raises(Deadlock) as caught:
        table.acquire("ann", "p", wait_ms=WAIT)
    assert [step["agent_id"] for step in caught.value.details["cycle"]] == ["ann", "eve", "dan"]


def test_all_waits_of_who_holds_are_followed(table: Table) -> None:
    table.acquire("dan", "a/b")
    table.acquire("bob", "c")
    table.acquire("ann", "d")
    table.acquire("bob", "a", wait_ms=WAIT)
    table.acquire("bob", "a/b", wait_ms=WAIT)
    table.acquire("ann", "c", wait_ms=WAIT)
    with pytest.raises(Deadlock):
        table.acquire("dan", "d", wait_ms=WAIT)


def test_a_walk_through_all_who_wait_finds_no_circle_where_there_is_none(table: Table) -> None:
    """Zoe is waited for, and would wait for everyone else: for bob and the readers, and with them for dan."""
    table.acquire("zoe", "z")
    table.acquire("yan", "z", wait_ms=WAIT)
    table.acquire("dan", "a/b")
    table.acquire("bob", "c")
    table.acquire("bob", "a", wait_ms=WAIT)
    table.acquire("bob", "a/b", wait_ms=WAIT)
    for number in range(5):
        table.share(f"reader{number}", "r")
        table.share(f"reader{number}", "a", wait_ms=WAIT)
        table.acquire(f"reader{number}", "a/b", wait_ms=WAIT)
    assert said(table.acquire("zoe", "a", "c", "r", wait_ms=WAIT)) == "queued zoe a c r"


def test_who_waits_to_be_alone_with_what_it_shares_is_in_no_circle_with_itself(table: Table) -> None:
    for agent in ("ann", "bob"):
        table.share(agent, "a")
    table.acquire("eve", "b")
    table.acquire("bob", "a", wait_ms=WAIT)
    assert said(table.acquire("bob", "b", wait_ms=WAIT)) == "queued bob b"


def test_many_circles_are_one_deadlock_and_no_circle_is_none(table: Table) -> None:
    """Every reader holds a and waits for b, whose holder asks for a; a stranger may wait for all of it."""
    for number in range(20):
        table.share(f"reader{number}", "a")
    table.acquire("ann", "b")
    table.acquire("dan", "b/c", wait_ms=WAIT)
    for number in range(20):
        table.acquire(f"reader{number}", "b", wait_ms=WAIT)
    assert said(table.acquire("eve", "a", "b", wait_ms=WAIT)) == "queued eve a b"
    with pytest.raises(Deadlock):
        table.acquire("ann", "a", wait_ms=WAIT)


# --- Sessions --------------------------------------------------------------------------------------------------------


def test_what_is_tied_to_a_session_ends_with_it(table: Table) -> None:
    table.acquire("ann", "a", session="s")
    table.acquire("ann", "b")
    table.acquire("ann", "c", session="t")
    table.acquire("bob", "c", wait_ms=WAIT, session="s")
    table.acquire("eve", "a", wait_ms=WAIT)
    assert sorted(table.locks.sessions) == ["s", "t"]
    assert table.tend(ended_sessions=("s", "unknown")) == [
        "released ann a SESSION_ENDED",
        "wait_ended bob c SESSION_ENDED",
        "granted eve a",
    ]
    assert not table.locks.has_session("s")


def test_who_asks_again_takes_a_lock_over_into_the_new_session(table: Table) -> None:
    lock = table.acquire("ann", "a", session="s")
    table.acquire("ann", "a", session="t")
    assert table.tend(ended_sessions=("s",)) == []
    table.ask(refresh("ann", lock))
    assert table.lock(lock).session == "t"
    table.acquire("ann", "a")
    assert table.locks.sessions == []


# --- Much at once ----------------------------------------------------------------------------------------------------


def test_a_mass_of_ended_leases_and_waits_is_tended_step_by_step(table: Table) -> None:
    for number in range(25):
        table.acquire("ann", f"a{number}", session="s" if number > 15 else None, ttl_ms=1_000 + number)
        table.acquire("bob", f"a{number}", wait_ms=10_000)
        table.share("eve", f"a{number}", wait_ms=500)
    table.now_us = 10 * SECOND
    told = table.tend(units_max=10)
    assert told[:25] == [f"expired ann a{number}" for number in range(25)]
    assert told[25:50] == [f"granted bob a{number}" for number in range(25)]
    assert told[50:] == [f"wait_ended eve a{number} DEADLINE" for number in range(25)]


def test_what_is_due_next_is_known(table: Table) -> None:
    assert table.locks.next_due_us is None
    lock = table.acquire("ann", "a")
    assert table.locks.next_due_us == 30 * SECOND
    table.acquire("bob", "a", wait_ms=1_000)
    assert table.locks.next_due_us == SECOND
    table.acquire("eve", "a", wait_ms=60_000)
    assert (table.locks.held_count, table.locks.waiting_count, len(table.locks.waits)) == (1, 2, 2)
    table.ask(release("ann", lock))
    assert table.locks.next_due_us == 0
    table.tend()
    table.release(table.units[-1])
    assert (table.locks.next_due_us, table.holders("a")) == (30 * SECOND, ["eve"])


# --- Limits ----------------------------------------------------------------------------------------------------------


def limit(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(locks_module, name, 2)


def test_the_locks_of_one_agent_are_bounded(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, "LOCKS_PER_AGENT_MAX")
    table.acquire("ann", "a")
    table.acquire("ann", "b")
    for resource in ("c", "a/b"):
        with pytest.raises(TooLarge, match="has 2 locks and waits, at most 2") as caught:
            table.acquire("ann", resource)
        assert caught.value.limit == 2
    table.acquire("ann", "a")
    table.acquire("bob", "c")


def test_all_locks_are_bounded(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, "LOCKS_MAX")
    table.acquire("ann", "a")
    table.acquire("bob", "b")
    with pytest.raises(Busy, match="2 locks are held") as caught:
        table.acquire("eve", "c")
    assert (caught.value.limit, caught.value.retryable) == (2, True)


def test_the_waits_of_one_agent_are_bounded(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, "LOCK_WAITS_PER_AGENT_MAX")
    table.acquire("ann", "a")
    table.acquire("bob", "a", wait_ms=WAIT)
    table.acquire("bob", "a/b", wait_ms=WAIT)
    with pytest.raises(TooLarge, match="at most 2"):
        table.acquire("bob", "a/c", wait_ms=WAIT)
    table.acquire("eve", "a/c", wait_ms=WAIT)


def test_all_waits_are_bounded(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, "LOCK_WAITS_MAX")
    table.acquire("ann", "a")
    table.acquire("bob", "a", wait_ms=WAIT)
    table.acquire("eve", "a", wait_ms=WAIT)
    with pytest.raises(Busy, match="2 wait for locks"):
        table.acquire("dan", "a", wait_ms=WAIT)


def test_a_queue_is_shown_in_part_and_counted_in_full(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, "LOCK_QUEUE_SHOWN_MAX")
    table.acquire("ann", "a")
    for agent in ("bob", "eve", "dan"):
        table.acquire(agent, "a", wait_ms=WAIT, mode=LockMode.SHARED if agent == "eve" else LockMode.EXCLUSIVE)
    assert (table.queue("a"), table.locks.state("a", 0).queue_length) == (["bob", "eve"], 3)


# --- Where it is said ------------------------------------------------------------------------------------------------


def test_a_lock_is_said_in_the_context_that_was_named(table: Table) -> None:
    lock = table.acquire("ann", "a", context_id="plan")
    table.acquire("bob", "a", wait_ms=WAIT, context_id="other")
    table.release(lock)
    assert [(unit.context_id, said(unit)) for unit in table.units] == [
        ("plan", "granted ann a"),
        ("other", "queued bob a"),
        ("plan", "released ann a"),
        ("other", "granted bob a"),
    ]


def test_a_closed_context_takes_no_new_lock_and_lets_the_old_ones_end(table: Table) -> None:
    lock = table.acquire("ann", "a", context_id="plan")
    table.ask(UpdateContext(context_id="plan", agent_id="ann", closed=True))
    with pytest.raises(ContextClosed):
        table.acquire("ann", "b", context_id="plan")
    assert table.release(lock) == []
    assert table.state.contexts.version("plan") == 3


def test_the_context_of_locks_is_always_open(table: Table) -> None:
    table.ask(UpdateContext(context_id="locks", agent_id="ann", closed=True))
    table.acquire("ann", "a")


# --- Looking ---------------------------------------------------------------------------------------------------------


def held(table: Table, *, after: tuple[str, int] = ("", 0), prefix: str = "", holder: str | None = None) -> list[str]:
    found = table.locks.held(after=after, prefix=prefix, holder=holder, limit=10, now_us=0)
    return [f"{resource} {lock.holder_agent}" for resource, lock in found]


def test_what_is_held_is_listed_in_order_of_names_and_then_of_grants(table: Table) -> None:
    table.share("bob", "c", "a")
    table.share("ann", "a")
    table.acquire("ann", "b")
    table.share("eve", "d")
    table.acquire("eve", "d")
    assert held(table) == ["a bob", "a ann", "b ann", "c bob", "d eve", "d eve"]
    assert held(table, after=("a", 1)) == ["a ann", "b ann", "c bob", "d eve", "d eve"]
    assert held(table, after=("c", 9)) == ["d eve", "d eve"]
    assert held(table, holder="bob") == ["a bob", "c bob"]
    assert held(table, holder="bob", after=("a", 1)) == ["c bob"]
    assert held(table, holder="stranger") == []


def test_what_is_held_can_be_asked_for_by_its_beginning(table: Table) -> None:
    for resource in ("doc", "src", "src/a", "srcs", "t"):
        table.acquire("ann", resource)
    assert held(table, prefix="src") == held(table, prefix="src", holder="ann") == ["src ann", "src/a ann", "srcs ann"]
    assert held(table, prefix="src/", after=("src/a", 3)) == []


def test_a_lock_that_is_not_held_is_not_shown(table: Table) -> None:
    assert table.locks.lock("unknown", 0) is None
    lock = table.acquire("ann", "a")
    assert table.locks.lock(lock.id, 31 * SECOND).remaining_ms == 0  # type: ignore[union-attr]


def test_a_token_is_valid_for_what_its_lock_covers_while_it_lives(table: Table) -> None:
    lock = table.acquire("ann", "src", "doc")
    valid = table.locks.is_valid
    assert [valid(name, lock.seq, 0) for name in ("src", "./src/a.py", "doc/", "src2", "/")] == [True] * 3 + [False] * 2
    assert [valid("src", lock.seq, us) for us in (30 * SECOND - 1, 30 * SECOND)] == [True, False]
    table.release(lock)
    assert not valid("src", lock.seq, 0)


# --- Fences ----------------------------------------------------------------------------------------------------------


def write(*resources: str, agent_id: str = "ann", fence: Fence | None = None) -> Append:
    return Append(
        draft=Draft(context_id="plan", agent_id=agent_id, type=UnitType.FILE_CHANGE, resources=list(resources)),
        fence=fence,
    )


def test_who_shows_a_token_writes_while_it_holds(table: Table) -> None:
    lock = table.share("ann", "src")
    table.ask(write(fence=Fence("src/./a.py", lock.seq)))
    table.now_us = 30 * SECOND
    with pytest.raises(FenceStale) as caught:
        table.ask(write(fence=Fence("src", lock.seq)))
    assert (caught.value.field, caught.value.details) == ("fence", {"token": lock.seq})


def test_a_token_is_no_others_and_of_no_other_resource(table: Table) -> None:
    lock, _ = table.acquire("ann", "src"), table.acquire("bob", "doc")
    for append in (
        write(agent_id="bob", fence=Fence("src", lock.seq)),
        write(fence=Fence("doc", lock.seq)),
        write(fence=Fence("src", lock.seq + 1)),
        write(fence=Fence("src/../doc", lock.seq)),
    ):
        with pytest.raises(FenceStale):
            table.ask(append)


def test_a_lock_that_was_lost_and_taken_again_has_another_token(table: Table) -> None:
    first = table.acquire("ann", "src")
    table.release(first)
    second = table.acquire("ann", "src")
    with pytest.raises(FenceStale):
        table.ask(write(fence=Fence("src", first.seq)))
    table.ask(write(fence=Fence("src", second.seq)))


def fenced(table: Table, *fences: str) -> None:
    table.ask(UpdateContext(context_id="plan", agent_id="ann", fences=fences))


@pytest.mark.parametrize("resource", ["src/a.py", "doc/../src/a.py", "./src//a.py", "src/lib/"])
def test_a_fenced_resource_asks_for_an_exclusive_lock(table: Table, resource: str) -> None:
    fenced(table, "src/*")
    with pytest.raises(FenceRequired) as caught:
        table.ask(write("doc/a", resource))
    assert caught.value.field == "resources[1]"
    assert caught.value.details["resource"].startswith("src/")
    lock = table.share("ann", "src")
    with pytest.raises(FenceRequired):
        table.ask(write(resource))
    table.release(lock)
    table.acquire("ann", "src")
    table.ask(write(resource))
    with pytest.raises(FenceRequired):
        table.ask(write(resource, agent_id="bob"))
    table.now_us = 30 * SECOND
    with pytest.raises(FenceRequired):
        table.ask(write(resource))


@pytest.mark.parametrize("fence", ["./src/*", "src//*", "doc/../src/*"])
def test_a_fence_means_the_same_whatever_way_it_is_written(table: Table, fence: str) -> None:
    fenced(table, fence)
    with pytest.raises(FenceRequired):
        table.ask(write("src/a.py"))


def test_what_no_fence_names_is_free(table: Table) -> None:
    fenced(table, "src/*", "*.lock")
    table.ask(write("doc/a", "src"))
    table.ask(write())
    with pytest.raises(FenceRequired):
        table.ask(write("doc/a", "poetry.lock"))


def test_a_fence_is_checked_where_the_context_has_some_too(table: Table) -> None:
    fenced(table, "src/*")
    lock = table.acquire("ann", "src", "doc")
    table.ask(write("src/a", fence=Fence("doc", lock.seq)))
    with pytest.raises(FenceStale):
        table.ask(write("src/a", fence=Fence("doc", lock.seq + 1)))


def test_in_an_atomic_batch_the_fenced_item_is_named(table: Table) -> None:
    fenced(table, "src/*")
    with pytest.raises(FenceRequired) as required:
        table.ask(AppendAtomic(appends=(write("doc"), write("src/a"))))
    with pytest.raises(FenceStale) as stale:
        table.ask(AppendAtomic(appends=(write(), write("doc"), write(fence=Fence("a", 1)))))
    assert (required.value.index, stale.value.index) == (1, 2)
    table.acquire("ann", "src")
    assert len(table.ask(AppendAtomic(appends=(write("doc"), write("src/a"))))) == 2


# --- Folding ---------------------------------------------------------------------------------------------------------


def test_a_kind_this_version_does_not_write_is_our_mistake(table: Table) -> None:
    table.acquire("ann", "a")
    later = msgspec.structs.replace(table.units[0], kind="lock.stolen")
    with pytest.raises(AssertionError, match="writes no such kind"):
        table.locks.evolve(later)


def test_a_change_with_keys_of_a_later_version_is_read(table: Table) -> None:
    unit = table.acquire("ann", "a")
    later = Locks()
    later.evolve(msgspec.structs.replace(unit, payload=unit.payload[:-1] + b',"later":1}'))
    assert later.snapshot() == table.locks.snapshot()


def test_other_units_change_nothing(table: Table) -> None:
    before = table.locks.snapshot()
    table.ask(write())
    fenced(table, "x")
    assert table.locks.snapshot() == before


def test_contexts_and_locks_keep_a_snapshot_each(table: Table) -> None:
    table.acquire("ann", "a")
    restored = State()
    for part, kept in zip(restored.parts, table.state.parts, strict=True):
        part.restore(kept.snapshot())
    assert [part.name for part in restored.parts] == ["contexts.1", "locks.1"]
    assert restored.contexts.view("locks") == table.state.contexts.view("locks")
    assert restored.locks.snapshot() == table.locks.snapshot()


def test_restored_and_folded_again_it_is_the_same_table(table: Table) -> None:
    lock = table.acquire("ann", "a", session="s")
    table.share("eve", "b", context_id="plan", reason="why")
    for agent in ("bob", "dan"):
        table.acquire(agent, "a", "b", wait_ms=WAIT)
    restored = Locks()
    restored.restore(table.locks.snapshot())
    refold(restored, table.units[:0])
    folded_again = Locks()
    refold(folded_again, table.units)
    table.ask(release("ann", lock))
    refold(restored, table.units[-1:])
    refold(folded_again, table.units[-1:])
    assert restored.snapshot() == folded_again.snapshot() == table.locks.snapshot()
    assert restored.next_due_us == folded_again.next_due_us == table.locks.next_due_us
    restored.restore(None)
    assert restored.snapshot() == Locks().snapshot()


def refold(locks: Locks, units: Sequence[WorkUnit]) -> None:
    for unit in units:
        locks.evolve(unit)


def test_a_crowd_of_holders_is_counted_and_its_first_are_named(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engram_bus.decisions.locks.LOCK_HOLDERS_SHOWN_MAX", 2)
    for agent_id in ("ann", "bob", "cat"):
        table.acquire(agent_id, "plan.md", mode=LockMode.SHARED)
    state = table.locks.state("plan.md", table.now_us)
    assert [lock.holder_agent for lock in state.holders] == ["ann", "bob"]
    assert state.holder_count == 3


def test_what_another_resource_of_it_covers_is_left_out_of_a_lock(table: Table) -> None:
    lock = table.lock(table.acquire("ann", "a/b", "a", "a/b/c", "ab"))
    assert lock.resources == ("a", "ab")


def test_a_crowd_is_looked_at_bit_by_bit_and_stands_in_line_meanwhile(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engram_bus.decisions.lock_table.LOCK_LOOKS_AT_ONCE_MAX", 2)
    lock = table.acquire("ann", "a")
    crowd = [f"agent-{number}" for number in range(5)]
    for agent_id in crowd:
        table.acquire(agent_id, "a", mode=LockMode.SHARED, wait_ms=1_000)
    table.ask(release("ann", lock))
    assert table.locks.next_due_us == 0
    assert table.ask(TendLocks(units_max=512)) == [], "nobody was looked at yet"
    with pytest.raises(LockHeld, match="waits first"):
        table.acquire("eve", "a")
    assert table.locks.settle(2) == 2
    assert [said(unit) for unit in table.ask(TendLocks(units_max=512))] == ["granted agent-0 a", "granted agent-1 a"]
    table.tend()
    assert sorted(table.holders("a")) == crowd


def test_who_is_still_to_be_looked_at_is_not_sent_away_at_its_deadline(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engram_bus.decisions.lock_table.LOCK_LOOKS_AT_ONCE_MAX", 0)
    lock = table.acquire("ann", "a")
    table.acquire("bob", "a", wait_ms=1_000)
    table.ask(release("ann", lock))
    table.now_us += 2 * SECOND
    assert table.ask(TendLocks(units_max=512)) == []
    table.tend()
    assert table.holders("a") == ["bob"]


def test_waits_count_as_locks_for_they_become_such(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks_module, "LOCKS_PER_AGENT_MAX", 2)
    table.acquire("ann", "a")
    table.acquire("bob", "b")
    table.acquire("bob", "a", wait_ms=1_000)
    for wait_ms in (0, 1_000):
        with pytest.raises(TooLarge, match="has 2 locks and waits"):
            table.acquire("bob", "c", wait_ms=wait_ms)


def test_the_names_of_an_agents_locks_are_bounded_together(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks_module, "LOCK_NAMES_PER_AGENT_MAX", 20)
    lock = table.acquire("ann", "a/b/c")
    with pytest.raises(TooLarge) as caught:
        table.acquire("ann", "d/e/f")
    assert (caught.value.field, caught.value.limit) == ("resource", 20)
    table.ask(release("ann", lock))
    table.acquire("ann", "d/e/f")


def test_the_names_of_all_locks_are_bounded_together(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks_module, "LOCK_NAMES_MAX", 10)
    table.acquire("ann", "a/b")
    with pytest.raises(Busy):
        table.acquire("bob", "c/d/e")


def test_a_refusal_counts_who_waits_for_the_same(table: Table) -> None:
    table.acquire("ann", "a")
    table.acquire("bob", "a/b", wait_ms=1_000)
    with pytest.raises(LockHeld) as caught:
        table.acquire("eve", "a/b")
    assert (caught.value.details["holder_agent"], caught.value.details["queue_length"]) == ("ann", 1)
