"""The independent subscriber of a replay: a process of its own that notes when each unit of a run reaches it.

Run as `python -m engram_bus.cli.replay.watcher PARENT_PID URL AFTER PREFIX`. It says `ready` on stdout once it is
subscribed; told a seq on stdin, it goes on until it has seen that far (or nothing has come for PATIENCE_SECONDS), and
answers with one `Watched` as MessagePack. It ends with who started it.
"""

import asyncio
import contextlib
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from time import monotonic_ns
from typing import Final, NamedTuple

import msgspec

from engram_bus.process import die_with, path_variables, python
from engram_client import Client, EngramError, Gap, Subscription
from engram_client.values import Cursor

PATIENCE_SECONDS: Final = 15.0
"""Longer than a bus takes to start again: what has not come by then is lost."""
_LOOK_SECONDS: Final = 0.02
_LINGER_SECONDS: Final = 0.2
"""After the last unit, for what may come twice."""


class Seen(NamedTuple):
    """One unit as it came, and when (monotonic clock, which all processes of a machine share)."""

    unit_id: str
    context_id: str
    seq: int
    version: int
    received_ns: int


class Watched(msgspec.Struct, frozen=True):
    """Every unit of the run in the order of its coming; units that came again over one connection; gaps told of."""

    seen: Sequence[Seen]
    repeats: int
    gaps: int


class Watcher:
    """The process, from the outside."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def watched(self, *, until_seq: int) -> Watched:
        """What it has seen once it has come as far as `until_seq`, or given up."""
        output, _ = await self._process.communicate(f"{until_seq}\n".encode())
        return msgspec.msgpack.decode(output, type=Watched)


@contextlib.asynccontextmanager
async def watching(url: str, *, after: str, prefix: str) -> AsyncIterator[Watcher]:
    """A watcher that is subscribed: it sees every unit after a cursor, in contexts that begin with `prefix`."""
    process = await asyncio.create_subprocess_exec(
        *python(__name__, str(os.getpid()), url, after, prefix),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**30,
        env=path_variables(),
        start_new_session=True,  # a Ctrl-C is the replay's, which then ends it
    )
    assert process.stdout is not None, "it is a pipe"
    try:
        if await process.stdout.readline() != b"ready\n":
            raise EngramError("the subscriber could not subscribe")
        yield Watcher(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class _Eyes:
    """What the subscription has brought so far."""

    def __init__(self, prefix: str, after: str) -> None:
        self.seen: list[Seen] = []
        self.gaps = 0
        self.last_seq = Cursor.parse(after).seq
        self._prefix = prefix

    async def read(self, subscription: Subscription) -> None:
        """For ever."""
        while True:
            try:
                unit = await anext(subscription)
            except Gap as gap:
                self.gaps += 1
                self.last_seq = gap.to_seq
            else:
                self.last_seq = unit.seq
                if unit.context_id.startswith(self._prefix):
                    self.seen.append(Seen(unit.id, unit.context_id, unit.seq, unit.version, monotonic_ns()))

    async def reach(self, seq: int) -> None:
        """Until it has seen so far, or nothing has come for a while."""
        patient_ns, before = monotonic_ns(), self.last_seq
        while self.last_seq < seq and monotonic_ns() - patient_ns < PATIENCE_SECONDS * 1e9:
            await asyncio.sleep(_LOOK_SECONDS)
            if self.last_seq != before:
                patient_ns, before = monotonic_ns(), self.last_seq
        await asyncio.sleep(_LINGER_SECONDS)


async def _watch(url: str, after: str, prefix: str) -> Watched:
    eyes = _Eyes(prefix, after)
    async with Client(url, agent_id="engram-replay-watcher") as bus, bus.subscribe(after=after) as subscription:
        print("ready", flush=True)
        reading = asyncio.create_task(eyes.read(subscription))
        told = await asyncio.to_thread(sys.stdin.readline)
        await eyes.reach(int(told))
        reading.cancel()
        await asyncio.wait([reading])
        return Watched(eyes.seen, subscription.repeats, eyes.gaps)


def main() -> None:
    """The process."""
    gc.disable()  # it lives briefly, and a collection would be taken for a delay of the bus
    logging.getLogger("engram_client").addHandler(logging.NullHandler())
    parent_pid, url, after, prefix = sys.argv[1:]
    die_with(int(parent_pid))
    watched = asyncio.run(_watch(url, after, prefix))
    sys.stdout.buffer.write(msgspec.msgpack.encode(watched))


if __name__ == "__main__":
    main()
