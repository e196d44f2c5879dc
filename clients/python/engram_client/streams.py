"""How a subscription's frames travel: over a WebSocket or as server-sent events. One connection each, no memory."""

from collections.abc import AsyncGenerator
from typing import assert_never

from engram_client import codec
from engram_client.errors import EngramConnectionError
from engram_client.frames import (
    Appended,
    Frame,
    Goaway,
    Heartbeat,
    Locked,
    Missing,
    Other,
    Pong,
    Refused,
    Released,
    StreamFrame,
    Subscribed,
    Units,
)
from engram_client.http import Http, Query, query_string
from engram_client.limits import QUERY_BYTES_MAX
from engram_client.sse import EventParser
from engram_client.verbs import OpenStream
from engram_client.websocket import Encoding, open_socket


def websocket_url(url: str) -> str:
    """Where the WebSocket of the bus at `url` is."""
    return f"ws{url.removeprefix('http')}/stream"


def over_websocket(
    url: str, query: Query, *, encoding: Encoding, timeout_seconds: float, silence_seconds: float
) -> OpenStream:
    """Frames of `GET /stream`; a filter too long for the URL goes into a `subscribe` operation."""

    async def frames(after: str | None) -> AsyncGenerator[StreamFrame, None]:
        asked = {**query, "after": after}
        address = query_string(asked)
        operation = 1 if len(address) > QUERY_BYTES_MAX else None
        async with open_socket(
            websocket_url(url) + (address if operation is None else ""),
            encoding="msgpack" if operation is not None else encoding,
            timeout_seconds=timeout_seconds,
        ) as socket:
            if operation is not None:
                await socket.send(codec.subscribe_frame(asked, frame_id=operation))
            while True:
                frame = await socket.receive(silence_seconds=silence_seconds, subscription=operation)
                if (moved := moves(frame)) is not None:
                    yield moved

    return frames


def over_sse(http: Http, query: Query, *, silence_seconds: float) -> OpenStream:
    """Frames of `GET /stream-sse`."""

    async def frames(after: str | None) -> AsyncGenerator[StreamFrame, None]:
        headers = {"Accept": "text/event-stream"}
        parser = EventParser()
        async with http.stream(
            "/stream-sse", {**query, "after": after}, headers=headers, silence_seconds=silence_seconds
        ) as chunks:
            async for chunk in chunks:
                for event in parser.feed(chunk):
                    frame = codec.sse_frame(event.name, event.data, event.last_id)
                    if (moved := moves(frame)) is not None:
                        yield moved
        raise EngramConnectionError("the stream ended")

    return frames


def moves(frame: Frame) -> StreamFrame | None:
    """The frame, where it moves a subscription on; what ends it is raised."""
    match frame:
        case Subscribed() | Units() | Heartbeat() | Missing():
            return frame
        case Refused(error=error):
            raise error
        case Goaway():
            # Leave before the bus has to close; what is on its way comes again after the cursor.
            raise frame.error
        case Appended() | Locked() | Released() | Pong() | Other():
            return None
        case _:
            assert_never(frame)
