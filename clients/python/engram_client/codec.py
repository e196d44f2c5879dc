"""Bytes to values and back: drafts into bodies, answers and frames into values."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType, structs

from engram_client.errors import EngramConnectionError, EngramError, InvalidRequest, error_from
from engram_client.frames import (
    Appended,
    Frame,
    Goaway,
    Heartbeat,
    Locked,
    Missing,
    Other,
    Pong,
    Refused,
    Released,
    Subscribed,
    Units,
)
from engram_client.requests import ContextChange, LockRequest, Search
from engram_client.values import (
    Context,
    ContextPage,
    Cursor,
    Draft,
    Fence,
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

T = TypeVar("T")

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"

encode_json: Final = msgspec.json.Encoder().encode
encode_msgpack: Final = msgspec.msgpack.Encoder().encode
_encode_finite: Final = json.JSONEncoder(allow_nan=False, check_circular=False).encode


# --- Sending ---------------------------------------------------------------------------------------------------------


class _Body(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The body of an append; `payload` in MessagePack and for text, `payload_base64` for other bytes in JSON."""

    context_id: str
    agent_id: str
    type: str
    content_type: str | None = None
    payload: bytes | str | UnsetType = UNSET
    payload_base64: str | UnsetType = UNSET
    kind: str | None = None
    meta: dict[str, str] | None = None
    resources: list[str] | None = None
    relationships: list[Relationship] | None = None
    traceparent: str | None = None
    id: str | None = None
    idempotency_key: str | None = None
    expected_version: int | None = None
    fence: Fence | None = None


def append_body(draft: Draft, *, agent_id: str, idempotency_key: str | None) -> bytes:
    """The MessagePack body of an append; `agent_id` and `idempotency_key` serve where the draft names none."""
    return _encode(encode_msgpack, _packed(draft, agent_id, idempotency_key))


def append_frame(draft: Draft, *, frame_id: int, agent_id: str, idempotency_key: str) -> bytes:
    """The MessagePack frame of a pipelined append."""
    unit = _packed(draft, agent_id, idempotency_key)
    return _encode(encode_msgpack, {"op": "append", "id": frame_id, "unit": unit})


def bulk_body(drafts: Sequence[Draft], *, agent_id: str, idempotency_keys: Sequence[str | None]) -> bytes:
    """The JSON body of a bulk append."""
    keyed = zip(drafts, idempotency_keys, strict=True)
    return _encode(encode_json, [_in_json(_packed(draft, agent_id, key)) for draft, key in keyed])


def _packed(draft: Draft, agent_id: str, idempotency_key: str | None) -> _Body:
    content_type, written = payload(draft)
    return _Body(
        context_id=draft.context_id,
        agent_id=draft.agent_id or agent_id,
        type=draft.type,
        content_type=content_type,
        payload=written,
        kind=draft.kind,
        meta=draft.meta or None,
        resources=draft.resources or None,
        relationships=draft.relationships or None,
        traceparent=draft.traceparent,
        id=draft.id,
        idempotency_key=draft.idempotency_key or idempotency_key,
        expected_version=draft.expected_version,
        fence=draft.fence,
    )


def _in_json(body: _Body) -> _Body:
    if isinstance(body.payload, bytes):
        body.payload_base64 = b64encode(body.payload).decode()
        body.payload = UNSET
    return body


def payload(draft: Draft) -> tuple[str | None, bytes | str | UnsetType]:
    """What goes over the wire: bytes are bytes unless their content type is said, and a str is text. Raises
    InvalidRequest for what is no JSON."""
    match draft.payload:
        case bytes() | bytearray() | memoryview() as raw:
            empty = not raw and draft.content_type is None
            return draft.content_type, UNSET if empty else bytes(raw)
        case str() as text if draft.content_type is None:
            return None, text
        case str() as text:
            return draft.content_type, _encode(str.encode, text, field="payload")
        case value:
            return draft.content_type or JSON, _encode(_exact_json, value, field="payload")


def _exact_json(value: Any) -> bytes:
    """It as JSON. Raises ValueError for NaN and infinity, of which `encode_json` makes null."""
    written = encode_json(value)
    if b"null" in written:  # Else there are none: looking for them costs more than writing.
        _encode_finite(msgspec.to_builtins(value, str_keys=True, enc_hook=lambda raw: None))
    return written


def _encode(encode: Callable[[Any], bytes], value: Any, *, field: str | None = None) -> bytes:
    try:
        return encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
        raise InvalidRequest(f"cannot be written: {exc}", field=field) from exc


def acquire_body(request: LockRequest, *, wait_seconds: float) -> bytes:
    """The JSON body that asks for a lock."""
    return _encode(encode_json, {**structs.asdict(request), "wait_seconds": wait_seconds})


def acquire_frame(request: LockRequest, *, wait_seconds: float, frame_id: int) -> bytes:
    """The MessagePack frame that asks for a lock tied to its socket."""
    asked = {**structs.asdict(request), "wait_seconds": wait_seconds, "session": True}
    return _encode(encode_msgpack, {"op": "lock.acquire", "id": frame_id, **asked})


def refresh_body(lock: Lock, ttl_seconds: float | None, *, agent_id: str) -> bytes:
    """The JSON body by which an agent extends a lock."""
    return _encode(encode_json, _refresh(lock, ttl_seconds, agent_id))


def refresh_frame(lock: Lock, ttl_seconds: float | None, *, agent_id: str, frame_id: int) -> bytes:
    """The MessagePack frame by which an agent extends a lock."""
    return _encode(encode_msgpack, {"op": "lock.refresh", "id": frame_id, **_refresh(lock, ttl_seconds, agent_id)})


def _refresh(lock: Lock, ttl_seconds: float | None, agent_id: str) -> dict[str, Any]:
    return {"lock_id": lock.lock_id, "agent_id": agent_id, "ttl_seconds": ttl_seconds}


def release_query(lock: Lock, *, agent_id: str) -> dict[str, str]:
    """What a request names by which an agent gives a lock back."""
    return {"resource": lock.resources[0], "lock_id": lock.lock_id, "agent_id": agent_id}


def release_frame(lock: Lock, *, agent_id: str, frame_id: int) -> bytes:
    """The MessagePack frame by which an agent gives a lock back."""
    return encode_msgpack({"op": "lock.release", "id": frame_id, "lock_id": lock.lock_id, "agent_id": agent_id})


def search_body(asked: Search) -> bytes:
    """The JSON body of a search: what was said."""
    return _encode(encode_json, asked)


def change_body(change: ContextChange) -> bytes:
    """The JSON body that changes a context: what was said."""
    return _encode(encode_json, change)


def ping_frame(frame_id: int) -> bytes:
    """The MessagePack frame that asks for a sign of life."""
    return encode_msgpack({"op": "ping", "id": frame_id})


# --- Receiving -------------------------------------------------------------------------------------------------------


class _Unit(msgspec.Struct, kw_only=True):
    """A work unit in JSON: `payload` is a string for text, a value for JSON; `payload_base64` any other bytes."""

    seq: int
    id: str
    context_id: str
    version: int
    agent_id: str
    type: UnitType
    ts: str
    content_type: str
    kind: str | None = None
    meta: dict[str, str] = {}
    resources: list[str] = []
    relationships: list[Relationship] = []
    traceparent: str | None = None
    payload: Raw | UnsetType = UNSET
    payload_base64: str | UnsetType = UNSET

    def unit(self) -> WorkUnit:
        return WorkUnit(
            seq=self.seq,
            id=self.id,
            context_id=self.context_id,
            version=self.version,
            agent_id=self.agent_id,
            type=self.type,
            ts=self.ts,
            content_type=self.content_type,
            kind=self.kind,
            meta=self.meta,
            resources=self.resources,
            relationships=self.relationships,
            traceparent=self.traceparent,
            payload=self._bytes(),
        )

    def _bytes(self) -> bytes:
        if not isinstance(self.payload_base64, UnsetType):
            return b64decode(self.payload_base64)
        if isinstance(self.payload, UnsetType):
            return b""
        raw = bytes(self.payload)
        return raw if _is_json(self.content_type) else _decode_string(raw).encode()


def _is_json(content_type: str) -> bool:
    base = content_type.partition(";")[0].strip().lower()
    return base == JSON or base.endswith("+json")


class _Page(msgspec.Struct):
    work_units: list[_Unit]
    next_page: str | None
    applied_seq: int


class _RelatedUnit(msgspec.Struct):
    work_unit: _Unit
    relationship: RelationshipType
    direction: str
    depth: int
    from_id: str


class _Related(msgspec.Struct):
    related: list[_RelatedUnit]
    missing: list[str]
    truncated: bool
    applied_seq: int


class _SearchHit(msgspec.Struct, kw_only=True):
    unit_id: str
    seq: int
    score: float
    tokens: int
    keyword: SearchLeg | None = None
    vector: SearchLeg | None = None
    highlights: list[Highlight] = []
    duplicates: int = 0
    explain: SearchExplained | None = None
    unit: _Unit | None = None

    def hit(self) -> SearchHit:
        return SearchHit(
            unit_id=self.unit_id,
            seq=self.seq,
            score=self.score,
            tokens=self.tokens,
            keyword=self.keyword,
            vector=self.vector,
            highlights=self.highlights,
            duplicates=self.duplicates,
            explain=self.explain,
            unit=None if self.unit is None else self.unit.unit(),
        )


class _SearchPage(msgspec.Struct):
    results: list[_SearchHit]
    total: int
    applied_seq: int
    next_page: str | None
    facets: dict[str, dict[str, int]] | None = None
    degraded: bool = False

    def page(self) -> SearchPage:
        return SearchPage(
            results=[item.hit() for item in self.results],
            total=self.total,
            applied_seq=self.applied_seq,
            next_page=self.next_page,
            facets=self.facets,
            degraded=self.degraded,
        )


class _Lock(msgspec.Struct, kw_only=True):
    """A lock on one resource."""

    lock_id: str
    resource: str
    holder_agent: str
    mode: LockMode
    fencing_token: int
    granted_at: str
    expires_at: str
    remaining_seconds: float
    reason: str = ""
    context_id: str = ""

    def lock(self, *, resources: list[str] | None = None, extended: bool = False) -> Lock:
        return Lock(
            lock_id=self.lock_id,
            resources=[self.resource] if resources is None else resources,
            holder_agent=self.holder_agent,
            mode=self.mode,
            fencing_token=self.fencing_token,
            granted_at=self.granted_at,
            expires_at=self.expires_at,
            remaining_seconds=self.remaining_seconds,
            reason=self.reason,
            context_id=self.context_id,
            extended=extended,
        )


class _Locks(msgspec.Struct):
    """A lock on several resources: one of these for each."""

    locks: Annotated[list[_Lock], msgspec.Meta(min_length=1)]

    def lock(self, *, extended: bool) -> Lock:
        return self.locks[0].lock(resources=[one.resource for one in self.locks], extended=extended)


class _LockState(msgspec.Struct):
    resource: str
    holders: list[_Lock]
    holder_count: int
    queue_length: int
    queue: list[LockWait]
    applied_seq: int
    valid: bool | None = None


class _LockPage(msgspec.Struct):
    locks: list[_Lock]
    next_page: str | None
    applied_seq: int


class _Released(msgspec.Struct):
    released: bool
    lock_ids: list[str] = []


class _Result(msgspec.Struct):
    work_unit: _Unit | None = None
    error: dict[str, Any] | None = None


class _Results(msgspec.Struct):
    results: list[_Result]


_decode_string: Final = msgspec.json.Decoder(str).decode
_decode_any: Final = msgspec.json.Decoder().decode
_decode_unit: Final = msgspec.json.Decoder(_Unit).decode
_decode_page: Final = msgspec.json.Decoder(_Page).decode
_decode_related: Final = msgspec.json.Decoder(_Related).decode
_decode_search: Final = msgspec.json.Decoder(_SearchPage).decode
_decode_results: Final = msgspec.json.Decoder(_Results).decode
_decode_context: Final = msgspec.json.Decoder(Context).decode
_decode_contexts: Final = msgspec.json.Decoder(ContextPage).decode
_decode_search_status: Final = msgspec.json.Decoder(SearchStatus).decode
_decode_status: Final = msgspec.json.Decoder(Status).decode
_decode_lock: Final = msgspec.json.Decoder(_Lock).decode
_decode_locks: Final = msgspec.json.Decoder(_Locks).decode
_decode_lock_state: Final = msgspec.json.Decoder(_LockState).decode
_decode_lock_page: Final = msgspec.json.Decoder(_LockPage).decode
_decode_released: Final = msgspec.json.Decoder(_Released).decode


def unit(body: bytes) -> WorkUnit:
    return _read(lambda raw: _decode_unit(raw).unit(), body)


def page(body: bytes) -> Page:
    found = _read(_decode_page, body)
    return Page([item.unit() for item in found.work_units], found.next_page, found.applied_seq)


def related(body: bytes) -> Related:
    found = _read(_decode_related, body)
    units = [
        RelatedUnit(item.work_unit.unit(), item.relationship, item.direction, item.depth, item.from_id)
        for item in found.related
    ]
    return Related(units, found.missing, found.truncated, found.applied_seq)


def search_page(body: bytes) -> SearchPage:
    return _read(lambda raw: _decode_search(raw).page(), body)


def outcomes(body: bytes) -> list[Outcome]:
    return [_outcome(result) for result in _read(_decode_results, body).results]


def _outcome(result: _Result) -> Outcome:
    return result.work_unit.unit() if result.work_unit is not None else error_from(result.error or {})


def context(body: bytes) -> Context:
    return _read(_decode_context, body)


def contexts(body: bytes) -> ContextPage:
    return _read(_decode_contexts, body)


def search_status(body: bytes) -> SearchStatus:
    return _read(_decode_search_status, body)


def status(body: bytes) -> Status:
    return _read(_decode_status, body)


def lock(body: bytes, *, extended: bool) -> Lock:
    """Of one resource, or of several: the two have a shape each."""
    return _read(lambda raw: _either_lock(raw).lock(extended=extended), body)


def _either_lock(raw: bytes) -> _Lock | _Locks:
    try:
        return _decode_locks(raw)
    except msgspec.ValidationError:
        return _decode_lock(raw)


def lock_state(body: bytes) -> LockState:
    found = _read(_decode_lock_state, body)
    return LockState(
        resource=found.resource,
        holders=[holder.lock() for holder in found.holders],
        holder_count=found.holder_count,
        queue_length=found.queue_length,
        queue=found.queue,
        applied_seq=found.applied_seq,
        valid=found.valid,
    )


def lock_page(body: bytes) -> tuple[list[Lock], str | None]:
    """The locks of a page, and where the next one is."""
    found = _read(_decode_lock_page, body)
    return [one.lock() for one in found.locks], found.next_page


def released(body: bytes) -> list[str]:
    """The ids of the locks that were released, or broken."""
    return _read(_decode_released, body).lock_ids


def problem(status_code: int, body: bytes, retry_after: str | None) -> EngramError:
    """The error in an HTTP answer, whoever gave it (a proxy in between answers in its own words)."""
    try:
        answer = _decode_any(body)
    except ValueError:
        answer = None
    if not isinstance(answer, Mapping):
        answer = {"message": body[:200].decode("utf-8", "replace").strip() or f"status {status_code}"}
    return error_from(answer, status=status_code, retry_after_seconds=_seconds(retry_after))


def _seconds(retry_after: str | None) -> float | None:
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:  # a date: no clock here to compare it with
        return None


def _read(decode: Callable[[bytes], T], body: bytes) -> T:
    try:
        return decode(body)
    except (ValueError, msgspec.MsgspecError) as exc:
        raise EngramConnectionError(f"the answer cannot be read: {exc}", retryable=False) from exc


def subscribe_frame(query: Mapping[str, Any], *, frame_id: int) -> bytes:
    """The `subscribe` operation in MessagePack: the URL's parameters, those that are not None."""
    asked = {name: value for name, value in query.items() if value is not None and not name.startswith("meta.")}
    meta = {name.removeprefix("meta."): value for name, value in query.items() if name.startswith("meta.")}
    return encode_msgpack({"op": "subscribe", "id": frame_id, **asked, **({"meta": meta} if meta else {})})


# --- Frames ----------------------------------------------------------------------------------------------------------


class _Event(msgspec.Struct, tag_field="event", kw_only=True):
    """What the bus sends. `subscription` is the id of the `subscribe` operation it belongs to, None for the URL's."""

    subscription: int | str | None = None

    def frame(self) -> Frame:
        raise AssertionError("every event says how it becomes a frame")


class _SubscribedEvent(_Event, tag="subscribed"):
    cursor: str
    head: int

    def frame(self) -> Frame:
        return Subscribed(Cursor.parse(self.cursor), self.head)


class _HeartbeatEvent(_Event, tag="heartbeat"):
    cursor: str
    head: int

    def frame(self) -> Frame:
        return Heartbeat(Cursor.parse(self.cursor), self.head)


class _GapEvent(_Event, tag="gap", rename={"from_seq": "from", "to_seq": "to"}):
    from_seq: int
    to_seq: int
    reason: str = ""

    def frame(self) -> Frame:
        return Missing(self.from_seq, self.to_seq, self.reason)


class _GoawayEvent(_Event, tag="goaway"):
    reason: str = ""
    retry_after_ms: float = 0

    def frame(self) -> Frame:
        return Goaway(self.reason, self.retry_after_ms / 1_000)


class _AppendedEvent(_Event, tag="appended"):
    id: int
    unit_id: str
    seq: int
    version: int
    durability: str = ""
    context_id: str = ""
    replayed: bool = False

    def frame(self) -> Frame:
        receipt = Receipt(
            unit_id=self.unit_id,
            seq=self.seq,
            version=self.version,
            durability=self.durability,
            context_id=self.context_id,
            replayed=self.replayed,
        )
        return Appended(self.id, receipt)


class _LockedEvent(_Event, tag="locked"):
    id: int
    locks: Annotated[list[_Lock], msgspec.Meta(min_length=1)]
    extended: bool = False

    def frame(self) -> Frame:
        return Locked(self.id, _Locks(self.locks).lock(extended=self.extended))


class _ReleasedEvent(_Event, tag="released"):
    id: int
    released: bool

    def frame(self) -> Frame:
        return Released(self.id, self.released)


class _PongEvent(_Event, tag="pong"):
    id: int | str | None = None

    def frame(self) -> Frame:
        return Pong(self.id)


class _UnitsPacked(_Event, tag="units"):
    units: list[WorkUnit]
    cursor: str

    def frame(self) -> Frame:
        return Units(self.units, Cursor.parse(self.cursor))


class _UnitsText(_Event, tag="units"):
    units: list[_Unit]
    cursor: str

    def frame(self) -> Frame:
        return Units([item.unit() for item in self.units], Cursor.parse(self.cursor))


_Control = (
    _SubscribedEvent
    | _HeartbeatEvent
    | _GapEvent
    | _GoawayEvent
    | _AppendedEvent
    | _LockedEvent
    | _ReleasedEvent
    | _PongEvent
)
_decode_packed: Final = msgspec.msgpack.Decoder(_UnitsPacked | _Control).decode
_decode_text: Final = msgspec.json.Decoder(_UnitsText | _Control).decode
_decode_packed_any: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode
_decode_text_any: Final = msgspec.json.Decoder(dict[str, Any]).decode

_EVENTS: Final = frozenset(
    ("subscribed", "heartbeat", "gap", "goaway", "appended", "locked", "released", "pong", "units")
)


def frame(message: bytes | str, *, subscription: int | None = None) -> Frame:
    """One WebSocket message: MessagePack when binary, JSON when text. What belongs to another subscription is Other."""
    if isinstance(message, str):
        return _frame(_decode_text, _decode_text_any, message.encode(), subscription)
    return _frame(_decode_packed, _decode_packed_any, message, subscription)


def _frame(
    decode: Callable[[bytes], _Event],
    decode_any: Callable[[bytes], dict[str, Any]],
    body: bytes,
    subscription: int | None,
) -> Frame:
    try:
        event = decode(body)
        found = event.frame()
    except (ValueError, msgspec.MsgspecError) as exc:
        return _other_frame(_read(decode_any, body), exc)
    ours = event.subscription == subscription or isinstance(found, Appended | Locked | Released | Pong | Goaway)
    return found if ours else Other("of another subscription")


def _other_frame(event: dict[str, Any], exc: Exception) -> Frame:
    """An `error`, or an event that is not ours to know; one that we should have been able to read is not let pass."""
    name = event.get("event")
    if name == "error":
        return Refused(event.get("id"), error_from(event))
    if not isinstance(name, str) or name in _EVENTS:
        raise EngramConnectionError(f"the frame cannot be read: {exc}", retryable=False) from exc
    return Other(name)


def sse_frame(event: str, data: str, last_id: str) -> Frame:
    """One event of an SSE stream: a unit without a name, everything else with one."""
    if event not in ("", "message"):
        control = _read(_decode_text_any, data.encode())
        return frame(encode_json({**control, "event": event}).decode())
    body = data.encode()
    try:
        return Units([_decode_unit(body).unit()], Cursor.parse(last_id))
    except (ValueError, msgspec.MsgspecError) as exc:
        raise EngramConnectionError(f"the event cannot be read: {exc}", retryable=False) from exc
