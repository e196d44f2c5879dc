"""Format 1 of a record: one unit with what proves it whole, as bytes; kept readable for ever.

    offset  bytes
    0       1      format version (1)
    1       1      flags: 1 = redacted
    2       2      units of the command that wrote it (appended together or not at all)
    4       4      CRC-32 (IEEE) of everything after this field
    8       32     chain digest of this record
    40      4      offset of the payload in the body
    44      4      size of the private part
    48      2      place in its command, from 0
    50      16|32  salt of the payload digest; of a redacted record the payload digest itself
    ...            private part: MessagePack map, never sent to anyone
    ...            body: the public unit, MessagePack map, payload last, sent to subscribers unchanged

chain(n) = BLAKE2b-256(chain(n-1) | group fields | private part | body before the payload | payload digest)
payload digest = BLAKE2b-256(salt | payload)

So a payload can be redacted (zeroed, its salt dropped) with the chain intact, and without being guessable from it.
"""

import struct
import zlib
from hashlib import blake2b

import msgspec

from engram_bus.units import WorkUnit

FORMAT = 1
SALT_BYTES = 16
DIGEST_BYTES = 32
GENESIS = bytes(DIGEST_BYTES)
"""The chain before the first record."""

_HEADER = struct.Struct(">BBHI32sIIH")
_COVERED = struct.Struct(">HHII")
_CRC_FROM = 8
_REDACTED = 1

_encode_body = msgspec.msgpack.Encoder().encode
_decode_body = msgspec.msgpack.Decoder(WorkUnit).decode


class Private(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a record keeps for the bus alone: the idempotency key, and what makes a repeat answer the same."""

    key: str | None = msgspec.field(default=None, name="k")
    body_digest: bytes = msgspec.field(default=b"", name="d")
    """BLAKE2b-128 of the command that used the key."""
    answer: bytes = msgspec.field(default=b"", name="a")
    """The answer given, where it is more than the units themselves."""


NOTHING_PRIVATE = Private()
_encode_private = msgspec.msgpack.Encoder().encode
_decode_private = msgspec.msgpack.Decoder(Private).decode


class Record(msgspec.Struct, frozen=True):
    """A unit with its proof. `raw` is what lies on the disk, `body` what is sent."""

    unit: WorkUnit
    body: bytes
    raw: bytes
    chain: bytes
    private: Private
    group_units: int
    group_index: int


class RecordError(Exception):
    """These bytes are not the record that was written."""


def seal(
    unit: WorkUnit, *, previous: bytes, salt: bytes, private: Private = NOTHING_PRIVATE, group_units: int = 1, group_index: int = 0
) -> Record:
    """The record of `unit` after a record whose chain digest is `previous`."""
    body = _encode_body(unit)
    payload_at = len(body) - len(unit.payload)
    kept = _encode_private(private) if private is not NOTHING_PRIVATE else b""
    digest = blake2b(salt + unit.payload, digest_size=DIGEST_BYTES).digest()
    chain = _chain(previous, group_units, group_index, kept, body[:payload_at], digest)
    header = _HEADER.pack(FORMAT, 0, group_units, 0, chain, payload_at, len(kept), group_index)
    raw = bytearray().join((header, salt, kept, body))
    raw[4:8] = zlib.crc32(memoryview(raw)[_CRC_FROM:]).to_bytes(4, "big")
    return Record(unit, body, bytes(raw), chain, private, group_units, group_index)


def parse(raw: bytes) -> Record:
    """The record in these bytes. Raises RecordError when they are not exactly what `seal` or `redact` made."""
    version, flags, group_units, crc, chain, _, kept_bytes, group_index = _header(raw)
    if version != FORMAT:
        raise RecordError(f"record format {version}, this version reads format {FORMAT}")
    if zlib.crc32(memoryview(raw)[_CRC_FROM:]) != crc:
        raise RecordError("checksum does not match")
    kept_at = _HEADER.size + (DIGEST_BYTES if flags & _REDACTED else SALT_BYTES)
    body_at = kept_at + kept_bytes
    try:
        private = _decode_private(raw[kept_at:body_at]) if kept_bytes else NOTHING_PRIVATE
        body = raw[body_at:]
        return Record(_decode_body(body), body, raw, chain, private, group_units, group_index)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise RecordError(f"not a unit: {exc}") from exc


def body_of(raw: bytes) -> bytes:
    """The public unit in a record, checked by its CRC but not decoded: what catching up sends."""
    version, flags, _, crc, _, _, kept_bytes, _ = _header(raw)
    if version != FORMAT or zlib.crc32(memoryview(raw)[_CRC_FROM:]) != crc:
        raise RecordError("checksum does not match")
    return raw[_HEADER.size + (DIGEST_BYTES if flags & _REDACTED else SALT_BYTES) + kept_bytes :]


def chain_follows(raw: bytes, previous: bytes) -> bool:
    """Whether this (parsed) record continues a chain whose last digest is `previous`."""
    _, flags, group_units, _, chain, payload_at, kept_bytes, group_index = _header(raw)
    kept_at = _HEADER.size + (DIGEST_BYTES if flags & _REDACTED else SALT_BYTES)
    proof = raw[_HEADER.size : kept_at]
    body_at = kept_at + kept_bytes
    payload_from = body_at + payload_at
    if flags & _REDACTED:
        digest = proof
    else:
        digest = blake2b(proof + raw[payload_from:], digest_size=DIGEST_BYTES).digest()
    return chain == _chain(previous, group_units, group_index, raw[kept_at:body_at], raw[body_at:payload_from], digest)


def redact(raw: bytes) -> bytes:
    """The same record with its payload zeroed and its salt gone; the chain still holds."""
    version, flags, group_units, _, chain, payload_at, kept_bytes, group_index = _header(raw)
    if flags & _REDACTED:
        return raw
    kept_at = _HEADER.size + SALT_BYTES
    payload_from = kept_at + kept_bytes + payload_at
    payload = raw[payload_from:]
    digest = blake2b(raw[_HEADER.size : kept_at] + payload, digest_size=DIGEST_BYTES).digest()
    header = _HEADER.pack(version, flags | _REDACTED, group_units, 0, chain, payload_at, kept_bytes, group_index)
    redacted = bytearray().join((header, digest, raw[kept_at:payload_from], bytes(len(payload))))
    redacted[4:8] = zlib.crc32(memoryview(redacted)[_CRC_FROM:]).to_bytes(4, "big")
    return bytes(redacted)


def _chain(previous: bytes, group_units: int, group_index: int, kept: bytes, public: bytes, digest: bytes) -> bytes:
    covered = _COVERED.pack(group_units, group_index, len(kept), len(public))
    return blake2b(b"".join((previous, covered, kept, public, digest)), digest_size=DIGEST_BYTES).digest()


def _header(raw: bytes) -> tuple[int, int, int, int, bytes, int, int, int]:
    if len(raw) < _HEADER.size + SALT_BYTES:
        raise RecordError(f"{len(raw)} bytes, a record has at least {_HEADER.size + SALT_BYTES}")
    return _HEADER.unpack_from(raw)
