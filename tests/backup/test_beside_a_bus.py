"""Beside a bus that never stops appending, a backup is of one moment, and what is restored is the bus then."""

import asyncio
import shutil
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path

import pytest

from engram_bus import UnitType
from engram_bus.backup.exporting import export
from engram_bus.backup.importing import import_lines
from engram_bus.backup.making import backup
from engram_bus.backup.repairing import repair
from engram_bus.backup.restoring import restore
from engram_bus.decisions.state import State
from engram_bus.embedded import Bus
from engram_bus.errors import CursorAhead, DataDirectoryError, EngramError, EpochChanged, LockHeld
from engram_bus.log.contract import cursor_text
from engram_bus.log.index import seq_key
from engram_bus.units import Append, Draft
from engram_bus.verify import verify
from engram_client import Client
from tests.backup.logs import epochs_of, fill, raws_of, records_of
from tests.disk import tampering
from tests.fixtures.make_format1 import ARCHIVE
from tests.process import BusProcess, engram

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def busy(url: str) -> AsyncIterator[None]:
    """Agents that append, lock and change contexts for as long as the block runs."""

    async def work(client: Client, number: int) -> None:
        for turn in range(10**9):
            await client.append(f"c{turn % 5}", "x" * 200)
            lock = await client.acquire_lock(f"repo/{turn % 7}/{number}", ttl_seconds=60)
            if turn % 3:
                await client.release_lock(lock)
            await client.update_context(f"c{turn % 5}", meta={f"k{number}": str(turn)})

    async with four_clients(url) as clients:
        tasks = [asyncio.create_task(work(client, number)) for number, client in enumerate(clients)]
        try:
            yield
            assert not any(task.done() for task in tasks), [task.exception() for task in tasks if task.done()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def reached(url: str, head: int) -> None:
    """Until the log has so many units."""
    async with Client(url, agent_id="eve") as client:
        while (await client.status()).head < head:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def four_clients(url: str) -> AsyncIterator[list[Client]]:
    clients = [Client(url, agent_id=f"agent-{number}") for number in range(4)]
    try:
        yield clients
    finally:
        for client in clients:
            await client.aclose()


def folded(path: Path, head: int) -> dict[str, str]:
    """By name, the hash of the state that the log folds to at a seq."""
    state = State()
    for record in records_of(path)[:head]:
        state.evolve(record.unit)
    return {part.name: blake2b(part.snapshot()).hexdigest() for part in state.parts}


async def opened_state(path: Path) -> dict[str, str]:
    """What a bus that starts there has, before it does anything."""
    async with Bus.open(path) as bus:
        return {part.name: blake2b(part.snapshot()).hexdigest() for part in bus.writer.state.parts}


async def test_backups_of_a_busy_bus_are_each_of_one_moment(tmp_path: Path) -> None:
    with BusProcess(tmp_path / "data") as bus:
        async with busy(bus.url):
            heads = [0]
            for _ in range(3):
                await reached(bus.url, heads[-1] + 20)
                heads.append((await asyncio.to_thread(backup, tmp_path / "data", tmp_path / "backup")).head)
    heads = heads[1:]
    assert heads[0] < heads[1] < heads[2]
    raws = raws_of(tmp_path / "data")
    ts = records_of(tmp_path / "data")[heads[0] - 1].unit.ts
    for name, to_seq, to_ts in (("whole", None, None), ("seq", heads[1] - 1, None), ("time", None, ts)):
        path = tmp_path / name
        head = restore(tmp_path / "backup", path, to_seq=to_seq, to_ts=to_ts).head
        assert head >= 1
        assert raws_of(path) == raws[:head]
        assert await opened_state(path) == folded(tmp_path / "data", head)
        assert verify(path).is_whole
    assert records_of(tmp_path / "time")[heads[0] - 1].unit.ts == ts


async def test_old_cursors_resume_up_to_the_fork_and_not_above_it(tmp_path: Path) -> None:
    fill(tmp_path / "data", range(1, 13), group=3)
    (old,) = epochs_of(tmp_path / "data")
    backup(tmp_path / "data", tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored", to_seq=6)
    async with Bus.open(tmp_path / "restored") as bus:
        await bus.append("plan", "another unit 7", agent_id="ann")
        for seq in range(7):
            async with bus.subscribe("*", after=cursor_text(old.name, seq)) as units:
                assert [(await anext(units)).seq for _ in range(7 - seq)] == list(range(seq + 1, 8))
        for seq in range(7, 13):
            with pytest.raises(EpochChanged):
                bus.subscribe("*", after=cursor_text(old.name, seq))
        with pytest.raises(CursorAhead):
            bus.subscribe("*", after=cursor_text(bus.epoch, 8))


async def test_a_repeat_is_still_answered_by_the_first_answer(tmp_path: Path) -> None:
    async with Bus.open(tmp_path / "data") as bus:
        first = await bus.append("plan", "hi", agent_id="ann", idempotency_key="k")
        lock = await bus.acquire_lock("src", agent_id="ann", ttl_seconds=3_600)
        backup(tmp_path / "data", tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    async with Bus.open(tmp_path / "restored") as bus:
        draft = Draft(context_id="plan", agent_id="ann", type=UnitType.MESSAGE, payload=b"hi")
        answer = await bus.execute(Append(draft=draft, idempotency_key="k"))
        assert (answer.replayed, answer.entries[0].unit) == (True, first)
        with pytest.raises(LockHeld):
            await bus.acquire_lock("src", agent_id="bob")
        await bus.release_lock(lock.lock_id, agent_id="ann")


async def test_a_log_of_format_1_goes_each_way(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "format1", filter="data")
    backup(tmp_path / "format1", tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    assert raws_of(tmp_path / "restored") == raws_of(tmp_path / "format1")
    with (tmp_path / "export.ndjson").open("wb") as out:
        export(tmp_path / "format1", out)
    with (tmp_path / "export.ndjson").open("rb") as lines:
        import_lines(lines, tmp_path / "imported")
    assert [record.unit for record in records_of(tmp_path / "imported")] == [
        record.unit for record in records_of(tmp_path / "format1")
    ]
    head = len(records_of(tmp_path / "format1"))
    assert await opened_state(tmp_path / "imported") == folded(tmp_path / "format1", head)


async def test_a_bus_that_finds_damage_says_what_to_do(tmp_path: Path) -> None:
    fill(tmp_path / "data", range(1, 4))
    shutil.rmtree(tmp_path / "data" / "tenants" / "default" / "index")
    with tampering(tmp_path / "data", "log") as txn:
        txn.put(seq_key(2), b"")
    with pytest.raises(DataDirectoryError, match=r"`engram verify .*` .*`engram repair "):
        Bus.start(tmp_path / "data")
    served = engram("serve", "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert served.returncode == 2
    assert f"engram repair {tmp_path / 'data'}" in served.stderr


async def test_a_bus_is_not_disturbed_by_what_reads_beside_it(tmp_path: Path) -> None:
    """No reader is left that would keep pages, and none of its appends fails."""
    async with Bus.open(tmp_path / "data") as bus:
        await bus.append_bulk([Draft(context_id="c", agent_id="a", type=UnitType.MESSAGE, payload=bytes(9_000))] * 900)
        done = asyncio.Event()
        refused: list[EngramError] = []

        async def append() -> None:
            while not done.is_set():
                try:
                    await bus.append("plan", "x", agent_id="ann")
                except EngramError as exc:
                    refused.append(exc)
                await asyncio.sleep(0)

        task = asyncio.create_task(append())
        made = await asyncio.to_thread(backup, tmp_path / "data", tmp_path / "backup")
        done.set()
        await task
        assert refused == []
        assert 900 <= made.head <= bus.head
        with pytest.raises(DataDirectoryError, match="is in use by process"):
            await asyncio.to_thread(repair, tmp_path / "data")
