"""Every committed unit to every feed that wants it: the live ones at once, the others a page at a time."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from engram_bus.codec import Entry
from engram_bus.errors import EngramError, InternalError, LogDamaged, ShuttingDown, SlowConsumer
from engram_bus.limits import (
    CATCH_UP_BYTES,
    GOAWAY_RETRY_MS_MAX,
    GOAWAY_RETRY_MS_MIN,
    RING_BYTES_MAX,
    RING_UNITS_MAX,
)
from engram_bus.log.contract import Log, cursor_text
from engram_bus.router.contract import Framing, Sink
from engram_bus.router.filters import Filter, Predicate, predicate
from engram_bus.router.lanes import Batch, Lanes
from engram_bus.router.pages import Pages
from engram_bus.router.ring import Ring
from engram_bus.router.subscription import Event, State, Subscription

log = logging.getLogger(__name__)

_FEEDS_PER_TURN = 8
"""A crowd that catches up must not hold up who is live: so many feeds, or one page's reading, in a turn of the loop."""


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
        self.epoch = log.epochs[-1].name
        self.delivered_units = 0
        self._ring = Ring(log.head, units_max=ring_units_max, bytes_max=ring_bytes_max)
        self.pages = Pages(log, self._ring, self.epoch)
        self._heartbeat_seconds = heartbeat_seconds
        self._stall_seconds = stall_seconds
        self._feeds: dict[Feed, None] = {}
        self._lanes = Lanes()
        self._offered = log.head
        self._catching_up: deque[Feed] = deque()
        self._turn_due = False

    def __len__(self) -> int:
        return len(self._feeds)

    @property
    def head(self) -> int:
        """The newest seq that was offered."""
        return self._ring.head

    @property
    def furthest_behind(self) -> int:
        """Units between the head and the feed that is furthest behind."""
        return max((self.head - feed.cursor for feed in self._feeds), default=0)

    def subscribe(
        self, wanted: Filter, framing: Framing[Any], sink: Sink[Any], after: int, *, patient: bool = False
    ) -> "Feed":
        """Begin a feed after `after` (checked by `cursor_seq`); its first frame is written before this returns.

        A `patient` feed waits for its sink for ever: one in this process costs nothing but its own memory.
        """
        feed = Feed(self, wanted, framing, sink, after, patient=patient)
        sink.write(framing.subscribed(feed.cursor_text, self.head))
        self._feeds[feed] = None
        self.catch_up(feed)
        return feed

    def offer(self, entries: Sequence[Entry]) -> None:
        """Hand a committed batch to every live feed that wants some of it: one write for each, and no other work."""
        self._ring.extend(entries)
        self.delivered_units += self._lanes.offer(Batch(entries, self.epoch))
        self._offered = self.head

    def stands_at(self, feed: "Feed") -> int:
        """Up to where a live feed was handed everything wanted: the head, but for the batch that is on its way out."""
        return max(self._offered, self._lanes.upto(feed))

    def catch_up(self, feed: "Feed") -> None:
        """Serve this feed from the ring or the log, a page at a time, fairly among those who are behind."""
        self._catching_up.append(feed)
        self._schedule()

    def _schedule(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        enough_bytes = self.pages.cost_bytes + CATCH_UP_BYTES
        for _ in range(min(_FEEDS_PER_TURN, len(self._catching_up))):
            feed = self._catching_up.popleft()
            try:
                feed.take_page()
            except Exception as exc:
                feed.fail(feed.cursor, exc)
            if feed.state is State.CATCHING_UP:
                self._catching_up.append(feed)
            if self.pages.cost_bytes >= enough_bytes:
                break
        if self._catching_up:
            self._schedule()
        else:
            self.pages.forget()

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
        cursor = cursor_text(self.epoch, self.head)
        for lane in self._lanes:
            lane.pulse(self._heartbeat_seconds, cursor, self.head)

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

    __slots__ = ("_fanout", "_patient", "_quiet_pulses", "_subscription", "_wants", "framing", "sink", "wanted")

    def __init__(
        self, fanout: Fanout, wanted: Filter, framing: Framing[Any], sink: Sink[Any], after: int, *, patient: bool
    ) -> None:
        self._fanout = fanout
        self._patient = patient
        self._quiet_pulses = 0
        self._subscription = Subscription(after)
        self._wants: Predicate | None = None
        self.wanted = wanted
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

    def take_page(self) -> None:
        """Hand over the next page, if the socket takes it; at the head, go live."""
        if self.state is not State.CATCHING_UP:
            return
        if not self.sink.writable:
            self._subscription.move(Event.SOCKET_FULL)
            self._quiet_pulses = 0
            return
        if self.cursor < self._fanout.head:
            self._read_on()
        self._go_live_at_head()

    def _go_live_at_head(self) -> None:
        # Not a turn later: under load the head would have moved on by then, and so for ever.
        if self.state is State.CATCHING_UP and self.cursor == self._fanout.head and self.sink.writable:
            self._wants = None
            self._subscription.move(Event.REACHED_HEAD)
            self._fanout.go_live(self)

    def _read_on(self) -> None:
        if self._wants is None:
            self._wants = predicate(self.wanted)
        try:
            frame, units, upto = self._fanout.pages.after(self.cursor, self.wanted, self._wants, self.framing)
            if units:
                self._quiet_pulses = 0
                self._fanout.delivered_units += units
                self.sink.write(frame)
            self._subscription.advance(upto)
        except LogDamaged as exc:
            self._skip(exc)
        except EngramError as exc:
            self.close(exc)

    def _skip(self, damage: LogDamaged) -> None:
        """A record that cannot be read is named, not hidden, and the stream goes on after it."""
        seq = damage.details.get("seq")
        if not isinstance(seq, int):
            self.close(damage)
            return
        self._quiet_pulses = 0
        self._subscription.advance(seq)
        self.sink.write(self.framing.gap(seq, seq, "damaged", self.cursor_text))

    # --- Live: a lane hands it its frames ----------------------------------------------------------------------------

    def fall_behind(self, seq: int) -> None:
        """The socket is full: everything wanted up to `seq` was handed to it, nothing after."""
        if self.state is State.LIVE:
            self._fanout.leave_lane(self)
            self._subscription.move(Event.SOCKET_FULL)
            self._subscription.advance(seq)
            self._quiet_pulses = 0

    def fail(self, seq: int, mistake: Exception) -> None:
        """Our mistake: better an end with a place to resume than units missed in silence."""
        log.error("a subscription failed at %d", seq, exc_info=mistake)
        self.fall_behind(seq)
        self.close(InternalError(f"the subscription failed after {self.cursor_text}"))

    # --- What the socket says ----------------------------------------------------------------------------------------

    def full(self) -> None:
        """The socket takes nothing more, or not for long."""
        if self.state is State.LIVE:
            self.fall_behind(self._fanout.stands_at(self))

    def drained(self) -> None:
        """The socket takes more again."""
        if self.state is State.WAITING:
            self._subscription.move(Event.SOCKET_DRAINED)
            self._quiet_pulses = 0
            self._fanout.catch_up(self)

    def tick(self, heartbeat_pulses: float, stall_pulses: float) -> None:
        """One second went by. (Who is live hears its heartbeats from its lane.)"""
        self._quiet_pulses += 1
        match self.state:
            case State.LIVE:
                # Full of something else, or of the last frame: its time runs from here.
                if not self.sink.writable:
                    self.fall_behind(self.cursor)
            case State.CATCHING_UP:
                if self._quiet_pulses >= heartbeat_pulses:
                    self._quiet_pulses = 0
                    self.sink.write(self.framing.heartbeat(self.cursor_text, self._fanout.head))
            case State.WAITING:
                if self.sink.writable:
                    self.drained()
                elif self._quiet_pulses >= stall_pulses and not self._patient:
                    waited = f"nothing was taken for {stall_pulses:g} s"
                    self.close(SlowConsumer(f"{waited}: resume after {self.cursor_text}"))
            case State.CLOSED:
                # Another feed's end closed the socket they share, in this very pulse.
                pass

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
