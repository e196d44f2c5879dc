"""The client: every verb of the bus for one agent, over HTTP (with WebSocket and SSE) or gRPC."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from math import isfinite
from typing import Any, Final, Literal, Self, TypeVar, Unpack
from urllib.parse import SplitResult, urlsplit
from uuid import uuid4

from engram_client.errors import EngramConnectionError, InvalidRequest
from engram_client.holds import Hold, OverRequests, OverSession
from engram_client.lease import Lease, OnLost, now
from engram_client.limits import (
    LEASE_SECONDS,
    PIPELINE_RETRIES,
    REQUEST_RETRIES,
    SILENCE_SECONDS,
    TIMEOUT_SECONDS,
    WINDOW_UNITS,
)
from engram_client.over_http import OverHttp
from engram_client.pipeline import Pipeline
from engram_client.requests import (
    BreakRequest,
    ContextChange,
    Direction,
    Filter,
    Fusion,
    Include,
    LockRequest,
    Mode,
    ReadContext,
    ReadContexts,
    ReadLock,
    ReadLocks,
    ReadRelated,
    ReadUnit,
    ReadUnits,
    Search,
    Time,
)
from engram_client.retry import again, waiting
from engram_client.subscription import Subscription
from engram_client.values import (
    LOCKS_CONTEXT,
    Context,
    ContextPage,
    Draft,
    DraftFields,
    Lock,
    LockMode,
    LockState,
    Outcome,
    Page,
    Related,
    SearchPage,
    SearchStatus,
    Status,
    WorkUnit,
)
from engram_client.verbs import Verbs
from engram_client.websocket import Encoding

T = TypeVar("T")

_VERBOSITY: Final = "GRPC_VERBOSITY"

Outcomes = list[Outcome]
Names = list[str]
Named = str | Sequence[str] | None
"""One name, several, or (None) all."""


class InvalidArgument(InvalidRequest, ValueError):
    """What cannot be meant, whoever is asked: a URL, an agent or a time that is none."""


class Client:
    """One agent at one bus: `async with Client(agent_id="ann") as bus`. Its URL tells what it speaks: http, https, or
    grpc, grpcs (which need `engram-bus-client[grpc]`).

    Every request is sent again after a failure that may pass (no connection, 429, 503), up to `max_retries` times with
    growing random pauses, or the one the bus asks for. Appends carry an idempotency key, so that this never doubles a
    unit. Reads take `min_seq` (say the `seq` of your last append) and wait for it up to `timeout_ms`.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        agent_id: str,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_retries: int = REQUEST_RETRIES,
    ) -> None:
        """Raises InvalidArgument, an InvalidRequest and a ValueError."""
        self.url = _address(url)
        self.agent_id = _agent(agent_id)
        self._timeout_seconds = _seconds(timeout_seconds, "timeout_seconds")
        self._max_retries = max_retries
        self._verbs = _verbs(self.url, agent_id=agent_id, timeout_seconds=timeout_seconds)
        self._running = _Running()
        self._agents = {agent_id}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End its subscriptions and pipelines, give its leases back, then end its connections: all of them, also where
        one end fails."""
        self._running.is_closed = True
        async with AsyncExitStack() as ends:
            ends.push_async_callback(self._verbs.aclose)
            for running in self._running:
                ends.push_async_callback(running.aclose)

    async def _again(self, what: str, ask: Callable[[], Awaitable[T]], *, is_repeatable: bool = True) -> T:
        return await again(ask, max_retries=self._max_retries, what=what, is_repeatable=is_repeatable)

    # --- Append ------------------------------------------------------------------------------------------------------

    async def append(self, context_id: str, payload: Any = b"", **fields: Unpack[DraftFields]) -> WorkUnit:
        """Append one unit: it is in the log, durably, when this returns. The fields are those of `Draft`."""
        draft = Draft(context_id, payload, **fields)
        return await self._again("append", partial(self._verbs.append, draft, idempotency_key=uuid4().hex))

    async def append_bulk(
        self, drafts: Sequence[Draft], *, atomic: bool = False, idempotency_key: str | None = None
    ) -> Outcomes:
        """Append up to 1,000 units at once: one outcome for each, in order, a unit or the error that refused it.

        With `atomic` they are appended all or none, and a refusal is raised; its `index` names the draft.
        """
        key = idempotency_key or uuid4().hex
        ask = partial(self._verbs.append_bulk, drafts, atomic=atomic, idempotency_key=key)
        return await self._again(f"append of {len(drafts)} units", ask)

    def pipeline(self, window: int = WINDOW_UNITS, *, max_retries: int | None = PIPELINE_RETRIES) -> Pipeline:
        """Append without waiting for each answer: `async with bus.pipeline() as pipe: await pipe.append(...)`.

        While units wait, it gives up after `max_retries` connections in a row without an acknowledgement (None: never).
        """
        return Pipeline(self._verbs.publishing(), window=window, max_retries=max_retries, running=self._running)

    # --- Read --------------------------------------------------------------------------------------------------------

    async def get(self, unit_id: str, *, min_seq: int | None = None, timeout_ms: int | None = None) -> WorkUnit:
        """The unit of this id. Raises UnitNotFound."""
        asked = ReadUnit(id=unit_id, min_seq=min_seq, timeout_ms=timeout_ms)
        return await self._again("get", partial(self._verbs.get, asked))

    async def list(
        self,
        context_id: str,
        *,
        limit: int | None = None,
        page: str | None = None,
        reverse: bool = False,
        after: str | int | None = None,
        before: str | int | None = None,
        type: Named = None,
        agent: Named = None,
        kind: Named = None,
        min_seq: int | None = None,
        timeout_ms: int | None = None,
    ) -> Page:
        """One page of a context's units, the oldest first or, with `reverse`, the newest.

        `after` and `before` are seqs or cursors, themselves left out; `kind` may be a glob (`tool.*`). A filtered page
        may hold fewer units than there are: only `next_page` None is the end.
        """
        asked = ReadUnits(
            context_id=context_id,
            limit=limit,
            page=page,
            reverse=reverse,
            after=None if after is None else str(after),
            before=None if before is None else str(before),
            type=_named(type, "type"),
            agent=_named(agent, "agent"),
            kind=_named(kind, "kind"),
            min_seq=min_seq,
            timeout_ms=timeout_ms,
        )
        return await self._again("list", partial(self._verbs.list, asked))

    async def units(
        self,
        context_id: str,
        *,
        limit: int | None = None,
        reverse: bool = False,
        after: str | int | None = None,
        before: str | int | None = None,
        type: Named = None,
        agent: Named = None,
        kind: Named = None,
        min_seq: int | None = None,
        timeout_ms: int | None = None,
    ) -> AsyncIterator[WorkUnit]:
        """All units of a context, page by page (`limit` is the size of a page). The rest is as in `list`."""
        page: str | None = None
        while True:
            found = await self.list(
                context_id,
                limit=limit,
                page=page,
                reverse=reverse,
                after=after,
                before=before,
                type=type,
                agent=agent,
                kind=kind,
                min_seq=min_seq,
                timeout_ms=timeout_ms,
            )
            for unit in found:
                yield unit
            page = found.next_page
            if page is None:
                return

    async def related(
        self,
        unit_id: str,
        *,
        type: Named = None,
        direction: Direction | None = None,
        depth: int | None = None,
        min_seq: int | None = None,
        timeout_ms: int | None = None,
    ) -> Related:
        """What a unit names (`out`), what names it (`in`), or both, over up to `depth` relationships."""
        asked = ReadRelated(
            id=unit_id,
            type=_named(type, "type"),
            direction=direction,
            depth=depth,
            min_seq=min_seq,
            timeout_ms=timeout_ms,
        )
        return await self._again("related", partial(self._verbs.related, asked))

    async def status(self) -> Status:
        """How the bus is: head, durability, disk, subscribers."""
        return await self._again("status", self._verbs.status)

    # --- Search ------------------------------------------------------------------------------------------------------

    async def search(
        self,
        query: str,
        *,
        mode: Mode | None = None,
        limit: int | None = None,
        context_id: Named = None,
        agent_id: Named = None,
        type: Named = None,
        kind: Named = None,
        resource: Named = None,
        meta: Mapping[str, str] | None = None,
        related_to: Named = None,
        after_seq: int | None = None,
        before_seq: int | None = None,
        after_ts: Time = None,
        before_ts: Time = None,
        as_of_seq: int | None = None,
        page: str | None = None,
        facets: bool = False,
        explain: bool = False,
        include: Include | None = None,
        max_tokens: int | None = None,
        fusion: Fusion | None = None,
        vector_weight: float | None = None,
        rank_constant: float | None = None,
        half_life_ms: int | None = None,
        recency_weight: float | None = None,
        neighbour_weight: float | None = None,
        distinct: bool = False,
        stale: bool = False,
        min_seq: int | None = None,
        timeout_ms: int | None = None,
    ) -> SearchPage:
        """Units by their words and by their meaning, best first, over everything acknowledged so far.

        Any text is a query; words in double quotes have to stand in a unit in this order, and a star ends the beginning
        of a word. Filters are joined by and, the names of one by or; `kind` and `resource` may be globs; seqs and times
        are themselves left out; `related_to` are ids that a unit names. `as_of_seq` searches the log as if it ended
        there. With `max_tokens` a page holds what fits, in order of rank.

        `half_life_ms` lets new units be better (by `recency_weight`, halved each time it passes), `neighbour_weight`
        units beside others that are found; with `distinct`, of units that say nearly the same there is only the best.

        An index that is far behind the log is asked again for a while, and then SearchBuilding raised. With `stale` it
        answers at once, over what it has (up to `min_seq` at least): `applied_seq` tells how far that is.

        Raises SearchBuilding and SearchUnavailable after having asked again for a while.
        """
        asked = Search(
            query=query,
            mode=mode,
            limit=limit,
            context_id=_named(context_id, "context_id"),
            agent_id=_named(agent_id, "agent_id"),
            type=_named(type, "type"),
            kind=_named(kind, "kind"),
            resource=_named(resource, "resource"),
            meta=_pairs(meta),
            related_to=_named(related_to, "related_to"),
            after_seq=after_seq,
            before_seq=before_seq,
            after_ts=after_ts,
            before_ts=before_ts,
            as_of_seq=as_of_seq,
            page=page,
            facets=facets,
            explain=explain,
            include=include,
            max_tokens=max_tokens,
            fusion=fusion,
            vector_weight=vector_weight,
            rank_constant=rank_constant,
            half_life_ms=half_life_ms,
            recency_weight=recency_weight,
            neighbour_weight=neighbour_weight,
            distinct=distinct,
            stale=stale,
            min_seq=min_seq,
            timeout_ms=timeout_ms,
        )
        return await self._again("search", partial(self._verbs.search, asked))

    async def rebuild_search(self) -> SearchStatus:
        """Have the search index built again from the log, while the one there is answers.

        Tells how far it is now: it is done when `status().search` has another `generation`. Raises SearchUnavailable.
        """
        return await self._again("rebuild of search", self._verbs.rebuild_search)

    # --- Contexts ----------------------------------------------------------------------------------------------------

    async def get_context(
        self, context_id: str, *, min_seq: int | None = None, timeout_ms: int | None = None
    ) -> Context:
        """Raises ContextNotFound."""
        asked = ReadContext(context_id=context_id, min_seq=min_seq, timeout_ms=timeout_ms)
        return await self._again("get of a context", partial(self._verbs.get_context, asked))

    async def update_context(
        self,
        context_id: str,
        *,
        display_name: str | None = None,
        add_agents: Sequence[str] = (),
        remove_agents: Sequence[str] = (),
        pin_units: Sequence[str] = (),
        unpin_units: Sequence[str] = (),
        meta: Mapping[str, str | None] | None = None,
        fences: Sequence[str] | None = None,
        closed: bool | None = None,
        expected_version: int | None = None,
        idempotency_key: str | None = None,
        agent_id: str | None = None,
    ) -> Context:
        """Make the context if it is not there, then change what is named; a meta value of None removes its key."""
        change = ContextChange(
            display_name=display_name,
            add_agents=_several(add_agents, "add_agents"),
            remove_agents=_several(remove_agents, "remove_agents"),
            pin_units=_several(pin_units, "pin_units"),
            unpin_units=_several(unpin_units, "unpin_units"),
            meta=dict(meta) if meta else None,
            fences=fences,
            closed=closed,
            expected_version=expected_version,
            idempotency_key=idempotency_key or uuid4().hex,
            agent_id=agent_id or self.agent_id,
        )
        return await self._again("update of a context", partial(self._verbs.update_context, context_id, change))

    async def contexts(
        self,
        *,
        prefix: str | None = None,
        limit: int | None = None,
        page: str | None = None,
        min_seq: int | None = None,
        timeout_ms: int | None = None,
    ) -> ContextPage:
        """One page of the contexts, ordered by id."""
        asked = ReadContexts(prefix=prefix, limit=limit, page=page, min_seq=min_seq, timeout_ms=timeout_ms)
        return await self._again("contexts", partial(self._verbs.contexts, asked))

    # --- Locks -------------------------------------------------------------------------------------------------------

    async def acquire_lock(
        self,
        *resources: str | Sequence[str],
        ttl_seconds: float = LEASE_SECONDS,
        mode: str = LockMode.EXCLUSIVE,
        wait_seconds: float = 0,
        reason: str = "",
        context_id: str = LOCKS_CONTEXT,
        agent_id: str | None = None,
    ) -> Lock:
        """Hold all of these resources or none, waiting in line up to `wait_seconds`. Raises LockHeld, Deadlock.

        A lock covers what lies below its resources (`repo/src` covers `repo/src/a.py`), and ends by itself after
        `ttl_seconds` unless it is refreshed; `lock` does that for you. It is the agent's: asking again, wherever,
        extends the same lock, and never shortens it. Failures that may pass are met by asking again, at least until the
        wait is over; who stops waiting (is cancelled) leaves the line.
        """
        request = LockRequest(
            resources=_flat(resources, "resources"),
            agent_id=agent_id or self.agent_id,
            ttl_seconds=_seconds(ttl_seconds, "ttl_seconds"),
            mode=mode,
            reason=reason,
            context_id=context_id,
        )
        return await waiting(
            self._hold(request, session=False).acquire,
            wait_seconds=_seconds(wait_seconds, "wait_seconds"),
            max_retries=self._max_retries,
            what=f"lock {', '.join(request.resources)}",
        )

    def lock(
        self,
        *resources: str | Sequence[str],
        ttl_seconds: float = LEASE_SECONDS,
        wait_seconds: float = 0,
        mode: str = LockMode.EXCLUSIVE,
        reason: str = "",
        context_id: str = LOCKS_CONTEXT,
        agent_id: str | None = None,
        on_lost: OnLost = "cancel",
        session: bool = False,
    ) -> Lease:
        """Hold resources for as long as a block runs: `async with bus.lock("plan.md") as lease`.

        As `acquire_lock`, then refreshed by itself and released in the end. When the lock is lost (broken, released
        elsewhere by the same agent, or not refreshed in time: no bus, a frozen loop), `on_lost="cancel"` cancels the
        block at its next await, `"raise"` lets it run; both raise LockLost at its end. With `session` it is tied to
        a connection of its own (a WebSocket, or a call of gRPC), and released a few seconds after this process has
        died, however long the lease.
        """
        request = LockRequest(
            resources=_flat(resources, "resources"),
            agent_id=agent_id or self.agent_id,
            ttl_seconds=_seconds(ttl_seconds, "ttl_seconds"),
            mode=mode,
            reason=reason,
            context_id=context_id,
        )
        return Lease(
            self._hold(request, session=session),
            resources=request.resources,
            wait_seconds=_seconds(wait_seconds, "wait_seconds"),
            max_retries=self._max_retries,
            on_lost=on_lost,
            running=self._running,
        )

    def _hold(self, request: LockRequest, *, session: bool) -> Hold:
        self._agents.add(request.agent_id)
        if session:
            begin = partial(self._verbs.session, now)
            return OverSession(begin, request, timeout_seconds=self._timeout_seconds, clock=now)
        return OverRequests(self._verbs, request)

    async def refresh_lock(self, lock: Lock, ttl_seconds: float | None = None, *, agent_id: str | None = None) -> Lock:
        """Let the lease run for `ttl_seconds` from now (None: as long as first asked for), or longer if it does anyhow.

        Asked for as this client's agent, unless it has asked for locks as the holder. Raises LockLost, NotHolder.
        """
        if ttl_seconds is not None:
            _seconds(ttl_seconds, "ttl_seconds")
        ask = partial(self._verbs.refresh_lock, lock, ttl_seconds, agent_id=agent_id or self._speaker(lock))
        return await self._again("refresh of a lock", ask)

    async def release_lock(self, lock: Lock, *, agent_id: str | None = None) -> bool:
        """Give it back; False where it was not held any more. Asked for as in `refresh_lock`. Raises NotHolder."""
        ask = partial(self._verbs.release_lock, lock, agent_id=agent_id or self._speaker(lock))
        return await self._again("release of a lock", ask)

    def _speaker(self, lock: Lock) -> str:
        """Its holder, where that is one this client has asked for locks as."""
        return lock.holder_agent if lock.holder_agent in self._agents else self.agent_id

    async def break_lock(
        self, resource: str, *, reason: str, lock_id: str | None = None, agent_id: str | None = None
    ) -> Names:
        """Take a resource from all who hold just it, or from one lock, on the record; gives the ids of their locks.

        Not tried again after a lost connection: the next holder may have it by then. Raises LockNotFound.
        """
        asked = BreakRequest(resource=resource, reason=reason, lock_id=lock_id, agent_id=agent_id or self.agent_id)
        ask = partial(self._verbs.break_lock, asked)
        return list(await self._again("break of a lock", ask, is_repeatable=False))

    async def get_lock(
        self,
        resource: str,
        token: int | None = None,
        *,
        min_seq: int | None = None,
        timeout_ms: int | None = None,
    ) -> LockState:
        """Who holds a resource (or what lies above it) and who waits for it; with `token`, whether that is `valid`."""
        asked = ReadLock(resource=resource, token=token, min_seq=min_seq, timeout_ms=timeout_ms)
        return await self._again("get of a lock", partial(self._verbs.get_lock, asked))

    async def locks(
        self,
        holder: str | None = None,
        prefix: str = "",
        *,
        limit: int | None = None,
        min_seq: int | None = None,
        timeout_ms: int | None = None,
    ) -> AsyncIterator[Lock]:
        """Everything that is held, in order of resources, page by page; a lock on several comes once for each."""
        page: str | None = None
        while True:
            asked = ReadLocks(
                holder=holder,
                prefix=prefix or None,
                limit=limit,
                page=page,
                min_seq=min_seq,
                timeout_ms=timeout_ms,
            )
            found, page = await self._again("locks", partial(self._verbs.locks, asked))
            for lock in found:
                yield lock
            if page is None:
                return

    # --- Subscribe ---------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        *contexts: str | Sequence[str],
        after: str | int | None = None,
        type: Named = None,
        kind: Named = None,
        agent: Named = None,
        exclude_agent: Named = None,
        resource: Named = None,
        meta: Mapping[str, str] | None = None,
        encoding: Encoding | None = None,
        transport: Literal["websocket", "sse"] | None = None,
        max_retries: int | None = None,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> Subscription:
        """Units of these contexts (none named: of all) as they come, from `after` on: a cursor, a seq, 0 for
        everything, None for what comes from now on. `kind` and `resource` may be globs. What is no name is refused
        here (InvalidRequest).

        It comes back after a lost connection for ever, or `max_retries` times in a row. A connection that says nothing
        for `silence_seconds`, no heartbeat either, is lost. Over HTTP, `transport` is a WebSocket unless it is said to
        be "sse", and `encoding` the WebSocket's (msgpack; SSE is always JSON); over gRPC neither can be chosen.
        """
        wanted = Filter(
            context=_flat(contexts, "context") or ["*"],
            type=_named(type, "type"),
            kind=_named(kind, "kind"),
            agent=_named(agent, "agent"),
            exclude_agent=_named(exclude_agent, "exclude_agent"),
            resource=_named(resource, "resource"),
            meta=_pairs(meta) or {},
        )
        open_stream = self._verbs.subscribe(
            wanted, transport=transport, encoding=encoding, silence_seconds=silence_seconds
        )
        return Subscription(open_stream, after=after, max_retries=max_retries, running=self._running)


class _Running(set[Subscription | Pipeline | Lease]):
    """What ends with a client. In one that is closed, nothing begins."""

    is_closed = False

    def add(self, begun: Subscription | Pipeline | Lease) -> None:
        if self.is_closed:
            raise EngramConnectionError("the client is closed", retryable=False)
        super().add(begun)


def _agent(name: object) -> str:
    if isinstance(name, str) and name and name.isprintable():  # It goes into headers.
        return name
    raise InvalidArgument(f"{name!r} is not the name of an agent", field="agent_id")


def _address(url: object) -> str:
    """The URL of a bus, its scheme in small letters. Raises InvalidArgument, which says what is wrong with it."""
    if not isinstance(url, str):
        raise InvalidArgument(f"{url!r} is not a URL", field="url")
    try:
        parts = urlsplit(url)
        fault = _fault(url, parts)
    except ValueError as exc:
        raise InvalidArgument(f"{url!r} is not a URL: {exc}", field="url") from exc
    if fault:
        raise InvalidArgument(f"{url!r} is {fault}", field="url")
    return parts.geturl().rstrip("/")


def _fault(url: str, parts: SplitResult) -> str:
    """What makes it no URL of a bus; nothing, where it may be one. Raises ValueError where it is no URL at all."""
    if parts.scheme not in ("http", "https", "grpc", "grpcs"):
        return "not an http, https, grpc or grpcs URL"
    if " " in url or not url.isprintable():
        return "not a URL: it has a blank or a control character"
    if not parts.hostname:
        return "not a URL: it names no host"
    if parts.hostname.isascii():
        parts.hostname.encode("idna")  # As whoever looks it up does, which tells labels that are empty or too long.
    if parts.port == 0:
        return "not a URL: nobody listens on port 0"
    if parts.query or parts.fragment:
        return "not the URL of a bus: it has a query or a fragment"
    return ""


def _verbs(url: str, *, agent_id: str, timeout_seconds: float) -> Verbs:
    over = _over_grpc if url.startswith("grpc") else OverHttp
    try:
        return over(url, agent_id=agent_id, timeout_seconds=timeout_seconds)
    except ValueError as exc:
        raise InvalidArgument(str(exc), field="url") from exc


def _over_grpc(url: str, *, agent_id: str, timeout_seconds: float) -> Verbs:
    """What it needs is imported, and installed, by those only who use it."""
    try:
        with _errors_only():
            from engram_client.over_grpc import OverGrpc  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in ("google", "grpc", "grpc_status"):
            raise
        raise ModuleNotFoundError(f"{url} needs more: pip install 'engram-bus-client[grpc]'", name=exc.name) from exc
    return OverGrpc(url, agent_id=agent_id, timeout_seconds=timeout_seconds)


@contextmanager
def _errors_only() -> Iterator[None]:
    """Let gRPC's core, which reads this when it is imported first, write no more than errors to stderr; whoever has
    said what it writes is obeyed. A connection that the bus ends is told by this client's own log."""
    if _VERBOSITY in os.environ:
        yield
        return
    os.environ[_VERBOSITY] = "ERROR"
    try:
        yield
    finally:
        os.environ.pop(_VERBOSITY, None)  # It is not for what this process starts.


def _seconds(seconds: float, field: str) -> float:
    try:
        if isfinite(seconds):
            return seconds
    except (TypeError, OverflowError):
        pass
    raise InvalidArgument(f"{field} {seconds!r} is not a number of seconds", field=field)


def _named(names: Named, field: str) -> list[str] | None:
    return None if names is None else _names(names, field)


def _names(names: object, field: str) -> list[str]:
    """One name or several, as a list. Raises InvalidRequest for what are none, and for nothing, which is not all."""
    found: list[str] = []
    for name in names if isinstance(names, Iterable) and not isinstance(names, str) else [names]:
        if not isinstance(name, str):
            raise InvalidRequest(f"{field} {name!r} is not a name", field=field)
        found.append(name)
    if not found:
        raise InvalidRequest(f"{field} names nothing; leave it out for all", field=field)
    return found


def _pairs(meta: object) -> dict[str, str] | None:
    if not meta:
        return None
    if not isinstance(meta, Mapping) or not all(isinstance(text, str) for pair in meta.items() for text in pair):
        raise InvalidRequest(f"meta {meta!r} is not names and their texts", field="meta")
    return dict(meta)


def _several(names: object, field: str) -> list[str] | None:
    return _names(names, field) if names else None


def _flat(names: Iterable[object], field: str) -> tuple[str, ...]:
    """Of names, and lists of them, said one after another."""
    return tuple(name for one in names for name in _names(one, field))
