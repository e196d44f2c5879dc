"""The bus's side of search: it starts the process, rings it when there is more, asks it, and starts it again."""

import asyncio
import contextlib
import itertools
import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import cast

from engram_bus.errors import InternalError, SearchBuilding, SearchUnavailable, ShuttingDown
from engram_bus.projections.search.messages import (
    Answered,
    Ask,
    Behind,
    Failed,
    Ring,
    State,
    decode_to_bus,
    packed,
    unpacked,
)
from engram_bus.projections.search.values import Asked, Found

log = logging.getLogger(__name__)

START_SECONDS_MAX = 5.0
"""How long a search waits for the process to be there."""
RESTART_SECONDS = 0.5
"""After the process died, before the next one starts."""


class Searcher(asyncio.Protocol):
    """The search process of one log. All of it runs in the loop's thread and never waits for the process."""

    def __init__(self, tenant: Path, *, head: int, embedder: str) -> None:
        """With an embedder of choice, which was checked."""
        self.state = State(0, 0)
        self._embedder = embedder
        self._tenant = tenant
        self._head = head
        self._rung = head
        self._ids = itertools.count()
        self._asked: dict[int, asyncio.Future[Found]] = {}
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            program = [sys.executable, "-m", "engram_bus.projections.search.process"]
            command = [*program, str(self._tenant), str(theirs.fileno()), self._embedder]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])  # noqa: S603 (our own program)
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        self._connecting = loop.create_task(_connect(loop, self, ours))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods.
        self._send(Ring(self._head))

    @property
    def lag_units(self) -> int:
        """How many units the index has still to take in."""
        return max(0, self._head - self.state.taken)

    def tell(self, head: int) -> None:
        """The log has units up to here. It is rung when it has taken in what it knows of: not for every commit."""
        self._head = head
        if self.state.taken >= self._rung:
            self._ring()

    def _ring(self) -> None:
        if self._transport is not None and self._head > self._rung:
            self._rung = self._head
            self._send(Ring(self._head))

    async def search(self, asked: Asked) -> Found:
        """What is found over all units up to the newest. Raises SearchBuilding, SearchUnavailable, ShuttingDown."""
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                await asyncio.shield(self._connecting)
        except TimeoutError:
            raise SearchUnavailable("the search process is being started") from None
        if self._transport is None:
            raise SearchUnavailable("the search process ended; it is started again")
        answered: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        ask = Ask(next(self._ids), self._head, asked)
        self._asked[ask.id] = answered
        self._send(ask)
        try:
            return await answered
        finally:
            self._asked.pop(ask.id, None)

    def data_received(self, data: bytes) -> None:
        self._received += data
        for body in unpacked(self._received):
            match decode_to_bus(body):
                case State() as state:
                    self.state = state
                    if state.taken >= self._rung:
                        self._ring()
                case Answered(id=name, found=found):
                    if (waiting := self._waiting(name)) is not None:
                        waiting.set_result(found)
                case Behind(id=name, taken=taken):
                    if (waiting := self._waiting(name)) is not None:
                        waiting.set_exception(
                            SearchBuilding(
                                f"the search index is at {taken}, the log at {self._head}: it is being built",
                                taken_seq=taken,
                                head=self._head,
                            )
                        )
                case Failed(id=name, message=message):
                    if (waiting := self._waiting(name)) is not None:
                        waiting.set_exception(InternalError(f"the search failed: {message}"))

    def _waiting(self, name: int) -> asyncio.Future[Found] | None:
        waiting = self._asked.get(name)
        return None if waiting is None or waiting.done() else waiting

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._received.clear()
        self.state = State(0, 0)
        error = (
            ShuttingDown("the bus is stopping") if self._is_closed else SearchUnavailable("the search process ended")
        )
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(error)
        if not self._is_closed:
            log.warning("the search process ended; it is started again")
            self._restart = asyncio.get_running_loop().call_later(RESTART_SECONDS, self._again)

    def _again(self) -> None:
        self._reap()
        self._start()

    def _send(self, message: Ring | Ask) -> None:
        assert self._transport is not None
        self._transport.write(packed(message))

    def _reap(self) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        """End the process: it sees the socket end."""
        self._is_closed = True
        if self._restart is not None:
            self._restart.cancel()
        self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._reap()


async def _connect(loop: asyncio.AbstractEventLoop, protocol: Searcher, ours: socket.socket) -> None:
    await loop.create_unix_connection(lambda: protocol, sock=ours)
