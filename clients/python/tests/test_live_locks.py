"""Against a real bus: who holds a lock holds it alone, keeps it over restarts, and hears of it when it is lost."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from live_bus import LiveBus, SameBus, breaking_wire, silent_wire

from engram_client import Client, Fence, Lease, Lock, LockMode, SyncClient
from engram_client.errors import (
    Deadlock,
    EngramConnectionError,
    FenceRequired,
    FenceStale,
    LockHeld,
    LockLost,
    LockNotFound,
    NotHolder,
    WaitsFor,
)
from engram_client.requests import LockRequest

soon = pytest.mark.usefixtures("refreshed_soon")
every_way = pytest.mark.parametrize(
    ("scheme", "session"),
    [("http", False), ("http", True), ("grpc", False), ("grpc", True)],
    ids=["http", "http-session", "grpc", "grpc-session"],
)


@pytest.fixture
def plan(request: pytest.FixtureRequest) -> str:
    """A resource of a test's own."""
    return f"plan/{request.node.name} ?#%\u00eb"


@asynccontextmanager
async def two(bus: LiveBus | SameBus) -> AsyncIterator[tuple[Client, Client]]:
    async with Client(bus.url, agent_id="ann") as ann, Client(bus.url, agent_id="bob") as bob, asyncio.timeout(60):
        yield ann, bob


async def for_ever() -> None:
    await asyncio.Event().wait()


async def until(is_so: Callable[[], object]) -> None:
    while not is_so():
        await asyncio.sleep(0.01)


async def queued(bus: Client, resource: str, count: int = 1) -> None:
    while (await bus.get_lock(resource)).queue_length != count:
        await asyncio.sleep(0.01)


async def holders(bus: Client, resource: str) -> list[str]:
    return [lock.holder_agent for lock in (await bus.get_lock(resource)).holders]


# --- The verbs


async def test_a_lock_is_held_extended_refreshed_and_released(shared_bus: SameBus, plan: str) -> None:
    async with two(shared_bus) as (ann, bob):
        lock = await ann.acquire_lock(
            f"{plan}/b", f"{plan}/a", ttl_seconds=60, reason="editing", context_id="elsewhere"
        )
        assert lock.resources == [f"{plan}/a", f"{plan}/b"]
        assert (lock.holder_agent, lock.mode, lock.reason) == ("ann", LockMode.EXCLUSIVE, "editing")
        assert (lock.context_id, lock.extended) == ("elsewhere", False)
        assert 59 < lock.remaining_seconds <= 60
        again = await ann.acquire_lock(f"{plan}/a", f"{plan}/b", ttl_seconds=90)
        assert (again.lock_id, again.fencing_token, again.extended) == (lock.lock_id, lock.fencing_token, True)
        assert (await ann.refresh_lock(lock)).expires_at >= again.expires_at
        assert (await ann.acquire_lock(*lock.resources, ttl_seconds=0.1)).expires_at >= again.expires_at
        assert (await ann.refresh_lock(lock, 120)).remaining_seconds > 100
        with pytest.raises(NotHolder) as told:
            await bob.refresh_lock(Lock(**{**as_dict(lock), "holder_agent": "bob"}))
        assert told.value.holder_agent == "ann"
        assert [await ann.release_lock(lock) for _ in range(2)] == [True, False]
        with pytest.raises(LockLost) as lost:
            await ann.refresh_lock(lock)
        assert lost.value.lock_id == lock.lock_id
        assert (await ann.get_lock(plan)).holders == []


def as_dict(lock: Lock) -> dict[str, object]:
    return {name: getattr(lock, name) for name in lock.__struct_fields__}


async def test_nobody_refreshes_or_releases_the_lock_of_another_agent(shared_bus: SameBus, plan: str) -> None:
    async with two(shared_bus) as (ann, bob):
        lock = await ann.acquire_lock(plan, ttl_seconds=60)
        for seen in (lock, (await bob.get_lock(plan)).holders[0]):
            with pytest.raises(NotHolder):
                await bob.refresh_lock(seen, 600)
            with pytest.raises(NotHolder):
                await bob.release_lock(seen)
        assert [held.expires_at for held in (await ann.get_lock(plan)).holders] == [lock.expires_at]


async def test_a_lock_acquired_as_another_agent_is_refreshed_and_released_as_that(
    shared_bus: SameBus, plan: str
) -> None:
    async with two(shared_bus) as (ann, bob):
        lock = await ann.acquire_lock(plan, ttl_seconds=60, agent_id="ann/2")
        assert (await ann.refresh_lock(lock, 120)).remaining_seconds > 100
        with pytest.raises(NotHolder):
            await ann.release_lock(lock, agent_id="ann")
        assert await ann.release_lock(lock)
        again = await ann.acquire_lock(plan, ttl_seconds=60, agent_id="ann/2")
        assert (await bob.refresh_lock(again, 120, agent_id="ann/2")).remaining_seconds > 100
        assert await bob.release_lock(again, agent_id="ann/2")


@soon
@every_way
async def test_a_lease_of_another_agent_outlives_its_first_term_and_is_given_back(
    shared_bus: SameBus, plan: str, session: bool
) -> None:
    async with two(shared_bus) as (ann, bob):
        async with ann.lock(plan, ttl_seconds=20, session=session, agent_id="ann/2") as lease:
            first = lease.lock
            await until(lambda: lease.lock.expires_at > first.expires_at)
            assert await holders(bob, plan) == ["ann/2"]
        assert await holders(bob, plan) == []


async def test_a_refusal_tells_who_holds_it(shared_bus: SameBus, plan: str) -> None:
    async with two(shared_bus) as (ann, bob):
        lock = await ann.acquire_lock(plan, reason="editing")
        with pytest.raises(LockHeld) as told:
            await bob.acquire_lock(f"{plan}/below")
        held = told.value
        assert (held.holder_agent, held.resource, held.reason) == ("ann", plan, "editing")
        assert (held.since, held.until) == (lock.granted_at, lock.expires_at)
        assert (held.queue_length, held.waits, held.retryable) == (0, False, False)


async def test_a_wait_may_take_longer_than_a_request_and_ends_with_a_refusal(shared_bus: SameBus, plan: str) -> None:
    async with two(shared_bus) as (ann, _), Client(shared_bus.url, agent_id="bob", timeout_seconds=0.5) as bob:
        await ann.acquire_lock(plan)
        with pytest.raises(LockHeld):
            await bob.acquire_lock(plan, wait_seconds=0.8)


async def test_who_waits_is_handed_the_lock_in_turn(shared_bus: SameBus, plan: str) -> None:
    async with two(shared_bus) as (ann, bob):
        lock = await ann.acquire_lock(plan)
        waiting = asyncio.create_task(bob.acquire_lock(plan, wait_seconds=30, reason="next"))
        await queued(ann, plan)
        state = await ann.get_lock(plan, lock.fencing_token)
        assert [(one.agent_id, one.resources, one.reason) for one in state.queue] == [("bob", [plan], "next")]
        assert (state.resource, state.valid) == (plan, True)
        with pytest.raises(LockHeld) as told:
            await ann.acquire_lock(f"{plan}/../{plan.split('/')[1]}", agent_id="eve")
        assert told.value.queue_length == 1
        await ann.release_lock(lock)
        assert (await waiting).fencing_token > lock.fencing_token
        assert (await ann.get_lock(plan, lock.fencing_token)).valid is False


async def test_a_circle_of_waits_is_refused(shared_bus: SameBus, plan: str) -> None:
    async with two(shared_bus) as (ann, bob):
        await ann.acquire_lock(f"{plan}/a")
        await bob.acquire_lock(f"{plan}/b")
        waiting = asyncio.create_task(bob.acquire_lock(f"{plan}/a", wait_seconds=30))
        await queued(ann, f"{plan}/a")
        with pytest.raises(Deadlock) as told:
            await ann.acquire_lock(f"{plan}/b", wait_seconds=30)
        assert told.value.cycle == [WaitsFor("ann", "bob", f"{plan}/b"), WaitsFor("bob", "ann", f"{plan}/a")]
        waiting.cancel()


async def test_who_stops_waiting_leaves_the_line(shared_bus: SameBus, plan: str) -> None:
    async with two(shared_bus) as (ann, bob):
        await ann.acquire_lock(plan)
        waiting = asyncio.create_task(bob.acquire_lock(plan, wait_seconds=60))
        await queued(ann, plan)
        waiting.cancel()
        await queued(ann, plan, 0)
        assert (await bob.status()).locks > 0  # its other requests go on


async def test_many_who_wait_do_not_hold_up_other_requests_of_the_same_client(shared_bus: SameBus, plan: str) -> None:
    async with two(shared_bus) as (ann, bob):
        await ann.acquire_lock(plan)
        waiting = [asyncio.create_task(bob.acquire_lock(plan, wait_seconds=60)) for _ in range(80)]
        await queued(ann, plan, 80)
        await bob.append(plan, "still here")
        for task in waiting:
            task.cancel()
        await queued(ann, plan, 0)


async def test_what_is_held_is_listed_page_by_page(shared_bus: SameBus, plan: str) -> None:
    async with two(shared_bus) as (ann, bob):
        names = [f"{plan}/{number}" for number in range(5)]
        lock = await ann.acquire_lock(*names[:3])
        other = await bob.acquire_lock(*names[3:], mode="shared")
        listed = [one async for one in ann.locks(prefix=f"{plan}/", limit=2)]
        assert [one.resources for one in listed] == [[name] for name in names]
        assert [one.lock_id for one in listed] == [lock.lock_id] * 3 + [other.lock_id] * 2
        assert [one.mode async for one in ann.locks("bob", f"{plan}/")] == [LockMode.SHARED] * 2


async def test_a_lock_is_broken_on_the_record(shared_bus: SameBus, plan: str) -> None:
    async with two(shared_bus) as (ann, bob):
        lock = await ann.acquire_lock(plan, context_id=plan)
        assert await bob.break_lock(plan, reason="ann is away") == [lock.lock_id]
        with pytest.raises(LockNotFound):
            await bob.break_lock(plan, reason="again", lock_id=lock.lock_id)
        last = (await ann.list(plan, reverse=True)).work_units[0]
        assert (last.kind, last.agent_id, last.json()["reason"]) == ("lock.broken", "bob", "ann is away")


async def test_a_fence_keeps_out_who_no_longer_holds(shared_bus: SameBus, plan: str) -> None:
    async with two(shared_bus) as (ann, bob):
        lock = await ann.acquire_lock(plan)
        assert (await ann.append(plan, "x", fence=lock.fence())).seq > lock.fencing_token
        async with ann.pipeline() as pipe:
            await pipe.append(plan, "x", fence=Fence(f"{plan}/below", lock.fencing_token))
        await ann.update_context(plan, fences=["src/**"])
        with pytest.raises(FenceRequired) as told:
            await bob.append(plan, "x", resources=["src/a.py"])
        assert told.value.resource == "src/a.py"
        await bob.break_lock(plan, reason="enough")
        with pytest.raises(FenceStale):
            await ann.append(plan, "x", fence=lock.fence())


# --- Leases


@every_way
async def test_a_block_is_alone(shared_bus: SameBus, plan: str, session: bool) -> None:
    inside: list[str] = []
    tokens: list[int] = []

    async def work(bus: Client) -> None:
        for _ in range(5):
            async with bus.lock(plan, wait_seconds=30, session=session) as lease:
                assert inside == []
                inside.append(bus.agent_id)
                tokens.append(lease.token)
                await bus.append(plan, "x", fence=lease.fence())
                inside.remove(bus.agent_id)

    async with two(shared_bus) as (ann, bob):
        await asyncio.gather(work(ann), work(bob))
        assert await holders(ann, plan) == []
    assert tokens == sorted(set(tokens))


@soon
@every_way
async def test_a_lease_outlives_its_first_term(shared_bus: SameBus, plan: str, session: bool) -> None:
    async with two(shared_bus) as (ann, _), ann.lock(plan, ttl_seconds=20, session=session) as lease:
        first = lease.lock
        await until(lambda: lease.lock.expires_at > first.expires_at)
        assert lease.lock.lock_id == first.lock_id
        assert lease.is_held


@soon
@every_way
async def test_a_sibling_that_asks_for_less_takes_nothing_away_and_one_that_releases_takes_it_all(
    shared_bus: SameBus, plan: str, session: bool
) -> None:
    async def block(bus: Client, other: Client) -> None:
        async with bus.lock(plan, ttl_seconds=20, session=session) as lease:
            await other.release_lock(lease.lock)
            await for_ever()

    async with two(shared_bus) as (ann, bob), Client(shared_bus.url, agent_id="ann") as sibling:
        async with ann.lock(plan, ttl_seconds=60, session=session) as lease:
            lock = await sibling.acquire_lock(plan, ttl_seconds=0.1)
            assert (lock.lock_id, lock.expires_at) == (lease.lock.lock_id, lease.lock.expires_at)
            with pytest.raises(LockHeld):
                await bob.acquire_lock(plan, wait_seconds=0.3)
            lease.check()
        with pytest.raises(LockLost):
            await block(ann, sibling)


@soon
@every_way
async def test_a_broken_lock_ends_the_block(shared_bus: SameBus, plan: str, session: bool) -> None:
    async with two(shared_bus) as (ann, bob):
        entered = asyncio.Event()

        async def block() -> None:
            async with ann.lock(plan, ttl_seconds=20, session=session):
                entered.set()
                await for_ever()

        working = asyncio.create_task(block())
        await entered.wait()
        await bob.break_lock(plan, reason="mine")
        with pytest.raises(LockLost):
            await working


@every_way
async def test_an_exception_of_the_block_releases_the_lock(shared_bus: SameBus, plan: str, session: bool) -> None:
    async with two(shared_bus) as (ann, bob):
        with pytest.raises(ZeroDivisionError):
            async with ann.lock(plan, session=session):
                raise ZeroDivisionError
        assert await holders(bob, plan) == []


@every_way
async def test_who_stops_waiting_for_a_block_leaves_the_line(shared_bus: SameBus, plan: str, session: bool) -> None:
    async def block(bus: Client) -> None:
        async with bus.lock(plan, wait_seconds=60, session=session):
            pytest.fail("ann holds it")

    async with two(shared_bus) as (ann, bob), ann.lock(plan):
        waiting = asyncio.create_task(block(bob))
        await queued(ann, plan)
        waiting.cancel()
        await queued(ann, plan, 0)


@every_way
async def test_a_refused_block_says_why(shared_bus: SameBus, plan: str, session: bool) -> None:
    async with two(shared_bus) as (ann, bob), ann.lock(plan, reason="editing", session=session):
        with pytest.raises(LockHeld) as told:
            async with bob.lock(plan, session=session):
                pytest.fail("ann holds it")
        assert (told.value.holder_agent, told.value.reason) == ("ann", "editing")


@every_way
async def test_a_restart_shorter_than_the_lease_goes_unnoticed(
    own_bus: LiveBus, short_pauses: None, session: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with two(own_bus) as (ann, bob), ann.lock("plan.md", ttl_seconds=9, session=session) as lease:
        first = lease.lock
        for ending in (own_bus.stop, own_bus.kill):
            caplog.clear()
            await asyncio.to_thread(ending)
            await until(lambda: "lease on plan.md: again" in caplog.text)
            held = lease.lock
            await asyncio.to_thread(own_bus.start)
            await until(lambda held=held: lease.lock is not held)
        lease.check()
        assert (lease.lock.lock_id, lease.token) == (first.lock_id, first.fencing_token)
        assert await holders(bob, "plan.md") == ["ann"]


@every_way
async def test_a_bus_that_stays_away_costs_the_lease(own_bus: LiveBus, short_pauses: None, session: bool) -> None:
    async with two(own_bus) as (ann, _):
        entered = asyncio.Event()

        async def block() -> None:
            async with ann.lock("plan.md", ttl_seconds=1, session=session):
                entered.set()
                await for_ever()

        working = asyncio.create_task(block())
        await entered.wait()
        own_bus.kill()
        with pytest.raises(LockLost, match="not refreshed"):
            await working
        own_bus.start()


@every_way
async def test_who_waited_when_the_bus_was_killed_waits_on(own_bus: LiveBus, short_pauses: None, session: bool) -> None:
    async def block(bus: Client) -> int:
        async with bus.lock("plan.md", wait_seconds=50, session=session) as lease:
            return lease.token

    async with two(own_bus) as (ann, bob):
        lock = await ann.acquire_lock("plan.md", ttl_seconds=600)
        waiting = asyncio.create_task(block(bob))
        for ending in (own_bus.kill, own_bus.stop):
            await queued(ann, "plan.md")
            await asyncio.to_thread(ending)
            await asyncio.to_thread(own_bus.start)
        await queued(ann, "plan.md")
        await ann.release_lock(lock)
        assert await waiting > lock.fencing_token


async def test_a_frozen_loop_is_told_and_its_successor_is_not_disturbed(own_bus: LiveBus) -> None:
    reached = False

    async def block(bus: Client) -> None:
        nonlocal reached
        async with bus.lock("plan.md", ttl_seconds=0.5) as lease:
            freeze(lease)
            while await holders_elsewhere(own_bus.url) != ["eve"]:
                pass
            reached = True

    with pytest.raises(LockLost):
        async with Client(own_bus.url, agent_id="ann") as ann, asyncio.timeout(30):
            await block(ann)
    assert not reached


async def holders_elsewhere(url: str) -> list[str]:
    async with Client(url, agent_id="eve") as eve:
        await eve.acquire_lock("plan.md", wait_seconds=10)
        return await holders(eve, "plan.md")


def freeze(lease: Lease) -> None:
    """As long as the lease is held, nothing else runs."""
    while lease.is_held:
        pass


HOLDER = """
import asyncio, sys
from engram_client import Client

async def hold():
    async with Client(sys.argv[1], agent_id="ann") as bus, bus.lock("plan.md", ttl_seconds=600, session=True):
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(hold())
"""


async def test_a_session_ends_with_its_process(own_bus: LiveBus) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, own_bus.url], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        async with Client(own_bus.url, agent_id="bob") as bob, asyncio.timeout(30):
            assert (await bob.get_lock("plan.md")).holders[0].remaining_seconds > 500
            waiting = asyncio.create_task(bob.acquire_lock("plan.md", wait_seconds=25))
            await queued(bob, "plan.md")
            process.send_signal(signal.SIGKILL)
            assert (await waiting).holder_agent == "bob"


async def test_who_stops_waiting_for_a_sign_of_life_ends_nothing(shared_bus: SameBus, plan: str) -> None:
    async with two(shared_bus) as (ann, bob):
        session = ann._verbs.session(time.monotonic)
        asked = LockRequest(
            resources=(plan,), agent_id="ann", ttl_seconds=60, mode="exclusive", reason="", context_id="_system"
        )
        lock = await session.acquire(asked, wait_seconds=0)
        for turns in range(12):
            ping = asyncio.create_task(session.ping())
            for _ in range(turns):
                await asyncio.sleep(0)
            ping.cancel()
            await asyncio.wait([ping])
        await session.ping()
        assert await holders(bob, plan) == ["ann"]
        await session.release(lock, agent_id="ann")
        assert await holders(bob, plan) == []
        assert not session.has_ended
        await session.aclose()


async def test_a_frozen_loop_has_lost_its_session_and_knows_it(own_bus: LiveBus) -> None:
    async def block(bus: Client) -> None:
        async with bus.lock("plan.md", ttl_seconds=600, session=True) as lease:
            freeze(lease)
            await for_ever()

    async with Client(own_bus.url, agent_id="bob") as bob, asyncio.timeout(30):
        async with Client(own_bus.url, agent_id="ann") as ann:
            with pytest.raises(LockLost, match="not heard of"):
                await block(ann)
        assert (await bob.acquire_lock("plan.md", wait_seconds=20)).holder_agent == "bob"


async def test_over_a_wire_that_breaks_a_session_is_taken_over(
    own_bus: LiveBus, short_pauses: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engram_client.holds.SESSION_PING_SECONDS", 0.01)
    async with (
        breaking_wire(own_bus.url, seed=3, bytes_mean=6_000) as wire,
        Client(wire.url, agent_id="ann", max_retries=50) as ann,
        Client(own_bus.url, agent_id="bob") as bob,
        asyncio.timeout(60),
    ):
        async with ann.lock("plan.md", ttl_seconds=600, session=True) as lease:
            token, cuts = lease.token, wire.cuts
            await until(lambda: wire.cuts > cuts + 10)
            await asyncio.sleep(5.5)  # Were it tied to one that has gone, it would be released.
            lease.check()
            assert lease.token == token
            assert await holders(bob, "plan.md") == ["ann"]
        assert await holders(bob, "plan.md") == []


async def test_over_a_wire_that_falls_silent_a_session_is_taken_over(own_bus: LiveBus, short_pauses: None) -> None:
    async with (
        silent_wire(own_bus.url) as wire,
        Client(wire.url, agent_id="ann") as ann,
        Client(own_bus.url, agent_id="bob") as bob,
        asyncio.timeout(60),
        ann.lock("plan.md", ttl_seconds=600, session=True) as lease,
    ):
        first = lease.lock
        wire.fall_silent()
        await until(lambda: lease.lock is not first)
        await asyncio.sleep(5.5)
        lease.check()
        assert lease.token == first.fencing_token
        assert await holders(bob, "plan.md") == ["ann"]


# --- For threads


@soon
@every_way
def test_the_same_without_a_loop(shared_bus: SameBus, plan: str, session: bool) -> None:
    with SyncClient(shared_bus.url, agent_id="ann") as ann, SyncClient(shared_bus.url, agent_id="bob") as bob:
        lock = ann.refresh_lock(ann.acquire_lock(plan))
        assert [one.lock_id for one in bob.locks(prefix=plan)] == [lock.lock_id]
        assert ann.release_lock(lock)
        with ann.lock(plan, ttl_seconds=20, session=session) as lease:
            first = lease.lock
            lease.check()
            ann.append(plan, "x", fence=lease.fence())
            while lease.lock.expires_at == first.expires_at:
                assert bob.get_lock(plan, lease.token).valid
        assert not lease.is_held
        assert bob.get_lock(plan).holders == []


def test_a_thread_is_told_that_its_lock_was_lost(shared_bus: SameBus, plan: str) -> None:
    def block(bus: SyncClient, other: SyncClient) -> None:
        with bus.lock(plan, ttl_seconds=1.5) as lease:
            other.break_lock(plan, reason="mine")
            while lease.is_held:
                other.status()
            with pytest.raises(LockLost):
                lease.check()

    with SyncClient(shared_bus.url, agent_id="ann") as ann, SyncClient(shared_bus.url, agent_id="bob") as bob:
        with pytest.raises(LockLost):
            block(ann, bob)
        with pytest.raises(ZeroDivisionError), ann.lock(plan):
            raise ZeroDivisionError
        assert bob.get_lock(plan).holders == []


def test_a_client_that_closes_gives_its_leases_back(shared_bus: SameBus, plan: str) -> None:
    with SyncClient(shared_bus.url, agent_id="ann") as ann, SyncClient(shared_bus.url, agent_id="bob") as bob:
        ann.lock(plan).__enter__()
        ann.close()
        assert bob.get_lock(plan).holders == []


def test_who_waits_while_another_thread_closes_is_let_go_and_leaves_the_line(shared_bus: SameBus, plan: str) -> None:
    with SyncClient(shared_bus.url, agent_id="ann") as ann, ThreadPoolExecutor() as threads:
        ann.acquire_lock(plan)
        bob = SyncClient(shared_bus.url, agent_id="bob")
        waiting = threads.submit(bob.acquire_lock, plan, wait_seconds=60)
        while ann.get_lock(plan).queue_length == 0:
            pass
        bob.close()
        with pytest.raises(EngramConnectionError, match="closed"):
            waiting.result(5)
        while ann.get_lock(plan).queue_length == 1:
            pass


def test_the_grace_of_a_session_is_that_of_the_bus() -> None:
    from engram_client import limits

    bus = pytest.importorskip("engram_bus.limits")
    assert limits.SESSION_GRACE_SECONDS == bus.LOCK_SESSION_GRACE_SECONDS
    assert limits.LEASE_SECONDS * 1_000 == bus.LOCK_TTL_MS_DEFAULT
