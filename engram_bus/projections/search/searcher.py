"""The bus's side of search: it starts the process, rings it when there is more, asks it, and starts it again."""

import asyncio
import contextlib
import itertools
import logging
import socket
import subprocess
import time
from pathlib import Path
from typing import cast

from engram_bus.errors import Busy, EngramError, InternalError, SearchBuilding, SearchUnavailable, ShuttingDown
from engram_bus.limits import SEARCH_ANSWER_SECONDS_MAX, SEARCHES_MAX
from engram_bus.process import path_variables, python
from engram_bus.projections.search.messages import (
    Answered,
    Ask,
    Behind,
    Failed,
    Rebuild,
    Ring,
    State,
    ToSearch,
    decode_to_bus,
    packed,
    unpacked,
)
from engram_bus.projections.search.values import Asked, Found

log = logging.getLogger(__name__)

RESTART_SECONDS = 0.5
"""After the process died, before the next one starts; doubled each time, unless it lived for a while."""
RESTART_SECONDS_MAX = 30.0
LIVED_SECONDS = 10.0
END_SECONDS_MAX = 5.0


def building(asked: Asked, why: str, *, taken: int, head: int) -> SearchBuilding:
    """What a search is refused with that the index cannot answer yet. Who said how far it has to have come is not
    helped by asking for less."""
    hint = " (stale: true asks what it has)" if asked.reach_seq is None else ""
    return SearchBuilding(f"{why}{hint}", taken_seq=taken, head=head)


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
        self._asked: dict[int, tuple[Asked, asyncio.Future[Found]]] = {}
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[Ask] | None = None
        """Asked before the line to a process that is being started is there; None where no process is."""
        self._process: subprocess.Popen[bytes] | None = None
        self._ours: socket.socket | None = None
        """The line, until it has a transport."""
        self._connecting: asyncio.Task[None] | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._restart_seconds = RESTART_SECONDS
        self._started_at = 0.0
        self._is_closed = False
        self._start()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._started_at = loop.time()
        ours, theirs = socket.socketpair()
        with theirs:
            module = "engram_bus.projections.search.process"
            command = python(module, str(self._tenant), str(theirs.fileno()), self._embedder)
            try:
                # In a session of its own: a Ctrl-C is the bus's, also while the process only begins.
                self._process = subprocess.Popen(  # noqa: S603 (our own program)
                    command, pass_fds=[theirs.fileno()], env=path_variables(), start_new_session=True
                )
            except OSError as exc:
                ours.close()
                self._start_later(f"could not be started: {exc}")
                return
        ours.setblocking(False)
        self._ours = ours
        self._unsent = []
        self._connecting = loop.create_task(_connect(loop, self, ours))

    def _start_later(self, why: str) -> None:
        log.warning("the search process %s; it is started again in %g seconds", why, self._restart_seconds)
        self._restart = asyncio.get_running_loop().call_later(self._restart_seconds, self._again)
        self._restart_seconds = min(2 * self._restart_seconds, RESTART_SECONDS_MAX)

    def _again(self) -> None:
        if self._process is not None and self._process.poll() is None:
            # It closed its end of the line, and does not end.
            self._process.kill()
            self._start_later("does not end")
            return
        self._start()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods.
        self._ours = None
        self._rung = self._head
        unsent, self._unsent = self._unsent, None
        for message in (Ring(self._head), *(unsent or ())):
            self._send(message)

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

    def rebuild(self) -> None:
        """Have the index built again, while it answers; `state` says how far that is. Raises SearchUnavailable."""
        if self._transport is None:
            raise SearchUnavailable("the search process is being started")
        self._send(Rebuild())

    async def search(self, asked: Asked) -> Found:
        """What is found over all units up to the newest, or as far as was asked.

        Raises SearchBuilding, SearchUnavailable, Busy, ShuttingDown.
        """
        if self._is_closed:
            raise ShuttingDown("the bus is closed")
        if self._transport is None and self._unsent is None:
            raise SearchUnavailable("the search process ended; it is started again")
        if len(self._asked) >= SEARCHES_MAX:
            raise Busy(f"{len(self._asked)} searches wait for an answer", limit=SEARCHES_MAX)
        answered: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        ask = Ask(next(self._ids), asked.reach(self._head), asked, time.monotonic() + SEARCH_ANSWER_SECONDS_MAX)
        self._asked[ask.id] = asked, answered
        try:
            if self._unsent is None:
                self._send(ask)
            else:
                self._unsent.append(ask)
            async with asyncio.timeout(SEARCH_ANSWER_SECONDS_MAX):
                return await answered
        except TimeoutError:
            raise SearchUnavailable(f"no answer within {SEARCH_ANSWER_SECONDS_MAX:g} seconds") from None
        finally:
            del self._asked[ask.id]

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
                        why = f"the search index is at {taken}, the log at {self._head}: it is being built"
                        asked, _ = self._asked[name]
                        waiting.set_exception(building(asked, why, taken=taken, head=self._head))
                case Failed(id=name, message=message):
                    if (waiting := self._waiting(name)) is not None:
                        waiting.set_exception(InternalError(f"the search failed: {message}"))

    def _waiting(self, name: int) -> asyncio.Future[Found] | None:
        _, waiting = self._asked.get(name, (None, None))
        return None if waiting is None or waiting.done() else waiting

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._received.clear()
        self.state = State(0, 0)
        if self._is_closed:
            return
        self._refuse_all(SearchUnavailable("the search process ended; it is started again"))
        if asyncio.get_running_loop().time() - self._started_at > LIVED_SECONDS:
            self._restart_seconds = RESTART_SECONDS
        self._start_later("ended")

    def _refuse_all(self, error: EngramError) -> None:
        for _, waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(error)

    def _send(self, message: ToSearch) -> None:
        assert self._transport is not None
        self._transport.write(packed(message))

    def close(self) -> None:
        """End the process at once: what it had not committed is in the log."""
        self._is_closed = True
        self._refuse_all(ShuttingDown("the bus is stopping"))
        if self._restart is not None:
            self._restart.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()
        if self._ours is not None:
            self._ours.close()
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS_MAX)


async def _connect(loop: asyncio.AbstractEventLoop, protocol: Searcher, ours: socket.socket) -> None:
    await loop.create_unix_connection(lambda: protocol, sock=ours)
