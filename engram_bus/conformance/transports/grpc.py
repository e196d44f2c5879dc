"""The door to gRPC: every verb as a call, a subscription as a stream of messages."""

from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import Any, Final, TypeAlias

import grpc.aio
from google.protobuf.message import Message
from google.rpc import status_pb2

from engram_bus.conformance.transports import protobuf
from engram_bus.conformance.transports.contract import (
    EVENTS,
    Asked,
    Broken,
    CannotSay,
    Event,
    InStream,
    OverGrpc,
    Refused,
    Stream,
    Units,
)
from engram_bus.pb import append_pb2, error_pb2, lock_pb2
from engram_bus.pb import subscription_pb2 as subscription

Channel: TypeAlias = grpc.aio.Channel
_SERVICE: Final = "/engram.v1.EngramBus/"
_DETAILS: Final = "grpc-status-details-bin"
_ITEMS: Final = 3
"""Of a stream of appends, so many go into one message."""
_BY_METADATA: Final = frozenset({"append", "acquire_lock"})
"""Here the agent is named by the call, elsewhere by the message: both are read."""
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),  # a bus that was restarted is back at once
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 250),
)


class Grpc:
    """A client of every method."""

    verbs = frozenset(protobuf.METHODS) | {"append_many", "subscribe", "hang_up"}

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._sessions: dict[str, _Session] = {}

    async def end(self) -> None:
        """The channel is shared, sessions are its own."""
        for session in self._sessions.values():
            session.end()

    async def ask(self, verb: str, asked: Asked) -> Any:
        if verb == "append_many":
            return await self._append_many(asked["units"])
        if verb == "hang_up":
            return self._sessions.pop(asked["session"]).end()
        method = protobuf.METHODS.get(verb)
        if method is None:
            raise CannotSay(verb)
        if "session" in asked:
            asked = {**asked, "session": await self._session(asked["session"])}
        metadata, rest = _metadata(asked) if verb in _BY_METADATA else ((), asked)
        call = self._channel.unary_unary(
            _SERVICE + method.name,
            request_serializer=_bytes,
            response_deserializer=method.gives.FromString,
        )
        try:
            return method.out(await call(method.request(rest), metadata=metadata))
        except grpc.aio.AioRpcError as exc:
            raise refused(exc) from exc

    async def subscribe(self, asked: Asked) -> Stream:
        method = self._channel.unary_stream(
            f"{_SERVICE}Subscribe",
            request_serializer=_bytes,
            response_deserializer=subscription.SubscribeResponse.FromString,
        )
        stream = _Stream(method(protobuf.subscribe_request(asked)))
        first = await stream.next()
        if not isinstance(first, Event) or first.name != "subscribed":
            raise Broken(f"`subscribed` comes first, not {first}")
        stream.answer = first.fields
        return stream

    async def _session(self, name: str) -> str:
        """What the bus calls the session that an exchange calls so."""
        if name not in self._sessions:
            self._sessions[name] = await _Session.open(self._channel)
        return self._sessions[name].session

    async def _append_many(self, units: list[Asked]) -> Any:
        items = [
            append_pb2.AppendStreamItem(id=number, append=protobuf.append_request(unit))
            for number, unit in enumerate(units, 1)
        ]
        method = self._channel.stream_stream(
            f"{_SERVICE}AppendStream",
            request_serializer=_bytes,
            response_deserializer=append_pb2.AppendStreamResponse.FromString,
        )
        results: dict[int, Any] = {}
        try:
            async for response in method(_messages(items)):
                results |= {result.id: _result(result) for result in response.results}
        except grpc.aio.AioRpcError as exc:
            raise refused(exc) from exc
        if results.keys() != {item.id for item in items}:
            raise Broken(f"{len(items)} units were sent, and the results are of {sorted(results)}")
        return {"results": [results[item.id] for item in items]}


class _Session:
    """A call that locks are tied to."""

    def __init__(self, call: Any, session: str) -> None:
        self._call = call
        self.session = session

    @classmethod
    async def open(cls, channel: Channel) -> "_Session":
        """It is open when the bus has given it a name, and answers to signs of life. Raises Refused, Broken."""
        call: Any = channel.stream_stream(
            f"{_SERVICE}HoldSession",
            request_serializer=_bytes,
            response_deserializer=lock_pb2.HoldSessionResponse.FromString,
        )()
        try:
            first = await call.read()
            await call.write(lock_pb2.HoldSessionRequest(id=7))
            echo = await call.read()
        except grpc.aio.AioRpcError as exc:
            raise refused(exc) from exc
        if first.id != 0 or echo.id != 7 or first.session != echo.session:
            raise Broken(f"a session is named, and echoes signs of life, not {first} {echo}")
        return cls(call, first.session)

    def end(self) -> None:
        self._call.cancel()


class _Stream:
    """A call that goes on."""

    hears = EVENTS

    def __init__(self, call: Any) -> None:  # of grpc's own generic type, which its stubs make no name for
        self._call = call
        self.answer: dict[str, Any] = {}

    async def next(self) -> Units | Event:
        try:
            said = await self._call.read()
        except grpc.aio.AioRpcError as exc:
            raise refused(exc) from exc
        if said is grpc.aio.EOF:
            raise Broken("the stream ended without a status that says why")
        if said.work_units:
            return Units.of([protobuf.unit(unit) for unit in said.work_units], said.cursor)
        name = said.WhichOneof("event")
        if name is None:
            raise Broken(f"a message with neither units nor an event: {said}")
        fields = protobuf.plain(getattr(said, name))
        return Event(name, {**fields, "cursor": said.cursor})

    async def leave(self) -> None:
        self._call.cancel()


def open_channel(address: str) -> Channel:
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


def refused(failed: grpc.aio.AioRpcError) -> Refused | Broken:
    """What the status of a call says, and the engram.v1.Error that comes with it."""
    code = failed.code()
    said = status_pb2.Status()
    for key, value in failed.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            said.ParseFromString(value)
    if said.details and said.code != code.value[0]:
        return Broken(f"the status is {code.name}, and its details are of {said.code}")
    for detail in said.details:
        error = error_pb2.Error()
        if detail.Unpack(error):
            return protobuf.error(error, OverGrpc(code.name, has_error=True))
    return Refused({"message": failed.details()}, OverGrpc(code.name, has_error=False))


def _metadata(asked: Asked) -> tuple[tuple[tuple[str, str], ...], Asked]:
    """The agent as metadata, where those can hold its name, and the rest."""
    agent_id = asked.get("agent_id")
    if not isinstance(agent_id, str) or not agent_id.isascii() or not agent_id.isalnum():
        return (), asked
    return (("x-agent-id", agent_id),), {name: value for name, value in asked.items() if name != "agent_id"}


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()


async def _messages(items: Iterable[append_pb2.AppendStreamItem]) -> AsyncIterator[append_pb2.AppendStreamRequest]:
    rest = iter(items)
    while some := list(islice(rest, _ITEMS)):
        yield append_pb2.AppendStreamRequest(items=some)


def _result(result: append_pb2.AppendStreamResult) -> Any:
    if result.WhichOneof("outcome") == "error":
        return {"error": protobuf.error(result.error, InStream())}
    return protobuf.receipt(result.receipt)
