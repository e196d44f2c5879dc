"""HTTP with MessagePack: appends, there and back."""

from typing import Any, Final

import msgspec

from engram_bus.conformance.transports import payloads
from engram_bus.conformance.transports.contract import Asked, Broken, CannotSay, Stream
from engram_bus.conformance.transports.http_json import receipt
from engram_bus.conformance.transports.web import Web

_TYPE: Final = "application/msgpack"


class HttpMsgpack:
    """A client that appends."""

    verbs = frozenset({"append"})

    def __init__(self, web: Web) -> None:
        self._web = web

    async def end(self) -> None:
        """Its connections are shared."""

    async def ask(self, verb: str, asked: Asked) -> Any:
        body = msgspec.msgpack.encode(payloads.packed(asked))
        answer = await self._web.ask("POST", "/workunit", headers={"content-type": _TYPE, "accept": _TYPE}, body=body)
        if answer.headers.get("content-type") != _TYPE:
            raise Broken(f"{_TYPE} was asked for, {answer.headers.get('content-type')} came")
        return receipt(payloads.said(msgspec.msgpack.decode(answer.content)), answer)

    async def subscribe(self, asked: Asked) -> Stream:
        raise CannotSay("subscribe")
