"""Every committed unit to every feed that wants it, encoded once, one write per subscriber and batch."""

import asyncio
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from engram_bus.codec import Entry
from engram_bus.errors import EngramError, LogDamaged, ShuttingDown, SlowConsumer
from engram_bus.limits import (
    CATCH_UP_BYTES,
    CATCH_UP_UNITS,
    FRAME_BYTES_MAX,
    GOAWAY_RETRY_MS_MAX,
    GOAWAY_RETRY_MS_MIN,
    RING_BYTES_MAX,
    RING_UNITS_MAX,
)
from engram_bus.log.contract import Log, cursor_text
from engram_bus.router.contract import Framing, Sink
from engram_bus.router.filters import Filter, Predicate, predicate
from engram_bus.router.ring import Ring
from engram_bus.router.subscription import Event, State, Subscription

_PAGES_PER_TURN = 2
"""Pages of catching up in one turn of the loop: a crowd that catches up must not hold up who is live."""

_Feeds = dict["Feed", None]


class Fanout:
    """The live end of the log. Runs in the loop's thread; `offer` is the writer's `tell`.

    `heartbeat_seconds` and `stall_seconds` count calls of `pulse`, which comes once a second.
    """

    def __init__(
        self,
        log: Log,
        *,
        heartbeat_seconds: float,
        stall_seconds: float,
        ring_units_max: int = RING_UNITS_MAX,
        ring_bytes_max: int = RING_BYTES_MAX,
    ) -> None:
        self.log = log
        self.epoch = log.epochs[-1].name
        self.ring = Ring(log.head, units_max=ring_units_max, bytes_max=ring_bytes_max)
        self.delivered_units = 0
        self._heartbeat_seconds = heartbeat_seconds
        self._stall_seconds = stall_seconds
        self._feeds: _Feeds = {}
        self._lanes = _Lanes()
        self._catching_up: deque[Feed] = deque()
        self._turn_due = False

    def __len__(self) -> int:
        return len(self._feeds)

    @property
    def head(self) -> int:
        """The newest seq that was offered."""
        return self.ring.head

    @property
    def furthest_behind(self) -> int:
        """Units between the head and the feed that is furthest behind."""
        return max((self.head - feed.cursor for feed in self._feeds), default=0)

    def subscribe(self, wanted: Filter, framing: Framing[Any], sink: Sink[Any], after: int) -> "Feed":
        """Begin a feed after `after` (checked by `cursor_seq`); its first frame is written before this returns."""
        feed = Feed(self, wanted, framing, sink, after)
        self._feeds[feed] = None
        sink.write(framing.subscribed(feed.cursor_text, self.head))
        self.catch_up(feed)
        return feed

    def offer(self, entries: Sequence[Entry]) -> None:
        """Hand a committed batch to every live feed that wants some of it."""
        self.ring.extend(entries)
        for lane in self._lanes.wanting(entries):
            lane.offer(entries, self)

    def catch_up(self, feed: "Feed") -> None:
        """Serve this feed from the ring or the log, a page at a time, fairly among those who are behind."""
        self._catching_up.append(feed)
        if not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        for _ in range(min(_PAGES_PER_TURN, len(self._catching_up))):
            feed = self._catching_up.popleft()
            if feed.take_page():
                self._catching_up.append(feed)
        if self._catching_up and not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def go_live(self, feed: "Feed") -> None:
        """The feed stands at the head: from now on it shares its lane's frames."""
        self._lanes.join(feed)

    def leave_lane(self, feed: "Feed") -> None:
        """The feed is served by itself, or not at all."""
        self._lanes.leave(feed)

    def forget(self, feed: "Feed") -> None:
        """The feed is over."""
        self._lanes.leave(feed)
        self._feeds.pop(feed, None)

    def pulse(self) -> None:
        """Once a second: a heartbeat to who heard nothing for long, an end to who takes nothing for too long."""
        for feed in list(self._feeds):
            feed.tick(self._heartbeat_seconds, self._stall_seconds)

    def goaway(self, reason: str) -> None:
        """Send everyone off with a cursor and a time to come back, spread so that they do not all come at once."""
        feeds = list(self._feeds)
        for feed in feeds:
            retry_ms = random.randint(GOAWAY_RETRY_MS_MIN, GOAWAY_RETRY_MS_MAX)
            feed.sink.write(feed.framing.goaway(reason, retry_ms, feed.cursor_text))
        # Only now: several feeds may share a socket, and each has a cursor to tell.
        for feed in feeds:
            feed.close(ShuttingDown(f"the bus is stopping: {reason}"))


class Feed:
    """One subscription with its filter, framing and sink: obeys `Subscription`."""

    __slots__ = ("_fanout", "_idle_seconds", "_subscription", "framing", "sink", "wanted", "wants")

    def __init__(self, fanout: Fanout, wanted: Filter, framing: Framing[Any], sink: Sink[Any], after: int) -> None:
        self._fanout = fanout
        self._subscription = Subscription(after)
        self._idle_seconds = 0
        self.wanted = wanted
        self.wants: Predicate = predicate(wanted)
        self.framing = framing
        self.sink = sink

    @property
    def state(self) -> State:
        return self._subscription.state

    @property
    def cursor(self) -> int:
        """Up to where everything wanted was handed to the sink."""
        return self._subscription.cursor(self._fanout.head)

    @property
    def cursor_text(self) -> str:
        return cursor_text(self._fanout.epoch, self.cursor)

    # --- Behind: a page at a time ------------------------------------------------------------------------------------

    def take_page(self) -> bool:
        """Hand over the next page; whether there may be another at once."""
        if self.state is not State.CATCHING_UP:
            return False
        if self.cursor == self._fanout.head:
            self._subscription.move(Event.REACHED_HEAD)
            self._fanout.go_live(self)
            return False
        try:
            entries, upto = self._next_page()
        except LogDamaged as exc:
            return self._skip(exc)
        wanted = [entry for entry in entries if self.wants(entry.unit)]
        if wanted:
            self._hand_over(wanted, upto)
        self._subscription.advance(upto)
        return self._still_writable()

    def _next_page(self) -> tuple[Sequence[Entry], int]:
        """Some entries after the cursor, and the seq up to which nothing else is wanted."""
        head, after, ring = self._fanout.head, self.cursor, self._fanout.ring
        if ring.holds(after):
            entries = ring.read(after, units_max=CATCH_UP_UNITS, bytes_max=CATCH_UP_BYTES)
        elif (context_id := self.wanted.only_context) is not None:
            entries = self._fanout.log.read_context(
                context_id,
                after=after,
                before=head + 1,
                reverse=False,
                units_max=CATCH_UP_UNITS,
                bytes_max=CATCH_UP_BYTES,
            )
            return entries, entries[-1].seq if entries else head
        else:
            entries = self._fanout.log.read(after, units_max=CATCH_UP_UNITS, bytes_max=CATCH_UP_BYTES)
        return entries, entries[-1].seq

    def _skip(self, damage: LogDamaged) -> bool:
        """A record that cannot be read is named, not hidden, and the stream goes on after it."""
        seq = damage.details.get("seq")
        if not isinstance(seq, int):
            self.close(damage)
            return False
        first = self.cursor + 1 if self.wanted.only_context is None else seq
        self._subscription.advance(seq)
        self.sink.write(self.framing.gap(first, seq, "damaged", self.cursor_text))
        return self._still_writable()

    def _still_writable(self) -> bool:
        if self.sink.writable:
            return True
        if self.state is State.CATCHING_UP:
            self._subscription.move(Event.SOCKET_FULL)
        return False

    def _hand_over(self, entries: Sequence[Entry], upto: int) -> None:
        self._idle_seconds = 0
        self._fanout.delivered_units += len(entries)
        self.sink.write(self.framing.units(entries, self._fanout.epoch, upto))

    # --- Live: a lane's shared frame ---------------------------------------------------------------------------------

    def deliver(self, frame: Any, upto: int, units: int) -> bool:
        """Take a frame of the lane; whether this feed can take the next one."""
        self._idle_seconds = 0
        self._fanout.delivered_units += units
        self.sink.write(frame)
        if self.sink.writable:
            return True
        if self.state is State.LIVE:
            self._fanout.leave_lane(self)
            self._subscription.move(Event.SOCKET_FULL)
            self._subscription.advance(upto)
        return False

    # --- What the socket says ----------------------------------------------------------------------------------------

    def drained(self) -> None:
        """The socket takes more again."""
        if self.state is State.WAITING:
            self._subscription.move(Event.SOCKET_DRAINED)
            self._idle_seconds = 0
            self._fanout.catch_up(self)

    def tick(self, heartbeat_seconds: float, stall_seconds: float) -> None:
        """One second went by."""
        self._idle_seconds += 1
        if self.state is State.WAITING:
            if self._idle_seconds >= stall_seconds:
                self.close(SlowConsumer(f"nothing was taken for {stall_seconds:g} s: resume after {self.cursor_text}"))
        elif self._idle_seconds >= heartbeat_seconds:
            self._idle_seconds = 0
            self.sink.write(self.framing.heartbeat(self.cursor_text, self._fanout.head))

    def close(self, error: EngramError | None = None) -> None:
        """End the feed; `error` is told to the other side. Closing again does nothing."""
        if self.state is State.CLOSED:
            return
        cursor = self.cursor_text
        self._subscription.advance(self.cursor)
        self._subscription.move(Event.CLOSED)
        self._fanout.forget(self)
        if error is not None:
            self.sink.end(error, cursor)


class _Lane:
    """The live feeds of one filter and framing: all stand at the head, so one frame serves them all."""

    def __init__(self, feed: Feed) -> None:
        self.wanted = feed.wanted
        self.feeds: _Feeds = {}
        self._wants = feed.wants
        self._framing = feed.framing

    def offer(self, entries: Sequence[Entry], fanout: Fanout) -> None:
        wanted = [entry for entry in entries if self._wants(entry.unit)]
        if not wanted:
            return
        parts = list(_parts(wanted))
        feeds: Sequence[Feed] = list(self.feeds)
        for number, part in enumerate(parts, start=1):
            upto = fanout.head if number == len(parts) else part[-1].seq
            frame = self._framing.units(part, fanout.epoch, upto)
            feeds = [feed for feed in feeds if feed.deliver(frame, upto, len(part))]


class _Lanes:
    """Which lanes may want a unit: by its context, and those that want every context."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[Filter, Framing[Any]], _Lane] = {}
        self._by_context: dict[str, dict[_Lane, None]] = {}
        self._everywhere: dict[_Lane, None] = {}

    def wanting(self, entries: Sequence[Entry]) -> list[_Lane]:
        """Each lane that may want some of these, once."""
        lanes = dict(self._everywhere)
        if self._by_context:
            for context_id in {entry.unit.context_id for entry in entries}:
                lanes.update(self._by_context.get(context_id, {}))
        return list(lanes)

    def join(self, feed: Feed) -> None:
        lane = self._by_key.get((feed.wanted, feed.framing))
        if lane is None:
            lane = self._by_key[feed.wanted, feed.framing] = _Lane(feed)
            for lanes in self._places(lane):
                lanes[lane] = None
        lane.feeds[feed] = None

    def leave(self, feed: Feed) -> None:
        lane = self._by_key.get((feed.wanted, feed.framing))
        if lane is None:
            return
        lane.feeds.pop(feed, None)
        if lane.feeds:
            return
        del self._by_key[feed.wanted, feed.framing]
        for lanes in self._places(lane):
            lanes.pop(lane, None)
        for context_id in lane.wanted.contexts or ():
            if not self._by_context.get(context_id, True):
                del self._by_context[context_id]

    def _places(self, lane: _Lane) -> Iterator[dict[_Lane, None]]:
        if lane.wanted.contexts is None:
            yield self._everywhere
        else:
            for context_id in lane.wanted.contexts:
                yield self._by_context.setdefault(context_id, {})


def _parts(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Entries joined up to the size of a frame; one that is larger goes alone."""
    part: list[Entry] = []
    part_bytes = 0
    for entry in entries:
        if part and part_bytes + len(entry.body) > FRAME_BYTES_MAX:
            yield part
            part, part_bytes = [], 0
        part.append(entry)
        part_bytes += len(entry.body)
    yield part
