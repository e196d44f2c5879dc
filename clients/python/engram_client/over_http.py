"""Every verb over HTTP: requests for what is answered once, WebSocket and SSE for the rest."""

import builtins
from collections.abc import Callable, Sequence
from functools import partial
from urllib.parse import quote

from msgspec import structs

from engram_client import codec
from engram_client.http import Http, Query
from engram_client.limits import PING_SECONDS
from engram_client.publishing import OverWebSocket
from engram_client.requests import (
    BreakRequest,
    ContextChange,
    Filter,
    LockRequest,
    Read,
    ReadContext,
    ReadContexts,
    ReadLock,
    ReadLocks,
    ReadRelated,
    ReadUnit,
    ReadUnits,
    Search,
)
from engram_client.sessions import SocketSession
from engram_client.streams import over_sse, over_websocket, websocket_url
from engram_client.values import (
    Context,
    ContextPage,
    Draft,
    Lock,
    LockState,
    Outcome,
    Page,
    Related,
    SearchPage,
    SearchStatus,
    Status,
    WorkUnit,
)
from engram_client.verbs import LockPage, OpenStream, Publishing, Session, keys
from engram_client.websocket import OpenSocket, open_socket


class OverHttp:
    """The verbs of one agent at the bus of an http or https URL. Raises ValueError for what is no URL."""

    def __init__(self, url: str, *, agent_id: str, timeout_seconds: float) -> None:
        self._url = url
        self._agent_id = agent_id
        self._timeout_seconds = timeout_seconds
        self._http = Http(url, agent_id=agent_id, timeout_seconds=timeout_seconds)

    async def aclose(self) -> None:
        await self._http.aclose()

    # --- Units -------------------------------------------------------------------------------------------------------

    async def append(self, draft: Draft, *, idempotency_key: str) -> WorkUnit:
        body = codec.append_body(draft, agent_id=self._agent_id, idempotency_key=idempotency_key)
        answer = await self._http.request("POST", "/workunit", body=body, content_type=codec.MSGPACK)
        return codec.unit(answer.body)

    async def append_bulk(
        self, drafts: Sequence[Draft], *, atomic: bool, idempotency_key: str
    ) -> builtins.list[Outcome]:
        each = keys(len(drafts), atomic=atomic, idempotency_key=idempotency_key)
        body = codec.bulk_body(drafts, agent_id=self._agent_id, idempotency_keys=each)
        headers = {"Idempotency-Key": idempotency_key} if atomic else {}
        query = {"atomic": True if atomic else None}
        return codec.outcomes((await self._http.request("POST", "/workunits", query, body=body, headers=headers)).body)

    async def get(self, asked: ReadUnit) -> WorkUnit:
        return codec.unit(await self._read(f"/workunit/{quote(asked.id, safe='')}", asked, id=None))

    async def list(self, asked: ReadUnits) -> Page:
        return codec.page(await self._read("/workunits", asked, reverse=asked.reverse or None))

    async def related(self, asked: ReadRelated) -> Related:
        return codec.related(await self._read(f"/workunit/{quote(asked.id, safe='')}/related", asked, id=None))

    async def search(self, asked: Search) -> SearchPage:
        body = codec.search_body(asked)
        answer = await self._http.request("POST", "/search", body=body, wait_seconds=asked.wait_seconds)
        return codec.search_page(answer.body)

    async def rebuild_search(self) -> SearchStatus:
        return codec.search_status((await self._http.request("POST", "/search/rebuild")).body)

    async def status(self) -> Status:
        return codec.status((await self._http.request("GET", "/status")).body)

    async def _read(self, path: str, asked: Read, **otherwise: object) -> bytes:
        """The answer to all that was asked, in the query."""
        query: Query = {**structs.asdict(asked), **otherwise}
        return (await self._http.request("GET", path, query, wait_seconds=asked.wait_seconds)).body

    # --- Contexts ----------------------------------------------------------------------------------------------------

    async def get_context(self, asked: ReadContext) -> Context:
        return codec.context(await self._read("/contexts", asked))

    async def update_context(self, context_id: str, change: ContextChange) -> Context:
        body = codec.change_body(change)
        answer = await self._http.request("PATCH", "/contexts", {"context_id": context_id}, body=body)
        return codec.context(answer.body)

    async def contexts(self, asked: ReadContexts) -> ContextPage:
        return codec.contexts(await self._read("/contexts", asked))

    # --- Locks -------------------------------------------------------------------------------------------------------

    async def acquire_lock(self, asked: LockRequest, *, wait_seconds: float) -> Lock:
        answer = await self._http.request(
            "POST",
            "/locks",
            body=codec.acquire_body(asked, wait_seconds=wait_seconds),
            wait_seconds=wait_seconds,
            takes_turn=wait_seconds == 0,
        )
        return codec.lock(answer.body, extended=answer.status == 200)

    async def refresh_lock(self, lock: Lock, ttl_seconds: float | None, *, agent_id: str) -> Lock:
        query = {"resource": lock.resources[0]}
        body = codec.refresh_body(lock, ttl_seconds, agent_id=agent_id)
        answer = await self._http.request("PATCH", "/locks", query, body=body, takes_turn=False)
        return codec.lock(answer.body, extended=True)

    async def release_lock(self, lock: Lock, *, agent_id: str) -> bool:
        query = codec.release_query(lock, agent_id=agent_id)
        answer = await self._http.request("DELETE", "/locks", query, takes_turn=False)
        return bool(codec.released(answer.body))

    async def break_lock(self, asked: BreakRequest) -> builtins.list[str]:
        query = {"resource": asked.resource, "break": True, **structs.asdict(asked)}
        return codec.released((await self._http.request("DELETE", "/locks", query)).body)

    async def get_lock(self, asked: ReadLock) -> LockState:
        return codec.lock_state(await self._read("/locks", asked))

    async def locks(self, asked: ReadLocks) -> LockPage:
        return codec.lock_page(await self._read("/locks", asked))

    # --- Streams -----------------------------------------------------------------------------------------------------

    def subscribe(
        self, wanted: Filter, *, transport: str | None, encoding: str | None, silence_seconds: float
    ) -> OpenStream:
        query: Query = {
            **{name: value for name, value in structs.asdict(wanted).items() if name != "meta"},
            **{f"meta.{key}": value for key, value in wanted.meta.items()},
        }
        match transport, encoding:
            case None | "websocket", None | "msgpack" | "json":
                return over_websocket(
                    self._url,
                    query,
                    encoding="json" if encoding == "json" else "msgpack",
                    timeout_seconds=self._timeout_seconds,
                    silence_seconds=silence_seconds,
                )
            case "sse", None | "msgpack" | "json":  # The encoding is the WebSocket's.
                return over_sse(self._http, query, silence_seconds=silence_seconds)
            case _:
                raise ValueError(f"there is no transport {transport!r} with encoding {encoding!r}")

    def publishing(self) -> Publishing:
        return OverWebSocket(self._sockets(), agent_id=self._agent_id)

    def session(self, clock: Callable[[], float]) -> Session:
        return SocketSession(self._sockets(), clock)

    def _sockets(self) -> OpenSocket:
        """Sockets without a subscription."""
        return partial(
            open_socket,
            websocket_url(self._url),
            encoding="msgpack",
            timeout_seconds=self._timeout_seconds,
            ping_seconds=PING_SECONDS,
        )
