"""uvicorn's two protocol classes with what they lack: bounds on headers, and sockets that take prebuilt frames."""

import asyncio
import logging
import socket
from typing import Any, Protocol

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from engram_bus.limits import (
    HEADER_BYTES_MAX,
    HEADER_SECONDS_MAX,
    PEER_SILENT_SECONDS,
    QUERY_BYTES_MAX,
    SOCKET_BUFFER_BYTES,
)
from engram_bus.subscribers.sockets import Listener

SOCKET = "engram.socket"
"""The ASGI extension under which a scope holds its socket (`subscribers.sockets.Socket`)."""

log = logging.getLogger(__name__)


class Receiver(Listener, Protocol):
    """Who takes a WebSocket's messages."""

    def received(self, message: bytes) -> None:
        """One whole message."""


class _Written:
    """The writing half of a socket, the same for both protocols."""

    transport: asyncio.Transport
    _listener: Listener | None = None
    _full = False

    @property
    def has_room(self) -> bool:
        return not self._full

    def listen(self, listener: Listener) -> None:
        self._listener = listener
        self.transport.set_write_buffer_limits(high=SOCKET_BUFFER_BYTES)
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            # A peer that vanished without a word: heartbeats go out, nothing comes back.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(PEER_SILENT_SECONDS * 1_000))

    def write_raw(self, frame: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(frame)

    def abort_after(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self.transport.abort)

    def _became_full(self) -> None:
        self._full = True
        if self._listener is not None:
            self._listener.full()

    def _became_writable(self) -> None:
        self._full = False
        if self._listener is not None:
            self._listener.drained()

    def _was_lost(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.lost()


class EdgeHttp(_Written, HttpToolsProtocol):
    """HTTP/1.1 whose request headers come within a time and a size, or are answered and closed."""

    _deadline: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _fault = (400, "INVALID_REQUEST", "The request is not valid", "this is not HTTP/1.1")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_headers()
        super().connection_lost(exc)
        self._was_lost()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # uvicorn types extensions as dictionaries of dictionaries; ASGI lets them hold anything.
        self.scope["extensions"] = {SOCKET: self}  # type: ignore[dict-item]
        self._begin_headers()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url), QUERY_BYTES_MAX, "the request target")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value), HEADER_BYTES_MAX, "the request headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._end_headers()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._became_full()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._became_writable()

    def pause_reading(self) -> None:
        self.flow.pause_reading()

    def resume_reading(self) -> None:
        self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        status, code, title, detail = self._fault
        self._end_headers()
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(
            {
                "type": "about:blank",
                "title": title,
                "status": status,
                "detail": detail,
                "code": code,
                "retryable": False,
            }
        )
        head = (
            f"HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _begin_headers(self) -> None:
        self._end_headers()
        self._header_bytes = 0
        self._deadline = self.loop.call_later(HEADER_SECONDS_MAX, self._headers_are_late)

    def _end_headers(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _headers_are_late(self) -> None:
        self._fault = (
            408,
            "INVALID_REQUEST",
            "The request headers did not come in time",
            f"the request headers took longer than {HEADER_SECONDS_MAX:g} s",
        )
        self.send_400_response("")

    def _count(self, size_bytes: int, bytes_max: int, what: str) -> None:
        self._header_bytes += size_bytes
        if self._header_bytes > bytes_max:
            self._fault = (431, "TOO_LARGE", "A limit was reached", f"{what} have more than {bytes_max} bytes")
            # The parser turns it into its own error, and that into the answer above.
            raise ValueError(what)


class EdgeWebSocket(_Written, WebSocketsSansIOProtocol):
    """A WebSocket that hands messages to its connection at once and takes prebuilt frames.

    uvicorn's own path queues a dictionary per message and stops reading in between: three times slower.
    """

    _receiver: Receiver | None = None

    async def run_asgi(self) -> None:
        self.scope["extensions"] = {**(self.scope["extensions"] or {}), SOCKET: self}  # type: ignore[dict-item]
        await super().run_asgi()

    def attach(self, receiver: Receiver) -> None:
        """From now on messages go to this one; the handshake is complete."""
        self._receiver = receiver
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def send_receive_event_to_app(self) -> None:
        if self._receiver is None:
            super().send_receive_event_to_app()
            return
        message = bytes(self.frames[0]) if len(self.frames) == 1 else b"".join(self.frames)
        is_text, self.frames = self.curr_msg_data_type == "text", []
        if self.close_sent:
            return
        if is_text and not _is_utf8(message):
            self.end(1007, "text that is not UTF-8")
            return
        self._receiver.received(message)

    def end(self, code: int, reason: str) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        self.stop_keepalive()
        # A close frame's reason holds 123 bytes (RFC 6455, 5.5).
        self.conn.send_close(code, reason.encode()[:123].decode("utf-8", "ignore"))
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)
        self.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._was_lost()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._became_full()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._became_writable()

    def pause_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()


def _is_utf8(message: bytes) -> bool:
    try:
        message.decode()
    except UnicodeDecodeError:
        return False
    return True


def socket_of(scope: Any) -> Any:
    """The socket behind a request. Only this edge gives one: the bus streams under no other server."""
    socket = (scope.get("extensions") or {}).get(SOCKET)
    assert socket is not None, "this application runs behind engram_bus.api.edge's protocol classes"
    return socket
