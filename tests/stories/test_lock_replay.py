"""A team's file operations are replayed flat out and with an operator who breaks locks: no promise is broken."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from engram_bus.cli.replay.locks.fold import LockFold
from engram_client import Client
from engram_client.errors import LockNotFound
from tests.process import ENGRAM, BusProcess, environment
from tests.replays import ENTIRE, SHIPPED, not_shipped

RECORDINGS = [
    pytest.param(SHIPPED / "files.jsonl", id="files"),
    pytest.param(ENTIRE.file.with_name("entire_fileops_dev.jsonl"), id="entire_fileops_dev", marks=not_shipped),
]


async def replayed(bus: BusProcess, file: Path, *, speed: str = "0") -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(*ENGRAM, "replay", "--locks", str(file), "--speed", speed, "--json", "--run", "r", "--url", bus.url),
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(output)
    return found


async def breaking(url: str, done: asyncio.Event, every: int) -> int:
    """Break the lock of every so manieth grant, until it is over; how many were still held."""
    broken = 0
    async with Client(url, agent_id="operator") as bus, bus.subscribe("r/locks", kind="lock.granted") as grants:
        seen = 0
        ending = asyncio.ensure_future(done.wait())
        while True:
            coming = asyncio.ensure_future(anext(grants))
            await asyncio.wait([coming, ending], return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                await asyncio.wait([coming])
                return broken
            seen += 1
            if seen % every == 0:
                grant = coming.result()
                try:
                    await bus.break_lock(grant.resources[0], reason="a test", lock_id=grant.id)
                except LockNotFound:
                    continue
                broken += 1


@pytest.mark.parametrize("file", RECORDINGS)
async def test_everybody_edits_and_nobody_edits_what_another_holds(tmp_path: Path, file: Path) -> None:
    with BusProcess(tmp_path / "data") as bus:
        found = await asyncio.wait_for(replayed(bus, file), 100)
        print(found)
        assert found["violations"] == 0
        assert found["locks"] == found["written"] == found["edits"]
        assert found["refusals"] == {}
        assert found["waits"] > 0
        fold = LockFold()
        async with Client(bus.url, agent_id="reader") as reader:
            async for unit in reader.units("r/locks", limit=1_000):
                fold.take(unit)
    assert (fold.violations, fold.version, fold.held, fold.waiting) == ([], found["units"], 0, 0)


async def test_who_loses_a_lock_does_not_write_and_the_next_one_does(tmp_path: Path) -> None:
    with BusProcess(tmp_path / "data") as bus:
        done = asyncio.Event()
        operator = asyncio.create_task(breaking(bus.url, done, every=3))
        found = await asyncio.wait_for(replayed(bus, SHIPPED / "files.jsonl", speed="100"), 100)
        done.set()
        broken = await operator
    print(found, broken)
    assert found["violations"] == 0
    assert found["written"] + sum(found["refusals"].values()) == found["edits"]
    assert set(found["refusals"]) == {"FENCE_STALE"}
    assert 0 < found["refusals"]["FENCE_STALE"] <= broken
