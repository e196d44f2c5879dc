"""One exchange over one transport, step by step: what is done, and whether what comes of it is what must."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Mapping
from typing import Any, Final, assert_never
from uuid import UUID

from msgspec import UNSET

from engram_bus.conformance.patterns import (
    Mismatch,
    NotKnown,
    NotTold,
    Variable,
    expanded,
    match,
    shown,
    substitute,
)
from engram_bus.conformance.refusals import complaint
from engram_bus.conformance.stages import Stages
from engram_bus.conformance.transports.contract import (
    Asked,
    Broken,
    CannotSay,
    Event,
    Refused,
    Stream,
    Transport,
    Units,
)
from engram_bus.conformance.vectors import Cancel, End, Exchange, Hear, Leave, Refusal, Request, Stage, Step

STEP_SECONDS: Final = 40.0
"""Longer than any wait that an exchange asks for."""
HEAR_SECONDS: Final = 20.0
UNTIL_SECONDS: Final = 20.0
UNTIL_PAUSES: Final = (0.01, 0.25)
"""The first, and the longest, between two questions."""
AWAY: Final = ("SEARCH_BUILDING", "SEARCH_UNAVAILABLE")
"""What a search is answered while its index is being built or started."""


class Failed(Exception):
    """A step did not go as it must."""


async def play(
    exchange: Exchange,
    transport: Transport,
    otherwise: Transport,
    *,
    refusals: Mapping[str, Refusal],
    stages: Stages,
) -> None:
    """Play it; verbs that the transport does not have go over the other one. Raises Failed, CannotSay."""
    try:
        known = {**await _of_the_bus(exchange, otherwise), "new": f"n{secrets.token_hex(5)}", "new_id": _new_id()}
        known |= {name: Variable(said) for name, said in exchange.variables.items()}
        one = _Play(transport, otherwise, refusals, stages, known, may_be_away="no_search" in exchange.needs)
        try:
            for number, step in enumerate(exchange.steps, 1):
                await _stepped(one, number, step)
        finally:
            await one.leave()
    except (Broken, Refused) as exc:
        raise Failed(f"it could not begin or end: {exc}") from exc


async def _of_the_bus(exchange: Exchange, transport: Transport) -> dict[str, Any]:
    """Its epoch and head when an exchange begins that asks for them."""
    if not exchange.names & {"epoch", "head"}:
        return {}
    status = await transport.ask("status", {})
    return {"epoch": status["epoch"], "head": status["head"]}


async def _stepped(play: "_Play", number: int, step: Step) -> None:
    """One step; what is wrong with it is told with its number and what it is. Raises Failed, CannotSay."""
    try:
        async with asyncio.timeout(STEP_SECONDS):
            await play.step(step)
    except TimeoutError as exc:
        raise Failed(f"{_place(number, step)}: nothing came for {STEP_SECONDS:.0f} s") from exc
    except (CannotSay, NotTold) as exc:
        raise CannotSay(f"{_place(number, step)}: {exc}") from exc
    except (Failed, Mismatch, NotKnown, Broken) as exc:
        raise Failed(f"{_place(number, step)}: {exc}") from exc
    except Exception as exc:
        # What one adapter cannot digest must not keep the others from their exchanges.
        raise Failed(f"{_place(number, step)}: the adapter failed: {exc!r}") from exc


def _place(number: int, step: Step) -> str:
    return f"step {number} ({type(step).__name__.lower() if not isinstance(step, Request) else step.name})"


def _new_id() -> str:
    """A UUIDv7 (RFC 9562, 5.7) of now."""
    ms, rand_a, rand_b = time.time_ns() // 1_000_000, secrets.randbits(12), secrets.randbits(62)
    return str(UUID(int=ms << 80 | 7 << 76 | rand_a << 64 | 2 << 62 | rand_b))


class _Heard:
    """A subscription, and the units that came of it and were not asked about yet."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.cursor: Any = stream.answer["cursor"]
        self._units: deque[tuple[dict[str, Any], str]] = deque()

    async def unit(self) -> dict[str, Any]:
        """The next unit. Raises Refused, Failed where something else comes first."""
        while not self._units:
            match await self._next():
                case Units(units):
                    self._units.extend(units)
                case Event("heartbeat"):
                    pass
                case Event() as event:
                    raise Failed(f"expected a unit, came {shown(event)}")
        unit, self.cursor = self._units.popleft()
        return unit

    async def event(self, name: str) -> Event:
        """The next that is neither units nor, unless it is asked for, a heartbeat. Raises Refused."""
        while True:
            heard = await self._next()
            if isinstance(heard, Event) and (heard.name == name or heard.name != "heartbeat"):
                return heard

    async def _next(self) -> Units | Event:
        heard = await self.stream.next()
        if isinstance(heard, Event):
            self.cursor = heard.fields.get("cursor", self.cursor)
        return heard


class _Play:
    """One exchange over one transport, at some step."""

    def __init__(
        self,
        transport: Transport,
        otherwise: Transport,
        refusals: Mapping[str, Refusal],
        stages: Stages,
        known: dict[str, Any],
        *,
        may_be_away: bool,
    ) -> None:
        self._may_be_away = may_be_away
        self._transport = transport
        self._otherwise = otherwise
        self._refusals = refusals
        self._stages = stages
        self._known = known
        self._begun: dict[str, asyncio.Task[Any]] = {}
        self._heard: dict[str, _Heard] = {}

    async def leave(self) -> None:
        """Leave nothing behind: no request, no subscription."""
        for task in self._begun.values():
            task.cancel()
        await asyncio.gather(*self._begun.values(), return_exceptions=True)
        for heard in self._heard.values():
            try:
                await heard.stream.leave()
            except (Refused, Broken):
                pass  # it is over already

    async def step(self, step: Step) -> None:
        """Raises Failed, Mismatch, NotKnown, Broken, CannotSay."""
        match step:
            case Request():
                await self._request(step)
            case End():
                await self._end(step)
            case Cancel(name=name):
                await self._cancel(name)
            case Hear():
                await self._hear(step)
            case Leave():
                await self._leave(step)
            case Stage(name=name):
                await self._stages.set(substitute(name, self._known))
            case _:
                assert_never(step)

    # --- Requests ----------------------------------------------------------------------------------------------------

    async def _request(self, step: Request) -> None:
        asked = substitute(step.asked, self._known)
        if step.begin is not UNSET:
            self._begun[step.begin] = asyncio.create_task(self._ask(step, asked))
            await asyncio.sleep(0)
        elif step.until is not UNSET:
            await self._until(step, asked)
        else:
            await self._must(self._found(step, asked) if step.name == "search" else self._ask(step, asked), step)

    async def _found(self, step: Request, asked: Asked) -> Any:
        """What a search answers once there is an index: one that is being built, or started, comes by itself."""
        end = asyncio.get_running_loop().time() + UNTIL_SECONDS
        while True:
            try:
                return await self._ask(step, asked)
            except Refused as refused:
                is_late = asyncio.get_running_loop().time() > end
                if self._may_be_away or refused.fields.get("code") not in AWAY or is_late:
                    raise
            await asyncio.sleep(UNTIL_PAUSES[1])

    async def _ask(self, step: Request, asked: Asked) -> Any:
        """The answer, whoever can ask for it. Raises Refused, Broken, CannotSay."""
        transport = self._transport if step.name in self._transport.verbs else self._otherwise
        if step.name != "subscribe":
            return await transport.ask(step.name, asked)
        stream = await transport.subscribe(asked)
        self._heard[step.name if step.as_ is UNSET else step.as_] = _Heard(stream)
        return stream.answer

    async def _must(self, asking: Awaitable[Any], step: Request | End) -> None:
        """What comes of it is what must."""
        try:
            answer = await asking
        except Refused as refused:
            if step.refused is UNSET:
                raise Failed(f"expected an answer, came a refusal: {_told(refused)}") from refused
            self._must_be_refused(step.refused, refused)
            return
        if step.refused is not UNSET:
            raise Failed(f"expected a refusal with {shown(step.refused)}, came {shown(answer)}")
        self._must_be(step.answer, self._checked(answer))

    async def _until(self, step: Request, asked: Asked) -> None:
        """Ask until the answer matches."""
        loop, (pause, pause_max) = asyncio.get_running_loop(), UNTIL_PAUSES
        end = loop.time() + UNTIL_SECONDS
        while True:
            try:
                return self._must_be(step.until, self._checked(await self._ask(step, asked)))
            except Refused as refused:
                if loop.time() > end or not refused.fields.get("retryable"):
                    raise Failed(f"expected an answer, came a refusal: {_told(refused)}") from refused
            except Mismatch:
                if loop.time() > end:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, pause_max)

    async def _end(self, step: End) -> None:
        task = self._begun_under(step.name)
        await asyncio.wait([task])
        if task.cancelled():
            raise Failed(f"{step.name!r} was cancelled, which is answered nothing here")
        await self._must(task, step)

    async def _cancel(self, name: str) -> None:
        task = self._begun_under(name)
        if task.done():
            raise Failed(f"{name!r} was over before it could be cancelled")
        task.cancel()
        await asyncio.wait([task])

    def _begun_under(self, name: str) -> asyncio.Task[Any]:
        if name not in self._begun:
            raise NotKnown(f"nothing was begun as {name!r}")
        return self._begun[name]

    # --- Subscriptions -----------------------------------------------------------------------------------------------

    async def _hear(self, step: Hear) -> None:
        heard = self._heard_under(step.name)
        try:
            async with asyncio.timeout(HEAR_SECONDS):
                await self._hear_what(heard, step)
        except TimeoutError as exc:
            raise Failed(f"expected {_wanted(step)}, heard nothing for {HEAR_SECONDS:.0f} s") from exc
        except Refused as refused:
            if step.ended is UNSET:
                raise Failed(f"expected {_wanted(step)}, but it ended: {_told(refused)}") from refused
            self._must_be_refused(step.ended, refused)

    async def _hear_what(self, heard: _Heard, step: Hear) -> None:
        if step.units is not UNSET:
            units = expanded(step.units, self._known)
            for number, pattern in enumerate(units, 1):
                unit = await heard.unit()
                try:
                    self._must_be(pattern, unit)
                except Mismatch as exc:
                    raise Failed(f"unit {number}: {exc} of {shown(unit)}") from exc
        elif isinstance(name := step.event, str):
            if name not in heard.stream.hears:
                raise CannotSay(f"it does not tell of `{name}`")
            event = await heard.event(name)
            if event.name != name:
                raise Failed(f"expected the event {name}, came {shown(event)}")
            self._must_be(step.answer, event.fields)
        elif step.ended is not UNSET:
            while True:
                await heard.event("goaway")
        else:
            raise NotKnown("hear what? `units`, `event` or `ended`")

    async def _leave(self, step: Leave) -> None:
        heard = self._heard_under(step.name)
        del self._heard[step.name]
        await heard.stream.leave()
        self._must_be(step.cursor, heard.cursor)

    def _heard_under(self, name: str) -> _Heard:
        if name not in self._heard:
            raise NotKnown(f"nothing is subscribed as {name!r}")
        return self._heard[name]

    # --- What must be ------------------------------------------------------------------------------------------------

    def _must_be(self, pattern: Any, came: Any) -> None:
        if pattern is not UNSET:
            self._known = match(pattern, came, self._known)

    def _must_be_refused(self, pattern: Any, refused: Refused) -> None:
        self._must_be(pattern, self._fields(refused))

    def _fields(self, refused: Refused) -> dict[str, Any]:
        """What a refusal says. Raises Failed where it did not travel as it must."""
        if (wrong := complaint(refused, self._refusals)) is not None:
            raise Failed(f"{wrong} ({shown(refused.fields)})")
        return refused.fields

    def _checked(self, answer: Any) -> Any:
        """An answer with the refusals in it (of items of a batch) as what they say."""
        if not isinstance(answer, dict) or not isinstance(answer.get("results"), list):
            return answer
        results = [
            {"error": self._fields(result["error"])} if isinstance(result.get("error"), Refused) else result
            for result in answer["results"]
        ]
        return {**answer, "results": results}


def _wanted(step: Hear) -> str:
    if step.units is not UNSET:
        return f"units like {shown(step.units)}"
    return f"the event {step.event}" if step.event is not UNSET else f"its end with {shown(step.ended)}"


def _told(refused: Refused) -> str:
    return f"{shown(refused.fields)} ({refused.way})"
