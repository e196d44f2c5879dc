"""Plays a recording onto a bus: each agent on its own connection, each context in its recorded order.

An agent's units follow one another without waiting (one WebSocket, pipelined). Where another agent goes on in the same
strand, its unit waits until the one before is acknowledged: two connections have no order between them, and whoever
answers has seen what it answers. Contexts are strands that do not wait for one another, up to LOOK_AHEAD_UNITS apart;
with `--order file` the whole file is one strand, and the log is the recording.
"""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from time import monotonic_ns
from typing import Final, NamedTuple

from engram_bus.cli.replay.recording import Recording, Step
from engram_client import Client, PendingReceipt, Pipeline, Receipt

LOOK_AHEAD_UNITS: Final = 1_024
"""Steps that are due and wait for another agent of their context: how far strands may drift apart."""
WINDOW_UNITS: Final = 32
"""Sent and unacknowledged, over all agents; what outruns the bus waits here, where it is not taken for a delay.
Measured on two cores, flat out: 8 gives 2,700 units/s at 2 ms, 32 gives 5,400 at 4 ms, 128 gives 6,400 at 13 ms."""


class Played(NamedTuple):
    """What became of one step: when it was sent and acknowledged (monotonic clock), and what the bus said."""

    step: Step
    sent_ns: int
    acknowledged_ns: int
    receipt: Receipt


class Player:
    """One play of one recording; `played` grows as the bus acknowledges. At speed 0 nothing waits for its time."""

    def __init__(self, url: str, recording: Recording, *, speed: float, window: int = WINDOW_UNITS) -> None:
        self.played: list[Played] = []
        self._url = url
        self._steps = recording.steps
        self._speed = speed
        self._ahead = asyncio.Semaphore(LOOK_AHEAD_UNITS)
        self._in_flight = asyncio.Semaphore(window)

    async def play(self) -> None:
        """Until every step is acknowledged. Raises EngramError: what the bus refuses, or that it is gone."""
        try:
            async with AsyncExitStack() as connections, asyncio.TaskGroup() as tasks:
                await self._hand_out(connections, tasks)
        except BaseExceptionGroup as failed:
            raise first_cause(failed) from None

    async def _hand_out(self, connections: AsyncExitStack, tasks: asyncio.TaskGroup) -> None:
        """Give each step to its strand when it is due."""
        of_strand = Counter(step.strand for step in self._steps)
        of_agent = Counter(step.agent_id for step in self._steps)
        strands: dict[str, asyncio.Queue[Step]] = {}
        agents: dict[str, _Agent] = {}
        started = asyncio.get_running_loop().time()
        for step in self._steps:
            await self._until_due(step, started)
            await self._ahead.acquire()
            if step.agent_id not in agents:
                agent = agents[step.agent_id] = await _Agent.connect(self._url, step.agent_id, connections)
                tasks.create_task(self._hear(agent, of_agent[step.agent_id]))
            if step.strand not in strands:
                strands[step.strand] = asyncio.Queue()
                tasks.create_task(self._say(strands[step.strand], agents, of_strand[step.strand]))
            strands[step.strand].put_nowait(step)

    async def _until_due(self, step: Step, started: float) -> None:
        if self._speed:
            due = started + step.due_seconds / self._speed
            await asyncio.sleep(due - asyncio.get_running_loop().time())

    async def _say(self, strand: "asyncio.Queue[Step]", agents: "dict[str, _Agent]", count: int) -> None:
        """Send the steps of one strand, in order."""
        speaker: _Agent | None = None
        last: PendingReceipt | None = None
        for _ in range(count):
            step = await strand.get()
            agent = agents[step.agent_id]
            if last is not None and agent is not speaker:
                await last
            await self._in_flight.acquire()
            self._ahead.release()
            last = await agent.pipeline.send(step.draft)
            speaker = agent
            agent.sent.put_nowait(_Sent(step, monotonic_ns(), last))

    async def _hear(self, agent: "_Agent", count: int) -> None:
        """Take in the acknowledgements of one agent, which come in the order it sent."""
        for _ in range(count):
            step, sent_ns, pending = await agent.sent.get()
            receipt = await pending
            self._in_flight.release()
            self.played.append(Played(step, sent_ns, monotonic_ns(), receipt))


class _Sent(NamedTuple):
    step: Step
    sent_ns: int
    pending: PendingReceipt


class _Agent:
    """One agent's connection, and what it has sent and not heard of."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.sent: asyncio.Queue[_Sent] = asyncio.Queue()

    @classmethod
    async def connect(cls, url: str, agent_id: str, connections: AsyncExitStack) -> "_Agent":
        client = await connections.enter_async_context(Client(url, agent_id=agent_id))
        return cls(await connections.enter_async_context(client.pipeline()))


def first_cause(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """One cause is enough to tell; the others are mostly its echoes."""
    cause = failed.exceptions[0]
    return first_cause(cause) if isinstance(cause, BaseExceptionGroup) else cause
