"""Format 1 of a record: one unit with what proves it whole, as bytes; kept readable for ever.

    offset  bytes
    0       1      format version (1)
    1       1      flags: 1 = redacted; a reader refuses what it does not know
    2       2      units of the command that wrote it (appended together or not at all)
    4       4      CRC-32 (IEEE) of everything but this field
    8       8      seq, so that a record tells by itself where it belongs
    16      32     chain digest of this record
    48      4      offset of the payload in the body
    52      4      size of the private part
    56      2      place in its command, from 0
    58      16|32  salt of the payload digest; of a redacted record the payload digest itself
    ...            private part: MessagePack map, never sent to anyone; empty where there is nothing to keep
    ...            body: the public unit, MessagePack map, payload last, sent to subscribers unchanged

All numbers are big-endian.

    chain(n)       = BLAKE2b-256(chain(n-1) | version, group fields, sizes | private part | body before the payload
                                 | payload digest)
    payload digest = BLAKE2b-256(salt | payload)

So a payload can be redacted (zeroed, its salt dropped) with the chain intact, and without being guessable: nothing
that stays may be computed from it. Units of the bus's own kinds are never redacted: the state is folded from them.

Room to grow: both maps take new keys that old readers pass over, a flag or a higher version is what they refuse. A
unit type or a field that a reader must not miss needs a new version; older versions are lifted where they are read.
"""

import struct
import zlib
from hashlib import blake2b

import msgspec

from engram_bus.codec import UNREADABLE
from engram_bus.limits import BATCH_UNITS_MAX
from engram_bus.units import WorkUnit, is_own_kind

FORMAT = 1
SALT_BYTES = 16
DIGEST_BYTES = 32
GENESIS = bytes(DIGEST_BYTES)
"""The chain before the first record."""

_HEADER = struct.Struct(">BBHIQ32sIIH")
# The same in two parts: what comes before the CRC, and what comes after it.
_FRONT = struct.Struct(">BBH")
_REST = struct.Struct(">Q32sIIH")
_COVERED = struct.Struct(">BHHII")
_CRC = slice(4, 8)
_CHAIN = slice(16, 16 + DIGEST_BYTES)
_EMPTY_DIGEST = blake2b(digest_size=DIGEST_BYTES)
"""Copied, never updated: a copy costs half of what a new one does, whose parameters are read each time."""
_REDACTED = 1
_PRIVATE_AT = {0: _HEADER.size + SALT_BYTES, _REDACTED: _HEADER.size + DIGEST_BYTES}

assert BATCH_UNITS_MAX <= 0xFFFF, "the units of one command fit their two bytes"

_encode_body = msgspec.msgpack.Encoder().encode
_decode_body = msgspec.msgpack.Decoder(WorkUnit).decode


class Private(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a record keeps for the bus alone: the idempotency key, and what makes a repeat answer the same."""

    key: str | None = msgspec.field(default=None, name="k")
    body_digest: bytes = msgspec.field(default=b"", name="d")
    """BLAKE2b-128 of the command that used the key, without its payloads: they are told by the records themselves."""
    answer: bytes = msgspec.field(default=b"", name="a")
    """The answer given, where it is more than the units themselves."""


NOTHING_PRIVATE = Private()
_encode_private = msgspec.msgpack.Encoder().encode
_decode_private = msgspec.msgpack.Decoder(Private).decode


class Record(msgspec.Struct, frozen=True, gc=False):
    """A unit with its proof. `raw` is what lies on the disk, `body` what is sent."""

    unit: WorkUnit
    body: bytes
    raw: bytes
    chain: bytes
    private: Private
    group_units: int
    group_index: int
    redacted: bool = False


class RecordError(Exception):
    """These bytes are not the record that was written."""


class _Header(msgspec.Struct, frozen=True, gc=False):
    """The fields of the header, and where the parts begin that follow it."""

    version: int
    flags: int
    group_units: int
    crc: int
    seq: int
    chain: bytes
    payload_offset: int
    private_bytes: int
    group_index: int

    @property
    def redacted(self) -> bool:
        return bool(self.flags & _REDACTED)

    @property
    def private_at(self) -> int:
        return _PRIVATE_AT[self.flags]

    @property
    def body_at(self) -> int:
        return self.private_at + self.private_bytes

    @property
    def payload_at(self) -> int:
        return self.body_at + self.payload_offset


def seal(
    unit: WorkUnit,
    *,
    previous: bytes,
    salt: bytes,
    private: Private = NOTHING_PRIVATE,
    group_units: int = 1,
    group_index: int = 0,
) -> Record:
    """The record of `unit` after a record whose chain digest is `previous`."""
    body = _encode_body(unit)
    payload_offset = len(body) - len(unit.payload)
    kept = _encode_private(private) if private is not NOTHING_PRIVATE else b""
    digest = _payload_digest(salt, unit.payload)
    chain = _chain(previous, group_units, group_index, kept, body[:payload_offset], digest)
    rest = _REST.pack(unit.seq, chain, payload_offset, len(kept), group_index)
    raw = _with_crc(_FRONT.pack(FORMAT, 0, group_units), b"".join((rest, salt, kept, body)))
    return Record(unit, body, raw, chain, private, group_units, group_index)


def parse(raw: bytes, seq: int) -> Record:
    """The record in these bytes. Raises RecordError when they are not exactly what was written at `seq`."""
    header = _checked(raw, seq)
    try:
        kept = raw[header.private_at : header.body_at]
        private = _decode_private(kept) if kept else NOTHING_PRIVATE
        body = raw[header.body_at :]
        unit = _decode_body(body)
    except UNREADABLE as exc:
        raise RecordError(f"is not a unit: {exc}") from exc
    if unit.seq != seq or header.payload_at != len(raw) - len(unit.payload):
        raise RecordError("has a header that is not of its unit")
    if header.redacted and any(unit.payload):
        raise RecordError("is marked as redacted and has a payload")
    return Record(
        unit, body, raw, header.chain, private, header.group_units, header.group_index, redacted=header.redacted
    )


def body_of(raw: bytes, seq: int) -> bytes:
    """The public unit in a record, checked by its CRC but not decoded: what catching up sends."""
    # For every unit that is read: without a `_Header` it takes half the time. What is wrong is named the slow way.
    if len(raw) >= _HEADER.size:
        version, flags, _, crc, at_seq, _, _, private_bytes, _ = _HEADER.unpack_from(raw)
        if version == FORMAT and flags in _PRIVATE_AT and at_seq == seq and _crc(raw) == crc:
            return raw[_PRIVATE_AT[flags] + private_bytes :]
    return raw[_checked(raw, seq).body_at :]


def chain_of(raw: bytes) -> bytes:
    """The chain digest that a whole record says it has."""
    return raw[_CHAIN]


def chain_follows(record: Record, previous: bytes) -> bool:
    """Whether this record continues a chain whose last digest is `previous`."""
    raw = record.raw
    header = _unpack(raw)
    proof, payload = raw[_HEADER.size : header.private_at], record.unit.payload
    kept, public = raw[header.private_at : header.body_at], raw[header.body_at : header.payload_at]
    digest = proof if header.redacted else _payload_digest(proof, payload)
    return header.chain == _chain(previous, header.group_units, header.group_index, kept, public, digest)


def redact(record: Record) -> bytes:
    """The same record with its payload zeroed and its salt gone; the chain still holds."""
    assert not is_own_kind(record.unit.kind), "the state is folded from the bus's own units"
    raw = record.raw
    if record.redacted:
        return raw
    old = _unpack(raw)
    digest = _payload_digest(raw[_HEADER.size : old.private_at], record.unit.payload)
    front = _FRONT.pack(old.version, old.flags | _REDACTED, old.group_units)
    rest = _REST.pack(old.seq, old.chain, old.payload_offset, old.private_bytes, old.group_index)
    kept_and_public = raw[old.private_at : old.payload_at]
    return _with_crc(front, b"".join((rest, digest, kept_and_public, bytes(len(record.unit.payload)))))


def _payload_digest(salt: bytes, payload: bytes) -> bytes:
    digest = _EMPTY_DIGEST.copy()
    digest.update(salt + payload)
    return digest.digest()


def _chain(previous: bytes, group_units: int, group_index: int, kept: bytes, public: bytes, payload: bytes) -> bytes:
    covered = _COVERED.pack(FORMAT, group_units, group_index, len(kept), len(public))
    digest = _EMPTY_DIGEST.copy()
    digest.update(b"".join((previous, covered, kept, public, payload)))
    return digest.digest()


def _with_crc(front: bytes, rest: bytes) -> bytes:
    return b"".join((front, zlib.crc32(rest, zlib.crc32(front)).to_bytes(4, "big"), rest))


def _crc(raw: bytes | bytearray) -> int:
    # A view of the four bytes before it would cost as much as the checksum of 500.
    return zlib.crc32(memoryview(raw)[_CRC.stop :], zlib.crc32(raw[: _CRC.start]))


def _checked(raw: bytes, seq: int) -> _Header:
    if len(raw) < _HEADER.size:
        raise RecordError(f"has {len(raw)} bytes, a record has at least {_HEADER.size + SALT_BYTES}")
    header = _unpack(raw)
    # First, so that an older program names what it cannot read instead of calling it damage.
    if header.version != FORMAT or header.flags & ~_REDACTED:
        raise RecordError(f"has format {header.version}.{header.flags}, this version reads format {FORMAT}")
    if _crc(raw) != header.crc:
        raise RecordError("does not match its checksum")
    if header.seq != seq:
        raise RecordError(f"holds unit {header.seq} instead")
    return header


def _unpack(raw: bytes) -> _Header:
    return _Header(*_HEADER.unpack_from(raw))
