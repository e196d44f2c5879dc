"""Plays a lock workload: every agent takes its file's lock in line, holds it, writes under its fence, and lets go."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Final

from engram_bus.cli.replay.locks.fold import TOKEN
from engram_bus.cli.replay.locks.workload import HOLD_SECONDS_MAX, Edit, Workload
from engram_bus.cli.replay.player import first_cause
from engram_client import Client, Lock, UnitType
from engram_client.errors import Conflict, WaitEnded

WAIT_SECONDS: Final = 600.0
"""How long an agent stands in line: far longer than any line of a replay lasts."""
LEASE_SECONDS: Final = 60.0
"""Beyond the hold, so that nothing is lost on a loaded machine; a killed replay is in nobody's way for longer."""


class Agents:
    """One play of one workload in one context; at speed 0 nothing waits for its time, and nothing is held for long."""

    def __init__(self, url: str, workload: Workload, *, context_id: str, speed: float) -> None:
        self.done = 0
        """Edits that were made or refused."""
        self.refusals: Counter[str] = Counter()
        self._url = url
        self._workload = workload
        self._context_id = context_id
        self._speed = speed
        self._ttl_seconds = LEASE_SECONDS + (HOLD_SECONDS_MAX / speed if speed else 0.0)

    async def play(self) -> None:
        """Until every edit is made, or refused by a lock. Raises EngramError: any other refusal, or no bus."""
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.TaskGroup() as tasks:
                for agent_id, edits in self._workload.by_agent.items():
                    tasks.create_task(self._act(agent_id, edits, started))
        except BaseExceptionGroup as failed:
            raise first_cause(failed) from None

    async def _act(self, agent_id: str, edits: Sequence[Edit], started: float) -> None:
        """One agent, from its first edit to its last, in its order."""
        await self._until_due(edits[0], started)
        async with Client(self._url, agent_id=agent_id) as bus:
            for edit in edits:
                await self._until_due(edit, started)
                try:
                    await self._edit(bus, edit)
                except (Conflict, WaitEnded) as refused:
                    self.refusals[refused.code] += 1
                self.done += 1

    async def _edit(self, bus: Client, edit: Edit) -> None:
        lock = await bus.acquire_lock(
            edit.resource,
            ttl_seconds=self._ttl_seconds,
            wait_seconds=WAIT_SECONDS,
            reason=f"{edit.op} of line {edit.place + 1}",
            context_id=self._context_id,
        )
        try:
            if self._speed:
                await asyncio.sleep(edit.hold_seconds / self._speed)
            await self._write(bus, edit, lock)
        finally:
            await bus.release_lock(lock)

    async def _write(self, bus: Client, edit: Edit, lock: Lock) -> None:
        await bus.append(
            self._context_id,
            f"{edit.size_bytes} bytes",
            type=UnitType.FILE_CHANGE,
            kind=f"file.{edit.op}",
            resources=lock.resources,
            meta={TOKEN: str(lock.fencing_token), "line": str(edit.place + 1)},
            fence=lock.fence(),
        )

    async def _until_due(self, edit: Edit, started: float) -> None:
        if self._speed:
            await asyncio.sleep(started + edit.due_seconds / self._speed - asyncio.get_running_loop().time())
