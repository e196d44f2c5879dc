"""Calls of the bus over gRPC for tests: by the name of a method, with the message that it takes."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from engram_bus.pb import bus_pb2, error_pb2

SERVICE = bus_pb2.DESCRIPTOR.services_by_name["EngramBus"]
METHODS = {method.name: method for method in SERVICE.methods}
SECONDS = 20.0
"""How long a test waits for what must come."""

Metadata = Sequence[tuple[str, str | bytes]]


class Refused(Exception):
    """The bus said no."""

    def __init__(self, error: grpc.RpcError) -> None:
        super().__init__(f"{error.code()}: {error.details()}")
        self.status: str = error.code().name
        self.metadata = dict(error.trailing_metadata() or ())
        self.error = error_pb2.Error()
        self.retry_seconds: int | None = None
        status = rpc_status.from_call(error)
        if status is not None:
            assert status.details[0].Unpack(self.error)
            assert self.error.message.startswith(status.message.removesuffix("..."))
            retry = error_details_pb2.RetryInfo()
            if len(status.details) > 1 and status.details[1].Unpack(retry):
                self.retry_seconds = retry.retry_delay.seconds

    @property
    def code(self) -> str:
        """Of the bus; empty where gRPC itself said no."""
        return str(self.error.code)


class Calls:
    """A channel to a bus."""

    def __init__(self, channel: grpc.Channel, agent_id: str | None = "ann") -> None:
        self.channel = channel
        self._metadata: Metadata = () if agent_id is None else (("x-agent-id", agent_id),)

    def call(self, method: str, *, timeout: float = SECONDS, **fields: Any) -> Any:
        """The answer to a method that answers once. Raises Refused."""
        return self.raw(method, request_of(method, **fields).SerializeToString(), timeout=timeout)

    def raw(self, method: str, body: bytes, *, timeout: float = SECONDS, metadata: Metadata | None = None) -> Any:
        """The same of any bytes."""
        try:
            answer = self.channel.unary_unary(_path(method))(
                body, timeout=timeout, metadata=self._metadata if metadata is None else metadata
            )
        except grpc.RpcError as exc:
            raise Refused(exc) from exc
        return _message(METHODS[method].output_type).FromString(answer)

    def begin(self, method: str, *, timeout: float = SECONDS, **fields: Any) -> Any:
        """A call under way: its `result()` is the answer's bytes."""
        body = request_of(method, **fields).SerializeToString()
        return self.channel.unary_unary(_path(method)).future(body, timeout=timeout, metadata=self._metadata)

    def stream(self, requests: Iterable[Message], *, timeout: float = SECONDS) -> Any:
        """An AppendStream call: iterate over its answers."""
        append = self.channel.stream_stream(
            _path("AppendStream"),
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_message(METHODS["AppendStream"].output_type).FromString,
        )
        return append(iter(requests), timeout=timeout, metadata=self._metadata)

    def subscribe(self, *, timeout: float = SECONDS, **fields: Any) -> Any:
        """A Subscribe call: iterate over its messages."""
        subscribe = self.channel.unary_stream(
            _path("Subscribe"), response_deserializer=_message(METHODS["Subscribe"].output_type).FromString
        )
        return subscribe(request_of("Subscribe", **fields).SerializeToString(), timeout=timeout)


def request_of(method: str, **fields: Any) -> Message:
    return _message(METHODS[method].input_type)(**fields)


@contextmanager
def calls(address: str, agent_id: str | None = "ann", *, grows: bool = True) -> Iterator[Calls]:
    """A channel of its own to the bus at an address. One that does not grow takes 64 KiB of a stream ahead of its
    reader, however fast the network."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    options += [] if grows else [("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield Calls(channel, agent_id)


def _path(method: str) -> str:
    return f"/{SERVICE.full_name}/{method}"


def _message(descriptor: Any) -> Any:
    return message_factory.GetMessageClass(descriptor)
