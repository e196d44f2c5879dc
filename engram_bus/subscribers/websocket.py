"""One WebSocket: subscriptions out, operations in, answers as they become durable."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from engram_bus.bus.writer import Answer
from engram_bus.codec import UnitIn, UnitPacked, append_from, parse
from engram_bus.embedded import Bus
from engram_bus.errors import EngramError, InvalidRequest, ShuttingDown, SlowConsumer, TooLarge
from engram_bus.limits import (
    CORRELATION_BYTES_MAX,
    GOAWAY_RETRY_MS_MAX,
    GOAWAY_RETRY_MS_MIN,
    SOCKET_STALL_SECONDS,
    WEBSOCKET_PENDING_BYTES_MAX,
    WEBSOCKET_PENDING_MAX,
    WEBSOCKET_SUBSCRIPTIONS_MAX,
)
from engram_bus.router.fanout import Feed
from engram_bus.subscribers.frames import JsonFraming, MsgpackFraming, error_fields
from engram_bus.subscribers.requests import Names, SubscribeRequest, from_operation
from engram_bus.subscribers.sockets import WebSocket

JSON_PROTOCOL = "engram.v1.json"
MSGPACK_PROTOCOL = "engram.v1.msgpack"

Id = str | int


class _Operation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every field any operation has; which of them it needs is checked by the operation."""

    op: str
    id: Id | None = None
    subscription: Id | None = None
    context: Names = None
    after: str | int | None = None
    type: str | int | list[str | int] | None = None
    kind: Names = None
    agent: Names = None
    exclude_agent: Names = None
    resource: Names = None
    meta: dict[str, str] | None = None


class _JsonOperation(_Operation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    unit: UnitIn | None = None


class _MsgpackOperation(_Operation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    unit: UnitPacked | None = None


class _OnlyId(msgspec.Struct):
    id: Id | None = None


class _Encoding(NamedTuple):
    """How one subprotocol reads operations and frames events."""

    decode: Callable[[bytes], _JsonOperation | _MsgpackOperation]
    decode_id: Callable[[bytes], _OnlyId]
    framing: type[JsonFraming] | type[MsgpackFraming]


_ENCODINGS: dict[str, _Encoding] = {
    JSON_PROTOCOL: _Encoding(
        msgspec.json.Decoder(_JsonOperation).decode, msgspec.json.Decoder(_OnlyId).decode, JsonFraming
    ),
    MSGPACK_PROTOCOL: _Encoding(
        msgspec.msgpack.Decoder(_MsgpackOperation).decode, msgspec.msgpack.Decoder(_OnlyId).decode, MsgpackFraming
    ),
}


class Connection:
    """What one socket asked for and waits for. Pipelined: answers come in the order of their commits."""

    def __init__(self, bus: Bus, socket: WebSocket, *, subprotocol: str, agent_id: str | None) -> None:
        self._bus = bus
        self._socket = socket
        self._agent_id = agent_id
        self._decode, self._decode_id, self._framing = _ENCODINGS[subprotocol]
        self._events = self._framing()
        self._feeds: dict[Id | None, Feed] = {}
        self._pending = 0
        self._pending_bytes = 0
        self._paused = False
        self._is_over = False
        socket.listen(self)

    def open(self, request: SubscribeRequest | None) -> None:
        """Begin with the URL's subscription, or (None) with none: the socket only publishes."""
        if request is None:
            self._socket.write_raw(self._events.event("subscribed", cursor=self._bus.cursor, head=self._bus.head))
            return
        try:
            after = self._bus.seq_of_cursor(request.after)
        except EngramError as exc:
            self.refuse(exc)
            return
        self._subscribe(None, request, after)

    def refuse(self, error: EngramError) -> None:
        """Say why, then close: browsers cannot read a handshake that failed."""
        self._socket.write_raw(self._events.event("error", **error_fields(error)))
        self._end(error.close_code, error.code)

    # --- What the socket says ----------------------------------------------------------------------------------------

    def received(self, message: bytes) -> None:
        """One message of the client."""
        if self._is_over:
            return
        try:
            operation = parse(self._decode, message)
        except EngramError as exc:
            self._say_error(self._id_of(message), exc)
            return
        try:
            self._operate(operation, len(message))
        except EngramError as exc:
            self._say_error(operation.id, exc)

    def drained(self) -> None:
        for feed in list(self._feeds.values()):
            feed.drained()
        self._resume_reading()

    def full(self) -> None:
        """The client does not read its answers: take no more of its operations."""
        self._pause_reading()

    def lost(self) -> None:
        self._is_over = True
        for feed in list(self._feeds.values()):
            feed.close()
        self._feeds.clear()

    # --- Operations --------------------------------------------------------------------------------------------------

    def _operate(self, operation: _JsonOperation | _MsgpackOperation, message_bytes: int) -> None:
        if isinstance(operation.id, str) and len(operation.id.encode()) > CORRELATION_BYTES_MAX:
            raise TooLarge(f"id is longer than {CORRELATION_BYTES_MAX} bytes", field="id", limit=CORRELATION_BYTES_MAX)
        match operation.op:
            case "append":
                self._append(operation.id, operation.unit, message_bytes)
            case "subscribe":
                self._operate_subscribe(operation)
            case "unsubscribe":
                self._unsubscribe(operation)
            case "ping":
                self._say("pong", operation.id, head=self._bus.head)
            case other:
                raise InvalidRequest(
                    f"op {other[:64]!r} is unknown; one of append, subscribe, unsubscribe, ping", field="op"
                )

    def _append(self, correlation: Id | None, unit: UnitIn | UnitPacked | None, message_bytes: int) -> None:
        if unit is None:
            raise InvalidRequest("append needs a unit", field="unit")
        command = append_from(unit, agent_id=self._agent_id)

        def done(outcome: Answer | EngramError) -> None:
            self._pending -= 1
            self._pending_bytes -= message_bytes
            if isinstance(outcome, EngramError):
                self._say_error(correlation, outcome)
            else:
                self._say_appended(correlation, outcome)
            self._resume_reading()

        self._bus.submit(command, done)
        self._pending += 1
        self._pending_bytes += message_bytes
        if self._pending >= WEBSOCKET_PENDING_MAX or self._pending_bytes >= WEBSOCKET_PENDING_BYTES_MAX:
            self._pause_reading()

    def _say_appended(self, correlation: Id | None, answer: Answer) -> None:
        unit = answer.entries[0].unit
        more = {"replayed": True} if answer.replayed else {}
        self._say(
            "appended",
            correlation,
            unit_id=unit.id,
            context_id=unit.context_id,
            seq=unit.seq,
            version=unit.version,
            durability=self._bus.durability,
            **more,
        )

    def _operate_subscribe(self, operation: _Operation) -> None:
        if operation.id is None:
            raise InvalidRequest("subscribe needs an id, which names the subscription", field="id")
        if operation.id in self._feeds:
            raise InvalidRequest(f"subscription {operation.id!r} exists on this socket", field="id")
        if len(self._feeds) >= WEBSOCKET_SUBSCRIPTIONS_MAX:
            raise TooLarge(
                f"{len(self._feeds)} subscriptions on this socket, at most {WEBSOCKET_SUBSCRIPTIONS_MAX}",
                limit=WEBSOCKET_SUBSCRIPTIONS_MAX,
            )
        request = from_operation(
            context=operation.context,
            after=operation.after,
            type=operation.type,
            kind=operation.kind,
            agent=operation.agent,
            exclude_agent=operation.exclude_agent,
            resource=operation.resource,
            meta=operation.meta,
        )
        self._subscribe(operation.id, request, self._bus.seq_of_cursor(request.after))

    def _subscribe(self, name: Id | None, request: SubscribeRequest, after: int) -> None:
        self._feeds[name] = self._bus.feed(request.wanted, self._framing(name), self, after)

    def _unsubscribe(self, operation: _Operation) -> None:
        feed = self._feeds.pop(operation.subscription, None)
        if feed is None:
            raise InvalidRequest(f"no subscription {operation.subscription!r} on this socket", field="subscription")
        cursor = feed.cursor_text
        feed.close()
        self._say("unsubscribed", operation.id, subscription=operation.subscription, cursor=cursor)

    # --- As a feed's sink --------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return self._socket.has_room

    def write(self, frame: bytes) -> None:
        if not self._is_over:
            self._socket.write_raw(frame)

    def end(self, error: EngramError, cursor: str) -> None:
        self._end(error.close_code, f"{error.code}: resume after {cursor}")
        if isinstance(error, SlowConsumer):
            # What it was sent, and why it ends, waits a while longer for it to wake up; the buffer no longer grows.
            self._socket.abort_after(SOCKET_STALL_SECONDS)

    # --- Inside ------------------------------------------------------------------------------------------------------

    def goaway(self, reason: str) -> None:
        """The bus stops: feeds were told already; a socket that only publishes is told here."""
        if not self._is_over:
            retry_ms = random.randint(GOAWAY_RETRY_MS_MIN, GOAWAY_RETRY_MS_MAX)
            self.write(self._events.event("goaway", reason=reason, retry_after_ms=retry_ms, cursor=self._bus.cursor))
            self._end(ShuttingDown.close_code, f"{ShuttingDown.code}: {reason}")

    def _end(self, code: int, reason: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._socket.end(code, reason)
        for feed in list(self._feeds.values()):
            feed.close()
        self._feeds.clear()

    def _say(self, event: str, correlation: Id | None, **fields: Any) -> None:
        named = {} if correlation is None else {"id": correlation}
        self.write(self._events.event(event, **named, **fields))

    def _say_error(self, correlation: Id | None, error: EngramError) -> None:
        self._say("error", correlation, **error_fields(error))

    def _id_of(self, message: bytes) -> Id | None:
        try:
            return self._decode_id(message).id
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError):
            return None

    def _pause_reading(self) -> None:
        if not self._paused:
            self._paused = True
            self._socket.pause_reading()

    def _resume_reading(self) -> None:
        if (
            self._paused
            and self._socket.has_room
            and self._pending <= WEBSOCKET_PENDING_MAX // 2
            and self._pending_bytes <= WEBSOCKET_PENDING_BYTES_MAX // 2
        ):
            self._paused = False
            self._socket.resume_reading()
