"""gRPC: the verbs as calls, refusals as statuses with details, streams of appends, health, reflection, and the end."""

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from engram_bus.errors import StorageFailed
from engram_bus.limits import (
    BULK_BYTES_MAX,
    BULK_UNITS_MAX,
    DRAIN_SECONDS_MAX,
    STREAM_PENDING_MAX,
    UNIT_REQUEST_BYTES_MAX,
)
from engram_bus.log.memory import MemoryLog
from engram_bus.pb import append_pb2, lock_pb2
from tests.api.calls import METHODS, SERVICE, Calls, Refused, calls
from tests.live import LiveBus


@pytest.fixture(scope="module")
def ann(shared_bus: LiveBus) -> Iterator[Calls]:
    with calls(shared_bus.grpc_address) as ann:
        yield ann


# --- Verbs -----------------------------------------------------------------------------------------------------------


def test_a_unit_is_appended_read_and_listed_as_over_http(shared_bus: LiveBus, ann: Calls) -> None:
    answer = ann.call("Append", context_id="grpc/one", payload=b"hello", type="TOOL_CALL", meta={"repo": "engram"})
    assert (answer.durability, answer.replayed, answer.applied_seq) == ("fsync", False, answer.work_unit.seq)
    over_http = shared_bus.http.get(f"/workunit/{answer.work_unit.id}").json()
    assert (over_http["payload"], over_http["type"], over_http["agent_id"]) == ("hello", "TOOL_CALL", "ann")
    assert ann.call("Get", id=answer.work_unit.id).work_unit == answer.work_unit
    page = ann.call("List", context_id="grpc/one")
    assert (list(page.work_units), page.HasField("next_page")) == ([answer.work_unit], False)


def test_a_repeat_is_answered_as_the_first_time(ann: Calls) -> None:
    first, again = (ann.call("Append", context_id="grpc/key", payload=b"x", idempotency_key="k") for _ in range(2))
    assert (first.replayed, again.replayed, again.work_unit) == (False, True, first.work_unit)


def test_a_batch_says_what_became_of_each(ann: Calls) -> None:
    appends = [
        append_pb2.AppendRequest(context_id="grpc/bulk", payload=b"a"),
        append_pb2.AppendRequest(context_id="grpc/bulk", payload=b"\xff"),
        append_pb2.AppendRequest(context_id="grpc/bulk", payload=b"b", expected_version=1),
    ]
    results = ann.call("AppendBulk", appends=appends).results
    assert [one.WhichOneof("outcome") for one in results] == ["work_unit", "error", "work_unit"]
    assert (results[1].error.code, results[1].error.field, results[1].error.index) == ("INVALID_REQUEST", "payload", 1)
    with pytest.raises(Refused) as refused:
        ann.call("AppendBulk", appends=appends, atomic=True)
    assert (refused.value.code, refused.value.error.index) == ("INVALID_REQUEST", 1)


def test_a_refusal_is_a_status_with_its_error(ann: Calls) -> None:
    with pytest.raises(Refused) as refused:
        ann.call("Append", context_id="grpc/moved", payload=b"x", expected_version=7)
    assert (refused.value.status, refused.value.code) == ("ABORTED", "VERSION_MOVED")
    assert (refused.value.error.field, refused.value.error.details["current_version"]) == ("expected_version", 0)
    assert refused.value.metadata["engram-durability"] == "fsync"
    assert refused.value.metadata["engram-applied-seq"].isdigit()


def test_who_acts_is_named_by_the_request_or_by_the_call(shared_bus: LiveBus, ann: Calls) -> None:
    body = append_pb2.AppendRequest(context_id="grpc/who", payload=b"x")
    assert ann.raw("Append", body.SerializeToString()).work_unit.agent_id == "ann"
    named = append_pb2.AppendRequest(context_id="grpc/who", payload=b"x", agent_id="bob").SerializeToString()
    assert ann.raw("Append", named).work_unit.agent_id == "bob"
    in_bytes = (("x-agent-id-bin", "bärbel".encode()),)
    assert ann.raw("Append", body.SerializeToString(), metadata=in_bytes).work_unit.agent_id == "bärbel"
    for metadata, field in (((), "agent_id"), ((("x-agent-id-bin", b"\xff"),), "x-agent-id-bin")):
        with pytest.raises(Refused) as refused:
            ann.raw("Append", body.SerializeToString(), metadata=metadata)
        assert (refused.value.code, refused.value.error.field) == ("INVALID_REQUEST", field)


def test_what_cannot_be_read_is_refused(ann: Calls) -> None:
    for body in (b"\xff", append_pb2.AppendRequest(context_id="p").SerializeToString() + b"\xc2\x3e\x01x"):
        with pytest.raises(Refused) as refused:
            ann.raw("Append", body)
        assert (refused.value.status, refused.value.code) == ("INVALID_ARGUMENT", "INVALID_REQUEST")


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if not one.client_streaming])
def test_any_method_refuses_what_is_no_message(ann: Calls, method: str) -> None:
    if METHODS[method].server_streaming:
        call = ann.channel.unary_stream(f"/{SERVICE.full_name}/{method}")(b"\xff", timeout=10)
        with pytest.raises(grpc.RpcError) as ended:
            next(call)
        assert Refused(ended.value).code == "INVALID_REQUEST"
        return
    with pytest.raises(Refused) as refused:
        ann.raw(method, b"\xff")
    assert refused.value.code == "INVALID_REQUEST"


def test_a_method_there_is_not_is_unimplemented(ann: Calls) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        ann.channel.unary_unary(f"/{SERVICE.full_name}/Nothing")(b"", timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(("method", "bytes_max"), [("Append", UNIT_REQUEST_BYTES_MAX), ("AppendBulk", BULK_BYTES_MAX)])
def test_a_message_that_is_too_large_is_told_the_limit(ann: Calls, method: str, bytes_max: int) -> None:
    with pytest.raises(Refused) as refused:
        ann.raw(method, bytes(bytes_max + 1))
    assert (refused.value.status, refused.value.code) == ("INVALID_ARGUMENT", "TOO_LARGE")
    assert refused.value.error.limit == bytes_max


def test_a_message_far_too_large_ends_only_its_call(shared_bus: LiveBus) -> None:
    with calls(shared_bus.grpc_address) as eve:
        with pytest.raises(Refused) as refused:
            eve.raw("AppendBulk", bytes(2 * BULK_BYTES_MAX + 1))
        assert refused.value.status == "RESOURCE_EXHAUSTED"
        assert eve.call("Append", context_id="grpc/well", payload=b"x").work_unit.seq > 0


def test_a_read_waits_for_its_seq_and_says_when_it_does_not_come(ann: Calls) -> None:
    seq = ann.call("Append", context_id="grpc/min", payload=b"x").work_unit.seq
    assert ann.call("List", context_id="grpc/min", min_seq=seq).applied_seq >= seq
    with pytest.raises(Refused) as refused:
        ann.call("Get", id="x", min_seq=seq + 1_000_000, timeout_ms=1)
    assert (refused.value.status, refused.value.code) == ("UNAVAILABLE", "MIN_SEQ_TIMEOUT")
    assert refused.value.retry_seconds == 1


def test_a_crowd_of_calls_is_answered_whole(shared_bus: LiveBus, ann: Calls) -> None:
    waiting = [ann.begin("Append", context_id="grpc/many", payload=b"%d" % one) for one in range(3_000)]
    assert {len(one.result()) > 0 for one in waiting} == {True}
    assert ann.call("GetContext", context_id="grpc/many").context.version == 3_000


def test_the_same_contexts_as_over_http(shared_bus: LiveBus, ann: Calls) -> None:
    changed = ann.call("UpdateContext", context_id="grpc/c", display_name="C", add_agents=["ann"], meta={"a": "1"})
    assert shared_bus.http.get("/contexts/grpc/c").json()["meta"] == {"a": "1"}
    assert ann.call("GetContext", context_id="grpc/c").context == changed.context
    gone = ann.call("UpdateContext", context_id="grpc/c", unset_meta=["a"], fences={"globs": ["x/*"]})
    assert (dict(gone.context.meta), list(gone.context.fences)) == ({}, ["x/*"])
    # A list that is empty on purpose is another thing than none.
    assert list(ann.call("UpdateContext", context_id="grpc/c", display_name="D").context.fences) == ["x/*"]
    assert list(ann.call("UpdateContext", context_id="grpc/c", fences={}).context.fences) == []
    with pytest.raises(Refused) as refused:
        ann.call("UpdateContext", context_id="grpc/c", meta={"a": "1"}, unset_meta=["a"])
    assert refused.value.error.field == "unset_meta"
    assert [one.id for one in ann.call("ListContexts", prefix="grpc/c").contexts] == ["grpc/c"]


def test_status_is_that_of_http(shared_bus: LiveBus, ann: Calls) -> None:
    over_http, over_grpc = shared_bus.http.get("/status").json(), ann.call("GetStatus")
    for name in ("version", "epoch", "durability", "ready", "contexts"):
        assert getattr(over_grpc, name) == over_http[name], name


# --- What clients out of the box can read ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(shared_bus: LiveBus) -> Iterator[Calls]:
    """A channel without a single option: messages of up to 4 MiB, metadata of up to 8 KiB."""
    with grpc.insecure_channel(shared_bus.grpc_address) as channel:
        yield Calls(channel)


def test_an_answer_of_many_large_units_is_a_shorter_page(plain: Calls) -> None:
    for n in range(6):
        plain.call("Append", context_id="grpc/large", payload=b"%d" % n + b"x" * 1_000_000)
    heard, page = [], None
    while True:
        answer = plain.call("List", context_id="grpc/large", **({} if page is None else {"page": page}))
        heard += [unit.payload[:1] for unit in answer.work_units]
        if not answer.HasField("next_page"):
            break
        page = answer.next_page
    assert heard == [b"%d" % n for n in range(6)]
    newest = plain.call("List", context_id="grpc/large", reverse=True)
    assert [unit.payload[:1] for unit in newest.work_units] == [b"5", b"4", b"3"]
    rest = plain.call("List", context_id="grpc/large", reverse=True, page=newest.next_page)
    assert [unit.payload[:1] for unit in rest.work_units] == [b"2", b"1", b"0"]


def test_a_large_batch_is_answered_without_its_payloads(plain: Calls) -> None:
    appends = [append_pb2.AppendRequest(context_id="grpc/heavy", payload=b"x" * 900_000) for _ in range(5)]
    for atomic in (False, True):
        answer = plain.call("AppendBulk", appends=appends, atomic=atomic)
        assert answer.without_payloads
        assert {one.work_unit.payload for one in answer.results} == {b""}
        assert all(one.work_unit.seq for one in answer.results)
    assert not plain.call("AppendBulk", appends=appends[:3]).without_payloads


@pytest.mark.parametrize("letter", ["x", "ж"])
def test_a_refusal_with_the_longest_names_reaches_everyone(plain: Calls, letter: str) -> None:
    size = len(letter.encode())
    resource, agent = f"l{letter * (1_000 // size)}", letter * (240 // size)
    plain.call("AcquireLock", resources=[resource], agent_id=agent, reason=letter * (1_000 // size), ttl_seconds=600)
    for _ in range(30):
        with pytest.raises(Refused) as refused:
            plain.call("AcquireLock", resources=[resource])
        assert (refused.value.status, refused.value.code) == ("FAILED_PRECONDITION", "LOCK_HELD")
        assert refused.value.error.details["holder_agent"] == agent


def test_a_long_circle_is_told_as_far_as_there_is_room(shared_bus: LiveBus, plain: Calls) -> None:
    agents = 48
    names = [f"repo/services/payments/src/main/module_{one}.py" for one in range(agents)]
    for one in range(agents):
        plain.call("AcquireLock", resources=[names[one]], agent_id=f"coding-agent-{one}", ttl_seconds=600)
    waiting = [
        plain.begin("AcquireLock", resources=[names[one + 1]], agent_id=f"coding-agent-{one}", wait_seconds=60)
        for one in range(agents - 1)
    ]
    shared_bus.wait(lambda bus: all(bus.lock(name).queue_length == 1 for name in names[1:]))
    last = {"resources": [names[0]], "agent_id": f"coding-agent-{agents - 1}", "wait_seconds": 60}
    for _ in range(10):
        with pytest.raises(Refused) as refused:
            plain.call("AcquireLock", **last)
        assert (refused.value.status, refused.value.code) == ("ABORTED", "DEADLOCK")
        assert refused.value.error.details["truncated"]
        assert 1 <= len(refused.value.error.details["cycle"]) < agents
    for call in waiting:
        call.cancel()


def test_a_search_says_what_it_looks_for(ann: Calls) -> None:
    with pytest.raises(Refused) as refused:
        ann.call("Search")
    assert (refused.value.code, refused.value.error.field) == ("INVALID_REQUEST", "query")


# --- Waiting for locks -----------------------------------------------------------------------------------------------


def waits(bus: LiveBus, resource: str) -> int:
    return bus.call(lambda inner: inner.lock(resource).queue_length)


def test_a_wait_is_answered_when_it_is_granted(shared_bus: LiveBus, ann: Calls) -> None:
    held = ann.call("AcquireLock", resources=["grpc/a"], agent_id="bob")
    waiting = ann.begin("AcquireLock", resources=["grpc/a"], wait_seconds=60)
    shared_bus.wait(lambda bus: bus.lock("grpc/a").queue_length == 1)
    assert ann.call("ReleaseLock", lock_id=held.locks[0].lock_id, agent_id="bob").released
    waiting.result()
    assert ann.call("GetLock", resource="grpc/a").holders[0].holder_agent == "ann"


@pytest.mark.parametrize("how", ["cancelled", "out of time", "disconnected"])
def test_who_does_not_wait_any_more_leaves_the_line(shared_bus: LiveBus, ann: Calls, how: str) -> None:
    resource = f"grpc/{how}"
    ann.call("AcquireLock", resources=[resource], agent_id="bob")
    with calls(shared_bus.grpc_address) as eve:
        timeout = 0.5 if how == "out of time" else 60
        waiting = eve.begin("AcquireLock", resources=[resource], agent_id="eve", wait_seconds=60, timeout=timeout)
        shared_bus.wait(lambda bus: bus.lock(resource).queue_length == 1)
        if how == "cancelled":
            waiting.cancel()
        if how != "disconnected":
            shared_bus.wait(lambda bus: bus.lock(resource).queue_length == 0)
    shared_bus.wait(lambda bus: bus.lock(resource).queue_length == 0)


# --- Sessions --------------------------------------------------------------------------------------------------------


class Session:
    """A HoldSession call."""

    def __init__(self, ann: Calls) -> None:
        self._signs: queue.SimpleQueue[lock_pb2.HoldSessionRequest | None] = queue.SimpleQueue()
        hold = ann.channel.stream_stream(
            f"/{SERVICE.full_name}/HoldSession",
            request_serializer=lock_pb2.HoldSessionRequest.SerializeToString,
            response_deserializer=lock_pb2.HoldSessionResponse.FromString,
        )
        self.call = hold(iter(self._signs.get, None), timeout=60)
        self.name = next(self.call).session

    def ping(self, sign: int) -> lock_pb2.HoldSessionResponse:
        self._signs.put(lock_pb2.HoldSessionRequest(id=sign))
        answer: lock_pb2.HoldSessionResponse = next(self.call)
        return answer

    def end(self) -> None:
        self._signs.put(None)


@pytest.mark.parametrize("how", ["says so", "cancels", "disconnects"])
def test_a_lock_of_a_session_is_released_after_it(how: str) -> None:
    with LiveBus(session_grace_seconds=0.2) as bus, calls(bus.grpc_address) as ann:
        with calls(bus.grpc_address) as eve:
            session = Session(eve)
            assert (session.ping(7).id, session.ping(8).session) == (8 - 1, session.name)
            ann.call("AcquireLock", resources=["tied"], session=session.name, ttl_seconds=600)
            ann.call("AcquireLock", resources=["free"], ttl_seconds=600)
            if how == "says so":
                session.end()
            elif how == "cancels":
                session.call.cancel()
        bus.wait(lambda inner: not inner.lock("tied").holders)
        assert ann.call("GetLock", resource="free").holder_count == 1
        with pytest.raises(Refused) as refused:
            ann.call("AcquireLock", resources=["tied"], session=session.name)
        assert (refused.value.code, refused.value.error.field) == ("INVALID_REQUEST", "session")


def test_a_lock_that_is_asked_for_again_in_time_outlives_its_session() -> None:
    with LiveBus(session_grace_seconds=600) as bus, calls(bus.grpc_address) as ann:
        first, second = Session(ann), Session(ann)
        held = ann.call("AcquireLock", resources=["a"], session=first.name)
        first.call.cancel()
        again = ann.call("AcquireLock", resources=["a"], session=second.name)
        assert (again.extended, again.locks[0].lock_id) == (True, held.locks[0].lock_id)
        second.call.cancel()


def test_who_waits_for_a_lock_of_a_session_waits_no_longer_than_it_lives() -> None:
    with LiveBus() as bus, calls(bus.grpc_address) as ann, calls(bus.grpc_address) as eve:
        ann.call("AcquireLock", resources=["a"], agent_id="bob")
        session = Session(eve)
        waiting = ann.begin("AcquireLock", resources=["a"], session=session.name, wait_seconds=60)
        bus.wait(lambda inner: inner.lock("a").queue_length == 1)
        session.end()
        with pytest.raises(grpc.RpcError) as ended:
            waiting.result()
        assert Refused(ended.value).code == "WAIT_ENDED"
        bus.wait(lambda inner: inner.lock("a").queue_length == 0)


def test_a_session_is_told_of_the_stop(tmp_path: Path) -> None:
    with LiveBus(tmp_path / "data") as bus, calls(bus.grpc_address) as ann:
        session = Session(ann)
        bus.stop()
        with pytest.raises(grpc.RpcError) as ended:
            next(session.call)
        assert Refused(ended.value).code == "SHUTTING_DOWN"


# --- AppendStream ----------------------------------------------------------------------------------------------------


def message(ids: range, context_id: str = "grpc/stream", **fields: Any) -> append_pb2.AppendStreamRequest:
    items = [
        append_pb2.AppendStreamItem(
            id=one, append=append_pb2.AppendRequest(context_id=context_id, payload=b"%d" % one, **fields)
        )
        for one in ids
    ]
    return append_pb2.AppendStreamRequest(items=items)


def test_a_stream_of_appends_is_answered_item_by_item_in_order(ann: Calls) -> None:
    sent = [message(range(at, at + 7)) for at in range(0, 700, 7)]
    results = [one for answer in ann.stream(sent) for one in answer.results]
    assert [one.id for one in results] == list(range(700))
    assert [one.receipt.version for one in results] == list(range(1, 701))
    assert {one.receipt.durability for one in results} == {"fsync"}


def test_a_refusal_answers_its_item_and_the_stream_goes_on(ann: Calls) -> None:
    sent = [
        message(range(1), "grpc/s2"),
        message(range(1, 2), "grpc/s2", kind="lock.x"),
        message(range(2, 3), "grpc/s2"),
    ]
    results = {one.id: one for answer in ann.stream(sent) for one in answer.results}
    assert results[1].error.code == "INVALID_REQUEST"
    assert (results[0].receipt.version, results[2].receipt.version) == (1, 2)


def test_a_message_that_cannot_be_read_ends_the_stream_after_the_answers_before_it(ann: Calls) -> None:
    append = ann.channel.stream_stream(
        f"/{SERVICE.full_name}/AppendStream",
        response_deserializer=append_pb2.AppendStreamResponse.FromString,
    )
    sent = [message(range(3), "grpc/s3", agent_id="ann").SerializeToString(), b"\xff"]
    call = append(iter(sent), timeout=20)
    assert [one.id for one in next(call).results] == [0, 1, 2]
    with pytest.raises(grpc.RpcError) as ended:
        next(call)
    assert Refused(ended.value).code == "INVALID_REQUEST"


def test_a_message_of_too_many_units_ends_the_stream(ann: Calls) -> None:
    with pytest.raises(grpc.RpcError) as ended:
        list(ann.stream([message(range(BULK_UNITS_MAX + 1))]))
    refused = Refused(ended.value)
    assert (refused.code, refused.error.field, refused.error.limit) == ("TOO_LARGE", "items", BULK_UNITS_MAX)


def test_who_does_not_read_its_answers_is_not_read(shared_bus: LiveBus) -> None:
    """The client takes no answer, so their flow control stops, and with it what the bus takes from it."""
    endless = (message(range(at, at + 100), "grpc/greedy") for at in range(0, 1_000_000, 100))
    with calls(shared_bus.grpc_address, grows=False) as eve:
        call = eve.stream(endless, timeout=60)
        shared_bus.wait(lambda bus: bus.writer.state.contexts.version("grpc/greedy") > 0)
        before = 0
        while before != (now := _settled(shared_bus)):
            before = now
        assert STREAM_PENDING_MAX <= before <= 4 * STREAM_PENDING_MAX, "what is pending, and 64 KiB of answers"
        call.cancel()


def _settled(bus: LiveBus) -> int:
    """Its version after everybody else had a turn."""
    for n in range(50):
        bus.append("grpc/other", str(n))
    return bus.call(lambda inner: inner.writer.state.contexts.version("grpc/greedy"))


def test_who_takes_no_answer_for_too_long_is_ended() -> None:
    endless = (message(range(at, at + 100), "grpc/frozen") for at in range(0, 1_000_000, 100))
    with LiveBus(stall_seconds=1) as bus, calls(bus.grpc_address, grows=False) as eve:
        call = eve.stream(endless, timeout=60)
        bus.wait(lambda inner: inner.writer.state.contexts.version("grpc/frozen") > 0)
        # Its memory is given back: the call is over, though nobody reads that.
        deadline = time.monotonic() + 20
        while 'method="AppendStream",status="UNAVAILABLE"' not in bus.http.get("/metrics").text:
            assert time.monotonic() < deadline, "it was never ended"
        call.cancel()


# --- Health and reflection -------------------------------------------------------------------------------------------


class FailingLog(MemoryLog):
    """A log whose disk can be told to fail."""

    is_failing = False

    def append(self, records: Any) -> None:
        self.probe()
        super().append(records)

    def probe(self) -> None:
        if self.is_failing:
            raise StorageFailed("the disk failed")


@pytest.mark.parametrize("service", ["", "engram.v1.EngramBus"])
def test_health_follows_readiness(service: str) -> None:
    log = FailingLog()
    with LiveBus(log=log) as bus, calls(bus.grpc_address) as ann:
        health = health_pb2_grpc.HealthStub(ann.channel)
        asked = health_pb2.HealthCheckRequest(service=service)
        watched = health.Watch(asked, timeout=20)
        assert health.Check(asked).status == next(watched).status == health_pb2.HealthCheckResponse.SERVING
        log.is_failing = True
        with pytest.raises(Refused) as refused:
            ann.call("Append", context_id="plan", payload=b"x")
        assert (refused.value.status, refused.value.code) == ("UNAVAILABLE", "STORAGE_FAILED")
        assert bus.http.get("/readyz").status_code == 503
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert health.Check(asked).status == health_pb2.HealthCheckResponse.NOT_SERVING
        log.is_failing = False
        bus.call(lambda inner: inner.writer.check())
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        assert bus.http.get("/readyz").status_code == 200


def test_health_of_what_is_not_here_is_not_found(ann: Calls) -> None:
    health = health_pb2_grpc.HealthStub(ann.channel)
    with pytest.raises(grpc.RpcError) as refused:
        health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_tells_the_services_and_their_messages(ann: Calls) -> None:
    database = ProtoReflectionDescriptorDatabase(ann.channel)
    assert {"engram.v1.EngramBus", "grpc.health.v1.Health"} <= set(database.get_services())
    file = database.FindFileContainingSymbol("engram.v1.EngramBus")
    assert [method.name for method in file.service[0].method] == list(METHODS)


# --- The end ---------------------------------------------------------------------------------------------------------


def test_a_stop_answers_what_was_taken_and_says_goodbye(tmp_path: Path) -> None:
    """A stream of appends is answered as far as it was taken, then told to come back."""
    with LiveBus(tmp_path / "data") as bus, calls(bus.grpc_address) as ann:
        stopping, said = threading.Event(), threading.Event()

        def some() -> Iterator[append_pb2.AppendStreamRequest]:
            yield message(range(10))
            said.set()
            stopping.wait(20)

        call = ann.stream(some())
        assert [one.id for one in next(call).results] == list(range(10))
        assert said.wait(20)
        stopper = threading.Thread(target=bus.stop)
        stopper.start()
        with pytest.raises(grpc.RpcError) as ended:
            next(call)
        stopping.set()
        stopper.join()
        refused = Refused(ended.value)
        assert (refused.status, refused.code, refused.error.retryable) == ("UNAVAILABLE", "SHUTTING_DOWN", True)
        bus.start()
        assert ann.call("List", context_id="grpc/stream").work_units[-1].version == 10


def test_a_waiter_is_told_of_the_stop(tmp_path: Path) -> None:
    with LiveBus(tmp_path / "data") as bus, calls(bus.grpc_address) as ann:
        ann.call("AcquireLock", resources=["a"], agent_id="bob")
        waiting = ann.begin("AcquireLock", resources=["a"], wait_seconds=60)
        bus.wait(lambda inner: inner.lock("a").queue_length == 1)
        bus.stop()
        with pytest.raises(grpc.RpcError) as ended:
            waiting.result()
        assert Refused(ended.value).code == "SHUTTING_DOWN"


def test_a_stop_does_not_wait_for_who_watches_health_or_reflects(tmp_path: Path) -> None:
    with LiveBus(tmp_path / "data") as bus, calls(bus.grpc_address) as ann:
        watched = health_pb2_grpc.HealthStub(ann.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        next(watched)
        ProtoReflectionDescriptorDatabase(ann.channel).get_services()
        began = time.monotonic()
        bus.stop()
        assert time.monotonic() - began < DRAIN_SECONDS_MAX
        with pytest.raises(grpc.RpcError):
            list(watched)


def test_calls_are_counted(shared_bus: LiveBus, ann: Calls) -> None:
    ann.call("GetStatus")
    with pytest.raises(Refused):
        ann.call("Get", id="nothing")
    text = shared_bus.http.get("/metrics").text
    assert 'engram_grpc_calls_total{method="GetStatus",status="OK"}' in text
    assert 'engram_grpc_calls_total{method="Get",status="NOT_FOUND"}' in text
