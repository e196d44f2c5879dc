"""Protobuf to values and back, as `codec.py` does it for JSON and MessagePack: units, appends, and what goes wrong."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, TypeVar

import msgspec
from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from engram_bus.codec import Entry, acting
from engram_bus.errors import EngramError, InvalidRequest
from engram_bus.pb import append_pb2, error_pb2, unit_pb2
from engram_bus.units import (
    FORMAT_TEXT,
    Append,
    Draft,
    Fence,
    Relationship,
    RelationshipType,
    UnitType,
    WorkUnit,
    is_json,
    ts_us,
)

M = TypeVar("M", bound=Message)

PROTOBUF: Final = "application/x-protobuf"

TYPES: Final = tuple(UnitType)
NUMBERS: Final = {unit_type: number for number, unit_type in enumerate(TYPES)}
RELATIONSHIPS: Final = dict(enumerate(RelationshipType, start=1))
RELATIONSHIP_NUMBERS: Final = {relationship: number for number, relationship in RELATIONSHIPS.items()}

WORK_UNITS: Final = 0x0A
"""The tag of field 1 of length-delimited type, where a unit or the units stand in every answer that has some: so they
are encoded once, whoever gets them."""


def parse(kind: type[M], body: bytes) -> M:
    """The message in these bytes. Raises InvalidRequest, for a field that this version does not know too."""
    try:
        message = kind.FromString(body)
    except (DecodeError, RecursionError) as exc:
        raise InvalidRequest(f"cannot be read as {kind.DESCRIPTOR.full_name}: {exc}") from exc
    _refuse_unknown(message, "")
    return message


def _refuse_unknown(message: Message, path: str) -> None:
    """A guard that a newer client sets must not be passed over in silence."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        number = unknown[0].field_number
        raise InvalidRequest(f"unknown field {number} of {message.DESCRIPTOR.full_name}", field=f"{path}{number}")
    kind = type(message)
    holders = _holders.get(kind)
    if holders is None:
        holders = _holders[kind] = _holders_of(kind)
    for name, is_repeated in holders:
        if is_repeated:
            for index, inner in enumerate(getattr(message, name)):
                _refuse_unknown(inner, f"{path}{name}[{index}].")
        elif message.HasField(name):
            _refuse_unknown(getattr(message, name), f"{path}{name}.")


_holders: Final[dict[type[Message], Sequence[tuple[str, bool]]]] = {}
"""Of each kind, the fields that hold messages, and whether they hold several."""


def _holders_of(kind: type[Message]) -> Sequence[tuple[str, bool]]:
    # (An entry of a map can have no further field.)
    return [
        (field.name, field.is_repeated)
        for field in kind.DESCRIPTOR.fields
        if field.message_type is not None and not field.message_type.GetOptions().map_entry
    ]


# --- Units -----------------------------------------------------------------------------------------------------------


def unit_bytes(entry: Entry) -> bytes:
    """A unit as the bytes of an `engram.v1.WorkUnit`, made at most once."""
    encoded = entry.protobuf
    if encoded is None:
        encoded = entry.protobuf = unit_message(entry.unit).SerializeToString()
    return encoded


def fitting(entries: Sequence[Entry], bytes_max: int) -> int:
    """How many of these units, at least the first, take so many bytes."""
    size_bytes = 0
    for count, entry in enumerate(entries):
        size_bytes += len(unit_bytes(entry))
        if size_bytes > bytes_max and count:
            return count
    return len(entries)


def units_field(entries: Sequence[Entry]) -> list[bytes]:
    """The units as field 1 of whatever message these parts are joined into."""
    parts: list[bytes] = []
    for entry in entries:
        encoded = unit_bytes(entry)
        parts.append(delimited(WORK_UNITS, len(encoded)))
        parts.append(encoded)
    return parts


def delimited(tag: int, size: int) -> bytes:
    """What stands before `size` bytes of a field: a tag of one byte, and the size as a varint."""
    if size < 1 << 7:
        return bytes((tag, size))
    if size < 1 << 14:
        return bytes((tag, size & 0x7F | 0x80, size >> 7))
    head = bytearray((tag,))
    while size >= 1 << 7:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head)


def unit_message(unit: WorkUnit) -> unit_pb2.WorkUnit:
    """A unit as a message: what is empty is left out, as everywhere."""
    message = unit_pb2.WorkUnit(
        seq=unit.seq,
        id=unit.id,
        context_id=unit.context_id,
        version=unit.version,
        agent_id=unit.agent_id,
        type=NUMBERS[unit.type],  # type: ignore[arg-type]  # The generated class takes a number as well.
        ts=timestamp(unit.ts),
        content_type=unit.content_type,
        payload=unit.payload,
    )
    if unit.kind is not None:
        message.kind = unit.kind
    if unit.meta:
        message.meta.update(unit.meta)
    if unit.resources:
        message.resources.extend(unit.resources)
    for relationship in unit.relationships:
        message.relationships.add(
            target_id=relationship.target_id,
            type=RELATIONSHIP_NUMBERS[relationship.type],
            meta=relationship.meta,
        )
    if unit.traceparent is not None:
        message.traceparent = unit.traceparent
    return message


def timestamp(text: str) -> Timestamp:
    """A time of the log, which always has six decimals, as a Timestamp."""
    return Timestamp(seconds=_seconds(text[:19]), nanos=int(text[20:26]) * 1_000)


@lru_cache(maxsize=64)
def _seconds(text: str) -> int:
    """Reading a date costs as much as the rest of a unit, and many units are of one second."""
    return ts_us(f"{text}Z") // 1_000_000


# --- Appends ---------------------------------------------------------------------------------------------------------


def append_from_protobuf(body: bytes, *, agent_id: str | None = None) -> Append:
    """One append from the bytes of an `engram.v1.AppendRequest`; `agent_id` serves where it names none.

    Raises InvalidRequest.
    """
    return append_from_message(parse(append_pb2.AppendRequest, body), agent_id=agent_id)


def append_from_message(asked: append_pb2.AppendRequest, *, agent_id: str | None = None) -> Append:
    """The command a message asks for; sizes are checked at admission. Raises InvalidRequest."""
    content_type = asked.content_type if asked.HasField("content_type") else FORMAT_TEXT
    # As in the other encodings, nothing is null where JSON is wanted.
    payload = asked.payload if asked.HasField("payload") or not is_json(content_type) else b"null"
    return Append(
        draft=Draft(
            context_id=asked.context_id,
            agent_id=acting(asked.agent_id if asked.HasField("agent_id") else None, agent_id),
            type=type_of(asked.type) if asked.HasField("type") else UnitType.MESSAGE,
            kind=asked.kind if asked.HasField("kind") else None,
            content_type=content_type,
            payload=payload,
            meta=dict(asked.meta) if asked.meta else {},
            resources=list(asked.resources) if asked.resources else [],
            relationships=_relationships(asked) if asked.relationships else [],
            traceparent=asked.traceparent if asked.HasField("traceparent") else None,
            id=asked.id if asked.HasField("id") else None,
        ),
        expected_version=asked.expected_version if asked.HasField("expected_version") else None,
        fence=Fence(asked.fence.resource, asked.fence.token) if asked.HasField("fence") else None,
        idempotency_key=asked.idempotency_key if asked.HasField("idempotency_key") else None,
    )


def type_of(number: int, field: str = "type") -> UnitType:
    """A type by its number. Raises InvalidRequest."""
    if not 0 <= number < len(TYPES):
        raise InvalidRequest(f"{field} {number} is unknown; 0 to {len(TYPES) - 1}, as {', '.join(TYPES)}", field=field)
    return TYPES[number]


def relationship_of(number: int, field: str = "type") -> RelationshipType:
    """A type of relationship by its number. Raises InvalidRequest."""
    relationship = RELATIONSHIPS.get(number)
    if relationship is None:
        named = ", ".join(RelationshipType)
        raise InvalidRequest(f"relationship type {number} is unknown; 1 to 7, as {named}", field=field)
    return relationship


def _relationships(asked: append_pb2.AppendRequest) -> list[Relationship]:
    return [
        Relationship(one.target_id, relationship_of(one.type, f"relationships[{index}].type"), dict(one.meta))
        for index, one in enumerate(asked.relationships)
    ]


# --- What goes wrong -------------------------------------------------------------------------------------------------


def bounded(message: error_pb2.Error, bytes_max: int) -> error_pb2.Error:
    """The same refusal where there is little room: text is cut, lists (a circle of waits) lose their ends, and then
    `details` says that it was `truncated`."""
    if message.ByteSize() <= bytes_max:
        return message
    short = error_pb2.Error()
    short.CopyFrom(message)
    short.details["truncated"] = True
    for text_max, list_max in ((512, 16), (256, 8), (128, 4), (64, 1)):
        short.message = shortened(short.message, 2 * text_max)
        for value in short.details.fields.values():
            _shorten(value, text_max, list_max)
        if short.ByteSize() <= bytes_max:
            break
    return short


def shortened(text: str, bytes_max: int) -> str:
    """A text of at most so many bytes, cut between characters."""
    encoded = text.encode()
    return text if len(encoded) <= bytes_max else encoded[: bytes_max - 3].decode(errors="ignore") + "..."


def _shorten(value: Value, text_max: int, list_max: int) -> None:
    match value.WhichOneof("kind"):
        case "string_value":
            value.string_value = shortened(value.string_value, text_max)
        case "list_value":
            del value.list_value.values[list_max:]
            for inner in value.list_value.values:
                _shorten(inner, text_max, list_max)
        case "struct_value":
            for inner in value.struct_value.fields.values():
                _shorten(inner, text_max, list_max)
        case _:
            pass  # Numbers are short.


def error_message(error: EngramError) -> error_pb2.Error:
    """A refusal as a message: what a problem says over HTTP."""
    message = error_pb2.Error(code=error.code, message=error.message, retryable=error.retryable)
    if error.field is not None:
        message.field = error.field
    if error.limit is not None:
        message.limit = error.limit
    if error.index is not None:
        message.index = error.index
    if error.details:
        message.details.update(msgspec.to_builtins(error.details))
    return message
