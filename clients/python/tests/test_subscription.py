"""A subscription over connections that break in every way: each unit once, in order, or a typed error."""

import asyncio
from typing import Any

import pytest

from engram_client import Client, EngramConnectionError, Gap, Subscription
from engram_client.errors import CursorInvalid, EpochChanged, Invalid, ShuttingDown


async def take(subscription: Subscription, count: int) -> list[int]:
    async with asyncio.timeout(5):
        return [(await anext(subscription)).seq for _ in range(count)]


async def test_a_cut_connection_is_made_again_after_the_last_unit(play: Any) -> None:
    asked: list[str] = []

    async def cut(caller: Any) -> None:
        asked.append(caller.path)
        await caller.subscribed("e1.0")
        await caller.units(1, 2)
        caller.cut()

    async def second(caller: Any) -> None:
        asked.append(caller.path)
        await caller.subscribed("e1.2")
        await caller.units(3)
        await caller.stay()

    async with (
        Client(await play(cut, second), agent_id="bob") as bus,
        bus.subscribe("plan", after=0, kind=["a.*", "b"], meta={"k": "v w"}) as units,
    ):
        assert await take(units, 3) == [1, 2, 3]
        assert (units.cursor, units.head) == ("e1.3", 99)
    filters = "/stream?context=plan&kind=a.%2A&kind=b&meta.k=v%20w&after="
    assert asked == [filters + "0", filters + "e1.2"]


async def test_what_was_repeated_after_a_cut_is_left_out(play: Any) -> None:
    async def cut(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await caller.units(1, 2)
        caller.cut()

    async def rewound(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await caller.units(1, 2, 3)
        await caller.stay()

    async with Client(await play(cut, rewound), agent_id="bob") as bus:
        assert await take(bus.subscribe("plan", after=0), 3) == [1, 2, 3]


async def test_goaway_is_obeyed_before_the_bus_closes(play: Any) -> None:
    left = asyncio.Event()

    async def stopping(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await caller.units(1)
        await caller.say("goaway", reason="stop", retry_after_ms=1, cursor="e1.1")
        await caller.stay()
        left.set()

    async def started(caller: Any) -> None:
        await caller.subscribed("e1.1")
        await caller.units(2)
        await caller.stay()

    async with Client(await play(stopping, started), agent_id="bob") as bus:
        assert await take(bus.subscribe("plan", after=0), 2) == [1, 2]
        assert left.is_set()


async def test_silence_is_a_dead_connection(play: Any) -> None:
    async def silent(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await caller.stay()

    async def alive(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await caller.units(1)
        await caller.stay()

    async with Client(await play(silent, alive), agent_id="bob") as bus:
        assert await take(bus.subscribe("plan", after=0, silence_seconds=0.05), 1) == [1]


@pytest.mark.parametrize("close_code", [4000, 4001, 4003, 4008, 1000, 1001, 1011, 1012])
async def test_codes_that_pass_are_come_back_from(play: Any, close_code: int) -> None:
    async def closing(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await caller.close(close_code)

    async def open_again(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await caller.units(1)
        await caller.stay()

    async with Client(await play(closing, open_again), agent_id="bob") as bus:
        assert await take(bus.subscribe("plan", after=0), 1) == [1]


async def test_an_error_that_will_not_pass_is_raised_after_what_came_before_it_and_every_time(play: Any) -> None:
    async def cut(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await caller.units(1, 2)
        caller.cut()

    async def changed(caller: Any) -> None:
        await caller.say("error", code="EPOCH_CHANGED", message="e2 now", retryable=False, epoch="e2")
        await caller.close(4511, "EPOCH_CHANGED")

    async with Client(await play(cut, changed), agent_id="bob") as bus:
        units = bus.subscribe("plan", after=0)
        assert await take(units, 2) == [1, 2]
        for _ in range(2):
            with pytest.raises(EpochChanged, match="e2 now") as told:
                await take(units, 1)
        assert told.value.details == {"epoch": "e2"}


async def test_entering_raises_what_the_bus_refuses(play: Any) -> None:
    async def refuse(caller: Any) -> None:
        await caller.close(4501, "CURSOR_INVALID")

    async with Client(await play(refuse), agent_id="bob") as bus:
        with pytest.raises(CursorInvalid):
            async with bus.subscribe("plan", after="what?"):
                pass


async def test_a_gap_is_raised_once_and_iterating_goes_on(play: Any) -> None:
    async def gapped(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await caller.units(1)
        await caller.say("gap", **{"from": 2, "to": 4, "reason": "PRUNED", "cursor": "e1.4"})
        await caller.units(5)
        await caller.stay()

    async with Client(await play(gapped), agent_id="bob") as bus:
        units = bus.subscribe("plan", after=0)
        assert await take(units, 1) == [1]
        with pytest.raises(Gap) as gap:
            await take(units, 1)
        assert (gap.value.from_seq, gap.value.to_seq, gap.value.reason) == (2, 4, "PRUNED")
        assert units.cursor == "e1.4"
        assert await take(units, 1) == [5]


async def test_giving_up_waiting_loses_nothing(play: Any) -> None:
    ready = asyncio.Event()

    async def slow(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await ready.wait()
        await caller.units(1)
        await caller.stay()

    async with Client(await play(slow), agent_id="bob") as bus, bus.subscribe("plan", after=0) as units:
        for seconds in (0, 0.001, 0.01):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds):
                    await anext(units)
        ready.set()
        assert await take(units, 1) == [1]


@pytest.mark.parametrize(("bound", "value"), [("PENDING_UNITS", 2), ("PENDING_BYTES", 100_000)])
async def test_who_does_not_read_is_read_ahead_for_a_bounded_number_of_units_only(
    play: Any, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(f"engram_client.subscription.{bound}", value)
    sent = 0

    async def flood(caller: Any) -> None:
        nonlocal sent
        await caller.subscribed("e1.0")
        for seq in range(1, 10_001):
            await caller.units(seq, payload=bytes(65_536))
            sent = seq
        await caller.stay()

    async with Client(await play(flood), agent_id="bob") as bus, bus.subscribe("plan", after=0) as units:
        before = -1
        while sent != before:  # until the flood stands
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 1_000
        assert await take(units, 1_000) == list(range(1, 1_001))


async def test_it_gives_up_after_so_many_retries(closed_url: str) -> None:
    async with Client(closed_url, agent_id="bob") as bus:
        with pytest.raises(EngramConnectionError, match="3 attempts"):
            async with bus.subscribe("plan", max_retries=2):
                pass


async def test_a_bus_that_only_says_hello_does_not_reset_the_count(play: Any) -> None:
    async def hello(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await caller.close(4001)

    async with Client(await play(hello), agent_id="bob") as bus:
        with pytest.raises(ShuttingDown):
            await take(bus.subscribe("plan", max_retries=3), 1)


async def test_a_handshake_refused_with_a_problem_is_that_problem(answering: Any) -> None:
    refusal = {"code": "FORBIDDEN", "detail": "not you", "retryable": False}
    url, _ = await answering.start(answering.json(403, refusal))
    async with Client(url, agent_id="bob") as bus:
        with pytest.raises(Invalid, match="FORBIDDEN: not you"):
            async with bus.subscribe("plan"):
                pass


async def test_closing_ends_the_iteration_of_whoever_waits(play: Any) -> None:
    async def quiet(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await caller.stay()

    async with Client(await play(quiet), agent_id="bob") as bus:
        async with bus.subscribe("plan") as units:
            waiting = asyncio.create_task(collect(units))
            await asyncio.sleep(0)
        assert await waiting == []
        assert [unit async for unit in units] == []


async def collect(subscription: Subscription) -> list[Any]:
    return [unit async for unit in subscription]


async def test_the_client_takes_its_subscriptions_with_it(play: Any) -> None:
    gone = asyncio.Event()

    async def quiet(caller: Any) -> None:
        await caller.subscribed("e1.0")
        await caller.stay()
        gone.set()

    async with Client(await play(quiet), agent_id="bob") as bus:
        units = bus.subscribe("plan")
        await units.wait_subscribed()
    async with asyncio.timeout(5):
        await gone.wait()


async def test_a_filter_too_long_for_a_url_goes_into_an_operation(play: Any) -> None:
    names = [f"context-{number:04}" for number in range(1_000)]
    asked: list[Any] = []

    async def operated(caller: Any) -> None:
        asked.append(caller.path)
        await caller.subscribed("e1.50")
        asked.append(await caller.hear())
        await caller.say("subscribed", subscription=1, cursor="e1.0", head=50)
        await caller.say("heartbeat", cursor="e1.50", head=50)
        await caller.say("units", subscription=1, units=[], cursor="e1.7")
        await caller.stay()

    async with Client(await play(operated), agent_id="bob") as bus, bus.subscribe(*names, after=0) as units:
        while units.cursor != "e1.7":
            assert units.cursor == "e1.0"
            await asyncio.sleep(0)
    assert asked == ["/stream", {"op": "subscribe", "id": 1, "context": names, "after": "0"}]
