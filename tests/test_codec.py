"""Bytes and values: what is written is read, by others' readers too, and what is wrong is named by its field."""

import json
from base64 import b64encode
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus import codec
from engram_bus.codec import (
    Entry,
    append_from_json,
    append_from_msgpack,
    check_payload,
    command_digest,
    decode_placed,
    decode_unit,
    encode_json,
    encode_msgpack,
    parse,
    payloads,
    unit_json,
)
from engram_bus.errors import InvalidRequest
from engram_bus.limits import JSON_DEPTH_MAX
from engram_bus.units import (
    FORMAT_BYTES,
    FORMAT_JSON,
    FORMAT_TEXT,
    Append,
    AppendAtomic,
    Draft,
    Placed,
    Relationship,
    RelationshipType,
    UnitType,
    UpdateContext,
    WorkUnit,
)
from tests.values import JSON_VALUES, append, unit, units


def from_json(**fields: Any) -> Append:
    return append_from_json(encode_json({"context_id": "plan", "agent_id": "ann"} | fields))


def from_msgpack(**fields: Any) -> Append:
    return append_from_msgpack(encode_msgpack({"context_id": "plan", "agent_id": "ann"} | fields))


# --- Units, out ------------------------------------------------------------------------------------------------------


@given(units())
def test_a_unit_in_messagepack_is_read_by_any_reader(one: WorkUnit) -> None:
    body = encode_msgpack(one)
    assert decode_unit(body) == one
    read = msgpack.unpackb(body)
    assert {"seq", "id", "context_id", "version", "agent_id", "type", "ts", "content_type", "payload"} <= read.keys()
    assert list(read)[-1] == "payload"
    assert (read["payload"], read["context_id"], read.get("meta", {})) == (one.payload, one.context_id, one.meta)


@given(units())
def test_what_the_decisions_take_in_of_a_unit_is_what_it_says(one: WorkUnit) -> None:
    placed = decode_placed(encode_msgpack(one))
    assert placed == Placed(one.seq, one.context_id, one.version, one.ts, one.kind)


@given(units())
def test_a_unit_in_json_is_one_line_that_any_reader_reads(one: WorkUnit) -> None:
    line = unit_json(one)
    assert b"\n" not in line
    assert b"\r" not in line
    read = json.loads(line)
    assert (read["seq"], read["ts"], read["type"]) == (one.seq, one.ts, one.type)
    assert ("payload" in read) != ("payload_base64" in read)


@given(JSON_VALUES, st.sampled_from([None, 2]))
def test_json_travels_in_json_as_itself(value: Any, indent: int | None) -> None:
    one = msgspec.structs.replace(unit(), content_type=FORMAT_JSON, payload=json.dumps(value, indent=indent).encode())
    line = unit_json(one)
    assert b"\n" not in line
    assert json.loads(line)["payload"] == value


@pytest.mark.parametrize(
    ("content_type", "payload", "field", "told"),
    [
        (FORMAT_TEXT, b"", "payload", ""),
        (FORMAT_TEXT, "é\n".encode(), "payload", "é\n"),
        ("text/markdown", b"# hi", "payload", "# hi"),
        ("text/html; charset=latin-1", b"\xe9", "payload_base64", "6Q=="),
        (FORMAT_TEXT, b"\xff", "payload_base64", "/w=="),
        (FORMAT_JSON, b"null", "payload", None),
        ("application/ld+json", b"[1]", "payload", [1]),
        (FORMAT_JSON, bytes(4), "payload_base64", "AAAAAA=="),
        (FORMAT_JSON, b"", "payload_base64", ""),
        (FORMAT_BYTES, b"hi", "payload_base64", "aGk="),
    ],
)
def test_a_payload_travels_in_json_as_what_it_is(content_type: str, payload: bytes, field: str, told: Any) -> None:
    read = json.loads(unit_json(msgspec.structs.replace(unit(), content_type=content_type, payload=payload)))
    assert {name: value for name, value in read.items() if name.startswith("payload")} == {field: told}


def test_empty_fields_are_left_out() -> None:
    assert json.loads(unit_json(unit())).keys() == {
        "seq", "id", "context_id", "version", "agent_id", "type", "ts", "content_type", "payload"
    }  # fmt: skip


def test_an_entry_is_decoded_and_encoded_at_most_once(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry(1, encode_msgpack(unit()))
    assert (entry.unit, entry.json) == (unit(), unit_json(unit()))
    monkeypatch.setattr(codec, "decode_unit", None)
    monkeypatch.setattr(codec, "unit_json", None)
    assert (entry.unit, entry.json) == (unit(), unit_json(unit()))


# --- Appends, in -----------------------------------------------------------------------------------------------------


@given(units())
def test_an_append_is_read_from_what_a_unit_looks_like(one: WorkUnit) -> None:
    """In both encodings, and to the same command: the digest of a repeat does not depend on the encoding."""
    fields = {
        "type": one.type,
        "kind": one.kind,
        "content_type": one.content_type,
        "meta": one.meta,
        "resources": one.resources,
        "relationships": one.relationships,
        "traceparent": one.traceparent,
        "id": one.id,
        "idempotency_key": "k",
        "expected_version": 3,
    }
    packed = from_msgpack(payload=one.payload, **fields)
    plain = from_json(payload_base64=b64encode(one.payload).decode(), **fields)
    assert packed == plain
    assert command_digest(packed) == command_digest(plain)
    draft = packed.draft
    assert (draft.payload, draft.type, draft.kind, draft.id) == (one.payload, one.type, one.kind, one.id)
    assert (draft.meta, draft.resources, draft.relationships) == (one.meta, one.resources, one.relationships)
    assert (packed.idempotency_key, packed.expected_version) == ("k", 3)


@pytest.mark.parametrize(
    ("fields", "content_type", "payload"),
    [
        ({}, FORMAT_TEXT, b""),
        ({"payload": ""}, FORMAT_TEXT, b""),
        ({"payload": "é"}, FORMAT_TEXT, "é".encode()),
        ({"payload": None}, FORMAT_JSON, b"null"),
        ({"payload": {"a": [1]}}, FORMAT_JSON, b'{"a":[1]}'),
        ({"payload": "x", "content_type": FORMAT_JSON}, FORMAT_JSON, b'"x"'),
        ({"content_type": FORMAT_JSON}, FORMAT_JSON, b"null"),
        ({"payload": "x", "content_type": "text/markdown"}, "text/markdown", b"x"),
        ({"payload_base64": "/w=="}, FORMAT_BYTES, b"\xff"),
        ({"payload_base64": "eA==", "content_type": FORMAT_TEXT}, FORMAT_TEXT, b"x"),
        ({"payload_base64": ""}, FORMAT_BYTES, b""),
    ],
)
def test_the_payload_of_json(fields: dict[str, Any], content_type: str, payload: bytes) -> None:
    draft = from_json(**fields).draft
    assert (draft.content_type, draft.payload) == (content_type, payload)


@pytest.mark.parametrize(
    ("fields", "content_type", "payload"),
    [
        ({}, FORMAT_TEXT, b""),
        ({"payload": "é"}, FORMAT_TEXT, "é".encode()),
        ({"payload": b"\xff"}, FORMAT_BYTES, b"\xff"),
        ({"payload": b"x", "content_type": FORMAT_TEXT}, FORMAT_TEXT, b"x"),
        ({"payload": None, "content_type": FORMAT_JSON}, FORMAT_JSON, b"null"),
        ({"payload": '{"a": 1}', "content_type": FORMAT_JSON}, FORMAT_JSON, b'{"a": 1}'),
    ],
)
def test_the_payload_of_messagepack(fields: dict[str, Any], content_type: str, payload: bytes) -> None:
    draft = from_msgpack(**fields).draft
    assert (draft.content_type, draft.payload) == (content_type, payload)


def test_types_are_named_or_numbered() -> None:
    for number, unit_type in enumerate(UnitType):
        assert from_json(type=number).draft.type is from_msgpack(type=unit_type.value).draft.type is unit_type
    for number, related in enumerate(RelationshipType, start=1):
        for kind in (number, related.value):
            relationship = {"target_id": "t", "type": kind, "meta": {"a": "1"}}
            assert from_json(relationships=[relationship]).draft.relationships == [
                Relationship("t", related, {"a": "1"})
            ]


def test_the_agent_is_the_bodys_before_the_headers() -> None:
    body = b'{"context_id": "plan", "agent_id": "ann"}'
    assert append_from_json(body, agent_id="bob").draft.agent_id == "ann"
    assert append_from_json(b'{"context_id": "plan"}', agent_id="bob").draft.agent_id == "bob"
    assert append_from_msgpack(encode_msgpack({"context_id": "plan"}), agent_id="bob").draft.agent_id == "bob"


REFUSED: list[tuple[str | None, bytes]] = [
    (None, b""),
    (None, b"{"),
    (None, b"[]"),
    (None, b"\xff"),
    (None, b'{"context_id": "c", "agent_id": "a"}{}'),
    (None, b"[" * 100_000),
    ("context_id", b"{}"),
    ("context_id", b'{"context_id": 1}'),
    ("context_id", b'{"context_id": null}'),
    ("agent_id", b'{"context_id": "c"}'),
    ("typ", b'{"context_id": "c", "typ": "MESSAGE"}'),
    ("type", b'{"context_id": "c", "agent_id": "a", "type": "NOTE"}'),
    ("type", b'{"context_id": "c", "agent_id": "a", "type": 9}'),
    ("type", b'{"context_id": "c", "agent_id": "a", "type": -1}'),
    ("type", b'{"context_id": "c", "agent_id": "a", "type": 1.5}'),
    ("meta", b'{"context_id": "c", "agent_id": "a", "meta": {"k": 1}}'),
    ("meta", b'{"context_id": "c", "agent_id": "a", "meta": []}'),
    ("resources[1]", b'{"context_id": "c", "agent_id": "a", "resources": ["a", 1]}'),
    ("relationships[0].target_id", b'{"context_id": "c", "agent_id": "a", "relationships": [{"type": 1}]}'),
    ("relationships[0].type", b'{"context_id": "c", "agent_id": "a", "relationships": [{"target_id": "", "type": 0}]}'),
    ("relationships[0].x", b'{"context_id": "c", "relationships": [{"target_id": "t", "type": 1, "x": 1}]}'),
    ("expected_version", b'{"context_id": "c", "agent_id": "a", "expected_version": "1"}'),
    ("payload", b'{"context_id": "c", "agent_id": "a", "payload": 1, "content_type": "text/plain"}'),
    ("payload", b'{"context_id": "c", "agent_id": "a", "payload": "x", "content_type": "image/png"}'),
    ("payload_base64", b'{"context_id": "c", "agent_id": "a", "payload": "x", "payload_base64": ""}'),
    ("payload_base64", b'{"context_id": "c", "agent_id": "a", "payload_base64": "x"}'),
    ("payload_base64", b'{"context_id": "c", "agent_id": "a", "payload_base64": "\xc3\xa9"}'),
]  # fmt: skip


@pytest.mark.parametrize(("field", "body"), REFUSED, ids=[f"{field}-{n}" for n, (field, _) in enumerate(REFUSED)])
def test_a_bad_body_is_refused_by_its_field(field: str | None, body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        append_from_json(body)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("payload", {"payload": 1}),
        ("payload", {"payload": ["x"]}),
        ("type", {"type": "NOTE"}),
        ("meta", {"meta": {"a": b""}}),
        ("payload_base64", {"payload_base64": "eA=="}),
    ],
)
def test_a_bad_packed_body_is_refused_by_its_field(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        from_msgpack(**fields)
    assert caught.value.field == field


@given(st.binary(max_size=80))
def test_no_bytes_are_worse_than_refused(body: bytes) -> None:
    for read in (append_from_json, append_from_msgpack):
        with pytest.raises(InvalidRequest):
            read(body, agent_id="ann")


def test_a_field_that_is_read_by_itself_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(msgspec.json.Decoder(list[int]).decode, b'[1, "x"]', field="payload")
    assert caught.value.field == "payload[1]"


@pytest.mark.parametrize(
    ("text", "half"),
    [
        (rb'"\ud800"', r"\ud800"),
        (rb'"a\udfff and more"', r"\udfff"),
        (rb'"\ud83d\ude00\uDBFF!"', r"\uDBFF"),
        (rb'"\ud800\ud800"', r"\ud800"),
        (rb'"\\\ud800"', r"\ud800"),
    ],
)
def test_half_of_a_pair_is_named(text: bytes, half: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        append_from_json(b'{"context_id":"a","agent_id":"ann","payload":' + text + b"}")
    assert caught.value.message.endswith(f"; {half} is half of a surrogate pair, which is no text")


@pytest.mark.parametrize("text", [rb'"\ud83d\ude00', rb'"\\ud800', rb'"\ud8"', b'"\\'])
def test_what_is_malformed_otherwise_is_no_half_of_a_pair(text: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        append_from_json(b'{"context_id":"a","agent_id":"ann","payload":' + text)
    assert "surrogate" not in caught.value.message


# --- Payloads --------------------------------------------------------------------------------------------------------


def deep(depth: int) -> bytes:
    return b'[{"a":' * (depth // 2) + b"[" * (depth % 2) + b"1" + b"]" * (depth % 2) + b"}]" * (depth // 2)


@pytest.mark.parametrize(
    ("content_type", "payload"),
    [
        (FORMAT_JSON, deep(JSON_DEPTH_MAX)),
        (FORMAT_JSON, b"[" + b"[]," * 1_000 + b'"[[[{{{"]'),
        (FORMAT_JSON, b' {"a": 1e3}\r\n'),
        (FORMAT_JSON, b"123456789012345678901234567890"),
        (FORMAT_TEXT, "é".encode()),
        (FORMAT_BYTES, b"\xff"),
        ("text/plain; charset=latin-1", b"\xff"),
    ],
)
def test_a_payload_that_is_what_it_says_is_fine(content_type: str, payload: bytes) -> None:
    check_payload(content_type, payload)


@pytest.mark.parametrize(
    ("content_type", "payload", "limit"),
    [
        (FORMAT_JSON, deep(JSON_DEPTH_MAX + 1), JSON_DEPTH_MAX),
        (FORMAT_JSON, b"[" * 200_000 + b"]" * 200_000, JSON_DEPTH_MAX),
        (FORMAT_JSON, b"", None),
        (FORMAT_JSON, b"NaN", None),
        (FORMAT_JSON, b"Infinity", None),
        (FORMAT_JSON, b'"\\ud800"', None),
        (FORMAT_JSON, b"1" * 5_000, None),
        (FORMAT_TEXT, b"a\xff", None),
        ("TEXT/PLAIN;charset=US-ASCII", b"\xff", None),
    ],
)
def test_a_payload_that_is_not_what_it_says_is_refused(content_type: str, payload: bytes, limit: int | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_payload(content_type, payload)
    assert (caught.value.field, caught.value.limit) == ("payload", limit)


# --- Repeats ---------------------------------------------------------------------------------------------------------


def test_a_digest_tells_commands_apart_in_any_order_of_their_maps() -> None:
    assert command_digest(from_json(meta={"a": "1", "b": "2"})) == command_digest(from_json(meta={"b": "2", "a": "1"}))
    commands = [
        append(),
        append("other"),
        append(agent_id="bob"),
        append(expected_version=0),
        from_json(meta={"a": "1"}),
        from_json(resources=["a"]),
        AppendAtomic(appends=(append(),)),
        AppendAtomic(appends=(append(), append())),
        UpdateContext(context_id="plan", agent_id="ann"),
        UpdateContext(context_id="plan", agent_id="ann", closed=True),
    ]
    assert len({command_digest(command) for command in commands}) == len(commands)


def test_a_digest_does_not_know_the_key_nor_the_payload() -> None:
    """It is kept for ever, and a payload may be redacted: its comparison is left to the record."""
    assert command_digest(append(key="k", payload=b"a")) == command_digest(append(key="l", payload=b"b"))
    one = AppendAtomic(appends=(append(payload=b"a"),), idempotency_key="k")
    assert command_digest(one) == command_digest(AppendAtomic(appends=(append(payload=b"b"),)))
    assert (payloads(append(payload=b"a")), payloads(one)) == ((b"a",), [b"a"])
    assert payloads(UpdateContext(context_id="plan", agent_id="ann")) == ()


def test_digests_are_kept_for_the_life_of_a_log_and_so_never_change() -> None:
    every_field = Append(
        draft=Draft(
            context_id="plan",
            agent_id="ann",
            type=UnitType.TOOL_CALL,
            kind="build.failed",
            content_type=FORMAT_JSON,
            payload=b"{}",
            meta={"b": "2", "a": "1"},
            resources=["src/a.py"],
            relationships=[Relationship("t", RelationshipType.CAUSES, {"c": "3"})],
            traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
            id="00000000-0000-7000-8000-000000000001",
        ),
        expected_version=7,
        idempotency_key="k",
    )
    update = UpdateContext(
        context_id="plan",
        agent_id="ann",
        display_name="Plan",
        add_agents=("a",),
        remove_agents=("b",),
        pin_units=("c",),
        unpin_units=("d",),
        meta={"f": None, "e": "1"},
        fences=("src/*",),
        closed=True,
        expected_version=7,
    )
    assert command_digest(append()).hex() == "303cdbf971ccf56d645d653734e05bbb"
    assert command_digest(every_field).hex() == "a2060d79f49f42ee9843d04173faef59"
    assert command_digest(AppendAtomic(appends=(append(), every_field))).hex() == "0e3072125663eecc53f9811f2b30595b"
    assert command_digest(update).hex() == "c8089c70ee42569717b630ee5cd96563"


def test_a_default_that_is_said_aloud_is_the_same_command() -> None:
    """Whatever object says it: a string that was read is never the very one that is the default."""
    said = "".join(["text/plain; ", "charset=utf-8"])
    assert said is not FORMAT_TEXT
    for one in (from_json(payload="a", content_type=said), from_msgpack(payload="a", content_type=said)):
        assert command_digest(one) == command_digest(from_json(payload="a"))
        many = AppendAtomic(appends=(one,))
        assert command_digest(many) == command_digest(AppendAtomic(appends=(from_json(payload="a"),)))
