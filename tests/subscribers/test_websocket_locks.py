"""Locks over a WebSocket: waits that hold up nobody, answers by id, and locks that end with their connection."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engram_bus.embedded import Bus
from engram_bus.errors import SlowConsumer
from engram_bus.limits import LOCK_WAITS_PER_AGENT_MAX
from engram_bus.log.memory import MemoryLog
from engram_bus.subscribers.websocket import JSON_PROTOCOL, Connection
from engram_bus.units import AcquireLock
from tests.live import LiveBus
from tests.subscribers.streams import (
    Ended,
    Refused,
    Transport,
    WebSocketStream,
    units,
    websocket_json,
    websocket_msgpack,
)

SECONDS_LONG = 3_600.0
NOBODYS = "00000000-0000-7000-8000-000000000000"


@pytest.fixture(params=[websocket_json, websocket_msgpack], ids=["json", "msgpack"])
def opened(request: pytest.FixtureRequest) -> Transport:
    chosen: Transport = request.param
    return chosen


@pytest.fixture
def socket(opened: Transport, bus: LiveBus) -> Iterator[WebSocketStream]:
    with opened(bus, [("agent_id", "ann")]) as stream:
        stream.hear()
        yield stream


def acquire(socket: WebSocketStream, id: Any, resource: str = "plan.md", **fields: Any) -> None:
    socket.say("lock.acquire", id=id, resource=resource, **fields)


def hold(socket: WebSocketStream, resource: str = "plan.md", **fields: Any) -> dict[str, Any]:
    """The lock, which is free."""
    acquire(socket, "hold", resource, **fields)
    heard = socket.hear()
    assert (heard.event, heard.fields["id"]) == ("locked", "hold")
    return heard.fields


def refusal(socket: WebSocketStream) -> dict[str, Any]:
    with pytest.raises(Refused) as refused:
        socket.hear()
    return refused.value.fields


def held_by(bus: LiveBus, agent_id: str = "ann", resource: str = "plan.md", **fields: Any) -> dict[str, Any]:
    """A lock of another agent, over HTTP."""
    response = bus.http.post("/locks", json={"resource": resource, "agent_id": agent_id, **fields})
    assert response.status_code in (200, 201), response.text
    lock: dict[str, Any] = response.json()
    return lock


def release(bus: LiveBus, lock: dict[str, Any]) -> None:
    params = {"agent_id": lock["holder_agent"], "lock_id": lock["lock_id"]}
    assert bus.http.delete("/locks", params={**params, "resource": lock["resource"]}).json()["released"]


def waiting(inner: Bus) -> int:
    return inner.writer.state.locks.waiting_count


def held(inner: Bus) -> int:
    return inner.writer.state.locks.held_count


def said(bus: LiveBus) -> list[dict[str, Any]]:
    """The lock units of the log, each its payload and its kind."""
    page = bus.http.get("/workunits/locks", params={"limit": 1_000}).json()
    return [{**unit["payload"], "kind": unit["kind"]} for unit in page["work_units"]]


# --- One after another -----------------------------------------------------------------------------------------------


def test_a_lock_is_granted_extended_refreshed_and_released(socket: WebSocketStream, bus: LiveBus) -> None:
    acquire(socket, 1, ttl_seconds=10, reason="editing")
    locked = socket.hear().fields
    (lock,) = bus.http.get("/locks").json()["locks"]
    (shown,) = locked.pop("locks")
    assert {**shown, "remaining_seconds": 0} == {**lock, "remaining_seconds": 0}
    assert locked == {
        "event": "locked",
        "id": 1,
        "lock_id": lock["lock_id"],
        "fencing_token": 1,
        "expires_at": lock["expires_at"],
        "remaining_seconds": 10.0,
        "extended": False,
    }
    acquire(socket, "again", ttl_seconds=20)
    again = socket.hear().fields
    assert (again["id"], again["extended"], again["lock_id"]) == ("again", True, lock["lock_id"])
    assert (again["fencing_token"], again["remaining_seconds"]) == (1, 20.0)
    socket.say("lock.refresh", id=3, lock_id=lock["lock_id"], ttl_seconds=SECONDS_LONG)
    refreshed = socket.hear().fields
    assert (refreshed["event"], refreshed["id"], refreshed["extended"]) == ("locked", 3, True)
    assert refreshed["remaining_seconds"] == SECONDS_LONG
    for number, was_held in ((4, True), (5, False)):
        socket.say("lock.release", id=number, lock_id=lock["lock_id"])
        expected = {"event": "released", "id": number, "lock_id": lock["lock_id"], "released": was_held}
        assert socket.hear().fields == expected


def test_several_resources_are_one_lock(socket: WebSocketStream) -> None:
    socket.say("lock.acquire", id=1, resources=["b", "a"], mode="shared")
    locked = socket.hear().fields
    assert [one["resource"] for one in locked["locks"]] == ["a", "b"]
    assert {one["lock_id"] for one in locked["locks"]} == {locked["lock_id"]}


def test_who_acts_is_the_agent_of_the_socket_unless_the_operation_says(socket: WebSocketStream) -> None:
    assert hold(socket, "a")["locks"][0]["holder_agent"] == "ann"
    lock = hold(socket, "b", agent_id="bob")
    assert lock["locks"][0]["holder_agent"] == "bob"
    socket.say("lock.refresh", id=1, lock_id=lock["lock_id"])
    assert refusal(socket)["code"] == "NOT_HOLDER"
    socket.say("lock.release", id=2, lock_id=lock["lock_id"])
    assert (told := refusal(socket))["code"] == "NOT_HOLDER"
    assert (told["id"], told["holder_agent"]) == (2, "bob")
    socket.say("lock.release", id=3, lock_id=lock["lock_id"], agent_id="bob")
    assert socket.hear().fields["released"] is True


def test_a_refusal_is_a_frame_that_says_what_a_problem_would(socket: WebSocketStream, bus: LiveBus) -> None:
    held_by(bus, "bob", reason="editing")
    acquire(socket, 7)
    frame = refusal(socket)
    problem = bus.http.post("/locks", json={"resource": "plan.md", "agent_id": "ann"}).json()
    assert (frame["id"], frame["code"], frame["retryable"]) == (7, "LOCK_HELD", False)
    for name in ("holder_agent", "since", "until", "reason", "queue_length", "waits", "resource", "field"):
        assert frame[name] == problem[name]


@pytest.mark.parametrize(
    ("op", "fields", "code", "field"),
    [
        ("lock.acquire", {}, "INVALID_REQUEST", "resource"),
        ("lock.acquire", {"resource": "a", "wait_seconds": -1}, "INVALID_REQUEST", "wait_seconds"),
        ("lock.acquire", {"resource": "a", "ttl_seconds": 1e308}, "INVALID_REQUEST", "ttl_seconds"),
        ("lock.acquire", {"resource": "a", "wait_seconds": 1e308}, "INVALID_REQUEST", "wait_seconds"),
        ("lock.acquire", {"resource": "r" * 1_025}, "TOO_LARGE", "resource"),
        ("lock.acquire", {"resources": list("ab") * 33}, "TOO_LARGE", "resources"),
        ("lock.refresh", {"lock_id": NOBODYS}, "LOCK_LOST", None),
        ("lock.refresh", {"lock_id": NOBODYS, "ttl_seconds": -1e308}, "INVALID_REQUEST", "ttl_seconds"),
        ("lock.release", {"lock_id": ""}, "INVALID_REQUEST", "lock_id"),
    ],
)
def test_what_is_wrong_is_refused_and_the_socket_stays(
    socket: WebSocketStream, op: str, fields: dict[str, Any], code: str, field: str | None
) -> None:
    socket.say(op, id="x", **fields)
    refused = refusal(socket)
    assert (refused["id"], refused["code"], refused.get("field")) == ("x", code, field)
    hold(socket)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["ttl_seconds", "wait_seconds"])
def test_a_number_that_only_messagepack_can_write_is_refused(bus: LiveBus, field: str, number: float) -> None:
    with websocket_msgpack(bus, [("agent_id", "ann")]) as socket:
        socket.hear()
        socket.say("lock.acquire", id=1, resource="plan.md", **{field: number})
        assert (refused := refusal(socket))["code"] == "INVALID_REQUEST"
        assert refused["field"] == field


# --- Waiting ---------------------------------------------------------------------------------------------------------


def test_a_wait_holds_up_nothing_else_of_its_socket(socket: WebSocketStream, bus: LiveBus) -> None:
    lock = held_by(bus, "bob")
    acquire(socket, "waits", wait_seconds=60)
    acquire(socket, "not", "other")
    socket.say("append", id="unit", unit={"context_id": "plan", "payload": "meanwhile"})
    socket.say("subscribe", id="sub", context="elsewhere")
    socket.say("ping", id="ping")
    heard = {socket.hear().fields["id"] for _ in range(4)}
    assert heard == {"not", "unit", "sub", "ping"}
    release(bus, lock)
    granted = socket.hear().fields
    assert (granted["event"], granted["id"], granted["extended"]) == ("locked", "waits", False)


def test_many_waits_of_one_socket_are_each_answered_by_its_id(socket: WebSocketStream, bus: LiveBus) -> None:
    names = [f"r{number}" for number in range(50)]
    locks = {name: held_by(bus, "bob", name) for name in names}
    for name in names:
        acquire(socket, name, name, wait_seconds=60)
    bus.wait(lambda inner: waiting(inner) == len(names))
    for name in reversed(names):
        release(bus, locks[name])
        answer = socket.hear().fields
        assert (answer["id"], answer["locks"][0]["resource"]) == (name, name)


def test_a_wait_without_an_id_is_answered_without_one(socket: WebSocketStream, bus: LiveBus) -> None:
    lock = held_by(bus, "bob")
    for _ in range(2):
        socket.say("lock.acquire", resource="plan.md", wait_seconds=60)
    bus.wait(lambda inner: waiting(inner) == 2)
    release(bus, lock)
    first, second = socket.hear().fields, socket.hear().fields
    assert "id" not in first
    assert "id" not in second
    assert [first["extended"], second["extended"]] == [False, True]


def test_two_waits_of_one_id_are_not_told_apart(socket: WebSocketStream, bus: LiveBus) -> None:
    held_by(bus, "bob")
    acquire(socket, 7, wait_seconds=60)
    acquire(socket, 7, "other", wait_seconds=60)
    refused = refusal(socket)
    assert (refused["id"], refused["code"], refused["field"]) == (7, "INVALID_REQUEST", "id")


def test_one_wait_too_many_is_refused(socket: WebSocketStream, bus: LiveBus) -> None:
    lock = held_by(bus, "bob")
    for number in range(LOCK_WAITS_PER_AGENT_MAX + 1):
        acquire(socket, number, agent_id=f"agent-{number % 2}", wait_seconds=60, mode="shared")
    refused = refusal(socket)
    assert (refused["id"], refused["code"]) == (LOCK_WAITS_PER_AGENT_MAX, "TOO_LARGE")
    assert refused["limit"] == LOCK_WAITS_PER_AGENT_MAX
    release(bus, lock)
    answers = [socket.hear().fields for _ in range(LOCK_WAITS_PER_AGENT_MAX)]
    assert {answer["id"] for answer in answers} == set(range(LOCK_WAITS_PER_AGENT_MAX))
    acquire(socket, "room again", "other", wait_seconds=60)
    assert socket.hear().fields["id"] == "room again"


def test_a_wait_that_runs_out_is_refused_with_who_holds_it(socket: WebSocketStream, bus: LiveBus) -> None:
    held_by(bus, "bob")
    acquire(socket, 1, wait_seconds=0.05)
    refused = refusal(socket)
    assert (refused["id"], refused["code"], refused["holder_agent"]) == (1, "LOCK_HELD", "bob")


def test_a_circle_is_refused_at_once_and_named(socket: WebSocketStream, bus: LiveBus) -> None:
    hold(socket, "a")
    held_by(bus, "bob", "b")
    acquire(socket, "ann waits", "b", wait_seconds=60)
    acquire(socket, "bob would", "a", agent_id="bob", wait_seconds=60)
    refused = refusal(socket)
    assert (refused["id"], refused["code"]) == ("bob would", "DEADLOCK")
    assert [(step["agent_id"], step["waits_for"]) for step in refused["cycle"]] == [("bob", "ann"), ("ann", "bob")]


def test_a_wait_is_cancelled_by_the_id_of_its_acquire(socket: WebSocketStream, bus: LiveBus) -> None:
    held_by(bus, "bob")
    acquire(socket, "mine", wait_seconds=60)
    acquire(socket, "stays", wait_seconds=60)
    bus.wait(lambda inner: waiting(inner) == 2)
    socket.say("lock.cancel", id="enough", acquire="mine")
    expected = {"event": "cancelled", "id": "enough", "acquire": "mine", "cancelled": True}
    assert socket.hear().fields == expected
    refused = refusal(socket)
    assert (refused["id"], refused["code"], refused["why"]) == ("mine", "WAIT_ENDED", "CANCELLED")
    assert said(bus)[-1]["why"] == "CANCELLED"
    assert [wait["agent_id"] for wait in bus.http.get("/locks/plan.md").json()["queue"]] == ["ann"]
    socket.say("lock.cancel", id="again", acquire="mine")
    assert socket.hear().fields == {**expected, "id": "again", "cancelled": False}


def test_a_wait_that_was_not_even_queued_is_cancelled(socket: WebSocketStream, bus: LiveBus) -> None:
    """In one write, so that it comes in one turn with the cancel."""
    held_by(bus, "bob")
    for _ in range(20):
        acquire(socket, 1, wait_seconds=60)
        socket.say("lock.cancel", id=2, acquire=1)
        assert socket.hear().fields["cancelled"] is True
        assert refusal(socket)["code"] == "WAIT_ENDED"
    assert bus.call(waiting) == 0


def test_a_socket_that_is_lost_leaves_every_line(opened: Transport, bus: LiveBus) -> None:
    locks = [held_by(bus, "bob", name) for name in "abc"]
    with opened(bus, [("agent_id", "ann")]) as socket:
        for name in "abc":
            acquire(socket, name, name, wait_seconds=60)
        bus.wait(lambda inner: waiting(inner) == 3)
        socket._socket.socket.shutdown(2)
        bus.wait(lambda inner: waiting(inner) == 0)
    assert [one["why"] for one in said(bus)[-3:]] == ["CANCELLED"] * 3
    for lock in locks:
        release(bus, lock)
    assert bus.call(held) == 0


# --- Sessions --------------------------------------------------------------------------------------------------------


@pytest.fixture
def short() -> Iterator[LiveBus]:
    """A bus that gives a session hardly any time to come back."""
    with LiveBus(session_grace_seconds=0.05) as bus:
        yield bus


@pytest.fixture
def patient() -> Iterator[LiveBus]:
    """A bus on which no grace ends by itself."""
    with LiveBus(session_grace_seconds=600) as bus:
        yield bus


def end_grace(bus: LiveBus) -> None:
    """As if the grace of every connection that ended were over."""
    bus.wait(lambda inner: bool(inner._session_ends))

    def over(inner: Bus) -> None:
        for session, timer in list(inner._session_ends.items()):
            timer.cancel()
            inner._release_session(session)

    bus.call(over)


def test_a_lock_of_a_session_ends_with_its_connection_on_the_record(opened: Transport, short: LiveBus) -> None:
    with opened(short, [("agent_id", "ann")]) as socket:
        socket.hear()
        tied = hold(socket, "tied", session=True, ttl_seconds=SECONDS_LONG)
        free = hold(socket, "free", ttl_seconds=SECONDS_LONG)
    short.wait(lambda inner: held(inner) == 1)
    ended = said(short)[-1]
    assert (ended["kind"], ended["lock_id"], ended["why"]) == ("lock.released", tied["lock_id"], "SESSION_ENDED")
    (left,) = short.http.get("/locks").json()["locks"]
    assert left["lock_id"] == free["lock_id"]


def test_who_waits_gets_what_a_session_leaves(opened: Transport, short: LiveBus) -> None:
    with opened(short, [("agent_id", "bob")]) as bob:
        bob.hear()
        with opened(short, [("agent_id", "ann")]) as ann:
            ann.hear()
            hold(ann, session=True, ttl_seconds=SECONDS_LONG)
            acquire(bob, 1, wait_seconds=60)
            short.wait(lambda inner: waiting(inner) == 1)
        assert bob.hear().fields["locks"][0]["holder_agent"] == "bob"


def test_who_comes_back_in_time_keeps_the_lock(opened: Transport, patient: LiveBus) -> None:
    with opened(patient, [("agent_id", "ann")]) as socket:
        socket.hear()
        before = hold(socket, session=True)
    with opened(patient, [("agent_id", "ann")]) as socket:
        socket.hear()
        after = hold(socket, session=True)
        assert (after["extended"], after["lock_id"]) == (True, before["lock_id"])
        assert after["fencing_token"] == before["fencing_token"]
        end_grace(patient)
        socket.say("lock.refresh", id=1, lock_id=before["lock_id"])
        assert socket.hear().event == "locked"
    end_grace(patient)
    patient.wait(lambda inner: held(inner) == 0)


def test_who_comes_back_too_late_is_granted_another(opened: Transport, patient: LiveBus) -> None:
    with opened(patient, [("agent_id", "ann")]) as socket:
        socket.hear()
        before = hold(socket, session=True)
    end_grace(patient)
    with opened(patient, [("agent_id", "ann")]) as socket:
        socket.hear()
        socket.say("lock.refresh", id=1, lock_id=before["lock_id"])
        assert refusal(socket)["code"] == "LOCK_LOST"
        assert hold(socket, session=True)["fencing_token"] > before["fencing_token"]


def test_a_refresh_alone_does_not_tie_it_to_another_connection(opened: Transport, patient: LiveBus) -> None:
    with opened(patient, [("agent_id", "ann")]) as socket:
        socket.hear()
        lock = hold(socket, session=True)
    with opened(patient, [("agent_id", "ann")]) as socket:
        socket.hear()
        socket.say("lock.refresh", id=1, lock_id=lock["lock_id"])
        assert socket.hear().event == "locked"
        end_grace(patient)
        patient.wait(lambda inner: held(inner) == 0)


def test_a_lock_that_is_asked_for_again_without_a_session_is_tied_to_none(opened: Transport, patient: LiveBus) -> None:
    with opened(patient, [("agent_id", "ann")]) as socket:
        socket.hear()
        lock = hold(socket, session=True)
    assert held_by(patient, "ann")["lock_id"] == lock["lock_id"]
    end_grace(patient)
    assert patient.http.get("/locks/plan.md").json()["holders"][0]["lock_id"] == lock["lock_id"]


def test_a_wait_of_a_session_ends_with_its_connection_at_once(opened: Transport, patient: LiveBus) -> None:
    held_by(patient, "bob")
    with opened(patient, [("agent_id", "ann")]) as socket:
        socket.hear()
        acquire(socket, 1, session=True, wait_seconds=60)
        patient.wait(lambda inner: waiting(inner) == 1)
    patient.wait(lambda inner: waiting(inner) == 0)
    assert said(patient)[-1]["why"] == "CANCELLED"


def test_a_restart_is_the_end_of_every_connection(opened: Transport) -> None:
    with LiveBus(log=MemoryLog(), session_grace_seconds=600) as bus:
        with opened(bus, [("agent_id", "ann")]) as socket:
            socket.hear()
            stays, goes = (hold(socket, name, session=True, ttl_seconds=SECONDS_LONG) for name in ("stays", "goes"))
            bus.stop()
        bus.start()
        with opened(bus, [("agent_id", "ann")]) as socket:
            socket.hear()
            assert hold(socket, "stays", session=True)["lock_id"] == stays["lock_id"]
            end_grace(bus)
            bus.wait(lambda inner: held(inner) == 1)
            ended = said(bus)[-1]
            assert (ended["lock_id"], ended["why"]) == (goes["lock_id"], "SESSION_ENDED")
            socket.say("lock.release", id=1, lock_id=stays["lock_id"])
            assert socket.hear().fields["released"] is True


def test_after_a_restart_the_grace_ends_by_itself() -> None:
    log = MemoryLog()
    with LiveBus(log=log, session_grace_seconds=600) as bus, websocket_json(bus, [("agent_id", "ann")]) as socket:
        socket.hear()
        hold(socket, session=True, ttl_seconds=SECONDS_LONG)
    with LiveBus(log=log, session_grace_seconds=0.05) as bus:
        bus.wait(lambda inner: held(inner) == 0)
        assert said(bus)[-1]["why"] == "SESSION_ENDED"


# --- The end of the bus ----------------------------------------------------------------------------------------------


def test_who_waits_is_told_that_the_bus_stops_before_it_goes(socket: WebSocketStream, bus: LiveBus) -> None:
    held_by(bus, "bob", ttl_seconds=SECONDS_LONG)
    socket.say("subscribe", id="sub", context="elsewhere")
    socket.hear()
    for number in range(3):
        acquire(socket, number, wait_seconds=60)
    bus.wait(lambda inner: waiting(inner) == 3)
    bus.stop()
    told = [refusal(socket) for _ in range(3)]
    assert [(one["id"], one["code"], one["retryable"]) for one in told] == [
        (number, "SHUTTING_DOWN", True) for number in range(3)
    ]
    assert socket.hear().event == "goaway"
    with pytest.raises(Ended) as ended:
        socket.hear()
    assert ended.value.close_code == 4001


def test_who_waited_before_a_restart_asks_again_and_is_in_line(opened: Transport, bus: LiveBus) -> None:
    lock = held_by(bus, "bob", ttl_seconds=SECONDS_LONG)
    with opened(bus, [("agent_id", "ann")]) as socket:
        acquire(socket, 1, wait_seconds=60)
        bus.wait(lambda inner: waiting(inner) == 1)
        bus.stop()
    bus.start()
    bus.wait(lambda inner: waiting(inner) == 0)
    assert said(bus)[-1]["why"] == "RESTARTED"
    with opened(bus, [("agent_id", "ann")]) as socket:
        socket.hear()
        acquire(socket, 1, wait_seconds=60)
        bus.wait(lambda inner: waiting(inner) == 1)
        release(bus, lock)
        assert socket.hear().event == "locked"


# --- What subscribers see --------------------------------------------------------------------------------------------


def test_who_follows_an_edit_sees_its_lock_and_its_units_in_order(transport: Transport, bus: LiveBus) -> None:
    with transport(bus, [("context", "edit")]) as reader, websocket_json(bus, [("agent_id", "ann")]) as ann:
        assert reader.hear().event == "subscribed"
        ann.hear()
        lock = hold(ann, "src/a.py", context_id="edit")
        fence = {"resource": "src/a.py", "token": lock["fencing_token"]}
        with websocket_json(bus, [("agent_id", "bob")]) as bob:
            bob.hear()
            acquire(bob, "bob", "src", wait_seconds=60, context_id="edit")
            bus.wait(lambda inner: waiting(inner) == 1)
            for text in ("one", "two"):
                ann.say("append", id=text, unit={"context_id": "edit", "payload": text, "fence": fence})
                assert ann.hear().event == "appended"
            ann.say("lock.release", id=1, lock_id=lock["lock_id"])
            ann.hear()
            granted = bob.hear().fields
        heard = units(reader, 6)
    assert [unit.get("kind") or unit["payload"] for unit in heard] == [
        *("lock.granted", "lock.queued", "one", "two", "lock.released", "lock.granted")
    ]
    assert [unit["version"] for unit in heard] == [1, 2, 3, 4, 5, 6]
    assert [unit["seq"] for unit in heard] == [1, 2, 3, 4, 5, 6]
    assert (heard[0]["id"], heard[5]["id"]) == (lock["lock_id"], granted["lock_id"])
    assert (heard[0]["seq"], heard[5]["seq"]) == (lock["fencing_token"], granted["fencing_token"])
    assert (heard[1]["payload"]["obstacle"]["holder_agent"], heard[5]["payload"]["wait_id"]) == ("ann", heard[1]["id"])
    assert heard[0]["resources"] == heard[4]["resources"] == ["src/a.py"]


def test_locks_are_filtered_like_everything_else(transport: Transport, bus: LiveBus) -> None:
    with transport(bus, [("context", "locks"), ("kind", "lock.expired"), ("resource", "src/*")]) as reader:
        reader.hear()
        held_by(bus, "ann", "docs/a", ttl_seconds=0.1)
        held_by(bus, "ann", "src/a", ttl_seconds=0.1)
        (expired,) = units(reader, 1)
    assert (expired["kind"], expired["agent_id"], expired["type"]) == ("lock.expired", "engram", "SYSTEM")
    assert expired["resources"] == ["src/a"]


# --- A connection in this process ------------------------------------------------------------------------------------


class Deaf:
    """A socket that nobody reads."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.ended: int | None = None

    has_room = True

    def listen(self, listener: object) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def abort_after(self, seconds: float) -> None: ...

    def write_raw(self, frame: bytes) -> None:
        self.written.append(frame)

    @property
    def push(self) -> Callable[[bytes], object]:
        return self.write_raw

    def end(self, code: int, reason: str) -> None:
        self.ended = code


@pytest.fixture
async def local() -> Any:
    bus = Bus(MemoryLog(), session_grace_seconds=0.05)
    yield bus
    await bus.stop("the test is over")


def connection(bus: Bus, agent_id: str = "ann") -> Connection:
    return Connection(bus, Deaf(), subprotocol=JSON_PROTOCOL, agent_id=agent_id)


async def test_a_socket_that_is_closed_by_the_bus_is_granted_nothing_any_more(local: Bus) -> None:
    lock = await local.acquire_lock("plan.md", agent_id="bob")
    slow = connection(local)
    slow.received(b'{"op":"lock.acquire","id":1,"resource":"plan.md","wait_seconds":60}')
    await local.append("plan", agent_id="bob")
    assert waiting(local) == 1
    slow.end(SlowConsumer("it takes nothing"), "memory.1")
    await local.release_lock(lock.lock_id, agent_id="bob")
    assert (held(local), waiting(local)) == (0, 0)


async def test_a_wait_under_the_id_of_one_just_cancelled_can_be_left_too(local: Bus) -> None:
    lock = await local.acquire_lock("plan.md", agent_id="bob")
    ann = connection(local)
    ann.received(b'{"op":"lock.acquire","id":1,"resource":"plan.md","wait_seconds":60}')
    await local.append("plan", agent_id="bob")
    ann.received(b'{"op":"lock.cancel","acquire":1}')
    ann.received(b'{"op":"lock.acquire","id":1,"resource":"plan.md","wait_seconds":60}')
    await local.append("plan", agent_id="bob")
    assert waiting(local) == 1
    ann.lost()
    await local.release_lock(lock.lock_id, agent_id="bob")
    assert (held(local), waiting(local)) == (0, 0)


async def test_a_lock_of_a_session_that_ends_before_its_grant_is_released_too(local: Bus) -> None:
    session = local.new_session()
    asked = AcquireLock(resources=("plan.md",), agent_id="ann", ttl_ms=3_600_000, session=session)
    local.submit(asked, lambda granted: None)
    local.end_session(session)
    later = await local.acquire_lock("plan.md", agent_id="bob", wait_seconds=10)
    assert later.fencing_token == 4, "granted, queued, released, granted"


async def test_who_is_gone_before_the_decision_is_granted_nothing_though_it_would_not_wait(local: Bus) -> None:
    for end in (Connection.lost, lambda gone: gone.goaway("shutdown")):
        gone = connection(local)
        gone.received(b'{"op":"lock.acquire","id":1,"resource":"plan.md","ttl_seconds":3600}')
        end(gone)
        await local.append("plan", agent_id="bob")
        assert (held(local), waiting(local)) == (0, 0)


async def test_a_connection_is_lost_once_however_often_it_is_said(local: Bus) -> None:
    gone = connection(local)
    gone.received(b'{"op":"lock.acquire","id":1,"resource":"plan.md","ttl_seconds":3600,"session":true}')
    await local.append("plan", agent_id="bob")
    gone.lost()
    gone.lost()
    assert len(local._session_ends) == 1
    await local.acquire_lock("plan.md", agent_id="bob", wait_seconds=10)
