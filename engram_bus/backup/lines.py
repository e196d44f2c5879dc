"""Format 1 of an export: NDJSON for every reader, a unit a line, its payload exact to the byte.

    {"engram_export": 1, "tenant": ..., "epochs": [{"name", "first_seq"}], "head": N}
    {"seq": 1, "id": ..., ...}                   a unit as it is on the wire; N such lines, in order, without a gap
    {"engram_export_end": {"units": N, "blake2b": of every byte before this line}}

Where JSON on the wire may differ from the payload (it is spread over lines, or surrounded by blanks), the payload is in
`payload_base64`. What an export does not have, for it never leaves the bus: idempotency keys, digests and their salts,
and which units were one command. A redacted payload is the zeros it is. The last line may be missing: an export made by
hand need not know BLAKE2b-256, and one that was cut off is told by `head`.
"""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error

import msgspec
from msgspec import UNSET, Raw, UnsetType

from engram_bus.bus.admission import admit
from engram_bus.codec import encode_json, parse, unit_out
from engram_bus.errors import InvalidRequest
from engram_bus.log.contract import Epoch
from engram_bus.units import (
    FORMAT_BYTES,
    Append,
    Draft,
    Relationship,
    UnitType,
    WorkUnit,
    is_json,
    is_own_kind,
    is_text,
)

FORMAT = 1


class Header(msgspec.Struct, frozen=True):
    """The first line."""

    engram_export: int
    tenant: str
    epochs: tuple[Epoch, ...]
    head: int


class Sum(msgspec.Struct, frozen=True):
    """What an export came to."""

    units: int
    blake2b: str


class End(msgspec.Struct, frozen=True):
    """The last line."""

    engram_export_end: Sum


class UnitLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A unit as a line says it."""

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
    payload_base64: str | None = None


_decode_line = msgspec.json.Decoder(UnitLine).decode
_decode_end = msgspec.json.Decoder(End).decode
_decode_header = msgspec.json.Decoder(Header).decode
_decode_string = msgspec.json.Decoder(str).decode
_decode_any = msgspec.json.Decoder().decode
_END = b'{"engram_export_end"'


def unit_line(unit: WorkUnit) -> bytes:
    """One line."""
    out = unit_out(unit)
    if isinstance(out.payload, Raw) and not _is_exact(out.payload, unit.payload):
        out = msgspec.structs.replace(out, payload=UNSET, payload_base64=b64encode(unit.payload).decode())
    return encode_json(out) + b"\n"


def is_end(line: bytes) -> bool:
    """Whether this is the last line."""
    return line.startswith(_END)


def parse_header(line: bytes) -> Header:
    """The first line. Raises InvalidRequest."""
    header = parse(_decode_header, line)
    if header.engram_export != FORMAT:
        raise InvalidRequest(
            f"it has format {header.engram_export}, this version reads format {FORMAT}", field="engram_export"
        )
    seqs = [epoch.first_seq for epoch in header.epochs]
    if header.head < 0 or seqs != sorted(seqs) or seqs[:1] != [1] or seqs[-1] > header.head + 1:
        raise InvalidRequest("its epochs do not follow one another from 1 to its head", field="epochs")
    if not all(epoch.name.isalnum() and epoch.name.isascii() for epoch in header.epochs):
        raise InvalidRequest("an epoch's name is not of letters and digits", field="epochs")
    return header


def parse_end(line: bytes) -> Sum:
    """The last line. Raises InvalidRequest."""
    return parse(_decode_end, line).engram_export_end


def parse_unit(line: bytes) -> WorkUnit:
    """A unit of which everything but its place is checked as what a client appends is. Raises EngramError."""
    said = parse(_decode_line, line)
    unit = WorkUnit(
        seq=said.seq,
        id=said.id,
        context_id=said.context_id,
        version=said.version,
        agent_id=said.agent_id,
        type=said.type,
        ts=said.ts,
        content_type=said.content_type,
        kind=said.kind,
        meta=said.meta,
        resources=said.resources,
        relationships=said.relationships,
        traceparent=said.traceparent,
        payload=_payload(said),
    )
    _admit(unit)
    return unit


def _is_exact(embedded: Raw, payload: bytes) -> bool:
    """Whether a reader of the line gets exactly these bytes: one value, without blanks around it."""
    if bytes(embedded) != payload or payload[:1].isspace() or payload[-1:].isspace():
        return False
    try:
        _decode_any(payload)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return True


def _payload(said: UnitLine) -> bytes:
    if said.payload_base64 is not None:
        if said.payload is not UNSET:
            raise InvalidRequest("payload and payload_base64 exclude each other", field="payload_base64")
        try:
            return b64decode(said.payload_base64, validate=True)
        except (Base64Error, ValueError) as exc:
            raise InvalidRequest(f"payload_base64 is not base64: {exc}", field="payload_base64") from exc
    if isinstance(said.payload, UnsetType):
        raise InvalidRequest("payload and payload_base64 are both missing", field="payload")
    raw = bytes(said.payload)
    if is_json(said.content_type):
        return raw
    if not is_text(said.content_type):
        raise InvalidRequest(f"payload of {said.content_type} goes into payload_base64", field="payload")
    return parse(_decode_string, raw, field="payload").encode()


def _admit(unit: WorkUnit) -> None:
    """Hold a unit to the bounds and forms of `bus/admission.py`."""
    if is_own_kind(unit.kind) and unit.type is not UnitType.SYSTEM:
        raise InvalidRequest(f"type of the bus's own kind {unit.kind} is SYSTEM, not {unit.type}", field="type")
    draft = Draft(
        context_id=unit.context_id,
        agent_id=unit.agent_id,
        type=unit.type,
        kind=None if is_own_kind(unit.kind) else unit.kind,
        content_type=unit.content_type,
        payload=unit.payload,
        meta=unit.meta,
        resources=unit.resources,
        relationships=unit.relationships,
        traceparent=unit.traceparent,
        id=unit.id,
    )
    if not any(unit.payload):  # Redacted: it need not be what its content type says.
        admit(Append(draft=msgspec.structs.replace(draft, content_type=FORMAT_BYTES)))
        draft = msgspec.structs.replace(draft, payload=b"null")
    admit(Append(draft=draft))
