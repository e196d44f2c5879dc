"""A lease in a session of its own, over either transport: what it says there, and how it comes back after a cut."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc_scenes
import pytest
from conftest import Playing

from engram_client import Client, Lease
from engram_client.errors import Deadlock, EngramConnectionError, InvalidRequest, LockHeld, LockLost, NotFound

Play = Callable[..., Awaitable[str]]
ON_PLAN = {
    "lock_id": "l1",
    "resource": "plan.md",
    "holder_agent": "ann",
    "mode": "exclusive",
    "fencing_token": 7,
    "granted_at": "2026-01-01T00:00:00.000000Z",
    "expires_at": "2026-01-01T00:00:30.000000Z",
    "remaining_seconds": 30.0,
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
async def one_loop() -> AsyncIterator[None]:
    """For all tests: what a server of grpc has still to report when it was stopped needs its loop."""
    yield  # noqa: PT022  # The loop lives as long as this does.


@pytest.fixture(params=[Playing, grpc_scenes.Playing], ids=["http", "grpc"])
async def play(
    request: pytest.FixtureRequest, short_pauses: None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Play]:
    """Only scenes that are about signs of life are asked for one, however long the machine stands still."""
    monkeypatch.setattr("engram_client.holds.SESSION_PING_SECONDS", 60)
    monkeypatch.setattr("engram_client.holds.SESSION_GRACE_SECONDS", 120)
    async with AsyncExitStack() as stack:
        yield request.param(stack).start


over_http = pytest.mark.parametrize("play", [Playing], ids=["http"], indirect=True)
soon = pytest.mark.usefixtures("refreshed_soon")
over_grpc = pytest.mark.parametrize("play", [grpc_scenes.Playing], ids=["grpc"], indirect=True)


async def lock(caller: Any, operation: dict[str, Any], *, seconds: float = 30, token: int = 7, **fields: Any) -> None:
    found = {**ON_PLAN, "remaining_seconds": seconds, "fencing_token": token, "lock_id": f"l{token}"}
    await caller.say("locked", id=operation["id"], extended=False, locks=[found], **fields)


async def refuse(caller: Any, operation: dict[str, Any], code: str, **fields: Any) -> None:
    await caller.say("error", id=operation["id"], code=code, message=code, retryable=False, **fields)


async def release(caller: Any) -> dict[str, Any]:
    operation: dict[str, Any] = await caller.hear()
    await caller.say("released", id=operation["id"], lock_id=operation["lock_id"], released=True)
    return operation


@pytest.fixture
async def held() -> asyncio.Event:
    """Set by who holds the lock. A scene that ends the session waits for it: over gRPC the answer that grants the lock
    and the end of the session's call are two streams, and the end may be heard first."""
    return asyncio.Event()


async def refreshed(lease: Lease) -> None:
    """Until the lease has taken in an answer of 40 seconds."""
    while lease.lock.remaining_seconds != 40:
        await asyncio.sleep(0.01)


async def for_ever(held: asyncio.Event | None = None) -> None:
    if held is not None:
        held.set()
    await asyncio.Event().wait()


@soon
@over_http
async def test_a_session_is_said_in_frames(play: Play) -> None:
    said: list[dict[str, Any]] = []

    async def bus(caller: Any) -> None:
        await caller.subscribed("e1.0")
        said.append(await caller.hear())
        await caller.say("pong", head=1)
        await lock(caller, said[0], seconds=20)
        said.append(await caller.hear())
        await lock(caller, said[1], seconds=40)
        said.append(await release(caller))
        await caller.stay()

    async with (
        Client(await play(bus), agent_id="ann") as client,
        client.lock("plan.md", ttl_seconds=20, reason="r", session=True) as lease,
    ):
        await refreshed(lease)
    own = {"agent_id": "ann", "ttl_seconds": 20}
    assert said == [
        {
            "op": "lock.acquire",
            "id": 1,
            "resources": ["plan.md"],
            "mode": "exclusive",
            "wait_seconds": 0,
            "reason": "r",
            "context_id": "locks",
            "session": True,
            **own,
        },
        {"op": "lock.refresh", "id": 2, "lock_id": "l7", **own},
        {"op": "lock.release", "id": 3, "lock_id": "l7", "agent_id": "ann"},
    ]


@soon
@over_grpc
async def test_a_session_is_named_in_calls(play: Play) -> None:
    said: list[dict[str, Any]] = []

    async def bus(caller: Any) -> None:
        said.append(await caller.hear())
        await lock(caller, said[0], seconds=20)
        said.append(await caller.hear())
        await lock(caller, said[1], seconds=40)
        said.append(await release(caller))
        await caller.stay()

    async with (
        Client(await play(bus), agent_id="ann") as client,
        client.lock("plan.md", ttl_seconds=20, reason="r", session=True) as lease,
    ):
        await refreshed(lease)
    assert [operation["op"] for operation in said] == ["lock.acquire", "lock.refresh", "lock.release"]
    assert {operation["agent_id"] for operation in said} == {"ann"}
    assert (said[0]["session"], said[0]["wait_seconds"]) == ("session 0", 0)
    assert [operation["lock_id"] for operation in said[1:]] == ["l7", "l7"]


@over_grpc
async def test_a_session_that_the_bus_does_not_know_any_more_is_begun_anew(play: Play) -> None:
    async def before(caller: Any) -> None:
        await refuse(caller, await caller.hear(), "INVALID_REQUEST", field="session")
        await caller.stay()

    async def after(caller: Any) -> None:
        operation = await caller.hear()
        assert operation["session"] == "session 1"
        await lock(caller, operation)
        await release(caller)
        await caller.stay()

    async with (
        Client(await play(before, after), agent_id="ann") as client,
        client.lock("plan.md", session=True) as lease,
    ):
        assert lease.is_held


@over_grpc
async def test_another_mistake_in_asking_is_raised(play: Play) -> None:
    async def bus(caller: Any) -> None:
        await refuse(caller, await caller.hear(), "INVALID_REQUEST", field="resources")
        await caller.stay()

    async with Client(await play(bus), agent_id="ann") as client:
        with pytest.raises(InvalidRequest):
            async with client.lock("plan.md", session=True):
                pytest.fail("it is not held")


@soon
async def test_while_a_refresh_is_refused_it_is_held_as_long_as_the_bus_answers(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engram_client.holds.SESSION_PING_SECONDS", 0.05)
    monkeypatch.setattr("engram_client.holds.SESSION_GRACE_SECONDS", 1.5)
    refusals = 0

    async def bus(caller: Any) -> None:
        nonlocal refusals
        await lock(caller, await caller.hear(), seconds=20)
        over_at = asyncio.get_running_loop().time() + 3
        while True:
            operation = await caller.hear()
            if operation["op"] == "ping":
                await caller.say("pong", id=operation["id"], head=1)
            elif operation["op"] == "lock.refresh" and asyncio.get_running_loop().time() < over_at:
                refusals += 1
                await caller.say("error", id=operation["id"], code="BUSY", message="later", retryable=True)
            elif operation["op"] == "lock.refresh":
                await lock(caller, operation, seconds=40)
            else:
                await caller.say("released", id=operation["id"], lock_id="l7", released=True)

    async with (
        Client(await play(bus), agent_id="ann") as client,
        client.lock("plan.md", ttl_seconds=20, session=True) as lease,
    ):
        await refreshed(lease)
        assert lease.is_held
    assert refusals > 0


async def test_after_a_cut_the_same_token_means_that_nothing_was_lost(play: Play, held: asyncio.Event) -> None:
    async def before(caller: Any) -> None:
        await lock(caller, await caller.hear())
        await held.wait()
        caller.cut()

    async def away(caller: Any) -> None:
        caller.cut()

    async def after(caller: Any) -> None:
        operation = await caller.hear()
        assert (operation["op"], operation["wait_seconds"]) == ("lock.acquire", 0)
        await lock(caller, operation, seconds=40)
        await release(caller)
        await caller.stay()

    async with Client(await play(before, away, after), agent_id="ann") as client:
        async with client.lock("plan.md", session=True) as lease:
            held.set()
            await refreshed(lease)
            assert lease.is_held
        assert lease.token == 7


async def test_after_a_cut_another_token_means_that_it_was_lost_and_the_new_lock_is_given_back(
    play: Play, held: asyncio.Event
) -> None:
    given_back: list[str] = []

    async def before(caller: Any) -> None:
        await lock(caller, await caller.hear())
        await held.wait()
        caller.cut()

    async def after(caller: Any) -> None:
        await lock(caller, await caller.hear(), token=8)
        given_back.append((await release(caller))["lock_id"])
        await caller.stay()

    async with Client(await play(before, after), agent_id="ann") as client:
        with pytest.raises(LockLost, match="meanwhile"):
            async with client.lock("plan.md", session=True):
                await for_ever(held)
    assert given_back == ["l8"]


async def test_a_new_lock_that_cannot_be_given_back_goes_with_its_session(play: Play, held: asyncio.Event) -> None:
    async def before(caller: Any) -> None:
        await lock(caller, await caller.hear())
        await held.wait()
        caller.cut()

    async def after(caller: Any) -> None:
        await lock(caller, await caller.hear(), token=8)
        await refuse(caller, await caller.hear(), "BUSY")
        await caller.stay()
        gone.set()

    gone = asyncio.Event()
    async with Client(await play(before, after), agent_id="ann") as client:
        with pytest.raises(LockLost):
            async with client.lock("plan.md", session=True):
                await for_ever(held)
        await gone.wait()


async def test_after_a_cut_another_holder_means_that_it_was_lost(play: Play, held: asyncio.Event) -> None:
    async def before(caller: Any) -> None:
        await lock(caller, await caller.hear())
        await held.wait()
        caller.cut()

    async def after(caller: Any) -> None:
        await refuse(caller, await caller.hear(), "LOCK_HELD", holder_agent="bob")
        await caller.stay()

    async with Client(await play(before, after), agent_id="ann") as client:
        with pytest.raises(LockLost) as told:
            async with client.lock("plan.md", session=True):
                await for_ever(held)
    assert isinstance(told.value.__cause__, LockHeld)


async def test_who_does_not_come_back_within_the_grace_has_lost(
    play: Play, held: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engram_client.holds.SESSION_GRACE_SECONDS", 0.2)

    async def before(caller: Any) -> None:
        await lock(caller, await caller.hear())
        await held.wait()
        caller.cut()

    async def away(caller: Any) -> None:
        caller.cut()

    async with Client(await play(before, away), agent_id="ann") as client:
        with pytest.raises(LockLost, match="not heard of") as told:
            async with client.lock("plan.md", session=True):
                await for_ever(held)
    assert isinstance(told.value.__cause__, EngramConnectionError)


async def test_a_goodbye_is_a_reason_to_come_back(play: Play, held: asyncio.Event) -> None:
    async def before(caller: Any) -> None:
        await lock(caller, await caller.hear())
        await held.wait()
        await caller.say("goaway", reason="SHUTTING_DOWN", retry_after_ms=10, cursor="e1.0")
        await caller.stay()

    async def after(caller: Any) -> None:
        await lock(caller, await caller.hear(), seconds=40)
        await release(caller)
        await caller.stay()

    async with (
        Client(await play(before, after), agent_id="ann") as client,
        client.lock("plan.md", session=True) as lease,
    ):
        held.set()
        await refreshed(lease)
        assert lease.is_held


async def test_a_refusal_of_the_connection_is_raised_to_who_asked(play: Play) -> None:
    async def bus(caller: Any) -> None:
        await caller.say("error", code="NOT_FOUND", message="no such path", retryable=False)
        await caller.stay()

    async with Client(await play(bus), agent_id="ann") as client:
        with pytest.raises(NotFound):
            async with client.lock("plan.md", session=True):
                pytest.fail("it is not held")


async def test_a_bus_that_says_nothing_is_asked_again_over_another_session(play: Play) -> None:
    async def dumb(caller: Any) -> None:
        await caller.stay()

    async def after(caller: Any) -> None:
        await lock(caller, await caller.hear())
        await release(caller)
        await caller.stay()

    async with (
        Client(await play(dumb, after), agent_id="ann", timeout_seconds=0.2) as client,
        client.lock("plan.md", session=True) as lease,
    ):
        assert lease.is_held


@soon
async def test_a_refresh_without_an_answer_is_tried_again_over_another_session(play: Play) -> None:
    async def before(caller: Any) -> None:
        await lock(caller, await caller.hear(), seconds=5)
        assert (await caller.hear())["op"] == "lock.refresh"
        await caller.stay()

    async def after(caller: Any) -> None:
        await lock(caller, await caller.hear(), seconds=40)
        await release(caller)
        await caller.stay()

    async with (
        Client(await play(before, after), agent_id="ann") as client,
        client.lock("plan.md", ttl_seconds=5, session=True) as lease,
    ):
        await refreshed(lease)
        assert lease.is_held


async def test_a_new_session_that_did_not_take_the_lock_over_does_not_hold_it(play: Play, held: asyncio.Event) -> None:
    said: list[str] = []

    async def before(caller: Any) -> None:
        await lock(caller, await caller.hear())
        await held.wait()
        caller.cut()

    async def after(caller: Any) -> None:
        operation = await caller.hear()
        said.append(operation["op"])
        await caller.say("error", id=operation["id"], code="BUSY", message="later", retryable=True)
        operation = await caller.hear()
        said.append(operation["op"])
        await lock(caller, operation, seconds=40)
        await release(caller)
        await caller.stay()

    async with (
        Client(await play(before, after), agent_id="ann") as client,
        client.lock("plan.md", session=True) as lease,
    ):
        held.set()
        await refreshed(lease)
    assert said == ["lock.acquire", "lock.acquire"]


async def test_it_is_held_as_long_as_the_bus_answers(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engram_client.holds.SESSION_PING_SECONDS", 0.1)
    monkeypatch.setattr("engram_client.holds.SESSION_GRACE_SECONDS", 1.5)
    pings: list[int] = []

    async def bus(caller: Any) -> None:
        await lock(caller, await caller.hear())
        while len(pings) < 20:
            operation = await caller.hear()
            assert operation["op"] == "ping"
            pings.append(operation["id"])
            await caller.say("pong", id=operation["id"], head=1)
        await caller.stay()

    async with Client(await play(bus), agent_id="ann") as client:
        lease = client.lock("plan.md", session=True)
        with pytest.raises(LockLost, match="not heard of"):
            async with lease:
                await for_ever()
    assert len(pings) == 20


async def test_a_frozen_loop_does_not_believe_in_its_session(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engram_client.holds.SESSION_GRACE_SECONDS", 0.3)

    async def bus(caller: Any) -> None:
        await lock(caller, await caller.hear())
        await caller.stay()

    async def block(client: Client) -> None:
        async with client.lock("plan.md", session=True) as lease:
            while lease.is_held:
                pass
            await for_ever()

    async with Client(await play(bus), agent_id="ann") as client:
        with pytest.raises(LockLost, match="not heard of"):
            await block(client)


async def test_after_a_long_wait_the_session_is_asked_whether_it_is_still_there(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engram_client.holds.SESSION_PING_SECONDS", 0.0)

    async def bus(caller: Any) -> None:
        await lock(caller, await caller.hear())
        operation = await caller.hear()
        assert operation["op"] == "ping"
        caller.cut()

    async def after(caller: Any) -> None:
        operation = await caller.hear()
        assert operation["op"] == "lock.acquire"
        await caller.say("error", id=operation["id"], code="DEADLOCK", message="m", retryable=False)
        await caller.stay()

    async with Client(await play(bus, after), agent_id="ann") as client:
        with pytest.raises(Deadlock):
            async with client.lock("plan.md", wait_seconds=30, session=True):
                pytest.fail("the session it was tied to has ended")


@over_http
async def test_answers_that_nobody_waits_for_are_let_pass(play: Play) -> None:
    async def bus(caller: Any) -> None:
        operation = await caller.hear()
        await lock(caller, {"id": 99})
        await caller.say("released", id=98, lock_id="l9", released=True)
        await caller.say("error", id=97, code="BUSY", message="later", retryable=True)
        await lock(caller, operation)
        await release(caller)
        await caller.stay()

    async with Client(await play(bus), agent_id="ann") as client, client.lock("plan.md", session=True) as lease:
        assert lease.token == 7


async def test_who_waits_in_line_while_the_client_is_closed_leaves_it_and_holds_nothing(play: Play) -> None:
    in_line, left = asyncio.Event(), asyncio.Event()

    async def bus(caller: Any) -> None:
        assert (await caller.hear())["op"] == "lock.acquire"
        in_line.set()
        await caller.stay()
        left.set()

    async def another(caller: Any) -> None:
        await lock(caller, await caller.hear())

    async def block() -> None:
        async with client.lock("plan.md", wait_seconds=60, session=True):
            pytest.fail("the client is closed")

    async with Client(await play(bus, another), agent_id="ann") as client:
        waiting = asyncio.create_task(block())
        await in_line.wait()
    with pytest.raises(EngramConnectionError, match="closed"):
        await waiting
    await left.wait()
