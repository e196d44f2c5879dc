"""`kill -9` of the bus at random moments of a replay: everybody goes on by himself, and nothing is lost or doubled."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from engram_bus.cli.replay.player import Player
from engram_bus.cli.replay.recording import parse
from engram_bus.verify import verify
from engram_client import Client, SyncClient, WorkUnit
from tests.process import BusProcess, running
from tests.replays import AIRLINE, ENTIRE, FLEET, Recorded, check, listed, not_shipped

WAYS: list[dict[str, Any]] = [
    {"transport": "websocket", "encoding": "msgpack"},
    {"transport": "websocket", "encoding": "json"},
    {"transport": "sse"},
]


class Reader:
    """A subscriber from the beginning that is never started again: it comes back by itself."""

    def __init__(self, way: dict[str, Any]) -> None:
        self.units: list[WorkUnit] = []
        self.repeats = 0
        self._way = way

    async def read(self, url: str, count: int) -> None:
        async with Client(url, agent_id="reader") as bus, bus.subscribe(after=0, **self._way) as subscription:
            while len(self.units) < count:
                self.units.append(await anext(subscription))
            self.repeats = subscription.repeats


async def kill_at(bus: BusProcess, reader: Reader, moments: list[int], dice: random.Random) -> None:
    """Kill and start again when the reader has seen so many units, give or take what happens meanwhile."""
    for moment in moments:
        while len(reader.units) < moment:
            await asyncio.sleep(0.001)
        await asyncio.sleep(dice.uniform(0, 0.02))
        bus.kill()
        await asyncio.sleep(dice.choice([0, dice.uniform(0, 0.3)]))
        await asyncio.to_thread(bus.start)


async def replay_under_kills(data_dir: Path, recorded: dict[str, Recorded], kills: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    count = sum(len(one.rows) for one in recorded.values())
    readers = [Reader(way) for way in WAYS]
    with BusProcess(data_dir) as bus:
        players = [Player(bus.url, parse(one.file.read_bytes(), run=run), speed=0) for run, one in recorded.items()]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kill_at(bus, readers[0], sorted(dice.choices(range(count), k=kills)), dice))
            for reader in readers:
                tasks.create_task(reader.read(bus.url, count))
            for player in players:
                tasks.create_task(player.play())
        units = sorted([unit async for unit in listed(bus.url, "")], key=lambda unit: unit.seq)
        assert bus.stop() == 0

    assert [unit.seq for unit in units] == list(range(1, count + 1))
    for run, one in recorded.items():
        of_run = sorted((unit for unit in units if unit.context_id.startswith(f"{run}/")), key=lambda unit: unit.seq)
        check(of_run, one, run=run)
    by_id = {unit.id: unit for unit in units}
    for player in players:
        for played in player.played:
            unit = by_id[played.receipt.unit_id]
            assert (unit.id, unit.seq, unit.version) == (
                played.step.draft.id,
                played.receipt.seq,
                played.receipt.version,
            )
    assert sum(len(player.played) for player in players) == count
    for reader in readers:
        assert reader.units == units
        assert reader.repeats == 0
    report = verify(data_dir)
    assert report.is_whole, report.text()
    assert report.logs[0].whole_units == count


async def test_five_kills(tmp_path: Path) -> None:
    recorded = {"fleet": FLEET, **{f"airline{number}": AIRLINE for number in range(4)}}
    await replay_under_kills(tmp_path / "data", recorded, kills=5)


def wait_for_head(bus: BusProcess, seq: int) -> None:
    """Return when the log has reached this seq."""
    with SyncClient(bus.url, agent_id="watch") as client:
        while client.status().head < seq:
            pass


def test_the_command_goes_on_and_its_summary_is_clean(tmp_path: Path) -> None:
    with BusProcess(tmp_path / "data") as bus:
        arguments = ("--speed", "2500", "--max-pause", "60", "--json", "--url", bus.url)
        with running("replay", str(FLEET.file), *arguments) as replay:
            for moment in (20, 90):
                wait_for_head(bus, moment)
                bus.kill()
                bus.start()
            output, told = replay.communicate(timeout=60)
    assert replay.returncode == 0, told
    found = json.loads(output)
    assert (found["appended_units"], found["lost"], found["repeated"], found["out_of_order"]) == (162, 0, 0, 0)
    assert 1 <= len(told.splitlines()) < 20, "it says that the bus was away, not once for each agent"


@pytest.mark.long
@not_shipped
async def test_fifty_kills(tmp_path: Path) -> None:
    await replay_under_kills(tmp_path / "data", {"entire": ENTIRE}, kills=50)
