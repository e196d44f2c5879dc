"""What only a WebSocket does: many subscriptions on one socket, and appends that do not wait for one another."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from engram_bus.errors import StorageFull
from engram_bus.limits import STREAM_PENDING_MAX, WEBSOCKET_SUBSCRIPTIONS_MAX
from engram_bus.log.memory import MemoryLog
from tests.contracts.cursors import CursorCase, odd_cursors
from tests.live import LiveBus
from tests.subscribers.streams import (
    Ended,
    Heard,
    Refused,
    WebSocketStream,
    decoded,
    units,
    websocket_json,
    websocket_msgpack,
)

UNIT = {"context_id": "plan", "agent_id": "ann"}


@pytest.fixture(params=[websocket_json, websocket_msgpack], ids=["json", "msgpack"])
def socket(request: pytest.FixtureRequest, bus: LiveBus) -> Iterator[WebSocketStream]:
    """One that only publishes, so far."""
    with request.param(bus, []) as stream:
        first = stream.hear()
        assert (first.event, first.fields["head"]) == ("subscribed", 0)
        yield stream


# --- Appends ---------------------------------------------------------------------------------------------------------


def test_an_append_is_answered_with_its_place_and_how_durable_it_is(socket: WebSocketStream, bus: LiveBus) -> None:
    socket.say("append", id="first", unit=UNIT | {"payload": "hello"})
    answer = socket.hear().fields
    (unit,) = bus.http.get("/workunits/plan").json()["work_units"]
    assert answer == {
        "event": "appended",
        "id": "first",
        "unit_id": unit["id"],
        "context_id": "plan",
        "seq": 1,
        "version": 1,
        "durability": "memory",
    }
    assert unit["payload"] == "hello"


def test_an_append_without_an_id_is_answered_without_one(socket: WebSocketStream) -> None:
    socket.say("append", unit=UNIT)
    assert "id" not in socket.hear().fields


def test_appends_need_not_wait_for_one_another(socket: WebSocketStream) -> None:
    count = 3 * STREAM_PENDING_MAX
    for number in range(count):
        socket.say("append", id=number, unit=UNIT | {"payload": str(number)})
    answers = [socket.hear().fields for _ in range(count)]
    assert [answer["id"] for answer in answers] == list(range(count))
    assert [answer["seq"] for answer in answers] == list(range(1, count + 1))


def test_a_repeat_gets_the_first_answer_again_on_any_transport(socket: WebSocketStream, bus: LiveBus) -> None:
    keyed = UNIT | {"payload": "once", "idempotency_key": "k"}
    socket.say("append", id=1, unit=keyed)
    socket.say("append", id=2, unit=keyed)
    first, second = socket.hear().fields, socket.hear().fields
    assert second == first | {"id": 2, "replayed": True}
    over_http = bus.http.post("/workunit", json=keyed)
    assert over_http.headers["idempotency-replayed"] == "true"
    assert over_http.json()["id"] == first["unit_id"]


def test_a_refused_append_leaves_the_others_alone(socket: WebSocketStream) -> None:
    for number, fields in enumerate([{}, {"expected_version": 7}, {}]):
        socket.say("append", id=number, unit=UNIT | fields)
    assert socket.hear().fields["version"] == 1
    with pytest.raises(Refused) as refused:
        socket.hear()
    assert refused.value.fields["id"] == 1
    assert (refused.value.code, refused.value.fields["current_version"]) == ("VERSION_MOVED", 1)
    assert socket.hear().fields["version"] == 2


def test_a_full_disk_is_an_answer_and_the_socket_stays(socket: WebSocketStream, bus: LiveBus) -> None:
    bus.call(lambda inner: setattr(inner.log, "append", _no_room))
    socket.say("append", id=1, unit=UNIT)
    with pytest.raises(Refused) as refused:
        socket.hear()
    assert (refused.value.code, refused.value.fields["retryable"]) == ("STORAGE_FULL", True)
    socket.say("ping", id=2)
    assert socket.hear().event == "pong"


def test_who_appends_is_the_agent_of_the_socket_unless_the_unit_says(bus: LiveBus) -> None:
    for url, headers in [("?agent_id=bob", {}), ("", {"X-Agent-ID": "bob"})]:
        with connect(bus.stream_url(url), additional_headers=headers) as connection:
            connection.recv(10)
            connection.send(json.dumps({"op": "append", "unit": {"context_id": "plan"}}))
            connection.send(json.dumps({"op": "append", "unit": UNIT}))
            assert [json.loads(connection.recv(10))["event"] for _ in range(2)] == ["appended"] * 2
    appended = bus.http.get("/workunits/plan").json()["work_units"]
    assert [unit["agent_id"] for unit in appended] == ["bob", "ann"] * 2


def test_what_it_appends_it_hears_where_it_is_subscribed(bus: LiveBus) -> None:
    with websocket_json(bus, [("context", "plan")]) as stream:
        stream.hear()
        stream.say("append", id=1, unit=UNIT)
        assert {stream.hear().event, stream.hear().event} == {"appended", "units"}


# --- Subscriptions ---------------------------------------------------------------------------------------------------


def test_each_of_many_subscriptions_hears_its_own(socket: WebSocketStream, bus: LiveBus) -> None:
    for name in range(WEBSOCKET_SUBSCRIPTIONS_MAX):
        socket.say("subscribe", id=name, context=f"c{name}", after=0)
    for name in range(WEBSOCKET_SUBSCRIPTIONS_MAX):
        fields = socket.hear().fields
        assert (fields["event"], fields["id"], fields["subscription"]) == ("subscribed", name, name)
    socket.say("subscribe", id="one more", context="*")
    with pytest.raises(Refused) as refused:
        socket.hear()
    assert (refused.value.code, refused.value.fields["limit"]) == ("TOO_LARGE", WEBSOCKET_SUBSCRIPTIONS_MAX)
    for name in (3, 200, 77):
        unit = bus.append(f"c{name}")
        heard = socket.hear()
        assert (heard.fields["subscription"], heard.units) == (name, [unit])


def test_subscriptions_that_overlap_each_hear_it(socket: WebSocketStream, bus: LiveBus) -> None:
    for name, context in (("all", "*"), ("plan", "plan"), ("both", ["plan", "other"])):
        socket.say("subscribe", id=name, context=context)
        assert socket.hear().event == "subscribed"
    bus.append("plan")
    assert {socket.hear().fields["subscription"] for _ in range(3)} == {"all", "plan", "both"}


FILTERS: dict[str, tuple[dict[str, Any], str]] = {
    "a type": ({"type": "TOOL_CALL"}, "b"),
    "types by name and number": ({"type": ["TOOL_CALL", 4]}, "bc"),
    "kinds": ({"kind": ["test.*", "x"]}, "bc"),
    "an agent": ({"agent": "bob"}, "c"),
    "not these agents": ({"exclude_agent": ["bob", "eve"]}, "ab"),
    "a resource": ({"resource": "tests/*"}, "b"),
    "meta": ({"meta": {"repo": "engram"}}, "a"),
}


@pytest.mark.parametrize(("fields", "wanted"), FILTERS.values(), ids=FILTERS)
def test_an_operation_filters_as_the_url_does(
    socket: WebSocketStream, bus: LiveBus, fields: dict[str, Any], wanted: str
) -> None:
    bus.append(payload="a", meta={"repo": "engram"})
    bus.append(payload="b", type="TOOL_CALL", kind="test.run", resources=["tests/x.py"])
    bus.append(payload="c", type="TOOL_RESULT", kind="test.failed", agent_id="bob")
    socket.say("subscribe", id=1, context="plan", after="0", **fields)
    assert [unit["payload"] for unit in units(socket, len(wanted))] == list(wanted)


@pytest.mark.parametrize("after", [None, 0, 2, "2"])
def test_an_operation_begins_after_a_seq_or_a_cursor_or_now(socket: WebSocketStream, bus: LiveBus, after: Any) -> None:
    for _ in range(3):
        bus.append()
    named = {} if after is None else {"after": after}
    socket.say("subscribe", id="s", context="*", **named)
    begins = 3 if after is None else int(after)
    assert socket.hear().cursor == f"memory.{begins}"
    assert [unit["seq"] for unit in units(socket, 3 - begins)] == list(range(begins + 1, 4))


@pytest.mark.parametrize("case", odd_cursors(MemoryLog().epochs, 2), ids=str)
def test_an_odd_cursor_in_an_operation_is_an_answer_and_the_socket_stays(
    shared: WebSocketStream, case: CursorCase
) -> None:
    shared.say("subscribe", id="s", context="plan", after=case.text)
    if case.code is not None:
        with pytest.raises(Refused) as refused:
            shared.hear()
        assert (refused.value.code, refused.value.fields["id"]) == (case.code, "s")
        return
    assert case.seq is not None
    assert shared.hear().cursor == f"memory.{case.seq}"
    assert [unit["seq"] for unit in units(shared, 2 - case.seq)] == list(range(case.seq + 1, 3))
    shared.say("unsubscribe", subscription="s")
    assert shared.hear().event == "unsubscribed"


@pytest.fixture(scope="module")
def shared() -> Iterator[WebSocketStream]:
    with LiveBus() as bus:
        bus.append()
        bus.append()
        with websocket_msgpack(bus, []) as stream:
            stream.hear()
            yield stream


def test_a_subscription_ends_with_its_cursor_and_is_heard_no_more(socket: WebSocketStream, bus: LiveBus) -> None:
    socket.say("subscribe", id="s", context="*")
    socket.hear()
    bus.append()
    socket.hear()
    socket.say("unsubscribe", id="bye", subscription="s")
    assert socket.hear().fields == {"event": "unsubscribed", "id": "bye", "subscription": "s", "cursor": "memory.1"}
    bus.append()
    socket.say("ping", id=1)
    assert socket.hear().fields == {"event": "pong", "id": 1, "head": 2}
    socket.say("subscribe", id="s", context="*", after="memory.1")
    assert [unit["seq"] for unit in units(socket, 1)] == [2]


def test_the_subscription_of_the_url_has_no_name_and_can_end(bus: LiveBus) -> None:
    with websocket_json(bus, [("context", "*")]) as stream:
        assert "subscription" not in stream.hear().fields
        stream.say("unsubscribe", id=1)
        assert stream.hear().fields == {"event": "unsubscribed", "id": 1, "subscription": None, "cursor": "memory.0"}


def test_a_name_is_taken_only_once(socket: WebSocketStream) -> None:
    socket.say("subscribe", id="s", context="*")
    socket.hear()
    socket.say("subscribe", id="s", context="plan")
    with pytest.raises(Refused) as refused:
        socket.hear()
    assert (refused.value.code, refused.value.fields["field"]) == ("INVALID_REQUEST", "id")


def test_a_socket_that_leaves_leaves_nothing_behind(bus: LiveBus) -> None:
    with websocket_json(bus, [("context", "*")]) as stream:
        stream.hear()
        for name in range(10):
            stream.say("subscribe", id=name, context="plan")
            stream.hear()
        assert bus.http.get("/status").json()["subscribers"] == 11
    bus.wait(lambda inner: len(inner.fanout) == 0)


# --- The handshake and the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "spoken"),
    [
        (None, None),
        (["engram.v1.json"], "engram.v1.json"),
        (["engram.v1.msgpack", "engram.v1.json"], "engram.v1.msgpack"),
        (["engram.v2.json", "engram.v1.json"], "engram.v1.json"),
    ],
)
def test_the_first_subprotocol_that_is_known_is_spoken(
    bus: LiveBus, offered: list[Subprotocol] | None, spoken: str | None
) -> None:
    with connect(bus.stream_url(), subprotocols=offered) as connection:
        assert connection.subprotocol == spoken
        assert isinstance(connection.recv(10), bytes if spoken == "engram.v1.msgpack" else str)


def test_it_is_served_under_the_prefix_too(bus: LiveBus) -> None:
    with connect(bus.url.replace("http", "ws") + "/api/v1/stream?context=*") as connection:
        assert decoded(connection.recv(10))["event"] == "subscribed"


def test_text_and_binary_frames_are_both_read(bus: LiveBus) -> None:
    with connect(bus.stream_url()) as connection:
        connection.recv(10)
        connection.send(b'{"op":"ping","id":1}')
        assert _hear(connection).fields["event"] == "pong"


def test_a_stop_tells_every_subscription_its_own_cursor(bus: LiveBus) -> None:
    with websocket_json(bus, [("context", "*")]) as stream:
        stream.hear()
        stream.say("subscribe", id="s", context="plan")
        stream.hear()
        bus.stop()
        goaways = [stream.hear(), stream.hear()]
        assert {one.fields.get("subscription") for one in goaways} == {None, "s"}
        with pytest.raises(Ended) as ended:
            stream.hear()
        assert ended.value.close_code == 4001
        assert ended.value.reason.startswith("SHUTTING_DOWN")


def test_a_socket_that_only_publishes_is_told_to_go_as_well(socket: WebSocketStream, bus: LiveBus) -> None:
    bus.stop()
    goaway = socket.hear()
    assert (goaway.event, goaway.cursor) == ("goaway", "memory.0")
    with pytest.raises(Ended) as ended:
        socket.hear()
    assert ended.value.close_code == 4001


def test_what_was_acknowledged_before_a_stop_is_there_after_it(tmp_path: Path) -> None:
    with LiveBus(tmp_path / "data") as bus:
        with websocket_json(bus, []) as stream:
            stream.hear()
            for number in range(2_000):
                stream.say("append", id=number, unit=UNIT | {"payload": str(number)})
            bus.stop()
            acknowledged = list(_appended(stream))
        bus.start()
        page = bus.http.get("/workunits/plan", params={"limit": 1_000}).json()["work_units"]
        assert [unit["payload"] for unit in page] == [str(number) for number in range(len(page))]
        head = bus.http.get("/status").json()["head"]
    assert acknowledged == list(range(len(acknowledged)))
    assert head >= len(acknowledged) > 0


def _appended(stream: WebSocketStream) -> Iterator[int]:
    """The ids of the appends that were acknowledged before it ended."""
    while True:
        try:
            heard = stream.hear()
        except Refused:
            continue
        except Ended:
            return
        if heard.event == "appended":
            yield heard.fields["id"]


def _hear(connection: ClientConnection) -> Heard:
    return WebSocketStream(connection).hear()


def _no_room(records: object) -> None:
    raise StorageFull("no room")
