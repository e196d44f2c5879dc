"""The bus inside another program: every verb and promise, without a server."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import engram_bus
from engram_bus import Bus, DataDirectoryError, Draft, EngramError, Relationship, RelationshipType, UnitType, WorkUnit
from engram_bus.bus.writer import Answer
from engram_bus.errors import (
    ContextNotFound,
    CursorInvalid,
    FenceRequired,
    FenceStale,
    IdTaken,
    InvalidRequest,
    LockLost,
    LogDamaged,
    MinSeqTimeout,
    ShuttingDown,
    StorageFull,
    TooLarge,
    UnitNotFound,
    VersionMoved,
    WaitEnded,
)
from engram_bus.limits import BULK_UNITS_MAX, NAME_BYTES_MAX, PAGE_UNITS_MAX, RELATED_DEPTH_MAX
from engram_bus.log.memory import MemoryLog
from engram_bus.router.filters import Filter, make_filter, predicate
from engram_bus.units import FORMAT_BYTES, FORMAT_JSON, FORMAT_TEXT, AcquireLock, Fence, ReleaseLock
from tests.damaged import DamagedLog, FullDamagedLog
from tests.disk import tampering
from tests.values import unit_id


@pytest.fixture(params=["memory", "disk"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Where a bus is opened: everything here holds for both."""
    return tmp_path / "data" if request.param == "disk" else None


@pytest.fixture
async def bus(path: Path | None) -> AsyncIterator[Bus]:
    async with Bus.open(path) as bus:
        yield bus


async def fill(bus: Bus, *context_ids: str, **fields: Any) -> list[WorkUnit]:
    return [await bus.append(context_id, "hi", agent_id="ann", **fields) for context_id in context_ids]


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- What is public --------------------------------------------------------------------------------------------------


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(engram_bus.__all__) == [
        "Bus",
        "Context",
        "DataDirectoryError",
        "Draft",
        "EngramError",
        "Gap",
        "Relationship",
        "RelationshipType",
        "UnitType",
        "WorkUnit",
        "__version__",
    ]


@pytest.mark.parametrize("name", sorted(set(engram_bus.__all__) - {"__version__"}))
def test_what_is_public_is_there_and_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(getattr(engram_bus, name))


async def test_the_first_example_works(path: Path | None) -> None:
    async with Bus.open(path) as bus:
        await bus.append("plan", "hello", agent_id="ann")
        async for unit in bus.subscribe("plan", after=0):
            assert (unit.seq, unit.agent_id, unit.payload) == (1, "ann", b"hello")
            break


async def test_what_was_appended_is_there_after_a_restart(tmp_path: Path) -> None:
    async with Bus.open(tmp_path) as bus:
        units = await fill(bus, "plan", "b", "plan")
        await bus.update_context("plan", display_name="The plan")
        cursor, context = bus.cursor, bus.context("plan")
    async with Bus.open(str(tmp_path)) as bus:
        assert (bus.cursor, bus.context("plan"), bus.durability) == (cursor, context, "fsync")
        assert [bus.get(unit.id).unit for unit in units] == units
        async with bus.subscribe(after=0) as subscription:
            assert [await anext(subscription) for _ in units] == units


async def test_a_bus_in_memory_says_that_nothing_survives_it() -> None:
    async with Bus.open(None) as bus:
        assert bus.durability == "memory"


# --- Append ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "raw", "content_type"),
    [
        ("héllo", "héllo".encode(), FORMAT_TEXT),
        ("", b"", FORMAT_TEXT),
        (b"", b"", FORMAT_TEXT),
        (b"\xff\x00", b"\xff\x00", FORMAT_BYTES),
        (bytearray(b"\xff"), b"\xff", FORMAT_BYTES),
        (memoryview(b"abc")[1:], b"bc", FORMAT_BYTES),
        ({"a": [1, None]}, b'{"a":[1,null]}', FORMAT_JSON),
        ({"null": msgspec.Raw(b"[null]"), 1.5: {None}}, b'{"null":[null],"1.5":[null]}', FORMAT_JSON),
        (None, b"null", FORMAT_JSON),
        (3, b"3", FORMAT_JSON),
    ],
)
async def test_a_payload_is_text_bytes_or_json_by_what_it_is(
    bus: Bus, payload: Any, raw: bytes, content_type: str
) -> None:
    unit = await bus.append("plan", payload, agent_id="ann")
    assert (unit.payload, unit.content_type) == (raw, content_type)


async def test_a_content_type_that_is_named_wins(bus: Bus) -> None:
    unit = await bus.append("plan", b"# hi", agent_id="ann", content_type="text/markdown")
    assert (unit.payload, unit.content_type) == (b"# hi", "text/markdown")


class WithNumber(msgspec.Struct):
    number: float


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("context_id", "fields", "field"),
    [
        ("", {}, "context_id"),
        ("a\nb", {}, "context_id"),
        ("\ud800", {}, "context_id"),
        ("plan", {"payload": object()}, "payload"),
        ("plan", {"payload": "\ud800"}, "payload"),
        ("plan", {"payload": float("nan")}, "payload"),
        ("plan", {"payload": {"a": [None, 1.5, {"b": float("-inf")}]}}, "payload"),
        ("plan", {"payload": WithNumber(float("inf")), "content_type": "application/vnd.x+json"}, "payload"),
        ("plan", {"payload": nested(200)}, "payload"),
        ("plan", {"payload": nested(100_000)}, "payload"),
        ("plan", {"payload": b"{", "content_type": FORMAT_JSON}, "payload"),
        ("plan", {"type": "message"}, "type"),
        ("plan", {"type": 99}, "type"),
        ("plan", {"kind": "bus.mine"}, "kind"),
        ("plan", {"id": "mine"}, "id"),
    ],
)
async def test_what_is_not_valid_is_refused_by_the_field(
    bus: Bus, context_id: str, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await bus.append(context_id, agent_id="ann", **fields)
    assert refused.value.field == field
    assert bus.head == 0


async def test_everything_a_unit_has_can_be_said(bus: Bus) -> None:
    fields: dict[str, Any] = {
        "kind": "build.failed",
        "meta": {"run": "7"},
        "resources": ["src/a.py"],
        "relationships": [Relationship(unit_id(1), RelationshipType.CAUSES, {"why": "test"})],
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "id": unit_id(7),
    }
    unit = await bus.append("plan", "x", agent_id="ann", type="ERROR", **fields)
    assert {name: getattr(unit, name) for name in fields} == fields
    assert (unit.type, unit.seq, unit.version) == (UnitType.ERROR, 1, 1)
    assert (await bus.append("plan", "x", agent_id="ann", type=3)).type is UnitType.TOOL_CALL


async def test_an_id_is_taken_once(bus: Bus) -> None:
    await bus.append("plan", agent_id="ann", id=unit_id(1))
    with pytest.raises(IdTaken):
        await bus.append("plan", agent_id="ann", id=unit_id(1))


async def test_of_two_that_expect_one_version_one_wins(bus: Bus) -> None:
    answers = await asyncio.gather(
        *(bus.append("plan", name, agent_id=name, expected_version=0) for name in ("ann", "bob")),
        return_exceptions=True,
    )
    assert isinstance(answers[0], WorkUnit)
    assert isinstance(answers[1], VersionMoved)


async def test_a_repeat_under_its_key_is_answered_the_same(bus: Bus) -> None:
    first = await bus.append("plan", "x", agent_id="ann", idempotency_key="k")
    assert await bus.append("plan", "x", agent_id="ann", idempotency_key="k") == first
    assert bus.head == 1


async def test_who_gives_up_waiting_has_appended_all_the_same(bus: Bus) -> None:
    appending = asyncio.create_task(bus.append("plan", "x", agent_id="ann"))
    await asyncio.sleep(0)
    appending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await appending
    await bus.wait_for(1)


def draft(context_id: str = "plan", **fields: Any) -> Draft:
    return Draft(context_id=context_id, agent_id="ann", type=UnitType.MESSAGE, **fields)


async def test_an_atomic_bulk_is_recorded_whole_or_not_at_all(bus: Bus) -> None:
    units = await bus.append_bulk([draft(), draft("b"), draft()], atomic=True)
    assert [(unit.seq, unit.version) for unit in units if isinstance(unit, WorkUnit)] == [(1, 1), (2, 1), (3, 2)]
    await bus.append("plan", agent_id="ann", id=unit_id(1))
    with pytest.raises(IdTaken) as refused:
        await bus.append_bulk([draft(), draft(id=unit_id(1)), draft()], atomic=True)
    assert refused.value.index == 1
    assert bus.head == 4


async def test_an_atomic_bulk_is_repeated_by_its_key(bus: Bus) -> None:
    first = await bus.append_bulk([draft(), draft("b")], atomic=True, idempotency_key="k")
    assert await bus.append_bulk([draft(), draft("b")], atomic=True, idempotency_key="k") == first
    assert bus.head == 2


async def test_in_a_plain_bulk_a_refusal_stands_in_its_place(bus: Bus) -> None:
    outcomes = await bus.append_bulk([draft(), draft(""), draft(id=unit_id(1)), draft(id=unit_id(1)), draft()])
    assert [type(outcome) for outcome in outcomes] == [WorkUnit, InvalidRequest, WorkUnit, IdTaken, WorkUnit]
    assert [outcome.seq for outcome in outcomes if isinstance(outcome, WorkUnit)] == [1, 2, 3]


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_bulk_has_at_least_one_unit_and_no_more_than_its_limit(bus: Bus, atomic: bool) -> None:
    with pytest.raises(InvalidRequest):
        await bus.append_bulk([], atomic=atomic)
    with pytest.raises(TooLarge):
        await bus.append_bulk([draft()] * (BULK_UNITS_MAX + 1), atomic=atomic)
    assert len(await bus.append_bulk([draft()] * BULK_UNITS_MAX, atomic=atomic)) == BULK_UNITS_MAX


async def test_a_key_for_a_bulk_that_is_not_one_command_is_refused(bus: Bus) -> None:
    with pytest.raises(InvalidRequest):
        await bus.append_bulk([draft()], idempotency_key="k")


# --- Read your writes ------------------------------------------------------------------------------------------------


async def test_min_seq_waits_until_it_is_reached(bus: Bus) -> None:
    waiting = [asyncio.create_task(bus.wait_for(seq, timeout_ms=60_000)) for seq in (1, 2, 3)]
    await turns()
    await fill(bus, "plan", "plan")
    await asyncio.gather(*waiting[:2])
    assert not waiting[2].done()
    await fill(bus, "plan")
    await waiting[2]


async def test_what_is_reached_does_not_wait(bus: Bus) -> None:
    await fill(bus, "plan")
    await bus.wait_for(1, timeout_ms=0)
    await bus.wait_for(-5)


async def test_min_seq_that_is_not_reached_in_time_says_where_the_log_is(bus: Bus) -> None:
    await fill(bus, "plan")
    with pytest.raises(MinSeqTimeout, match="at 1 after 1 ms, not at 2") as late:
        await bus.wait_for(2, timeout_ms=1)
    assert (late.value.retryable, late.value.details) == (True, {"head": 1})
    assert bus._waiting == set()


@pytest.mark.parametrize("timeout_ms", [-1, 60_001])
async def test_a_wait_has_a_limit(bus: Bus, timeout_ms: int) -> None:
    with pytest.raises(InvalidRequest):
        await bus.wait_for(1, timeout_ms=timeout_ms)


async def test_a_wait_that_is_given_up_is_forgotten(bus: Bus) -> None:
    waiting = asyncio.create_task(bus.wait_for(1))
    await turns()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await fill(bus, "plan")


# --- Get and list ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["", "x", "x" * 36, "é" * 36, unit_id(1), "\ud800" * 36, "x" * 10_000])
async def test_an_id_that_is_not_there_is_not_found(bus: Bus, id: str) -> None:
    await fill(bus, "plan")
    with pytest.raises(UnitNotFound):
        bus.get(id)


CONTEXTS = ["plan", "b"]
WANTED = [None, make_filter(agents=["ann"]), make_filter(types=["ERROR"]), make_filter(agents=["nobody"])]


class Listing(NamedTuple):
    """One way of paging through a context."""

    limit: int
    reverse: bool
    after: int
    before: int | None
    wanted: Filter | None


listings = st.builds(
    Listing,
    limit=st.integers(1, 7),
    reverse=st.booleans(),
    after=st.integers(0, 30),
    before=st.none() | st.integers(0, 35),
    wanted=st.sampled_from(WANTED),
)


@example(Listing(7, False, 0, None, WANTED[1]), [1] * 9, 25, 20_000)
@example(Listing(7, True, 0, None, WANTED[1]), [1] * 9, 25, 20_000)
@given(listings, st.lists(st.integers(0, 3), max_size=40), st.integers(0, 25), st.sampled_from([1, 4, 20_000]))
def test_paging_gives_exactly_the_units_while_appends_go_on(
    listing: Listing, more: list[int], there: int, scan_units_max: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # A filtered page ends after so many units looked at, wanted or not.
        patch.setattr("engram_bus.reading.SCAN_UNITS_MAX", scan_units_max)
        # And reads so many at a time.
        patch.setattr("engram_bus.embedded.PAGE_UNITS_MAX", 7)
        asyncio.run(_page_through(listing, more, there))


async def _page_through(listing: Listing, more: list[int], there: int) -> None:
    async with Bus.open(None) as bus:
        await _append_some(bus, there)
        paged: list[WorkUnit] = []
        page: str | None = None
        appended = iter(more)
        while True:
            found = bus.list("plan", page=page, **listing._asdict())
            assert len(found.entries) <= listing.limit
            assert found.applied_seq == bus.head
            paged += found.work_units
            if found.next_page is None:
                break
            page = found.next_page
            await _append_some(bus, next(appended, 0))
        wants = (lambda unit: True) if listing.wanted is None else predicate(listing.wanted)
        units = [entry.unit for entry in bus.log.read(0, units_max=1_000, bytes_max=10**9)]
        all_of_it = [
            unit
            for unit in units
            if unit.context_id == "plan"
            and listing.after < unit.seq < (bus.head + 1 if listing.before is None else listing.before)
            and wants(unit)
        ]
        if listing.reverse:
            # Newest first: what is appended later is newer than the first page.
            first = paged[0].seq if paged else 0
            all_of_it = [unit for unit in reversed(all_of_it) if unit.seq <= max(first, there)]
        assert paged == all_of_it


async def _append_some(bus: Bus, count: int) -> None:
    for _ in range(count):
        seq = bus.head + 1
        await bus.append(
            CONTEXTS[seq % 2], agent_id="ann" if seq % 3 else "bob", type="ERROR" if seq % 5 else "MESSAGE"
        )


async def test_the_last_page_says_that_it_is_the_last(bus: Bus) -> None:
    await fill(bus, *["plan"] * 4)
    first = bus.list("plan", limit=2)
    assert first.next_page is not None
    second = bus.list("plan", limit=2, page=first.next_page)
    assert [entry.seq for page in (first, second) for entry in page.entries] == [1, 2, 3, 4]
    assert second.next_page is None


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("after", "before"), [(0, 0), (0, 1), (3, 3), (3, 4), (3, 2), (99, None), (0, -1), (-5, 1)])
async def test_between_bounds_that_hold_nothing_there_is_nothing(
    bus: Bus, after: int, before: int | None, reverse: bool
) -> None:
    await fill(bus, *["plan"] * 4)
    page = bus.list("plan", after=after, before=before, reverse=reverse)
    assert (page.entries, page.next_page) == ((), None)


async def test_bounds_beyond_the_log_are_no_bounds(bus: Bus) -> None:
    await fill(bus, *["plan"] * 4)
    assert len(bus.list("plan", after=-(10**30), before=10**30).entries) == 4


async def test_an_unknown_context_is_an_empty_page(bus: Bus) -> None:
    assert bus.list("nowhere").entries == ()


@pytest.mark.parametrize("context_id", ["", "a\0b", "\ud800", "x" * (NAME_BYTES_MAX + 1), "é" * NAME_BYTES_MAX])
async def test_a_name_that_no_context_can_have_is_refused(bus: Bus, context_id: str) -> None:
    for ask in (bus.list, bus.subscribe):
        with pytest.raises((InvalidRequest, TooLarge)) as refused:
            ask(context_id)
        assert refused.value.field in ("context_id", "context")


@pytest.mark.parametrize("limit", [0, -1, PAGE_UNITS_MAX + 1])
async def test_a_page_has_its_limit(bus: Bus, limit: int) -> None:
    for ask in (lambda: bus.list("plan", limit=limit), lambda: bus.contexts(limit=limit)):
        with pytest.raises(InvalidRequest) as refused:
            ask()
        assert (refused.value.field, refused.value.limit) == ("limit", PAGE_UNITS_MAX)


@pytest.mark.parametrize("page", ["", "x", "5", "unknown.1", "1.1", "-1", "9" * 30])
async def test_a_page_that_this_log_did_not_give_is_refused(bus: Bus, page: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        bus.list("plan", page=page)
    assert refused.value.field == "page"


async def test_a_page_ends_when_it_has_read_enough_bytes(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engram_bus.reading.PAGE_BYTES_MAX", 1_500)
    await bus.append_bulk([draft(payload=b"x" * 1_000) for _ in range(5)])
    for wanted in (None, make_filter(agents=["nobody"])):
        page = bus.list("plan", wanted=wanted)
        assert len(page.entries) <= 2
        assert page.next_page is not None


async def test_what_lies_before_damage_is_given_and_the_damage_is_told_after_it() -> None:
    log = DamagedLog()
    async with on(log) as bus:
        await fill(bus, "plan", "b", "plan", "plan", "plan")
        log.damaged = (4,)
        page = bus.list("plan")
        assert [entry.seq for entry in page.entries] == [1, 3]
        with pytest.raises(LogDamaged):
            bus.list("plan", page=page.next_page)
        assert [entry.seq for entry in bus.list("plan", after=4).entries] == [5]
        assert bus.list("plan", limit=2).next_page == page.next_page


async def test_what_contexts_and_locks_are_is_not_told_from_a_part_of_the_log() -> None:
    log = FullDamagedLog()
    async with on(log) as bus:
        await fill(bus, "plan", "b", "plan")
        lock = await bus.acquire_lock("a.py", agent_id="ann")
        log.damaged, log.is_full = (2,), True
        with pytest.raises(StorageFull):
            await fill(bus, "plan")
        asked: list[Callable[[], Any]] = [
            lambda: bus.context("plan"),
            bus.contexts,
            lambda: bus.lock("a.py"),
            bus.locks,
            lambda: bus.is_fence_valid("a.py", lock.fencing_token),
        ]
        for ask in asked:
            with pytest.raises(LogDamaged, match="record 2"):
                ask()
        assert [entry.seq for entry in bus.list("plan").entries] == [1, 3]


@contextlib.asynccontextmanager
async def on(log: MemoryLog) -> AsyncIterator[Bus]:
    bus = Bus(log)
    try:
        yield bus
    finally:
        await bus.stop("the test is over")


# --- Contexts --------------------------------------------------------------------------------------------------------


async def test_contexts_come_in_byte_order_page_by_page(bus: Bus) -> None:
    names = ["b", "a/b", "a", "é", "a:b", "Z", "a/b/c"]
    await fill(bus, *names)
    for prefix in ("", "a", "a/", "nothing"):
        wanted = sorted((name for name in names if name.startswith(prefix)), key=str.encode)
        for limit in (1, 2, 7):
            found: list[str] = []
            page: str | None = None
            while True:
                some = bus.contexts(limit=limit, page=page, prefix=prefix)
                found += [context.id for context in some.contexts]
                if some.next_page is None:
                    break
                page = some.next_page
            assert found == wanted


@pytest.mark.parametrize("text", ["\0", "\ud800", "x" * 600])
async def test_a_page_or_prefix_that_no_context_can_have_is_refused(bus: Bus, text: str) -> None:
    with pytest.raises((InvalidRequest, TooLarge)):
        bus.contexts(page=text)
    with pytest.raises((InvalidRequest, TooLarge)):
        bus.contexts(prefix=text)


async def test_a_context_nobody_wrote_to_is_not_found(bus: Bus) -> None:
    with pytest.raises(ContextNotFound):
        bus.context("plan")


async def test_a_change_of_a_context_is_seen_by_its_subscribers(bus: Bus) -> None:
    async with bus.subscribe("plan") as subscription:
        context = await bus.update_context("plan", agent_id="ann", add_agents=["ann", "bob"], meta={"goal": "ship"})
        kinds = [(await anext(subscription)).kind for _ in range(2)]
    assert kinds == ["context.created", "context.joined"]
    assert (context.agent_ids, context.meta, context.version) == (["ann", "bob"], {"goal": "ship"}, 2)
    assert bus.context("plan") == context


async def test_only_what_exists_can_be_pinned(bus: Bus) -> None:
    (unit,) = await fill(bus, "plan")
    assert (await bus.update_context("plan", pin_units=[unit.id])).pinned_units == [unit.id]
    for missing in (unit_id(9), "nonsense"):
        with pytest.raises(UnitNotFound) as refused:
            await bus.update_context("plan", pin_units=[unit.id, missing])
        assert refused.value.field == "pin_units[1]"


# --- Relationships ---------------------------------------------------------------------------------------------------


async def related_to(bus: Bus, *targets: WorkUnit, type: RelationshipType = RelationshipType.CAUSES) -> WorkUnit:
    return await bus.append("plan", agent_id="ann", relationships=[Relationship(one.id, type) for one in targets])


def reached(bus: Bus, unit: WorkUnit, **asked: Any) -> list[tuple[int, str, int]]:
    page = bus.related(unit.id, **asked)
    return [(one.entry.seq, one.direction, one.depth) for one in page.related]


async def test_relationships_are_followed_out_in_and_both_nearest_first(bus: Bus) -> None:
    (root,) = await fill(bus, "plan")
    left, right = await related_to(bus, root), await related_to(bus, root)
    top = await related_to(bus, left, right)
    assert reached(bus, top, direction="out", depth=2) == [(2, "out", 1), (3, "out", 1), (1, "out", 2)]
    assert reached(bus, root, direction="in", depth=3) == [(2, "in", 1), (3, "in", 1), (4, "in", 2)]
    assert reached(bus, left) == [(1, "out", 1), (4, "in", 1)]
    assert reached(bus, left, depth=2) == [(1, "out", 1), (4, "in", 1), (3, "in", 2)]


async def test_relationships_of_other_types_are_not_followed(bus: Bus) -> None:
    (root,) = await fill(bus, "plan")
    await related_to(bus, root, type=RelationshipType.REFERENCES)
    cause = await related_to(bus, root)
    assert reached(bus, root, types=[RelationshipType.CAUSES]) == [(cause.seq, "in", 1)]


async def test_a_cycle_ends(bus: Bus) -> None:
    first = await bus.append(
        "plan", agent_id="ann", id=unit_id(1), relationships=[Relationship(unit_id(2), RelationshipType.CAUSES)]
    )
    await bus.append(
        "plan", agent_id="ann", id=unit_id(2), relationships=[Relationship(unit_id(1), RelationshipType.CAUSES)]
    )
    assert reached(bus, first, depth=RELATED_DEPTH_MAX) == [(2, "out", 1)]


async def test_a_target_that_is_not_in_the_log_is_named(bus: Bus) -> None:
    unit = await bus.append(
        "plan", agent_id="ann", relationships=[Relationship("elsewhere", RelationshipType.REFERENCES)]
    )
    page = bus.related(unit.id)
    assert (page.related, page.missing, page.truncated, page.applied_seq) == ((), ("elsewhere",), False, 1)


@pytest.mark.parametrize("bound", ["RELATED_UNITS_MAX", "RELATED_EDGES_MAX"])
async def test_a_search_that_reaches_its_bound_says_so(bus: Bus, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    (root,) = await fill(bus, "plan")
    for _ in range(3):
        await related_to(bus, root)
    for most, found in ((2, 2), (3, 3)):
        monkeypatch.setattr(f"engram_bus.reading.{bound}", most)
        page = bus.related(root.id)
        assert (len(page.related), page.truncated) == (found, found < 3)


async def test_many_of_another_type_do_not_hide_behind_a_bound_in_silence(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engram_bus.reading.RELATED_EDGES_MAX", 3)
    (root,) = await fill(bus, "plan")
    for _ in range(4):
        await related_to(bus, root, type=RelationshipType.REFERENCES)
    await related_to(bus, root)
    page = bus.related(root.id, types=[RelationshipType.CAUSES])
    assert (page.related, page.truncated) == ((), True)


@pytest.mark.parametrize("asked", [{"direction": "up"}, {"depth": 0}, {"depth": RELATED_DEPTH_MAX + 1}])
async def test_a_search_that_is_not_one_is_refused(bus: Bus, asked: dict[str, Any]) -> None:
    (unit,) = await fill(bus, "plan")
    with pytest.raises(InvalidRequest) as refused:
        bus.related(unit.id, **asked)
    assert refused.value.field == next(iter(asked))


async def test_what_an_unknown_unit_relates_to_is_not_found(bus: Bus) -> None:
    with pytest.raises(UnitNotFound):
        bus.related(unit_id(1))


# --- Search ----------------------------------------------------------------------------------------------------------


async def test_what_was_appended_is_found_by_its_words_and_by_its_meaning(bus: Bus) -> None:
    said = await bus.append("plan", "I take the parser", agent_id="ann")
    await bus.append("plan", "the parser is mine", agent_id="bob")
    found = await bus.search("parser", context_id="plan", agent_id=["ann", "eve"], limit=5)
    assert [(hit.unit_id, hit.seq) for hit in found.results] == [(said.id, 1)]
    assert (found.total, found.applied_seq, found.next_page) == (1, 2, None)
    assert bus.get(found.results[0].unit_id).unit == said
    meant = await bus.append("cars", "the automobile broke down", agent_id="ann")
    assert (await bus.search("a car with engine trouble", mode="semantic")).results[0].unit_id == meant.id


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"mode": "psychic"}, "mode"),
        ({"type": UnitType.ERROR, "fusion": "cold"}, "fusion"),
        ({"after_ts": "yesterday"}, "after_ts"),
        ({"page": "2"}, "page"),
        ({"meta": {"run": 7}}, "meta"),
        ({"context_id": "\ud800"}, None),
        ({"context_id": object()}, None),
    ],
)
async def test_a_search_that_cannot_be_is_refused_by_the_field(asked: dict[str, Any], field: str | None) -> None:
    async with Bus.open(None) as bus:
        with pytest.raises(InvalidRequest) as refused:
            await bus.search("parser", **asked)
        assert refused.value.field == field


async def test_everything_a_search_has_can_be_said() -> None:
    """Each of these lets one unit of two through, so that what is not heeded shows."""
    async with Bus.open(None) as bus:
        root = await bus.append("a", "the parser, once", agent_id="ann", type="ERROR", kind="x.y", meta={"run": "7"})
        edge = Relationship(root.id, RelationshipType.CAUSES)
        last = await bus.append("b", "the parser, again", agent_id="bob", resources=["src/a"], relationships=[edge])
        for only, filters in [
            (root, {"type": [UnitType.ERROR, 3]}),
            (root, {"kind": "x.*"}),
            (root, {"meta": {"run": "7"}}),
            (root, {"before_seq": 2}),
            (root, {"before_ts": last.ts}),
            (root, {"as_of_seq": 1}),
            (last, {"resource": ("src/*", "lib")}),
            (last, {"related_to": root.id}),
            (last, {"after_seq": 1}),
            (last, {"after_ts": root.ts}),
        ]:
            found = await bus.search("parser", facets=True, **filters)  # type: ignore[arg-type]
            assert [hit.seq for hit in found.results] == [only.seq], filters
            assert isinstance(found.facets, dict)
            assert found.facets["agent"] == {only.agent_id: 1}, filters


async def test_units_of_a_page_of_search_are_read_in_turns_of_the_loop() -> None:
    async with Bus.open(None) as bus:
        for _ in range(10):
            await bus.append("plan", f"parser {'x' * 1_000_000}", agent_id="ann")
        reading = asyncio.ensure_future(bus.search("parser"))
        turns = 0
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)
        assert len(reading.result().results) == 10
        assert turns >= 10, "a log in memory is searched in one"


async def test_a_search_whose_units_are_read_ends_with_the_bus() -> None:
    async with Bus.open(None) as bus:
        for _ in range(10):
            await bus.append("plan", f"parser {'x' * 1_000_000}", agent_id="ann")
        reading = asyncio.ensure_future(bus.search("parser"))
        await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        await reading


async def test_a_search_goes_on_page_by_page() -> None:
    async with Bus.open(None) as bus:
        await fill(bus, *["plan"] * 5)
        first = await bus.search("hi", limit=3, explain=True, fusion="rrf")
        rest = await bus.search("hi", limit=3, page=first.next_page)
        assert sorted(hit.seq for page in (first, rest) for hit in page.results) == [1, 2, 3, 4, 5]
        assert rest.next_page is None


async def test_a_bus_that_is_closed_searches_nothing(tmp_path: Path) -> None:
    async with Bus.open(tmp_path) as bus:
        pass
    with pytest.raises(ShuttingDown):
        await bus.search("hi")
    assert bus.searcher is None


# --- Locks -----------------------------------------------------------------------------------------------------------


async def in_line(bus: Bus, count: int = 1) -> None:
    while bus.writer.state.locks.waiting_count < count:
        await asyncio.sleep(0)


def said_of_locks(bus: Bus) -> list[str]:
    return [unit.kind or "" for unit in bus.list("locks").work_units]


async def test_a_lock_is_held_extended_refreshed_and_released(bus: Bus) -> None:
    lock = await bus.acquire_lock("b", "a/", agent_id="ann", ttl_seconds=60, reason="editing")
    assert (lock.resources, lock.holder_agent, lock.fencing_token) == (("a", "b"), "ann", 1)
    assert (lock.remaining_ms, lock.reason, lock.context_id) == (60_000, "editing", "locks")
    again = await bus.acquire_lock("a", "b", agent_id="ann", ttl_seconds=120)
    assert (again.lock_id, again.fencing_token) == (lock.lock_id, 1)
    assert again.expires_at > lock.expires_at
    assert (await bus.refresh_lock(lock.lock_id, agent_id="ann")).expires_at == again.expires_at
    assert (await bus.refresh_lock(lock.lock_id, agent_id="ann", ttl_seconds=1)).expires_at == again.expires_at
    assert [await bus.release_lock(lock.lock_id, agent_id="ann") for _ in range(2)] == [True, False]
    with pytest.raises(LockLost):
        await bus.refresh_lock(lock.lock_id, agent_id="ann")


async def test_a_lock_shows_who_holds_it_and_whether_its_token_is_valid(bus: Bus) -> None:
    lock = await bus.acquire_lock("repo", agent_id="ann")
    assert bus.lock("repo/a").holders[0].lock_id == lock.lock_id
    assert bus.is_fence_valid("repo/a", lock.fencing_token)
    assert [(name, one.lock_id) for name, one in bus.locks(holder="ann").locks] == [("repo", lock.lock_id)]
    assert await bus.break_lock("repo", agent_id="eve", reason="it hangs") == [lock.lock_id]
    assert not bus.is_fence_valid("repo/a", lock.fencing_token)
    assert bus.locks().locks == ()
    assert bus.lock("repo").holders == ()


async def test_an_append_shows_that_its_lock_is_held(bus: Bus) -> None:
    lock = await bus.acquire_lock("a", agent_id="ann")
    fence = Fence("a", lock.fencing_token)
    await bus.append("plan", agent_id="ann", fence=fence)
    await bus.update_context("plan", fences=["a"])
    await bus.release_lock(lock.lock_id, agent_id="ann")
    with pytest.raises(FenceStale):
        await bus.append("plan", agent_id="ann", fence=fence)
    with pytest.raises(FenceRequired):
        await bus.append("plan", agent_id="ann", resources=["a"])


async def test_who_waits_is_granted_in_turn(bus: Bus) -> None:
    lock = await bus.acquire_lock("a", agent_id="ann")
    waits = []
    for number in range(5):
        waits.append(asyncio.create_task(bus.acquire_lock("a", agent_id=f"bob-{number}", wait_seconds=60)))
        await in_line(bus, number + 1)
    tokens = []
    for number, waiting in enumerate(waits):
        await bus.release_lock(lock.lock_id, agent_id=lock.holder_agent)
        lock = await waiting
        assert lock.holder_agent == f"bob-{number}"
        tokens.append(lock.fencing_token)
    assert tokens == sorted(tokens)


async def test_who_is_cancelled_leaves_the_line(bus: Bus) -> None:
    lock = await bus.acquire_lock("a", agent_id="ann")
    waiting = asyncio.create_task(bus.acquire_lock("a", agent_id="bob", wait_seconds=60))
    await in_line(bus)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await bus.release_lock(lock.lock_id, agent_id="ann")
    assert said_of_locks(bus) == ["lock.granted", "lock.queued", "lock.wait_ended", "lock.released"]


async def test_who_gives_up_before_anything_was_decided_asked_for_nothing(bus: Bus) -> None:
    told: list[Answer | EngramError] = []
    abandon = bus.submit_lock(AcquireLock(resources=("a",), agent_id="ann", ttl_ms=60_000), told.append)
    abandon()
    abandon()
    await turns()
    (outcome,) = told
    assert isinstance(outcome, WaitEnded)
    assert said_of_locks(bus) == []


async def test_who_is_cancelled_in_the_turn_of_its_grant_gives_it_back(bus: Bus) -> None:
    lock = await bus.acquire_lock("a", agent_id="ann")
    waiting = asyncio.create_task(bus.acquire_lock("a", agent_id="bob", wait_seconds=60))
    await in_line(bus)

    def gives_up(released: Answer | EngramError) -> None:
        waiting.cancel()

    bus.submit(ReleaseLock(lock_id=lock.lock_id, agent_id="ann"), gives_up)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    while bus.writer.state.locks.held_count:
        await asyncio.sleep(0)
    assert said_of_locks(bus)[2:] == ["lock.released", "lock.granted", "lock.released"]


async def hold_and_fail(bus: Bus) -> None:
    with bus.asking(AcquireLock(resources=("a",), agent_id="ann", ttl_ms=60_000)) as answered:
        await answered
        raise KeyError


async def test_a_block_that_fails_gives_back_what_was_granted(bus: Bus) -> None:
    with pytest.raises(KeyError):
        await hold_and_fail(bus)
    await turns()
    assert said_of_locks(bus) == ["lock.granted", "lock.released"]


async def test_a_block_that_fails_keeps_what_was_only_extended(bus: Bus) -> None:
    lock = await bus.acquire_lock("a", agent_id="ann")
    with pytest.raises(KeyError):
        await hold_and_fail(bus)
    await turns()
    assert bus.lock("a").holders[0].lock_id == lock.lock_id


async def test_who_waits_hears_that_the_bus_stops(path: Path | None) -> None:
    async with Bus.open(path) as bus:
        await bus.acquire_lock("a", agent_id="ann")
        waiting = asyncio.create_task(bus.acquire_lock("a", agent_id="bob", wait_seconds=60))
        await in_line(bus)
    with pytest.raises(ShuttingDown):
        await waiting


async def test_a_lock_outlives_its_bus_and_a_wait_does_not(tmp_path: Path) -> None:
    async with Bus.open(tmp_path) as bus:
        lock = await bus.acquire_lock("a", agent_id="ann", ttl_seconds=3_600)
        waiting = asyncio.create_task(bus.acquire_lock("a", agent_id="bob", wait_seconds=60))
        await in_line(bus)
    with pytest.raises(ShuttingDown):
        await waiting
    async with Bus.open(tmp_path) as bus:
        await bus.append("plan", agent_id="ann")
        (held,) = bus.lock("a").holders
        assert (held.lock_id, held.fencing_token, held.expires_at) == (lock.lock_id, 1, lock.expires_at)
        assert (bus.lock("a").queue_length, said_of_locks(bus)[-1]) == (0, "lock.wait_ended")


async def test_a_session_that_comes_back_is_kept_when_the_grace_of_the_last_one_ends() -> None:
    bus = Bus(MemoryLog(), session_grace_seconds=0.01)
    first, second = bus.new_session(), bus.new_session()
    asked = AcquireLock(resources=("a",), agent_id="ann", ttl_ms=3_600_000, session=first)
    await bus.execute(asked)
    bus.end_session(first)
    await bus.execute(msgspec.structs.replace(asked, session=second))
    bus.end_session(bus.new_session())  # Its grace ends after that of the first.
    while bus._session_ends:
        await asyncio.sleep(0)
    await bus.append("plan", agent_id="ann")
    assert bus.lock("a").holders[0].session == second
    bus.end_session(second)
    assert (await bus.acquire_lock("a", agent_id="bob", wait_seconds=60)).holder_agent == "bob"
    await bus.stop("the test is over")


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e308, -1e308, -1, 86_401])
async def test_a_time_that_is_none_is_refused(bus: Bus, seconds: float) -> None:
    lock = await bus.acquire_lock("b", agent_id="ann")
    for asking, field in (
        (bus.acquire_lock("a", agent_id="ann", ttl_seconds=seconds), "ttl_seconds"),
        (bus.acquire_lock("a", agent_id="ann", wait_seconds=seconds), "wait_seconds"),
        (bus.refresh_lock(lock.lock_id, agent_id="ann", ttl_seconds=seconds), "ttl_seconds"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            await asking
        assert refused.value.field == field


# --- Subscribe (more of it in tests/router/test_local.py) -----------------------------------------------------------


async def test_a_subscription_wants_what_its_filter_says(bus: Bus) -> None:
    async with bus.subscribe(
        "plan", "b", types=["ERROR"], kinds=["build.*"], exclude_agents=["bob"], resources=["src/*"], meta={"run": "1"}
    ) as subscription:
        fields: dict[str, Any] = {"type": "ERROR", "kind": "build.x", "resources": ["src/a"], "meta": {"run": "1"}}
        for context_id, agent_id, changed in (
            ("plan", "bob", {}),
            ("c", "ann", {}),
            ("plan", "ann", {"type": "MESSAGE"}),
            ("plan", "ann", {"meta": {}}),
            ("b", "ann", {}),
        ):
            await bus.append(context_id, agent_id=agent_id, **(fields | changed))
        assert (await anext(subscription)).seq == 5


async def test_a_bad_cursor_is_refused_at_once(bus: Bus) -> None:
    with pytest.raises(CursorInvalid):
        bus.subscribe("plan", after="nonsense")


# --- Open and close --------------------------------------------------------------------------------------------------


async def test_two_buses_live_side_by_side(tmp_path: Path) -> None:
    async with Bus.open(tmp_path / "one") as one, Bus.open(tmp_path / "two") as two:
        await asyncio.gather(fill(one, "plan", "plan"), fill(two, "plan"))
        assert (one.head, two.head) == (2, 1)
        assert one.epoch != two.epoch
        with pytest.raises(EngramError):
            two.subscribe(after=one.cursor)


async def test_one_path_is_opened_once_at_a_time(tmp_path: Path) -> None:
    async with Bus.open(tmp_path) as bus:
        with pytest.raises(DataDirectoryError, match="in use"):
            Bus.start(tmp_path)
        await fill(bus, "plan")
    async with Bus.open(tmp_path) as bus:
        assert bus.head == 1


async def test_a_damaged_record_at_start_is_an_error_of_the_directory_which_is_free_again(tmp_path: Path) -> None:
    async with Bus.open(tmp_path) as bus:
        await fill(bus, *["plan"] * 3)
        bus.writer._snapshot_seq = bus.head  # So that the next start reads the records again.
    with tampering(tmp_path, "log") as txn:
        key = (2).to_bytes(8, "big")
        raw = bytearray(txn.get(key) or b"")
        raw[-1] ^= 1
        txn.put(key, bytes(raw))
    for _ in range(2):
        with pytest.raises(DataDirectoryError, match=r"record 2 .*engram verify"):
            Bus.start(tmp_path)


def test_without_a_loop_nothing_is_opened_and_nothing_stays_locked(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        Bus.start(tmp_path)

    async def open_and_close() -> None:
        async with Bus.open(tmp_path):
            pass

    asyncio.run(open_and_close())


async def test_what_was_submitted_before_the_end_is_recorded_and_answered(path: Path | None) -> None:
    async with Bus.open(path) as bus:
        appending = [asyncio.create_task(bus.append("plan", str(number), agent_id="ann")) for number in range(100)]
        await asyncio.sleep(0)
    units = await asyncio.gather(*appending)
    assert [unit.seq for unit in units] == list(range(1, 101))


async def test_a_subscriber_gets_what_was_submitted_before_the_end(path: Path | None) -> None:
    async with Bus.open(path) as bus:
        subscription = bus.subscribe("plan")
        await turns()
        appending = asyncio.create_task(bus.append("plan", "last words", agent_id="ann"))
        await asyncio.sleep(0)
    assert (await anext(subscription)).payload == b"last words"
    with pytest.raises(ShuttingDown):
        await anext(subscription)
    await appending


async def test_who_waits_for_a_seq_hears_that_the_bus_stops(path: Path | None) -> None:
    async with Bus.open(path) as bus:
        waiting = asyncio.create_task(bus.wait_for(1, timeout_ms=60_000))
        await turns()
    with pytest.raises(ShuttingDown):
        await waiting


async def test_after_goodbye_what_is_there_can_be_read_and_nothing_more_comes(bus: Bus) -> None:
    subscription = bus.subscribe("plan")
    waiting = asyncio.create_task(bus.wait_for(2, timeout_ms=60_000))
    (unit,) = await fill(bus, "plan")
    bus.goaway("a drain")
    assert bus.get(unit.id).unit == unit
    assert bus.list("plan").work_units == [unit]
    assert await anext(subscription) == unit
    with pytest.raises(ShuttingDown):
        await anext(subscription)
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await bus.wait_for(2)
    with pytest.raises(ShuttingDown):
        await bus.append("plan", agent_id="ann")


async def test_a_closed_bus_says_so_to_every_verb(path: Path | None) -> None:
    async with Bus.open(path) as bus:
        (unit,) = await fill(bus, "plan")
    for ask in (
        lambda: bus.get(unit.id),
        lambda: bus.list("plan"),
        lambda: bus.related(unit.id),
        lambda: bus.context("plan"),
        bus.contexts,
        lambda: bus.subscribe("plan"),
        lambda: bus.seq_of_cursor("0"),
        lambda: bus.lock("a"),
        bus.locks,
        lambda: bus.is_fence_valid("a", 1),
    ):
        with pytest.raises(ShuttingDown):
            ask()
    for say in (
        bus.append("plan", agent_id="ann"),
        bus.append_bulk([draft()], atomic=True),
        bus.update_context("plan"),
        bus.wait_for(1),
        bus.acquire_lock("a", agent_id="ann", wait_seconds=60),
        bus.refresh_lock(unit_id(1), agent_id="ann"),
        bus.release_lock(unit_id(1), agent_id="ann"),
        bus.break_lock("a", agent_id="ann", reason="x"),
    ):
        with pytest.raises(ShuttingDown):
            await say
    (outcome,) = await bus.append_bulk([draft()])
    assert isinstance(outcome, ShuttingDown)


async def test_a_bus_is_stopped_once(path: Path | None) -> None:
    async with Bus.open(path) as bus:
        await bus.stop("early")
        await bus.stop("again")


async def test_an_error_inside_closes_the_bus_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Bus.open(tmp_path):
            raise ZeroDivisionError
    async with Bus.open(tmp_path):
        pass


async def test_a_stop_that_fails_lets_the_directory_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus.start(tmp_path)
    monkeypatch.setattr(bus.fanout, "goaway", lambda reason: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await bus.stop("now")
    async with Bus.open(tmp_path):
        pass


async def test_a_cancelled_program_closes_its_bus(tmp_path: Path) -> None:
    async def program(opened: asyncio.Event) -> None:
        async with Bus.open(tmp_path) as bus:
            opened.set()
            async for _ in bus.subscribe("plan"):
                pass

    opened = asyncio.Event()
    running = asyncio.create_task(program(opened))
    await opened.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with Bus.open(tmp_path):
        pass


async def test_pulses_go_on_after_one_that_failed(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus.fanout, "pulse", lambda: 1 / 0)
    before = bus._next_pulse
    with pytest.raises(ZeroDivisionError):
        bus._pulse()
    assert bus._next_pulse is not before
    before.cancel()
