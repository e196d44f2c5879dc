"""A subscriber in this process: an async iterator with the promises of a socket, and none of its limits of time."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engram_bus import Bus, Gap, WorkUnit
from engram_bus.errors import ShuttingDown, StorageFull
from engram_bus.limits import CATCH_UP_UNITS, FRAME_BYTES_MAX, PAYLOAD_BYTES_MAX
from engram_bus.log.index import Table, context_key, seq_key
from engram_bus.log.memory import MemoryLog
from engram_bus.router.local import LocalSubscription
from tests.damaged import DamagedLog, FailingLog
from tests.disk import tampering


async def fill(bus: Bus, *context_ids: str, payload: bytes = b"hi") -> None:
    for context_id in context_ids:
        await bus.append(context_id, payload, agent_id="ann")


async def take(subscription: LocalSubscription, count: int) -> list[int]:
    """The seqs of the next units; it waits for them."""
    return [(await anext(subscription)).seq for _ in range(count)]


async def next_seq(subscription: LocalSubscription) -> int:
    return (await anext(subscription)).seq


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_units_come_as_they_are_appended() -> None:
    async with Bus.open(None) as bus, bus.subscribe("plan") as subscription:
        await fill(bus, "plan", "b", "plan")
        assert await take(subscription, 2) == [1, 3]


async def test_who_waits_is_woken_by_the_next_unit() -> None:
    async with Bus.open(None) as bus, bus.subscribe("plan") as subscription:
        waiting = asyncio.create_task(next_seq(subscription))
        await turns()
        assert not waiting.done()
        await fill(bus, "b", "plan")
        assert await waiting == 2


async def test_the_cursor_is_after_what_was_given_and_not_after_what_waits() -> None:
    async with Bus.open(None) as bus, bus.subscribe("plan", after=0) as subscription:
        await fill(bus, "b", "plan", "b", "plan", "b")
        cursors = [subscription.cursor]
        for _ in range(2):
            await anext(subscription)
            cursors.append(subscription.cursor)
        assert cursors == [f"memory.{seq}" for seq in (1, 3, 5)]


async def test_the_cursor_moves_on_over_what_is_not_wanted() -> None:
    async with Bus.open(None) as bus, bus.subscribe("plan") as subscription:
        await turns()
        await fill(bus, "b", "b", "b")
        assert subscription.cursor == bus.cursor


async def test_the_cursor_never_goes_back_and_resuming_anywhere_loses_and_repeats_nothing() -> None:
    async with Bus.open(None) as bus, bus.subscribe("plan", after=0) as subscription:
        plan = [seq for seq in range(1, 61) if seq % 3]
        given = 0
        cursors: list[tuple[str, int]] = []
        for seq in range(1, 61):
            await fill(bus, "plan" if seq % 3 else "b")
            cursors.append((subscription.cursor, given))
            if seq % 2:
                assert await next_seq(subscription) == plan[given]
                given += 1
        places = [int(cursor.rpartition(".")[2]) for cursor, _ in cursors]
        assert places == sorted(places)
        for cursor, given in cursors:
            async with bus.subscribe("plan", after=cursor) as resumed:
                assert await take(resumed, len(plan) - given) == plan[given:]


async def test_a_reader_that_is_cancelled_while_it_waits_loses_nothing() -> None:
    async with Bus.open(None) as bus, bus.subscribe("plan") as subscription:
        for _ in range(3):
            waiting = asyncio.create_task(next_seq(subscription))
            await turns()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await fill(bus, "plan")
        assert await take(subscription, 1) == [1]


async def test_two_readers_of_one_subscription_share_its_units() -> None:
    async with Bus.open(None) as bus, bus.subscribe("plan") as subscription:
        readers = [asyncio.create_task(take(subscription, 5)) for _ in range(2)]
        await fill(bus, *["plan"] * 10)
        first, second = await asyncio.gather(*readers)
        assert sorted(first + second) == list(range(1, 11))


# --- Slow ------------------------------------------------------------------------------------------------------------


async def test_a_slow_reader_gets_everything_however_long_it_takes() -> None:
    async with Bus.open(None, stall_seconds=1) as bus, bus.subscribe("plan", after=0) as subscription:
        await fill(bus, *["plan"] * (3 * CATCH_UP_UNITS))
        for _ in range(10):
            bus.fanout.pulse()
        assert await take(subscription, 3 * CATCH_UP_UNITS) == list(range(1, 3 * CATCH_UP_UNITS + 1))


async def test_reading_makes_room_for_more_without_waiting_for_a_pulse() -> None:
    async with Bus.open(None) as bus, bus.subscribe("plan", after=0) as subscription:
        bus._next_pulse.cancel()
        await fill(bus, *["plan"] * (3 * CATCH_UP_UNITS))
        async with asyncio.timeout(10):
            await take(subscription, 3 * CATCH_UP_UNITS)


@pytest.mark.parametrize("payload_bytes", [10, FRAME_BYTES_MAX // 3, PAYLOAD_BYTES_MAX])
async def test_what_waits_for_a_slow_reader_is_bounded_in_units_and_bytes(payload_bytes: int) -> None:
    async with Bus.open(None) as bus, bus.subscribe("plan", after=0) as subscription:
        count = min(3 * CATCH_UP_UNITS, 20 * FRAME_BYTES_MAX // payload_bytes)
        await fill(bus, *["plan"] * count, payload=b"x" * payload_bytes)
        waiting = subscription._inbox._pending
        assert len(waiting) <= 2 * CATCH_UP_UNITS
        assert sum(len(entry.body) for entry in waiting if not isinstance(entry, Gap)) <= (
            2 * FRAME_BYTES_MAX + payload_bytes + 1_000
        )
        assert await take(subscription, count) == list(range(1, count + 1))


async def test_who_reads_without_a_pause_lets_others_in_between() -> None:
    """`async for` over what is there never waits: the buffer runs out, and the loop goes on."""
    async with Bus.open(None) as bus:
        await fill(bus, *["plan"] * (10 * CATCH_UP_UNITS))
        others = 0

        async def other() -> None:
            nonlocal others
            while True:
                others += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        async with bus.subscribe("plan", after=0) as subscription:
            await take(subscription, 10 * CATCH_UP_UNITS)
        task.cancel()
        assert others >= 10


# --- Ends ------------------------------------------------------------------------------------------------------------


async def test_what_came_before_the_bus_stopped_is_given_before_the_error() -> None:
    async with Bus.open(None) as bus:
        subscription = bus.subscribe("plan", after=0)
        await fill(bus, "plan", "plan")
        await turns()
    assert await take(subscription, 2) == [1, 2]
    for _ in range(2):
        with pytest.raises(ShuttingDown):
            await anext(subscription)
    assert subscription.cursor == "memory.2"


async def test_who_waits_hears_that_the_bus_stops() -> None:
    async with Bus.open(None) as bus:
        waiting = asyncio.create_task(next_seq(bus.subscribe("plan")))
        await turns()
    with pytest.raises(ShuttingDown):
        await waiting


async def test_closing_ends_at_once_and_keeps_the_place() -> None:
    async with Bus.open(None) as bus:
        await fill(bus, *["plan"] * 5)
        async with bus.subscribe("plan", after=0) as subscription:
            await take(subscription, 2)
        subscription.close()
        assert [unit async for unit in subscription] == []
        assert subscription.cursor == "memory.2"
        assert len(bus.fanout) == 0
        async with bus.subscribe("plan", after=subscription.cursor) as resumed:
            assert await take(resumed, 3) == [3, 4, 5]


async def test_closing_wakes_who_waits() -> None:
    async with Bus.open(None) as bus:
        subscription = bus.subscribe("plan")

        async def read() -> list[WorkUnit]:
            return [unit async for unit in subscription]

        waiting = asyncio.create_task(read())
        await turns()
        subscription.close()
        assert await waiting == []


async def test_a_subscription_left_in_the_middle_costs_nothing_more() -> None:
    async with Bus.open(None) as bus:
        await fill(bus, *["plan"] * 5)
        async for unit in bus.subscribe("plan", after=0):
            if unit.seq == 2:
                break
        gc.collect()
        await turns()
        assert len(bus.fanout) == 0


async def test_a_subscription_may_be_dropped_in_another_thread_and_after_its_bus() -> None:
    async with Bus.open(None) as bus:
        subscriptions = [bus.subscribe("plan"), bus.subscribe("plan")]
        thread = threading.Thread(target=subscriptions.pop)
        thread.start()
        while thread.is_alive() or len(bus.fanout) > 1:
            await asyncio.sleep(0)
    subscriptions.clear()
    await turns()


def test_a_subscription_may_be_dropped_after_its_loop() -> None:
    async def leave() -> LocalSubscription:
        async with Bus.open(None) as bus:
            return bus.subscribe("plan")

    subscription = asyncio.run(leave())
    del subscription
    gc.collect()


# --- Damage ----------------------------------------------------------------------------------------------------------


async def test_a_unit_that_cannot_be_read_is_raised_in_its_place_and_reading_goes_on() -> None:
    log = DamagedLog()
    async with reopened(log, "plan", "b", "plan", "plan", "plan") as bus:
        log.damaged = (3, 4)
        async with bus.subscribe("plan", after=0) as subscription:
            assert await next_seq(subscription) == 1
            for seq in (3, 4):
                await turns()
                assert subscription.cursor == f"memory.{seq - 1}"
                with pytest.raises(Gap, match=f"seqs {seq} to {seq} cannot be given: damaged") as gap:
                    await anext(subscription)
                assert (gap.value.first, gap.value.last, gap.value.reason) == (seq, seq, "damaged")
            assert await next_seq(subscription) == 5


@pytest.mark.parametrize("led_to", [2, 16, None], ids=["back", "ahead", "nowhere"])
async def test_an_index_that_leads_elsewhere_keeps_no_unit_from_anybody(tmp_path: Path, led_to: int | None) -> None:
    async with Bus.open(tmp_path) as bus:
        await fill(bus, *["plan", "b"] * 10)
    with tampering(tmp_path, "index", Table.CONTEXTS) as txn:
        if led_to is None:
            txn.delete(context_key("plan", 2))
        else:
            txn.put(context_key("plan", 2), seq_key(led_to))
    async with Bus.open(tmp_path) as bus:
        for after in (0, 2, 3):
            async with bus.subscribe("plan", after=after) as subscription:
                wanted = [seq for seq in range(1, 20, 2) if seq > after]
                assert await take(subscription, len(wanted)) == wanted


async def test_a_log_that_cannot_be_read_at_all_says_why_and_where_to_resume() -> None:
    log = FailingLog()
    async with reopened(log, "plan", "plan") as bus:
        log.error = StorageFull("no room for the index")
        subscription = bus.subscribe("plan", after=1)
        with pytest.raises(StorageFull):
            await anext(subscription)
        assert subscription.cursor == "memory.1"


@contextlib.asynccontextmanager
async def reopened(log: MemoryLog, *context_ids: str) -> AsyncIterator[Bus]:
    """A bus on a log that has these units, none of them in its ring."""
    bus = Bus(log)
    await fill(bus, *context_ids)
    await bus.stop("its ring goes")
    bus = Bus(log)
    yield bus
    await bus.stop("the test is over")
