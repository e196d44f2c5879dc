"""HTTP: requests to commands and reads, answers and errors back; nothing is decided here."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from engram_bus import clock
from engram_bus.api.edge.direct import Headers, Respond, Taker
from engram_bus.api.edge.socket import socket_of
from engram_bus.api.health import Health, search_status
from engram_bus.api.messages import covering
from engram_bus.api.metrics import CONTENT_TYPE as METRICS_TYPE
from engram_bus.api.metrics import Metrics
from engram_bus.api.operations import (
    OPERATIONS,
    Alive,
    ContextIn,
    LockList,
    Operation,
    Released,
    ResourceOut,
)
from engram_bus.api.origins import LOOPBACK, Origins
from engram_bus.api.parameters import pairs, read
from engram_bus.api.problems import problem_body, problem_headers
from engram_bus.bus.writer import Answer
from engram_bus.codec import (
    JSON,
    MSGPACK,
    Entry,
    LockIn,
    RefreshIn,
    acquire_from,
    acting,
    append_from_json,
    append_from_msgpack,
    encode_json,
    lock_on,
    lock_out,
    parse,
    refresh_from,
)
from engram_bus.decisions.locks import GRANTED, change_of
from engram_bus.embedded import Bus
from engram_bus.errors import (
    EngramError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    RouteNotFound,
    TooLarge,
    UnsupportedMedia,
    VersionMoved,
)
from engram_bus.limits import (
    BULK_BYTES_MAX,
    BULK_UNITS_MAX,
    CONTEXT_REQUEST_BYTES_MAX,
    LOCK_REQUEST_BYTES_MAX,
    SEARCH_REQUEST_BYTES_MAX,
    UNIT_REQUEST_BYTES_MAX,
)
from engram_bus.projections.search.requests import SearchIn
from engram_bus.protobuf import PROTOBUF, append_from_protobuf, unit_bytes
from engram_bus.resources import canonical
from engram_bus.router.filters import make_filter
from engram_bus.subscribers.requests import from_query
from engram_bus.subscribers.sse import HEADERS as SSE_HEADERS
from engram_bus.subscribers.sse import Stream
from engram_bus.subscribers.websocket import JSON_PROTOCOL, MSGPACK_PROTOCOL, Connection
from engram_bus.units import (
    ANONYMOUS,
    Append,
    AppendAtomic,
    BreakLock,
    RelationshipType,
    ReleaseLock,
    UpdateContext,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

PREFIX = "/api/v1"

_JSON_TYPE = (b"content-type", b"application/json")
_decode_context = msgspec.json.Decoder(ContextIn).decode
_decode_lock = msgspec.json.Decoder(LockIn).decode
_decode_refresh = msgspec.json.Decoder(RefreshIn).decode
_decode_search = msgspec.json.Decoder(SearchIn).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
# A page may talk to this bus and to nothing else, and may not be framed by another one.
_PAGE_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", _PAGE_POLICY),
    (b"x-content-type-options", b"nosniff"),
)


_NOT_SHARED: Headers = ()
_EXPOSED = b"ETag, Engram-Applied-Seq, Engram-Durability, Idempotency-Replayed, Retry-After, Allow"
_SHARED: Headers = ((b"access-control-expose-headers", _EXPOSED), (b"vary", b"origin"))
_SENT = {
    parameter.name for operation in OPERATIONS for parameter in operation.parameters if parameter.where == "header"
}
_READ = {
    name.lower().encode(): name
    for name in ("Accept", "Content-Encoding", "Content-Length", "Content-Type", "Host", "Origin", *sorted(_SENT))
}
"""What is read of a request, by the name that it has here."""
_PREFLIGHT: Headers = (
    (b"access-control-allow-methods", b"GET, HEAD, POST, PATCH, DELETE"),
    (b"access-control-allow-headers", ", ".join(sorted({"Content-Type", *_SENT})).encode()),
    # Chrome asks before a page of a public address may reach a private one, such as loopback.
    (b"access-control-allow-private-network", b"true"),
    (b"access-control-max-age", b"600"),
)


class Asked:
    """What a request's headers say of an operation."""

    __slots__ = ("headers", "operation")

    def __init__(self, operation: Operation, headers: Mapping[bytes, bytes]) -> None:
        self.operation = operation
        self.headers = headers

    def header(self, name: bytes) -> str | None:
        """A header as text. Raises InvalidRequest for bytes that are none."""
        raw = self.headers.get(name)
        return None if raw is None else _text(name, raw)

    def media_type(self) -> str:
        """The body's type; JSON where none is told. Raises UnsupportedMedia for one the operation does not list, and
        for a compressed body."""
        coding = self.headers.get(b"content-encoding")
        if coding is not None and coding.strip().lower() not in (b"", b"identity"):
            raise UnsupportedMedia(
                f"content encoding {coding.decode('latin-1')[:64]!r} is not read here: send the body as it is",
                field="Content-Encoding",
            )
        told = self.headers.get(b"content-type")
        if told is None or told == b"application/json":
            base = JSON
        else:
            base = told.decode("latin-1").partition(";")[0].strip().lower()
        if base not in self.operation.requests:
            allowed = ", ".join(self.operation.requests)
            raise UnsupportedMedia(f"content type {base[:64]!r} is not read here; one of {allowed}")
        return base


class Call(Asked):
    """One request as an operation sees it."""

    __slots__ = ("_receive", "path", "query", "scope", "values")

    def __init__(
        self, operation: Operation, scope: Scope, headers: dict[bytes, bytes], receive: Receive, path: dict[str, str]
    ) -> None:
        super().__init__(operation, headers)
        self.scope = scope
        self.path = path
        self.query: bytes = scope["query_string"]
        self.values: dict[str, Any] = {}
        self._receive = receive

    async def body(self, bytes_max: int) -> bytes:
        """The whole body; the edge sees to it that it comes in time. Raises TooLarge, ClientLeft."""
        told = self.headers.get(b"content-length", b"0")
        if told.isdigit() and int(told) > bytes_max:
            raise TooLarge(f"the body has {int(told)} bytes, at most {bytes_max}", limit=bytes_max)
        parts, size_bytes = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            part: bytes = message.get("body", b"")
            parts.append(part)
            size_bytes += len(part)
            if size_bytes > bytes_max:
                raise TooLarge(f"the body has more than {bytes_max} bytes", limit=bytes_max)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def while_there(self, answer: asyncio.Future[T]) -> T:
        """The answer, if the client is there to hear it. Raises ClientLeft."""

        async def left() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass

        leaving = asyncio.ensure_future(left())
        try:
            await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                raise ClientLeft
            return answer.result()
        finally:
            leaving.cancel()


class ClientLeft(Exception):
    """The client is gone before it said everything; nobody is there to answer."""


class Reply(msgspec.Struct, frozen=True):
    """What an operation answers."""

    status: int
    body: bytes
    headers: Headers = ()


Handler = Callable[[Call], Awaitable[Reply]]
Page = Callable[[], tuple[str, bytes]]


class HttpApi:
    """The ASGI application of one bus. `pages` are static documents by path: their type and bytes."""

    def __init__(
        self, bus: Bus, *, health: Health, pages: dict[str, tuple[str, bytes]], origins: Origins = LOOPBACK
    ) -> None:
        self.bus = bus
        self._health = health
        self._origins = origins
        # Clients call the bus by few names: what was let in once costs a look-up.
        self._check_host = lru_cache(maxsize=64)(lambda host: origins.check_host(host.decode("latin-1")))
        self.metrics = Metrics(bus, worker=health.worker)
        self.sockets: set[Connection] = set()
        self._pages = pages
        self._routes = [
            (Route(operation.path, _never, methods=[operation.method]), operation, self._handler(operation))
            for operation in OPERATIONS
        ]
        # The routes that carry the load skip the matching of patterns, and the first of them ASGI.
        self._hot = {("POST", "/workunit"): self._route("append"), ("POST", "/workunits"): self._route("append_bulk")}
        self.direct: Mapping[bytes, Taker] = dict.fromkeys(
            (b"/workunit", PREFIX.encode() + b"/workunit"), self._take_append
        )

    def _handler(self, operation: Operation) -> Handler:
        handler: Handler = getattr(self, f"_{operation.name}")
        return handler  # (The one of stream_sse takes more, and `_http` gives it.)

    def _route(self, name: str) -> tuple[Operation, Handler]:
        return next((operation, handler) for _, operation, handler in self._routes if operation.name == name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "websocket":
                await self._websocket(scope, receive, send)
            case _:
                return

    # --- Dispatch ----------------------------------------------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = clock.monotonic_seconds()
        name, shared = "none", _NOT_SHARED
        try:
            headers = _once(scope["headers"])
            shared = self._let_in(headers)
            if shared and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                raise _Static(204, b"", _PREFLIGHT)
            operation, handler, names = self._match(scope, _path(scope))
            name = operation.name
            call = Call(operation, scope, headers, receive, names)
            if name == "stream_sse":
                await self._stream_sse(call, send, shared)
                return
            reply = await self._perform(handler, call)
        except ClientLeft:
            return
        except _Static as static:
            reply = static.reply
        except Exception as exc:
            reply = _refusing(exc)
        await _send(send, reply, scope["method"], (*self._reflected(), *shared))
        self.metrics.answered(name, reply.status, clock.monotonic_seconds() - started)

    def _reflected(self) -> Headers:
        """Of every answer, a refusal too: how durable the log is, and the seq whose state it reflects."""
        return (
            (b"engram-durability", self.bus.durability.encode()),
            (b"engram-applied-seq", b"%d" % self.bus.head),
        )

    def _let_in(self, headers: Mapping[bytes, bytes]) -> Headers:
        """What the answer says to a page of another origin; nothing, for nearly all. Raises ForbiddenOrigin."""
        host, origin = headers.get(b"host", b""), headers.get(b"origin")
        self._check_host(host)
        if origin is None:
            return _NOT_SHARED
        self._origins.check_origin(origin.decode("latin-1"), host=host.decode("latin-1"))
        return ((b"access-control-allow-origin", origin), *_SHARED)

    def _match(self, scope: Scope, path: str) -> tuple[Operation, Handler, dict[str, str]]:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        hot = self._hot.get((method, path))
        if hot is not None:
            return (*hot, {})
        if (page := self._pages.get(path)) is not None and method == "GET":
            kind, body = page
            raise _Static(200, body, ((b"content-type", kind.encode()), *_PAGE_HEADERS))
        allowed = ["GET"] if page is not None else []
        for route, operation, handler in self._routes:
            match, found = route.matches({"type": "http", "method": method, "path": path})
            if match is Match.FULL:
                return operation, handler, found["path_params"]
            if match is Match.PARTIAL:
                allowed.append(operation.method)
        if path == "/stream":
            raise RouteNotFound("/stream is a WebSocket; /stream-sse is the same for HTTP")
        if allowed:
            raise MethodNotAllowed(f"{path[:256]} takes {', '.join(allowed)}, not {method}", allow=", ".join(allowed))
        raise RouteNotFound(f"nothing is at {path[:256]!r}")

    async def _perform(self, handler: Handler, call: Call) -> Reply:
        call.values = read(call.query, call.operation.parameters)
        if call.operation.is_read:
            await self.bus.wait_for(call.values["min_seq"], timeout_ms=call.values["timeout_ms"])
        return await handler(call)

    # --- Append ------------------------------------------------------------------------------------------------------

    async def _append(self, call: Call) -> Reply:
        media_type = call.media_type()
        command = self._append_of(call, media_type, await call.body(UNIT_REQUEST_BYTES_MAX))
        return self._appended(call, await self.bus.execute(command))

    def _take_append(self, headers: Mapping[bytes, bytes], body: bytes, respond: Respond) -> None:
        """As `_append`, of a request that the edge took whole."""
        started, shared = clock.monotonic_seconds(), _NOT_SHARED
        asked = Asked(self._hot["POST", "/workunit"][0], headers)

        def reply_with(reply: Reply) -> None:
            respond(reply.status, (*reply.headers, _length(reply), *self._reflected(), *shared), reply.body)
            self.metrics.answered("append", reply.status, clock.monotonic_seconds() - started)

        def done(outcome: Answer | EngramError) -> None:
            try:
                reply = _refusing(outcome) if isinstance(outcome, EngramError) else self._appended(asked, outcome)
            except Exception as exc:
                reply = _refusing(exc)
            reply_with(reply)

        try:
            shared = self._let_in(headers)
            self.bus.submit(self._append_of(asked, asked.media_type(), body), done)
        except Exception as exc:
            reply_with(_refusing(exc))

    def _append_of(self, asked: Asked, media_type: str, body: bytes) -> Append:
        append = _APPENDS[media_type](body, agent_id=asked.header(b"x-agent-id"))
        with_headers: Append = self._with_headers(asked, append, append.draft.context_id)
        return with_headers

    def _appended(self, asked: Asked, answer: Answer) -> Reply:
        entry = answer.entries[0]
        media_header, encode = _UNITS[_preferred(asked.headers.get(b"accept", b""))]
        return Reply(201, encode(entry), self._write_headers(answer, entry.unit.version, media_header))

    def _with_headers(self, asked: Asked, command: Any, context_id: str) -> Any:
        """The command with what headers say; where header and body both say something, they must agree."""
        changes: dict[str, Any] = {}
        key = asked.header(b"idempotency-key")
        if key is not None:
            changes["idempotency_key"] = _agreed(command.idempotency_key, key, "idempotency_key")
        expected = self._expected_version(asked, context_id)
        if expected is not None:
            changes["expected_version"] = _agreed(command.expected_version, expected, "expected_version")
        return msgspec.structs.replace(command, **changes) if changes else command

    def _expected_version(self, asked: Asked, context_id: str) -> int | None:
        none_match = asked.headers.get(b"if-none-match")
        if none_match is not None:
            if none_match.strip() != b"*":
                raise InvalidRequest("If-None-Match takes * here", field="If-None-Match")
            return 0
        match = asked.headers.get(b"if-match")
        if match is None:
            return None
        if match.strip() == b"*":
            if self.bus.writer.state.contexts.version(context_id) == 0:
                raise VersionMoved(f"context {context_id!r} does not exist", field="If-Match", current_version=0)
            return None
        digits = match.strip().strip(b'"')
        if not digits.isdigit() or len(digits) > 18:
            raise InvalidRequest('If-Match takes a version ("5") or *', field="If-Match")
        return int(digits)

    def _write_headers(
        self, answer: Answer, version: int | None, media_header: tuple[bytes, bytes] = _JSON_TYPE
    ) -> Headers:
        headers = [media_header]
        if version is not None:
            headers.append((b"etag", b'"%d"' % version))
        if answer.replayed:
            headers.append((b"idempotency-replayed", b"true"))
        return headers

    async def _append_bulk(self, call: Call) -> Reply:
        is_atomic = call.values["atomic"]
        for name in ("If-Match", "If-None-Match"):
            if name.lower().encode() in call.headers:
                raise InvalidRequest(f"{name} is for one unit: a batch's units have expected_version", field=name)
        media_type = call.media_type()
        items = _items(media_type, await call.body(BULK_BYTES_MAX))
        agent_id = call.header(b"x-agent-id")
        key = call.header(b"idempotency-key")
        if is_atomic:
            return await self._append_atomic(items, agent_id, key)
        if key is not None:
            raise InvalidRequest(
                "one Idempotency-Key is for an atomic batch; each unit of this one may have its own",
                field="Idempotency-Key",
            )
        results = await self.bus.execute_bulk([_parsed(item, agent_id) for item in items])
        failed = any(isinstance(result, EngramError) for result in results)
        body = _results(results, self.bus.head)
        return Reply(207 if failed else 201, body, self._write_headers(Answer(()), None))

    async def _append_atomic(self, items: list[bytes], agent_id: str | None, key: str | None) -> Reply:
        appends = []
        for index, item in enumerate(items):
            one = _parsed(item, agent_id)
            if isinstance(one, EngramError):
                raise one.at(index)
            appends.append(one)
        answer = await self.bus.execute(AppendAtomic(appends=tuple(appends), idempotency_key=key))
        body = _results([Answer((entry,)) for entry in answer.entries], self.bus.head)
        return Reply(201, body, self._write_headers(answer, None))

    # --- Read --------------------------------------------------------------------------------------------------------

    async def _get(self, call: Call) -> Reply:
        return self._read_reply(self.bus.get(call.path["id"]).json)

    async def _list(self, call: Call) -> Reply:
        return self._list_context(call, call.path["context_id"])

    async def _list_by_query(self, call: Call) -> Reply:
        return self._list_context(call, _required(call, "context_id"))

    def _list_context(self, call: Call, context_id: str) -> Reply:
        values = call.values
        narrows = values["type"] or values["agent"] or values["kind"]
        page = self.bus.list(
            context_id,
            limit=values["limit"],
            page=values["page"],
            reverse=values["reverse"],
            after=0 if values["after"] is None else self.bus.seq_of_bound(values["after"], "after"),
            before=None if values["before"] is None else self.bus.seq_of_bound(values["before"], "before"),
            wanted=make_filter(contexts=("*",), types=values["type"], agents=values["agent"], kinds=values["kind"])
            if narrows
            else None,
        )
        body = b'{"work_units":[%b],"next_page":%b,"applied_seq":%d}' % (
            b",".join([entry.json for entry in page.entries]),
            encode_json(page.next_page),
            page.applied_seq,
        )
        return self._read_reply(body)

    async def _related(self, call: Call) -> Reply:
        page = self.bus.related(
            call.path["id"],
            direction=call.values["direction"],
            depth=call.values["depth"],
            types=[RelationshipType(name) for name in call.values["type"]],
        )
        related = b",".join(
            b'{"work_unit":%b,"relationship":"%b","direction":"%b","depth":%d,"from_id":"%b"}'
            % (one.entry.json, one.relationship.encode(), one.direction.encode(), one.depth, one.from_id.encode())
            for one in page.related
        )
        body = b'{"related":[%b],"missing":%b,"truncated":%b,"applied_seq":%d}' % (
            related,
            encode_json(page.missing),
            encode_json(page.truncated),
            page.applied_seq,
        )
        return self._read_reply(body)

    def _read_reply(self, body: bytes, *headers: tuple[bytes, bytes]) -> Reply:
        return Reply(200, body, [_JSON_TYPE, *headers])

    # --- Contexts ----------------------------------------------------------------------------------------------------

    async def _get_context(self, call: Call) -> Reply:
        return self._context_reply(call.path["context_id"])

    def _context_reply(self, context_id: str) -> Reply:
        context = self.bus.context(context_id)
        return self._read_reply(encode_json(context), (b"etag", b'"%d"' % context.version))

    async def _contexts(self, call: Call) -> Reply:
        if call.values["context_id"] is not None:
            _refuse_beside("context_id", call, "prefix", "page")
            return self._context_reply(call.values["context_id"])
        page = self.bus.contexts(limit=call.values["limit"], page=call.values["page"], prefix=call.values["prefix"])
        return self._read_reply(encode_json(page))

    async def _update_context(self, call: Call) -> Reply:
        return await self._update(call, call.path["context_id"])

    async def _update_context_by_query(self, call: Call) -> Reply:
        return await self._update(call, _required(call, "context_id"))

    async def _update(self, call: Call, context_id: str) -> Reply:
        call.media_type()
        change = parse(_decode_context, await call.body(CONTEXT_REQUEST_BYTES_MAX))
        agent_id = change.agent_id or call.header(b"x-agent-id") or ANONYMOUS
        command = UpdateContext(
            context_id=context_id,
            agent_id=agent_id,
            display_name=change.display_name,
            add_agents=tuple(change.add_agents),
            remove_agents=tuple(change.remove_agents),
            pin_units=tuple(change.pin_units),
            unpin_units=tuple(change.unpin_units),
            meta=change.meta,
            fences=None if change.fences is None else tuple(change.fences),
            closed=change.closed,
            expected_version=change.expected_version,
            idempotency_key=change.idempotency_key,
        )
        answer = await self.bus.execute_update(self._with_headers(call, command, context_id))
        assert answer.context is not None, "an update answers with its context"
        return Reply(200, encode_json(answer.context), self._write_headers(answer, answer.context.version))

    # --- Locks -------------------------------------------------------------------------------------------------------

    async def _acquire_lock(self, call: Call) -> Reply:
        call.media_type()
        if b"idempotency-key" in call.headers:
            raise InvalidRequest("asking again extends the same lock: no key is needed", field="Idempotency-Key")
        asked = parse(_decode_lock, await call.body(LOCK_REQUEST_BYTES_MAX))
        command = acquire_from(asked, agent_id=call.header(b"x-agent-id"))
        with self.bus.asking(command) as answered:
            answer = await call.while_there(answered)
        assert answer.lock is not None, "an acquire answers with its lock"
        status = 201 if answer.entries[0].unit.kind == GRANTED else 200
        return Reply(status, encode_json(lock_out(answer.lock)), [_JSON_TYPE])

    async def _refresh_lock(self, call: Call) -> Reply:
        return await self._refresh(call, call.path["resource"])

    async def _refresh_lock_by_query(self, call: Call) -> Reply:
        return await self._refresh(call, _required(call, "resource"))

    async def _refresh(self, call: Call, resource: str) -> Reply:
        call.media_type()
        asked = parse(_decode_refresh, await call.body(LOCK_REQUEST_BYTES_MAX))
        answer = await self.bus.execute(refresh_from(asked, agent_id=call.header(b"x-agent-id"), resource=resource))
        assert answer.lock is not None, "a refresh answers with its lock"
        return Reply(200, encode_json(lock_out(answer.lock)), [_JSON_TYPE])

    async def _release_lock(self, call: Call) -> Reply:
        return await self._release(call, call.path["resource"])

    async def _release_lock_by_query(self, call: Call) -> Reply:
        return await self._release(call, _required(call, "resource"))

    async def _release(self, call: Call, resource: str) -> Reply:
        values = call.values
        agent_id = acting(values["agent_id"], call.header(b"x-agent-id"), named_in="the query")
        lock_id = values["lock_id"]
        command: BreakLock | ReleaseLock
        if values["break"]:
            command = BreakLock(resource=resource, agent_id=agent_id, reason=values["reason"], lock_id=lock_id)
        else:
            if values["reason"]:
                raise InvalidRequest("reason is for a break: a release needs none", field="reason")
            command = ReleaseLock(resource=resource, agent_id=agent_id, lock_id=_required(call, "lock_id"))
        answer = await self.bus.execute(command)
        lock_ids = [change_of(entry.unit).lock_id or "" for entry in answer.entries]
        released = Released(
            resource=canonical(resource), released=bool(lock_ids), lock_ids=lock_ids, applied_seq=self.bus.head
        )
        return Reply(200, encode_json(released), [_JSON_TYPE])

    async def _lock(self, call: Call) -> Reply:
        return self._lock_reply(call, call.path["resource"])

    def _lock_reply(self, call: Call, resource: str) -> Reply:
        state, token = self.bus.lock(resource), call.values["token"]
        found = ResourceOut(
            resource=state.resource,
            holders=[lock_on(lock, covering(lock, state.resource)) for lock in state.holders],
            holder_count=state.holder_count,
            queue_length=state.queue_length,
            queue=list(state.queue),
            applied_seq=self.bus.head,
            valid=msgspec.UNSET if token is None else self.bus.is_fence_valid(resource, token),
        )
        return self._read_reply(encode_json(found))

    async def _locks(self, call: Call) -> Reply:
        values = call.values
        if values["resource"] is not None:
            _refuse_beside("resource", call, "holder", "prefix", "page")
            return self._lock_reply(call, values["resource"])
        if values["token"] is not None:
            raise InvalidRequest("token is checked for one resource: name it", field="resource")
        page = self.bus.locks(
            holder=values["holder"], prefix=values["prefix"], limit=values["limit"], page=values["page"]
        )
        found = LockList(
            locks=[lock_on(lock, resource) for resource, lock in page.locks],
            next_page=page.next_page,
            applied_seq=page.applied_seq,
        )
        return self._read_reply(encode_json(found))

    # --- Search ------------------------------------------------------------------------------------------------------

    async def _search(self, call: Call) -> Reply:
        call.media_type()
        asked = parse(_decode_search, await call.body(SEARCH_REQUEST_BYTES_MAX))
        return self._read_reply(encode_json(await self.bus.execute_search(asked)))

    async def _rebuild_search(self, call: Call) -> Reply:
        self.bus.rebuild_search()
        return Reply(202, encode_json(search_status(self.bus, self.bus.start_search())), [_JSON_TYPE])

    # --- The bus itself ----------------------------------------------------------------------------------------------

    async def _status(self, call: Call) -> Reply:
        return Reply(200, encode_json(self._health.status()), [_JSON_TYPE])

    async def _healthz(self, call: Call) -> Reply:
        return Reply(200, encode_json(Alive("ok")), [_JSON_TYPE])

    async def _readyz(self, call: Call) -> Reply:
        ready = self._health.ready()
        return Reply(200 if ready.ready else 503, encode_json(ready), [_JSON_TYPE])

    async def _metrics(self, call: Call) -> Reply:
        return Reply(200, self.metrics.text(), [(b"content-type", METRICS_TYPE.encode())])

    # --- Streams -----------------------------------------------------------------------------------------------------

    async def _stream_sse(self, call: Call, send: Send, shared: Headers) -> None:
        request = from_query(pairs(call.query), last_event_id=call.header(b"last-event-id"))
        if request is None:
            raise InvalidRequest("name the contexts to subscribe to, or * for all", field="context")
        if self.bus.writer.is_closed:
            raise self.bus.writer.refusal or InternalError("the bus is closed")
        after = self.bus.seq_of_cursor(request.after)
        headers = [*SSE_HEADERS, *self._reflected(), *shared]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        if call.scope["method"] == "HEAD":
            await send(start)
        else:
            with contextlib.closing(Stream(self.bus, socket_of(call.scope), request, after)) as stream:
                await send(start)
                stream.begin()
                await call.while_there(stream.over)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        try:
            headers = _once(scope["headers"])
            self._let_in(headers)
            subprotocol = _subprotocol(scope)
            agent_id = _agent_of(scope, headers)
        except EngramError as exc:
            await _refuse_handshake(send, exc)
            return
        accept: dict[str, Any] = {"type": "websocket.accept", "subprotocol": subprotocol, "headers": []}
        await send(accept)
        socket = socket_of(scope)
        connection = Connection(self.bus, socket, subprotocol=subprotocol or JSON_PROTOCOL, agent_id=agent_id)
        socket.attach(connection)
        self.sockets.add(connection)
        try:
            self._open(connection, scope)
            while (await receive())["type"] != "websocket.disconnect":
                pass
        finally:
            self.sockets.discard(connection)
            connection.lost()

    def _open(self, connection: Connection, scope: Scope) -> None:
        try:
            request = from_query(pairs(scope["query_string"]))
        except EngramError as exc:
            connection.refuse(exc)
        else:
            connection.open(request)

    def goaway(self, reason: str) -> None:
        """Tell every stream that the bus stops, and where to resume."""
        self.bus.goaway(reason)
        for connection in list(self.sockets):
            connection.goaway(reason)


class _Static(Exception):
    """An answer that is the same every time."""

    def __init__(self, status: int, body: bytes, headers: Headers) -> None:
        super().__init__(status)
        self.reply = Reply(status, body, headers)


async def _never() -> None:
    raise AssertionError("routes are matched here, not called")


async def _send(send: Send, reply: Reply, method: str, shared: Headers) -> None:
    length = () if reply.status == 204 else (_length(reply),)
    headers = [*reply.headers, *length, *shared]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else reply.body})


def _length(reply: Reply) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % len(reply.body)


def _refusing(exc: Exception) -> Reply:
    """The problem that an error is; ours, where it is a mistake of ours."""
    if not isinstance(exc, EngramError):
        log.error("a request failed", exc_info=exc)
        exc = InternalError("the request could not be answered; the log of the bus says why")
    return Reply(exc.status, problem_body(exc), problem_headers(exc))


_APPENDS: Mapping[str, Callable[..., Append]] = {
    JSON: append_from_json,
    MSGPACK: append_from_msgpack,
    PROTOBUF: append_from_protobuf,
}
_UNITS: Mapping[str, tuple[tuple[bytes, bytes], Callable[[Entry], bytes]]] = {
    JSON: (_JSON_TYPE, lambda entry: entry.json),
    MSGPACK: ((b"content-type", MSGPACK.encode()), lambda entry: entry.body),
    PROTOBUF: ((b"content-type", PROTOBUF.encode()), unit_bytes),
}


@lru_cache(maxsize=64)
def _preferred(accept: bytes) -> str:
    """The encoding of a unit that an Accept header asks for (RFC 9110, 12.5.1): of those there are, the first that it
    wants most. JSON where it names none: who asks for a page of HTML can read that as well."""
    best, best_quality = JSON, 0.0
    for offer in accept.decode("latin-1").lower().split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        wanted = JSON if name in ("*/*", "application/*") else name
        quality = next((one[2:] for one in parameters if one.startswith("q=")), "1")
        try:
            weight = float(quality)
        except ValueError:
            continue
        if wanted in _UNITS and weight > best_quality:
            best, best_quality = wanted, weight
    return best


def _path(scope: Scope) -> str:
    """The path without the prefix. Raises InvalidRequest where it holds bytes that are no text (uvicorn would read two
    such paths as one), or a line break."""
    path: str = scope["path"]
    if "\n" in path:
        raise InvalidRequest("the path has a line break", field="path")  # No route would match, whatever is asked.
    if "\ufffd" in path:
        try:
            unquote(scope["raw_path"].decode("ascii"), errors="strict")
        except UnicodeDecodeError as exc:
            raise InvalidRequest("the path is not UTF-8", field="path") from exc
    return path[len(PREFIX) :] if path.startswith(PREFIX + "/") else path


def _subprotocol(scope: Scope) -> str | None:
    """What the two sides speak; None where the client offers nothing (it gets JSON). Raises RouteNotFound,
    InvalidRequest: a client that offers only what we do not speak would not understand us."""
    path = _path(scope)
    if path != "/stream":
        raise RouteNotFound(f"no WebSocket is at {path[:256]!r}; it is at /stream")
    offered = scope["subprotocols"]
    spoken = next((name for name in offered if name in (JSON_PROTOCOL, MSGPACK_PROTOCOL)), None)
    if offered and spoken is None:
        raise InvalidRequest(
            f"subprotocol {', '.join(offered)[:256]!r} is not spoken here; {JSON_PROTOCOL} and {MSGPACK_PROTOCOL} are",
            field="Sec-WebSocket-Protocol",
        )
    return spoken


async def _refuse_handshake(send: Send, error: EngramError) -> None:
    headers = problem_headers(error)
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": problem_body(error)})


def _agent_of(scope: Scope, headers: Mapping[bytes, bytes]) -> str | None:
    """The agent a socket acts for: X-Agent-ID, or (browsers cannot set it) `agent_id` in the query."""
    told = headers.get(b"x-agent-id")
    if told is not None:
        return _text(b"x-agent-id", told)
    try:
        return next((value for name, value in pairs(scope["query_string"]) if name == "agent_id"), None)
    except InvalidRequest:
        return None  # The open socket is told so; the query says more than this.


def _once(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers by name. Raises InvalidRequest where one that is read comes twice: which one is meant?"""
    by_name = dict(headers)
    if len(by_name) < len(headers):
        seen = set()
        for name, _ in headers:
            if name in seen and name in _READ:
                raise InvalidRequest(f"header {_READ[name]} is given more than once", field=_READ[name])
            seen.add(name)
    return by_name


def _text(name: bytes, value: bytes) -> str:
    """A header as text. Raises InvalidRequest for bytes that are none."""
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"header {name.decode()} is not UTF-8", field=name.decode()) from exc


def _items(media_type: str, body: bytes) -> list[bytes]:
    """The units of a bulk, each as its own JSON."""
    if media_type == JSON:
        items = [bytes(item) for item in parse(_decode_items, body)]
    else:
        items = [line for line in body.split(b"\n") if line.strip()]
    if not items:
        raise InvalidRequest("the batch is empty: name at least one unit")
    if len(items) > BULK_UNITS_MAX:
        raise TooLarge(f"{len(items)} units in one batch, at most {BULK_UNITS_MAX}", limit=BULK_UNITS_MAX)
    return items


def _parsed(item: bytes, agent_id: str | None) -> Append | EngramError:
    try:
        return append_from_json(item, agent_id=agent_id)
    except EngramError as exc:
        return exc


def _results(results: Sequence[Answer | EngramError], head: int) -> bytes:
    parts = [
        b'{"error":%b}' % problem_body(result.at(index))
        if isinstance(result, EngramError)
        else b'{"work_unit":%b}' % result.entries[0].json
        for index, result in enumerate(results)
    ]
    return b'{"results":[%b],"applied_seq":%d}' % (b",".join(parts), head)


def _agreed(in_body: Any, in_header: Any, field: str) -> Any:
    if in_body is not None and in_body != in_header:
        raise InvalidRequest(f"{field} differs between the body and its header", field=field)
    return in_header


def _refuse_beside(one: str, call: Call, *names: str) -> None:
    """Who names one thing chooses from nothing. Raises InvalidRequest."""
    for name in names:
        if call.values[name]:
            raise InvalidRequest(f"{name} chooses from a list, and {one} names one: leave one of them out", field=name)


def _required(call: Call, name: str) -> str:
    value = call.values[name]
    if value is None:
        raise InvalidRequest(f"{name} is missing", field=name)
    return str(value)
