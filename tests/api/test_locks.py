"""Locks over HTTP: what each verb answers, how a resource is named, and what becomes of one who leaves."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from engram_bus.embedded import Bus
from engram_bus.limits import (
    LOCK_DEPTH_MAX,
    LOCK_REASON_BYTES_MAX,
    LOCK_REQUEST_BYTES_MAX,
    LOCK_RESOURCES_MAX,
    NAME_BYTES_MAX,
    RESOURCE_BYTES_MAX,
)
from engram_bus.units import ReleaseLock
from tests.live import LiveBus
from tests.wire import Wire, request

UNIT: dict[str, Any] = {"context_id": "plan", "agent_id": "ann", "payload": "hello"}
JSON = "Content-Type: application/json"
NOBODYS = "00000000-0000-7000-8000-000000000000"


@pytest.fixture
def bus() -> Iterator[LiveBus]:
    with LiveBus() as bus:
        yield bus
        assert bus.is_well()


@pytest.fixture(params=["", "/api/v1"], ids=["bare", "prefix"])
def http(request: pytest.FixtureRequest, bus: LiveBus) -> Iterator[httpx.Client]:
    """A client of either form of the paths."""
    with httpx.Client(base_url=bus.url + request.param, verify=False) as client:
        yield client


def ask(http: httpx.Client, resource: str | None = "plan.md", agent_id: str = "ann", **fields: Any) -> httpx.Response:
    named = {} if resource is None else {"resource": resource}
    return http.post("/locks", json={**named, "agent_id": agent_id, **fields})


def hold(bus: LiveBus, resource: str | None = "plan.md", agent_id: str = "ann", **fields: Any) -> dict[str, Any]:
    response = ask(bus.http, resource, agent_id, **fields)
    assert response.status_code == 201, response.text
    lock: dict[str, Any] = response.json()
    return lock


def refused(response: httpx.Response) -> tuple[int, str, str | None]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert problem["status"] == response.status_code
    return response.status_code, problem["code"], problem.get("field")


def looked_at(bus: LiveBus, resource: str = "plan.md", **params: Any) -> dict[str, Any]:
    found: dict[str, Any] = bus.http.get("/locks", params={"resource": resource, **params}).json()
    return found


def said(bus: LiveBus, context_id: str = "locks") -> list[tuple[str, str, dict[str, Any]]]:
    """What the log says of locks: each unit's kind, its agent, and its payload."""
    page = bus.http.get(f"/workunits/{context_id}", params={"limit": 1_000}).json()
    return [(unit["kind"], unit["agent_id"], unit["payload"]) for unit in page["work_units"]]


def wait_in_line(bus: LiveBus, agent_id: str = "bob", resource: str = "plan.md", **fields: Any) -> Wire:
    """A connection whose request waits for a lock."""
    asked = {"resource": resource, "agent_id": agent_id, "wait_seconds": 60, **fields}
    before = bus.call(waiting)
    wire = Wire(bus.address).send(request("POST", "/locks", json.dumps(asked).encode(), JSON))
    bus.wait(lambda inner: waiting(inner) == before + 1)
    return wire


def waiting(inner: Bus) -> int:
    return inner.writer.state.locks.waiting_count


def held(inner: Bus) -> int:
    return inner.writer.state.locks.held_count


# --- Acquire ---------------------------------------------------------------------------------------------------------


def test_a_lock_is_granted_with_its_token_and_its_end(http: httpx.Client, bus: LiveBus) -> None:
    bus.append()
    response = ask(http, ttl_seconds=60, reason="editing")
    lock = response.json()
    (unit,) = bus.http.get("/workunits/locks").json()["work_units"]
    assert response.status_code == 201
    assert response.headers["engram-applied-seq"] == "2"
    assert response.headers["engram-durability"] == "memory"
    assert lock == {
        "lock_id": unit["id"],
        "resource": "plan.md",
        "holder_agent": "ann",
        "mode": "exclusive",
        "fencing_token": 2,
        "acquired_seq": 2,
        "granted_at": unit["ts"],
        "expires_at": unit["payload"]["until"],
        "remaining_seconds": 60.0,
        "reason": "editing",
        "context_id": "locks",
    }


def test_asking_again_extends_the_same_lock(http: httpx.Client, bus: LiveBus) -> None:
    first = ask(http).json()
    bus.append()
    again = ask(http, ttl_seconds=3_600)
    assert again.status_code == 200
    assert (again.json()["lock_id"], again.json()["fencing_token"]) == (first["lock_id"], first["fencing_token"])
    assert again.json()["expires_at"] > first["expires_at"]
    assert again.headers["engram-applied-seq"] == "3"


def test_who_finds_it_held_is_told_by_whom_and_until_when(http: httpx.Client, bus: LiveBus) -> None:
    lock = hold(bus, reason="editing")
    response = ask(http, agent_id="bob")
    assert refused(response) == (409, "LOCK_HELD", "resource")
    told = response.json()
    assert told["retryable"] is False
    assert (told["holder_agent"], told["since"], told["until"]) == ("ann", lock["granted_at"], lock["expires_at"])
    assert (told["resource"], told["reason"], told["queue_length"], told["waits"]) == ("plan.md", "editing", 0, False)
    assert response.headers["engram-applied-seq"] == "1"


def test_several_resources_are_one_lock_with_one_token(http: httpx.Client, bus: LiveBus) -> None:
    hold(bus, "taken", "bob")
    assert refused(ask(http, None, resources=["a", "taken"])) == (409, "LOCK_HELD", "resource")
    lock = ask(http, None, resources=["c", "a", "b/", "b"]).json()
    assert set(lock) == {"lock_id", "locks"}
    assert [one["resource"] for one in lock["locks"]] == ["a", "b", "c"]
    assert {(one["lock_id"], one["fencing_token"]) for one in lock["locks"]} == {(lock["lock_id"], 2)}
    assert refused(ask(http, "b", "bob"))[1] == "LOCK_HELD"


def test_shared_locks_go_together_and_with_no_exclusive_one(http: httpx.Client) -> None:
    first, second = ask(http, mode="shared").json(), ask(http, agent_id="bob", mode="shared").json()
    assert (first["mode"], second["fencing_token"]) == ("shared", first["fencing_token"] + 1)
    assert refused(ask(http, agent_id="cid"))[1] == "LOCK_HELD"
    assert [one["holder_agent"] for one in http.get("/locks/plan.md").json()["holders"]] == ["ann", "bob"]


def test_a_lock_covers_what_lies_below(bus: LiveBus) -> None:
    hold(bus, "repo/src")
    assert ask(bus.http, "repo/src/a.py", "bob").status_code == 409
    assert ask(bus.http, "repo", "bob").status_code == 409
    assert ask(bus.http, "repo/srcs", "bob").status_code == 201


def test_the_agent_may_be_named_by_a_header(bus: LiveBus) -> None:
    header = {b"x-agent-id": "bob ü".encode()}
    lock = bus.http.post("/locks", json={"resource": "a"}, headers=header).json()
    assert lock["holder_agent"] == "bob ü"
    assert bus.http.post("/locks", json={"resource": "b", "agent_id": "ann"}, headers=header).status_code == 201
    named = {"lock_id": lock["lock_id"]}
    assert bus.http.patch("/locks/a", json=named, headers=header).status_code == 200
    assert bus.http.delete("/locks/a", params=named, headers=header).json()["released"] is True


def test_its_units_stand_in_the_context_it_names(bus: LiveBus) -> None:
    lock = hold(bus, context_id="edits/plan")
    bus.http.delete("/locks/plan.md", params={"agent_id": "ann", "lock_id": lock["lock_id"]})
    assert [kind for kind, _, _ in said(bus, "edits/plan")] == ["lock.granted", "lock.released"]
    bus.http.patch("/contexts/edits/plan", json={"closed": True})
    assert refused(ask(bus.http, context_id="edits/plan")) == (409, "CONTEXT_CLOSED", "context_id")


# --- Names -----------------------------------------------------------------------------------------------------------

NAMES = [
    "plan.md",
    "repo/src/a.py",
    "/etc/hosts",
    "https://example.org/x?y=z#top",
    "a?b=c",
    "a#b",
    "100%",
    "%2F",
    "a b",
    "ü/ñ/汉字",
    "a+b",
    "*",
    "'\"<>\\",
    "..",
    "/",
]


@pytest.mark.parametrize("by_query", [False, True], ids=["path", "query"])
@pytest.mark.parametrize("name", NAMES)
def test_a_resource_of_any_name_is_held_seen_and_released(shared_bus: LiveBus, name: str, by_query: bool) -> None:
    lock = hold(shared_bus, name)
    assert lock["resource"] == name
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())
    target = f"/locks?resource={encoded}&" if by_query else f"/locks/{encoded}?"
    refresh = json.dumps({"lock_id": lock["lock_id"], "agent_id": "ann"}).encode()
    with Wire(shared_bus.address) as wire:
        found = json.loads(wire.send(request("GET", f"{target}token={lock['fencing_token']}")).answer().body)
        assert (found["resource"], found["valid"]) == (name, True)
        assert [one["lock_id"] for one in found["holders"]] == [lock["lock_id"]]
        assert wire.send(request("PATCH", target.rstrip("?&"), refresh, JSON)).answer().status == 200
        gone = wire.send(request("DELETE", f"{target}agent_id=ann&lock_id={lock['lock_id']}")).answer()
        assert json.loads(gone.body)["released"] is True


@pytest.mark.parametrize("written", ["repo/src", "repo/src/", "repo/./src", "repo//src", "repo/x/../src", "./repo/src"])
def test_a_resource_has_one_name_however_it_is_written(shared_bus: LiveBus, written: str) -> None:
    lock = hold(shared_bus, written)
    assert lock["resource"] == "repo/src"
    assert looked_at(shared_bus, written)["resource"] == "repo/src"
    assert ask(shared_bus.http, "repo/src/", "bob").status_code == 409
    encoded = written.replace("/", "%2F").replace(".", "%2E")
    with Wire(shared_bus.address) as wire:
        gone = wire.send(request("DELETE", f"/locks/{encoded}?agent_id=ann&lock_id={lock['lock_id']}")).answer()
    assert json.loads(gone.body)["resource"] == "repo/src"
    assert looked_at(shared_bus, "repo/src")["holders"] == []


def test_a_slash_at_the_front_is_another_resource(bus: LiveBus) -> None:
    assert {hold(bus, "/repo")["resource"], hold(bus, "repo", "bob")["resource"]} == {"/repo", "repo"}
    assert bus.http.get("/locks//repo").json()["holders"][0]["holder_agent"] == "ann"
    assert bus.http.get("/locks/repo").json()["holders"][0]["holder_agent"] == "bob"


# --- Refresh ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_query", [False, True], ids=["path", "query"])
def test_a_refresh_answers_with_the_time_that_remains(http: httpx.Client, by_query: bool) -> None:
    lock = ask(http, ttl_seconds=10).json()
    target, params = ("/locks", {"resource": "plan.md"}) if by_query else ("/locks/plan.md", {})
    named = {"lock_id": lock["lock_id"], "agent_id": "ann"}
    longer = http.patch(target, params=params, json={**named, "ttl_seconds": 3_600})
    assert (longer.status_code, longer.json()["remaining_seconds"]) == (200, 3_600.0)
    assert (longer.json()["lock_id"], longer.json()["fencing_token"]) == (lock["lock_id"], lock["fencing_token"])
    assert longer.headers["engram-applied-seq"] == "2"
    as_at_first = http.patch(target, params=params, json=named).json()
    assert as_at_first["remaining_seconds"] > 3_000.0, "a lease is never shortened"


def test_a_refresh_of_several_answers_with_each(bus: LiveBus) -> None:
    lock = hold(bus, None, resources=["a", "b"])
    refreshed = bus.http.patch("/locks/b", json={"lock_id": lock["lock_id"], "agent_id": "ann"}).json()
    assert [one["resource"] for one in refreshed["locks"]] == ["a", "b"]


def test_a_lease_that_is_gone_is_lost(bus: LiveBus) -> None:
    lock = hold(bus, ttl_seconds=0.1)
    bus.wait(lambda inner: held(inner) == 0)
    named = {"lock_id": lock["lock_id"], "agent_id": "ann"}
    response = bus.http.patch("/locks/plan.md", json=named)
    assert refused(response) == (409, "LOCK_LOST", None)
    assert response.json()["lock_id"] == lock["lock_id"]
    assert said(bus)[1][:2] == ("lock.expired", "engram")


def test_a_lock_of_another_can_be_neither_refreshed_nor_released(bus: LiveBus) -> None:
    lock = hold(bus)
    named = {"lock_id": lock["lock_id"], "agent_id": "bob"}
    for response in (bus.http.patch("/locks/plan.md", json=named), bus.http.delete("/locks/plan.md", params=named)):
        assert refused(response) == (409, "NOT_HOLDER", "agent_id")
        assert response.json()["holder_agent"] == "ann"


def test_a_lock_on_another_resource_is_not_meant(bus: LiveBus) -> None:
    named = {"lock_id": hold(bus)["lock_id"], "agent_id": "ann"}
    for response in (bus.http.patch("/locks/other", json=named), bus.http.delete("/locks/other", params=named)):
        assert refused(response) == (400, "INVALID_REQUEST", "resource")
    assert bus.call(held) == 1


# --- Release and break -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_query", [False, True], ids=["path", "query"])
def test_a_release_says_whether_it_was_still_held(http: httpx.Client, by_query: bool) -> None:
    lock = ask(http).json()
    named = {"agent_id": "ann", "lock_id": lock["lock_id"]} | ({"resource": "plan.md"} if by_query else {})
    target = "/locks" if by_query else "/locks/plan.md"
    first, again = http.delete(target, params=named), http.delete(target, params=named)
    assert (first.status_code, again.status_code) == (200, 200)
    released = {"resource": "plan.md", "released": True, "lock_ids": [lock["lock_id"]], "applied_seq": 2}
    assert first.json() == released
    assert again.json() == {**released, "released": False, "lock_ids": []}
    assert first.headers["engram-applied-seq"] == again.headers["engram-applied-seq"] == "2"


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"agent_id": "ann"}, "lock_id"),
        ({"lock_id": NOBODYS}, "agent_id"),
        ({"agent_id": "ann", "lock_id": "7"}, "lock_id"),
        ({"agent_id": "ann", "lock_id": NOBODYS.upper().replace("8", "A")}, "lock_id"),
        ({"agent_id": "ann", "lock_id": NOBODYS, "reason": "done"}, "reason"),
        ({"agent_id": "ann", "break": "true"}, "reason"),
        ({"agent_id": "ann", "break": "perhaps", "reason": "x"}, "break"),
        ({"agent_id": "ann", "lock_id": NOBODYS, "colour": "red"}, "colour"),
    ],
    ids=str,
)
def test_a_release_that_is_wrong_is_refused(shared_bus: LiveBus, params: dict[str, str], field: str) -> None:
    for response in (
        shared_bus.http.delete("/locks/plan.md", params=params),
        shared_bus.http.delete("/locks", params={**params, "resource": "plan.md"}),
    ):
        assert refused(response) == (400, "INVALID_REQUEST", field)


def test_who_releases_is_named_in_the_query_or_a_header(shared_bus: LiveBus) -> None:
    response = shared_bus.http.request("DELETE", "/locks/x", json={"agent_id": "ann", "lock_id": "1"})
    assert refused(response) == (400, "INVALID_REQUEST", "agent_id")
    assert response.json()["detail"] == "agent_id is missing: name it in the query, or send the X-Agent-ID header"


def test_without_a_resource_nothing_is_refreshed_or_released(shared_bus: LiveBus) -> None:
    named = {"agent_id": "ann", "lock_id": NOBODYS}
    for response in (shared_bus.http.delete("/locks", params=named), shared_bus.http.patch("/locks", json=named)):
        assert refused(response) == (400, "INVALID_REQUEST", "resource")
    for response in (shared_bus.http.delete("/locks/", params=named), shared_bus.http.get("/locks/")):
        assert refused(response) == (400, "INVALID_REQUEST", "resource")


def test_a_break_takes_it_from_all_who_hold_it_on_the_record(http: httpx.Client, bus: LiveBus) -> None:
    locks = [hold(bus, agent_id=name, mode="shared")["lock_id"] for name in ("ann", "bob")]
    above = hold(bus, "elsewhere", "ann")
    params = {"agent_id": "eve", "break": "true", "reason": "they hang"}
    broken = http.delete("/locks/plan.md", params=params)
    assert (broken.status_code, broken.json()["lock_ids"]) == (200, locks)
    assert said(bus)[-1][:2] == ("lock.broken", "eve")
    assert (said(bus)[-1][2]["agent_id"], said(bus)[-1][2]["reason"]) == ("bob", "they hang")
    assert refused(http.delete("/locks/plan.md", params=params)) == (404, "LOCK_NOT_FOUND", "resource")
    assert looked_at(bus, "elsewhere")["holders"][0]["lock_id"] == above["lock_id"]


def test_a_break_may_name_one_lock(bus: LiveBus) -> None:
    ann, bob = (hold(bus, agent_id=name, mode="shared")["lock_id"] for name in ("ann", "bob"))
    params = {"agent_id": "eve", "break": "true", "reason": "it hangs", "lock_id": ann}
    assert bus.http.delete("/locks/plan.md", params=params).json()["lock_ids"] == [ann]
    assert [one["lock_id"] for one in looked_at(bus)["holders"]] == [bob]
    assert refused(bus.http.delete("/locks/plan.md", params=params))[1] == "LOCK_NOT_FOUND"


# --- Look ------------------------------------------------------------------------------------------------------------


def test_a_free_resource_has_nobody(bus: LiveBus) -> None:
    response = bus.http.get("/locks/nobody/has/it")
    expected = {"resource": "nobody/has/it", "holders": [], "holder_count": 0, "queue_length": 0, "queue": []}
    assert response.status_code == 200
    assert expected.items() <= response.json().items()


def test_who_looks_sees_holders_above_it_and_who_waits(http: httpx.Client, bus: LiveBus) -> None:
    lock = hold(bus, "repo")
    with (
        wait_in_line(bus, "bob", "repo/src", reason="mine next"),
        wait_in_line(bus, "cid", "repo/src", mode="shared"),
    ):
        found = http.get("/locks/repo/src").json()
    assert [(one["resource"], one["lock_id"]) for one in found["holders"]] == [("repo", lock["lock_id"])]
    assert found["queue_length"] == 2
    assert [(one["agent_id"], one["mode"]) for one in found["queue"]] == [("bob", "exclusive"), ("cid", "shared")]
    assert (found["queue"][0]["resources"], found["queue"][0]["reason"]) == (["repo/src"], "mine next")
    assert found["queue"][0]["deadline"] > found["queue"][0]["queued_at"]


def test_a_token_is_valid_for_what_its_lock_covers_while_it_is_held(bus: LiveBus) -> None:
    lock = hold(bus, "repo/src")
    token = lock["fencing_token"]
    assert "valid" not in looked_at(bus, "repo/src")
    assert looked_at(bus, "repo/src", token=token)["valid"] is True
    assert looked_at(bus, "repo/src/a.py", token=token)["valid"] is True
    assert looked_at(bus, "repo", token=token)["valid"] is False
    assert looked_at(bus, "repo/src", token=token + 1)["valid"] is False
    bus.http.delete("/locks/repo/src", params={"agent_id": "ann", "lock_id": lock["lock_id"]})
    assert looked_at(bus, "repo/src", token=token)["valid"] is False


def test_a_token_of_a_lease_that_ran_out_is_not_valid(bus: LiveBus) -> None:
    token = hold(bus, ttl_seconds=0.1)["fencing_token"]
    bus.wait(lambda inner: not inner.is_fence_valid("plan.md", token))
    assert looked_at(bus, token=token)["valid"] is False


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"token": "0"}, "token"),
        ({"token": "-1"}, "token"),
        ({"token": "x"}, "token"),
        ({"token": str(2**63)}, "token"),
        ({"colour": "red"}, "colour"),
        ({"min_seq": "-1"}, "min_seq"),
    ],
    ids=str,
)
def test_a_look_that_is_wrong_is_refused(shared_bus: LiveBus, params: dict[str, str], field: str) -> None:
    assert refused(shared_bus.http.get("/locks/plan.md", params=params)) == (400, "INVALID_REQUEST", field)
    by_query = shared_bus.http.get("/locks", params={**params, "resource": "plan.md"})
    assert refused(by_query) == (400, "INVALID_REQUEST", field)


def test_a_read_waits_for_min_seq(bus: LiveBus) -> None:
    for target in ("/locks", "/locks/plan.md"):
        late = bus.http.get(target, params={"min_seq": 1_000, "timeout_ms": 0})
        assert refused(late) == (503, "MIN_SEQ_TIMEOUT", "min_seq")
    with ThreadPoolExecutor() as pool:
        head = bus.call(lambda inner: inner.head)
        read = pool.submit(bus.http.get, "/locks/plan.md", params={"min_seq": head + 1, "timeout_ms": 10_000})
        bus.wait(lambda inner: bool(inner._waiting))
        lock = hold(bus)
        assert read.result().json()["holders"][0]["lock_id"] == lock["lock_id"]


# --- List ------------------------------------------------------------------------------------------------------------


def pages(bus: LiveBus, **params: Any) -> Iterator[list[dict[str, Any]]]:
    found = bus.http.get("/locks", params=params).json()
    yield found["locks"]
    while found["next_page"] is not None:
        found = bus.http.get("/locks", params={**params, "page": found["next_page"]}).json()
        yield found["locks"]


def test_the_list_is_whole_whatever_the_page(bus: LiveBus) -> None:
    for number in range(7):
        hold(bus, f"repo/{number}", "ann")
    for name in ("ann", "bob", "cid"):
        hold(bus, "shared", name, mode="shared")
    hold(bus, None, "bob", resources=["z", "a", "m"])
    names = ["a", "m", *(f"repo/{number}" for number in range(7)), "shared", "shared", "shared", "z"]
    for limit in (1, 2, 3, 12, 13, 14):
        listed = [lock for page in pages(bus, limit=limit) for lock in page]
        assert [lock["resource"] for lock in listed] == names
        assert [lock["holder_agent"] for lock in listed if lock["resource"] == "shared"] == ["ann", "bob", "cid"]
        assert len({lock["lock_id"] for lock in listed if lock["resource"] in "amz"}) == 1


def test_the_list_narrows_by_holder_and_prefix(bus: LiveBus) -> None:
    hold(bus, None, "ann", resources=["repo/a", "repo/b", "docs"])
    hold(bus, "repo/c", "bob")
    hold(bus, "repository", "bob")

    def names(**params: Any) -> list[str]:
        return [lock["resource"] for page in pages(bus, limit=1, **params) for lock in page]

    assert names(holder="ann") == ["docs", "repo/a", "repo/b"]
    assert names(prefix="repo/") == ["repo/a", "repo/b", "repo/c"]
    assert names(prefix="repo/", holder="ann") == ["repo/a", "repo/b"]
    assert names(prefix="repo") == ["repo/a", "repo/b", "repo/c", "repository"]
    assert names(prefix="x") == names(holder="eve") == []


def test_pages_go_on_where_they_were_whatever_changes_meanwhile(bus: LiveBus) -> None:
    locks = {name: hold(bus, name)["lock_id"] for name in "bdfh"}
    turning = pages(bus, limit=2)
    assert [lock["resource"] for lock in next(turning)] == ["b", "d"]
    hold(bus, "a")
    hold(bus, "e")
    for gone in "df":
        bus.http.delete(f"/locks/{gone}", params={"agent_id": "ann", "lock_id": locks[gone]})
    assert [lock["resource"] for page in turning for lock in page] == ["e", "h"]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"page": "x"}, "page"),
        ({"page": "1."}, "page"),
        ({"page": "-1.a"}, "page"),
        ({"page": "٣.a"}, "page"),
        ({"page": "9" * 20 + ".a"}, "page"),
        ({"page": "1.a\n"}, "page"),
        ({"prefix": "a\x00"}, "prefix"),
        ({"holder": ""}, "holder"),
        ({"token": "1"}, "resource"),
        ({"colour": "red"}, "colour"),
    ],
    ids=str,
)
def test_a_list_that_is_wrong_is_refused(shared_bus: LiveBus, params: dict[str, str], field: str) -> None:
    assert refused(shared_bus.http.get("/locks", params=params)) == (400, "INVALID_REQUEST", field)


# --- What is wrong or too large --------------------------------------------------------------------------------------

BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"colour": "red"}, "colour"),
    "a key": ({"idempotency_key": "k"}, "idempotency_key"),
    "a session": ({"session": True}, "session"),
    "no resource": ({"resource": None}, "resource"),
    "a resource and several": ({"resources": ["b"]}, "resource"),
    "no resources": ({"resource": None, "resources": []}, "resource"),
    "an empty resource": ({"resource": ""}, "resource"),
    "one of several is empty": ({"resource": None, "resources": ["a", ""]}, "resources[1]"),
    "a resource that is a number": ({"resource": 7}, "resource"),
    "a control character": ({"resource": "a\nb"}, "resource"),
    "a control character of Latin-1": ({"resource": "a\x85b"}, "resource"),
    "an empty agent": ({"agent_id": ""}, "agent_id"),
    "no agent": ({"agent_id": None}, "agent_id"),
    "an agent with a control character": ({"agent_id": "a\x00"}, "agent_id"),
    "an empty context": ({"context_id": ""}, "context_id"),
    "a mode that is none": ({"mode": "SHARED"}, "mode"),
    "a mode that is a number": ({"mode": 1}, "mode"),
    "no time": ({"ttl_seconds": 0}, "ttl_seconds"),
    "too short a time": ({"ttl_seconds": 0.09}, "ttl_seconds"),
    "a time below zero": ({"ttl_seconds": -30}, "ttl_seconds"),
    "too long a time": ({"ttl_seconds": 86_401}, "ttl_seconds"),
    "a huge time": ({"ttl_seconds": 1e308}, "ttl_seconds"),
    "a huge whole time": ({"ttl_seconds": 10**400}, "ttl_seconds"),
    "a time that is a text": ({"ttl_seconds": "30"}, "ttl_seconds"),
    "a time that is true": ({"ttl_seconds": True}, "ttl_seconds"),
    "a wait below zero": ({"wait_seconds": -1}, "wait_seconds"),
    "too long a wait": ({"wait_seconds": 3_601}, "wait_seconds"),
    "a huge wait": ({"wait_seconds": 1e308}, "wait_seconds"),
    "a reason of two lines": ({"reason": "a\nb"}, "reason"),
}
TOO_LARGE: dict[str, tuple[dict[str, Any], str, int]] = {
    "resource": ({"resource": "r" * (RESOURCE_BYTES_MAX + 1)}, "resource", RESOURCE_BYTES_MAX),
    "resource in bytes": ({"resource": "ü" * (RESOURCE_BYTES_MAX // 2 + 1)}, "resource", RESOURCE_BYTES_MAX),
    "segments": ({"resource": "a/" * LOCK_DEPTH_MAX + "a"}, "resource", LOCK_DEPTH_MAX),
    "resources": (
        {"resource": None, "resources": [str(number) for number in range(LOCK_RESOURCES_MAX + 1)]},
        "resources",
        LOCK_RESOURCES_MAX,
    ),
    "one of several": ({"resource": None, "resources": ["a", "r" * 1_025]}, "resources[1]", RESOURCE_BYTES_MAX),
    "agent": ({"agent_id": "a" * (NAME_BYTES_MAX + 1)}, "agent_id", NAME_BYTES_MAX),
    "context": ({"context_id": "c" * (NAME_BYTES_MAX + 1)}, "context_id", NAME_BYTES_MAX),
    "reason": ({"reason": "r" * (LOCK_REASON_BYTES_MAX + 1)}, "reason", LOCK_REASON_BYTES_MAX),
}


@pytest.mark.parametrize(("fields", "field"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_field_that_is_wrong_is_named(shared_bus: LiveBus, fields: dict[str, Any], field: str) -> None:
    asked = {"resource": "a", "agent_id": "ann"} | fields
    response = shared_bus.http.post("/locks", json={name: value for name, value in asked.items() if value is not None})
    assert refused(response) == (400, "INVALID_REQUEST", field)
    assert shared_bus.call(held) == 0


@pytest.mark.parametrize(("fields", "field", "limit"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_is_too_large_is_named_with_its_limit(
    shared_bus: LiveBus, fields: dict[str, Any], field: str, limit: int
) -> None:
    asked = {"resource": "a", "agent_id": "ann"} | fields
    response = shared_bus.http.post("/locks", json={name: value for name, value in asked.items() if value is not None})
    assert refused(response) == (413, "TOO_LARGE", field)
    assert response.json()["limit"] == limit


def test_what_is_as_large_as_it_may_be_is_held(bus: LiveBus) -> None:
    many = [f"{number:02}/" + "ü" * 508 + "/" + "a" * 4 for number in range(LOCK_RESOURCES_MAX)]
    assert {len(name.encode()) for name in many} == {RESOURCE_BYTES_MAX}
    lock = hold(bus, None, "a" * NAME_BYTES_MAX, resources=many, reason="r" * LOCK_REASON_BYTES_MAX)
    assert [one["resource"] for one in lock["locks"]] == many
    hold(bus, "/".join("abcdefgh" * 8), ttl_seconds=86_400, wait_seconds=3_600)
    listed = [one["resource"] for page in pages(bus, limit=7) for one in page]
    assert listed == sorted([*many, "/".join("abcdefgh" * 8)])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "1e309", "0x1", "--1"])
@pytest.mark.parametrize("field", ["ttl_seconds", "wait_seconds"])
def test_a_number_that_is_none_is_refused(shared_bus: LiveBus, field: str, number: str) -> None:
    body = f'{{"resource":"a","agent_id":"ann","{field}":{number}}}'
    assert refused(shared_bus.http.post("/locks", content=body))[:2] == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'{"resource":"\xff","agent_id":"ann"}', None),
        (b'{"resource":"a\\ud800","agent_id":"ann"}', None),
        (b'{"resource":"a"}', "agent_id"),
        (b'{"agent_id":"ann"}', "resource"),
        (b'{"resources":"a","agent_id":"ann"}', "resources"),
        (b'{"resources":[1],"agent_id":"ann"}', "resources[0]"),
    ],
)
def test_a_body_that_asks_for_no_lock_is_refused(shared_bus: LiveBus, body: bytes, field: str | None) -> None:
    assert refused(shared_bus.http.post("/locks", content=body)) == (400, "INVALID_REQUEST", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "lock_id"),
        ({"lock_id": "7"}, "lock_id"),
        ({"lock_id": NOBODYS, "colour": "red"}, "colour"),
        ({"lock_id": NOBODYS, "ttl_seconds": 0}, "ttl_seconds"),
        ({"lock_id": NOBODYS, "ttl_seconds": 1e308}, "ttl_seconds"),
        ({"lock_id": NOBODYS, "ttl_seconds": -1e308}, "ttl_seconds"),
        ({"lock_id": NOBODYS, "agent_id": ""}, "agent_id"),
    ],
    ids=str,
)
def test_a_refresh_that_is_wrong_is_refused(shared_bus: LiveBus, fields: dict[str, Any], field: str) -> None:
    response = shared_bus.http.patch("/locks/plan.md", json={"agent_id": "ann", **fields})
    assert refused(response) == (400, "INVALID_REQUEST", field)


def test_a_key_is_not_needed_and_so_refused(shared_bus: LiveBus) -> None:
    asked = {"resource": "a", "agent_id": "ann"}
    response = shared_bus.http.post("/locks", json=asked, headers={"idempotency-key": "k"})
    assert refused(response) == (400, "INVALID_REQUEST", "Idempotency-Key")


def test_a_body_too_large_or_of_another_type_is_refused(shared_bus: LiveBus) -> None:
    large = b'{"resource":"a","agent_id":"ann","reason":"' + b"x" * LOCK_REQUEST_BYTES_MAX + b'"}'
    for method, target in (("POST", "/locks"), ("PATCH", "/locks/a")):
        assert refused(shared_bus.http.request(method, target, content=large)) == (413, "TOO_LARGE", None)
        typed = shared_bus.http.request(method, target, content=b"{}", headers={"content-type": "text/plain"})
        assert refused(typed) == (415, "UNSUPPORTED_MEDIA_TYPE", None)


def test_every_answer_says_what_it_reflects(bus: LiveBus) -> None:
    lock = hold(bus)
    named = {"lock_id": lock["lock_id"], "agent_id": "ann"}
    breaking = {"agent_id": "ann", "break": "true", "reason": "x"}
    asking: Sequence[Callable[[], httpx.Response]] = (
        lambda: ask(bus.http),
        lambda: ask(bus.http, agent_id="bob"),
        lambda: ask(bus.http, ""),
        lambda: bus.http.patch("/locks/plan.md", json=named),
        lambda: bus.http.patch("/locks/plan.md", json={**named, "agent_id": "bob"}),
        lambda: bus.http.get("/locks"),
        lambda: bus.http.get("/locks/plan.md"),
        lambda: bus.http.head("/locks/plan.md"),
        lambda: bus.http.delete("/locks/plan.md", params=named),
        lambda: bus.http.delete("/locks/plan.md", params=breaking),
    )
    for asked in asking:
        response = asked()
        assert response.headers["engram-applied-seq"] == str(bus.call(lambda inner: inner.head))
        assert response.headers["engram-durability"] == "memory"


# --- Waiting ---------------------------------------------------------------------------------------------------------


def test_who_waits_is_handed_the_lock_in_turn(bus: LiveBus) -> None:
    lock = hold(bus)
    with wait_in_line(bus, "bob", ttl_seconds=60) as bob, wait_in_line(bus, "cid") as cid:
        bus.http.delete("/locks/plan.md", params={"agent_id": "ann", "lock_id": lock["lock_id"]})
        answer = bob.answer()
        granted = json.loads(answer.body)
        assert (answer.status, granted["holder_agent"], granted["remaining_seconds"]) == (201, "bob", 60.0)
        assert int(answer.headers["engram-applied-seq"]) == granted["fencing_token"] > lock["fencing_token"]
        bus.http.delete("/locks/plan.md", params={"agent_id": "bob", "lock_id": granted["lock_id"]})
        assert json.loads(cid.answer().body)["holder_agent"] == "cid"


def test_who_waits_is_handed_what_ran_out_or_was_broken(bus: LiveBus) -> None:
    hold(bus, ttl_seconds=0.2)
    with wait_in_line(bus, "bob") as bob:
        assert bob.answer().status == 201
        with wait_in_line(bus, "cid") as cid:
            bus.http.delete("/locks/plan.md", params={"agent_id": "eve", "break": True, "reason": "x"})
            assert cid.answer().status == 201
    assert [kind for kind, _, _ in said(bus)] == [
        *("lock.granted", "lock.queued", "lock.expired", "lock.granted"),
        *("lock.queued", "lock.broken", "lock.granted"),
    ]


def test_a_wait_that_runs_out_says_who_holds_it(bus: LiveBus) -> None:
    hold(bus)
    response = ask(bus.http, agent_id="bob", wait_seconds=0.05)
    assert refused(response) == (409, "LOCK_HELD", "resource")
    assert response.json()["holder_agent"] == "ann"
    assert said(bus)[-1][2]["why"] == "DEADLINE"
    assert looked_at(bus)["queue_length"] == 0


def test_a_shared_lock_does_not_overtake_one_who_waits(bus: LiveBus) -> None:
    hold(bus, mode="shared")
    with wait_in_line(bus, "bob"):
        response = ask(bus.http, agent_id="cid", mode="shared")
        assert refused(response)[1] == "LOCK_HELD"
        assert (response.json()["holder_agent"], response.json()["waits"]) == ("bob", True)


def test_a_wait_that_would_never_end_is_refused_and_names_the_circle(bus: LiveBus) -> None:
    hold(bus, "a", "ann")
    hold(bus, "b", "bob")
    with wait_in_line(bus, "ann", "b"):
        response = ask(bus.http, "a", "bob", wait_seconds=60)
        assert refused(response) == (409, "DEADLOCK", None)
        assert response.json()["cycle"] == [
            {"agent_id": "bob", "waits_for": "ann", "resource": "a"},
            {"agent_id": "ann", "waits_for": "bob", "resource": "b"},
        ]


def test_who_leaves_while_it_waits_leaves_the_line(bus: LiveBus) -> None:
    hold(bus)
    with wait_in_line(bus, "bob") as bob, wait_in_line(bus, "cid"):
        bob.leave()
    bus.wait(lambda inner: waiting(inner) == 0)
    assert looked_at(bus)["queue_length"] == 0
    ended = [(agent, change["agent_id"], change["why"]) for kind, agent, change in said(bus) if kind.endswith("ended")]
    assert sorted(ended) == [("engram", "bob", "CANCELLED"), ("engram", "cid", "CANCELLED")]


def test_who_leaves_in_the_moment_of_its_grant_does_not_keep_it(bus: LiveBus) -> None:
    lock = hold(bus)
    with wait_in_line(bus, "bob", ttl_seconds=3_600) as bob:

        def leave_as_it_is_released(inner: Bus) -> None:
            bob.leave()
            bob.__exit__()
            inner.submit(ReleaseLock(lock_id=lock["lock_id"], agent_id="ann"), lambda answer: None)

        bus.call(leave_as_it_is_released)
    bus.wait(lambda inner: held(inner) == 0 and inner.head >= 4)
    kinds = [(kind, change["agent_id"]) for kind, _, change in said(bus)]
    assert kinds[2:] == [("lock.released", "ann"), ("lock.granted", "bob"), ("lock.released", "bob")]


def test_who_leaves_before_the_decision_is_granted_nothing(bus: LiveBus) -> None:
    # As if the turn of the loop that commits were long in coming.
    bus.call(lambda inner: setattr(inner.writer, "_turn_due", True))
    with Wire(bus.address) as bob:
        bob.send(request("POST", "/locks", json.dumps({"resource": "plan.md", "agent_id": "bob"}).encode()))
        bus.wait(lambda inner: inner.writer.queue_commands == 1)
        bob.leave()
    bus.wait(lambda inner: inner.writer._queue[0].is_cancelled)
    bus.call(lambda inner: inner.writer._turn())
    assert bus.call(lambda inner: (held(inner), inner.head)) == (0, 0)


def test_a_request_behind_one_that_waits_is_answered_after_it(bus: LiveBus) -> None:
    lock = hold(bus)
    with wait_in_line(bus, "bob") as bob:
        bob.send(request("GET", "/locks/plan.md"))
        bus.http.delete("/locks/plan.md", params={"agent_id": "ann", "lock_id": lock["lock_id"]})
        granted = json.loads(bob.answer().body)
        assert json.loads(bob.answer().body)["holders"][0]["lock_id"] == granted["lock_id"]


def test_a_bus_that_stops_tells_who_waits_to_come_back(bus: LiveBus) -> None:
    hold(bus, ttl_seconds=3_600)
    with wait_in_line(bus, "bob") as bob:
        bus.stop()
        answer = bob.answer()
        assert (answer.status, answer.problem["code"], answer.problem["retryable"]) == (503, "SHUTTING_DOWN", True)
        assert int(answer.headers["retry-after"]) >= 1
    bus.start()
    assert looked_at(bus)["holders"][0]["holder_agent"] == "ann"
    bus.wait(lambda inner: waiting(inner) == 0)
    assert said(bus)[-1][2]["why"] == "RESTARTED"


# --- Fences ----------------------------------------------------------------------------------------------------------


def fenced(resource: str, token: int, **fields: Any) -> dict[str, Any]:
    return {**UNIT, "fence": {"resource": resource, "token": token}, **fields}


def test_a_fenced_append_is_recorded_while_the_lock_is_held(bus: LiveBus) -> None:
    lock = hold(bus, "repo/src")
    for resource in ("repo/src", "repo/src/", "repo/src/a.py"):
        assert bus.http.post("/workunit", json=fenced(resource, lock["fencing_token"])).status_code == 201
    head = bus.call(lambda inner: inner.head)
    bus.http.delete("/locks/repo/src", params={"agent_id": "ann", "lock_id": lock["lock_id"]})
    response = bus.http.post("/workunit", json=fenced("repo/src", lock["fencing_token"]))
    assert refused(response) == (412, "FENCE_STALE", "fence")
    assert response.json()["token"] == lock["fencing_token"]
    assert bus.call(lambda inner: inner.head) == head + 1


def test_a_fence_is_stale_for_another_agent_another_resource_and_another_token(bus: LiveBus) -> None:
    token = hold(bus, "repo/src")["fencing_token"]
    for unit in (
        fenced("repo/src", token, agent_id="bob"),
        fenced("repo", token),
        fenced("repo/src", token + 1),
    ):
        assert refused(bus.http.post("/workunit", json=unit)) == (412, "FENCE_STALE", "fence")


def test_a_fence_is_stale_once_its_lease_ran_out_and_another_holds_it(bus: LiveBus) -> None:
    old = hold(bus, ttl_seconds=0.1)
    new = ask(bus.http, agent_id="bob", wait_seconds=10).json()
    assert new["fencing_token"] > old["fencing_token"]
    assert refused(bus.http.post("/workunit", json=fenced("plan.md", old["fencing_token"])))[1] == "FENCE_STALE"
    assert bus.http.post("/workunit", json=fenced("plan.md", new["fencing_token"], agent_id="bob")).status_code == 201


@pytest.mark.parametrize(
    ("fence", "field"),
    [
        ({"resource": "a"}, "fence.token"),
        ({"token": 1}, "fence.resource"),
        ({"resource": "", "token": 1}, "fence.resource"),
        ({"resource": "a", "token": 0}, "fence.token"),
        ({"resource": "a", "token": -1}, "fence.token"),
        ({"resource": "a", "token": "1"}, "fence.token"),
        ({"resource": "a", "token": 2**64}, "fence.token"),
        ({"resource": "a", "token": 1.5}, "fence.token"),
        ("a", "fence"),
    ],
    ids=str,
)
def test_a_fence_that_is_none_is_refused(shared_bus: LiveBus, fence: Any, field: str) -> None:
    assert refused(shared_bus.http.post("/workunit", json=UNIT | {"fence": fence})) == (400, "INVALID_REQUEST", field)


def test_of_a_bulk_only_the_unit_with_a_stale_fence_is_refused(bus: LiveBus) -> None:
    token = hold(bus)["fencing_token"]
    units = [UNIT, fenced("plan.md", token), fenced("plan.md", token + 7), UNIT]
    response = bus.http.post("/workunits", json=units)
    assert response.status_code == 207
    results = response.json()["results"]
    assert [next(iter(result)) for result in results] == ["work_unit", "work_unit", "error", "work_unit"]
    error = results[2]["error"]
    assert (error["status"], error["code"], error["index"]) == (412, "FENCE_STALE", 2)


def test_an_atomic_batch_with_a_stale_fence_is_refused_whole(bus: LiveBus) -> None:
    token = hold(bus)["fencing_token"]
    units = [fenced("plan.md", token), fenced("plan.md", token + 7)]
    response = bus.http.post("/workunits", params={"atomic": True}, json=units)
    assert refused(response) == (412, "FENCE_STALE", "fence")
    assert response.json()["index"] == 1
    assert bus.http.get("/workunits/plan").json()["work_units"] == []
    whole = bus.http.post("/workunits", params={"atomic": True}, json=[units[0], units[0]])
    assert whole.status_code == 201


def test_a_context_may_ask_for_a_lock_on_what_its_units_touch(bus: LiveBus) -> None:
    bus.http.patch("/contexts/plan", json={"fences": ["repo/*.py", "docs/*"]})
    touching = UNIT | {"resources": ["other", "repo/src/a.py"]}

    def write(**fields: Any) -> httpx.Response:
        return bus.http.post("/workunit", json=touching | fields)

    assert refused(write()) == (412, "FENCE_REQUIRED", "resources[1]")
    assert write().json()["resource"] == "repo/src/a.py"
    assert bus.http.post("/workunit", json=UNIT | {"resources": ["other"]}).status_code == 201
    assert write(context_id="elsewhere").status_code == 201
    shared = hold(bus, "repo/src/a.py", mode="shared")
    assert refused(write())[1] == "FENCE_REQUIRED"
    bus.http.delete("/locks/repo/src/a.py", params={"agent_id": "ann", "lock_id": shared["lock_id"]})
    above = hold(bus, "repo")
    assert write().status_code == 201
    assert refused(write(agent_id="bob"))[1] == "FENCE_REQUIRED"
    bus.http.delete("/locks/repo", params={"agent_id": "ann", "lock_id": above["lock_id"]})
    assert refused(write())[1] == "FENCE_REQUIRED"


def test_a_resource_written_another_way_does_not_slip_by_a_fence(bus: LiveBus) -> None:
    bus.http.patch("/contexts/plan", json={"fences": ["repo/src/*"]})
    for name in ("repo//src/a.py", "repo/./src/a.py", "./repo/src/a.py", "repo/x/../src/a.py", "repo/src/a.py/"):
        response = bus.http.post("/workunit", json=UNIT | {"resources": [name]})
        assert refused(response) == (412, "FENCE_REQUIRED", "resources[0]"), name


def test_a_repeat_is_answered_as_at_first_though_its_lock_is_gone(bus: LiveBus) -> None:
    lock = hold(bus)
    unit = fenced("plan.md", lock["fencing_token"], idempotency_key="once")
    first = bus.http.post("/workunit", json=unit)
    batch = [fenced("plan.md", lock["fencing_token"])] * 2
    keyed = {"params": {"atomic": True}, "json": batch, "headers": {"idempotency-key": "both"}}
    both = bus.http.post("/workunits", **keyed)  # type: ignore[arg-type]
    bus.http.delete("/locks/plan.md", params={"agent_id": "ann", "lock_id": lock["lock_id"]})
    again, both_again = bus.http.post("/workunit", json=unit), bus.http.post("/workunits", **keyed)  # type: ignore[arg-type]
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == both_again.headers["idempotency-replayed"] == "true"
    assert both_again.json()["results"] == both.json()["results"]
    assert refused(bus.http.post("/workunit", json=unit | {"idempotency_key": "new"}))[1] == "FENCE_STALE"
