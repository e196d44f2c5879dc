"""The AsyncAPI 3.0 document: what is on /stream (WebSocket) and /stream-sse, made from the messages themselves."""

from typing import Any, Final

import msgspec

from engram_bus.api.openapi import parameter_schema
from engram_bus.api.operations import SUBSCRIBE
from engram_bus.api.schemas import Schema, components, schema_of
from engram_bus.codec import UnitOut
from engram_bus.limits import CORRELATION_BYTES_MAX, HEARTBEAT_SECONDS, SSE_RETRY_MS, WEBSOCKET_SUBSCRIPTIONS_MAX
from engram_bus.subscribers.messages import (
    EVENTS,
    OPERATIONS,
    AcquireLock,
    Appended,
    AppendUnit,
    Cancelled,
    CancelLock,
    Gap,
    Goaway,
    Heartbeat,
    Locked,
    Ping,
    Pong,
    RefreshLock,
    Refused,
    Released,
    ReleaseLock,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
)
from engram_bus.subscribers.websocket import JSON_PROTOCOL, MSGPACK_PROTOCOL

_DESCRIPTION: Final = f"""\
Every unit once and in order, over WebSocket or server-sent events. The first message of a subscription is its cursor;
keep the newest cursor you saw, and resume after it (`after`, or for server-sent events Last-Event-ID) on any transport.
An idle subscription hears a heartbeat every {HEARTBEAT_SECONDS:g} seconds. A reader that falls behind is served from
the log; nothing is dropped.
"""

_WEBSOCKET: Final = f"""\
Subprotocols: `{JSON_PROTOCOL}` (the default, text frames) or `{MSGPACK_PROTOCOL}` (binary frames, the same fields, \
payloads as bin). With `context` in the URL the socket is subscribed at once; without, it publishes and waits for \
`subscribe` operations, at most {WEBSOCKET_SUBSCRIPTIONS_MAX} on one socket. Close codes 4000 to 4499, 1001 and 1012 \
say: reconnect and resume; 4500 to 4999, 1002, 1007 and 1009 say: not like this. The reason begins with the code.
"""

_SSE: Final = f"""\
Units are plain messages (`onmessage` of a browser's EventSource), their cursor is the event's id; all else is a named \
event. `retry` comes with `subscribed` ({SSE_RETRY_MS} ms) and `goaway`. A cursor that cannot be resumed is a 409 \
problem before the stream begins.
"""

_REPLIES: Final[dict[type[Any], tuple[type[Any], ...]]] = {
    AppendUnit: (Appended, Refused),
    Subscribe: (Subscribed, Refused),
    Unsubscribe: (Unsubscribed, Refused),
    AcquireLock: (Locked, Refused),
    RefreshLock: (Locked, Refused),
    ReleaseLock: (Released, Refused),
    CancelLock: (Cancelled, Refused),
    Ping: (Pong,),
}
_SSE_EVENTS: Final[tuple[type[Any], ...]] = (Subscribed, Heartbeat, Gap, Goaway)
_NOT_ON_SSE: Final = ("event", "id", "subscription")


def document(version: str) -> Schema:
    """The whole document."""
    messages = [*EVENTS, *OPERATIONS]
    schemas = components([*messages, UnitOut])
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "engram-bus",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "url": "https://spdx.org/licenses/MIT.html"},
        },
        "defaultContentType": "application/json",
        "servers": {"websocket": _server("ws"), "http": _server("http")},
        "channels": {"stream": _stream(), "stream-sse": _stream_sse()},
        "operations": _operations(),
        "components": {
            "schemas": schemas | {f"{_tag(event)}-data": _sse_data(schemas[event.__name__]) for event in _SSE_EVENTS},
            "messages": {
                **{_tag(message): _message(message) for message in messages},
                **{f"sse-{_tag(event)}": _sse_message(event) for event in _SSE_EVENTS},
                "sse-unit": _sse_unit(),
            },
        },
    }


def _server(protocol: str) -> Schema:
    return {
        "host": "{host}",
        "pathname": "/{version}",
        "protocol": protocol,
        "variables": {
            "host": {"default": "127.0.0.1:8080"},
            "version": {"enum": ["", "api/v1"], "default": "", "description": "The same with and without it."},
        },
    }


# --- Channels --------------------------------------------------------------------------------------------------------


def _stream() -> Schema:
    query = _query()
    query["properties"]["agent_id"] = {
        "type": "string",
        "description": "Who acts, where an append does not name an agent_id (as the header X-Agent-ID does).",
    }
    names = [_tag(message) for message in (*EVENTS, *OPERATIONS)]
    return {
        "address": "/stream",
        "title": "WebSocket",
        "description": _WEBSOCKET,
        "servers": [{"$ref": "#/servers/websocket"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {
            "ws": {
                "method": "GET",
                "query": query,
                "headers": {
                    "type": "object",
                    "properties": {
                        "Sec-WebSocket-Protocol": {"enum": [JSON_PROTOCOL, MSGPACK_PROTOCOL]},
                        "X-Agent-ID": {"type": "string"},
                    },
                },
                "bindingVersion": "0.1.0",
            }
        },
    }


def _stream_sse() -> Schema:
    names = ["sse-unit", *(f"sse-{_tag(event)}" for event in _SSE_EVENTS)]
    return {
        "address": "/stream-sse",
        "title": "Server-sent events",
        "description": _SSE,
        "servers": [{"$ref": "#/servers/http"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
    }


def _query() -> Schema:
    return {
        "type": "object",
        "properties": {
            parameter.name: {**parameter_schema(parameter), "description": parameter.description}
            for parameter in SUBSCRIBE
        },
        "patternProperties": {
            "^meta\\.": {"type": "string", "description": "meta.KEY=VALUE: only units with this meta."}
        },
        "additionalProperties": False,
    }


# --- Operations ------------------------------------------------------------------------------------------------------


def _operations() -> Schema:
    operations: Schema = {}
    for event in EVENTS:
        operations[f"send-{_tag(event)}"] = {**_operation("send", "stream", _tag(event)), "summary": _summary(event)}
    for operation in OPERATIONS:
        operations[f"receive-{_tag(operation)}"] = {
            **_operation("receive", "stream", _tag(operation)),
            "summary": _summary(operation),
            "reply": {
                "channel": {"$ref": "#/channels/stream"},
                "messages": [{"$ref": f"#/channels/stream/messages/{_tag(reply)}"} for reply in _REPLIES[operation]],
            },
        }
    operations["send-events"] = {
        **_operation("send", "stream-sse", "sse-unit", *(f"sse-{_tag(event)}" for event in _SSE_EVENTS)),
        "summary": "Units and what is said about them, as server-sent events.",
        "bindings": {"http": {"method": "GET", "query": _query(), "bindingVersion": "0.3.0"}},
    }
    return operations


def _operation(action: str, channel: str, *messages: str) -> Schema:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"} for message in messages],
    }


# --- Messages --------------------------------------------------------------------------------------------------------


def _message(message: type[Any]) -> Schema:
    described: Schema = {"name": _tag(message), "summary": _summary(message), "payload": schema_of(message)}
    if message in OPERATIONS:
        described["correlationId"] = {
            "description": f"A string of at most {CORRELATION_BYTES_MAX} bytes, or an integer.",
            "location": "$message.payload#/id",
        }
    return described


def _sse_message(event: type[Any]) -> Schema:
    return {
        "name": _tag(event),
        "summary": _summary(event),
        "headers": _sse_fields({"event": {"const": _tag(event)}}),
        "payload": {"$ref": f"#/components/schemas/{_tag(event)}-data"},
    }


def _sse_unit() -> Schema:
    return {
        "name": "message",
        "summary": "One unit; the id is its cursor.",
        "headers": _sse_fields({}),
        "payload": schema_of(UnitOut),
    }


def _sse_fields(fields: Schema) -> Schema:
    return {"type": "object", "properties": {**fields, "id": {"type": "string", "description": "The cursor."}}}


def _sse_data(schema: Schema) -> Schema:
    """The data of a named event: the fields of the WebSocket's, without those that the event's own lines carry."""
    return {
        **schema,
        "title": f"{schema['title']} (data)",
        "properties": {name: value for name, value in schema["properties"].items() if name not in _NOT_ON_SSE},
        "required": [name for name in schema["required"] if name not in _NOT_ON_SSE],
    }


def _tag(message: type[Any]) -> str:
    info = msgspec.inspect.type_info(message)
    assert isinstance(info, msgspec.inspect.StructType), "a message is a struct"
    return str(info.tag)


def _summary(message: type[Any]) -> str:
    return (message.__doc__ or "").partition("\n")[0]
