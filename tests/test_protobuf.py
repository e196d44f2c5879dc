"""Protobuf says what JSON and MessagePack say: the same units, the same commands, the same refusals."""

import json
import re
from base64 import b64decode
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.codec import Entry, append_from_json, append_from_msgpack, encode_json, encode_msgpack, unit_json
from engram_bus.errors import EngramError, InvalidRequest, VersionMoved
from engram_bus.pb import append_pb2, error_pb2, lock_pb2, read_pb2, subscription_pb2, unit_pb2
from engram_bus.protobuf import (
    append_from_protobuf,
    delimited,
    error_message,
    parse,
    relationship_of,
    timestamp,
    type_of,
    unit_bytes,
    units_field,
)
from engram_bus.units import FORMAT_JSON, FORMAT_TEXT, Append, RelationshipType, UnitType, WorkUnit
from tests.values import unit, units

# --- Units, out ------------------------------------------------------------------------------------------------------


@given(units())
def test_a_unit_as_a_message_says_what_its_json_says(one: WorkUnit) -> None:
    message = unit_pb2.WorkUnit.FromString(unit_bytes(Entry(one.seq, encode_msgpack(one), one)))
    said = json_format.MessageToDict(message, preserving_proto_field_name=True)
    expected = json.loads(unit_json(one))
    for name in ("payload", "payload_base64"):
        expected.pop(name, None)
    assert b64decode(said.pop("payload", "")) == one.payload
    # What JSON leaves to its readers' numbers comes as text from json_format, and a time without its last zeros.
    for name in ("seq", "version"):
        said[name] = int(said[name])
    assert timestamp(expected.pop("ts")) == message.ts
    del said["ts"]
    said.setdefault("type", "UNKNOWN")
    assert said == expected


def test_a_unit_is_encoded_once() -> None:
    entry = Entry(1, encode_msgpack(unit()))
    assert unit_bytes(entry) is unit_bytes(entry)


@given(st.lists(units(), max_size=4))
def test_units_are_field_1_of_every_answer_that_has_some(some: list[WorkUnit]) -> None:
    parts = b"".join(units_field([Entry(one.seq, encode_msgpack(one), one) for one in some]))
    ids = [one.id for one in some]
    assert [one.id for one in read_pb2.ListResponse.FromString(parts).work_units] == ids
    assert [one.id for one in subscription_pb2.SubscribeResponse.FromString(parts).work_units] == ids
    if len(some) == 1:
        assert append_pb2.AppendResponse.FromString(parts).work_unit.id == ids[0]
        assert read_pb2.GetResponse.FromString(parts).work_unit.id == ids[0]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 300_000_000])
def test_a_size_is_the_varint_that_protobuf_reads(size: int) -> None:
    head = delimited(0x0A, size)
    assert head[0] == 0x0A
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(head[1:])) == size
    assert [byte >> 7 for byte in head[1:]] == [1] * (len(head) - 2) + [0]


# --- Appends, in -----------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=12)
MAYBE = st.none() | TEXTS
FIELDS = st.fixed_dictionaries(
    {"context_id": TEXTS, "agent_id": TEXTS},
    optional={
        "type": st.integers(0, len(UnitType) - 1),
        "kind": TEXTS,
        "meta": st.dictionaries(TEXTS, TEXTS, max_size=2),
        "resources": st.lists(TEXTS, max_size=2),
        "relationships": st.lists(
            st.fixed_dictionaries(
                {"target_id": TEXTS, "type": st.integers(1, 7)},
                optional={"meta": st.dictionaries(TEXTS, TEXTS, max_size=2)},
            ),
            max_size=2,
        ),
        "traceparent": TEXTS,
        "id": TEXTS,
        "idempotency_key": TEXTS,
        "expected_version": st.integers(0, 2**63 - 1),
        "fence": st.fixed_dictionaries({"resource": TEXTS, "token": st.integers(0, 2**63 - 1)}),
    },
)


@given(FIELDS, TEXTS)
def test_an_append_is_the_same_command_in_every_encoding(fields: dict[str, Any], payload: str) -> None:
    command = append_from_json(encode_json({**fields, "payload": payload}))
    assert append_from_msgpack(encode_msgpack({**fields, "payload": payload})) == command
    assert from_protobuf(**fields, payload=payload.encode()) == command


@pytest.mark.parametrize("content_type", [FORMAT_TEXT, FORMAT_JSON, "image/png"])
def test_no_payload_is_the_same_in_every_encoding(content_type: str) -> None:
    fields = {"context_id": "plan", "agent_id": "ann", "content_type": content_type}
    assert (
        from_protobuf(**fields) == append_from_json(encode_json(fields)) == append_from_msgpack(encode_msgpack(fields))
    )


def test_a_payload_is_text_unless_it_says_what_it_is() -> None:
    command = from_protobuf(context_id="plan", agent_id="ann", payload=b"\xff")
    assert (command.draft.content_type, command.draft.payload) == (FORMAT_TEXT, b"\xff")


def test_who_acts_may_be_said_by_the_call() -> None:
    body = append_pb2.AppendRequest(context_id="plan").SerializeToString()
    assert append_from_protobuf(body, agent_id="ann").draft.agent_id == "ann"
    with pytest.raises(InvalidRequest, match="agent_id is missing") as refused:
        append_from_protobuf(body)
    assert refused.value.field == "agent_id"


def from_protobuf(**fields: Any) -> Append:
    return append_from_protobuf(append_pb2.AppendRequest(**fields).SerializeToString())


# --- What cannot be read ---------------------------------------------------------------------------------------------


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_an_invalid_request(body: bytes) -> None:
    try:
        append_from_protobuf(body, agent_id="ann")
    except InvalidRequest:
        return
    # What was read has no field that this version does not know, so it says all there is to say.
    assert append_pb2.AppendRequest.FromString(body).ByteSize() <= len(body)


def test_a_field_that_is_not_known_is_refused_wherever_it_stands() -> None:
    unknown = b"\xc2\x3e\x01x"  # Field 1000, of one byte.
    with pytest.raises(InvalidRequest, match=r"unknown field 1000 of engram\.v1\.AppendRequest") as refused:
        append_from_protobuf(append_pb2.AppendRequest(context_id="plan").SerializeToString() + unknown)
    assert refused.value.field == "1000"
    fence = append_pb2.Fence(resource="a").SerializeToString() + unknown
    with pytest.raises(InvalidRequest, match=r"of engram\.v1\.Fence") as refused:
        append_from_protobuf(delimited(0x72, len(fence)) + fence)
    assert refused.value.field == "fence.1000"
    edge = unit_pb2.Relationship(target_id="a", type="CAUSES").SerializeToString()
    edges = b"".join(delimited(0x4A, len(one)) + one for one in (edge, edge + unknown))
    with pytest.raises(InvalidRequest, match=r"of engram\.v1\.Relationship") as refused:
        append_from_protobuf(edges)
    assert refused.value.field == "relationships[1].1000"


@pytest.mark.parametrize("number", [-1, 9, 1_000])
def test_a_type_that_is_not_known_is_refused(number: int) -> None:
    with pytest.raises(InvalidRequest, match=f"type {number} is unknown; 0 to 8, as UNKNOWN, MESSAGE") as refused:
        from_protobuf(context_id="plan", agent_id="ann", type=number)
    assert refused.value.field == "type"
    assert type_of(8) is UnitType.SYSTEM


@pytest.mark.parametrize("number", [0, 8, -1])
def test_a_relationship_that_is_not_known_is_refused(number: int) -> None:
    with pytest.raises(InvalidRequest, match=f"relationship type {number} is unknown; 1 to 7") as refused:
        from_protobuf(context_id="plan", agent_id="ann", relationships=[{"target_id": "a", "type": number}])
    assert refused.value.field == "relationships[0].type"
    assert relationship_of(1) is RelationshipType.SEQUENTIAL


def test_what_is_nested_too_deeply_or_no_utf_8_is_refused() -> None:
    for body in (b"\x0a\x02\xff\xff", b"\x0a\x05ab", b"\x72" * 300):
        with pytest.raises(InvalidRequest, match=r"cannot be read as engram\.v1\.AppendRequest"):
            parse(append_pb2.AppendRequest, body)


# --- Enums and errors ------------------------------------------------------------------------------------------------


def test_enums_have_the_names_and_numbers_of_json() -> None:
    assert dict(unit_pb2.WorkUnit.Type.items()) == {one.value: number for number, one in enumerate(UnitType)}
    relationships = dict(unit_pb2.Relationship.Type.items())
    assert relationships.pop("UNSPECIFIED") == 0
    assert relationships == {one.value: number for number, one in enumerate(RelationshipType, 1)}
    assert lock_pb2.Lock.Mode.keys() == ["EXCLUSIVE", "SHARED"]


def test_a_refusal_says_what_a_problem_says() -> None:
    moved = VersionMoved("moved", field="expected_version", limit=3, current_version=7, cycle=[{"agent_id": "ann"}])
    message = error_message(moved.at(2))
    assert (message.code, message.message, message.retryable) == ("VERSION_MOVED", "moved", False)
    assert (message.field, message.limit, message.index) == ("expected_version", 3, 2)
    assert json_format.MessageToDict(message.details) == {"current_version": 7, "cycle": [{"agent_id": "ann"}]}
    bare = error_message(InvalidRequest("no"))
    assert not any(bare.HasField(name) for name in ("field", "limit", "index", "details"))


def test_every_error_has_a_status_that_grpc_knows() -> None:
    import grpc

    def names(kind: type[EngramError]) -> set[str]:
        own = {kind.grpc} if "code" in vars(kind) else set()
        return own.union(*map(names, kind.__subclasses__()))

    assert names(EngramError) <= {one.name for one in grpc.StatusCode} - {"OK", "UNKNOWN", "CANCELLED"}
    assert re.fullmatch(r"engram\.v1\.Error", error_pb2.Error.DESCRIPTOR.full_name)
