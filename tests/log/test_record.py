"""Format 1 of a record: what was written is read, and nothing else passes for it."""

import struct
import zlib
from hashlib import blake2b

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.log.record import (
    GENESIS,
    NOTHING_PRIVATE,
    Private,
    Record,
    RecordError,
    body_of,
    chain_follows,
    parse,
    redact,
    seal,
)
from engram_bus.units import WorkUnit
from tests.values import SALT, unit, units

PRIVATE = st.builds(
    Private, key=st.none() | st.text(max_size=10), body_digest=st.binary(max_size=16), answer=st.binary(max_size=10)
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    group_units = draw(st.integers(1, 1_000))
    return seal(
        draw(units(seq=draw(st.integers(1, 2**64 - 1)))),
        previous=draw(st.binary(min_size=32, max_size=32)),
        salt=draw(st.binary(min_size=16, max_size=16)),
        private=draw(st.just(NOTHING_PRIVATE) | PRIVATE),
        group_units=group_units,
        group_index=draw(st.integers(0, group_units - 1)),
    )


@given(records())
def test_what_is_sealed_is_parsed(record: Record) -> None:
    assert parse(record.raw, record.unit.seq) == record
    assert body_of(record.raw, record.unit.seq) == record.body == msgspec.msgpack.encode(record.unit)


@given(records(), st.data())
def test_no_flipped_bit_passes(record: Record, data: st.DataObject) -> None:
    raw = bytearray(record.raw)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(RecordError):
        parse(bytes(raw), record.unit.seq)
    with pytest.raises(RecordError):
        body_of(bytes(raw), record.unit.seq)


@given(records(), st.data())
def test_no_cut_record_passes(record: Record, data: st.DataObject) -> None:
    cut = record.raw[: data.draw(st.integers(0, len(record.raw) - 1))]
    with pytest.raises(RecordError):
        parse(cut, record.unit.seq)


def test_a_record_says_where_it_belongs() -> None:
    raw = _sealed(unit(7)).raw
    with pytest.raises(RecordError, match="holds unit 7 instead"):
        parse(raw, 8)
    with pytest.raises(RecordError, match="holds unit 7 instead"):
        body_of(raw, 8)


def test_a_later_version_and_an_unknown_flag_are_named_not_called_damage() -> None:
    raw = _sealed(unit()).raw
    with pytest.raises(RecordError, match=r"has format 2\.0, this version reads format 1"):
        parse(b"\2" + raw[1:], 1)
    with pytest.raises(RecordError, match=r"has format 1\.2, this version reads format 1"):
        body_of(raw[:1] + b"\2" + raw[2:], 1)


def test_a_header_of_another_unit_is_told_even_with_a_right_checksum() -> None:
    record = _sealed(unit(5))
    forged = bytearray(record.raw)
    forged[8:16] = (6).to_bytes(8, "big")
    with pytest.raises(RecordError, match="not of its unit"):
        parse(_checksummed(forged), 6)


def test_a_body_that_is_no_unit_is_told_even_with_a_right_checksum() -> None:
    raw = bytearray(_sealed(unit()).raw)
    raw[74] = 0xC1  # The body's first byte; 0xc1 is never used in MessagePack.
    with pytest.raises(RecordError, match="is not a unit"):
        parse(_checksummed(raw), 1)


def test_keys_of_later_versions_are_passed_over() -> None:
    record = _sealed(unit(), private=Private(key="k"))
    later = msgspec.msgpack.encode({"k": "k", "zz": 1})
    body = msgspec.msgpack.decode(record.body)
    body = msgspec.msgpack.encode({"later": [1], **body})
    header = bytearray(record.raw[:74])
    struct.pack_into(">II", header, 48, len(body) - 2, len(later))
    parsed = parse(_checksummed(header + later + body), 1)
    assert (parsed.unit, parsed.private, parsed.body) == (record.unit, record.private, body)


# --- The chain -------------------------------------------------------------------------------------------------------


@given(records(), st.binary(min_size=32, max_size=32))
def test_the_chain_holds_after_one_record_only(record: Record, other: bytes) -> None:
    follower = seal(unit(9), previous=record.chain, salt=SALT)
    assert chain_follows(follower, record.chain)
    assert chain_follows(follower, other) is (other == record.chain)


@given(records())
def test_the_chain_covers_every_part(record: Record) -> None:
    """Whoever changes a record and corrects its checksum is found out by the chain."""
    previous = GENESIS
    record = seal(record.unit, previous=previous, salt=SALT, private=record.private, group_units=2, group_index=1)
    for change in (
        {"unit": msgspec.structs.replace(record.unit, agent_id="eve")},
        {"unit": msgspec.structs.replace(record.unit, payload=record.unit.payload + b"!")},
        {"private": Private(key="eve")},
        {"group_units": 3},
        {"group_index": 0},
        {"salt": b"another salt 123"},
    ):
        parts = {"unit": record.unit, "salt": SALT, "private": record.private, "group_units": 2, "group_index": 1}
        assert seal(previous=previous, **parts | change).chain != record.chain  # type: ignore[arg-type]


def test_the_chain_is_the_one_of_the_docstring() -> None:
    """Computed here from the format's description alone: what another program would do."""
    record = seal(unit(payload=b"hi"), previous=GENESIS, salt=SALT, private=Private(key="k"), group_units=1)
    private = msgspec.msgpack.encode({"k": "k"})
    public = record.body[:-2]
    covered = struct.pack(">BHHII", 1, 1, 0, len(private), len(public))
    digest = blake2b(SALT + b"hi", digest_size=32).digest()
    assert record.chain == blake2b(GENESIS + covered + private + public + digest, digest_size=32).digest()
    head = struct.pack(">BBH", 1, 0, 1)
    rest = struct.pack(">Q32sIIH", 1, record.chain, len(public), len(private), 0) + SALT + private + record.body
    assert record.raw == head + zlib.crc32(head + rest).to_bytes(4, "big") + rest


# --- Redaction -------------------------------------------------------------------------------------------------------


@given(records())
def test_a_redacted_record_keeps_all_but_its_payload_and_the_chain_holds(record: Record) -> None:
    previous = GENESIS
    record = seal(record.unit, previous=previous, salt=SALT, private=record.private)
    redacted = parse(redact(record), record.unit.seq)
    assert redacted.redacted
    assert redacted.unit == msgspec.structs.replace(record.unit, payload=bytes(len(record.unit.payload)))
    assert (redacted.chain, redacted.private) == (record.chain, record.private)
    assert chain_follows(redacted, previous)
    assert redact(redacted) == redacted.raw


def test_nothing_of_a_redacted_payload_stays() -> None:
    secret = b"4711"
    redacted = redact(_sealed(unit(payload=secret)))
    assert secret not in redacted
    assert SALT not in redacted
    assert blake2b(secret, digest_size=32).digest() not in redacted


def test_a_redacted_record_cannot_carry_another_payload() -> None:
    raw = bytearray(redact(_sealed(unit(payload=b"hi"))))
    raw[-2:] = b"ho"
    with pytest.raises(RecordError, match="redacted and has a payload"):
        parse(_checksummed(raw), 1)


def test_units_from_which_state_is_folded_are_not_redacted() -> None:
    with pytest.raises(AssertionError, match="state is folded"):
        redact(_sealed(unit(kind="context.joined")))


def _sealed(one: WorkUnit, private: Private = NOTHING_PRIVATE) -> Record:
    return seal(one, previous=GENESIS, salt=SALT, private=private)


def _checksummed(raw: bytes | bytearray) -> bytes:
    crc = zlib.crc32(raw[8:], zlib.crc32(raw[:4]))
    return bytes(raw[:4]) + crc.to_bytes(4, "big") + bytes(raw[8:])
