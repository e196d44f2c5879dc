"""A bus at full speed whose steps are traced, and agents who note in the same trace what they were told, and when."""

import asyncio
import fcntl
import random
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import msgspec

from engram_client import Client, Draft, WorkUnit
from engram_client.errors import EngramError, Unavailable
from engram_client.values import Lock
from tests.disk import tenant
from tests.process import ENGRAM, environment
from tests.simulation.power_trace import Trace

AGENTS = 6
CONTEXTS = 5
FENCED = "fenced"
RESOURCES = ("repo/src", "repo/src/a.py", "repo/docs")
WORDS_MAX = 300


class Told(msgspec.Struct, frozen=True, array_like=True):
    """A unit as somebody was told of it."""

    seq: int
    id: str
    context_id: str
    version: int
    agent_id: str
    payload: bytes


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    """A command's units. With a key it can be given again, where it was one plain append."""

    units: list[Told]
    key: str | None = None
    is_plain: bool = False


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A command that came to nothing."""

    agent_id: str
    key: str
    code: str


class Heard(msgspec.Struct, frozen=True, tag=True):
    """What a subscriber got."""

    units: list[Told]


class Holds(msgspec.Struct, frozen=True, tag=True):
    """A lock that was granted, or is held for longer."""

    lock_id: str
    token: int
    agent_id: str
    resource: str
    until: str


class GaveBack(msgspec.Struct, frozen=True, tag=True):
    """A lock that is not held any more."""

    lock_id: str


class Found(msgspec.Struct, frozen=True, tag=True):
    """What a search found."""

    seqs: list[int]
    ids: list[str]


Mark: TypeAlias = Acknowledged | Refused | Heard | Holds | GaveBack | Found
decode_mark = msgspec.json.Decoder(Mark).decode


class TracedBus:
    """`engram serve` with its steps traced, and killed where it is said."""

    def __init__(self, data_dir: Path, trace: Trace, command: Sequence[str] = ENGRAM) -> None:
        self.url = ""
        self._data_dir = data_dir
        self._trace = trace
        self._command = command
        self._port = "0"
        self._process: subprocess.Popen[str] | None = None

    def start(self, *, kill: str | None = None) -> bool:
        """Whether it answers; if not, it was killed before."""
        flags = ("serve", "--port", self._port, "--no-grpc", "--search", "--data-dir", str(self._data_dir))
        self._process = subprocess.Popen(
            [*self._command, *flags, "--log-level", "error"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(**self._trace.environment(kill=kill)),
        )
        assert self._process.stdout is not None
        found = re.search(r"http://\S+:(\d+)", self._process.stdout.readline())
        if found is not None:
            self.url, self._port = found[0], found[1]
            return True
        code = self.end()
        assert (code, kill is None) == (-signal.SIGKILL, False), f"the bus did not start: {code}"
        return False

    async def died(self) -> None:
        """Return when it was killed."""
        assert self._process is not None
        while self._process.poll() is None:
            await asyncio.sleep(0.01)

    def end(self, how: signal.Signals | None = None) -> int:
        """Its exit code, and everything it wrote, and its search process too, is in the trace."""
        assert self._process is not None, "it does not run"
        process, self._process = self._process, None
        if how is not None:
            process.send_signal(how)
        with process:
            code = process.wait(30)
        with suppress(FileNotFoundError), (tenant(self._data_dir) / "search" / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        return code

    def __enter__(self) -> "TracedBus":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.end(signal.SIGKILL)


def texts(recordings: Sequence[Path]) -> list[str]:
    """What was said in recordings, line by line."""
    lines = [line for file in recordings for line in file.read_bytes().splitlines()]
    return [text for line in lines if (text := str(msgspec.json.decode(line).get("text", "")))]


async def work(bus: TracedBus, trace: Trace, said: Sequence[str], dice: random.Random, kills: Sequence[str]) -> None:
    """Say all of this, by many at once and in all ways. The bus is killed after so many steps, and started again."""
    start(bus, kills[0] if kills else None)
    world = World(iter(said), dice, trace)
    async with asyncio.TaskGroup() as tasks, readers(bus.url, world):
        keeping = tasks.create_task(keep(bus, kills[1:] if kills else ()))
        agents = [asyncio.create_task(Agent(world, bus.url, f"agent-{number}").work()) for number in range(AGENTS)]
        await asyncio.gather(*agents)
        keeping.cancel()


def start(bus: TracedBus, kill: str | None) -> None:
    if not bus.start(kill=kill):
        bus.start()


async def keep(bus: TracedBus, kills: Sequence[str]) -> None:
    """Whenever it was killed, start it again."""
    planned = iter(kills)
    while True:
        await bus.died()
        bus.end()
        await asyncio.to_thread(start, bus, next(planned, None))


class World:
    """What the agents share."""

    def __init__(self, said: Iterator[str], dice: random.Random, trace: Trace) -> None:
        self.said = said
        self.dice = dice
        self.mark = trace.mark
        self.run = f"{dice.getrandbits(32):08x}"
        self._keys = 0

    def key(self) -> str:
        self._keys += 1
        return f"{self.run}-{self._keys}"


@asynccontextmanager
async def readers(url: str, world: World) -> AsyncIterator[None]:
    """One who hears everything and stays, and one who leaves and resumes."""
    tasks = [asyncio.create_task(read(url, world, 10**9)), asyncio.create_task(read(url, world, 40))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read(url: str, world: World, units_max: int) -> None:
    after: str | int = 0
    async with Client(url, agent_id="reader") as client:
        while True:
            async with client.subscribe(after=after) as units:
                for _ in range(units_max):
                    world.mark(Heard([told(await anext(units))]))
                    after = units.cursor


def told(unit: WorkUnit) -> Told:
    return Told(unit.seq, unit.id, unit.context_id, unit.version, unit.agent_id, payload_of(unit))


def payload_of(unit: WorkUnit) -> bytes:
    if isinstance(unit.payload, bytes):
        return unit.payload
    return unit.payload.encode() if isinstance(unit.payload, str) else b""


class Agent:
    """One who says the next thing, in one way or another, and notes what came of it."""

    def __init__(self, world: World, url: str, name: str) -> None:
        self._world = world
        self._dice = world.dice
        self._name = name
        self._url = url
        self._plain: list[tuple[str, str, str, WorkUnit]] = []
        self._lock: Lock | None = None

    async def work(self) -> None:
        ways = (
            (self._append, 45),
            (self._append_expecting, 12),
            (self._append_bulk, 8),
            (self._append_bulk_refused, 3),
            (self._append_fenced, 12),
            (self._change_context, 8),
            (self._use_lock, 10),
            (self._repeat, 5),
            (self._search, 2),
        )
        async with Client(self._url, agent_id=self._name, max_retries=1_000) as self._bus:
            for text in self._world.said:
                (way,) = self._dice.choices([way for way, _ in ways], [weight for _, weight in ways])
                await way(text)

    def _context(self) -> str:
        return f"c{self._dice.randrange(CONTEXTS)}"

    def _acknowledged(self, *units: WorkUnit, key: str | None = None, is_plain: bool = False) -> None:
        self._world.mark(Acknowledged([told(unit) for unit in units], key, is_plain))

    def _refused(self, key: str, exc: EngramError) -> None:
        """Where the bus was away it may have been carried out all the same."""
        if not isinstance(exc, Unavailable):
            self._world.mark(Refused(self._name, key, exc.code))

    async def _append(self, text: str) -> None:
        context_id, key = self._context(), self._world.key()
        unit = await self._bus.append(context_id, text, idempotency_key=key)
        self._acknowledged(unit, key=key, is_plain=True)
        self._plain.append((context_id, text, key, unit))

    async def _append_expecting(self, text: str) -> None:
        """At a version that is right when it is looked at, and maybe not any more."""
        context_id, key = self._context(), self._world.key()
        with suppress(EngramError):
            version = (await self._bus.get_context(context_id)).version
            try:
                unit = await self._bus.append(context_id, text, expected_version=version, idempotency_key=key)
                self._acknowledged(unit)
            except EngramError as exc:
                self._refused(key, exc)

    async def _append_bulk(self, text: str) -> None:
        drafts = [Draft(self._context(), f"{text} {n}") for n in range(self._dice.randint(2, 20))]
        outcomes = await self._bus.append_bulk(drafts, atomic=True, idempotency_key=self._world.key())
        self._acknowledged(*(unit for unit in outcomes if isinstance(unit, WorkUnit)))

    async def _append_bulk_refused(self, text: str) -> None:
        """All or none: none, for the last cannot be."""
        key = self._world.key()
        drafts = [Draft(self._context(), f"{text} {n}") for n in range(3)]
        try:
            await self._bus.append_bulk(
                [*drafts, Draft("c0", text, expected_version=10**9)], atomic=True, idempotency_key=key
            )
        except EngramError as exc:
            self._refused(key, exc)

    async def _append_fenced(self, text: str) -> None:
        """In a context that takes only what is said under its lock; the second time that is over."""
        key, late_key = self._world.key(), self._world.key()
        resource = f"{FENCED}/{self._dice.randrange(2)}"
        try:
            await self._bus.update_context(f"f-{resource}", fences=[resource])
            lock = await self._bus.acquire_lock(resource, ttl_seconds=20, wait_seconds=0.2)
        except EngramError:
            return
        self._holds(lock)
        try:
            unit = await self._bus.append(f"f-{resource}", text, fence=lock.fence(), idempotency_key=key)
            self._acknowledged(unit)
        except EngramError as exc:
            self._refused(key, exc)
        await self._give_back(lock)
        try:
            await self._bus.append(f"f-{resource}", text, fence=lock.fence(), idempotency_key=late_key)
        except EngramError as exc:
            self._refused(late_key, exc)

    async def _change_context(self, text: str) -> None:
        number, key = self._dice.randrange(10**6), self._world.key()
        await self._bus.update_context(
            self._context(), add_agents=[f"guest-{number}"], meta={"said": text[:20]}, idempotency_key=key
        )

    async def _use_lock(self, text: str) -> None:
        """Ask for a lock, or use the one there is: for longer, or no more."""
        with suppress(EngramError):
            if self._lock is None:
                self._lock = await self._bus.acquire_lock(
                    self._dice.choice(RESOURCES),
                    ttl_seconds=self._dice.choice([0.2, 5, 60]),
                    wait_seconds=self._dice.choice([0, 0, 0.1]),
                    mode=self._dice.choice(["exclusive", "shared"]),
                    reason=text[:20],
                )
                self._holds(self._lock)
            elif self._dice.random() < 0.5:
                self._holds(await self._bus.refresh_lock(self._lock, 30))
            else:
                lock, self._lock = self._lock, None
                await self._give_back(lock)

    def _holds(self, lock: Lock) -> None:
        resource = lock.resources[0]
        self._world.mark(Holds(lock.lock_id, lock.fencing_token, lock.holder_agent, resource, lock.expires_at))

    async def _give_back(self, lock: Lock) -> None:
        with suppress(EngramError):
            await self._bus.release_lock(lock)
            self._world.mark(GaveBack(lock.lock_id))

    async def _repeat(self, _: str) -> None:
        if self._plain:
            context_id, text, key, unit = self._dice.choice(self._plain)
            again = await self._bus.append(context_id, text, idempotency_key=key)
            assert again == unit
            self._acknowledged(again, key=key, is_plain=True)

    async def _search(self, text: str) -> None:
        with suppress(Unavailable):
            found = await self._bus.search(" ".join(text.split()[:5]) or "agent", limit=10)
            self._world.mark(Found([hit.seq for hit in found], [hit.unit_id for hit in found]))
