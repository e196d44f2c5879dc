"""A session is replayed flat out while subscribers come, break off and come back: each gets all, once, in order."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from engram_client import Client, WorkUnit
from tests.process import ENGRAM, BusProcess, environment
from tests.replays import RECORDINGS, Recorded, check, listed

WAYS: list[dict[str, Any]] = [
    {"transport": "websocket", "encoding": "json"},
    {"transport": "websocket", "encoding": "msgpack"},
    {"transport": "sse"},
]
SUBSCRIBERS = 10
BREAKS = 2


async def replayed(bus: BusProcess, recorded: Recorded) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(*ENGRAM, "replay", str(recorded.file), "--speed", "0", "--json", "--run", "r", "--url", bus.url),
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(output)
    return found


async def subscribed(url: str, way: dict[str, Any], count: int, dice: random.Random) -> list[WorkUnit]:
    """All units from the beginning, over as many connections as there are breaks, each after the last one's cursor."""
    await asyncio.sleep(dice.uniform(0, count / 2_500))
    breaks = sorted(dice.sample(range(1, count), BREAKS))
    units: list[WorkUnit] = []
    cursor: str | None = "0"
    async with Client(url, agent_id="reader") as bus:
        for end in (*breaks, count):
            async with bus.subscribe(after=cursor, **way) as subscription:
                while len(units) < end:
                    units.append(await anext(subscription))
                assert subscription.repeats == 0
                cursor = subscription.cursor
    return units


@pytest.mark.parametrize("recorded", RECORDINGS)
async def test_everybody_gets_the_whole_session(tmp_path: Path, recorded: Recorded) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    count = len(recorded.rows)
    with BusProcess(tmp_path / "data") as bus:
        async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
            playing = tasks.create_task(replayed(bus, recorded))
            readers = [
                tasks.create_task(subscribed(bus.url, WAYS[number % len(WAYS)], count, random.Random(dice.random())))
                for number in range(SUBSCRIBERS)
            ]
        summary = playing.result()
        print(summary)
        assert (summary["lost"], summary["repeated"], summary["out_of_order"]) == (0, 0, 0)
        units = [unit async for unit in listed(bus.url, "r/")]
    check(units, recorded, run="r")
    in_log_order = sorted(units, key=lambda unit: unit.seq)
    assert [unit.seq for unit in in_log_order] == list(range(1, count + 1))
    for reader in readers:
        assert reader.result() == in_log_order
