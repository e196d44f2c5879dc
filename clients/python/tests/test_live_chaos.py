"""Against a real bus over a wire that breaks, and a bus that is stopped and killed: nothing lost, nothing doubled."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from live_bus import LiveBus, SameBus, breaking_wire

from engram_client import Client, Draft, PendingReceipt, Subscription, WorkUnit

WAYS: dict[str, list[dict[str, Any]]] = {
    "http": [{"encoding": "msgpack"}, {"encoding": "json"}, {"transport": "sse"}],
    "grpc": [{}],
}


async def collect(subscription: Subscription, count: int) -> list[str]:
    async with subscription:
        return [(await anext(subscription)).text for _ in range(count)]


async def publish(bus: Client, context: str, payloads: list[str]) -> list[int]:
    async with bus.pipeline(window=64) as pipe:
        pending = [await pipe.append(context, payload) for payload in payloads]
    return [(await one).seq for one in pending]


@pytest.mark.parametrize("seed", range(3))
async def test_over_a_wire_that_breaks_each_unit_arrives_once_and_in_order(
    shared_bus: SameBus, scheme: str, short_pauses: None, seed: int
) -> None:
    context = f"chaos/{scheme}/{seed}"
    payloads = [f"{number} {'x' * random.Random(number).randrange(200)}" for number in range(2_000)]
    async with (
        breaking_wire(shared_bus.url, seed=seed, bytes_mean=80_000) as wire,
        Client(wire.url, agent_id="ann") as bus,
        Client(shared_bus.url, agent_id="bob") as safe,
        asyncio.timeout(60),
    ):
        readers = [
            asyncio.create_task(collect(bus.subscribe(context, after=0, **way), len(payloads))) for way in WAYS[scheme]
        ]
        seqs = await publish(bus, context, payloads)
        for reader in readers:
            assert await reader == payloads
        listed = [unit async for unit in safe.units(context)]
        assert [unit.text for unit in listed] == payloads
        assert [unit.seq for unit in listed] == seqs
        assert wire.cuts > 5


async def test_requests_over_a_wire_that_breaks_are_carried_out_once(
    shared_bus: SameBus, scheme: str, short_pauses: None
) -> None:
    context_id = f"chaos/requests/{scheme}"
    async with (
        breaking_wire(shared_bus.url, seed=7, bytes_mean=2_000) as wire,
        Client(wire.url, agent_id="ann", max_retries=50) as bus,
        Client(shared_bus.url, agent_id="bob") as safe,
    ):
        said = [await bus.append(context_id, f"{number}") for number in range(100)]
        said += [
            unit
            for start in range(10)
            for unit in await bus.append_bulk([Draft(context_id, f"{start} {n}") for n in range(5)])
            if isinstance(unit, WorkUnit)
        ]
        assert [unit async for unit in safe.units(context_id)] == said
        context = await bus.update_context(context_id, add_agents=["eve"])
        assert context.version == len(said) + 1
        assert wire.cuts > 5


@pytest.mark.parametrize(
    ("scheme", "way"),
    [(scheme, way) for scheme, ways in WAYS.items() for way in ways],
    ids=["msgpack", "json", "sse", "grpc"],
)
async def test_a_bus_that_is_stopped_and_killed_again_and_again_loses_nothing(
    own_bus: LiveBus, short_pauses: None, way: dict[str, Any]
) -> None:
    arrived = asyncio.Event()

    async def read(bus: Client) -> list[str]:
        texts: list[str] = []
        async with bus.subscribe("plan", after=0, **way) as units:
            while not texts or texts[-1] != "end":
                texts.append((await anext(units)).text)
                arrived.set()
        return texts

    async def end_it() -> None:
        for ending in (own_bus.kill, own_bus.stop, own_bus.kill):
            arrived.clear()
            await arrived.wait()
            await asyncio.to_thread(ending)
            await asyncio.to_thread(own_bus.start)

    async with Client(own_bus.url, agent_id="ann") as bus, asyncio.timeout(60):
        reading, ending = asyncio.create_task(read(bus)), asyncio.create_task(end_it())
        said: list[str] = []
        pending: list[PendingReceipt] = []
        async with bus.pipeline(window=64, max_retries=None) as pipe:
            while not ending.done():
                said.append(f"{len(said)}")
                pending.append(await pipe.append("plan", said[-1]))
                await asyncio.sleep(0)
            said.append("end")
            pending.append(await pipe.append("plan", said[-1]))
        assert await reading == said
        assert [(await one).seq for one in pending] == list(range(1, len(said) + 1))
        assert [unit.text async for unit in bus.units("plan", limit=1_000)] == said


async def test_a_stopped_bus_says_goodbye_and_is_come_back_to(
    own_bus: LiveBus, scheme: str, short_pauses: None
) -> None:
    async with Client(own_bus.url, agent_id="ann") as bus, asyncio.timeout(30):
        subscriptions = [bus.subscribe("plan", **way) for way in WAYS[scheme]]
        for subscription in subscriptions:
            await subscription.wait_subscribed()
        assert await asyncio.to_thread(own_bus.stop) == 0
        own_bus.start()
        said = await bus.append("plan", "again")
        assert [await anext(subscription) for subscription in subscriptions] == [said] * len(subscriptions)


@pytest.mark.parametrize(
    ("scheme", "way"), [("http", {}), ("http", {"transport": "sse"}), ("grpc", {})], ids=["websocket", "sse", "grpc"]
)
async def test_who_reads_too_slowly_is_sent_away_and_still_gets_everything(
    tmp_path: Path, short_pauses: None, scheme: str, way: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("engram_bus")
    with LiveBus(tmp_path / "data", "--stall-seconds", "1", scheme=scheme) as live:
        async with Client(live.url, agent_id="ann") as bus, asyncio.timeout(60), bus.subscribe("plan", **way) as units:
            sent = 0
            # Sent away: gone from the bus, or (its pauses are short here) already told why and back again. Until then
            # there is always more: how much sockets take is the kernel's affair.
            while (await bus.status()).subscribers and "SLOW_CONSUMER" not in caplog.text:
                async with bus.pipeline(window=32) as pipe:
                    for number in range(sent, sent + 50):
                        await pipe.append("plan", bytes(65_536), meta={"number": f"{number}"})
                sent += 50
                await asyncio.sleep(0.1)
            assert [(await anext(units)).meta["number"] for _ in range(sent)] == [f"{number}" for number in range(sent)]
    assert "SLOW_CONSUMER" in caplog.text
