"""Real disks that are full or read-only: typed answers, reads that go on, recovery without a restart, nothing lost."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from engram_bus.codec import Entry
from engram_bus.decisions.contexts import Contexts
from engram_bus.embedded import Bus
from engram_bus.errors import DataDirectoryError, EngramError, StorageFull, StorageReadOnly
from engram_bus.limits import KIB, MIB
from engram_bus.units import WorkUnit
from engram_bus.verify import verify
from tests.disk import Disk, small_disk

pytestmark = pytest.mark.anyio


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", size_mib=16) as mounted:
        yield mounted


async def append(bus: Bus, payload_bytes: int = 2 * KIB) -> WorkUnit:
    return await bus.append("plan", b"x" * payload_bytes, agent_id="ann")


async def append_until_refused(bus: Bus, payload_bytes: int = 2 * KIB) -> tuple[list[WorkUnit], EngramError]:
    """What was acknowledged, and why no more."""
    units = []
    while True:
        try:
            units.append(await append(bus, payload_bytes))
        except EngramError as exc:
            return units, exc


async def recovered(bus: Bus) -> None:
    async with asyncio.timeout(30):
        while bus.writer.refusal is not None:
            await asyncio.sleep(0.01)


def check(bus: Bus, units: list[WorkUnit]) -> None:
    """All of these are there, nothing else, and every way leads to them."""
    entries = [entry for first in range(0, bus.head, 1_000) for entry in page(bus, first)]
    assert [entry.unit for entry in entries] == units
    assert bus.head == len(units)
    for unit in units[:1] + units[-1:]:
        assert bus.get(unit.id).unit == unit
        assert bus.list("plan", after=unit.seq - 1, limit=1).work_units == [unit]
    folded = Contexts()
    for unit in units:
        folded.evolve(unit)
    assert bus.writer.state.contexts.snapshot() == folded.snapshot()


def page(bus: Bus, after: int) -> list[Entry]:
    return bus.log.read(after, units_max=1_000, bytes_max=100 * MIB)


# --- Full ------------------------------------------------------------------------------------------------------------


async def test_on_a_full_disk_reads_go_on_and_appends_when_there_is_room(disk: Disk) -> None:
    async with Bus.open(disk.data) as bus:
        units = [await append(bus)]
        subscription = bus.subscribe("plan", after=0)
        disk.fill(2 * MIB)
        more, refusal = await append_until_refused(bus)
        units += more
        assert isinstance(refusal, StorageFull)
        assert refusal.limit == MIB, "a sixteenth of a small disk is kept in reserve"
        assert bus.writer.refusal is not None
        check(bus, units)
        assert [await anext(subscription) for _ in units] == units
        disk.free()
        await recovered(bus)
        units.append(await append(bus))
        assert await anext(subscription) == units[-1]
        subscription.close()
    assert verify(disk.data).is_whole
    async with Bus.open(disk.data) as bus:
        check(bus, units)


async def test_a_commit_that_runs_into_the_end_of_the_disk_leaves_nothing(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the reserve, LMDB itself meets the end, at another page each time."""
    monkeypatch.setattr("engram_bus.log.room.DISK_RESERVE_BYTES", -(2**40))
    units: list[WorkUnit] = []
    async with Bus.open(disk.data) as bus:
        for leave_pages, payload_bytes in itertools.product(range(0, 24, 2), (10, 9_000)):
            disk.fill(leave_pages * 4 * KIB)
            more, refusal = await append_until_refused(bus, payload_bytes)
            assert isinstance(refusal, StorageFull)
            units += more
            assert [entry.seq for entry in page(bus, max(0, len(units) - 10))] == [unit.seq for unit in units[-10:]]
            disk.free()
            bus.writer.check()
            assert bus.writer.refusal is None
            units.append(await append(bus))
            check(bus, units)
    assert verify(disk.data).is_whole
    async with Bus.open(disk.data) as bus:
        check(bus, units)


async def test_a_bus_starts_on_a_full_disk_to_read(disk: Disk) -> None:
    async with Bus.open(disk.data) as bus:
        units = [await append(bus), await append(bus)]
    disk.fill()
    async with Bus.open(disk.data) as bus:
        check(bus, units)
        with pytest.raises(StorageFull):
            await append(bus)
        disk.free()
        await recovered(bus)
        units.append(await append(bus))
        check(bus, units)


async def test_a_new_directory_on_a_full_disk_is_refused_and_then_made(disk: Disk) -> None:
    refusals = []
    for leave_pages in range(0, 30, 3):
        disk.fill(leave_pages * 4 * KIB)
        try:
            async with Bus.open(disk.data) as bus:
                assert bus.writer.refusal is not None
        except DataDirectoryError as exc:
            refusals.append(str(exc))
        disk.free()
    assert refusals
    assert all("No space left on device" in refusal for refusal in refusals)
    async with Bus.open(disk.data) as bus:
        check(bus, [await append(bus)])


# --- Read-only -------------------------------------------------------------------------------------------------------


async def test_on_a_read_only_disk_reads_are_served_and_appends_when_it_takes_them(disk: Disk) -> None:
    async with Bus.open(disk.data) as bus:
        units = [await append(bus), await append(bus)]
    disk.remount("ro")
    async with Bus.open(disk.data) as bus:
        check(bus, units)
        with pytest.raises(StorageReadOnly):
            await append(bus)
        assert verify(disk.data).is_whole
        disk.remount("rw")
        await recovered(bus)
        units.append(await append(bus))
        check(bus, units)
    async with Bus.open(disk.data) as bus:
        check(bus, units)


async def test_a_read_only_disk_without_a_log_is_refused(disk: Disk) -> None:
    disk.data.mkdir()
    disk.remount("ro")
    with pytest.raises(DataDirectoryError, match="holds no log and is read-only"):
        Bus.start(disk.data)
    with pytest.raises(DataDirectoryError, match="cannot be made: Read-only file system"):
        Bus.start(disk.path / "other")


async def test_a_read_only_disk_whose_index_is_not_whole_is_refused(disk: Disk) -> None:
    async with Bus.open(disk.data) as bus:
        await append(bus)
    (disk.data / "tenants/default/index/mark").unlink()
    disk.remount("ro")
    with pytest.raises(DataDirectoryError, match="cannot be folded on a read-only file system"):
        Bus.start(disk.data)
