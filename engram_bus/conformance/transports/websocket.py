"""The door to websockets: operations on one socket; subscriptions in URLs (JSON) or on that socket (MessagePack)."""

import asyncio
import itertools
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from engram_bus.conformance.transports import payloads
from engram_bus.conformance.transports.contract import (
    EVENTS,
    AsClose,
    Asked,
    Broken,
    CannotSay,
    Event,
    InFrame,
    OverHttp,
    Refused,
    Stream,
    Units,
)
from engram_bus.conformance.transports.sse import query_of
from engram_bus.conformance.transports.web import fields_of, pairs

VERBS: Final = frozenset(
    {"append", "append_many", "acquire_lock", "refresh_lock", "release_lock", "subscribe", "hang_up"}
)
_PLACE: Final = ("event", "id", "subscription")
_FINAL_CLOSE: Final = 4_500
"""From here on coming back makes no sense."""

Frame = dict[str, Any]


class Encoding(Protocol):
    """How operations and events are written."""

    subprotocol: str

    def operation(self, operation: Mapping[str, Any]) -> str | bytes: ...

    def frame(self, message: str | bytes) -> Frame: ...

    def unit(self, unit: Asked) -> Asked: ...


class InJson:
    """Text frames."""

    subprotocol = "engram.v1.json"

    def operation(self, operation: Mapping[str, Any]) -> str:
        return json.dumps(operation)

    def frame(self, message: str | bytes) -> Frame:
        if not isinstance(message, str):
            raise Broken("a binary frame, where JSON was agreed on")
        frame: Frame = json.loads(message)
        return frame

    def unit(self, unit: Asked) -> Asked:
        return unit


class InMsgpack:
    """Binary frames."""

    subprotocol = "engram.v1.msgpack"

    def operation(self, operation: Mapping[str, Any]) -> bytes:
        return msgspec.msgpack.encode(operation)

    def frame(self, message: str | bytes) -> Frame:
        if not isinstance(message, bytes):
            raise Broken("a text frame, where MessagePack was agreed on")
        frame: Frame = msgspec.msgpack.decode(message)
        if "units" in frame:
            frame["units"] = [payloads.said(unit) for unit in frame["units"]]
        return frame

    def unit(self, unit: Asked) -> Asked:
        return payloads.packed(unit)


class Socket:
    """One connection: what comes is handed to whoever waits for it."""

    def __init__(self, connection: ClientConnection, encoding: Encoding) -> None:
        self.encoding = encoding
        self._connection = connection
        self._ids = itertools.count(1)
        self._answers: dict[Any, asyncio.Future[Frame]] = {}
        self._streams: dict[Any, asyncio.Queue[Frame | Exception]] = {}
        self._end: Exception | None = None
        self.of_url = self.stream(None)
        self._reader = asyncio.create_task(self._read())

    def stream(self, name: Any) -> "asyncio.Queue[Frame | Exception]":
        """Where the frames of a subscription arrive."""
        queue = self._streams[name] = asyncio.Queue()
        return queue

    def new_id(self) -> Any:
        """Numbers in one encoding, texts in the other: both are told back as they were."""
        number = next(self._ids)
        return number if isinstance(self.encoding, InJson) else f"o{number}"

    @property
    def is_over(self) -> bool:
        return self._end is not None

    async def operate(self, op: str, fields: Mapping[str, Any], *, id: Any = None) -> Frame:
        """An operation's answer. Raises Refused, Broken."""
        return await (await self.begin(op, fields, id=self.new_id() if id is None else id))

    async def begin(self, op: str, fields: Mapping[str, Any], *, id: Any) -> "asyncio.Future[Frame]":
        """Send it; the answer comes later."""
        answer = self._answers[id] = asyncio.get_running_loop().create_future()
        try:
            await self._connection.send(self.encoding.operation({"op": op, "id": id, **fields}))
        except ConnectionClosed as exc:
            raise self._end or _ended(exc) from exc
        return answer

    async def _read(self) -> None:
        try:
            while True:
                self._hand_out(self.encoding.frame(await self._connection.recv()))
        except ConnectionClosed as exc:
            self._finish(_ended(exc))
        except (Broken, ValueError, KeyError, msgspec.DecodeError) as exc:
            self._finish(exc if isinstance(exc, Broken) else Broken(f"a frame that cannot be read: {exc!r}"))

    def _hand_out(self, frame: Frame) -> None:
        answer = self._answers.pop(frame["id"], None) if "id" in frame else None
        if answer is None:
            self._streams[frame.get("subscription")].put_nowait(frame)
        elif answer.done():
            return  # nobody waits for it any more
        elif frame["event"] == "error":
            answer.set_exception(refused(frame, None))
        else:
            answer.set_result(frame)

    def _finish(self, end: Exception) -> None:
        self._end = end
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(end)
                answer.exception()  # seen: it may be that nobody waits
        for stream in self._streams.values():
            stream.put_nowait(end)

    async def aclose(self) -> None:
        await self._connection.close()
        await self._reader


class WebSocket:
    """A client that does what it can over sockets."""

    verbs = VERBS

    def __init__(self, url: str, encoding: Encoding, *, in_urls: bool) -> None:
        self._url = f"ws{url.removeprefix('http')}/stream"
        self._encoding = encoding
        self._in_urls = in_urls
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._shared: Socket | None = None
        self._sessions: dict[str, Socket] = {}

    async def end(self) -> None:
        await self._stack.aclose()

    async def ask(self, verb: str, asked: Asked) -> Any:
        if "session" in asked:
            return await self._of_session(verb, asked)
        socket = await self._socket()
        match verb:
            case "append":
                return _receipt(await socket.operate("append", {"unit": socket.encoding.unit(asked)}))
            case "append_many":
                return await _append_many(socket, asked["units"])
            case "acquire_lock":
                return await _acquire(socket, asked)
            case "refresh_lock":
                return _plain(await socket.operate("lock.refresh", _without_resource(asked)))
            case "release_lock":
                return _plain(await socket.operate("lock.release", _without_resource(asked)))
            case _:
                raise CannotSay(verb)

    async def _of_session(self, verb: str, asked: Asked) -> Any:
        """Each session is a socket of its own."""
        name = asked["session"]
        if verb == "hang_up":
            await self._sessions.pop(name).aclose()
            return {}
        if name not in self._sessions:
            self._sessions[name] = await self._open()
        return await _acquire(self._sessions[name], {**asked, "session": True})

    async def subscribe(self, asked: Asked) -> Stream:
        if self._in_urls:
            return await self._subscribe_by_url(asked)
        socket = await self._socket()
        name = socket.new_id()
        queue = socket.stream(name)
        answer = await socket.operate("subscribe", asked, id=name)
        if answer["event"] != "subscribed" or answer.get("subscription") != name:
            raise Broken(f"`subscribed` comes first, not {answer}")
        return _Stream(socket, queue, _plain(answer), name)

    async def _subscribe_by_url(self, asked: Asked) -> Stream:
        query = "?" + urlencode(pairs(query_of(asked)) or [], quote_via=quote)
        socket = await open_socket(self._url + query, self._encoding)
        self._stack.push_async_callback(socket.aclose)
        first = await _next(socket.of_url)
        if first["event"] == "error":
            raise refused(first, await _close_code(socket.of_url))
        if first["event"] != "subscribed":
            raise Broken(f"`subscribed` comes first, not {first}")
        return _Stream(socket, socket.of_url, _plain(first), None)

    async def _socket(self) -> Socket:
        """The one that operations share; another when the bus ended it."""
        async with self._opening:
            if self._shared is None or self._shared.is_over:
                self._shared = await self._open()
            return self._shared

    async def _open(self) -> Socket:
        """A socket without a subscription."""
        socket = await open_socket(self._url, self._encoding)
        self._stack.push_async_callback(socket.aclose)
        first = await _next(socket.of_url)
        if first["event"] != "subscribed":
            raise Broken(f"`subscribed` comes first, not {first}")
        return socket


class _Stream:
    """A subscription on a socket: `name` is None where it is the URL's."""

    hears = EVENTS

    def __init__(
        self, socket: Socket, queue: "asyncio.Queue[Frame | Exception]", answer: dict[str, Any], name: Any
    ) -> None:
        self.answer = answer
        self._socket = socket
        self._queue = queue
        self._name = name

    async def next(self) -> Units | Event:
        frame = await _next(self._queue)
        match frame["event"]:
            case "units":
                return Units.of(frame["units"], frame["cursor"])
            case "error":
                raise refused(frame, await _close_code(self._queue))
            case name:
                return Event(name, _plain(frame))

    async def leave(self) -> None:
        if self._name is None:
            await self._socket.aclose()
        elif not self._socket.is_over:
            await self._socket.operate("unsubscribe", {"subscription": self._name})


async def open_socket(url: str, encoding: Encoding) -> Socket:
    """A connection. Raises Refused, Broken."""
    try:
        connection = await connect(
            url,
            subprotocols=[Subprotocol(encoding.subprotocol)],
            compression=None,
            max_size=None,
            max_queue=None,
            proxy=None,
            close_timeout=1,
        )
    except InvalidStatus as exc:
        problem = json.loads(exc.response.body)
        raise Refused(fields_of(problem), OverHttp(exc.response.status_code, problem)) from exc
    except (OSError, WebSocketException) as exc:
        raise Broken(f"no socket: {exc!r}") from exc
    return Socket(connection, encoding)


def refused(frame: Frame, close_code: int | None) -> Refused:
    """What an error frame says, and how the socket was closed after it."""
    fields = _plain(frame)
    if "field" in fields:
        fields["field"] = fields["field"].removeprefix("unit.")  # where an append operation has what is asked
    return Refused(fields, InFrame(close_code))


async def _next(queue: "asyncio.Queue[Frame | Exception]") -> Frame:
    arrived = await queue.get()
    if isinstance(arrived, Exception):
        queue.put_nowait(arrived)  # it stays over
        raise arrived
    return arrived


async def _close_code(queue: "asyncio.Queue[Frame | Exception]") -> int | None:
    """With what the bus closes the socket after its last word. Raises Broken."""
    try:
        more = await _next(queue)
    except Refused as end:
        return end.way.close_code if isinstance(end.way, AsClose) else None
    raise Broken(f"something comes after an error: {more}")


async def _append_many(socket: Socket, units: list[Asked]) -> dict[str, Any]:
    answers = [await socket.begin("append", {"unit": socket.encoding.unit(unit)}, id=socket.new_id()) for unit in units]
    results: list[Any] = []
    for answer in answers:
        try:
            results.append(_receipt(await answer))
        except Refused as refusal:
            results.append({"error": refusal})
    return {"results": results}


async def _acquire(socket: Socket, asked: Asked) -> dict[str, Any]:
    """Who wants it no longer says so, stays connected, and is answered that the wait ended."""
    name = socket.new_id()
    answer = await socket.begin("lock.acquire", asked, id=name)
    try:
        return _plain(await asyncio.shield(answer))
    except asyncio.CancelledError:
        if socket.is_over:
            raise
        await socket.operate("lock.cancel", {"acquire": name})
        return _plain(await answer)


def _receipt(appended: Frame) -> dict[str, Any]:
    plain = _plain(appended)
    return {**plain, "id": plain.pop("unit_id"), "replayed": plain.get("replayed", False)}


def _plain(frame: Frame) -> dict[str, Any]:
    return {name: value for name, value in frame.items() if name not in _PLACE}


def _without_resource(asked: Asked) -> Asked:
    """Of a refresh and a release: the lock's id says enough here."""
    return {name: value for name, value in asked.items() if name != "resource"}


def _ended(closed: ConnectionClosed) -> Refused | Broken:
    """A close says why, and after which cursor to come back: `CODE: resume after CURSOR`."""
    if closed.rcvd is None:
        return Broken(f"the connection broke: {closed}")
    code, _, rest = closed.rcvd.reason.partition(":")
    if closed.rcvd.code < 4_000:
        return Broken(f"the socket was closed: {closed}")
    fields = {"code": code, "message": rest.strip(), "retryable": closed.rcvd.code < _FINAL_CLOSE}
    return Refused(fields, AsClose(closed.rcvd.code))
