"""A lock replay from its first unit to its figures: a context of its own, the agents, and the subscriber that folds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Final

from engram_bus.cli.replay.locks.agents import Agents
from engram_bus.cli.replay.locks.contention import Contention, contention
from engram_bus.cli.replay.locks.fold import LockFold
from engram_bus.cli.replay.locks.workload import Workload
from engram_bus.cli.replay.watcher import PATIENCE_SECONDS
from engram_client import Client, Subscription

FENCES: Final = ("*",)
"""The bus itself refuses whatever is written without a lock."""


def context_of(run: str) -> str:
    """Where a run's lock units and edits stand."""
    return f"{run}/locks"


async def play(url: str, agents: Agents, workload: Workload) -> Contention:
    """Raises EngramError: VersionMoved where the run's context is not new."""
    context_id = context_of(workload.run)
    async with Client(url, agent_id="engram-replay", max_retries=3) as bus:
        before = (await bus.status()).cursor
        await bus.update_context(context_id, fences=FENCES, expected_version=0)
        async with _folding(url, context_id, after=before) as (fold, reading):
            began = monotonic()
            await agents.play()
            seconds = monotonic() - began
            last_version = (await bus.get_context(context_id)).version
            await _until_read(fold, reading, last_version)
    return contention(workload, fold, refusals=agents.refusals, seconds=seconds, last_version=last_version)


@asynccontextmanager
async def _folding(url: str, context_id: str, *, after: str) -> AsyncIterator[tuple[LockFold, "asyncio.Task[None]"]]:
    """A subscriber of its own, from the context's first unit on."""
    fold = LockFold()
    async with (
        Client(url, agent_id="engram-replay-watcher") as bus,
        bus.subscribe(context_id, after=after) as subscription,
    ):
        reading = asyncio.create_task(_read(subscription, fold))
        try:
            yield fold, reading
        finally:
            reading.cancel()
            await asyncio.wait([reading])


async def _read(subscription: Subscription, fold: LockFold) -> None:
    async for unit in subscription:
        fold.take(unit)


async def _until_read(fold: LockFold, reading: "asyncio.Task[None]", version: int) -> None:
    """Until the subscriber has come so far, or nothing has come for a while; what ended it is raised."""
    patient, before = monotonic(), fold.version
    while fold.version < version and monotonic() - patient < PATIENCE_SECONDS:
        await asyncio.wait([reading], timeout=0.02)
        if reading.done():
            reading.result()
        if fold.version != before:
            patient, before = monotonic(), fold.version
