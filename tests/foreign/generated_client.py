"""A client of stubs that protoc made a moment ago, found on PYTHONPATH: `generated_client.py read|talk ADDRESS`.

It reads as the other foreign readers do, or holds the conversation of conversation.py.
"""

import json
import sys
import time
from base64 import b64encode
from typing import Any

import grpc
from engram.v1 import append_pb2, bus_pb2_grpc, error_pb2, lock_pb2, search_pb2, subscription_pb2, unit_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status


def main(what: str, address: str) -> None:
    """One or the other."""
    with grpc.insecure_channel(address, options=[("grpc.initial_reconnect_backoff_ms", 100)]) as channel:
        bus = bus_pb2_grpc.EngramBusStub(channel)
        if what == "read":
            read(bus)
        print(json.dumps(talk(bus, channel)))
    assert not any(name.startswith("engram_") for name in sys.modules), "it knows nothing of our packages"


def read(bus: Any) -> None:
    """For ever, one seq a line; whoever started this ends it."""
    cursor = "0"
    while True:
        try:
            for message in bus.Subscribe(subscription_pb2.SubscribeRequest(context=["plan"], after=cursor)):
                for unit in message.work_units:
                    print(unit.seq, flush=True)
                cursor = message.cursor
        except grpc.RpcError:
            time.sleep(0.05)


def talk(bus: Any, channel: grpc.Channel) -> dict[str, Any]:
    """What the bus said."""
    appended = bus.Append(_said("I take the parser"), metadata=[("x-agent-id", "ann")])
    unit = appended.work_unit
    lock = bus.AcquireLock(lock_pb2.AcquireLockRequest(resources=["repo/src"], agent_id="ann", reason="rewrite")).locks[
        0
    ]
    held = lock_pb2.AcquireLockRequest(resources=["repo/src/a.py"], agent_id="bob")
    raw = append_pb2.AppendRequest(
        context_id="plan",
        content_type="application/octet-stream",
        payload=b"\x00\xff",
        fence=append_pb2.Fence(resource="repo/src/a.py", token=lock.fencing_token),
    )
    raw.agent_id = "ann"
    fenced = bus.Append(raw)
    raw.agent_id = "bob"
    search = search_pb2.SearchRequest(query="parser", include="UNITS", min_seq=6, limit=1)
    return {
        "appended": [
            *(unit.seq, unit.version, unit.agent_id, unit_pb2.WorkUnit.Type.Name(unit.type)),
            *(unit.payload.decode(), appended.durability),
        ],
        "granted": [lock.resource, lock.holder_agent, lock.fencing_token],
        "held": _refusal(bus.AcquireLock, held, "holder_agent"),
        "fenced": fenced.work_unit.seq,
        "stale": _refusal(bus.Append, raw),
        "streamed": _streamed(bus),
        "found": [one.unit.payload.decode() for one in bus.Search(search).results],
        "heard": _heard(bus, 5),
        "health": _health(channel),
        "services": sorted(ProtoReflectionDescriptorDatabase(channel).get_services()),
    }


def _said(text: str, agent: str | None = None) -> append_pb2.AppendRequest:
    return append_pb2.AppendRequest(context_id="plan", agent_id=agent, payload=text.encode())


def _refusal(method: Any, request: Any, *details: str) -> list[Any]:
    """What is in the way: the status, the code of the Error among its details, and some of what to act on."""
    try:
        raise AssertionError(f"it was let through: {method(request)}")
    except grpc.RpcError as exc:
        status = rpc_status.from_call(exc)
        error = error_pb2.Error()
        assert status.details[0].Unpack(error)
        return [exc.code().name, error.code, *(error.details[name] for name in details)]


def _streamed(bus: Any) -> list[list[Any]]:
    items = [
        append_pb2.AppendStreamItem(id=1, append=_said("the lexer is done", "bob")),
        append_pb2.AppendStreamItem(id=2, append=_said("the tests pass", "bob")),
        append_pb2.AppendStreamItem(id=3, append=append_pb2.AppendRequest(agent_id="bob")),
        append_pb2.AppendStreamItem(id=4, append=_said("so I go home", "bob")),
    ]
    messages = [append_pb2.AppendStreamRequest(items=some) for some in (items[:2], items[2:3], items[3:])]
    return sorted(
        [result.id, result.receipt.seq if result.HasField("receipt") else result.error.code]
        for message in bus.AppendStream(iter(messages))
        for result in message.results
    )


def _heard(bus: Any, count: int) -> list[list[Any]]:
    units: list[list[Any]] = []
    call = bus.Subscribe(subscription_pb2.SubscribeRequest(context=["plan"], after="0"))
    while len(units) < count:
        units += [[unit.seq, unit.agent_id, b64encode(unit.payload).decode()] for unit in next(call).work_units]
    call.cancel()
    return units


def _health(channel: grpc.Channel) -> str:
    asked = health_pb2.HealthCheckRequest(service="engram.v1.EngramBus")
    answer = health_pb2_grpc.HealthStub(channel).Check(asked)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


if __name__ == "__main__":
    main(*sys.argv[1:])
