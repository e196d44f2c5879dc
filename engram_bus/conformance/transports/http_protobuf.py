"""HTTP with protobuf: appends, there and back."""

from typing import Any, Final

from google.protobuf.message import DecodeError

from engram_bus.conformance.transports import protobuf
from engram_bus.conformance.transports.contract import Asked, Broken, CannotSay, Stream
from engram_bus.conformance.transports.http_json import receipt
from engram_bus.conformance.transports.web import Web
from engram_bus.pb.unit_pb2 import WorkUnit

_TYPE: Final = "application/x-protobuf"


class HttpProtobuf:
    """A client that appends."""

    verbs = frozenset({"append"})

    def __init__(self, web: Web) -> None:
        self._web = web

    async def end(self) -> None:
        """Its connections are shared."""

    async def ask(self, verb: str, asked: Asked) -> Any:
        body = protobuf.append_request(asked).SerializeToString()
        answer = await self._web.ask("POST", "/workunit", headers={"content-type": _TYPE, "accept": _TYPE}, body=body)
        if answer.headers.get("content-type") != _TYPE:
            raise Broken(f"{_TYPE} was asked for, {answer.headers.get('content-type')} came")
        try:
            return receipt(protobuf.unit(WorkUnit.FromString(answer.content)), answer)
        except DecodeError as exc:
            raise Broken(f"no WorkUnit: {exc}") from exc

    async def subscribe(self, asked: Asked) -> Stream:
        raise CannotSay("subscribe")
