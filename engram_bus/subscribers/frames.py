"""The bytes each transport sends: WebSocket frames, SSE chunks and gRPC messages, made once for all who want them."""

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Any

import msgspec

from engram_bus.codec import Entry, encode_json, encode_msgpack
from engram_bus.errors import EngramError
from engram_bus.limits import SSE_RETRY_MS
from engram_bus.pb import subscription_pb2
from engram_bus.protobuf import WORK_UNITS, delimited, units_field
from engram_bus.units import WorkUnit

TEXT = 0x81
BINARY = 0x82

_HEAD_16_BITS = Struct(">BBH")
_HEAD_64_BITS = Struct(">BBQ")
_UNITS_JSON = b'{"event":"units",'
_EVENT_UNITS = encode_msgpack("event") + encode_msgpack("units")
_KEY_UNITS = encode_msgpack("units")
_KEY_CURSOR = encode_msgpack("cursor")
_KEY_SUBSCRIPTION = encode_msgpack("subscription")


@lru_cache(maxsize=1_024)
def _quoted(name: str) -> str:
    """As JSON; the same contexts are named again and again."""
    return encode_json(name).decode()


def websocket_frame(opcode: int, *parts: bytes) -> bytes:
    """One unmasked, unfragmented frame (RFC 6455, 5.2)."""
    size = sum(map(len, parts))
    if size < 126:
        head = bytes((opcode, size))
    elif size < 65_536:
        head = _HEAD_16_BITS.pack(opcode, 126, size)
    else:
        head = _HEAD_64_BITS.pack(opcode, 127, size)
    return b"".join((head, *parts))


def chunk(*parts: bytes) -> bytes:
    """One chunk of a chunked HTTP body (RFC 9112, 7.1)."""
    return b"".join((b"%x\r\n" % sum(map(len, parts)), *parts, b"\r\n"))


def array_header(count: int) -> bytes:
    """The start of a MessagePack array of `count` values, which follow."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 65_536:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


class JsonFraming(msgspec.Struct, frozen=True):
    """WebSocket text frames of one subscription (None: the URL's)."""

    subscription: str | int | None = None

    def event(self, event: str, **fields: Any) -> bytes:
        """Any event as a frame."""
        return websocket_frame(TEXT, encode_json(_named(event, self.subscription, fields)))

    def appended(self, unit: WorkUnit, durability: str, *, correlation: str | int | None, replayed: bool) -> bytes:
        """The answer to an append. Publishers are sent nothing else, so it is put together without a dictionary."""
        answered = "" if correlation is None else f'"id":{encode_json(correlation).decode()},'
        repeated = ',"replayed":true' if replayed else ""
        body = (
            f'{{"event":"appended",{answered}"unit_id":"{unit.id}","context_id":{_quoted(unit.context_id)},'
            f'"seq":{unit.seq},"version":{unit.version},"durability":"{durability}"{repeated}}}'
        )
        return websocket_frame(TEXT, body.encode())

    def subscribed(self, cursor: str, head: int) -> bytes:
        return self.event("subscribed", **_answering(self.subscription), cursor=cursor, head=head)

    def units(self, entries: Sequence[Entry], epoch: str, seq: int) -> bytes:
        own = b"" if self.subscription is None else b'"subscription":%b,' % encode_json(self.subscription)
        units = b",".join([entry.json for entry in entries])
        tail = f'],"cursor":"{epoch}.{seq}"}}'.encode()
        return websocket_frame(TEXT, _UNITS_JSON, own, b'"units":[', units, tail)

    def heartbeat(self, cursor: str, head: int) -> bytes:
        return self.event("heartbeat", cursor=cursor, head=head)

    def gap(self, first: int, last: int, reason: str, cursor: str) -> bytes:
        return self.event("gap", **{"from": first, "to": last, "reason": reason, "cursor": cursor})

    def goaway(self, reason: str, retry_after_ms: int, cursor: str) -> bytes:
        return self.event("goaway", reason=reason, retry_after_ms=retry_after_ms, cursor=cursor)


class MsgpackFraming(msgspec.Struct, frozen=True):
    """WebSocket binary frames of one subscription; the units are the log's own bytes."""

    subscription: str | int | None = None

    def event(self, event: str, **fields: Any) -> bytes:
        """Any event as a frame."""
        return websocket_frame(BINARY, encode_msgpack(_named(event, self.subscription, fields)))

    def appended(self, unit: WorkUnit, durability: str, *, correlation: str | int | None, replayed: bool) -> bytes:
        """The answer to an append."""
        fields = {
            "unit_id": unit.id,
            "context_id": unit.context_id,
            "seq": unit.seq,
            "version": unit.version,
            "durability": durability,
        }
        answering = {} if correlation is None else {"id": correlation}
        more = {"replayed": True} if replayed else {}
        return websocket_frame(BINARY, encode_msgpack({"event": "appended", **answering, **fields, **more}))

    def subscribed(self, cursor: str, head: int) -> bytes:
        return self.event("subscribed", **_answering(self.subscription), cursor=cursor, head=head)

    def units(self, entries: Sequence[Entry], epoch: str, seq: int) -> bytes:
        if self.subscription is None:
            head = b"\x83" + _EVENT_UNITS
        else:
            head = b"\x84" + _EVENT_UNITS + _KEY_SUBSCRIPTION + encode_msgpack(self.subscription)
        bodies = [entry.body for entry in entries]
        cursor = encode_msgpack(f"{epoch}.{seq}")
        return websocket_frame(BINARY, head, _KEY_UNITS, array_header(len(bodies)), *bodies, _KEY_CURSOR, cursor)

    def heartbeat(self, cursor: str, head: int) -> bytes:
        return self.event("heartbeat", cursor=cursor, head=head)

    def gap(self, first: int, last: int, reason: str, cursor: str) -> bytes:
        return self.event("gap", **{"from": first, "to": last, "reason": reason, "cursor": cursor})

    def goaway(self, reason: str, retry_after_ms: int, cursor: str) -> bytes:
        return self.event("goaway", reason=reason, retry_after_ms=retry_after_ms, cursor=cursor)


class SseFraming(msgspec.Struct, frozen=True):
    """Server-sent events as chunks: units are plain messages, everything else is named; each carries its cursor."""

    def subscribed(self, cursor: str, head: int) -> bytes:
        return self._event("subscribed", {"cursor": cursor, "head": head}, retry_ms=SSE_RETRY_MS)

    def units(self, entries: Sequence[Entry], epoch: str, seq: int) -> bytes:
        prefix = f"id: {epoch}.".encode()
        return chunk(*[b"%b%d\ndata: %b\n\n" % (prefix, entry.seq, entry.json) for entry in entries])

    def heartbeat(self, cursor: str, head: int) -> bytes:
        return self._event("heartbeat", {"cursor": cursor, "head": head})

    def gap(self, first: int, last: int, reason: str, cursor: str) -> bytes:
        return self._event("gap", {"from": first, "to": last, "reason": reason, "cursor": cursor})

    def goaway(self, reason: str, retry_after_ms: int, cursor: str) -> bytes:
        data = {"reason": reason, "retry_after_ms": retry_after_ms, "cursor": cursor}
        return self._event("goaway", data, retry_ms=retry_after_ms)

    def _event(self, event: str, data: dict[str, Any], *, retry_ms: int | None = None) -> bytes:
        # When to come back goes with an event: some parsers make an event, with no data, of a lone `retry`.
        retry = "" if retry_ms is None else f"retry: {retry_ms}\n"
        return chunk(f"{retry}event: {event}\nid: {data['cursor']}\ndata: ".encode(), encode_json(data), b"\n\n")


_CURSOR = 0x12
"""The tag of field 2 of a SubscribeResponse."""


class ProtobufFraming(msgspec.Struct, frozen=True):
    """Messages of a Subscribe call. Units and cursor are fields of the message itself, so two messages of units, end to
    end, are one: what waits for a call is joined without being made again."""

    def subscribed(self, cursor: str, head: int) -> bytes:
        return _message(cursor, subscribed=subscription_pb2.Subscribed(head=head))

    def units(self, entries: Sequence[Entry], epoch: str, seq: int) -> bytes:
        cursor = f"{epoch}.{seq}".encode()
        return b"".join((*units_field(entries), delimited(_CURSOR, len(cursor)), cursor))

    def heartbeat(self, cursor: str, head: int) -> bytes:
        return _message(cursor, heartbeat=subscription_pb2.Heartbeat(head=head))

    def gap(self, first: int, last: int, reason: str, cursor: str) -> bytes:
        missing = subscription_pb2.Gap(to=last, reason=reason)
        setattr(missing, "from", first)  # A word of Python's own.
        return _message(cursor, gap=missing)

    def goaway(self, reason: str, retry_after_ms: int, cursor: str) -> bytes:
        return _message(cursor, goaway=subscription_pb2.Goaway(reason=reason, retry_after_ms=retry_after_ms))


def is_units(message: bytes) -> bool:
    """Whether it is a message of units: they stand in front, and every other message begins with its cursor."""
    return message[0] == WORK_UNITS


def _message(cursor: str, **event: Any) -> bytes:
    return subscription_pb2.SubscribeResponse(cursor=cursor, **event).SerializeToString(deterministic=True)


def error_fields(error: EngramError) -> dict[str, Any]:
    """What an error frame says, the same as a problem's members."""
    fields: dict[str, Any] = {"code": error.code, "message": error.message, "retryable": error.retryable}
    if error.field is not None:
        fields["field"] = error.field
    if error.limit is not None:
        fields["limit"] = error.limit
    if error.index is not None:
        fields["index"] = error.index
    return {**error.details, **fields}


def _answering(subscription: str | int | None) -> dict[str, Any]:
    """`subscribed` is the answer to the operation that named the subscription: it echoes its id."""
    return {} if subscription is None else {"id": subscription}


def _named(event: str, subscription: str | int | None, fields: dict[str, Any]) -> dict[str, Any]:
    if subscription is None:
        return {"event": event, **fields}
    return {"event": event, "subscription": subscription, **fields}
