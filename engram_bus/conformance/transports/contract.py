"""What an adapter of a transport does: verbs as proto/vectors/README.md says them, in and out."""

from typing import Any, Final, NamedTuple, Protocol, Self

import msgspec

Asked = dict[str, Any]


class OverHttp(msgspec.Struct, frozen=True):
    """A refusal as an HTTP answer. `problem` is None where its body was not problem+json."""

    status: int
    problem: dict[str, Any] | None


class OverGrpc(msgspec.Struct, frozen=True):
    """As the status of a call. `has_error`: a google.rpc.Status with an engram.v1.Error came with it."""

    status: str
    has_error: bool


class InFrame(msgspec.Struct, frozen=True):
    """As an error frame of a WebSocket, and the code the socket was closed with after it; None where it was not."""

    close_code: int | None


class AsClose(msgspec.Struct, frozen=True):
    """As the close of a WebSocket alone."""

    close_code: int


class InStream(msgspec.Struct, frozen=True):
    """As a member of an answer or an event that is otherwise fine: an item of a batch, the last event of a stream."""


class AsException(msgspec.Struct, frozen=True):
    """As an exception of a client, which says with what HTTP status it belongs."""

    status: int


Way = OverHttp | OverGrpc | InFrame | AsClose | InStream | AsException


class Refused(Exception):
    """The bus says no: `code`, `message`, `retryable`, `field`, `limit`, `index` and what to act on, in `fields`."""

    def __init__(self, fields: dict[str, Any], way: Way) -> None:
        super().__init__(f"{fields.get('code')}: {fields.get('message')}")
        self.fields = fields
        self.way = way


class Broken(Exception):
    """What came is not of the protocol, or nothing came at all."""


class CannotSay(Exception):
    """This transport has no way to say this request; `on` or `not_on` of the exchange should tell."""


class Units(NamedTuple):
    """Units of a stream, each with the cursor to resume after it."""

    units: list[tuple[dict[str, Any], str]]

    @classmethod
    def of(cls, units: list[dict[str, Any]], cursor: str) -> Self:
        """Those of one message, whose cursor may lie further than its last unit."""
        epoch = cursor.rpartition(".")[0]
        cursors = [*(f"{epoch}.{unit['seq']}" for unit in units[:-1]), cursor]
        return cls(list(zip(units, cursors, strict=True)))


class Event(NamedTuple):
    """What else a stream says."""

    name: str
    fields: dict[str, Any]


EVENTS: Final = frozenset({"heartbeat", "gap", "goaway"})


class Stream(Protocol):
    """A subscription that the bus has taken up."""

    @property
    def hears(self) -> frozenset[str]:
        """The events that it tells of."""

    @property
    def answer(self) -> dict[str, Any]:
        """`cursor` and `head` where it begins."""

    async def next(self) -> Units | Event:
        """The next that comes, heartbeats too. Raises Refused where the bus ends it, Broken."""

    async def leave(self) -> None:
        """Want no more of it."""


class Transport(Protocol):
    """A way to speak to one bus, open for one exchange."""

    @property
    def verbs(self) -> frozenset[str]:
        """What it can say itself."""

    async def end(self) -> None:
        """The exchange is over: close what is its own."""

    async def ask(self, verb: str, asked: Asked) -> Any:
        """The answer. Raises Refused, Broken, CannotSay. When cancelled, it goes away as a client does."""

    async def subscribe(self, asked: Asked) -> Stream:
        """The subscription, when it has begun. Raises as `ask`."""
