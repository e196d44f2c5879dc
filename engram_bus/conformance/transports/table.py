"""Every transport by its name: what it needs, and how it is opened."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import msgspec

from engram_bus.conformance.transports.client import OfClient, open_client
from engram_bus.conformance.transports.contract import Broken
from engram_bus.conformance.transports.grpc import Grpc, open_channel
from engram_bus.conformance.transports.http_json import HttpJson
from engram_bus.conformance.transports.http_msgpack import HttpMsgpack
from engram_bus.conformance.transports.http_protobuf import HttpProtobuf
from engram_bus.conformance.transports.sse import Sse
from engram_bus.conformance.transports.web import Web
from engram_bus.conformance.transports.websocket import InJson, InMsgpack, WebSocket


class Place(msgspec.Struct, frozen=True):
    """Where a bus is: its URL, and where it speaks gRPC, if it does."""

    url: str
    grpc: str | None = None


Open: TypeAlias = Callable[[Place], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def http_json(place: Place) -> AsyncIterator[HttpJson]:
    async with Web(place.url) as web:
        yield HttpJson(web)


@asynccontextmanager
async def _http_msgpack(place: Place) -> AsyncIterator[HttpMsgpack]:
    async with Web(place.url) as web:
        yield HttpMsgpack(web)


@asynccontextmanager
async def _http_protobuf(place: Place) -> AsyncIterator[HttpProtobuf]:
    async with Web(place.url) as web:
        yield HttpProtobuf(web)


@asynccontextmanager
async def _grpc(place: Place) -> AsyncIterator[Grpc]:
    if place.grpc is None:
        raise Broken("this bus speaks no gRPC")
    async with open_channel(place.grpc) as channel:
        yield Grpc(channel)


@asynccontextmanager
async def _sse(place: Place) -> AsyncIterator[Sse]:
    async with Web(place.url) as web:
        yield Sse(web)


@asynccontextmanager
async def _websocket_json(place: Place) -> AsyncIterator[WebSocket]:
    socket = WebSocket(place.url, InJson(), in_urls=True)
    try:
        yield socket
    finally:
        await socket.aclose()


@asynccontextmanager
async def _websocket_msgpack(place: Place) -> AsyncIterator[WebSocket]:
    socket = WebSocket(place.url, InMsgpack(), in_urls=False)
    try:
        yield socket
    finally:
        await socket.aclose()


class Way(msgspec.Struct, frozen=True):
    """A transport: how it is opened, and what it can say itself."""

    open: Open
    verbs: frozenset[str]
    needs_grpc: bool = False
    is_client: bool = False
    """It has types of its own: what they cannot say is left out."""


@asynccontextmanager
async def _client(place: Place) -> AsyncIterator[OfClient]:
    async with open_client(place.url) as client:
        yield client


@asynccontextmanager
async def _client_grpc(place: Place) -> AsyncIterator[OfClient]:
    if place.grpc is None:
        raise Broken("this bus speaks no gRPC")
    async with open_client(f"grpc://{place.grpc}") as client:
        yield client


TRANSPORTS: Final[dict[str, Way]] = {
    "http-json": Way(http_json, HttpJson.verbs),
    "http-msgpack": Way(_http_msgpack, HttpMsgpack.verbs),
    "http-protobuf": Way(_http_protobuf, HttpProtobuf.verbs),
    "websocket-json": Way(_websocket_json, WebSocket.verbs),
    "websocket-msgpack": Way(_websocket_msgpack, WebSocket.verbs),
    "sse": Way(_sse, Sse.verbs),
    "grpc": Way(_grpc, Grpc.verbs, needs_grpc=True),
    "client": Way(_client, OfClient.verbs, is_client=True),
    "client-grpc": Way(_client_grpc, OfClient.verbs, needs_grpc=True, is_client=True),
}
"""In the order in which they are played."""


async def find(url: str, grpc: str | None = None) -> Place:
    """A bus that answers, and where it says that it speaks gRPC. Raises Broken, Refused."""
    async with Web(url) as web:
        await web.ask("GET", "/healthz")
        if grpc is None:
            port = (await web.ask("GET", "/readyz")).json().get("grpc_port")
            grpc = None if port is None else f"{urlsplit(url).hostname}:{port}"
    return Place(url.rstrip("/"), grpc)
