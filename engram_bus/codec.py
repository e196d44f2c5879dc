"""Bytes to values and back, one for all transports: JSON and MessagePack of units, commands and answers."""

import json
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import isfinite
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from engram_bus.errors import EngramError, InvalidRequest
from engram_bus.limits import JSON_DEPTH_MAX, LOCK_TTL_MS_DEFAULT
from engram_bus.units import (
    FORMAT_BYTES,
    FORMAT_JSON,
    FORMAT_TEXT,
    LOCKS_CONTEXT,
    AcquireLock,
    Append,
    AppendAtomic,
    Draft,
    Fence,
    KeyedCommand,
    Lock,
    LockMode,
    Placed,
    RefreshLock,
    Relationship,
    RelationshipType,
    UnitType,
    UpdateContext,
    WorkUnit,
    is_json,
    is_text,
)

T = TypeVar("T")

# Shared by all that say nothing of it, and as frozen as the values that hold them.
_NO_META: Final[dict[str, str]] = {}
_NO_RESOURCES: Final[list[str]] = []
_NO_RELATIONSHIPS: Final[list[Relationship]] = []

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that it cannot read; the last where a thousand brackets are opened."""

encode_json = msgspec.json.Encoder().encode
encode_msgpack = msgspec.msgpack.Encoder().encode
decode_unit = msgspec.msgpack.Decoder(WorkUnit).decode
decode_placed = msgspec.msgpack.Decoder(Placed).decode
_encode_finite = json.JSONEncoder(allow_nan=False, check_circular=False).encode
_encode_canonical = msgspec.msgpack.Encoder(order="deterministic").encode

_TYPES: Final[dict[str | int, UnitType]] = {
    **{unit_type.value: unit_type for unit_type in UnitType},
    **dict(enumerate(UnitType)),
}
_RELATIONSHIPS: Final[dict[str | int, RelationshipType]] = {
    **{relationship.value: relationship for relationship in RelationshipType},
    **dict(enumerate(RelationshipType, start=1)),
}


class RelationshipIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A relationship as clients write it: the type by name or number."""

    target_id: str
    type: str | int
    meta: dict[str, str] = {}


class UnitIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """The JSON body of an append: a work unit without what the writer gives.

    `payload` is a string for text, any JSON value for application/json; `payload_base64` is any bytes.
    """

    context_id: str
    agent_id: str | None = None
    type: str | int = "MESSAGE"
    kind: str | None = None
    content_type: str | None = None
    payload: Raw | UnsetType = UNSET
    payload_base64: str | None = None
    meta: dict[str, str] | None = None
    resources: list[str] | None = None
    relationships: list[RelationshipIn] | None = None
    traceparent: str | None = None
    id: str | None = None
    idempotency_key: str | None = None
    expected_version: int | None = None
    fence: Fence | None = None


class UnitPacked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """The MessagePack body of an append: as in JSON, but `payload` is bin (or str, for text)."""

    context_id: str
    agent_id: str | None = None
    type: str | int = "MESSAGE"
    kind: str | None = None
    content_type: str | None = None
    payload: Any = None
    meta: dict[str, str] | None = None
    resources: list[str] | None = None
    relationships: list[RelationshipIn] | None = None
    traceparent: str | None = None
    id: str | None = None
    idempotency_key: str | None = None
    expected_version: int | None = None
    fence: Fence | None = None


class UnitOut(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """A work unit as JSON: `payload` for text and JSON, `payload_base64` for other bytes; empty fields are left out."""

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
    payload: Any | UnsetType = UNSET
    payload_base64: str | UnsetType = UNSET


def unit_out(unit: WorkUnit) -> UnitOut:
    """The JSON form of a unit. A payload that is not what its content type says (redacted) travels as base64."""
    payload: Any = UNSET
    payload_base64: str | UnsetType = UNSET
    content_type = unit.content_type
    if content_type == FORMAT_TEXT or is_text(content_type):
        try:
            payload = unit.payload.decode()
        except UnicodeDecodeError:
            payload_base64 = b64encode(unit.payload).decode()
    elif is_json(content_type) and (raw := _one_line(unit.payload)) is not None:
        payload = Raw(raw)
    else:
        payload_base64 = b64encode(unit.payload).decode()
    return UnitOut(
        seq=unit.seq,
        id=unit.id,
        context_id=unit.context_id,
        version=unit.version,
        agent_id=unit.agent_id,
        type=unit.type,
        ts=unit.ts,
        content_type=content_type,
        kind=unit.kind,
        meta=unit.meta,
        resources=unit.resources,
        relationships=unit.relationships,
        traceparent=unit.traceparent,
        payload=payload,
        payload_base64=payload_base64,
    )


def unit_json(unit: WorkUnit) -> bytes:
    """A unit as one line of JSON."""
    return encode_json(unit_out(unit))


class Entry(msgspec.Struct, gc=False, eq=False):
    """A recorded unit with its encodings, each made at most once however many want it."""

    seq: int
    body: bytes
    _unit: WorkUnit | None = None
    _json: bytes | None = None
    protobuf: bytes | None = None
    """Kept by `protobuf.py`, which makes it."""

    @property
    def unit(self) -> WorkUnit:
        if self._unit is None:
            self._unit = decode_unit(self.body)
        return self._unit

    @property
    def json(self) -> bytes:
        if self._json is None:
            self._json = unit_json(self.unit)
        return self._json


def json_payload(value: Any) -> bytes:
    """A value as JSON. Raises ValueError for NaN and infinity, of which `encode_json` makes null; and as that does."""
    written = encode_json(value)
    if b"null" in written:  # Else there are none: looking for them costs more than writing.
        _encode_finite(msgspec.to_builtins(value, str_keys=True, enc_hook=lambda raw: None))
    return written


def append_from_json(body: bytes, *, agent_id: str | None = None) -> Append:
    """One append from its JSON body; `agent_id` serves where the body names none. Raises InvalidRequest."""
    return append_from(parse(_decode_unit_in, body), agent_id=agent_id)


def append_from_msgpack(body: bytes, *, agent_id: str | None = None) -> Append:
    """One append from its MessagePack body. Raises InvalidRequest."""
    return append_from(parse(_decode_unit_packed, body), agent_id=agent_id)


def append_from(unit: UnitIn | UnitPacked, *, agent_id: str | None = None) -> Append:
    """The command a parsed body asks for; sizes are checked at admission. Raises InvalidRequest."""
    agent_id = acting(unit.agent_id, agent_id)
    unit_type = _TYPES.get(unit.type)
    if unit_type is None:
        raise InvalidRequest(f"type {unit.type!r} is unknown; one of {', '.join(UnitType)}", field="type")
    content_type, payload = _payload_in(unit) if isinstance(unit, UnitIn) else _payload_packed(unit)
    return Append(
        draft=Draft(
            context_id=unit.context_id,
            agent_id=agent_id,
            type=unit_type,
            kind=unit.kind,
            content_type=content_type,
            payload=payload,
            meta=unit.meta or _NO_META,
            resources=unit.resources or _NO_RESOURCES,
            relationships=_relationships(unit.relationships) if unit.relationships else _NO_RELATIONSHIPS,
            traceparent=unit.traceparent,
            id=unit.id,
        ),
        expected_version=unit.expected_version,
        fence=unit.fence,
        idempotency_key=unit.idempotency_key,
    )


# --- Locks -----------------------------------------------------------------------------------------------------------


class LockIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one asks to hold: a resource, or several (all or none)."""

    resource: str | None = None
    resources: list[str] | None = None
    agent_id: str | None = None
    ttl_seconds: float = LOCK_TTL_MS_DEFAULT / 1_000
    """How long the lease lasts unless it is refreshed."""
    mode: str = LockMode.EXCLUSIVE
    wait_seconds: float = 0
    """How long to wait in line for it; 0: not at all."""
    reason: str = ""
    """Told to whom it is in the way of."""
    context_id: str = LOCKS_CONTEXT
    """Where its units stand."""


class RefreshIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which lease to extend from now on; without `ttl_seconds`, for as long as it was first asked for."""

    lock_id: str
    agent_id: str | None = None
    ttl_seconds: float | None = None


class LockOut(msgspec.Struct, frozen=True, kw_only=True):
    """A lock on one resource, as of when it was read. One on several resources is one of these for each."""

    lock_id: str
    resource: str
    holder_agent: str
    mode: LockMode
    fencing_token: int
    acquired_seq: int
    """The seq of its grant: the fencing token, said once more as a place in the log."""
    granted_at: str
    expires_at: str
    remaining_seconds: float
    reason: str
    context_id: str


class LocksOut(msgspec.Struct, frozen=True, kw_only=True):
    """A lock on several resources."""

    lock_id: str
    locks: list[LockOut]


def acquire_from(lock: LockIn, *, agent_id: str | None = None, session: str | None = None) -> AcquireLock:
    """The command a parsed body asks for; `agent_id` serves where it names none. Raises InvalidRequest."""
    if (lock.resource is None) == (lock.resources is None):
        raise InvalidRequest("name the resource, or several resources", field="resource")
    return AcquireLock(
        resources=(lock.resource,) if lock.resource is not None else tuple(lock.resources or ()),
        agent_id=acting(lock.agent_id, agent_id),
        ttl_ms=milliseconds(lock.ttl_seconds, "ttl_seconds"),
        mode=lock_mode(lock.mode),
        wait_ms=milliseconds(lock.wait_seconds, "wait_seconds"),
        reason=lock.reason,
        context_id=lock.context_id,
        session=session,
    )


def refresh_from(refresh: RefreshIn, *, agent_id: str | None = None, resource: str | None = None) -> RefreshLock:
    """The command a parsed body asks for; `resource` is one that the lock must be on. Raises InvalidRequest."""
    return RefreshLock(
        lock_id=refresh.lock_id,
        agent_id=acting(refresh.agent_id, agent_id),
        resource=resource,
        ttl_ms=None if refresh.ttl_seconds is None else milliseconds(refresh.ttl_seconds, "ttl_seconds"),
    )


def lock_out(lock: Lock) -> LockOut | LocksOut:
    """A lock as it is answered: on one resource as itself, on several with each of them."""
    locks = [lock_on(lock, resource) for resource in lock.resources]
    return locks[0] if len(locks) == 1 else LocksOut(lock_id=lock.lock_id, locks=locks)


def lock_on(lock: Lock, resource: str) -> LockOut:
    """A lock as one on one of its resources."""
    return LockOut(
        lock_id=lock.lock_id,
        resource=resource,
        holder_agent=lock.holder_agent,
        mode=lock.mode,
        fencing_token=lock.fencing_token,
        acquired_seq=lock.fencing_token,
        granted_at=lock.granted_at,
        expires_at=lock.expires_at,
        remaining_seconds=lock.remaining_ms / 1_000,
        reason=lock.reason,
        context_id=lock.context_id,
    )


def acting(named: str | None, otherwise: str | None, *, named_in: str = "the request") -> str:
    """Who acts: whom the request names, else whom its transport does. Raises InvalidRequest."""
    agent_id = named if named is not None else otherwise
    if agent_id is None:
        raise InvalidRequest(
            f"agent_id is missing: name it in {named_in}, or send the X-Agent-ID header", field="agent_id"
        )
    return agent_id


def milliseconds(seconds: float, field: str) -> int:
    """A time a client names. Raises InvalidRequest for what is no time at all; the bounds are checked at admission."""
    if not isfinite(seconds * 1_000):
        raise InvalidRequest(f"{field} {seconds} is not a number of seconds", field=field)
    return round(seconds * 1_000)


def lock_mode(mode: str) -> LockMode:
    """A mode by its name. Raises InvalidRequest."""
    try:
        return LockMode(mode)
    except ValueError as exc:
        raise InvalidRequest(f"mode {mode[:64]!r} is unknown; one of {', '.join(LockMode)}", field="mode") from exc


# --- Inside ----------------------------------------------------------------------------------------------------------


def _relationships(relationships: list[RelationshipIn]) -> list[Relationship]:
    named: list[Relationship] = []
    for index, relationship in enumerate(relationships):
        relationship_type = _RELATIONSHIPS.get(relationship.type)
        if relationship_type is None:
            raise InvalidRequest(
                f"relationship type {relationship.type!r} is unknown; one of {', '.join(RelationshipType)}",
                field=f"relationships[{index}].type",
            )
        named.append(Relationship(relationship.target_id, relationship_type, relationship.meta))
    return named


def _payload_in(unit: UnitIn) -> tuple[str, bytes]:
    if unit.payload_base64 is not None:
        if unit.payload is not UNSET:
            raise InvalidRequest("payload and payload_base64 exclude each other", field="payload_base64")
        try:
            return unit.content_type or FORMAT_BYTES, b64decode(unit.payload_base64, validate=True)
        except (Base64Error, ValueError) as exc:
            raise InvalidRequest(f"payload_base64 is not base64: {exc}", field="payload_base64") from exc
    if isinstance(unit.payload, UnsetType):
        return unit.content_type or FORMAT_TEXT, b"null" if unit.content_type and is_json(unit.content_type) else b""
    raw = bytes(unit.payload)
    is_string = raw.startswith(b'"')
    if not unit.content_type:
        return (FORMAT_TEXT, _string_in(raw)) if is_string else (FORMAT_JSON, raw)
    content_type = unit.content_type
    if is_json(content_type):
        return content_type, raw
    if not is_string:
        raise InvalidRequest(f"payload must be a string for {content_type}", field="payload")
    if not is_text(content_type):
        raise InvalidRequest(f"payload of {content_type} goes into payload_base64", field="payload")
    return content_type, _string_in(raw)


def _string_in(raw: bytes) -> bytes:
    """The text of a JSON string. Of ASCII without a backslash it is what stands between the quotes."""
    if raw.isascii() and b"\\" not in raw:
        return raw[1:-1]
    return parse(_decode_string, raw, field="payload").encode()


def _payload_packed(unit: UnitPacked) -> tuple[str, bytes]:
    payload = unit.payload
    if payload is None:
        return unit.content_type or FORMAT_TEXT, b"null" if unit.content_type and is_json(unit.content_type) else b""
    if isinstance(payload, str):
        return unit.content_type or FORMAT_TEXT, payload.encode()
    if not isinstance(payload, bytes):
        raise InvalidRequest(f"payload must be bin or str, got {type(payload).__name__}", field="payload")
    return unit.content_type or FORMAT_BYTES, payload


def check_payload(content_type: str, payload: bytes) -> None:
    """Text is UTF-8 and JSON is JSON, of bounded depth. Raises InvalidRequest."""
    if content_type == FORMAT_TEXT or is_text(content_type):
        if payload.isascii():
            return
        try:
            payload.decode()
        except UnicodeDecodeError as exc:
            raise InvalidRequest(f"payload is not UTF-8 at byte {exc.start}", field="payload") from exc
    elif is_json(content_type):
        value = parse(_decode_any, payload, field="payload")
        if payload.count(b"[") + payload.count(b"{") > JSON_DEPTH_MAX and _deeper_than(value, JSON_DEPTH_MAX):
            raise InvalidRequest(
                f"payload is nested deeper than {JSON_DEPTH_MAX}", field="payload", limit=JSON_DEPTH_MAX
            )


def _deeper_than(value: Any, depth_max: int) -> bool:
    level = [value]
    for _ in range(depth_max):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _one_line(payload: bytes) -> bytes | None:
    """JSON without line breaks, as SSE and NDJSON need it; None where it is not JSON (a redacted payload)."""
    if payload[:1] in (b"\0", b""):
        return None
    if b"\n" in payload or b"\r" in payload:
        return msgspec.json.format(payload, indent=-1)
    return payload


def command_digest(command: KeyedCommand) -> bytes:
    """What tells a repeat of a command from another one under the same key, in any order of its maps; see `payloads`.

    It leaves the payloads out: it is kept for the life of the log, and no redacted payload must be guessable from it.
    """
    return blake2b(_encode_canonical(_without_payloads(command)), digest_size=16).digest()


def payloads(command: KeyedCommand) -> Sequence[bytes]:
    """The payloads that a command's first units carry: the other half of what tells a repeat."""
    match command:
        case Append():
            return (command.draft.payload,)
        case AppendAtomic():
            return [append.draft.payload for append in command.appends]
        case UpdateContext():
            return ()


def _without_payloads(command: KeyedCommand) -> KeyedCommand:
    match command:
        case Append():
            # A default is left out by identity, and a text that was read is never the very one.
            said = command.draft.content_type
            content_type = FORMAT_TEXT if said == FORMAT_TEXT else said
            draft = msgspec.structs.replace(command.draft, payload=b"", content_type=content_type)
            return msgspec.structs.replace(command, idempotency_key=None, draft=draft)
        case AppendAtomic():
            appends = tuple(_without_payloads(append) for append in command.appends)
            return msgspec.structs.replace(command, idempotency_key=None, appends=appends)
        case UpdateContext():
            return msgspec.structs.replace(command, idempotency_key=None)


# --- Parsing with an answer that names the field ---------------------------------------------------------------------

_decode_unit_in = msgspec.json.Decoder(UnitIn).decode
_decode_unit_packed = msgspec.msgpack.Decoder(UnitPacked).decode
_decode_string = msgspec.json.Decoder(str).decode
_decode_any = msgspec.json.Decoder().decode

_AT = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_HALF = re.compile(
    rb"(?<!\\)(?:\\\\)*(\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2}))"
)
"""In JSON, the first or second half of a surrogate pair without the other."""
_NAMED = re.compile(r"(?:missing required|unknown) field `([^`]+)`")


def parse(decode: Callable[[bytes], T], body: bytes, *, field: str | None = None) -> T:
    """`decode(body)`, or InvalidRequest that names the field (`field` where the whole body is one)."""
    try:
        return decode(body)
    except msgspec.ValidationError as exc:
        raise _invalid(str(exc), field) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError) as exc:
        half = _HALF.search(body)
        hint = f"; {half[1].decode()} is half of a surrogate pair, which is no text" if half else ""
        raise InvalidRequest(f"cannot be read: {exc}{hint}", field=field) from exc
    except RecursionError as exc:
        raise InvalidRequest(f"nested deeper than {JSON_DEPTH_MAX}", field=field, limit=JSON_DEPTH_MAX) from exc


def _invalid(message: str, field: str | None) -> EngramError:
    at, named = _AT.search(message), _NAMED.search(message)
    parts = [field, at.group(1) if at else None, named.group(1) if named else None]
    # msgspec writes `[...]` for the value of a map, whose key it does not know any more.
    place = ".".join(part for part in parts if part).replace(".[", "[").replace("[...]", "")
    return InvalidRequest(message, field=place or None)
