"""Drafts become what the bus reads, and what the bus says becomes values."""

from typing import Any

import msgspec
import pytest

from engram_client import codec
from engram_client.errors import EngramConnectionError, EpochChanged, InvalidRequest, VersionMoved
from engram_client.frames import Appended, Goaway, Heartbeat, Missing, Other, Pong, Refused, Subscribed, Units
from engram_client.values import (
    Cursor,
    Draft,
    Highlight,
    Receipt,
    Relationship,
    RelationshipType,
    SearchExplained,
    SearchLeg,
    UnitType,
    WorkUnit,
)

UNIT: dict[str, Any] = {
    "seq": 7,
    "id": "0190b7c0-0000-7000-8000-000000000007",
    "context_id": "repo/plan",
    "version": 3,
    "agent_id": "ann",
    "type": "MESSAGE",
    "ts": "2026-01-01T00:00:00.000001Z",
    "content_type": "text/plain; charset=utf-8",
}


def packed(draft: Draft) -> dict[str, Any]:
    body = codec.append_body(draft, agent_id="ann", idempotency_key="k")
    found: dict[str, Any] = msgspec.msgpack.decode(body)
    return found


def read(**more: Any) -> WorkUnit:
    return codec.unit(msgspec.json.encode(UNIT | more))


# --- Sending


@pytest.mark.parametrize(
    ("payload", "content_type", "sent", "sent_type"),
    [
        ("h\u00e9", None, "h\u00e9", None),
        ("{}", "application/json", b"{}", "application/json"),
        (b"\0\xff", None, b"\0\xff", None),
        (bytearray(b"a"), "image/png", b"a", "image/png"),
        ({"a": [1]}, None, b'{"a":[1]}', "application/json"),
        (None, None, b"null", "application/json"),
        ({"null": msgspec.Raw(b"[null]"), 1.5: {None}}, None, b'{"null":[null],"1.5":[null]}', "application/json"),
        (3, "application/vnd.x+json", b"3", "application/vnd.x+json"),
        (b"", "image/png", b"", "image/png"),
    ],
)
def test_a_payload_goes_as_what_it_is(payload: Any, content_type: str | None, sent: Any, sent_type: str | None) -> None:
    body = packed(Draft("plan", payload, content_type=content_type))
    assert (body["payload"], body.get("content_type")) == (sent, sent_type)


class WithNumber(msgspec.Struct):
    number: float


@pytest.mark.parametrize("payload", [object(), "\ud800", {"a": {"b": object()}}])
def test_a_payload_that_cannot_be_written_is_refused_here(payload: Any) -> None:
    with pytest.raises(InvalidRequest):
        packed(Draft("plan", payload))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_has_none_for_is_refused_and_not_sent_as_null(number: float) -> None:
    for payload in (number, {"a": [None, 1.5, {"b": number}]}, WithNumber(number), (None, {number})):
        with pytest.raises(InvalidRequest) as told:
            packed(Draft("plan", payload))
        assert told.value.field == "payload"


def test_a_draft_says_only_what_it_has() -> None:
    assert packed(Draft("plan")) == {"context_id": "plan", "agent_id": "ann", "type": "MESSAGE", "idempotency_key": "k"}


def test_a_draft_says_all_it_has() -> None:
    cause = Relationship("u1", RelationshipType.CAUSES)
    said = {"type": "TOOL_CALL", "kind": "tool.run", "meta": {"a": "b"}, "resources": ["r"], "traceparent": "00-1"}
    own = {"id": "u2", "idempotency_key": "mine", "expected_version": 0, "agent_id": "bob"}
    body = packed(Draft("plan", "x", relationships=[cause], **said, **own))  # type: ignore[arg-type]
    assert body == {
        **said,
        **own,
        "context_id": "plan",
        "payload": "x",
        "relationships": [{"target_id": "u1", "type": "CAUSES"}],
    }


def test_a_bulk_is_json_with_bytes_in_base64() -> None:
    drafts = [Draft("plan", "text"), Draft("plan", b"\0"), Draft("plan", {"a": 1}), Draft("plan")]
    body = msgspec.json.decode(codec.bulk_body(drafts, agent_id="ann", idempotency_keys=["1", "2", None, "4"]))
    payloads = [(item.get("payload"), item.get("payload_base64")) for item in body]
    assert payloads == [("text", None), (None, "AA=="), (None, "eyJhIjoxfQ=="), (None, None)]
    assert [item.get("idempotency_key") for item in body] == ["1", "2", None, "4"]


def test_a_filter_too_long_for_a_url_is_an_operation() -> None:
    query = {"context": ["a", "b"], "kind": None, "meta.k": "v", "after": "e1.7"}
    assert msgspec.msgpack.decode(codec.subscribe_frame(query, frame_id=1)) == {
        "op": "subscribe",
        "id": 1,
        "context": ["a", "b"],
        "after": "e1.7",
        "meta": {"k": "v"},
    }


# --- Receiving


@pytest.mark.parametrize(
    ("content_type", "wire", "payload"),
    [
        ("text/plain; charset=utf-8", {"payload": "h\u00e9\n"}, "h\u00e9\n".encode()),
        ("application/json", {"payload": {"a": [1, None]}}, b'{"a":[1,null]}'),
        ("application/json", {"payload": None}, b"null"),
        ("application/json", {"payload": "text"}, b'"text"'),
        ("application/ld+json; x=y", {"payload": 1}, b"1"),
        ("image/png", {"payload_base64": "AP8="}, b"\0\xff"),
        ("text/plain; charset=utf-8", {"payload_base64": "/w=="}, b"\xff"),
        ("text/plain", {}, b""),
    ],
)
def test_a_unit_in_json_has_the_payload_it_had(content_type: str, wire: dict[str, Any], payload: bytes) -> None:
    assert read(content_type=content_type, **wire).payload == payload


def test_a_unit_helps_to_read_it() -> None:
    unit = read(content_type="application/json", payload={"a": 1})
    assert (unit.json(), unit.text) == ({"a": 1}, '{"a":1}')
    assert (unit.time.isoformat(), unit.type) == ("2026-01-01T00:00:00.000001+00:00", UnitType.MESSAGE)


def test_what_a_newer_bus_says_is_kept_or_left_out_but_no_error() -> None:
    edge = {"target_id": "u1", "type": "SUPERSEDES"}
    unit = read(type="MAIL", relationships=[edge], colour="red")
    assert (unit.type, unit.relationships[0].type) == ("MAIL", "SUPERSEDES")
    assert isinstance(unit.type, UnitType)


def test_a_page() -> None:
    page = codec.page(msgspec.json.encode({"work_units": [UNIT, UNIT], "next_page": None, "applied_seq": 9}))
    assert (len(page), [unit.seq for unit in page], page.next_page, page.applied_seq) == (2, [7, 7], None, 9)


def test_a_search_answer_says_why_each_unit_is_there() -> None:
    hit = {"unit_id": "u7", "seq": 7, "score": 1.5, "tokens": 3}
    why = {
        "keyword": {"rank": 1, "score": 2.5},
        "highlights": [{"text": "the parser", "spans": [[4, 10]]}],
        "explain": {"fusion": "z", "vector_weight": 0.4, "keyword_part": 1.0, "vector_part": 0.5},
        "unit": {**UNIT, "payload": "the parser"},
    }
    body = {"results": [{**hit, **why}, hit], "total": 9, "applied_seq": 7, "next_page": "7.2"}
    page = codec.search_page(msgspec.json.encode({**body, "facets": {"agent": {"ann": 9}}}))
    assert (len(page), page.total, page.next_page, page.facets) == (2, 9, "7.2", {"agent": {"ann": 9}})
    first, second = page
    assert (first.keyword, first.vector) == (SearchLeg(1, 2.5), None)
    assert (first.highlights, first.explain) == (
        [Highlight("the parser", [(4, 10)])],
        SearchExplained("z", 0.4, 1.0, 0.5),
    )
    assert first.unit == read(payload="the parser")
    assert (second.keyword, second.highlights, second.explain, second.unit) == (None, [], None, None)
    plain = codec.search_page(msgspec.json.encode(body))
    assert (plain.facets, plain.degraded) == (None, False)
    assert codec.search_page(msgspec.json.encode({**body, "degraded": True})).degraded


def test_a_bulk_answer_is_units_and_errors() -> None:
    refusal = {"code": "VERSION_MOVED", "detail": "moved", "status": 412, "retryable": False, "index": 1}
    body = msgspec.json.encode({"results": [{"work_unit": UNIT}, {"error": refusal}], "applied_seq": 7})
    unit, error = codec.outcomes(body)
    assert isinstance(unit, WorkUnit)
    assert isinstance(error, VersionMoved)
    assert (error.index, error.status) == (1, 412)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[]", b'{"seq":"x"}', b"\xff"])
def test_an_answer_that_is_none_is_told(body: bytes) -> None:
    with pytest.raises(EngramConnectionError, match="cannot be read"):
        codec.unit(body)


# --- Frames

FRAMES: list[tuple[dict[str, Any], object]] = [
    ({"event": "subscribed", "cursor": "e1.3", "head": 9}, Subscribed(Cursor("e1", 3), 9)),
    ({"event": "heartbeat", "cursor": "e1.3", "head": 9}, Heartbeat(Cursor("e1", 3), 9)),
    ({"event": "gap", "from": 4, "to": 6, "reason": "PRUNED"}, Missing(4, 6, "PRUNED")),
    ({"event": "goaway", "reason": "stop", "retry_after_ms": 250, "cursor": "e1.3"}, Goaway("stop", 0.25)),
    ({"event": "pong", "id": 1, "head": 3}, Pong(1)),
    (
        {"event": "appended", "id": 5, "unit_id": "u", "seq": 7, "version": 3, "durability": "fsync", "replayed": True},
        Appended(5, Receipt(unit_id="u", seq=7, version=3, durability="fsync", replayed=True)),
    ),
]


@pytest.mark.parametrize(("wire", "frame"), FRAMES)
def test_a_frame_is_the_same_in_both_encodings(wire: dict[str, Any], frame: object) -> None:
    assert codec.frame(msgspec.msgpack.encode(wire)) == frame
    assert codec.frame(msgspec.json.encode(wire).decode()) == frame


def test_units_are_the_same_in_both_encodings() -> None:
    wire = {"event": "units", "cursor": "e1.7"}
    binary = codec.frame(msgspec.msgpack.encode({**wire, "units": [{**UNIT, "payload": b"hi"}]}))
    text = codec.frame(msgspec.json.encode({**wire, "units": [{**UNIT, "payload": "hi"}]}).decode())
    assert isinstance(binary, Units)
    assert binary == text


def test_an_error_frame_names_its_operation() -> None:
    frame = codec.frame(msgspec.msgpack.encode({"event": "error", "id": 5, "code": "EPOCH_CHANGED", "message": "m"}))
    assert isinstance(frame, Refused)
    assert (frame.id, type(frame.error)) == (5, EpochChanged)


def test_frames_of_another_subscription_move_nothing() -> None:
    heartbeat = {"event": "heartbeat", "cursor": "e1.3", "head": 9}
    assert isinstance(codec.frame(msgspec.msgpack.encode(heartbeat), subscription=1), Other)
    assert isinstance(codec.frame(msgspec.msgpack.encode({**heartbeat, "subscription": 1})), Other)
    assert isinstance(codec.frame(msgspec.msgpack.encode({**heartbeat, "subscription": 1}), subscription=1), Heartbeat)


@pytest.mark.parametrize(
    "wire",
    [{"event": "units", "cursor": "e1.7"}, {"event": "heartbeat", "cursor": "?", "head": 1}, {"event": 1}, {}],
)
def test_a_frame_that_should_be_readable_and_is_not_is_told(wire: dict[str, Any]) -> None:
    with pytest.raises(EngramConnectionError, match="cannot be read"):
        codec.frame(msgspec.msgpack.encode(wire))


def test_noise_is_told() -> None:
    with pytest.raises(EngramConnectionError, match="cannot be read"):
        codec.frame(b"\xc1")


def test_server_sent_events_are_frames_too() -> None:
    unit = msgspec.json.encode({**UNIT, "payload": "hi"}).decode()
    frame = codec.sse_frame("", unit, "e1.7")
    assert isinstance(frame, Units)
    assert ([unit.text for unit in frame.units], frame.cursor) == (["hi"], Cursor("e1", 7))
    assert codec.sse_frame("subscribed", '{"cursor":"e1.3","head":9}', "e1.3") == Subscribed(Cursor("e1", 3), 9)
    assert codec.sse_frame("gap", '{"from":4,"to":6,"reason":"PRUNED"}', "e1.6") == Missing(4, 6, "PRUNED")


@pytest.mark.parametrize(
    ("data", "last_id"), [("{", "e1.7"), ('{"seq":1}', "e1.7"), (msgspec.json.encode(UNIT).decode(), "?")]
)
def test_a_server_sent_unit_that_cannot_be_read_is_told(data: str, last_id: str) -> None:
    with pytest.raises(EngramConnectionError, match="cannot be read"):
        codec.sse_frame("", data, last_id)


def test_a_page_of_contexts() -> None:
    context = {"id": "plan", "version": 1, "created_at": "t", "updated_at": "t"}
    page = codec.contexts(msgspec.json.encode({"contexts": [context], "next_page": "plan", "applied_seq": 9}))
    assert (len(page), [one.id for one in page]) == (1, ["plan"])


def test_a_type_is_a_name() -> None:
    with pytest.raises(ValueError, match="not a valid"):
        UnitType(7)
