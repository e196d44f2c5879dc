"""Every transport by its name: what it can say, what it needs, and how it is opened for one exchange."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from engram_bus.conformance.transports.client import OfClient
from engram_bus.conformance.transports.connections import Connections
from engram_bus.conformance.transports.grpc import Grpc
from engram_bus.conformance.transports.http_json import HttpJson
from engram_bus.conformance.transports.http_msgpack import HttpMsgpack
from engram_bus.conformance.transports.http_protobuf import HttpProtobuf
from engram_bus.conformance.transports.sse import Sse
from engram_bus.conformance.transports.websocket import InJson, InMsgpack, WebSocket


class Way(msgspec.Struct, frozen=True):
    """A transport."""

    open: Callable[[Connections], Any]
    """Gives a Transport (which mypy cannot see through a field)."""
    verbs: frozenset[str]
    """What it can say itself."""
    needs_grpc: bool = False
    is_client: bool = False
    """It has types of its own: what they cannot say is left out."""


TRANSPORTS: Final[dict[str, Way]] = {
    "http-json": Way(lambda to: HttpJson(to.web), HttpJson.verbs),
    "http-msgpack": Way(lambda to: HttpMsgpack(to.web), HttpMsgpack.verbs),
    "http-protobuf": Way(lambda to: HttpProtobuf(to.web), HttpProtobuf.verbs),
    "websocket-json": Way(lambda to: WebSocket(to.place.url, InJson(), in_urls=True), WebSocket.verbs),
    "websocket-msgpack": Way(lambda to: WebSocket(to.place.url, InMsgpack(), in_urls=False), WebSocket.verbs),
    "sse": Way(lambda to: Sse(to.web), Sse.verbs),
    "grpc": Way(lambda to: Grpc(to.channel), Grpc.verbs, needs_grpc=True),
    "client": Way(lambda to: to.client, OfClient.verbs, is_client=True),
    "client-grpc": Way(lambda to: to.client_grpc, OfClient.verbs, needs_grpc=True, is_client=True),
}
"""In the order in which they are played."""
