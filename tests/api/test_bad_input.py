"""Whatever is sent gets an answer that says what was wrong with it, and the bus goes on serving."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from engram_bus.api.edge.http import Bounds
from engram_bus.limits import (
    BODY_WIRE_BYTES_MAX,
    BULK_UNITS_MAX,
    CORRELATION_BYTES_MAX,
    HEADER_BYTES_MAX,
    JSON_DEPTH_MAX,
    LOCK_DEPTH_MAX,
    META_BYTES_MAX,
    META_ENTRIES_MAX,
    META_VALUE_BYTES_MAX,
    MIB,
    NAME_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    QUERY_BYTES_MAX,
    RELATIONSHIPS_MAX,
    RESOURCE_BYTES_MAX,
    RESOURCES_MAX,
    UNIT_REQUEST_BYTES_MAX,
)
from tests.live import LiveBus
from tests.wire import Wire, request

UNIT: dict[str, Any] = {"context_id": "plan", "agent_id": "ann", "payload": "hello"}
JSON = "Content-Type: application/json"


@pytest.fixture
def bus(shared_bus: LiveBus) -> Iterator[LiveBus]:
    yield shared_bus
    assert shared_bus.is_well()


@pytest.fixture
def short(tmp_path: Any) -> Iterator[LiveBus]:
    """A bus with little patience and room for few."""
    bounds = Bounds(header_seconds=0.2, body_seconds=0.2, leave_seconds=0.2, connections_max=4)
    with LiveBus(bounds=bounds) as bus:
        yield bus
        assert bus.is_well()


# --- What is in the body ---------------------------------------------------------------------------------------------

BAD_BODIES = {
    "nothing": (b"", "INVALID_REQUEST", None),
    "not JSON": (b"{", "INVALID_REQUEST", None),
    "trailing data": (b'{"context_id":"a"} {}', "INVALID_REQUEST", None),
    "a list": (b"[]", "INVALID_REQUEST", None),
    "null": (b"null", "INVALID_REQUEST", None),
    "no context": (b'{"agent_id":"ann"}', "INVALID_REQUEST", "context_id"),
    "no agent": (b'{"context_id":"plan"}', "INVALID_REQUEST", "agent_id"),
    "a number for a context": (b'{"context_id":1,"agent_id":"ann"}', "INVALID_REQUEST", "context_id"),
    "an empty context": (b'{"context_id":"","agent_id":"ann"}', "INVALID_REQUEST", "context_id"),
    "a control character": (b'{"context_id":"a\\u0000b","agent_id":"ann"}', "INVALID_REQUEST", "context_id"),
    "half a surrogate pair": (b'{"context_id":"a\\ud800","agent_id":"ann"}', "INVALID_REQUEST", None),
    "invalid UTF-8": (b'{"context_id":"\xff","agent_id":"ann"}', "INVALID_REQUEST", None),
    "UTF-16": ('{"context_id":"a","agent_id":"ann"}'.encode("utf-16"), "INVALID_REQUEST", None),
    "a content type that is none": (
        b'{"context_id":"plan","agent_id":"ann","content_type":"text","payload_base64":""}',
        "INVALID_REQUEST",
        "content_type",
    ),
    "NaN": (b'{"context_id":"plan","agent_id":"ann","payload":NaN}', "INVALID_REQUEST", None),
    "Infinity": (b'{"context_id":"plan","agent_id":"ann","payload":[-Infinity]}', "INVALID_REQUEST", None),
    "an infinite number": (
        b'{"context_id":"plan","agent_id":"ann","payload":[1e999]}',
        "INVALID_REQUEST",
        "payload[0]",
    ),
}
BAD_FIELDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "an unknown field": ({"colour": "red"}, "INVALID_REQUEST", "colour"),
    "what the writer gives": ({"seq": 5}, "INVALID_REQUEST", "seq"),
    "an unknown type": ({"type": "GOSSIP"}, "INVALID_REQUEST", "type"),
    "a type number that is none": ({"type": 9}, "INVALID_REQUEST", "type"),
    "a negative type": ({"type": -1}, "INVALID_REQUEST", "type"),
    "a true type": ({"type": True}, "INVALID_REQUEST", "type"),
    "a type that is a float": ({"type": 1.5}, "INVALID_REQUEST", "type"),
    "a kind of the bus": ({"kind": "lock.granted"}, "INVALID_REQUEST", "kind"),
    "a kind that is a sentence": ({"kind": "Build failed"}, "INVALID_REQUEST", "kind"),
    "an id that is none": ({"id": "1"}, "INVALID_REQUEST", "id"),
    "an upper-case id": ({"id": "0190B0E0-0000-7000-8000-00000000000A"}, "INVALID_REQUEST", "id"),
    "a trace that is none": ({"traceparent": "abc"}, "INVALID_REQUEST", "traceparent"),
    "a payload twice": ({"payload_base64": "aGk="}, "INVALID_REQUEST", "payload_base64"),
    "an object for text": ({"payload": {}, "content_type": "text/plain"}, "INVALID_REQUEST", "payload"),
    "meta that is a list": ({"meta": []}, "INVALID_REQUEST", "meta"),
    "meta of numbers": ({"meta": {"a": 1}}, "INVALID_REQUEST", "meta"),
    "a resource that is a number": ({"resources": [1]}, "INVALID_REQUEST", "resources[0]"),
    "an empty resource": ({"resources": [""]}, "INVALID_REQUEST", "resources[0]"),
    "an unknown relationship": (
        {"relationships": [{"target_id": "x", "type": "LIKES"}]},
        "INVALID_REQUEST",
        "relationships[0].type",
    ),
    "a relationship to nothing": (
        {"relationships": [{"type": "CAUSES"}]},
        "INVALID_REQUEST",
        "relationships[0].target_id",
    ),
    "a version below zero": ({"expected_version": -1}, "INVALID_REQUEST", "expected_version"),
    "a version beyond all": ({"expected_version": 2**64}, "INVALID_REQUEST", "expected_version"),
    "an empty key": ({"idempotency_key": ""}, "INVALID_REQUEST", "idempotency_key"),
}
TOO_LARGE: dict[str, tuple[dict[str, Any], str, int]] = {
    "context": ({"context_id": "c" * (NAME_BYTES_MAX + 1)}, "context_id", NAME_BYTES_MAX),
    "context in bytes": ({"context_id": "ü" * (NAME_BYTES_MAX // 2 + 1)}, "context_id", NAME_BYTES_MAX),
    "agent": ({"agent_id": "a" * (NAME_BYTES_MAX + 1)}, "agent_id", NAME_BYTES_MAX),
    "kind": ({"kind": "k" * (NAME_BYTES_MAX + 1)}, "kind", NAME_BYTES_MAX),
    "payload": ({"payload": "p" * (PAYLOAD_BYTES_MAX + 1)}, "payload", PAYLOAD_BYTES_MAX),
    "meta entries": ({"meta": {str(n): "" for n in range(META_ENTRIES_MAX + 1)}}, "meta", META_ENTRIES_MAX),
    "a meta value": ({"meta": {"a": "v" * (META_VALUE_BYTES_MAX + 1)}}, "meta.a", META_VALUE_BYTES_MAX),
    "meta": ({"meta": {str(n): "v" * 4_000 for n in range(10)}}, "meta", META_BYTES_MAX),
    "resources": ({"resources": ["r"] * (RESOURCES_MAX + 1)}, "resources", RESOURCES_MAX),
    "relationships": (
        {"relationships": [{"target_id": "x", "type": "CAUSES"}] * (RELATIONSHIPS_MAX + 1)},
        "relationships",
        RELATIONSHIPS_MAX,
    ),
}


@pytest.mark.parametrize(("body", "code", "field"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_body_that_is_no_unit_is_refused(bus: LiveBus, body: bytes, code: str, field: str | None) -> None:
    problem = _post(bus, body)
    assert (problem["status"], problem["code"], problem["retryable"]) == (400, code, False)
    assert problem.get("field") == field


@pytest.mark.parametrize(("fields", "code", "field"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_field_that_is_wrong_is_named(bus: LiveBus, fields: dict[str, Any], code: str, field: str) -> None:
    problem = _post(bus, json.dumps(UNIT | fields).encode())
    assert (problem["status"], problem["code"]) == (400, code)
    assert problem["field"] == field


@pytest.mark.parametrize(("fields", "field", "limit"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_is_too_large_is_named_with_its_limit(
    bus: LiveBus, fields: dict[str, Any], field: str, limit: int
) -> None:
    problem = _post(bus, json.dumps(UNIT | fields).encode())
    assert (problem["status"], problem["code"]) == (413, "TOO_LARGE")
    assert (problem["field"], problem["limit"]) == (field, limit)


@pytest.mark.parametrize("depth", [JSON_DEPTH_MAX + 1, 100_000])
@pytest.mark.parametrize(
    "nested", [lambda depth: "[" * depth + "]" * depth, lambda depth: '{"a":' * depth + "1" + "}" * depth]
)
def test_a_payload_nested_too_deep_is_refused(bus: LiveBus, nested: Any, depth: int) -> None:
    problem = _post(bus, b'{"context_id":"plan","agent_id":"ann","payload":' + nested(depth).encode() + b"}")
    assert (problem["status"], problem["code"], problem["limit"]) == (400, "INVALID_REQUEST", JSON_DEPTH_MAX)


def test_a_payload_nested_as_deep_as_allowed_comes_back(bus: LiveBus) -> None:
    payload = json.loads("[" * JSON_DEPTH_MAX + "]" * JSON_DEPTH_MAX)
    assert bus.append(payload=payload)["payload"] == payload


@pytest.mark.parametrize(
    "body", [b"\xc1", b"\x81", b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff", b"\x81\xa1a\xcb" + b"\x7f\xf8" + bytes(6)]
)
def test_msgpack_that_is_none_is_refused(bus: LiveBus, body: bytes) -> None:
    response = bus.http.post("/workunit", content=body, headers={"content-type": "application/msgpack"})
    assert _problem(response)["code"] == "INVALID_REQUEST"


def test_a_media_type_that_is_not_read_is_refused(bus: LiveBus) -> None:
    for content_type in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "", "\xff"):
        response = bus.http.post(
            "/workunit", content=b"{}", headers=[(b"content-type", content_type.encode("latin-1"))]
        )
        assert _problem(response)["code"] == "UNSUPPORTED_MEDIA_TYPE"
        assert response.status_code == 415


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "INVALID_REQUEST"),
        (b"[]", 400, "INVALID_REQUEST"),
        (b"{}", 400, "INVALID_REQUEST"),
        (b"[1", 400, "INVALID_REQUEST"),
        (b"[" + b",".join([b"{}"] * (BULK_UNITS_MAX + 1)) + b"]", 413, "TOO_LARGE"),
        (b"[" * 100_000, 400, "INVALID_REQUEST"),
    ],
    ids=["nothing", "no units", "not a list", "half a list", "too many", "deep"],
)
def test_a_bulk_that_is_none_is_refused_whole(bus: LiveBus, body: bytes, status: int, code: str) -> None:
    response = bus.http.post("/workunits", content=body)
    assert (response.status_code, _problem(response)["code"]) == (status, code)


def test_each_bad_unit_of_a_bulk_is_named_and_the_others_are_recorded(bus: LiveBus) -> None:
    lines = [json.dumps(UNIT), "{", "[]", json.dumps(UNIT | {"type": "GOSSIP"}), "\udcff", json.dumps(UNIT)]
    response = bus.http.post(
        "/workunits",
        content="\n".join(lines).encode("utf-8", "surrogateescape"),
        headers={"content-type": "application/x-ndjson"},
    )
    assert response.status_code == 207
    results = response.json()["results"]
    assert [sorted(result) for result in results] == [["work_unit"], *[["error"]] * 4, ["work_unit"]]
    assert [result["error"]["index"] for result in results if "error" in result] == [1, 2, 3, 4]
    assert results[5]["work_unit"]["version"] == results[0]["work_unit"]["version"] + 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"colour":1}', "colour"),
        (b'{"add_agents":"ann"}', "add_agents"),
        (b'{"add_agents":[""]}', "add_agents[0]"),
        (b'{"add_agents":["a"],"remove_agents":["a"]}', "remove_agents"),
        (b'{"meta":{"a":1}}', "meta"),
        (b'{"closed":"yes"}', "closed"),
        (b'{"fences":[""]}', "fences[0]"),
        (b"{", None),
    ],
)
def test_a_change_of_a_context_that_is_wrong_is_refused(bus: LiveBus, body: bytes, field: str | None) -> None:
    problem = _problem(bus.http.patch("/contexts/plan", content=body))
    assert problem["code"] == "INVALID_REQUEST"
    assert problem.get("field") == field


def median_seconds(bus: LiveBus) -> float:
    """What an append and a list of contexts take of the processor."""
    seconds = []
    for _ in range(100):
        before = time.process_time()
        bus.http.post("/workunit", json=UNIT)
        bus.http.get("/contexts", params={"prefix": "many/9999", "limit": 20})
        seconds.append(time.process_time() - before)
    return median(seconds)


def test_a_hundred_thousand_contexts_leave_the_bus_as_quick_as_it_was(bus: LiveBus) -> None:
    before = median_seconds(bus)
    for start in range(0, 100_000, BULK_UNITS_MAX):
        lines = [f'{{"context_id":"many/{n}","agent_id":"ann"}}' for n in range(start, start + BULK_UNITS_MAX)]
        response = bus.http.post(
            "/workunits", content="\n".join(lines), headers={"content-type": "application/x-ndjson"}
        )
        assert response.status_code == 201
    assert median_seconds(bus) < 10 * before


# --- What is in the request line and the headers ---------------------------------------------------------------------

NAMES = [
    "a/b/c.py",
    "/leading",
    "trailing/",
    "a//b",
    "a?b=c",
    "a#b",
    "100%",
    "%2F",
    "a b",
    "ü/ñ/汉字",
    "a+b",
    "..",
    "*",
    "'\"<>",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_context_of_any_name_is_written_and_read(bus: LiveBus, name: str) -> None:
    unit = bus.append(context_id=name)
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())
    for target in (f"/workunits/{encoded}", f"/api/v1/workunits/{encoded}", f"/workunits?context_id={encoded}"):
        with Wire(bus.address) as wire:
            answer = wire.send(request("GET", f"{target}{'&' if '?' in target else '?'}reverse=true&limit=1")).answer()
        assert json.loads(answer.body)["work_units"] == [unit]
    for target in (f"/contexts/{encoded}", f"/contexts?context_id={encoded}"):
        with Wire(bus.address) as wire:
            assert json.loads(wire.send(request("GET", target)).answer().body)["id"] == name


@pytest.mark.parametrize(
    ("target", "status", "code", "field"),
    [
        ("/nowhere", 404, "NOT_FOUND", None),
        ("/workunit/", 404, "NOT_FOUND", None),
        ("/workunit/a/b", 404, "NOT_FOUND", None),
        ("/stream", 404, "NOT_FOUND", None),
        ("/api/v1", 404, "NOT_FOUND", None),
        ("/workunit/%00", 404, "UNIT_NOT_FOUND", None),
        ("/workunits/%ff", 400, "INVALID_REQUEST", "path"),
        ("/workunits/%c0%80", 400, "INVALID_REQUEST", "path"),
        ("/contexts/nobody", 404, "CONTEXT_NOT_FOUND", None),
        ("/contexts/", 404, "CONTEXT_NOT_FOUND", None),
        ("/workunits", 400, "INVALID_REQUEST", "context_id"),
        ("/workunits/plan?limit=0", 400, "INVALID_REQUEST", "limit"),
        ("/workunits/plan?limit=1001", 400, "INVALID_REQUEST", "limit"),
        ("/workunits/plan?limit=ten", 400, "INVALID_REQUEST", "limit"),
        ("/workunits/plan?limit=", 400, "INVALID_REQUEST", "limit"),
        ("/workunits/plan?limit=1&limit=2", 400, "INVALID_REQUEST", "limit"),
        ("/workunits/plan?limit=%ff", 400, "INVALID_REQUEST", "query"),
        ("/workunits/plan?limit=٣", 400, "INVALID_REQUEST", None),
        ("/workunits/plan?colour=red", 400, "INVALID_REQUEST", "colour"),
        ("/workunits/plan?type=GOSSIP", 400, "INVALID_REQUEST", "type"),
        ("/workunits/plan?reverse=maybe", 400, "INVALID_REQUEST", "reverse"),
        ("/workunits/plan?page=nonsense", 400, "INVALID_REQUEST", "page"),
        ("/workunits/plan?after=nonsense", 400, "CURSOR_INVALID", "after"),
        ("/workunits/plan?min_seq=-1", 400, "INVALID_REQUEST", "min_seq"),
        ("/workunits/plan?min_seq=99999999999999999999", 400, "INVALID_REQUEST", "min_seq"),
        ("/workunits/plan?min_seq=999999999&timeout_ms=0", 503, "MIN_SEQ_TIMEOUT", "min_seq"),
        ("/workunits/plan?timeout_ms=60001", 400, "INVALID_REQUEST", "timeout_ms"),
        ("/locks/", 400, "INVALID_REQUEST", "resource"),
        ("/locks/%00", 400, "INVALID_REQUEST", "resource"),
        ("/locks/%ff", 400, "INVALID_REQUEST", "path"),
        ("/locks/" + "a/" * LOCK_DEPTH_MAX + "a", 413, "TOO_LARGE", "resource"),
        ("/locks?resource=", 400, "INVALID_REQUEST", "resource"),
        ("/locks?resource=" + "r" * (RESOURCE_BYTES_MAX + 1), 413, "TOO_LARGE", "resource"),
        ("/locks?resource=a&resource=b", 400, "INVALID_REQUEST", "resource"),
        ("/locks?holder=" + "h" * (NAME_BYTES_MAX + 1), 413, "TOO_LARGE", "holder"),
        ("/locks?page=nonsense", 400, "INVALID_REQUEST", "page"),
        ("/locks?colour=red", 400, "INVALID_REQUEST", "colour"),
        ("/locks/plan.md?token=none", 400, "INVALID_REQUEST", "token"),
        ("/locks/plan.md?min_seq=999999999&timeout_ms=0", 503, "MIN_SEQ_TIMEOUT", "min_seq"),
        ("/stream-sse", 400, "INVALID_REQUEST", "context"),
        ("/stream-sse?after=0", 400, "INVALID_REQUEST", "context"),
        ("/stream-sse?context=plan&colour=red", 400, "INVALID_REQUEST", "colour"),
        ("/stream-sse?context=plan&type=GOSSIP", 400, "INVALID_REQUEST", "type"),
        ("/stream-sse?context=", 400, "INVALID_REQUEST", "context"),
        ("/healthz?verbose=1", 400, "INVALID_REQUEST", "verbose"),
        ("/workunits/plan?" + "agent=a&" * 2_001, 400, "INVALID_REQUEST", "query"),
        ("/workunits/plan?" + "a" * 20_000, 431, "HEADERS_TOO_LARGE", None),
    ],
)  # fmt: skip
def test_a_target_that_is_wrong_is_refused(
    bus: LiveBus, target: str, status: int, code: str, field: str | None
) -> None:
    with Wire(bus.address) as wire:
        answer = wire.send(request("GET", target)).answer()
    assert (answer.status, answer.problem["code"], answer.problem.get("field")) == (status, code, field)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/workunit", "POST"),
        ("GET", "/search", "POST"),
        ("GET", "/workunit", "POST"),
        ("PUT", "/workunits", "POST, GET"),
        ("POST", "/contexts/plan", "GET, PATCH"),
        ("PUT", "/locks", "POST, PATCH, DELETE, GET"),
        ("POST", "/locks/plan.md", "PATCH, DELETE, GET"),
        ("POST", "/healthz", "GET"),
        ("POST", "/docs", "GET"),
        ("DELETE", "/stream-sse", "GET"),
    ],
)
def test_a_method_the_path_does_not_take_is_answered_with_those_it_takes(
    bus: LiveBus, method: str, path: str, allowed: str
) -> None:
    response = bus.http.request(method, path)
    assert (response.status_code, _problem(response)["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    "headers",
    [
        {"if-match": "five"},
        {"if-match": '"-1"'},
        {"if-none-match": '"5"'},
        {"idempotency-key": ""},
        {"idempotency-key": "k" * 257},
        {"idempotency-key": b"\xff"},
    ],
    ids=str,
)
def test_a_header_that_is_wrong_is_refused(bus: LiveBus, headers: dict[str, Any]) -> None:
    response = bus.http.post("/workunit", json=UNIT, headers=headers)
    problem = _problem(response)
    assert problem["code"] in ("INVALID_REQUEST", "TOO_LARGE")
    assert problem["field"].lower().replace("_", "-") == next(iter(headers))


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "If-Match": ('"3"', "*"),
        "If-None-Match": ("*", "*"),
        "Idempotency-Key": ("a", "b"),
        "X-Agent-ID": ("ann", "bob"),
        "Content-Type": ("application/json", "application/msgpack"),
        "Accept": ("application/json", "application/x-protobuf"),
        "Origin": ("http://localhost", "http://elsewhere.example"),
        "Host": ("localhost", "localhost"),
    }.items(),
)
def test_a_header_that_is_read_is_given_once(bus: LiveBus, name: str, values: tuple[str, str]) -> None:
    twice = (f"{name}: {values[0]}", f"{name.lower()}: {values[1]}")
    body = json.dumps(UNIT).encode()
    for method, path in (("POST", "/workunit"), ("POST", "/workunit"), ("POST", "/workunits"), ("GET", "/contexts")):
        with Wire(bus.address) as wire:
            said = wire.send(request(method, path, body, *twice)).answer().problem
        assert (said["status"], said["code"], said["field"]) == (400, "INVALID_REQUEST", name)
        assert said["detail"] == f"header {name} is given more than once"


def test_a_header_that_is_not_read_may_be_given_twice(bus: LiveBus) -> None:
    body = json.dumps(UNIT).encode()
    with Wire(bus.address) as wire:
        for _ in range(2):
            wire.send(request("POST", "/workunit", body, JSON, "X-Forwarded-For: a", "X-Forwarded-For: b"))
            assert wire.answer().status == 201


def test_a_socket_is_opened_by_one_agent(bus: LiveBus) -> None:
    with Wire(bus.address) as wire:
        wire.send(_handshake("/stream", "X-Agent-ID: ann", "X-Agent-ID: bob"))
        answer = wire.answer()
        assert (answer.status, answer.problem["field"]) == (400, "X-Agent-ID")


def test_what_body_and_header_say_must_agree(bus: LiveBus) -> None:
    response = bus.http.post("/workunit", json=UNIT | {"idempotency_key": "a"}, headers={"idempotency-key": "b"})
    assert _problem(response)["field"] == "idempotency_key"


def test_an_agent_that_is_no_text_is_refused(bus: LiveBus) -> None:
    with Wire(bus.address) as wire:
        head = b"POST /workunit HTTP/1.1\r\nHost: localhost\r\nX-Agent-ID: \xff\r\nContent-Length: 20\r\n\r\n"
        assert wire.send(head + b'{"context_id":"plan"}'[:20]).answer().problem["field"] == "x-agent-id"


def test_head_is_get_without_the_body(bus: LiveBus) -> None:
    for path in ("/healthz", "/docs", "/workunits/plan", "/stream-sse?context=plan", "/nowhere"):
        response = bus.http.head(path)
        assert response.content == b""
        assert response.status_code == (404 if path == "/nowhere" else 200)


OFFERS = {
    "HTTP/2": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    "TLS": ("Connection: upgrade", "Upgrade: TLS/1.3"),
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_an_offer_to_speak_another_protocol_is_declined_and_nothing_else_is(
    bus: LiveBus, offer: tuple[str, ...]
) -> None:
    """As curl --http2 and Java's client do with the first request of a connection."""
    body = json.dumps(UNIT).encode()
    with Wire(bus.address) as wire:
        assert wire.send(request("POST", "/workunit", body, JSON, *offer)).answer().status == 201
        assert wire.send(request("GET", "/healthz", b"", *offer) + request("GET", "/healthz")).answer().status == 200
        assert wire.answer().status == 200
        head, _, rest = request("POST", "/workunit", body, JSON, *offer).partition(b"\r\n\r\n")
        wire.send(head + b"\r\n\r\n").send(rest[:5]).send(rest[5:])
        assert wire.answer().status == 201


# --- What is not HTTP ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"hello\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xc3\xbc HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"POST /workunit HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /workunit HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /workunit HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /workunit HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /workunit HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        bytes(range(256)) * 4,
    ],
)
def test_what_is_not_http_is_told_so_and_closed(bus: LiveBus, garbage: bytes) -> None:
    with Wire(bus.address) as wire:
        answer = wire.send(garbage).answer()
        assert (answer.status, answer.problem["code"]) == (400, "INVALID_REQUEST")
        assert wire.rest() == b""


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (b"FOO / HTTP/1.1\r\n", "Invalid method"),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding"),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n", "Content-Length"),
    ],
)
def test_why_it_is_not_http_is_said(bus: LiveBus, head: bytes, why: str) -> None:
    with Wire(bus.address) as wire:
        said = wire.send(head + b"Host: a\r\n\r\n{}").answer().problem["detail"]
    assert said.startswith("this cannot be read as HTTP/1.1: ")
    assert why in said


@pytest.mark.parametrize(
    "headers",
    [
        [f"X-{n}: {'v' * 100}" for n in range(1_000)],
        [f"X: {'v' * HEADER_BYTES_MAX}"],
        ["a:" for _ in range(HEADER_BYTES_MAX)],
    ],
    ids=["many", "one", "tiny"],
)
def test_headers_that_are_too_large_are_told_so(bus: LiveBus, headers: list[str]) -> None:
    with Wire(bus.address) as wire:
        answer = wire.send(request("GET", "/healthz", b"", *headers)).answer()
        assert (answer.status, answer.problem["code"], answer.problem["limit"]) == (
            431,
            "HEADERS_TOO_LARGE",
            HEADER_BYTES_MAX,
        )


def test_a_target_that_is_too_long_is_told_so(bus: LiveBus) -> None:
    with Wire(bus.address) as wire:
        said = wire.send(request("GET", "/" + "a" * QUERY_BYTES_MAX)).answer().problem
    assert said["detail"] == f"the request target has more than {QUERY_BYTES_MAX} bytes"


def test_a_header_without_end_is_cut_off(short: LiveBus) -> None:
    with Wire(short.address) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nX: " + b"v" * MIB)
        assert wire.answer().problem["code"] == "HEADERS_TOO_LARGE"
        assert wire.is_cut_off_from(b"v" * MIB)


def test_a_body_too_large_is_refused_before_it_is_sent(bus: LiveBus) -> None:
    with Wire(bus.address) as wire:
        wire.send(request("POST", "/workunit", b"", JSON, f"Content-Length: {UNIT_REQUEST_BYTES_MAX + 1}"))
        problem = wire.answer().problem
        assert (problem["status"], problem["code"], problem["limit"]) == (413, "TOO_LARGE", UNIT_REQUEST_BYTES_MAX)


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_who_sends_a_body_too_large_all_the_same_reads_the_answer(bus: LiveBus, connection: str) -> None:
    with Wire(bus.address) as wire:
        wire.send(request("POST", "/workunit", b"x" * 8 * MIB, JSON, f"Connection: {connection}"))
        assert wire.answer().problem["code"] == "TOO_LARGE"


def test_a_chunked_body_is_read_and_bounded(bus: LiveBus) -> None:
    body = json.dumps(UNIT).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = request("POST", "/workunit", b"", JSON, "Transfer-Encoding: chunked")
    with Wire(bus.address) as wire:
        assert wire.send(head + chunks).answer().status == 201
        large = b"100000\r\n" + b"x" * MIB + b"\r\n"
        wire.send(head + large * 3 + b"0\r\n\r\n")
        assert wire.answer().problem["limit"] == UNIT_REQUEST_BYTES_MAX


def test_chunks_of_almost_nothing_are_cut_off(short: LiveBus) -> None:
    chunks = (b"1;" + b"e" * 10_000 + b"\r\n[\r\n") * 100
    with Wire(short.address) as wire:
        wire.send(request("POST", "/workunits", b"", JSON, "Transfer-Encoding: chunked"))
        for _ in range(BODY_WIRE_BYTES_MAX // len(chunks) + 2):
            wire.send(chunks)
        assert wire.answer().problem["limit"] == BODY_WIRE_BYTES_MAX
        assert wire.is_cut_off_from(chunks)


def test_pipelined_requests_are_answered_in_order(bus: LiveBus) -> None:
    unit = json.dumps(UNIT).encode()
    many = request("POST", "/workunit", unit, JSON) + request("GET", "/nowhere") + request("GET", "/healthz")
    with Wire(bus.address) as wire:
        wire.send(many * 20)
        assert [wire.answer().status for _ in range(60)] == [201, 404, 200] * 20


def test_a_thousand_refusals_in_one_piece_follow_what_they_waited_for(bus: LiveBus) -> None:
    good, bad = (request("POST", "/workunit", body, JSON) for body in (json.dumps(UNIT).encode(), b"{}"))
    with Wire(bus.address) as wire:
        wire.send(good + bad * 1_000 + good)
        assert [wire.answer().status for _ in range(1_002)] == [201, *[400] * 1_000, 201]


def test_an_append_that_comes_in_pieces_or_wants_to_be_asked_for_is_taken(bus: LiveBus) -> None:
    unit = json.dumps(UNIT).encode()
    with Wire(bus.address) as wire:
        whole = request("POST", "/workunit", unit, JSON)
        for at in range(0, len(whole), 50):
            wire.send(whole[at : at + 50])
        assert wire.answer().status == 201
        asking = request("POST", "/workunit", unit, JSON, "Expect: 100-continue")
        wire.send(asking.removesuffix(unit))
        assert (wire.status_line(), wire.status_line()) == ("HTTP/1.1 100 Continue\r\n", "\r\n")
        assert wire.send(unit).answer().status == 201


def test_an_append_that_asks_to_close_is_answered_and_closed(bus: LiveBus) -> None:
    with Wire(bus.address) as wire:
        wire.send(request("POST", "/workunit", json.dumps(UNIT).encode(), JSON, "Connection: close"))
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (201, "close")
        assert wire.rest() == b""


def test_a_head_that_was_said_before_is_read_as_the_first_time(bus: LiveBus) -> None:
    def said(payload: str) -> bytes:
        return request("POST", "/workunit", json.dumps({**UNIT, "payload": payload}).encode(), JSON)

    def payloads(wire: Wire, count: int) -> list[str]:
        return [json.loads(wire.answer().body)["payload"] for _ in range(count)]

    with Wire(bus.address) as wire:
        for payload in ("one", "two", "six", "ten"):
            assert payloads(wire.send(said(payload)), 1) == [payload]
        spoilt = said("odd").replace(b"}", b"]")
        assert [wire.send(piece).answer().status for piece in (spoilt, said("new"), spoilt)] == [400, 201, 400]
        assert payloads(wire.send(said("now") + said("old") + said("own")), 3) == ["now", "old", "own"]
        wire.send(said("cut")[:-9])
        assert payloads(wire.send(said("cut")[-9:]), 1) == ["cut"]
        wire.send(said("fit") + said("few")[:20])
        assert payloads(wire.send(said("few")[20:]), 2) == ["fit", "few"]
        assert payloads(wire.send(said("end")), 1) == ["end"]
        assert wire.send(said("bye") + b"\x00").answer().status == 201
        assert wire.answer().status == 400
        assert wire.rest() == b""


def test_requests_before_garbage_are_answered_first(bus: LiveBus) -> None:
    with Wire(bus.address) as wire:
        wire.send(request("POST", "/workunit", json.dumps(UNIT).encode(), JSON) * 3 + b"\x00garbage\r\n\r\n")
        assert [wire.answer().status for _ in range(4)] == [201, 201, 201, 400]
        assert wire.rest() == b""


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(
    bus: LiveBus, caplog: pytest.LogCaptureFixture
) -> None:
    whole = request("POST", "/workunit", json.dumps(UNIT).encode(), JSON)
    for sent in (whole[:10], whole[:40], whole[:-1], whole, whole * 20, whole * 20 + whole[:50]):
        for _ in range(10):
            with Wire(bus.address) as wire:
                wire.send(sent).leave()
    assert bus.is_well()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_headers_that_come_too_slowly_are_given_up(short: LiveBus) -> None:
    with Wire(short.address) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: ")
        answer = wire.answer()
        assert (answer.status, answer.problem["code"], answer.problem["retryable"]) == (408, "REQUEST_TIMEOUT", True)
        assert wire.rest() == b""


def test_dripping_headers_do_not_extend_the_deadline(short: LiveBus) -> None:
    with Wire(short.address) as wire:
        wire.send(b"GET / HTTP/1.1\r\n")
        assert wire.drip(b"X: y\r\n", every_seconds=0.01).status == 408


def test_a_body_that_comes_too_slowly_is_given_up(short: LiveBus) -> None:
    with Wire(short.address) as wire:
        wire.send(request("POST", "/workunit", b"", JSON, "Content-Length: 100") + b"{")
        assert wire.answer().problem["code"] == "REQUEST_TIMEOUT"
        assert wire.rest() == b""


def test_an_idle_connection_is_not_a_slow_one(short: LiveBus) -> None:
    with Wire(short.address) as wire, Wire(short.address) as slow:
        assert wire.send(request("GET", "/healthz")).answer().status == 200
        assert slow.send(b"GET").answer().status == 408
        assert wire.send(request("GET", "/healthz")).answer().status == 200


def test_one_connection_too_many_is_told_to_come_back(short: LiveBus) -> None:
    with contextlib.ExitStack() as open_wires:
        for _ in range(3):
            wire = open_wires.enter_context(Wire(short.address))
            assert wire.send(request("GET", "/healthz")).answer().status == 200
        short.is_well()  # The fourth stays open.
        answer = open_wires.enter_context(Wire(short.address)).answer()
        assert (answer.status, answer.problem["code"]) == (429, "BUSY")
        assert int(answer.headers["retry-after"]) >= 1


# --- WebSocket -------------------------------------------------------------------------------------------------------


@pytest.fixture
def socket(bus: LiveBus) -> Iterator[ClientConnection]:
    with connect(bus.stream_url(), max_size=None) as socket:
        assert json.loads(socket.recv(10))["event"] == "subscribed"
        yield socket


BAD_OPERATIONS: dict[str, tuple[str, str | None, object]] = {
    "not JSON": ("{", None, None),
    "a list": ("[]", None, None),
    "no op": ('{"id":7}', "op", 7),
    "an unknown op": ('{"op":"dance","id":7}', "op", 7),
    "an op that is a number": ('{"op":1,"id":7}', "op", 7),
    "an unknown field": ('{"op":"ping","id":7,"colour":"red"}', "colour", 7),
    "an id that is an object": ('{"op":"ping","id":{}}', "id", None),
    "an append of nothing": ('{"op":"append","id":7}', "unit", 7),
    "an append of a bad unit": ('{"op":"append","id":7,"unit":{"context_id":""}}', "agent_id", 7),
    "an append of an unknown type": (
        '{"op":"append","id":7,"unit":{"context_id":"a","agent_id":"a","type":"GOSSIP"}}',
        "type",
        7,
    ),
    "a subscription without a name": ('{"op":"subscribe","context":"*"}', "id", None),
    "a subscription to nothing": ('{"op":"subscribe","id":7}', "context", 7),
    "a subscription to an empty list": ('{"op":"subscribe","id":7,"context":[]}', "context", 7),
    "a subscription to a number": ('{"op":"subscribe","id":7,"context":1}', "context", 7),
    "a subscription after nonsense": ('{"op":"subscribe","id":7,"context":"*","after":"x"}', "after", 7),
    "a subscription ahead": ('{"op":"subscribe","id":7,"context":"*","after":999999999}', "after", 7),
    "the end of no subscription": ('{"op":"unsubscribe","id":7,"subscription":9}', "subscription", 7),
    "an op that is null": ('{"op":null,"id":7}', "op", 7),
    "an empty op": ('{"op":"","id":7}', "op", 7),
    "a lock of nothing": ('{"op":"lock.acquire","id":7,"agent_id":"a"}', "resource", 7),
    "a lock of nobody": ('{"op":"lock.acquire","id":7,"resource":"a"}', "agent_id", 7),
    "a lock without a name": ('{"op":"lock.acquire","id":7,"agent_id":"a","resource":""}', "resource", 7),
    "a lock for all time": (
        '{"op":"lock.acquire","id":7,"agent_id":"a","resource":"a","ttl_seconds":1e308}',
        "ttl_seconds",
        7,
    ),
    "a lock in no mode": ('{"op":"lock.acquire","id":7,"agent_id":"a","resource":"a","mode":"mine"}', "mode", 7),
    "a lock with a colour": ('{"op":"lock.acquire","id":7,"agent_id":"a","resource":"a","colour":1}', "colour", 7),
    "a session that is a number": (
        '{"op":"lock.acquire","id":7,"agent_id":"a","resource":"a","session":1}',
        "session",
        7,
    ),
    "a refresh of nothing": ('{"op":"lock.refresh","id":7,"agent_id":"a"}', "lock_id", 7),
    "a refresh of what is no lock": ('{"op":"lock.refresh","id":7,"agent_id":"a","lock_id":"b"}', "lock_id", 7),
    "a release of nothing": ('{"op":"lock.release","id":7,"agent_id":"a"}', "lock_id", 7),
    "a release of what is no lock": ('{"op":"lock.release","id":7,"agent_id":"a","lock_id":"b"}', "lock_id", 7),
    "a cancel of nothing": ('{"op":"lock.cancel","id":7}', "acquire", 7),
    "a cancel of an object": ('{"op":"lock.cancel","id":7,"acquire":{}}', "acquire", 7),
    "NaN": ('{"op":"append","id":7,"unit":{"context_id":"a","agent_id":"a","payload":NaN}}', None, None),
    "deep": ('{"op":"append","id":7,"unit":' + "[" * 100_000, "unit", None),
}


@pytest.mark.parametrize(("message", "field", "id_"), BAD_OPERATIONS.values(), ids=BAD_OPERATIONS)
def test_an_operation_that_is_wrong_is_refused_and_the_socket_stays(
    socket: ClientConnection, message: str, field: str | None, id_: object
) -> None:
    socket.send(message)
    refused = json.loads(socket.recv(10))
    assert refused["event"] == "error"
    assert refused["code"] in ("INVALID_REQUEST", "CURSOR_INVALID", "CURSOR_AHEAD")
    assert (refused.get("field"), refused.get("id")) == (field, id_)
    socket.send('{"op":"ping","id":"still here"}')
    assert json.loads(socket.recv(10))["id"] == "still here"


@pytest.mark.parametrize("message", ['{"op":"dance"}', '{"op":1}', '{"id":7}', "{}"])
def test_who_names_no_operation_is_told_which_there_are(socket: ClientConnection, message: str) -> None:
    socket.send(message)
    refused = json.loads(socket.recv(10))
    assert refused["field"] == "op"
    named = "append, subscribe, unsubscribe, lock.acquire, lock.refresh, lock.release, lock.cancel, ping"
    assert refused["message"].endswith(f"; one of {named}")


def test_an_id_that_is_too_long_is_refused(socket: ClientConnection) -> None:
    socket.send(json.dumps({"op": "ping", "id": "i" * (CORRELATION_BYTES_MAX + 1)}))
    refused = json.loads(socket.recv(10))
    assert (refused["code"], refused["field"], refused["limit"]) == ("TOO_LARGE", "id", CORRELATION_BYTES_MAX)


@pytest.mark.parametrize("size_bytes", [10 * MIB, 100 * MIB])
def test_a_message_that_is_too_large_closes_the_socket(socket: ClientConnection, size_bytes: int) -> None:
    assert _close_code(socket, lambda: socket.send("x" * size_bytes)) == 1009


def test_fragments_that_are_too_large_together_close_the_socket(socket: ClientConnection) -> None:
    fragments = [Frame(Opcode.TEXT, b"x" * MIB, fin=False), *[Frame(Opcode.CONT, b"x" * MIB, fin=False)] * 3]
    assert _close_code(socket, lambda: _send_frames(socket, *fragments)) == 1009


def test_text_that_is_no_text_closes_the_socket(socket: ClientConnection) -> None:
    assert _close_code(socket, lambda: _send_frames(socket, Frame(Opcode.TEXT, b'{"op":"\xff"}'))) == 1007


FRAMES = {
    "a reserved opcode": b"\x83\x80\x00\x00\x00\x00",
    "compressed": b"\xc1\x80\x00\x00\x00\x00",
    "not masked": b"\x81\x05hello",
    "a continuation of nothing": b"\x80\x80\x00\x00\x00\x00",
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_frame_that_breaks_the_protocol_closes_the_socket(socket: ClientConnection, frame: bytes) -> None:
    assert _close_code(socket, lambda: socket.socket.sendall(frame)) == 1002


def test_a_message_in_ten_thousand_fragments_is_one_message(socket: ClientConnection) -> None:
    nothing = Frame(Opcode.CONT, b"", fin=False)
    _send_frames(socket, Frame(Opcode.TEXT, b'{"op":', fin=False), *[nothing] * 10_000)
    _send_frames(socket, Frame(Opcode.CONT, b'"ping","id":1}'))
    assert json.loads(socket.recv(10))["event"] == "pong"


def test_a_message_inside_another_closes_the_socket(socket: ClientConnection) -> None:
    ping = Frame(Opcode.TEXT, b'{"op":"ping"}')
    assert _close_code(socket, lambda: _send_frames(socket, Frame(Opcode.TEXT, b'{"op":', fin=False), ping)) == 1002


def test_messages_are_read_however_their_bytes_are_cut_and_whatever_stands_between_them(
    socket: ClientConnection,
) -> None:
    frames = [
        Frame(Opcode.TEXT, b'{"op":"ping","id":1}'),
        Frame(Opcode.PING, b"anyone?"),
        Frame(Opcode.TEXT, b'{"op":"ping",', fin=False),
        Frame(Opcode.PONG, b""),
        Frame(Opcode.CONT, b'"id":2}'),
        Frame(Opcode.TEXT, b'{"op":"ping","id":3' + b" " * 200 + b"}"),
    ]
    stream = b"".join(frame.serialize(mask=True) for frame in frames)
    for size in (1, 7, len(stream)):
        for at in range(0, len(stream), size):
            socket.socket.sendall(stream[at : at + size])
            time.sleep(0.0005)  # So that it is read in pieces, not put together again on the way.
        assert [json.loads(socket.recv(10))["id"] for _ in range(3)] == [1, 2, 3]


def test_a_subprotocol_that_is_not_spoken_is_refused(bus: LiveBus, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(bus.stream_url(), subprotocols=["mqtt", "engram.v9.json"])  # type: ignore[list-item]
    assert refused.value.response.status_code == 400
    assert json.loads(refused.value.response.body)["field"] == "Sec-WebSocket-Protocol"
    bus.call(lambda _: None)  # Whatever is said of it was said by then.
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("query", "close_code", "code"),
    [
        ("?context=plan&after=nonsense", 4501, "CURSOR_INVALID"),
        ("?context=plan&after=999999999", 4510, "CURSOR_AHEAD"),
        ("?context=plan&after=anotherepoch.1", 4511, "EPOCH_CHANGED"),
        ("?context=plan&colour=red", 4500, "INVALID_REQUEST"),
        ("?context=%ff", 4500, "INVALID_REQUEST"),
        ("?after=0", 4500, "INVALID_REQUEST"),
        ("?agent_id=%ff", 4500, "INVALID_REQUEST"),
        ("?context=" + "c" * 300, 4513, "TOO_LARGE"),
    ],
)
def test_a_subscription_that_cannot_be_is_told_on_the_open_socket(
    bus: LiveBus, query: str, close_code: int, code: str
) -> None:
    with connect(bus.stream_url(query)) as socket:
        refused = json.loads(socket.recv(10))
        assert (refused["event"], refused["code"]) == ("error", code)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == close_code
    assert closed.value.rcvd.reason.startswith(code)


def test_a_handshake_that_is_none_is_a_problem(bus: LiveBus) -> None:
    for header in ("Sec-WebSocket-Version: 8", "Sec-WebSocket-Key: short"):
        with Wire(bus.address) as wire:
            wire.send(request("GET", "/stream", b"", "Connection: Upgrade", "Upgrade: websocket", header))
            answer = wire.answer()
            assert answer.problem["code"] == "INVALID_REQUEST"
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://{bus.address[0]}:{bus.address[1]}/elsewhere")
    assert json.loads(refused.value.response.body)["code"] == "NOT_FOUND"


@pytest.mark.parametrize("query_bytes", [8_000, 8_200, 16_000])
def test_a_handshake_may_ask_for_as_much_as_a_request_may(bus: LiveBus, query_bytes: int) -> None:
    query = "?context=plan" + "&context=cc" * ((query_bytes - 13) // 11)
    with Wire(bus.address) as wire:
        wire.send(_handshake(f"/stream{query}"))
        assert wire.status_line().startswith("HTTP/1.1 101 ")


def test_a_handshake_with_too_many_headers_is_refused(bus: LiveBus) -> None:
    with Wire(bus.address) as wire:
        wire.send(_handshake("/stream", *[f"X-{n}: {n}" for n in range(200)]))
        answer = wire.answer()
        assert (answer.status, answer.problem["code"]) == (431, "HEADERS_TOO_LARGE")
        assert wire.rest() == b""


def _handshake(target: str, *headers: str) -> bytes:
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key)
    return request("GET", target, b"", *upgrade, *headers)


def test_a_path_with_a_line_break_is_refused(bus: LiveBus) -> None:
    for path in ("/workunits/a%0Ab", "/contexts/a%0Ab", "/locks/%0A"):
        said = _problem(bus.http.get(path))
        assert (said["status"], said["code"], said["field"]) == (400, "INVALID_REQUEST", "path")


def test_a_bound_of_a_list_that_is_none_is_named(bus: LiveBus) -> None:
    for field in ("after", "before"):
        assert _problem(bus.http.get("/workunits/plan", params={field: "now"}))["field"] == field


def test_a_limit_that_is_none_is_refused_in_the_same_words_everywhere(bus: LiveBus) -> None:
    listed = _problem(bus.http.get("/workunits/plan", params={"limit": 0}))
    searched = _problem(bus.http.post("/search", json={"query": "a", "limit": 0}))
    assert (listed["detail"], searched["detail"]) == ("limit 0 is not 1 to 1000", "limit 0 is not 1 to 200")
    assert _problem(bus.http.get("/status", params={"min_seq": -1}))["field"] == "min_seq"


def test_numbers_that_no_one_can_hold_come_back_as_they_were(bus: LiveBus) -> None:
    payload = {"large": 10**30, "small": 1e-300, "exact": 0.1, "negative": -0.0}
    unit = bus.append(payload=payload)
    assert unit["payload"] == payload


def _post(bus: LiveBus, body: bytes) -> dict[str, Any]:
    return _problem(bus.http.post("/workunit", content=body))


def _problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    said: dict[str, Any] = response.json()
    assert said["status"] == response.status_code
    assert said["type"].startswith("urn:engram:error:")
    assert said["title"]
    assert said["detail"]
    return said


def _send_frames(socket: ClientConnection, *frames: Frame) -> None:
    socket.socket.sendall(b"".join(frame.serialize(mask=True) for frame in frames))


def _close_code(socket: ClientConnection, act: Callable[[], None]) -> int:
    """The code that the bus closes the socket with, for this."""
    with pytest.raises(ConnectionClosed) as closed:
        _until_closed(socket, act)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


def _until_closed(socket: ClientConnection, act: Callable[[], None]) -> None:
    act()
    while True:
        socket.recv(10)
