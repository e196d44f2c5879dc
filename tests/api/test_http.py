"""The verbs over HTTP: what each answers, in which header it says what else there is to know, and when it says no."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest

import engram_client
from engram_bus.errors import StorageFailed, StorageFull, StorageReadOnly, Unavailable
from engram_bus.log.memory import MemoryLog
from engram_bus.pb import append_pb2, unit_pb2
from tests.damaged import DamagedLog
from tests.live import LiveBus

UNIT: dict[str, Any] = {"context_id": "plan", "agent_id": "ann", "payload": "hello"}


@pytest.fixture
def bus() -> Iterator[LiveBus]:
    with LiveBus() as bus:
        yield bus


@pytest.fixture(params=["", "/api/v1"], ids=["bare", "prefix"])
def http(request: pytest.FixtureRequest, bus: LiveBus) -> Iterator[httpx.Client]:
    """A client of either form of the paths."""
    with httpx.Client(base_url=bus.url + request.param, verify=False) as client:
        yield client


# --- Append ----------------------------------------------------------------------------------------------------------


def test_an_append_answers_with_the_unit_and_where_it_stands(http: httpx.Client) -> None:
    http.post("/workunit", json=UNIT)
    response = http.post("/workunit", json=UNIT | {"type": "TOOL_CALL", "kind": "test.run", "meta": {"a": "b"}})
    unit = response.json()
    assert response.status_code == 201
    assert response.headers["etag"] == '"2"'
    assert response.headers["engram-applied-seq"] == "2"
    assert response.headers["engram-durability"] == "memory"
    assert "idempotency-replayed" not in response.headers
    assert (unit["seq"], unit["version"], unit["type"], unit["kind"]) == (2, 2, "TOOL_CALL", "test.run")
    assert list(unit)[:8] == ["seq", "id", "context_id", "version", "agent_id", "type", "ts", "content_type"]
    assert list(unit)[8:] == ["kind", "meta", "payload"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"payload": "text"}, {"content_type": "text/plain; charset=utf-8", "payload": "text"}),
        ({}, {"content_type": "text/plain; charset=utf-8", "payload": ""}),
        ({"payload": {"a": 1}}, {"content_type": "application/json", "payload": {"a": 1}}),
        ({"payload": "a", "content_type": "application/json"}, {"content_type": "application/json", "payload": "a"}),
        ({"payload_base64": "AP8="}, {"content_type": "application/octet-stream", "payload_base64": "AP8="}),
        ({"payload_base64": "aGk=", "content_type": "text/plain"}, {"content_type": "text/plain", "payload": "hi"}),
        ({"payload": "# hi", "content_type": "text/markdown"}, {"content_type": "text/markdown", "payload": "# hi"}),
        ({"type": 3}, {"type": "TOOL_CALL"}),
        ({"type": "REASONING"}, {"type": "REASONING"}),
    ],
)  # fmt: skip
def test_what_is_said_is_kept(bus: LiveBus, said: dict[str, Any], kept: dict[str, Any]) -> None:
    body = {"context_id": "plan", "agent_id": "ann"} | said
    assert kept.items() <= bus.http.post("/workunit", json=body).json().items()


def test_an_append_may_be_messagepack(bus: LiveBus) -> None:
    body = msgpack.packb(UNIT | {"payload": b"\x00\xff", "content_type": "image/png"})
    response = bus.http.post("/workunit", content=body, headers={"content-type": "application/msgpack"})
    assert response.status_code == 201
    assert response.json()["payload_base64"] == "AP8="


def test_an_append_may_be_protobuf(bus: LiveBus) -> None:
    said = append_pb2.AppendRequest(context_id="plan", payload=b"\x00\xff", content_type="image/png")
    headers = {"content-type": "application/x-protobuf", "x-agent-id": "ann", "idempotency-key": "once"}
    response = bus.http.post("/workunit", content=said.SerializeToString(), headers=headers)
    assert response.status_code == 201
    assert (response.json()["payload_base64"], response.json()["agent_id"]) == ("AP8=", "ann")
    again = bus.http.post("/workunit", content=said.SerializeToString(), headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    refused = bus.http.post("/workunit", content=b"\xff", headers=headers | {"accept": "application/x-protobuf"})
    assert (refused.status_code, refused.json()["code"]) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/msgpack", "application/msgpack"),
        ("application/x-protobuf", "application/x-protobuf"),
        ("Application/X-Protobuf; q=0.9", "application/x-protobuf"),
        ("application/msgpack;q=0.5, application/x-protobuf;q=0.9, */*;q=0.1", "application/x-protobuf"),
        ("application/msgpack, application/json", "application/msgpack"),
        ("application/msgpack;q=0, application/json;q=0.1", "application/json"),
        ("application/msgpack;q=none, text/html", "application/json"),
        ("text/html", "application/json"),
    ],
)
def test_the_answer_to_an_append_is_in_the_encoding_that_is_accepted(bus: LiveBus, accept: str, encoding: str) -> None:
    response = bus.http.post("/workunit", json=UNIT, headers={"accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (201, encoding)
    assert response.headers["etag"] == '"1"'
    unit_id = bus.http.get("/workunits/plan").json()["work_units"][0]["id"]
    match encoding:
        case "application/json":
            said = response.json()
        case "application/msgpack":
            said = msgpack.unpackb(response.content)
            assert isinstance(said["payload"], bytes)
        case _:
            said = {"id": unit_pb2.WorkUnit.FromString(response.content).id}
    assert said["id"] == unit_id


def test_an_agent_may_be_named_by_a_header(bus: LiveBus) -> None:
    headers = {b"x-agent-id": "bob ü".encode()}
    assert bus.http.post("/workunit", json={"context_id": "plan"}, headers=headers).json()["agent_id"] == "bob ü"


def test_a_repeat_answers_the_same_and_says_so(bus: LiveBus) -> None:
    keyed = {"idempotency-key": "once"}
    first = bus.http.post("/workunit", json=UNIT, headers=keyed)
    bus.append()
    again = bus.http.post("/workunit", json=UNIT, headers=keyed)
    in_body = bus.http.post("/workunit", json=UNIT | {"idempotency_key": "once"})
    assert again.json() == first.json() == in_body.json()
    assert again.status_code == 201
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["etag"] == first.headers["etag"]
    assert "idempotency-replayed" not in first.headers


def test_a_key_with_another_body_is_a_conflict(bus: LiveBus) -> None:
    bus.http.post("/workunit", json=UNIT, headers={"idempotency-key": "once"})
    response = bus.http.post("/workunit", json=UNIT | {"payload": "other"}, headers={"idempotency-key": "once"})
    assert (response.status_code, response.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")


def test_an_id_can_be_brought_once(bus: LiveBus) -> None:
    brought = UNIT | {"id": "0190b0e0-0000-7000-8000-00000000000a"}
    assert bus.http.post("/workunit", json=brought).json()["id"] == brought["id"]
    response = bus.http.post("/workunit", json=brought)
    assert (response.status_code, response.json()["code"], response.json()["field"]) == (409, "ID_TAKEN", "id")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if-match": '"1"'}, 201),
        ({"if-match": "1"}, 201),
        ({"if-match": "*"}, 201),
        ({"if-match": '"2"'}, 412),
        ({"if-none-match": "*"}, 412),
    ],
)
def test_an_append_can_be_for_one_version_of_its_context(bus: LiveBus, headers: dict[str, str], status: int) -> None:
    bus.append()
    response = bus.http.post("/workunit", json=UNIT, headers=headers)
    assert response.status_code == status
    if status == 412:
        assert (response.json()["code"], response.json()["current_version"]) == ("VERSION_MOVED", 1)


def test_an_append_can_be_the_first_of_its_context_or_not(bus: LiveBus) -> None:
    not_there = bus.http.post("/workunit", json=UNIT, headers={"if-match": "*"})
    assert (not_there.status_code, not_there.json()["current_version"]) == (412, 0)
    assert bus.http.post("/workunit", json=UNIT, headers={"if-none-match": "*"}).status_code == 201


def test_a_closed_context_takes_nothing(bus: LiveBus) -> None:
    bus.http.patch("/contexts/plan", json={"closed": True})
    response = bus.http.post("/workunit", json=UNIT)
    assert (response.status_code, response.json()["code"]) == (409, "CONTEXT_CLOSED")


# --- Many at once ----------------------------------------------------------------------------------------------------


def test_a_bulk_answers_for_each_in_order(http: httpx.Client) -> None:
    units = [UNIT | {"payload": str(number)} for number in range(1_000)]
    for sent in ({"json": units}, {"content": "\n".join(json.dumps(unit) for unit in units) + "\n"}):
        kind = {"content-type": "application/json" if "json" in sent else "application/x-ndjson"}
        response = http.post("/workunits", headers=kind, **sent)
        body = response.json()
        assert response.status_code == 201
        assert [result["work_unit"]["payload"] for result in body["results"]] == [str(n) for n in range(1_000)]
        assert body["applied_seq"] == body["results"][-1]["work_unit"]["seq"]


def test_a_refused_unit_of_a_bulk_leaves_the_others(bus: LiveBus) -> None:
    units = [UNIT, UNIT | {"expected_version": 9}, UNIT | {"type": "GOSSIP"}, UNIT | {"expected_version": 1}]
    response = bus.http.post("/workunits", json=units)
    assert response.status_code == 207
    results = response.json()["results"]
    errors = [result["error"] for result in results if "error" in result]
    assert [error["code"] for error in errors] == ["VERSION_MOVED", "INVALID_REQUEST"]
    assert [(error["index"], error["status"]) for error in errors] == [(1, 412), (2, 400)]
    assert [result["work_unit"]["version"] for result in (results[0], results[3])] == [1, 2]


def test_each_unit_of_a_bulk_may_have_its_key(bus: LiveBus) -> None:
    units = [UNIT | {"idempotency_key": str(number)} for number in range(3)]
    first, again = bus.http.post("/workunits", json=units).json(), bus.http.post("/workunits", json=units).json()
    assert first == again
    refused = bus.http.post("/workunits", json=units, headers={"idempotency-key": "all"})
    assert (refused.status_code, refused.json()["field"]) == (400, "Idempotency-Key")


def test_an_atomic_bulk_is_all_or_none(bus: LiveBus) -> None:
    units = [UNIT, UNIT | {"expected_version": 9}, UNIT]
    refused = bus.http.post("/workunits?atomic=true", json=units)
    assert (refused.status_code, refused.json()["code"], refused.json()["index"]) == (412, "VERSION_MOVED", 1)
    assert bus.http.get("/status").json()["head"] == 0
    units[1] = UNIT | {"expected_version": 1}
    assert bus.http.post("/workunits?atomic=true", json=units).status_code == 201
    assert bus.http.get("/status").json()["head"] == 3


def test_an_atomic_bulk_has_one_key(bus: LiveBus) -> None:
    send = {"json": [UNIT, UNIT], "headers": {"idempotency-key": "all"}}
    first = bus.http.post("/workunits?atomic=true", **send)  # type: ignore[arg-type]
    again = bus.http.post("/workunits?atomic=true", **send)  # type: ignore[arg-type]
    assert again.json()["results"] == first.json()["results"]
    assert again.headers["idempotency-replayed"] == "true"
    keyed = bus.http.post("/workunits?atomic=1", json=[UNIT, UNIT | {"idempotency_key": "mine"}])
    assert (keyed.status_code, keyed.json()["index"]) == (400, 1)
    unreadable = bus.http.post("/workunits?atomic=1", content=b'[{"context_id":"a","agent_id":"b"},{}]')
    assert (unreadable.status_code, unreadable.json()["index"]) == (400, 1)


# --- Read ------------------------------------------------------------------------------------------------------------


def test_a_unit_is_found_by_its_id(http: httpx.Client, bus: LiveBus) -> None:
    unit = bus.append()
    response = http.get(f"/workunit/{unit['id']}")
    assert response.json() == unit
    assert response.headers["engram-applied-seq"] == "1"
    assert http.get("/workunit/0190b0e0-0000-7000-8000-00000000000a").json()["code"] == "UNIT_NOT_FOUND"


def test_a_context_is_listed_page_by_page(http: httpx.Client, bus: LiveBus) -> None:
    appended = [bus.append(payload=str(number)) for number in range(25)]
    bus.append("other")
    assert _paged(http, "/workunits/plan", {"limit": 10}) == appended
    assert _paged(http, "/workunits/plan", {"limit": 10, "reverse": True}) == appended[::-1]
    assert _paged(http, "/workunits", {"context_id": "plan", "limit": 5}) == appended
    assert http.get("/workunits/nobody").json() == {"work_units": [], "next_page": None, "applied_seq": 26}


def test_a_list_may_lie_between_two_places(bus: LiveBus) -> None:
    for _ in range(9):
        bus.append()

    def seqs(**params: Any) -> list[int]:
        return [unit["seq"] for unit in bus.http.get("/workunits/plan", params=params).json()["work_units"]]

    assert seqs(after=3, before=7) == [4, 5, 6]
    assert seqs(after=3, before=7, reverse=True) == [6, 5, 4]
    assert seqs(after="memory.8") == [9]
    assert seqs(after=99) == []
    assert seqs(before=99) == list(range(1, 10))


def test_a_list_may_be_narrowed(bus: LiveBus) -> None:
    bus.append(payload="a")
    bus.append(payload="b", type="TOOL_CALL", kind="test.run")
    bus.append(payload="c", type="TOOL_RESULT", kind="test.failed", agent_id="bob")

    def payloads(query: str) -> str:
        return "".join(unit["payload"] for unit in bus.http.get(f"/workunits/plan?{query}").json()["work_units"])

    assert payloads("type=TOOL_CALL&type=4") == "bc"
    assert payloads("agent=bob") == "c"
    assert payloads("kind=test.*&agent=ann") == "b"


def test_relations_are_followed(http: httpx.Client, bus: LiveBus) -> None:
    call = bus.append(type="TOOL_CALL")
    result = bus.append(relationships=[{"target_id": call["id"], "type": "RESPONDS_TO"}])
    after = bus.append(
        relationships=[{"target_id": result["id"], "type": "CAUSES"}, {"target_id": "elsewhere", "type": "REFERENCES"}]
    )
    one_step = http.get(f"/workunit/{call['id']}/related").json()
    assert one_step["related"] == [
        {"work_unit": result, "relationship": "RESPONDS_TO", "direction": "in", "depth": 1, "from_id": call["id"]}
    ]
    two_steps = http.get(f"/workunit/{call['id']}/related", params={"depth": 2}).json()
    assert [related["work_unit"]["id"] for related in two_steps["related"]] == [result["id"], after["id"]]
    out = http.get(f"/workunit/{after['id']}/related", params={"direction": "out", "type": "REFERENCES"}).json()
    assert (out["related"], out["missing"], out["truncated"]) == ([], ["elsewhere"], False)


def test_a_read_waits_for_what_was_written_elsewhere(bus: LiveBus) -> None:
    with _meanwhile(bus, bus.append):
        response = bus.http.get("/workunits/plan", params={"min_seq": 1, "timeout_ms": 20_000})
    assert [unit["seq"] for unit in response.json()["work_units"]] == [1]


@pytest.mark.parametrize(
    "path", ["/workunits/plan", "/contexts", "/contexts/plan", "/workunit/x", "/workunit/x/related"]
)
def test_a_read_waits_no_longer_than_it_was_told(bus: LiveBus, path: str) -> None:
    response = bus.http.get(path, params={"min_seq": 5, "timeout_ms": 1})
    problem = response.json()
    assert (response.status_code, problem["code"], problem["retryable"]) == (503, "MIN_SEQ_TIMEOUT", True)
    assert problem["head"] == 0
    assert "retry-after" in response.headers


def test_who_waits_when_the_bus_stops_is_told_so(bus: LiveBus) -> None:
    with httpx.Client(base_url=bus.url, timeout=30, verify=False) as http, _meanwhile(bus, bus.stop):
        response = http.get("/contexts", params={"min_seq": 5, "timeout_ms": 60_000})
    assert (response.status_code, response.json()["code"]) == (503, "SHUTTING_DOWN")


# --- Contexts --------------------------------------------------------------------------------------------------------


def test_a_context_is_made_changed_and_read(http: httpx.Client) -> None:
    made = http.patch("/contexts/src/a.py", json={"agent_id": "ann", "display_name": "A", "add_agents": ["bob"]})
    assert made.status_code == 200
    assert made.headers["etag"] == f'"{made.json()["version"]}"'
    by_query = {"context_id": "src/a.py"}
    changed = http.patch("/contexts", params=by_query, json={"meta": {"phase": "2"}, "fences": ["src/*"]})
    read = http.get("/contexts/src/a.py")
    context = read.json()
    assert context == changed.json() == http.get("/contexts", params=by_query).json()
    assert read.headers["etag"] == f'"{context["version"]}"'
    assert {"display_name": "A", "meta": {"phase": "2"}, "fences": ["src/*"]}.items() <= context.items()


def test_each_change_of_a_context_is_a_unit(bus: LiveBus) -> None:
    unit = bus.append()
    bus.http.patch(
        "/contexts/plan", json={"agent_id": "ann", "add_agents": ["bob"], "pin_units": [unit["id"]], "closed": True}
    )
    kinds = [one.get("kind") for one in bus.http.get("/workunits/plan").json()["work_units"]]
    assert {"context.joined", "context.pinned", "context.closed"} <= set(kinds)


def test_a_change_can_be_for_one_version(bus: LiveBus) -> None:
    etag = bus.http.patch("/contexts/plan", json={"display_name": "A"}).headers["etag"]
    assert bus.http.patch("/contexts/plan", json={"display_name": "B"}, headers={"if-match": etag}).status_code == 200
    moved = bus.http.patch("/contexts/plan", json={"display_name": "C"}, headers={"if-match": etag})
    assert (moved.status_code, moved.json()["code"]) == (412, "VERSION_MOVED")


def test_a_repeated_change_answers_the_same(bus: LiveBus) -> None:
    keyed = {"idempotency-key": "once"}
    first = bus.http.patch("/contexts/plan", json={"display_name": "A"}, headers=keyed)
    bus.http.patch("/contexts/plan", json={"display_name": "B"})
    again = bus.http.patch("/contexts/plan", json={"display_name": "A"}, headers=keyed)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"


def test_only_what_exists_can_be_pinned(bus: LiveBus) -> None:
    response = bus.http.patch("/contexts/plan", json={"pin_units": ["0190b0e0-0000-7000-8000-00000000000a"]})
    assert (response.status_code, response.json()["code"], response.json()["field"]) == (
        404,
        "UNIT_NOT_FOUND",
        "pin_units[0]",
    )


def test_contexts_are_listed_in_byte_order_of_their_ids(http: httpx.Client, bus: LiveBus) -> None:
    names = ["a", "a/1", "a/2", "b", "ü", "Z", "z"]
    for name in names:
        bus.append(name)
    listed = [context["id"] for context in _paged(http, "/contexts", {"limit": 2}, of="contexts")]
    assert listed == sorted(names, key=str.encode)
    prefixed = http.get("/contexts", params={"prefix": "a/"}).json()
    assert [context["id"] for context in prefixed["contexts"]] == ["a/1", "a/2"]


# --- The bus itself --------------------------------------------------------------------------------------------------


def test_it_says_how_it_is(http: httpx.Client, bus: LiveBus) -> None:
    bus.append()
    status = http.get("/status").json()
    assert {
        "head": 1,
        "epoch": "memory",
        "cursor": "memory.1",
        "contexts": 1,
        "subscribers": 0,
    }.items() <= status.items()
    assert {"ready": True, "reason": None, "lag_units": 0, "durability": "memory"}.items() <= status.items()
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json()["ready"] is True


def test_its_metrics_are_what_prometheus_reads(bus: LiveBus) -> None:
    bus.append()
    response = bus.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in ("engram_head_seq 1.0", 'engram_http_requests_total{operation="append",status="201"} 1.0'):
        assert f"\n{line}\n" in response.text


def test_durable_means_on_the_disk(tmp_path: Path) -> None:
    with LiveBus(tmp_path / "data") as bus:
        assert bus.http.post("/workunit", json=UNIT).headers["engram-durability"] == "fsync"
        disk = bus.http.get("/status").json()["disk"]
        assert disk["log_bytes"] > 0
        assert disk["free_bytes"] > 0


DISKS: dict[str, tuple[type[Unavailable], int]] = {
    "full": (StorageFull, 507),
    "read-only": (StorageReadOnly, 503),
    "broken": (StorageFailed, 503),
}


@pytest.mark.parametrize(("error", "status"), DISKS.values(), ids=DISKS)
def test_a_disk_that_refuses_is_told_and_reads_go_on(error: type[Unavailable], status: int) -> None:
    log = RefusingLog()
    with LiveBus(log=log) as bus:
        unit = bus.append()
        log.refusal = error("the disk says no")
        for _ in range(2):
            response = bus.http.post("/workunit", json=UNIT)
            assert (response.status_code, response.json()["code"], response.json()["retryable"]) == (
                status,
                error.code,
                True,
            )
            assert int(response.headers["retry-after"]) >= 1
        assert bus.http.get("/workunits/plan").json()["work_units"] == [unit]
        ready = bus.http.get("/readyz")
        assert (ready.status_code, ready.json()["ready"], ready.json()["reason"]) == (503, False, error.code)
        assert bus.http.get("/healthz").status_code == 200
        if error is not StorageFailed:
            log.refusal = None
            bus.wait(lambda inner: inner.writer.refusal is None)
            assert bus.append()["seq"] == 2


class RefusingLog(MemoryLog):
    """Appends raise while there is a refusal."""

    refusal: Unavailable | None = None

    def append(self, records: Any) -> None:
        self.probe()
        super().append(records)

    def probe(self) -> None:
        if self.refusal is not None:
            raise self.refusal


def test_a_record_that_cannot_be_read_is_told_and_its_neighbours_are_read() -> None:
    log = DamagedLog()
    with LiveBus(log=log) as bus:
        units = [bus.append() for _ in range(3)]
        log.damaged = (2,)
        response = bus.http.get(f"/workunit/{units[1]['id']}")
        assert (response.status_code, response.json()["code"], response.json()["retryable"]) == (
            500,
            "LOG_DAMAGED",
            False,
        )
        assert bus.http.get(f"/workunit/{units[2]['id']}").json() == units[2]


def test_our_own_mistake_is_a_problem_too(bus: LiveBus) -> None:
    bus.call(lambda inner: setattr(inner, "contexts", lambda **_: 1 / 0))
    response = bus.http.get("/contexts")
    assert (response.status_code, response.json()["code"]) == (500, "INTERNAL")
    assert "division" not in response.text


@contextmanager
def _meanwhile(bus: LiveBus, act: Callable[[], object]) -> Iterator[None]:
    """Act once a read waits for its min_seq."""

    def later() -> None:
        bus.wait(lambda inner: bool(inner._waiting))
        act()

    thread = threading.Thread(target=later)
    thread.start()
    yield
    thread.join()


def _paged(http: httpx.Client, path: str, params: dict[str, Any], *, of: str = "work_units") -> list[Any]:
    found: list[Any] = []
    page: str | None = None
    while True:
        answer = http.get(path, params=params | ({} if page is None else {"page": page})).json()
        found += answer[of]
        page = answer["next_page"]
        if page is None:
            return found
        assert len(answer[of]) == params["limit"]


# --- Every answer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/workunits/plan"), ("GET", "/nowhere"), ("PUT", "/workunit"), ("GET", "/status"), ("POST", "/workunit")],
)
def test_every_answer_says_how_durable_it_is_and_which_seq_it_reflects(
    http: httpx.Client, method: str, path: str
) -> None:
    http.post("/workunit", json=UNIT)
    response = http.request(method, path)
    assert response.headers.get_list("engram-applied-seq") == ["1"]
    assert response.headers.get_list("engram-durability") == ["memory"]


@pytest.mark.parametrize("query", ["", "?atomic=true"])
@pytest.mark.parametrize(("header", "value"), [("If-Match", '"99"'), ("If-None-Match", "*")])
def test_a_batch_is_not_recorded_with_a_condition_it_does_not_check(
    http: httpx.Client, query: str, header: str, value: str
) -> None:
    refused = http.post(f"/workunits{query}", json=[UNIT], headers={header: value})
    assert (refused.status_code, refused.json()["field"]) == (400, header)
    assert http.get("/workunits/plan").json()["work_units"] == []


def test_a_handshake_that_is_refused_has_one_length(bus: LiveBus) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "8"}
    refused = httpx.get(f"{bus.url}/stream", headers=upgrade)
    assert len(refused.headers.get_list("content-length")) == 1
    assert refused.headers.get_list("content-type") == ["application/problem+json"]
    assert refused.json()["code"] == "INVALID_REQUEST"


def test_a_stream_begins_in_one_place(http: httpx.Client) -> None:
    refused = http.get("/stream-sse?context=plan&after=0&after=1")
    assert (refused.status_code, refused.json()["field"]) == (400, "after")


def test_the_client_reads_every_field_of_the_status(http: httpx.Client) -> None:
    said = http.get("/status").json()
    read = msgspec.to_builtins(msgspec.json.decode(http.get("/status").content, type=engram_client.Status))
    assert read.keys() == said.keys()
    assert read["disk"] == said["disk"] | {"free_bytes": None}
