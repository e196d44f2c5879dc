"""Many subscribers with sockets that fill, break and come back, producers, restarts: each unit once, in order, to each.

Every run is drawn from one seed, which is its test's name: `pytest -k "seed17"`.
"""

import asyncio
import random
import secrets
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engram_bus import Bus, Draft, UnitType
from engram_bus.errors import EngramError, ShuttingDown, SlowConsumer
from engram_bus.log.memory import MemoryLog
from engram_bus.pb.subscription_pb2 import SubscribeResponse
from engram_bus.router.fanout import Fanout, Feed
from engram_bus.router.filters import Filter, make_filter, predicate
from engram_bus.router.local import LocalSubscription
from engram_bus.router.subscription import State
from engram_bus.subscribers.grpc_stream import Stream
from engram_bus.subscribers.requests import SubscribeRequest
from tests.router.sinks import Frame, PlainFraming, PlainSink

STEPS = 300
STALL_PULSES = 3
AGENTS = ["ann", "bob", "cid"]
CONTEXTS = ["plan", "build", "a/b", "quiet"]
TYPES = [UnitType.MESSAGE, UnitType.TOOL_CALL, UnitType.ERROR]


class World:
    """A bus that restarts on its log, those who subscribe to it, and the dice."""

    def __init__(self, seed: int, path: Path | None) -> None:
        self.draw = random.Random(seed)
        self._path = path
        self._memory = MemoryLog()
        self.appended = 0
        self.clients: list[Client] = []
        self.bus = self._start()

    def _start(self) -> Bus:
        bus = Bus(self._memory) if self._path is None else Bus.start(self._path)
        # Small bounds, so that a few hundred units cross all of them.
        bus.fanout = Fanout(
            bus.log,
            heartbeat_seconds=2,
            stall_seconds=STALL_PULSES,
            ring_units_max=self.draw.randint(1, 40),
            ring_bytes_max=20_000,
        )
        return bus

    async def run(self) -> None:
        """Let things happen, then let everyone read to the end, and look at what they got."""
        happenings: list[tuple[int, Callable[[], Any]]] = [
            (30, self.append),
            (3, self.append_bulk),
            (2, self.repeat),
            (2, self.update_context),
            (6, self.join),
            (25, self.read),
            (6, self.lose),
            (4, self.pulse),
            (20, self.turn),
            (1, self.restart),
        ]
        weights = [weight for weight, _ in happenings]
        for _ in range(STEPS):
            (_, happens) = self.draw.choices(happenings, weights)[0]
            await happens()
        await self.finish()

    async def finish(self) -> None:
        head = self.bus.head
        while not all(client.is_at(head) for client in self.clients):
            for client in self.clients:
                client.read(1_000)
                if client.feed is None:
                    client.connect(self)
            await asyncio.sleep(0)
        for client in self.clients:
            client.check(self)
        await self.bus.stop("the simulation is over")

    # --- What happens ------------------------------------------------------------------------------------------------

    def a_draft(self) -> Draft:
        return Draft(
            context_id=self.draw.choice(CONTEXTS[:3]),
            agent_id=self.draw.choice(AGENTS),
            type=self.draw.choice(TYPES),
            payload=b"x" * self.draw.choice([0, 10, 400]),
        )

    async def append(self) -> None:
        drafts = [self.a_draft() for _ in range(self.draw.choice([1, 1, 1, 5]))]
        await asyncio.gather(
            *(self.bus.append(one.context_id, one.payload, agent_id=one.agent_id, type=one.type) for one in drafts)
        )

    async def append_bulk(self) -> None:
        await self.bus.append_bulk(
            [self.a_draft() for _ in range(self.draw.randint(1, 30))], atomic=self.draw.random() < 0.5
        )

    async def repeat(self) -> None:
        await self.bus.append("plan", "again", agent_id="ann", idempotency_key=f"key{self.draw.randrange(3)}")

    async def update_context(self) -> None:
        await self.bus.update_context(self.draw.choice(CONTEXTS), meta={"at": str(self.draw.random())})

    async def join(self) -> None:
        if len(self.clients) < 12:
            kind = self.draw.choice([Remote, Remote, Called, Called, Local])
            client = kind(self.draw)
            client.connect(self)
            self.clients.append(client)

    async def read(self) -> None:
        for client in self.draw.sample(self.clients, min(3, len(self.clients))):
            client.read(self.draw.choice([1, 2, 100]))
            if client.feed is None:
                client.connect(self)

    async def lose(self) -> None:
        """A connection breaks, with what the client did not read yet."""
        if self.clients:
            client = self.draw.choice(self.clients)
            client.disconnect()
            if self.draw.random() < 0.7:
                client.connect(self)

    async def pulse(self) -> None:
        self.bus.fanout.pulse()

    async def turn(self) -> None:
        for _ in range(self.draw.randint(1, 4)):
            await asyncio.sleep(0)
        for client in self.clients:
            client.check(self)

    async def restart(self) -> None:
        """Stopped or killed: either way what was acknowledged is there, and a cursor stays one."""
        if self.draw.random() < 0.5:
            await self.bus.stop("a restart")
            assert all(client.was_told_of_the_end() for client in self.clients)
        else:
            self.bus._next_pulse.cancel()
            self.bus.log.close()
            if self.bus._directory is not None:
                self.bus._directory.close()
        for client in self.clients:
            client.disconnect()
        self.bus = self._start()


class Client:
    """Someone who wants something, keeps what it got, and comes back with the cursor it saw last."""

    feed: Feed | None = None

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.wanted = self._some_filter()
        self.after: int | None = None
        self.cursor: str | int | None = draw.choice([None, 0, "0"])
        self.got: list[int] = []

    def _some_filter(self) -> Filter:
        some = self.draw.choice
        return make_filter(
            contexts=some([["*"], ["plan"], ["plan", "build"], ["quiet"], ["a/b"]]),
            agents=some([[], [], ["ann"], ["ann", "bob"]]),
            exclude_agents=some([[], [], ["bob"]]),
            types=some([[], [], ["ERROR"], [1, 3]]),
            kinds=some([[], [], [], ["context.*"]]),
        )

    def connect(self, world: World) -> None:
        raise AssertionError("each way to be a subscriber says how")

    def disconnect(self) -> None:
        raise AssertionError("each way to be a subscriber says how")

    def read(self, frames: int) -> None:
        raise AssertionError("each way to be a subscriber says how")

    def was_told_of_the_end(self) -> bool:
        raise AssertionError("each way to be a subscriber says how")

    @property
    def place(self) -> int:
        """Where it would resume."""
        return int(str(self.cursor).rpartition(".")[2])

    def is_at(self, head: int) -> bool:
        return self.feed is not None and self.feed.state is State.LIVE and self.place == head

    def check(self, world: World) -> None:
        """All that is wanted between where it began and where it stands, once, in order."""
        assert self.after is not None
        wants = predicate(self.wanted)
        page = world.bus.log.read(self.after, units_max=100_000, bytes_max=10**9)
        assert self.got == [entry.seq for entry in page if entry.seq <= self.place and wants(entry.unit)]


class Remote(Client):
    """Over a socket with room for few frames. What it did not read when the socket breaks is lost."""

    def connect(self, world: World) -> None:
        after = world.bus.seq_of_cursor(self.cursor)
        self._unread: list[Frame] = []
        self.sink = PlainSink(room=self.draw.randint(1, 4))
        self.sink.on_write = self._unread.append
        self.feed = world.bus.feed(self.wanted, PlainFraming(self.draw.choice("ab")), self.sink, after)
        self.sink.feeds.append(self.feed)
        first = self._unread.pop(0)
        assert (first.event, first.cursor) == ("subscribed", f"{world.bus.epoch}.{after}")
        self.cursor = first.cursor
        if self.after is None:
            self.after = after

    def disconnect(self) -> None:
        if self.feed is not None:
            self.feed.close()
        self.feed = None

    def read(self, frames: int) -> None:
        if self.feed is None:
            return
        for frame in self._unread[:frames]:
            assert int(frame.cursor.rpartition(".")[2]) >= self.place
            self.got += frame.seqs
            self.cursor = frame.cursor
        del self._unread[:frames]
        self.sink.waiting = len(self._unread)
        if self.sink.writable and self.draw.random() < 0.8:
            self.feed.drained()
        if self.sink.ended is not None and not self._unread:
            self._ended(*self.sink.ended)

    def _ended(self, error: EngramError, cursor: str) -> None:
        assert isinstance(error, SlowConsumer)
        # It may lie further on: what followed was not wanted.
        place = self.place
        self.cursor = cursor
        assert self.place >= place
        self.feed = None

    def was_told_of_the_end(self) -> bool:
        if self.feed is None or self.feed.state is not State.CLOSED:
            return self.feed is None
        assert self.sink.ended is not None
        return isinstance(self.sink.ended[0], SlowConsumer) or (
            isinstance(self.sink.ended[0], ShuttingDown) and self.sink.events[-1] == "goaway"
        )

    def is_at(self, head: int) -> bool:
        # The cursor of a narrow filter follows with the next heartbeat only.
        return self.feed is not None and self.feed.state is State.LIVE and not self._unread


class Called(Client):
    """Over a call of gRPC whose flow control lets few messages through ahead of the reader. What it did not read when
    the call breaks is lost."""

    stream: Stream
    _serving: asyncio.Task[None] | None = None

    def connect(self, world: World) -> None:
        after = world.bus.seq_of_cursor(self.cursor)
        self._unread: deque[SubscribeResponse] = deque()
        self._room = self.draw.randint(1, 4)
        self._has_room = asyncio.Event()
        self.stream = Stream(world.bus, SubscribeRequest(wanted=self.wanted), after)
        self.feed = self.stream._feed
        self._serving = asyncio.create_task(self.stream.run(self._take))
        self._is_new = True
        self.cursor = f"{world.bus.epoch}.{after}"
        if self.after is None:
            self.after = after

    async def _take(self, message: bytes) -> None:
        self._unread.append(SubscribeResponse.FromString(message))
        while len(self._unread) > self._room:
            self._has_room.clear()
            await self._has_room.wait()

    def disconnect(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            self._serving.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())
        if self.feed is not None:
            self.feed.close()
        self._serving = self.feed = None

    def read(self, frames: int) -> None:
        for _ in range(min(frames, len(self._unread)) if self.feed is not None else 0):
            message = self._unread.popleft()
            if self._is_new:
                assert (message.WhichOneof("event"), message.cursor) == ("subscribed", self.cursor)
                self._is_new = False
            assert int(message.cursor.rpartition(".")[2]) >= self.place
            self.got += [unit.seq for unit in message.work_units]
            self.cursor = message.cursor
        self._has_room.set()
        if self._serving is not None and self._serving.done() and not self._unread:
            self._ended()

    def _ended(self) -> None:
        assert self._serving is not None
        ended = self._serving.exception()
        assert isinstance(ended, SlowConsumer), ended
        assert ended.message.endswith(f"resume after {self.cursor}"), "all that it was told to resume after, it has"
        self._serving = self.feed = None

    def was_told_of_the_end(self) -> bool:
        if self.feed is None or isinstance(self.stream._end, SlowConsumer):
            return True
        last = SubscribeResponse.FromString(self.stream._waiting[-1])
        return isinstance(self.stream._end, ShuttingDown) and last.WhichOneof("event") == "goaway"

    def is_at(self, head: int) -> bool:
        waits = self._unread or self.stream._waiting or self.stream._waiting_bytes
        return self.feed is not None and self.feed.state is State.LIVE and not waits


class Local(Client):
    """In the same process."""

    subscription: LocalSubscription

    def connect(self, world: World) -> None:
        self.subscription = LocalSubscription(world.bus.fanout, self.wanted, world.bus.seq_of_cursor(self.cursor))
        self.feed = self.subscription._feed
        self.cursor = self.subscription.cursor
        if self.after is None:
            self.after = self.place

    def disconnect(self) -> None:
        if self.feed is not None:
            self.subscription.close()
        self.feed = None

    def read(self, frames: int) -> None:
        if self.feed is None:
            return
        for _ in range(frames):
            if self.subscription._inbox.first_seq is None:
                break
            self.got.append(_now(self.subscription).seq)
        place = self.place
        self.cursor = self.subscription.cursor
        assert self.place >= place

    def was_told_of_the_end(self) -> bool:
        return self.feed is None or isinstance(self.subscription._inbox._error, ShuttingDown)


def _now(subscription: LocalSubscription) -> Any:
    """The next unit, which is there."""
    try:
        anext(subscription).send(None)
    except StopIteration as given:
        return given.value
    raise AssertionError("it waited")


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engram_bus.router.pages.CATCH_UP_UNITS", 16)
    monkeypatch.setattr("engram_bus.router.lanes.FRAME_BYTES_MAX", 1_000)
    monkeypatch.setattr("engram_bus.subscribers.grpc_stream.FRAME_BYTES_MAX", 1_000)
    monkeypatch.setattr("engram_bus.subscribers.grpc_stream.SOCKET_BUFFER_BYTES", 2_000)


def seeds(count: int) -> list[Any]:
    return [pytest.param(seed, id=f"seed{seed}") for seed in range(count)]


@pytest.mark.parametrize("seed", seeds(40))
async def test_in_memory_each_gets_each_unit_once_and_in_order(seed: int) -> None:
    await World(seed, None).run()


@pytest.mark.parametrize("seed", seeds(6))
async def test_on_disk_each_gets_each_unit_once_and_in_order(seed: int, tmp_path: Path) -> None:
    await World(seed, tmp_path).run()


@pytest.mark.long
async def test_many_more_worlds(tmp_path: Path) -> None:
    first = secrets.randbelow(2**32)
    for seed in range(first, first + 1_000):
        print(f"seed {seed}")
        await World(seed, tmp_path / str(seed) if seed % 10 == 0 else None).run()
