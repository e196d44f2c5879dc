"""Server-sent events: subscriptions over HTTP, in JSON."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Final

from engram_bus.conformance.patterns import UNTOLD
from engram_bus.conformance.transports.contract import (
    EVENTS,
    Asked,
    Broken,
    CannotSay,
    Event,
    InStream,
    Refused,
    Stream,
    Units,
)
from engram_bus.conformance.transports.web import Answer, Web, chunks

_CODES: Final = {"shutdown": "SHUTTING_DOWN"}
"""Reasons of a `goaway` that are not codes."""


class Sse:
    """A client that only listens."""

    verbs = frozenset({"subscribe"})

    def __init__(self, web: Web) -> None:
        self._web = web

    async def end(self) -> None:
        """Its connections are shared."""

    async def ask(self, verb: str, asked: Asked) -> Any:
        raise CannotSay(verb)

    async def subscribe(self, asked: Asked) -> Stream:
        return await SseStream.open(self._web, asked)


class SseStream:
    """One response."""

    hears = EVENTS

    def __init__(self, events: AsyncIterator[tuple[str, str, dict[str, Any]]], stack: AsyncExitStack) -> None:
        self._events = events
        self._stack = stack
        self._goaway: dict[str, Any] | None = None
        self.answer: dict[str, Any] = {}

    @classmethod
    async def open(cls, web: Web, asked: Asked) -> "SseStream":
        """The stream, when it says where it begins. Raises Refused, Broken."""
        async with AsyncExitStack() as stack:
            response = await stack.enter_async_context(web.stream("/stream-sse", query_of(asked)))
            stream = cls(_events(response), stack.pop_all())
        first = await stream.next()
        if not isinstance(first, Event) or first.name != "subscribed":
            raise Broken(f"`subscribed` comes first, not {first}")
        stream.answer = first.fields
        return stream

    async def next(self) -> Units | Event:
        try:
            name, last_id, fields = await anext(self._events)
        except StopAsyncIteration as exc:
            raise self._ended() from exc
        if name == "message":
            return Units([(fields, last_id)])
        if fields.get("cursor") != last_id:
            raise Broken(f"the id of `{name}` is {last_id!r}, its cursor {fields.get('cursor')!r}")
        if name == "goaway":
            self._goaway = fields
        return Event(name, fields)

    async def leave(self) -> None:
        await self._stack.aclose()

    def _ended(self) -> Refused | Broken:
        """A stream's last word says why it ends."""
        if self._goaway is None:
            return Broken("the stream ended without a `goaway`")
        reason = str(self._goaway["reason"])
        code = _CODES.get(reason, reason)
        return Refused({**self._goaway, "code": code, "message": UNTOLD, "retryable": UNTOLD}, InStream())


def query_of(asked: Asked) -> dict[str, Any]:
    """A subscription as a URL says it."""
    named = {name: value for name, value in asked.items() if name != "meta"}
    return {**named, **{f"meta.{key}": value for key, value in (asked.get("meta") or {}).items()}}


async def _events(answer: Answer) -> AsyncIterator[tuple[str, str, dict[str, Any]]]:
    """Each event: its name, the last id, its data. (Lines end as the standard says, so httpx's do not serve.)"""
    name, last_id, data = "message", "", list[str]()
    async for line in _lines(answer):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                name = value
            case "id":
                last_id = value
            case "data":
                data.append(value)
            case "" if line == "" and data:
                yield name, last_id, json.loads("\n".join(data))
                name, data = "message", []
            case _:
                pass


async def _lines(answer: Answer) -> AsyncIterator[str]:
    rest = b""
    async for chunk in chunks(answer):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode()
