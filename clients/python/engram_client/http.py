"""The door to httpx: one request, one stream of bytes."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import httpx

from engram_client import codec
from engram_client.errors import EngramConnectionError, EngramError
from engram_client.limits import CONNECTIONS_MAX

Query = Mapping[str, object]


class Answer(NamedTuple):
    """What the bus says to one request that it did not refuse."""

    status: int
    body: bytes


def query_string(query: Query) -> str:
    """`?a=1&b=2`: what is None is left out, what is a list is repeated, true and false are lower-case."""
    pairs = [(name, _text(value)) for name, values in query.items() for value in _values(values)]
    return f"?{urlencode(pairs, quote_via=quote)}" if pairs else ""


def is_loopback(url: str) -> bool:
    """Whether the bus runs on this machine, where no proxy can help."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


class Http:
    """Requests of one agent to one bus."""

    def __init__(self, url: str, *, agent_id: str, timeout_seconds: float) -> None:
        """Raises ValueError for what is no URL."""
        try:
            httpx.URL(url)
        except httpx.InvalidURL as exc:
            raise ValueError(f"{url!r} is not a URL: {exc}") from exc
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._client = httpx.AsyncClient(
            headers={b"X-Agent-ID": agent_id.encode()},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS_MAX),
            trust_env=not is_loopback(url),
            # Reading the certificates takes 80 ms, which plain http has no use for.
            verify=url.startswith("https:"),
        )
        # Not httpx's own limit: a stream would take its place for as long as it lives.
        self._turn = asyncio.Semaphore(CONNECTIONS_MAX)

    async def aclose(self) -> None:
        """End its connections."""
        await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        body: bytes | None = None,
        content_type: str = codec.JSON,
        headers: Mapping[str, str] | None = None,
        wait_seconds: float = 0,
        takes_turn: bool = True,
    ) -> Answer:
        """The answer to one try, which may take so much longer than any. One that may wait for long, or that somebody
        counts on, takes no turn: it holds up nobody, and nobody it."""
        said = {name.encode(): value.encode() for name, value in (headers or {}).items()}
        if body is not None:
            said[b"Content-Type"] = content_type.encode()
        url = f"{self._url}{path}{query_string(query or {})}"
        # Not httpx's own timeout: it begins anew with each piece of an answer.
        request = self._client.build_request(method, url, content=body, headers=said, timeout=None)
        seconds = self._timeout_seconds + wait_seconds
        try:
            async with self._turn if takes_turn else nullcontext(), asyncio.timeout(seconds):
                if self._client.is_closed:
                    raise EngramConnectionError("the client is closed", retryable=False)
                answer = await self._client.send(request)
        except TimeoutError as exc:
            raise EngramConnectionError(f"no answer for {seconds:.3g} s") from exc
        except httpx.HTTPError as exc:
            raise self._lost(exc) from exc
        if answer.status_code >= 300:
            raise _refusal(answer, answer.content)
        return Answer(answer.status_code, answer.content)

    @asynccontextmanager
    async def stream(
        self, path: str, query: Query, *, headers: Mapping[str, str], silence_seconds: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The chunks of a body without an end. Raises EngramConnectionError after `silence_seconds` without one."""
        timeout = httpx.Timeout(self._timeout_seconds, read=silence_seconds)
        url = f"{self._url}{path}{query_string(query)}"
        try:
            async with self._client.stream("GET", url, headers=dict(headers), timeout=timeout) as answer:
                if answer.status_code != 200:
                    raise _refusal(answer, await answer.aread())
                yield answer.aiter_raw()
        except httpx.HTTPError as exc:
            raise self._lost(exc) from exc

    def _lost(self, exc: httpx.HTTPError) -> EngramConnectionError:
        if self._client.is_closed:
            return EngramConnectionError("the client was closed", retryable=False)
        return EngramConnectionError(f"{type(exc).__name__} {exc}".rstrip())


def _refusal(answer: httpx.Response, body: bytes) -> EngramError:
    return codec.problem(answer.status_code, body, answer.headers.get("Retry-After"))


def _values(values: object) -> Iterable[object]:
    if values is None:
        return ()
    return values if isinstance(values, list | tuple) else (values,)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
