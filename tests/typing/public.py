"""What a user's type checker sees of `engram_bus`: read by mypy, never run. A change here is a change for users."""

from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

from engram_bus import Bus, Context, Draft, EngramError, Gap, Relationship, RelationshipType, UnitType, WorkUnit
from engram_bus.codec import Entry
from engram_bus.embedded import ContextPage
from engram_bus.projections.search.requests import SearchHit, SearchOut
from engram_bus.reading import Page, RelatedPage
from engram_bus.router.local import LocalSubscription


async def opening(path: Path) -> None:
    async with Bus.open(path) as bus:
        assert_type(bus, Bus)
        assert_type(bus.cursor, str)
        assert_type(bus.head, int)
        assert_type(bus.durability, str)
        await appending(bus)
        await reading(bus)
        await subscribing(bus)
    async with Bus.open(None, heartbeat_seconds=5, stall_seconds=10):
        pass
    async with Bus.open("data", size_bytes_max=2**30):
        pass


async def appending(bus: Bus) -> None:
    assert_type(await bus.append("plan", "hello", agent_id="ann"), WorkUnit)
    assert_type(
        await bus.append(
            "plan",
            {"any": ["json"]},
            agent_id="ann",
            type=UnitType.ERROR,
            kind="build.failed",
            meta={"run": "7"},
            resources=["src/a.py"],
            relationships=[Relationship("id", RelationshipType.CAUSES)],
            expected_version=3,
            idempotency_key="key",
        ),
        WorkUnit,
    )
    draft = Draft(context_id="plan", agent_id="ann", type=UnitType.MESSAGE, payload=b"hello")
    assert_type(await bus.append_bulk([draft], atomic=True), list[WorkUnit | EngramError])
    assert_type(await bus.update_context("plan", add_agents=["ann"], meta={"gone": None}), Context)


async def reading(bus: Bus) -> None:
    await bus.wait_for(7, timeout_ms=100)
    entry = bus.get("id")
    assert_type(entry, Entry)
    assert_type(entry.unit, WorkUnit)
    page = bus.list("plan", limit=10, reverse=True)
    assert_type(page, Page)
    assert_type(page.work_units, list[WorkUnit])
    assert_type(page.next_page, str | None)
    assert_type(bus.related("id", depth=2), RelatedPage)
    assert_type(bus.context("plan"), Context)
    assert_type(bus.contexts(prefix="a/"), ContextPage)
    found = await bus.search("parser", context_id="plan", type=[UnitType.ERROR, 3], meta={"run": "7"}, limit=5)
    assert_type(found, SearchOut)
    assert_type(found.results, list[SearchHit])
    assert_type([(hit.unit_id, hit.seq, hit.score) for hit in found.results], list[tuple[str, int, float]])
    found = await bus.search(
        "parser",
        mode="hybrid",
        fusion="rrf",
        vector_weight=0.5,
        rank_constant=10,
        half_life_ms=3_600_000,
        recency_weight=0.5,
        neighbour_weight=0.2,
        distinct=True,
        stale=True,
        max_tokens=4_000,
        explain=True,
    )
    assert_type([hit.duplicates for hit in found.results], list[int])
    bus.rebuild_search()


async def subscribing(bus: Bus) -> None:
    async for unit in bus.subscribe("plan", after=0):
        assert_type(unit, WorkUnit)
        assert_type(unit.payload, bytes)
        assert_type(unit.resources, list[str])
    async with bus.subscribe("a", "b", after="cursor", types=["ERROR"], meta={"run": "7"}) as subscription:
        assert_type(subscription, LocalSubscription)
        try:
            assert_type(await anext(subscription), WorkUnit)
        except Gap as gap:
            assert_type((gap.first, gap.last, gap.reason), tuple[int, int, str])
        assert_type(subscription.cursor, str)


def refusing(error: EngramError) -> Sequence[str | bool | int | None]:
    assert_type(error.code, str)
    assert_type(error.retryable, bool)
    assert_type(error.field, str | None)
    assert_type(error.limit, int | None)
    assert_type(error.index, int | None)
    return [error.code, error.retryable, error.field, error.limit, error.index]
