"""Many clients of a real bus that is killed again and again, and what each of them saw of its locks."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from random import Random

import msgspec

from tests.process import BusProcess
from tests.simulation.lock_model import (
    Acquire,
    Break,
    Granted,
    Live,
    LockCall,
    LockOperation,
    LockResult,
    Look,
    Refresh,
    Release,
    Seen,
    Write,
)
from tests.simulation.lock_wires import LOST, Wire, http_wire, socket_wire

CLIENTS = 16
RESOURCES = ("plan.md", "src/a.py", "src/b.py", "db")
MS = 1_000_000
TTLS_NS = (100 * MS, 200 * MS, 3_000 * MS, 10_000 * MS)
WAITS_NS = (20 * MS, 100 * MS, 400 * MS)

OpenWire = Callable[[], AbstractAsyncContextManager[Wire]]


class Recorder:
    """Of one history: a bus on a data directory, which is killed and started again when so much has happened."""

    def __init__(self, data_dir: Path, *, seed: int, operations: int, kills: int) -> None:
        self.history: list[LockOperation] = []
        self.killed_at: list[int] = []
        self._dice = Random(seed)
        self._count = operations
        self._kill_at = sorted(self._dice.sample(range(operations // 20, operations * 9 // 10), kills))
        self._bus = BusProcess(data_dir)
        self._is_up = asyncio.Event()
        self._is_to_be_killed = asyncio.Event()

    async def record(self) -> list[LockOperation]:
        lock_ids: dict[int, str] = {}
        with self._bus:
            self._is_up.set()
            killer = asyncio.create_task(self._kill())
            async with asyncio.TaskGroup() as tasks:
                for number in range(CLIENTS):
                    client = Client(f"agent-{number}", Random(self._dice.random()))
                    open_wire = partial((http_wire, socket_wire)[number % 2], self._bus.url, lock_ids)
                    tasks.create_task(self._run(client, open_wire))
            killer.cancel()
            assert self._bus.stop() == 0
        assert not self._kill_at, "it was killed as often as was asked for"
        return self.history

    async def _run(self, client: "Client", open_wire: OpenWire) -> None:
        while not self._is_done:
            while not self._is_up.is_set():
                await self._is_up.wait()
            process = len(self.killed_at)
            try:
                async with open_wire() as wire:
                    await self._ask(client, wire, process)
            except LOST:
                if process == len(self.killed_at):
                    raise

    async def _ask(self, client: "Client", wire: Wire, process: int) -> None:
        while not self._is_done and process == len(self.killed_at):
            call, invoked_at = client.call(), time.monotonic_ns()
            try:
                result = await wire.ask(call)
            except LOST:
                if process == len(self.killed_at):
                    raise
                # By then it had taken effect, or it never did.
                self._add(client, call, invoked_at, self.killed_at[process], None)
                return
            self._add(client, call, invoked_at, time.monotonic_ns(), result)

    @property
    def _is_done(self) -> bool:
        return len(self.history) >= self._count

    def _add(
        self, client: "Client", call: LockCall, invoked_at: int, returned_at: int, result: LockResult | None
    ) -> None:
        client.learn(call, result)
        self.history.append(
            LockOperation(
                process=client.agent, call=call, invoked_at=invoked_at, returned_at=returned_at, result=result
            )
        )
        if self._kill_at and len(self.history) >= self._kill_at[0]:
            self._is_to_be_killed.set()

    async def _kill(self) -> None:
        while True:
            await self._is_to_be_killed.wait()
            self._is_to_be_killed.clear()
            del self._kill_at[0]
            self._is_up.clear()
            # Nobody asks or hears meanwhile: this holds the loop until the process has ended.
            self._bus.kill()
            self.killed_at.append(time.monotonic_ns())
            await asyncio.to_thread(self._bus.start)
            self._is_up.set()


class Client:
    """One agent: what it holds as far as it knows, what it held before, and the dice that say what it does next."""

    def __init__(self, agent: str, dice: Random) -> None:
        self.agent = agent
        self._dice = dice
        self._held: dict[str, int] = {}
        self._past: list[tuple[str, int]] = []

    def call(self) -> LockCall:
        dice = self._dice
        if self._held and dice.random() < 0.6:
            return self._use(*dice.choice(list(self._held.items())))
        if self._past and dice.random() < 0.1:
            return self._use(*dice.choice(self._past[-5:]))
        resource = dice.choice(RESOURCES)
        if (chance := dice.random()) < 0.01:
            return Break(resource=resource)
        if chance < 0.3:
            return Look(resource=resource)
        return Acquire(
            resource=resource,
            agent=self.agent,
            exclusive=dice.random() < 0.6,
            ttl_ns=dice.choice(TTLS_NS),
            wait_ns=dice.choice(WAITS_NS) if dice.random() < 0.4 else 0,
        )

    def _use(self, resource: str, token: int) -> LockCall:
        chance = self._dice.random()
        if chance < 0.4:
            return Release(resource=resource, agent=self.agent, token=token)
        if chance < 0.75:
            return Write(resource=resource, agent=self.agent, token=token)
        return Refresh(resource=resource, agent=self.agent, token=token, ttl_ns=self._dice.choice(TTLS_NS))

    def learn(self, call: LockCall, result: LockResult | None) -> None:
        match call, result:
            case Acquire(resource=resource), Granted(token):
                self._hold(resource, token)
            case Look(resource=resource), Seen(holders):
                for shown in holders:
                    if shown.agent == self.agent:
                        self._hold(resource, shown.token)
            case (Release(resource=resource, token=token), Live()) | (
                (Refresh(resource=resource, token=token) | Write(resource=resource, token=token)),
                Live(False),
            ):
                if self._held.get(resource) == token:
                    del self._held[resource]
            case _:
                pass

    def _hold(self, resource: str, token: int) -> None:
        self._held[resource] = token
        if (resource, token) not in self._past:
            self._past.append((resource, token))


def save(history: list[LockOperation], path: Path) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in history))


def load(path: Path) -> list[LockOperation]:
    return [msgspec.json.decode(line, type=LockOperation) for line in path.read_bytes().splitlines()]
