"""Values to the messages of proto/engram/v1 and back, as `codec` does it for JSON and MessagePack."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

import msgspec
from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from engram_client import codec
from engram_client.errors import BY_CODE, EngramConnectionError, EngramError, InvalidRequest, error_from
from engram_client.frames import Appended, Frame, Goaway, Heartbeat, Missing, Refused, Subscribed, Units
from engram_client.pb import (
    append_pb2,
    context_pb2,
    error_pb2,
    lock_pb2,
    read_pb2,
    search_pb2,
    status_pb2,
    subscription_pb2,
    unit_pb2,
)
from engram_client.requests import (
    BreakRequest,
    ContextChange,
    Filter,
    LockRequest,
    ReadContext,
    ReadContexts,
    ReadLock,
    ReadLocks,
    ReadRelated,
    ReadUnit,
    ReadUnits,
    Search,
)
from engram_client.values import (
    Context,
    ContextPage,
    Cursor,
    Disk,
    Draft,
    Highlight,
    Lock,
    LockMode,
    LockState,
    LockWait,
    Outcome,
    Page,
    Receipt,
    Related,
    RelatedUnit,
    Relationship,
    RelationshipType,
    SearchExplained,
    SearchHit,
    SearchLeg,
    SearchPage,
    SearchStatus,
    Status,
    UnitType,
    WorkUnit,
)
from engram_client.verbs import LockPage

M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=str)
T = TypeVar("T")


class _Names(Generic[N]):
    """The names of an enum as values have them, and their numbers. A number that a newer bus sends names itself."""

    def __init__(self, kind: Callable[[str], N], items: Iterable[tuple[str, int]], *, lower: bool = False) -> None:
        self._kind = kind
        self._numbers = {name.lower() if lower else name: number for name, number in items}
        self._names = {number: kind(name) for name, number in self._numbers.items()}

    def number(self, name: str | None, field: str) -> int | None:
        """Raises InvalidRequest for a name that is none."""
        if name is None:
            return None
        number = self._numbers.get(name)
        if number is None:
            raise InvalidRequest(f"{field} {name!r} is unknown; one of {', '.join(self._numbers)}", field=field)
        return number

    def numbers(self, names: Sequence[str] | None, field: str) -> list[int | None] | None:
        return None if names is None else [self.number(name, field) for name in names]

    def name(self, number: int) -> N:
        return self._names.get(number) or self._kind(str(number))


_TYPES: Final = _Names(UnitType, unit_pb2.WorkUnit.Type.items())
_RELATIONSHIPS: Final = _Names(RelationshipType, unit_pb2.Relationship.Type.items())
_DIRECTIONS: Final = _Names(str, read_pb2.RelatedRequest.Direction.items(), lower=True)
_LOCK_MODES: Final = _Names(LockMode, lock_pb2.Lock.Mode.items(), lower=True)
_SEARCH_MODES: Final = _Names(str, search_pb2.SearchRequest.Mode.items(), lower=True)
_FUSIONS: Final = _Names(str, search_pb2.SearchRequest.Fusion.items(), lower=True)
_INCLUDES: Final = _Names(str, search_pb2.SearchRequest.Include.items(), lower=True)

_BYTES: Final = "application/octet-stream"
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001  # UTC, as every time of the wire

# --- Sending ---------------------------------------------------------------------------------------------------------


def append_request(draft: Draft, *, agent_id: str, idempotency_key: str | None) -> append_pb2.AppendRequest:
    """An append; `agent_id` and `idempotency_key` serve where the draft names none. Raises InvalidRequest."""
    content_type, payload = _payload(draft)
    return _message(
        append_pb2.AppendRequest,
        context_id=draft.context_id,
        agent_id=draft.agent_id or agent_id,
        type=_TYPES.number(draft.type, "type"),
        kind=draft.kind,
        content_type=content_type,
        payload=payload,
        meta=draft.meta or None,
        resources=_texts(draft.resources, "resources"),
        relationships=[_relationship(one, index) for index, one in enumerate(draft.relationships or ())],
        traceparent=draft.traceparent,
        id=draft.id,
        idempotency_key=draft.idempotency_key or idempotency_key,
        expected_version=draft.expected_version,
        fence=None
        if draft.fence is None
        else _message(append_pb2.Fence, resource=draft.fence.resource, token=draft.fence.token),
    )


def stream_request(draft: Draft, *, append_id: int, agent_id: str, idempotency_key: str) -> bytes:
    """One append as a message of a stream. (Messages joined are one message with all of their appends.)"""
    append = append_request(draft, agent_id=agent_id, idempotency_key=idempotency_key)
    item = append_pb2.AppendStreamItem(id=append_id, append=append)
    return append_pb2.AppendStreamRequest(items=[item]).SerializeToString()


def bulk_request(
    drafts: Sequence[Draft],
    *,
    agent_id: str,
    idempotency_keys: Sequence[str | None],
    atomic: bool,
    idempotency_key: str | None,
) -> append_pb2.AppendBulkRequest:
    keyed = zip(drafts, idempotency_keys, strict=True)
    return _message(
        append_pb2.AppendBulkRequest,
        appends=[append_request(draft, agent_id=agent_id, idempotency_key=key) for draft, key in keyed],
        atomic=atomic,
        idempotency_key=idempotency_key,
    )


def _payload(draft: Draft) -> tuple[str | None, bytes | None]:
    """As in the other encodings; here it is bytes, and text unless something else is said."""
    match codec.payload(draft):
        case content_type, bytes() as raw:
            return content_type or _BYTES, raw
        case content_type, str() as text:
            return content_type, _text(text, "payload")
        case content_type, _:
            return content_type, None


def _text(text: str, field: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(f"cannot be written: {exc}", field=field) from exc


def _relationship(one: Relationship, index: int) -> unit_pb2.Relationship:
    number = _RELATIONSHIPS.number(one.type, f"relationships[{index}].type")
    return _message(unit_pb2.Relationship, target_id=one.target_id, type=number, meta=one.meta)


def get_request(asked: ReadUnit) -> read_pb2.GetRequest:
    return _message(read_pb2.GetRequest, **_said(asked))


def list_request(asked: ReadUnits) -> read_pb2.ListRequest:
    return _message(read_pb2.ListRequest, **{**_said(asked), "type": _TYPES.numbers(asked.type, "type")})


def related_request(asked: ReadRelated) -> read_pb2.RelatedRequest:
    numbers = {
        "type": _RELATIONSHIPS.numbers(asked.type, "type"),
        "direction": _DIRECTIONS.number(asked.direction, "direction"),
    }
    return _message(read_pb2.RelatedRequest, **{**_said(asked), **numbers})


def search_request(asked: Search) -> search_pb2.SearchRequest:
    numbers = {
        "mode": _SEARCH_MODES.number(asked.mode, "mode"),
        "type": _TYPES.numbers(asked.type, "type"),
        "fusion": _FUSIONS.number(asked.fusion, "fusion"),
        "include": _INCLUDES.number(asked.include, "include"),
    }
    times = {"after_ts": msgspec.to_builtins(asked.after_ts), "before_ts": msgspec.to_builtins(asked.before_ts)}
    return _message(search_pb2.SearchRequest, **{**_said(asked), **numbers, **times})


def get_context_request(asked: ReadContext) -> context_pb2.GetContextRequest:
    return _message(context_pb2.GetContextRequest, **_said(asked))


def list_contexts_request(asked: ReadContexts) -> context_pb2.ListContextsRequest:
    return _message(context_pb2.ListContextsRequest, **_said(asked))


def update_request(context_id: str, change: ContextChange) -> context_pb2.UpdateContextRequest:
    meta = change.meta or {}
    fences = _texts(change.fences, "fences")
    parts = {
        "meta": {key: value for key, value in meta.items() if value is not None},
        "unset_meta": [key for key, value in meta.items() if value is None],
        "fences": None if fences is None else _message(context_pb2.FenceGlobs, globs=fences),
    }
    return _message(context_pb2.UpdateContextRequest, context_id=context_id, **{**_said(change), **parts})


def acquire_request(
    asked: LockRequest, *, wait_seconds: float, session: str | None = None
) -> lock_pb2.AcquireLockRequest:
    """What asks for a lock, which may be tied to a session."""
    mode = _LOCK_MODES.number(asked.mode, "mode")
    said = {**_said(asked), "mode": mode, "wait_seconds": wait_seconds, "session": session}
    return _message(lock_pb2.AcquireLockRequest, **said)


def sign_of_life(number: int) -> bytes:
    return lock_pb2.HoldSessionRequest(id=number).SerializeToString()


def refresh_request(lock: Lock, ttl_seconds: float | None, *, agent_id: str) -> lock_pb2.RefreshLockRequest:
    return _message(lock_pb2.RefreshLockRequest, **_of(lock, agent_id), ttl_seconds=ttl_seconds)


def release_request(lock: Lock, *, agent_id: str) -> lock_pb2.ReleaseLockRequest:
    return _message(lock_pb2.ReleaseLockRequest, **_of(lock, agent_id))


def _of(lock: Lock, agent_id: str) -> dict[str, str]:
    return {"lock_id": lock.lock_id, "agent_id": agent_id, "resource": lock.resources[0]}


def break_request(asked: BreakRequest) -> lock_pb2.BreakLockRequest:
    return _message(lock_pb2.BreakLockRequest, **_said(asked))


def get_lock_request(asked: ReadLock) -> lock_pb2.GetLockRequest:
    return _message(lock_pb2.GetLockRequest, **_said(asked))


def list_locks_request(asked: ReadLocks) -> lock_pb2.ListLocksRequest:
    return _message(lock_pb2.ListLocksRequest, **_said(asked))


def subscribe_request(wanted: Filter, after: str | None) -> subscription_pb2.SubscribeRequest:
    types = _TYPES.numbers(wanted.type, "type")
    return _message(subscription_pb2.SubscribeRequest, **{**_said(wanted), "type": types, "after": after})


def _said(asked: msgspec.Struct) -> dict[str, Any]:
    """Its fields, which are called as those of its message."""
    return msgspec.structs.asdict(asked)


def _texts(texts: Sequence[str] | None, field: str) -> Sequence[str] | None:
    if isinstance(texts, str):  # which is a sequence of its letters
        raise InvalidRequest(f"{field} is a text, not a list of them", field=field)
    return texts


def _message(kind: type[M], /, **fields: Any) -> M:
    """One with all that is not None. Raises InvalidRequest, which names the field that does not fit."""
    try:
        return kind(**fields)
    except (TypeError, ValueError) as exc:
        raise InvalidRequest(f"cannot be written: {exc}", field=_misfit(kind, fields)) from exc


def _misfit(kind: type[Message], fields: Mapping[str, Any]) -> str | None:
    for name, value in fields.items():
        try:
            kind(**{name: value})
        except (TypeError, ValueError):
            return name
    return None


# --- Receiving -------------------------------------------------------------------------------------------------------


def parse(kind: type[M], body: bytes) -> M:
    """The message in these bytes. Raises EngramConnectionError where there is none."""
    return read(kind.FromString, body)


def read(decode: Callable[[M], T] | Callable[[bytes], T], message: Any) -> T:
    """What a message says. Raises EngramConnectionError where that makes no sense."""
    try:
        return decode(message)
    except (ValueError, DecodeError) as exc:
        raise EngramConnectionError(f"the answer cannot be read: {exc}", retryable=False) from exc


def unit(message: unit_pb2.WorkUnit) -> WorkUnit:
    # Most have nothing of these, and looking costs a fraction of copying nothing.
    meta, resources, relationships = message.meta, message.resources, message.relationships
    return WorkUnit(
        seq=message.seq,
        id=message.id,
        context_id=message.context_id,
        version=message.version,
        agent_id=message.agent_id,
        type=_TYPES.name(message.type),
        ts=time(message.ts),
        content_type=message.content_type,
        kind=message.kind if message.HasField("kind") else None,
        meta=dict(meta) if meta else {},
        resources=list(resources) if resources else [],
        relationships=[
            Relationship(one.target_id, _RELATIONSHIPS.name(one.type), dict(one.meta)) for one in relationships
        ]
        if relationships
        else [],
        traceparent=message.traceparent if message.HasField("traceparent") else None,
        payload=message.payload,
    )


def time(stamp: Timestamp) -> str:
    """As everywhere else on the wire: RFC 3339 in UTC, with microseconds."""
    return f"{_second(stamp.seconds)}.{stamp.nanos // 1_000:06}Z"


@lru_cache(maxsize=1_024)
def _second(seconds: int) -> str:
    try:
        return (_EPOCH + timedelta(seconds=seconds)).isoformat(timespec="seconds")
    except OverflowError as exc:
        raise ValueError(f"{seconds} seconds after 1970 is no time") from exc


def outcomes(message: append_pb2.AppendBulkResponse) -> list[Outcome]:
    return [unit(one.work_unit) if one.HasField("work_unit") else error(one.error) for one in message.results]


def page(message: read_pb2.ListResponse) -> Page:
    return Page([unit(one) for one in message.work_units], _next_page(message), message.applied_seq)


def related(message: read_pb2.RelatedResponse) -> Related:
    found = [
        RelatedUnit(
            unit(one.work_unit),
            _RELATIONSHIPS.name(one.relationship),
            _DIRECTIONS.name(one.direction),
            one.depth,
            one.from_id,
        )
        for one in message.related
    ]
    return Related(found, list(message.missing), message.truncated, message.applied_seq)


def _next_page(
    message: read_pb2.ListResponse
    | context_pb2.ListContextsResponse
    | lock_pb2.ListLocksResponse
    | search_pb2.SearchResponse,
) -> str | None:
    return message.next_page if message.HasField("next_page") else None


def context(message: context_pb2.Context) -> Context:
    return Context(
        id=message.id,
        version=message.version,
        created_at=time(message.created_at),
        updated_at=time(message.updated_at),
        display_name=message.display_name,
        agent_ids=list(message.agent_ids),
        pinned_units=list(message.pinned_units),
        meta=dict(message.meta),
        fences=list(message.fences),
        closed=message.closed,
    )


def contexts(message: context_pb2.ListContextsResponse) -> ContextPage:
    return ContextPage([context(one) for one in message.contexts], _next_page(message), message.applied_seq)


# --- Locks


def lock(messages: Sequence[lock_pb2.Lock], *, extended: bool) -> Lock:
    """Of one for each resource."""
    if not messages:
        raise ValueError("a lock on nothing")
    return _lock(messages[0], resources=[one.resource for one in messages], extended=extended)


def acquired(message: lock_pb2.AcquireLockResponse) -> Lock:
    return lock(message.locks, extended=message.extended)


def refreshed(message: lock_pb2.RefreshLockResponse) -> Lock:
    return lock(message.locks, extended=True)


def _lock(message: lock_pb2.Lock, *, resources: list[str] | None = None, extended: bool = False) -> Lock:
    return Lock(
        lock_id=message.lock_id,
        resources=[message.resource] if resources is None else resources,
        holder_agent=message.holder_agent,
        mode=_LOCK_MODES.name(message.mode),
        fencing_token=message.fencing_token,
        granted_at=time(message.granted_at),
        expires_at=time(message.expires_at),
        remaining_seconds=message.remaining_seconds,
        reason=message.reason,
        context_id=message.context_id,
        extended=extended,
    )


def lock_state(message: lock_pb2.GetLockResponse) -> LockState:
    return LockState(
        resource=message.resource,
        holders=[_lock(one) for one in message.holders],
        holder_count=message.holder_count,
        queue_length=message.queue_length,
        queue=[_wait(one) for one in message.queue],
        applied_seq=message.applied_seq,
        valid=message.valid if message.HasField("valid") else None,
    )


def _wait(message: lock_pb2.LockWait) -> LockWait:
    return LockWait(
        wait_id=message.wait_id,
        resources=list(message.resources),
        agent_id=message.agent_id,
        mode=_LOCK_MODES.name(message.mode),
        queued_at=time(message.queued_at),
        deadline=time(message.deadline),
        reason=message.reason,
    )


def lock_page(message: lock_pb2.ListLocksResponse) -> LockPage:
    return [_lock(one) for one in message.locks], _next_page(message)


# --- Search and status


def search_page(message: search_pb2.SearchResponse, *, facets: bool) -> SearchPage:
    return SearchPage(
        results=[_hit(one) for one in message.results],
        total=message.total,
        applied_seq=message.applied_seq,
        next_page=_next_page(message),
        facets={name: dict(facet.counts) for name, facet in message.facets.items()} if facets else None,
        degraded=message.degraded,
    )


def _hit(message: search_pb2.SearchResult) -> SearchHit:
    return SearchHit(
        unit_id=message.unit_id,
        seq=message.seq,
        score=message.score,
        tokens=message.tokens,
        keyword=_leg(message.keyword) if message.HasField("keyword") else None,
        vector=_leg(message.vector) if message.HasField("vector") else None,
        highlights=[Highlight(one.text, [(span.first, span.end) for span in one.spans]) for one in message.highlights],
        duplicates=message.duplicates,
        explain=_explained(message.explain) if message.HasField("explain") else None,
        unit=unit(message.unit) if message.HasField("unit") else None,
    )


def _leg(message: search_pb2.SearchLeg) -> SearchLeg:
    return SearchLeg(message.rank, message.score)


def _explained(message: search_pb2.SearchExplained) -> SearchExplained:
    return SearchExplained(
        fusion=_FUSIONS.name(message.fusion),
        vector_weight=message.vector_weight,
        keyword_part=message.keyword_part,
        vector_part=message.vector_part,
        neighbour_part=message.neighbour_part,
        recency_part=message.recency_part,
    )


def search_status(message: search_pb2.SearchStatus) -> SearchStatus:
    return SearchStatus(
        taken_seq=message.taken_seq,
        lag_units=message.lag_units,
        lag_ms=message.lag_ms,
        generation=message.generation,
        rebuilt_seq=message.rebuilt_seq if message.HasField("rebuilt_seq") else None,
        embedder=message.embedder,
        embedder_lag_units=message.embedder_lag_units,
        embedder_trouble=message.embedder_trouble if message.HasField("embedder_trouble") else None,
    )


def status(message: status_pb2.GetStatusResponse) -> Status:
    return Status(
        epoch=message.epoch,
        head=message.head,
        cursor=message.cursor,
        durability=message.durability,
        ready=message.ready,
        reason=message.reason if message.HasField("reason") else None,
        started_at=time(message.started_at),
        uptime_seconds=message.uptime_seconds,
        version=message.version,
        contexts=message.contexts,
        locks=message.locks,
        lock_waits=message.lock_waits,
        subscribers=message.subscribers,
        queue_commands=message.queue_commands,
        lag_units=message.lag_units,
        search=search_status(message.search) if message.HasField("search") else None,
        disk=_disk(message.disk),
    )


def _disk(message: status_pb2.Disk) -> Disk:
    return Disk(
        log_bytes=message.log_bytes,
        index_bytes=message.index_bytes,
        free_bytes=message.free_bytes if message.HasField("free_bytes") else None,
    )


# --- Streams ---------------------------------------------------------------------------------------------------------


def frames(message: subscription_pb2.SubscribeResponse) -> list[Frame]:
    """What a message of a subscription says. An event that a newer bus sends moves its cursor on, if it has one."""
    event = _event(message)
    if event is not None and not message.work_units:
        return [event]
    units = [unit(one) for one in message.work_units]
    moved: list[Frame] = [Units(units, Cursor.parse(message.cursor))] if units or message.cursor else []
    return moved if event is None else [*moved, event]


def _event(message: subscription_pb2.SubscribeResponse) -> Frame | None:
    match message.WhichOneof("event"):
        case "subscribed":
            return Subscribed(Cursor.parse(message.cursor), message.subscribed.head)
        case "heartbeat":
            return Heartbeat(Cursor.parse(message.cursor), message.heartbeat.head)
        case "gap":
            return Missing(getattr(message.gap, "from"), message.gap.to, message.gap.reason)
        case "goaway":
            return Goaway(message.goaway.reason, message.goaway.retry_after_ms / 1_000)
        case _:
            return None


def answers(message: append_pb2.AppendStreamResponse) -> list[Appended | Refused]:
    """What became of appends of a stream."""
    return [
        Appended(one.id, receipt(one.receipt)) if one.HasField("receipt") else Refused(one.id, error(one.error))
        for one in message.results
    ]


def receipt(message: append_pb2.Receipt) -> Receipt:
    return Receipt(
        unit_id=message.unit_id,
        seq=message.seq,
        version=message.version,
        durability=message.durability,
        context_id=message.context_id,
        replayed=message.replayed,
    )


# --- What goes wrong -------------------------------------------------------------------------------------------------


def error(
    message: error_pb2.Error, *, status: int | None = None, retry_after_seconds: float | None = None
) -> EngramError:
    """The error that a message describes; `status` is of HTTP, and tells the family of a code that is not known."""
    own = {name: getattr(message, name) if message.HasField(name) else None for name in ("field", "limit", "index")}
    said = {
        **_object(message.details),
        **own,
        "status": None,
        "code": message.code,
        "message": message.message,
        "retryable": message.retryable,
    }
    family = None if message.code in BY_CODE else status
    return error_from(said, status=family, retry_after_seconds=retry_after_seconds)


def _plain(value: Value) -> Any:
    """Of a Struct, whose numbers are all floats: whole ones were none."""
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _object(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case _:
            return None


def _object(struct: Struct) -> dict[str, Any]:
    return {name: _plain(value) for name, value in struct.fields.items()}
