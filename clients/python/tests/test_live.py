"""Against a real bus: what is written is what is read, on every transport, and refusals are typed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from live_bus import LiveBus, SameBus

from engram_client import (
    Client,
    Draft,
    EngramError,
    Relationship,
    RelationshipType,
    SyncClient,
    UnitType,
    WorkUnit,
    errors,
)

every_way = pytest.mark.parametrize(
    ("scheme", "way"),
    [
        ("http", {"encoding": "msgpack"}),
        ("http", {"encoding": "json"}),
        ("http", {"transport": "sse"}),
        ("grpc", {}),
    ],
    ids=["msgpack", "json", "sse", "grpc"],
)


@pytest.fixture
def context(request: pytest.FixtureRequest) -> str:
    return f"t\u00ebst/{request.node.name} ?#%"


async def post(bus: Client, context: str, count: int) -> list[WorkUnit]:
    outcomes = await bus.append_bulk([Draft(context, f"{number}") for number in range(count)])
    return [outcome for outcome in outcomes if isinstance(outcome, WorkUnit)]


# --- Units


@every_way
async def test_a_unit_is_the_same_wherever_it_is_read(shared_bus: SameBus, context: str, way: dict[str, Any]) -> None:
    async with Client(shared_bus.url, agent_id="Zo\u00eb") as bus:
        first = await bus.append(context, "h\u00e9llo\n\r\n\u2028", meta={"k": "v"}, resources=["src/a b.py"])
        cause = Relationship(first.id, RelationshipType.RESPONDS_TO, {"why": "asked"})
        said = [
            first,
            await bus.append(
                context, {"a": [1, None, "\u00e9"]}, type="TOOL_CALL", kind="tool.run", relationships=[cause]
            ),
            await bus.append(
                context, b"\0\xff", content_type="image/png", traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01"
            ),
            await bus.append(context),
            await bus.append(context, None, agent_id="eve"),
            await bus.append(context, '{"raw": 1}', content_type="application/json"),
        ]
        assert [unit.payload for unit in said[1:]] == [
            '{"a":[1,null,"\u00e9"]}'.encode(),
            b"\0\xff",
            b"",
            b"null",
            b'{"raw": 1}',
        ]
        assert said[1].relationships == [cause]
        assert [unit.version for unit in said] == [1, 2, 3, 4, 5, 6]
        assert (await bus.list(context)).work_units == said
        assert [await bus.get(unit.id) for unit in said] == said
        async with bus.subscribe(context, after=0, **way) as units:
            assert [await anext(units) for _ in said] == said
        assert (said[0].agent_id, said[4].agent_id, said[1].type) == ("Zo\u00eb", "eve", UnitType.TOOL_CALL)


async def test_pages_filters_and_order(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        units = await post(bus, context, 10)
        tool = await bus.append(context, "x", type="TOOL_CALL", kind="tool.run", agent_id="bob")
        assert [unit async for unit in bus.units(context, limit=3)] == [*units, tool]
        assert [unit async for unit in bus.units(context, limit=4, reverse=True)] == [tool, *reversed(units)]
        assert (await bus.list(context, after=units[1].seq, before=units[4].seq)).work_units == units[2:4]
        for filters in ({"type": "TOOL_CALL"}, {"kind": "tool.*"}, {"agent": ["bob", "eve"]}):
            assert [unit async for unit in bus.units(context, **filters)] == [tool]  # type: ignore[arg-type]
        assert (await bus.list("nobody was here")).work_units == []


async def test_what_relates(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        call = await bus.append(context, "call")
        missing = "01890000-0000-7000-8000-000000000000"
        edges = [Relationship(call.id, RelationshipType.RESPONDS_TO), Relationship(missing, RelationshipType.CAUSES)]
        result = await bus.append(context, "result", relationships=edges)
        out = await bus.related(result.id, direction="out")
        assert [(one.work_unit, one.direction, one.depth) for one in out.related] == [(call, "out", 1)]
        assert (out.missing, out.truncated) == ([missing], False)
        back = await bus.related(call.id, type=["RESPONDS_TO"], depth=2)
        assert [(one.work_unit, one.direction) for one in back.related] == [(result, "in")]


async def test_read_your_writes(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        unit = await bus.append(context, "x")
        assert (await bus.list(context, min_seq=unit.seq)).applied_seq >= unit.seq
        with pytest.raises(errors.MinSeqTimeout) as told:
            await bus.list(context, min_seq=unit.seq + 1_000_000, timeout_ms=10)
        assert told.value.retry_after_seconds == 1
        assert told.value.retryable


# --- Once


async def test_a_key_said_twice_is_one_unit_and_with_another_body_a_conflict(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        first = await bus.append(context, "x", idempotency_key=context)
        assert await bus.append(context, "x", idempotency_key=context) == first
        with pytest.raises(errors.IdempotencyConflict):
            await bus.append(context, "y", idempotency_key=context)
        async with bus.pipeline() as pipe:
            receipt = await (await pipe.append(context, "x", idempotency_key=context))
        assert (receipt.seq, receipt.unit_id, receipt.replayed) == (first.seq, first.id, True)


async def test_a_bulk_said_twice_is_one_bulk(shared_bus: SameBus, context: str) -> None:
    drafts = [Draft(context, "a"), Draft(context, b"\0"), Draft(context, {"b": 1})]
    async with Client(shared_bus.url, agent_id="ann") as bus:
        for atomic in (False, True):
            first = await bus.append_bulk(drafts, atomic=atomic, idempotency_key=f"{context} {atomic}")
            assert await bus.append_bulk(drafts, atomic=atomic, idempotency_key=f"{context} {atomic}") == first
        assert len((await bus.list(context)).work_units) == 6


async def test_a_bulk_tells_what_became_of_each(shared_bus: SameBus, context: str) -> None:
    drafts = [Draft(context, "a"), Draft(context, "b", expected_version=9), Draft(context, "c", expected_version=1)]
    async with Client(shared_bus.url, agent_id="ann") as bus:
        one, refused, other = await bus.append_bulk(drafts)
        assert isinstance(refused, errors.VersionMoved)
        assert [unit.version for unit in (one, other) if isinstance(unit, WorkUnit)] == [1, 2]
        with pytest.raises(errors.VersionMoved) as told:
            await bus.append_bulk(drafts, atomic=True)
        assert told.value.index == 1
        assert len(await bus.list(context)) == 2


# --- Contexts


async def test_contexts(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        made = await bus.update_context(
            context, display_name="Plan", add_agents=["ann", "bob"], meta={"a": "1", "b": "2"}
        )
        assert (made.id, made.display_name, made.agent_ids, made.meta) == (
            context,
            "Plan",
            ["ann", "bob"],
            {"a": "1", "b": "2"},
        )
        unit = await bus.append(context, "x")
        changed = await bus.update_context(
            context,
            remove_agents=["bob"],
            pin_units=[unit.id],
            meta={"a": None},
            closed=True,
            expected_version=unit.version,
        )
        assert (changed.agent_ids, changed.pinned_units, changed.meta, changed.closed) == (
            ["ann"],
            [unit.id],
            {"b": "2"},
            True,
        )
        assert await bus.get_context(context) == changed
        assert context in [one.id for one in await bus.contexts(prefix=context[:8])]
        with pytest.raises(errors.ContextClosed):
            await bus.append(context, "late")
        with pytest.raises(errors.VersionMoved) as told:
            await bus.update_context(context, closed=False, expected_version=1)
        assert told.value.details["current_version"] == changed.version


async def test_contexts_page_by_page(shared_bus: SameBus, context: str) -> None:
    names = [f"{context}/{number}" for number in range(5)]
    async with Client(shared_bus.url, agent_id="ann") as bus:
        await bus.append_bulk([Draft(name, "x") for name in names])
        seen: list[str] = []
        page: str | None = None
        while True:
            found = await bus.contexts(prefix=f"{context}/", limit=2, page=page)
            seen += [one.id for one in found]
            page = found.next_page
            if page is None:
                break
        assert seen == names


# --- Refusals


REFUSED: list[tuple[type[EngramError], str | None, Callable[[Client, WorkUnit], Awaitable[Any]]]] = [
    (errors.InvalidRequest, "type", lambda bus, unit: bus.append(unit.context_id, "x", type="SHOUT")),
    (errors.InvalidRequest, "kind", lambda bus, unit: bus.append(unit.context_id, "x", kind="lock.granted")),
    (
        errors.InvalidRequest,
        "payload",
        lambda bus, unit: bus.append(unit.context_id, b"\xff", content_type="text/plain"),
    ),
    (errors.TooLarge, "payload", lambda bus, unit: bus.append(unit.context_id, bytes(1_048_577))),
    (errors.TooLarge, None, lambda bus, unit: bus.append_bulk([Draft(unit.context_id)] * 1_001)),
    (errors.IdTaken, "id", lambda bus, unit: bus.append(unit.context_id, "x", id=unit.id)),
    (errors.VersionMoved, "expected_version", lambda bus, unit: bus.append(unit.context_id, "x", expected_version=9)),
    (errors.UnitNotFound, None, lambda bus, unit: bus.get("01890000-0000-7000-8000-000000000000")),
    (errors.NotFound, None, lambda bus, unit: bus.get("x/../..%00")),
    (errors.ContextNotFound, None, lambda bus, unit: bus.get_context(f"{unit.context_id}, but another")),
    (errors.InvalidRequest, "limit", lambda bus, unit: bus.list(unit.context_id, limit=0)),
    (errors.InvalidRequest, "page", lambda bus, unit: bus.list(unit.context_id, page="?")),
]


async def test_refusals_are_typed_and_name_their_field(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        unit = await bus.append(context, "x")
        for kind, field, refused in REFUSED:
            with pytest.raises(kind) as told:
                await refused(bus, unit)
            assert not told.value.retryable
            assert told.value.field == field or field is None


@every_way
@pytest.mark.parametrize(
    ("after", "kind"),
    [
        ("what?", errors.CursorInvalid),
        ("1.2.3.", errors.CursorInvalid),
        (10**15, errors.CursorAhead),
        ("e0123456789ab.5", errors.EpochChanged),
    ],
)
async def test_every_odd_cursor_is_a_typed_answer(
    shared_bus: SameBus, way: dict[str, Any], after: str | int, kind: type[EngramError]
) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        with pytest.raises(kind) as told:
            async with bus.subscribe("*", after=after, **way):
                pass
        assert type(told.value) is kind
        assert told.value.message


# --- Subscriptions


@every_way
async def test_from_now_on_means_from_when_it_was_entered(
    shared_bus: SameBus, context: str, way: dict[str, Any]
) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        await post(bus, context, 3)
        async with bus.subscribe(context, **way) as units:
            assert units.cursor is not None
            said = await post(bus, context, 3)
            assert [await anext(units) for _ in said] == said


@every_way
async def test_a_saved_cursor_goes_on_where_it_was(shared_bus: SameBus, context: str, way: dict[str, Any]) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        said = await post(bus, context, 6)
        cursor: str | int | None = 0
        for unit in said:
            async with bus.subscribe(context, after=cursor, **way) as units:
                assert await anext(units) == unit
                cursor = units.cursor


@every_way
async def test_filters(shared_bus: SameBus, context: str, way: dict[str, Any]) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        plain = await bus.append(context, "x", agent_id="bob")
        tool = await bus.append(
            context, "x", type="TOOL_CALL", kind="tool.run", resources=["src/a.py"], meta={"a b": "c&d"}
        )
        last = await bus.append(f"{context}/2", "x", agent_id="bob")
        for wanted, filters in [
            ([plain, tool, last], {}),
            ([tool], {"type": ["TOOL_CALL", "ERROR"]}),
            ([tool], {"kind": "tool.*"}),
            ([plain, last], {"agent": "bob"}),
            ([tool], {"exclude_agent": ["bob"]}),
            ([tool], {"resource": "src/*"}),
            ([tool], {"meta": {"a b": "c&d"}}),
        ]:
            async with bus.subscribe(context, f"{context}/2", after=plain.seq - 1, **filters, **way) as units:
                assert [await anext(units) for _ in wanted] == wanted


@every_way
async def test_contexts_are_named_one_by_one_or_as_a_list(
    shared_bus: SameBus, context: str, way: dict[str, Any]
) -> None:
    names = [f"{context}/a", f"{context}/b"]
    async with Client(shared_bus.url, agent_id="ann") as bus:
        said = [await bus.append(name) for name in names]
        for contexts in (names, [names], [tuple(names)], [names[:1], names[1]]):
            async with bus.subscribe(*contexts, after=0, **way) as units:
                assert [await anext(units) for _ in said] == said


async def test_a_thousand_contexts_do_not_fit_a_url_and_are_subscribed_all_the_same(
    shared_bus: SameBus, context: str
) -> None:
    names = [f"{context}/{number:04}" for number in range(1_000)]
    async with Client(shared_bus.url, agent_id="ann") as bus, bus.subscribe(*names, meta={"k": "v"}) as units:
        await bus.append(names[7], "without")
        said = await bus.append(names[999], "x", meta={"k": "v"})
        assert await anext(units) == said


@every_way
async def test_a_narrow_cursor_moves_on_with_the_heartbeat(own_bus: LiveBus, way: dict[str, Any]) -> None:
    async with Client(own_bus.url, agent_id="ann") as bus, bus.subscribe("quiet", **way) as units:
        last = (await post(bus, "busy", 5))[-1]
        said: list[WorkUnit] = []
        while units.head < last.seq:  # a heartbeat comes each second
            try:
                async with asyncio.timeout(0.1):
                    said.append(await anext(units))
            except TimeoutError:
                pass
        assert units.cursor is not None
        assert units.cursor.endswith(f".{last.seq}")
        assert said == []


# --- For threads


def test_the_same_without_a_loop(shared_bus: SameBus, context: str) -> None:
    with SyncClient(shared_bus.url, agent_id="ann") as bus, bus.subscribe(context) as units:
        said = [bus.append(context, f"{number}") for number in range(3)]
        with bus.pipeline() as pipe:
            receipts = [pipe.append(context, "x") for _ in range(300)]
        assert [next(units) for _ in said] == said
        assert [unit.seq for unit in bus.units(context)][3:] == [receipt.result().seq for receipt in receipts]
        assert bus.get_context(context).version == 303
        assert bus.status().ready
        assert units.next(timeout_seconds=5).seq == receipts[0].result().seq


# --- What is left behind


def test_a_loop_that_ends_leaves_nothing_to_the_next(running_bus: LiveBus) -> None:
    """grpc tells all loops of a process by way of one of them: what is left over by a closed one is an error there."""
    left_over: list[Any] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: left_over.append(context))
        async with Client(running_bus.urls["grpc"], agent_id="ann") as bus, bus.pipeline():
            for waits in (bus.get("u1", min_seq=10**9), anext(bus.subscribe("nobody is here"))):
                with anyio.move_on_after(0.01):
                    await waits

    for _ in range(20):
        asyncio.run(run())
    assert left_over == []


async def test_a_large_bulk_is_answered_with_its_payloads(shared_bus: SameBus, context: str) -> None:
    drafts = [Draft(context, bytes([n]) * 900_000) for n in range(6)]
    async with Client(shared_bus.url, agent_id="ann") as bus:
        outcomes = await bus.append_bulk(drafts)
    told = [outcome.payload for outcome in outcomes if isinstance(outcome, WorkUnit)]
    assert told == [draft.payload for draft in drafts]
