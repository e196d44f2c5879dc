"""The connections to one bus that all exchanges share, each made when the first one needs it."""

from contextlib import AsyncExitStack
from functools import cached_property
from typing import Self
from urllib.parse import urlsplit

import msgspec

from engram_bus.conformance.transports.client import OfClient
from engram_bus.conformance.transports.contract import Broken
from engram_bus.conformance.transports.grpc import Channel, open_channel
from engram_bus.conformance.transports.web import Web


class Place(msgspec.Struct, frozen=True):
    """Where a bus is: its URL, and where it speaks gRPC, if it does."""

    url: str
    grpc: str | None = None


class Connections:
    """To a place, until they are closed."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @cached_property
    def web(self) -> Web:
        web = Web(self.place.url)
        self._stack.push_async_callback(web.aclose)
        return web

    @cached_property
    def channel(self) -> Channel:
        channel = open_channel(self._grpc_address)
        self._stack.push_async_callback(channel.close)
        return channel

    @cached_property
    def client(self) -> OfClient:
        client = OfClient(self.place.url)
        self._stack.push_async_callback(client.aclose)
        return client

    @cached_property
    def client_grpc(self) -> OfClient:
        client = OfClient(f"grpc://{self._grpc_address}")
        self._stack.push_async_callback(client.aclose)
        return client

    @property
    def _grpc_address(self) -> str:
        if self.place.grpc is None:
            raise Broken("this bus speaks no gRPC")
        return self.place.grpc


async def find(url: str, grpc: str | None = None) -> Place:
    """A bus that answers, and where it says that it speaks gRPC. Raises Broken, Refused."""
    web = Web(url)
    try:
        await web.ask("GET", "/healthz")
        if grpc is None:
            port = (await web.ask("GET", "/readyz")).json().get("grpc_port")
            grpc = None if port is None else f"{urlsplit(url).hostname}:{port}"
    finally:
        await web.aclose()
    return Place(url.rstrip("/"), grpc)
