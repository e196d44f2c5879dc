"""A worker's bus and the log process keep step: what one is told of is what the other does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engram_bus.errors import Busy, ShuttingDown
from engram_bus.limits import KIB, LOCK_TTL_MS_MAX, LOCK_WAIT_MS_MAX
from engram_bus.units import AcquireLock, ReleaseLock
from engram_bus.workers import remote
from tests.workers.bus import SECONDS, until
from tests.workers.joined import Joined, joined


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Joined]:
    monkeypatch.setattr(remote, "WORKER_CATCH_UP_SECONDS_MAX", SECONDS)  # However slow the machine is.
    async with joined(tmp_path / "data") as worker:
        yield worker


# --- Reads -----------------------------------------------------------------------------------------------------------


async def test_a_read_of_a_worker_that_cannot_take_in_what_was_answered_elsewhere_is_to_be_tried_again(
    worker: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = await worker.bus.append("plan", "x", agent_id="ann")
    monkeypatch.setattr(remote, "WORKER_CATCH_UP_SECONDS_MAX", 0)
    worker.remote.word.head = unit.seq + 1
    with pytest.raises(Busy, match="this worker is at 1 after 0 s, the log at 2"):
        worker.bus.get(unit.id)
    with pytest.raises(Busy):
        await worker.bus.wait_for(unit.seq)


# --- Room ------------------------------------------------------------------------------------------------------------


async def test_who_waits_for_locks_takes_no_room_from_who_appends(
    worker: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "QUEUE_BYTES_MAX", 8 * KIB)
    await worker.bus.acquire_lock("plan", agent_id="ann")
    for number in range(10):
        wait = AcquireLock(
            resources=("plan", "p" * KIB), agent_id=f"bob-{number}", ttl_ms=LOCK_TTL_MS_MAX, wait_ms=LOCK_WAIT_MS_MAX
        )
        worker.bus.submit_lock(wait, lambda outcome: None)
    await in_line(worker, 10)
    assert (await worker.bus.append("plan", "x", agent_id="ann")).context_id == "plan"


# --- The stop --------------------------------------------------------------------------------------------------------


async def test_who_is_told_that_the_worker_stops_has_left_the_line_for_the_lock(worker: Joined) -> None:
    held = await worker.bus.acquire_lock("plan", agent_id="ann")
    waiting = asyncio.ensure_future(worker.bus.acquire_lock("plan", agent_id="bob", wait_seconds=3_600))
    await in_line(worker)
    worker.bus.goaway("shutdown")
    with pytest.raises(ShuttingDown):
        await waiting
    worker.submit_elsewhere(ReleaseLock(lock_id=held.lock_id, agent_id="ann"))
    until(lambda: "ann" not in holders(worker))
    assert holders(worker) == []


async def test_who_was_granted_a_lock_before_the_worker_stopped_is_told_so(worker: Joined) -> None:
    held = await worker.bus.acquire_lock("plan", agent_id="ann")
    waiting = asyncio.ensure_future(worker.bus.acquire_lock("plan", agent_id="bob", wait_seconds=3_600))
    await in_line(worker)
    head = worker.recorded
    worker.submit_elsewhere(ReleaseLock(lock_id=held.lock_id, agent_id="ann"))
    until(lambda: worker.recorded > head)
    worker.bus.goaway("shutdown")
    assert (await waiting).holder_agent == "bob"


async def in_line(worker: Joined, count: int = 1) -> None:
    """Until so many wait for the lock."""
    while worker.bus.lock("plan").queue_length < count:
        await asyncio.sleep(0)


def holders(worker: Joined) -> list[str]:
    return [lock.holder_agent for lock in worker.bus.lock("plan").holders]
