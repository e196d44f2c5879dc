"""Every feed gets what it wants once and in order, whatever its socket, its neighbours or the log do meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.codec import Entry
from engram_bus.errors import EngramError, InternalError, LogDamaged, ShuttingDown, SlowConsumer, StorageFull
from engram_bus.limits import CATCH_UP_UNITS, FRAME_BYTES_MAX
from engram_bus.log.memory import MemoryLog
from engram_bus.router.fanout import Fanout, Feed
from engram_bus.router.filters import Filter, make_filter, predicate
from engram_bus.router.subscription import State
from tests.damaged import DamagedLog, FailingLog
from tests.router.sinks import Frame, PlainFraming, PlainSink
from tests.values import sealed, unit

PLAN = make_filter(contexts=["plan"])
ALL = make_filter()
PLAIN = PlainFraming()
BIG = b"x" * (FRAME_BYTES_MAX - 1_000)


class World:
    """A log, its fanout and some feeds; `append` commits a batch and tells of it, as the writer does."""

    def __init__(self, log: MemoryLog | None = None, **settings: Any) -> None:
        self.log = log or MemoryLog()
        self.settings: dict[str, Any] = {"heartbeat_seconds": 15, "stall_seconds": 30} | settings
        self.fanout = Fanout(self.log, **self.settings)

    def append(self, *context_ids: str, told: bool = True, **fields: Any) -> list[Entry]:
        first = self.log.head + 1
        units = [unit(seq, context_id=context_id, **fields) for seq, context_id in enumerate(context_ids, start=first)]
        records = sealed(self.log, units)
        self.log.append(records)
        entries = [Entry(record.unit.seq, record.body, record.unit) for record in records]
        if told:
            self.fanout.offer(entries)
        return entries

    def restart(self) -> None:
        """The ring is empty again: what was there is in the log alone."""
        self.fanout = Fanout(self.log, **self.settings)

    def subscribe(
        self, wanted: Filter = PLAN, sink: PlainSink | None = None, *, after: int = 0, framing: Any = PLAIN, **more: Any
    ) -> tuple[Feed, PlainSink]:
        sink = sink or PlainSink()
        feed = self.fanout.subscribe(wanted, framing, sink, after, **more)
        sink.feeds.append(feed)
        return feed, sink

    async def live(self, wanted: Filter = PLAN, sink: PlainSink | None = None, **more: Any) -> tuple[Feed, PlainSink]:
        """A feed that stands at the head, having heard its first frame only."""
        feed, sink = self.subscribe(wanted, sink, after=self.fanout.head, **more)
        await self.settle()
        assert feed.state is State.LIVE
        return feed, sink

    async def settle(self) -> None:
        """Until nobody can be served further."""
        while self.fanout._catching_up:
            await asyncio.sleep(0)

    def pulse(self, times: int) -> None:
        for _ in range(times):
            self.fanout.pulse()


# --- Live ------------------------------------------------------------------------------------------------------------


async def test_the_first_frame_is_the_cursor() -> None:
    world = World()
    world.append("plan", "plan")
    _, sink = world.subscribe(after=1)
    assert sink.heard == [Frame("subscribed", "memory.1", more=2)]


async def test_feeds_of_one_filter_and_framing_are_handed_the_same_frame() -> None:
    world = World()
    (_, ann), (_, bob), (_, other) = await world.live(), await world.live(), await world.live(framing=PlainFraming("b"))
    world.append("plan")
    assert ann.heard[-1] is bob.heard[-1]
    assert ann.heard[-1] == other.heard[-1]
    assert ann.heard[-1] is not other.heard[-1]


async def test_different_filters_that_want_all_of_a_batch_share_its_frame() -> None:
    world = World()
    (_, ann), (_, bob), (_, cid) = [await world.live(make_filter(exclude_agents=[name])) for name in ("x", "y", "ann")]
    world.append("plan", "b")
    assert ann.heard[-1] is bob.heard[-1]
    assert cid.events == ["subscribed"]


async def test_a_batch_is_one_frame_with_only_what_is_wanted_and_leads_to_its_end() -> None:
    world = World()
    _, plan = await world.live()
    _, both = await world.live(make_filter(contexts=["b", "plan"]))
    _, nothing = await world.live(Filter(contexts=frozenset()))
    world.append("plan", "b", "c", "plan", "c")
    assert plan.heard[1:] == [Frame("units", "memory.5", (1, 4))]
    assert both.heard[1:] == [Frame("units", "memory.5", (1, 2, 4))]
    assert nothing.heard[1:] == []


async def test_a_live_cursor_moves_with_the_head_though_nothing_is_wanted() -> None:
    world = World()
    feed, sink = await world.live()
    world.append("b", "b")
    assert (feed.cursor, feed.cursor_text, sink.events) == (2, "memory.2", ["subscribed"])


async def test_a_large_batch_goes_out_in_frames_of_bounded_size_each_with_its_own_cursor() -> None:
    world = World()
    _, sink = await world.live()
    world.append("plan", "plan", "b", "plan", "b", payload=BIG)
    assert [(frame.seqs, frame.cursor) for frame in sink.heard[1:]] == [
        ((1,), "memory.1"),
        ((2,), "memory.2"),
        ((4,), "memory.5"),
    ]


async def test_it_counts_what_it_delivers_and_who_is_behind() -> None:
    world = World()
    feed, _ = await world.live()
    full, sink = await world.live(sink=PlainSink(room=1))
    sink.fill()
    world.append("plan", "plan")
    assert (len(world.fanout), world.fanout.delivered_units, world.fanout.furthest_behind) == (2, 2, 2)
    feed.close()
    full.close()
    assert (len(world.fanout), world.fanout.furthest_behind) == (0, 0)


async def test_a_feed_that_is_over_leaves_nothing_behind() -> None:
    world = World()
    some = make_filter(contexts=["b", "plan"])
    feeds = [(await world.live(wanted))[0] for wanted in (PLAN, PLAN, ALL, some)]
    for feed in feeds:
        feed.close()
        feed.close()
    lanes = world.fanout._lanes
    assert (lanes._by_key, lanes._by_context, lanes._everywhere) == ({}, {}, {})
    world.append("plan")


# --- A socket that is full -------------------------------------------------------------------------------------------


async def test_a_full_socket_is_not_written_and_gets_the_rest_once_it_drained() -> None:
    world = World()
    feed, sink = await world.live(sink=PlainSink(room=1))
    world.append("plan")
    world.append("plan", "b", "plan")
    assert (feed.state, feed.cursor, sink.seqs) == (State.WAITING, 1, [1])
    sink.drain()
    feed.drained()
    await world.settle()
    assert (feed.state, feed.cursor, sink.seqs) == (State.WAITING, 4, [1, 2, 4])
    sink.drain()
    feed.drained()
    await world.settle()
    assert (feed.state, sink.seqs) == (State.LIVE, [1, 2, 4])


async def test_a_socket_that_fills_between_two_frames_of_a_batch_resumes_between_them() -> None:
    world = World()
    feed, sink = await world.live(sink=PlainSink(room=1))
    _, other = await world.live()
    world.append("plan", "plan", "plan", payload=BIG)
    assert (feed.state, feed.cursor_text, sink.cursor) == (State.WAITING, "memory.1", "memory.1")
    assert other.seqs == [1, 2, 3]
    while sink.seqs != [1, 2, 3]:
        sink.drain()
        feed.drained()
        await world.settle()


async def test_draining_says_nothing_to_a_feed_that_does_not_wait() -> None:
    world = World()
    feed, sink = await world.live()
    feed.drained()
    feed.close()
    feed.drained()
    await world.settle()
    assert (feed.state, sink.events) == (State.CLOSED, ["subscribed"])


async def test_feeds_that_share_a_full_socket_wait_together() -> None:
    world = World()
    world.append(*["plan"] * 3)
    sink = PlainSink(room=1)
    feeds = [world.subscribe(sink=sink, framing=PlainFraming(str(number)))[0] for number in range(5)]
    await world.settle()
    assert [feed.state for feed in feeds] == [State.WAITING] * 5
    assert [feed.cursor for feed in feeds] == [3, 0, 0, 0, 0]
    assert sink.seqs == [1, 2, 3]


async def test_nothing_is_written_to_a_live_feed_whose_socket_someone_else_filled() -> None:
    world = World()
    feed, sink = await world.live(sink=PlainSink(room=5))
    sink.fill()
    world.append("plan")
    assert (feed.state, feed.cursor, sink.events) == (State.WAITING, 0, ["subscribed"])


# --- Behind ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True], ids=["from the ring", "from the log"])
@pytest.mark.parametrize("wanted", [PLAN, ALL, make_filter(contexts=["b", "plan"]), make_filter(agents=["bob"])])
async def test_who_is_behind_gets_everything_once_and_then_goes_live(wanted: Filter, restarted: bool) -> None:
    world = World()
    everything = [*world.append(*["plan", "b", "c"] * CATCH_UP_UNITS), *world.append("plan", agent_id="bob")]
    if restarted:
        world.restart()
    feed, sink = world.subscribe(wanted)
    await world.settle()
    everything += world.append("plan", "b", agent_id="bob")
    assert feed.state is State.LIVE
    assert sink.seqs == [entry.seq for entry in everything if predicate(wanted)(entry.unit)]
    assert all(len(frame.seqs) <= CATCH_UP_UNITS for frame in sink.heard)


async def test_what_is_appended_while_it_catches_up_comes_after_what_was_there() -> None:
    world = World()
    world.append(*["plan"] * (3 * CATCH_UP_UNITS))
    world.restart()
    feed, sink = world.subscribe()
    while feed.state is not State.LIVE:
        await asyncio.sleep(0)
        world.append("b", "plan")
    assert sink.seqs == [
        entry.seq for entry in world.log.read(0, units_max=10_000, bytes_max=10**9) if entry.unit.context_id == "plan"
    ]


async def test_a_context_of_which_nothing_is_left_leads_to_the_head_at_once() -> None:
    world = World()
    world.append("plan", *["b"] * (4 * CATCH_UP_UNITS))
    world.restart()
    feed, sink = world.subscribe(after=1)
    await asyncio.sleep(0)
    assert (feed.state, feed.cursor, sink.events) == (State.LIVE, world.log.head, ["subscribed"])
    await world.settle()


async def test_a_crowd_goes_live_under_a_load_that_never_pauses() -> None:
    world = World()
    world.append(*["plan"] * 100)
    crowd = [world.subscribe(after=number)[0] for number in range(100)]
    for _ in range(1_000):
        await asyncio.sleep(0)
        world.append(*["plan"] * 20)
        if {feed.state for feed in crowd} == {State.LIVE}:
            return
    pytest.fail("some never reach the head")


async def test_a_crowd_at_one_cursor_reads_each_page_once() -> None:
    log = CountingLog()
    world = World(log)
    world.append(*["plan"] * (2 * CATCH_UP_UNITS), told=False)
    world.restart()
    sinks = [world.subscribe(ALL)[1] for _ in range(50)]
    await world.settle()
    assert log.reads == 2
    assert all(sink.heard[1] is sinks[0].heard[1] for sink in sinks)
    assert len(world.fanout.pages) == 0


async def test_contexts_read_by_their_index_at_one_cursor_are_not_mixed_up() -> None:
    world = World()
    world.append(*["plan", "b"] * 5)
    world.restart()
    sinks = [world.subscribe(make_filter(contexts=[name]))[1] for name in ("plan", "b")]
    await world.settle()
    assert [sink.seqs for sink in sinks] == [[1, 3, 5, 7, 9], [2, 4, 6, 8, 10]]


async def test_a_crowd_with_a_filter_each_reads_each_page_once() -> None:
    log = CountingLog()
    world = World(log)
    world.append(*["plan"] * (2 * CATCH_UP_UNITS), told=False)
    world.restart()
    sinks = [world.subscribe(make_filter(exclude_agents=[f"agent{number}"]))[1] for number in range(50)]
    await world.settle()
    assert log.reads == 2
    assert all(sink.seqs == sinks[0].seqs for sink in sinks)


async def test_a_crowd_that_resumes_at_many_places_soon_reads_the_same_pages() -> None:
    log = CountingLog()
    world = World(log)
    world.append(*["plan"] * (4 * CATCH_UP_UNITS), told=False)
    world.restart()
    sinks = [world.subscribe(ALL, after=after)[1] for after in range(40)]
    await world.settle()
    assert log.reads == 40 + 3
    assert all(sink.seqs == list(range(after + 1, world.log.head + 1)) for after, sink in enumerate(sinks))


async def test_pages_of_a_few_are_kept_for_a_while_and_no_more() -> None:
    world = World()
    world.append(*["plan"] * 100, told=False)
    world.restart()
    sinks = {after: world.subscribe(ALL, after=after)[1] for after in range(20)}
    while world.fanout._catching_up:
        assert len(world.fanout.pages) <= 4 + 8
        await asyncio.sleep(0)
    assert all(sink.seqs == list(range(after + 1, 101)) for after, sink in sinks.items())


async def test_a_turn_reads_about_one_page_however_many_are_behind() -> None:
    world = World()
    world.append(*["plan"] * 30, payload=BIG)
    sinks = [world.subscribe(after=after)[1] for after in range(20)]
    await asyncio.sleep(0)
    assert sum(len(sink.seqs) for sink in sinks) == 1
    await world.settle()


async def test_a_feed_closed_while_it_is_behind_is_passed_over() -> None:
    world = World()
    world.append("plan")
    feed, sink = world.subscribe()
    feed.close()
    await world.settle()
    assert (feed.state, feed.cursor, sink.events) == (State.CLOSED, 0, ["subscribed"])


# --- The log fails ---------------------------------------------------------------------------------------------------


class CountingLog(MemoryLog):
    reads = 0

    def read(self, after: int, *, units_max: int, bytes_max: int) -> list[Entry]:
        self.reads += 1
        return super().read(after, units_max=units_max, bytes_max=bytes_max)


@pytest.mark.parametrize("wanted", [PLAN, ALL], ids=["by its index", "by the whole log"])
async def test_a_record_that_cannot_be_read_is_named_and_the_stream_goes_on(wanted: Filter) -> None:
    world = World(DamagedLog(3, 4, 6))
    world.append(*["plan"] * 6, told=False)
    world.restart()
    _, sink = world.subscribe(wanted)
    await world.settle()
    world.append("plan")
    assert [(frame.event, frame.cursor) for frame in sink.heard[1:]] == [
        ("units", "memory.2"),
        ("gap", "memory.3"),
        ("gap", "memory.4"),
        ("units", "memory.5"),
        ("gap", "memory.6"),
        ("units", "memory.7"),
    ]
    assert [frame.more for frame in sink.heard if frame.event == "gap"] == [(s, s, "damaged") for s in (3, 4, 6)]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LogDamaged("the index has a gap"), LogDamaged),
        (StorageFull("no room for the index"), StorageFull),
        (RuntimeError("a mistake"), InternalError),
    ],
)
async def test_a_page_that_cannot_be_read_at_all_ends_that_feed_and_no_other(
    error: Exception, told: type[EngramError]
) -> None:
    world = World(FailingLog(error))
    world.append(*["plan"] * 3, told=False)
    world.restart()
    _, live = await world.live()
    feed, sink = world.subscribe(after=1)
    await world.settle()
    world.append("plan")
    assert feed.state is State.CLOSED
    assert sink.ended is not None
    assert isinstance(sink.ended[0], told)
    assert sink.ended[1] == "memory.1"
    assert live.seqs == [4]


# --- Our own mistakes ------------------------------------------------------------------------------------------------


class BrokenFraming(PlainFraming, frozen=True):
    def units(self, entries: Sequence[Entry], epoch: str, seq: int) -> Frame:
        raise RuntimeError("a mistake")


async def test_a_framing_that_fails_ends_its_feeds_before_the_batch_and_nobody_elses() -> None:
    world = World()
    _, broken = await world.live(framing=BrokenFraming())
    _, whole = await world.live()
    world.append("plan", "plan")
    assert broken.ended is not None
    assert isinstance(broken.ended[0], InternalError)
    assert broken.ended[1] == "memory.0"
    assert whole.seqs == [1, 2]


async def test_a_sink_that_fails_ends_its_own_feed_where_it_stood() -> None:
    world = World()
    _, first = await world.live()
    feed, broken = await world.live()
    _, last = await world.live()

    def fail(frame: Frame) -> None:
        raise RuntimeError("a mistake")

    broken.on_write = fail
    world.append("plan")
    assert (feed.state, first.seqs, last.seqs) == (State.CLOSED, [1], [1])
    assert broken.ended is not None
    assert broken.ended[1] == "memory.0"


async def test_a_sink_that_fails_while_it_catches_up_holds_up_nobody() -> None:
    world = World()
    world.append(*["plan"] * 3)
    feed, broken = world.subscribe()
    _, whole = world.subscribe()
    broken.__class__ = BrokenSink
    await world.settle()
    assert (feed.state, whole.seqs) == (State.CLOSED, [1, 2, 3])
    assert broken.ended is not None
    assert broken.ended[1] == "memory.0"


class BrokenSink(PlainSink):
    @property
    def writable(self) -> bool:
        raise RuntimeError("a mistake")


@pytest.mark.parametrize("closes", ["itself", "the next", "the one before"])
async def test_a_feed_may_be_closed_from_within_a_write(closes: str) -> None:
    """One socket, several feeds: what one of them is handed may end them all."""
    world = World()
    feeds = [await world.live() for _ in range(3)]
    closed, _ = feeds[{"itself": 1, "the next": 2, "the one before": 0}[closes]]
    feeds[1][1].on_write = lambda frame: closed.close()
    world.append("plan", "plan", payload=BIG)
    world.append("plan")
    assert closed.state is State.CLOSED
    assert all(sink.seqs == [1, 2, 3] for feed, sink in feeds if feed is not closed)


async def test_a_feed_closed_from_within_a_page_is_over() -> None:
    world = World()
    world.append(*["plan"] * 3)
    feed, sink = world.subscribe(sink=PlainSink())
    sink.on_write = lambda frame: feed.close()
    await world.settle()
    assert (feed.state, sink.events) == (State.CLOSED, ["subscribed", "units"])


# --- Pulses ----------------------------------------------------------------------------------------------------------


async def test_who_hears_nothing_gets_a_heartbeat_with_cursor_and_head() -> None:
    world = World(heartbeat_seconds=3)
    _, sink = await world.live()
    world.append("b", "b")
    world.pulse(2)
    assert sink.events == ["subscribed"]
    world.pulse(1)
    assert sink.heard[-1] == Frame("heartbeat", "memory.2", more=2)


async def test_a_unit_is_as_good_as_a_heartbeat() -> None:
    world = World(heartbeat_seconds=3)
    _, sink = await world.live()
    for _ in range(5):
        world.pulse(2)
        world.append("plan")
    assert "heartbeat" not in sink.events


async def test_a_long_way_behind_and_wanting_nothing_it_still_hears_where_it_stands() -> None:
    world = World(heartbeat_seconds=2)
    world.append(*["b"] * (3 * CATCH_UP_UNITS))
    feed, sink = world.subscribe(make_filter(agents=["nobody"]))
    for _ in range(2):
        await asyncio.sleep(0)
        world.pulse(1)
    assert (feed.state, sink.heard[1].event, sink.heard[1].more) == (State.CATCHING_UP, "heartbeat", world.fanout.head)
    assert sink.heard[1].cursor == f"memory.{feed.cursor}"
    await world.settle()


async def test_a_socket_that_takes_nothing_for_too_long_is_told_where_to_resume() -> None:
    world = World(stall_seconds=3)
    feed, sink = await world.live(sink=PlainSink(room=1))
    world.append("plan")
    world.append("plan")
    world.pulse(2)
    assert feed.state is State.WAITING
    world.pulse(1)
    assert sink.ended is not None
    assert isinstance(sink.ended[0], SlowConsumer)
    assert (sink.ended[1], sink.seqs) == ("memory.1", [1])


async def test_a_frozen_socket_is_found_though_nothing_is_wanted_on_it() -> None:
    world = World(stall_seconds=3, heartbeat_seconds=1)
    feed, sink = await world.live(sink=PlainSink(room=1))
    world.pulse(5)
    assert (feed.state, sink.events) == (State.CLOSED, ["subscribed", "heartbeat"])


async def test_a_heartbeat_is_not_written_to_a_socket_that_another_one_filled() -> None:
    world = World(heartbeat_seconds=1)
    sink = PlainSink(room=1)
    for name in ("one", "other"):
        await world.live(sink=sink, framing=PlainFraming(name))
    world.pulse(1)
    assert sink.events == ["subscribed", "subscribed", "heartbeat"]


async def test_a_patient_feed_is_waited_for() -> None:
    world = World(stall_seconds=3)
    feed, _ = await world.live(sink=PlainSink(room=1), patient=True)
    world.append("plan")
    world.append("plan")
    world.pulse(10)
    assert feed.state is State.WAITING


async def test_a_drain_that_was_not_told_is_found_by_the_next_pulse() -> None:
    world = World()
    feed, sink = await world.live(sink=PlainSink(room=1))
    world.append("plan")
    world.append("plan")
    sink.drain()
    world.pulse(1)
    await world.settle()
    assert (feed.cursor, sink.seqs) == (2, [1, 2])


async def test_a_full_socket_that_was_not_told_is_found_by_the_next_pulse() -> None:
    world = World()
    feed, sink = await world.live(sink=PlainSink(room=1))
    world.append("b")
    sink.waiting = 1
    world.pulse(1)
    world.append("plan")
    assert (feed.state, feed.cursor, sink.seqs) == (State.WAITING, 1, [])


async def test_two_feeds_of_one_socket_stand_each_where_its_own_frames_end() -> None:
    """One fills it in the middle of a batch: the other, of a lane that has its turn later, has none of the batch."""
    world = World()
    sink = PlainSink(room=1)
    feeds = [(await world.live(sink=sink, framing=PlainFraming(name)))[0] for name in ("one", "other")]
    world.append("b")
    world.append("plan")
    assert [(feed.state, feed.cursor) for feed in feeds] == [(State.WAITING, 2), (State.WAITING, 1)]
    for _ in range(2):
        sink.drain()
        for feed in feeds:
            feed.drained()
        await world.settle()
    assert sink.seqs == [2, 2]


async def test_a_stalled_feed_may_take_others_on_its_socket_with_it() -> None:
    world = World(stall_seconds=1)
    sink = PlainSink(room=1)
    feeds = [(await world.live(sink=sink, framing=PlainFraming(str(number))))[0] for number in range(3)]
    world.append("plan")

    def end(error: EngramError, cursor: str) -> None:
        for feed in feeds:
            feed.close()

    sink.end = end  # type: ignore[method-assign]
    world.pulse(3)
    assert len(world.fanout) == 0


async def test_goaway_tells_every_feed_where_to_resume_and_when_before_any_ends() -> None:
    world = World()
    world.append("plan", "plan", "plan")
    _, live = await world.live()
    _, behind = world.subscribe(after=1)
    order: list[str] = []
    for sink in (live, behind):
        sink.on_write = lambda frame: order.append(frame.event)
        sink.end = lambda error, cursor: order.append(error.code)  # type: ignore[method-assign]
    world.fanout.goaway("it is late")
    assert order == ["goaway", "goaway", ShuttingDown.code, ShuttingDown.code]
    assert [sink.cursor for sink in (live, behind)] == ["memory.3", "memory.1"]
    reason, retry_ms = live.heard[-1].more
    assert reason == "it is late"
    assert 100 <= retry_ms <= 2_000
    assert len(world.fanout) == 0
    await world.settle()


# --- All at once -----------------------------------------------------------------------------------------------------

contexts = st.sampled_from(["plan", "b", "c"])
wanted_filters = st.sampled_from(
    [PLAN, ALL, make_filter(contexts=["b", "plan"]), make_filter(agents=["bob"]), make_filter(exclude_agents=["bob"])]
)


@given(st.data())
def test_whatever_happens_each_gets_each_wanted_unit_once_and_in_order(data: st.DataObject) -> None:
    asyncio.run(_anything_happens(data.draw))


async def _anything_happens(draw: Callable[[Any], Any]) -> None:
    world = World(ring_units_max=draw(st.integers(1, 8)), ring_bytes_max=4_000)
    subscribers: list[Subscriber] = []
    for _ in range(draw(st.integers(0, 40))):
        await _something_happens(draw, world, subscribers)
        for subscriber in subscribers:
            subscriber.check(world)
    while any(subscriber.feed.state not in (State.LIVE, State.CLOSED) for subscriber in subscribers):
        for subscriber in subscribers:
            subscriber.sink.drain()
            subscriber.feed.drained()
        await asyncio.sleep(0)
    for subscriber in subscribers:
        subscriber.check(world)


async def _something_happens(draw: Callable[[Any], Any], world: World, subscribers: list["Subscriber"]) -> None:
    match draw(st.sampled_from(["append", "append", "subscribe", "drain", "pulse", "turn", "close"])):
        case "append":
            batch = draw(st.lists(contexts, min_size=1, max_size=6))
            world.append(*batch, agent_id=draw(st.sampled_from(["ann", "bob"])))
        case "subscribe":
            wanted, after = draw(wanted_filters), draw(st.integers(0, world.log.head))
            sink = PlainSink(room=draw(st.integers(1, 4)))
            feed, _ = world.subscribe(wanted, sink, after=after, patient=True)
            subscribers.append(Subscriber(feed, sink, wanted, after))
        case "drain" if subscribers:
            subscriber = draw(st.sampled_from(subscribers))
            subscriber.sink.drain()
            if draw(st.booleans()):
                subscriber.feed.drained()
        case "close" if subscribers:
            draw(st.sampled_from(subscribers)).feed.close()
        case "pulse":
            world.pulse(1)
        case _:
            await asyncio.sleep(0)


class Subscriber(NamedTuple):
    feed: Feed
    sink: PlainSink
    wanted: Filter
    after: int

    def check(self, world: World) -> None:
        """Up to its cursor, all that is wanted was heard, once, in order; after it nothing."""
        wants, upto = predicate(self.wanted), self.feed.cursor
        page = world.log.read(self.after, units_max=max(0, upto - self.after), bytes_max=10**9)
        assert self.sink.seqs == [entry.seq for entry in page if wants(entry.unit)]
        said = [int(frame.cursor.rpartition(".")[2]) for frame in self.sink.heard]
        assert said == sorted(said)
        assert said[-1] <= upto
