"""The door to httpx: one HTTP request, and its answer or what refused it."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import httpx

from engram_bus.conformance.transports.contract import Broken, OverHttp, Refused

PROBLEM: Final = "application/problem+json"
SECONDS: Final = 60.0
"""A request may wait for a lock; nothing here waits longer."""
_OF_HTTP: Final = frozenset({"type", "title", "status", "detail", "instance"})
"""Members of a problem that only HTTP has; `detail` is the message."""

Query = Mapping[str, Any]
Answer: TypeAlias = httpx.Response


class Web:
    """Connections to one bus."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.AsyncClient(base_url=url, timeout=SECONDS, verify=False, trust_env=False)  # noqa: S501

    async def aclose(self) -> None:
        await self._client.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """The answer. Raises Refused, Broken."""
        try:
            answer = await self._client.request(
                method, path, params=pairs(query or {}), headers=dict(headers or {}), content=body
            )
        except httpx.HTTPError as exc:
            raise Broken(f"{method} {path}: {type(exc).__name__} {exc}".rstrip()) from exc
        if answer.status_code >= 400:
            raise refused(answer)
        return answer

    @asynccontextmanager
    async def stream(self, path: str, query: Query) -> AsyncIterator[Answer]:
        """An answer that does not end. Raises Refused, Broken."""
        try:
            async with self._client.stream("GET", path, params=pairs(query)) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    raise refused(answer)
                yield answer
        except httpx.HTTPError as exc:
            raise Broken(f"GET {path}: {type(exc).__name__} {exc}".rstrip()) from exc


async def chunks(answer: Answer) -> AsyncIterator[bytes]:
    """What comes of a stream. Raises Broken."""
    try:
        async for chunk in answer.aiter_bytes():
            yield chunk
    except httpx.HTTPError as exc:
        raise Broken(f"the stream broke: {exc!r}") from exc


def pairs(query: Query) -> tuple[tuple[str, str], ...] | None:
    """A query, with a pair for each of a list; None where there is nothing, for httpx would cut the path's own off."""
    found = tuple(
        (name, _text(each))
        for name, value in query.items()
        if value is not None
        for each in (value if isinstance(value, list) else [value])
    )
    return found or None


def refused(answer: Answer) -> Refused:
    """What a status of 400 or more says."""
    problem = None
    if answer.headers.get("content-type", "").partition(";")[0] == PROBLEM:
        problem = json.loads(answer.content)
    way = OverHttp(answer.status_code, problem)
    return Refused({} if problem is None else fields_of(problem), way)


def fields_of(problem: Mapping[str, Any]) -> dict[str, Any]:
    """A refusal as every transport tells it, of a problem."""
    fields = {name: value for name, value in problem.items() if name not in _OF_HTTP}
    return {**fields, "message": problem.get("detail")}


def _text(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
