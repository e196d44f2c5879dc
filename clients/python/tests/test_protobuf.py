"""A value is the same over HTTP and over gRPC: what the bus says is read alike, what is sent means the same there."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from engram_client import codec, protobuf, requests
from engram_client.errors import BY_CODE, Conflict, EngramConnectionError, EngramError, InvalidRequest
from engram_client.frames import Appended, Goaway, Heartbeat, Missing, Refused, Subscribed, Units
from engram_client.pb import append_pb2, error_pb2, lock_pb2, read_pb2, search_pb2, subscription_pb2, unit_pb2
from engram_client.values import Cursor, Draft, Fence, Lock, LockMode, Receipt, Relationship, RelationshipType, UnitType

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = TEXT.filter(bool)
META = st.dictionaries(NAMES, TEXT, max_size=3)
TIMES = st.integers(0, 253_402_300_799_999_999).map(
    lambda us: (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
)
JSON = st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT, st.lists, max_leaves=5)


@st.composite
def payloads(draw: st.DrawFn) -> tuple[str, bytes]:
    """A content type, and bytes that are it."""
    content_type = draw(st.sampled_from(["text/plain; charset=utf-8", "application/json", "a/b+json", "image/png"]))
    if content_type.startswith("text"):
        return content_type, draw(TEXT).encode()
    if content_type.endswith("json"):
        return content_type, msgspec.json.encode(draw(JSON))
    return content_type, draw(st.binary(max_size=20))


@st.composite
def recorded(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of a unit in the log."""
    content_type, payload = draw(payloads())
    edges = st.tuples(NAMES, st.sampled_from(list(RelationshipType)), META)
    return {
        "seq": draw(st.integers(1, 2**63)),
        "id": draw(NAMES),
        "context_id": draw(NAMES),
        "version": draw(st.integers(1, 2**63)),
        "agent_id": draw(NAMES),
        "type": draw(st.sampled_from(list(UnitType))),
        "ts": draw(TIMES),
        "content_type": content_type,
        "kind": draw(st.none() | NAMES),
        "meta": draw(META),
        "resources": draw(st.lists(NAMES, max_size=3)),
        "relationships": draw(st.lists(edges, max_size=2)),
        "traceparent": draw(st.none() | NAMES),
        "payload": payload,
    }


@given(recorded())
def test_a_unit_is_the_same_over_http_and_grpc(fields: dict[str, Any]) -> None:
    bus_units = pytest.importorskip("engram_bus.units")
    bus_codec = pytest.importorskip("engram_bus.codec")
    bus_protobuf = pytest.importorskip("engram_bus.protobuf")
    edges = [
        bus_units.Relationship(target, bus_units.RelationshipType(kind.value), meta)
        for target, kind, meta in fields["relationships"]
    ]
    unit = bus_units.WorkUnit(**{**fields, "type": bus_units.UnitType(fields["type"].value), "relationships": edges})
    over_grpc = protobuf.unit(unit_pb2.WorkUnit.FromString(bus_protobuf.unit_message(unit).SerializeToString()))
    assert over_grpc == codec.unit(bus_codec.unit_json(unit))
    assert (over_grpc.payload, over_grpc.ts) == (fields["payload"], fields["ts"])


@given(
    st.builds(
        Draft,
        NAMES,
        TEXT | st.binary(max_size=20) | JSON,
        st.sampled_from(list(UnitType)),
        st.none() | NAMES,
        content_type=st.none() | st.sampled_from(["text/plain", "application/json", "image/png"]),
        meta=st.none() | META,
        resources=st.none() | st.lists(NAMES, max_size=3),
        relationships=st.none()
        | st.lists(st.builds(Relationship, NAMES, st.sampled_from(list(RelationshipType)), META), max_size=2),
        traceparent=st.none() | NAMES,
        id=st.none() | NAMES,
        idempotency_key=st.none() | NAMES,
        expected_version=st.none() | st.integers(0, 2**63 - 1),
        agent_id=st.none() | NAMES,
        fence=st.none() | st.builds(Fence, NAMES, st.integers(1, 2**63 - 1)),
    )
)
def test_a_draft_asks_for_the_same_over_http_and_grpc(draft: Draft) -> None:
    bus_codec = pytest.importorskip("engram_bus.codec")
    bus_protobuf = pytest.importorskip("engram_bus.protobuf")
    over_http = codec.append_body(draft, agent_id="ann", idempotency_key="k")
    over_grpc = protobuf.append_request(draft, agent_id="ann", idempotency_key="k").SerializeToString()
    assert bus_protobuf.append_from_protobuf(over_grpc) == bus_codec.append_from_msgpack(over_http)


DETAILS: dict[str, Any] = {
    "current_version": 3,
    "share": 0.5,
    "waits": True,
    "nothing": None,
    "holder_agent": "ann",
    "cycle": [{"agent_id": "ann", "waits_for": "bob", "resource": "a", "seqs": [1, 2]}],
}


@pytest.mark.parametrize("code", BY_CODE)
def test_a_refusal_is_the_same_over_http_and_grpc(code: str) -> None:
    bus_errors = pytest.importorskip("engram_bus.errors")
    problems = pytest.importorskip("engram_bus.api.problems")
    bus_protobuf = pytest.importorskip("engram_bus.protobuf")
    refusal = getattr(bus_errors, BY_CODE[code].__name__)("3, not 2", field="f", limit=7, index=0, **DETAILS)
    sent = bus_protobuf.error_message(refusal).SerializeToString()
    over_grpc = protobuf.error(error_pb2.Error.FromString(sent), status=418)
    over_http = codec.problem(refusal.status, problems.problem_body(refusal), None)
    assert vars(over_grpc) == vars(over_http)
    assert type(over_grpc) is BY_CODE[code]
    assert over_grpc.details == DETAILS
    assert isinstance(over_grpc.details["current_version"], int)


def test_an_unknown_code_comes_as_the_family_of_its_status() -> None:
    error = protobuf.error(error_pb2.Error(code="LATER_INVENTION", message="m", retryable=True), status=409)
    assert (type(error), error.code, error.status, error.retryable) == (Conflict, "LATER_INVENTION", 409, True)


# --- Sending


def appended(draft: Draft) -> append_pb2.AppendRequest:
    return protobuf.append_request(draft, agent_id="ann", idempotency_key="k")


@pytest.mark.parametrize(
    ("draft", "field"),
    [
        (Draft("\ud800"), "context_id"),
        (Draft("plan", "\ud800"), "payload"),
        (Draft("plan", {1: object()}), "payload"),
        (Draft("plan", type="SHOUT"), "type"),
        (Draft("plan", expected_version=-1), "expected_version"),
        (Draft("plan", meta={"a": 1}), "meta"),  # type: ignore[dict-item]
        (Draft("plan", resources="src"), "resources"),  # type: ignore[arg-type]
        (Draft("plan", fence=Fence("a", -1)), "token"),
        (Draft("plan", relationships=[Relationship("u", RelationshipType("SHOUT"))]), "relationships[0].type"),
    ],
)
def test_what_cannot_be_written_is_refused_here_and_names_its_field(draft: Draft, field: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        appended(draft)
    assert told.value.field == field


def test_messages_of_a_stream_are_joined_to_one() -> None:
    parts = [
        protobuf.stream_request(Draft("plan", f"{number}"), append_id=number, agent_id="ann", idempotency_key="k")
        for number in range(3)
    ]
    joined = append_pb2.AppendStreamRequest.FromString(b"".join(parts))
    assert [(item.id, item.append.payload) for item in joined.items] == [(0, b"0"), (1, b"1"), (2, b"2")]


def test_a_bulk_has_a_key_for_each_draft_or_one_for_all() -> None:
    drafts = [Draft("plan", "a"), Draft("plan", "b", idempotency_key="own")]
    each = protobuf.bulk_request(
        drafts, agent_id="ann", idempotency_keys=["k-0", "k-1"], atomic=False, idempotency_key=None
    )
    assert [append.idempotency_key for append in each.appends] == ["k-0", "own"]
    assert not each.HasField("idempotency_key")
    whole = protobuf.bulk_request(drafts[:1], agent_id="ann", idempotency_keys=[None], atomic=True, idempotency_key="k")
    assert (whole.idempotency_key, whole.atomic, whole.appends[0].HasField("idempotency_key")) == ("k", True, False)


def test_a_read_says_what_was_asked() -> None:
    asked = requests.ReadUnits(context_id="plan", limit=5, after="3", type=["ERROR"], kind=["a.*"], min_seq=9)
    assert protobuf.list_request(asked) == read_pb2.ListRequest(
        context_id="plan", limit=5, after="3", type=["ERROR"], kind=["a.*"], min_seq=9
    )
    related = protobuf.related_request(requests.ReadRelated(id="u", type=["CAUSES"], direction="in", depth=2))
    assert related == read_pb2.RelatedRequest(id="u", type=["CAUSES"], direction="IN", depth=2)


def test_a_context_is_changed_by_what_is_named_only() -> None:
    change = requests.ContextChange(meta={"old": None, "new": "1"}, fences=[], idempotency_key="k", agent_id="ann")
    message = protobuf.update_request("plan", change)
    assert (dict(message.meta), list(message.unset_meta)) == ({"new": "1"}, ["old"])
    assert message.HasField("fences")
    assert not message.HasField("closed")
    assert not message.HasField("display_name")


# --- Receiving


def test_what_a_newer_bus_says_is_kept_or_left_out_but_no_error() -> None:
    later = unit_pb2.WorkUnit(seq=1, type=99, ts=Timestamp(seconds=1, nanos=5_000))  # type: ignore[arg-type]
    unit = protobuf.unit(unit_pb2.WorkUnit.FromString(later.SerializeToString() + b"\xfa\x01\x01x"))
    assert (unit.type, unit.ts) == ("99", "1970-01-01T00:00:01.000005Z")


def test_frames() -> None:
    stamp = Timestamp(seconds=0)
    units = subscription_pb2.SubscribeResponse(work_units=[unit_pb2.WorkUnit(seq=3, ts=stamp)], cursor="e1.4")
    (found,) = protobuf.frames(units)
    assert isinstance(found, Units)
    assert ([unit.seq for unit in found.units], found.cursor) == ([3], Cursor("e1", 4))
    for message, frame in [
        ({"cursor": "e1.2", "subscribed": {"head": 9}}, Subscribed(Cursor("e1", 2), 9)),
        ({"cursor": "e1.2", "heartbeat": {"head": 9}}, Heartbeat(Cursor("e1", 2), 9)),
        ({"cursor": "e1.4", "gap": {"from": 2, "to": 4, "reason": "PRUNED"}}, Missing(2, 4, "PRUNED")),
        ({"goaway": {"reason": "SHUTTING_DOWN", "retry_after_ms": 500}}, Goaway("SHUTTING_DOWN", 0.5)),
        ({"cursor": "e1.7"}, Units([], Cursor("e1", 7))),
    ]:
        assert protobuf.frames(subscription_pb2.SubscribeResponse(**message)) == [frame]
    assert protobuf.frames(subscription_pb2.SubscribeResponse()) == []


def test_answers_of_a_stream() -> None:
    receipt = {"unit_id": "u1", "context_id": "plan", "seq": 1, "version": 1, "durability": "fsync"}
    message = append_pb2.AppendStreamResponse(
        results=[{"id": 1, "receipt": receipt}, {"id": 2, "error": {"code": "BUSY", "message": "m"}}]
    )
    first, second = protobuf.answers(message)
    assert first == Appended(1, Receipt(**receipt))  # type: ignore[arg-type]
    assert isinstance(second, Refused)
    assert (second.id, second.error.code) == (2, "BUSY")


def test_a_lock_on_several_resources_is_one() -> None:
    one = {"lock_id": "l", "holder_agent": "ann", "mode": "SHARED", "fencing_token": 7, "remaining_seconds": 1.5}
    answer = lock_pb2.AcquireLockResponse(locks=[{**one, "resource": "a"}, {**one, "resource": "b"}], extended=True)
    found = protobuf.acquired(answer)
    assert isinstance(found, Lock)
    assert (found.resources, found.mode, found.extended) == (["a", "b"], LockMode.SHARED, True)


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (protobuf.acquired, lock_pb2.AcquireLockResponse()),
        (protobuf.frames, subscription_pb2.SubscribeResponse(cursor="what?")),
        (protobuf.unit, unit_pb2.WorkUnit(ts=Timestamp(seconds=2**62))),
    ],
)
def test_an_answer_that_makes_no_sense_is_told(decode: Any, message: Any) -> None:
    with pytest.raises(EngramConnectionError) as told:
        protobuf.read(decode, message)
    assert not told.value.retryable


def test_noise_is_told() -> None:
    with pytest.raises(EngramConnectionError, match="cannot be read"):
        protobuf.parse(search_pb2.SearchResponse, b"\xff\xff")


def test_a_bulk_answer_is_units_and_errors() -> None:
    message = append_pb2.AppendBulkResponse(
        results=[{"work_unit": {"seq": 1}}, {"error": {"code": "VERSION_MOVED", "message": "m", "index": 1}}]
    )
    unit, error = protobuf.outcomes(message)
    assert not isinstance(unit, EngramError)
    assert isinstance(error, EngramError)
    assert (unit.seq, error.code, error.index) == (1, "VERSION_MOVED", 1)
