"""Plays exchanges over transports, many at once, and says of each whether it went as it must."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final

import msgspec

from engram_bus.conformance.play import Failed, play
from engram_bus.conformance.stages import Stages
from engram_bus.conformance.transports.connections import Connections, Place
from engram_bus.conformance.transports.contract import CannotSay
from engram_bus.conformance.transports.http_json import HttpJson
from engram_bus.conformance.transports.table import TRANSPORTS
from engram_bus.conformance.vectors import Exchange, Refusal

TOGETHER: Final = 8
"""So many exchanges at once."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one exchange over one transport: all is well where nothing is said."""

    exchange: str
    file: str
    transport: str
    failure: str | None = None
    """The step, what was expected, and what came."""
    left_out: str | None = None
    """What it needs, and cannot be had."""


Tell = Callable[[Outcome], None]


class Runner:
    """Exchanges against one bus."""

    def __init__(
        self, place: Place, refusals: Mapping[str, Refusal], *, stages: Stages, together: int = TOGETHER
    ) -> None:
        self._place = place
        self._refusals = refusals
        self._stages = stages
        self._together = together
        self._connections: dict[Place, Connections] = {}

    async def play(self, exchanges: Iterable[Exchange], transports: Sequence[str], tell: Tell) -> None:
        """Each exchange over each transport it is for."""
        played = list(exchanges)
        await self.play_these(
            [(exchange, name) for name in transports for exchange in played if is_played(exchange, name)], tell
        )

    async def play_these(self, plays: Sequence[tuple[Exchange, str]], tell: Tell) -> None:
        """Chosen exchanges, each over a transport. Those that change the server come first, one by one: then its log
        is short."""
        async with AsyncExitStack() as stack:
            for exchange, name in plays:
                if exchange.is_alone:
                    tell(await self._played(exchange, name, stack))
            await self._play_together([play for play in plays if not play[0].is_alone], tell, stack)
        self._connections.clear()

    async def _play_together(self, plays: Sequence[tuple[Exchange, str]], tell: Tell, stack: AsyncExitStack) -> None:
        turns = asyncio.Semaphore(self._together)

        async def in_turn(exchange: Exchange, name: str) -> None:
            async with turns:
                tell(await self._played(exchange, name, stack))

        async with asyncio.TaskGroup() as group:
            for exchange, name in plays:
                group.create_task(in_turn(exchange, name))

    async def _played(self, exchange: Exchange, name: str, stack: AsyncExitStack) -> Outcome:
        failure, left_out = None, self._missing(exchange, name)
        if left_out is None:
            try:
                await self._play(exchange, name, stack)
            except Failed as failed:
                failure = str(failed)
            except CannotSay as exc:
                if TRANSPORTS[name].is_client:
                    left_out = "what the client does not take"
                else:
                    failure = f"this transport cannot say it: {exc}"
        return Outcome(exchange=exchange.name, file=exchange.file, transport=name, failure=failure, left_out=left_out)

    def _missing(self, exchange: Exchange, name: str) -> str | None:
        missing = [need for need in exchange.needs if need not in self._stages.can]
        if TRANSPORTS[name].needs_grpc and self._place.grpc is None:
            missing.append("grpc")
        return ", ".join(missing) or None

    async def _play(self, exchange: Exchange, name: str, stack: AsyncExitStack) -> None:
        to = await self._to(self._stages.place(exchange.needs) or self._place, stack)
        transport = TRANSPORTS[name].open(to)
        try:
            await play(exchange, transport, HttpJson(to.web), refusals=self._refusals, stages=self._stages)
        finally:
            await transport.end()
            if exchange.is_alone:
                await self._stages.well()

    async def _to(self, place: Place, stack: AsyncExitStack) -> Connections:
        if place not in self._connections:
            self._connections[place] = await stack.enter_async_context(Connections(place))
        return self._connections[place]


def is_played(exchange: Exchange, transport: str) -> bool:
    """Whether this transport can say any of it itself, and may."""
    return exchange.is_for(transport) and not TRANSPORTS[transport].verbs.isdisjoint(exchange.verbs)
