"""A worker's bus and the log process keep step: what one is told of is what the other does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engram_bus.errors import ShuttingDown
from engram_bus.units import ReleaseLock
from tests.workers.bus import until
from tests.workers.joined import Joined, joined


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Joined]:
    async with joined(tmp_path / "data") as worker:
        yield worker


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
    head = worker.told
    worker.submit_elsewhere(ReleaseLock(lock_id=held.lock_id, agent_id="ann"))
    until(lambda: worker.told > head)
    worker.bus.goaway("shutdown")
    assert (await waiting).holder_agent == "bob"


async def in_line(worker: Joined) -> None:
    """Until somebody waits for the lock."""
    while worker.bus.lock("plan").queue_length == 0:
        await asyncio.sleep(0)


def holders(worker: Joined) -> list[str]:
    return [lock.holder_agent for lock in worker.bus.lock("plan").holders]
