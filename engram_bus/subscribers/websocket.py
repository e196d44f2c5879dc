"""One WebSocket: subscriptions out, operations in, answers as they become durable."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from engram_bus import units
from engram_bus.bus.writer import Answer, Done
from engram_bus.codec import acquire_from, acting, append_from, lock_on, parse, refresh_from
from engram_bus.decisions.locks import GRANTED
from engram_bus.embedded import Bus
from engram_bus.errors import EngramError, InvalidRequest, ShuttingDown, SlowConsumer, TooLarge
from engram_bus.limits import (
    CORRELATION_BYTES_MAX,
    GOAWAY_RETRY_MS_MAX,
    GOAWAY_RETRY_MS_MIN,
    LOCK_WAITS_PER_AGENT_MAX,
    SOCKET_STALL_SECONDS,
    STREAM_PENDING_BYTES_MAX,
    STREAM_PENDING_MAX,
    WEBSOCKET_SUBSCRIPTIONS_MAX,
)
from engram_bus.router.fanout import Feed
from engram_bus.subscribers.frames import JsonFraming, MsgpackFraming, error_fields
from engram_bus.subscribers.messages import (
    OPERATIONS,
    AcquireLock,
    AppendPacked,
    AppendUnit,
    CancelLock,
    Operation,
    PackedOperation,
    Ping,
    RefreshLock,
    ReleaseLock,
    Subscribe,
    Unsubscribe,
)
from engram_bus.subscribers.requests import SubscribeRequest, from_operation
from engram_bus.subscribers.sockets import WebSocket

JSON_PROTOCOL = "engram.v1.json"
MSGPACK_PROTOCOL = "engram.v1.msgpack"

Id = str | int

_NAMES = ", ".join(operation.__struct_config__.tag for operation in OPERATIONS)


class _OnlyId(msgspec.Struct):
    id: Id | None = None


class _Encoding(NamedTuple):
    """How one subprotocol reads operations and frames events."""

    decode: Callable[[bytes], Operation | PackedOperation]
    decode_id: Callable[[bytes], _OnlyId]
    framing: type[JsonFraming] | type[MsgpackFraming]


_ENCODINGS: dict[str, _Encoding] = {
    JSON_PROTOCOL: _Encoding(msgspec.json.Decoder(Operation).decode, msgspec.json.Decoder(_OnlyId).decode, JsonFraming),
    MSGPACK_PROTOCOL: _Encoding(
        msgspec.msgpack.Decoder(PackedOperation).decode, msgspec.msgpack.Decoder(_OnlyId).decode, MsgpackFraming
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
        self._waits: dict[object, Callable[[], None]] = {}
        """How to leave each line, by the id of its acquire."""
        self._at_once: dict[object, Callable[[], None]] = {}
        """The same of acquires that are not decided yet and will not wait, by nothing in particular."""
        self._session: str | None = None
        self._paused = False
        self._is_over = False
        socket.listen(self)

    def open(self, request: SubscribeRequest | None) -> None:
        """Begin with the URL's subscription, or (None) with none: the socket only publishes."""
        if request is None:
            self._socket.write_raw(self._events.event("subscribed", cursor=self._bus.cursor, head=self._bus.head))
            return
        try:
            self._subscribe(None, request)
        except EngramError as exc:
            self.refuse(exc)

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
            self._say_error(self._id_of(message), _naming_operations(exc))
            return
        try:
            self._operate(operation, len(message))
        except EngramError as exc:
            self._say_error(_id(operation), exc)
        if self._pending >= STREAM_PENDING_MAX or self._pending_bytes >= STREAM_PENDING_BYTES_MAX:
            self._pause_reading()

    def drained(self) -> None:
        for feed in list(self._feeds.values()):
            feed.drained()
        self._resume_reading()

    def full(self) -> None:
        """The client does not read what it is sent: nothing more is pushed to it, and none of its operations taken."""
        for feed in list(self._feeds.values()):
            feed.full()
        self._pause_reading()

    def lost(self) -> None:
        self._is_over = True
        self._leave()
        session, self._session = self._session, None
        if session is not None:
            self._bus.end_session(session)

    # --- Operations --------------------------------------------------------------------------------------------------

    def _operate(self, operation: Operation | PackedOperation, message_bytes: int) -> None:
        correlation = _id(operation)
        # A character takes four bytes at most.
        if (
            isinstance(correlation, str)
            and 4 * len(correlation) > CORRELATION_BYTES_MAX
            and len(correlation.encode()) > CORRELATION_BYTES_MAX
        ):
            raise TooLarge(f"id is longer than {CORRELATION_BYTES_MAX} bytes", field="id", limit=CORRELATION_BYTES_MAX)
        match operation:
            case AppendUnit() | AppendPacked():
                command = append_from(operation.unit, agent_id=self._agent_id)
                self._submit(command, correlation, message_bytes, self._say_appended)
            case Subscribe():
                self._operate_subscribe(operation)
            case Unsubscribe():
                self._unsubscribe(operation)
            case AcquireLock():
                self._acquire(operation, message_bytes)
            case RefreshLock():
                self._submit(
                    refresh_from(operation, agent_id=self._agent_id), correlation, message_bytes, self._say_locked
                )
            case ReleaseLock():
                release = units.ReleaseLock(
                    lock_id=operation.lock_id, agent_id=acting(operation.agent_id, self._agent_id)
                )
                self._submit(release, correlation, message_bytes, partial(self._say_released, operation.lock_id))
            case CancelLock():
                self._cancel(operation)
            case Ping():
                self._say("pong", correlation, head=self._bus.head)

    def _submit(
        self,
        command: units.Command,
        correlation: Id | None,
        message_bytes: int,
        say: Callable[[Id | None, Answer], None],
    ) -> None:
        """Queue a command; `say` tells its answer. Who has too many under way is not read until some are answered."""
        self._bus.submit(command, partial(self._answered, correlation, message_bytes, say))
        self._pending += 1
        self._pending_bytes += message_bytes

    def _answered(
        self,
        correlation: Id | None,
        message_bytes: int,
        say: Callable[[Id | None, Answer], None],
        outcome: Answer | EngramError,
    ) -> None:
        self._pending -= 1
        self._pending_bytes -= message_bytes
        if isinstance(outcome, EngramError):
            self._say_error(correlation, outcome)
        else:
            say(correlation, outcome)
        if self._paused:
            self._resume_reading()

    def _say_appended(self, correlation: Id | None, answer: Answer) -> None:
        self.write(
            self._events.appended(
                answer.entries[0].unit,
                self._bus.durability,
                correlation=correlation,
                replayed=answer.replayed,
            )
        )

    # --- Locks -------------------------------------------------------------------------------------------------------

    def _acquire(self, operation: AcquireLock, message_bytes: int) -> None:
        correlation = _id(operation)
        session = self._own_session() if operation.session else None
        command = acquire_from(operation, agent_id=self._agent_id, session=session)
        if command.wait_ms == 0:
            done = partial(self._answered, correlation, message_bytes, self._say_locked)
            self._ask(self._at_once, object(), command, done)
            self._pending += 1
            self._pending_bytes += message_bytes
            return
        # One who waits holds up nobody: it does not count as pending, and has a bound of its own.
        if len(self._waits) >= LOCK_WAITS_PER_AGENT_MAX:
            raise TooLarge(
                f"{len(self._waits)} waits on this socket, at most {LOCK_WAITS_PER_AGENT_MAX}",
                limit=LOCK_WAITS_PER_AGENT_MAX,
            )
        name = object() if correlation is None else correlation
        if name in self._waits:
            raise InvalidRequest(f"an acquire of id {correlation!r} waits on this socket", field="id")

        def waited(outcome: Answer | EngramError) -> None:
            if isinstance(outcome, EngramError):
                self._say_error(correlation, outcome)
            else:
                self._say_locked(correlation, outcome)

        self._ask(self._waits, name, command, waited)

    def _ask(
        self, asked: dict[object, Callable[[], None]], name: object, command: units.AcquireLock, done: Done
    ) -> None:
        """Ask for a lock that is not wanted any more once the socket is gone."""

        def settled(outcome: Answer | EngramError) -> None:
            if asked.get(name) is abandon:  # Else it was cancelled, and another one may have its name by now.
                del asked[name]
            done(outcome)

        abandon = asked[name] = self._bus.submit_lock(command, settled)

    def _own_session(self) -> str:
        if self._session is None:
            self._session = self._bus.new_session()
        return self._session

    def _cancel(self, operation: CancelLock) -> None:
        abandon = self._waits.pop(operation.acquire, None)
        if abandon is not None:
            abandon()
        self._say("cancelled", _id(operation), acquire=operation.acquire, cancelled=abandon is not None)

    def _say_locked(self, correlation: Id | None, answer: Answer) -> None:
        lock = answer.lock
        assert lock is not None, "an acquire and a refresh answer with their lock"
        self._say(
            "locked",
            correlation,
            lock_id=lock.lock_id,
            fencing_token=lock.fencing_token,
            expires_at=lock.expires_at,
            remaining_seconds=lock.remaining_ms / 1_000,
            extended=answer.entries[0].unit.kind != GRANTED,
            locks=[lock_on(lock, resource) for resource in lock.resources],
        )

    def _say_released(self, lock_id: str, correlation: Id | None, answer: Answer) -> None:
        self._say("released", correlation, lock_id=lock_id, released=bool(answer.entries))

    # --- Subscriptions -----------------------------------------------------------------------------------------------

    def _operate_subscribe(self, operation: Subscribe) -> None:
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
        self._subscribe(operation.id, request)

    def _subscribe(self, name: Id | None, request: SubscribeRequest) -> None:
        after = self._bus.seq_of_cursor(request.after)
        self._feeds[name] = self._bus.feed(request.wanted, self._framing(name), self, after)

    def _unsubscribe(self, operation: Unsubscribe) -> None:
        feed = self._feeds.pop(operation.subscription, None)
        if feed is None:
            raise InvalidRequest(f"no subscription {operation.subscription!r} on this socket", field="subscription")
        cursor = feed.cursor_text
        feed.close()
        self._say("unsubscribed", _id(operation), subscription=operation.subscription, cursor=cursor)

    # --- As a feed's sink --------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return self._socket.has_room

    @property
    def push(self) -> Callable[[bytes], object]:
        return self._socket.push

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
        self._leave()

    def _leave(self) -> None:
        """Nobody is told anything any more: wait for nothing."""
        for abandon in (*self._waits.values(), *self._at_once.values()):
            abandon()
        self._waits.clear()
        self._at_once.clear()
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
            and self._pending <= STREAM_PENDING_MAX // 2
            and self._pending_bytes <= STREAM_PENDING_BYTES_MAX // 2
        ):
            self._paused = False
            self._socket.resume_reading()


def _naming_operations(error: EngramError) -> EngramError:
    """The same; where it is about `op`, with those there are."""
    return InvalidRequest(f"{error.message}; one of {_NAMES}", field="op") if error.field == "op" else error


def _id(operation: Operation | PackedOperation) -> Id | None:
    return None if operation.id is UNSET else operation.id
