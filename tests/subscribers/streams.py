"""The ways to read a stream over the wire, as one: what is said, in order, and how it ends.

Every WebSocket frame is decoded as the message that asyncapi.json describes, which allows no other field.
"""

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode

import grpc
import httpx
import httpx_sse
import msgpack  # type: ignore[import-untyped]
import msgspec
from google.protobuf import json_format
from grpc_status import rpc_status
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from engram_bus.pb import error_pb2, subscription_pb2, unit_pb2
from engram_bus.subscribers.messages import Event
from tests.live import LiveBus

Query = list[tuple[str, str]]
SECONDS = 20.0
"""How long a test waits for what must come."""


class Heard(NamedTuple):
    """One frame or event: the units in it, and every field."""

    event: str
    cursor: str
    units: list[dict[str, Any]]
    fields: dict[str, Any]


class Ended(Exception):
    """The stream is over: with a close code, or (SSE) with the end of the response."""

    def __init__(self, close_code: int | None, reason: str) -> None:
        super().__init__(f"{close_code} {reason}")
        self.close_code = close_code
        self.reason = reason


class Refused(Exception):
    """The bus says why there is no stream."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields["code"])
        self.code = str(fields["code"])
        self.fields = fields


class Stream(Protocol):
    """An open stream."""

    def hear(self) -> Heard:
        """The next of it. Raises Ended, Refused."""


def units(stream: Stream, count: int) -> list[dict[str, Any]]:
    """The next so many units, whatever else is said in between."""
    heard: list[dict[str, Any]] = []
    while len(heard) < count:
        heard += stream.hear().units
    return heard


def cursor_after(stream: Stream, count: int) -> str:
    """The cursor when so many units more were heard."""
    heard, cursor = 0, ""
    while heard < count:
        last = stream.hear()
        heard, cursor = heard + len(last.units), last.cursor
    return cursor


class WebSocketStream:
    """A WebSocket of either encoding."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    def hear(self) -> Heard:
        try:
            message = self._socket.recv(SECONDS)
        except ConnectionClosed as exc:
            raise _ended(exc) from exc
        fields = decoded(message)
        if fields["event"] == "error":
            raise Refused(fields)
        return Heard(fields["event"], fields.get("cursor", ""), fields.get("units", []), fields)

    def say(self, op: str, **fields: Any) -> None:
        """An operation."""
        operation = {"op": op, **fields}
        if self._socket.subprotocol == "engram.v1.msgpack":
            self._socket.send(msgpack.packb(operation))
        else:
            self._socket.send(json.dumps(operation))


def _ended(closed: ConnectionClosed) -> Ended:
    assert closed.rcvd is not None, "the connection broke"
    return Ended(closed.rcvd.code, closed.rcvd.reason)


def decoded(message: str | bytes) -> dict[str, Any]:
    """A frame's fields; units of either encoding are given as their JSON."""
    if isinstance(message, str):
        msgspec.json.decode(message, type=Event)
        fields: dict[str, Any] = json.loads(message)
        return fields
    fields = msgpack.unpackb(message)
    if "units" in fields:
        fields["units"] = [_as_json(unit) for unit in fields["units"]]
    msgspec.json.decode(msgspec.json.encode(fields), type=Event)
    return fields


def _as_json(unit: dict[str, Any]) -> dict[str, Any]:
    """A packed unit as its JSON form would be: the rule of the contract, written a second time."""
    payload: bytes = unit.pop("payload")
    if unit["content_type"].startswith("text/"):
        return unit | {"payload": payload.decode()}
    if unit["content_type"] == "application/json":
        return unit | {"payload": json.loads(payload)}
    return unit | {"payload_base64": b64encode(payload).decode()}


class SseStream:
    """Server-sent events, read by httpx-sse."""

    def __init__(self, response: httpx.Response) -> None:
        self._events = httpx_sse.EventSource(response).iter_sse()

    def hear(self) -> Heard:
        event = next(self._events, None)
        if event is None:
            raise Ended(None, "")
        fields = event.json()
        if event.event == "message":
            return Heard("units", event.id, [fields], fields)
        assert event.id == fields.get("cursor", event.id)
        return Heard(event.event, event.id, [], fields)


class Transport(Protocol):
    """A way to open a stream."""

    def __call__(self, bus: LiveBus, query: Query) -> Any:
        """A context manager of a `Stream`, which has not been read."""


def query_text(query: Query) -> str:
    """As it stands in a URL."""
    return "?" + urlencode(query, quote_via=quote) if query else ""


@contextmanager
def websocket_json(bus: LiveBus, query: Query) -> Iterator[WebSocketStream]:
    with connect(bus.stream_url(query_text(query)), max_size=None) as socket:
        yield WebSocketStream(socket)


@contextmanager
def websocket_msgpack(bus: LiveBus, query: Query) -> Iterator[WebSocketStream]:
    url = bus.stream_url(query_text(query))
    with connect(url, subprotocols=[Subprotocol("engram.v1.msgpack")], max_size=None) as socket:
        yield WebSocketStream(socket)


@contextmanager
def sse(bus: LiveBus, query: Query, *, last_event_id: str | None = None) -> Iterator[SseStream]:
    headers = {} if last_event_id is None else {"last-event-id": last_event_id}
    url = f"{bus.url}/stream-sse{query_text(query)}"
    with httpx.Client(verify=False, timeout=SECONDS) as client, client.stream("GET", url, headers=headers) as response:
        if response.status_code != 200:
            assert response.headers["content-type"] == "application/problem+json"
            raise Refused(json.loads(response.read()))
        yield SseStream(response)


class GrpcStream:
    """A Subscribe call."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def hear(self) -> Heard:
        try:
            message = next(self._call)
        except grpc.RpcError as exc:
            raise _ended_call(exc) from exc
        units = [_message_as_json(unit) for unit in message.work_units]
        event = message.WhichOneof("event")
        assert (event is None) == bool(units), "units, or one event"
        fields = {"cursor": message.cursor}
        if event is not None:
            said = getattr(message, event)
            fields |= {field.name: getattr(said, field.name) for field in said.DESCRIPTOR.fields}
        return Heard(event or "units", message.cursor, units, fields)


def _ended_call(error: grpc.RpcError) -> Ended | Refused:
    """A call that stopped is an end, one that never was is a refusal."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    detail = error_pb2.Error()
    assert status.details[0].Unpack(detail)
    fields = json_format.MessageToDict(detail, preserving_proto_field_name=True)
    if detail.code in ("SHUTTING_DOWN", "SLOW_CONSUMER"):
        return Ended(None, f"{detail.code}: {detail.message}")
    return Refused(fields)


def _message_as_json(unit: unit_pb2.WorkUnit) -> dict[str, Any]:
    """A unit's message as its JSON form would be: the rule of the contract, written once more."""
    fields: dict[str, Any] = {"seq": unit.seq, "id": unit.id, "context_id": unit.context_id, "version": unit.version}
    fields |= {"agent_id": unit.agent_id, "type": unit_pb2.WorkUnit.Type.Name(unit.type)}
    fields |= {"ts": f"{unit.ts.ToDatetime().isoformat(timespec='microseconds')}Z", "content_type": unit.content_type}
    fields |= {name: getattr(unit, name) for name in ("kind", "traceparent") if unit.HasField(name)}
    if unit.meta:
        fields["meta"] = dict(unit.meta)
    if unit.resources:
        fields["resources"] = list(unit.resources)
    if unit.relationships:
        fields["relationships"] = [
            {
                "target_id": one.target_id,
                "type": unit_pb2.Relationship.Type.Name(one.type),
                **({"meta": dict(one.meta)} if one.meta else {}),
            }
            for one in unit.relationships
        ]
    return _as_json({**fields, "payload": unit.payload})


@contextmanager
def grpc_stream(bus: LiveBus, query: Query) -> Iterator[GrpcStream]:
    asked = subscription_pb2.SubscribeRequest()
    for name, value in query:
        if name == "after":
            asked.after = value
        elif name.startswith("meta."):
            asked.meta[name[5:]] = value
        elif name == "type":
            asked.type.append(int(value) if value.isdigit() else unit_pb2.WorkUnit.Type.Value(value))
        else:
            getattr(asked, name).append(value)
    with grpc.insecure_channel(bus.grpc_address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        subscribe = channel.unary_stream(
            "/engram.v1.EngramBus/Subscribe",
            request_serializer=subscription_pb2.SubscribeRequest.SerializeToString,
            response_deserializer=subscription_pb2.SubscribeResponse.FromString,
        )
        call = subscribe(asked, timeout=2 * SECONDS)
        try:
            yield GrpcStream(call)
        finally:
            call.cancel()


TRANSPORTS: dict[str, Transport] = {
    "websocket-json": websocket_json,
    "websocket-msgpack": websocket_msgpack,
    "sse": sse,
    "grpc": grpc_stream,
}
