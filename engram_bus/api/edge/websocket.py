"""uvicorn's WebSocket, whose messages go to their connection at once and which takes prebuilt frames."""

from http import HTTPStatus
from typing import Protocol

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets import http11
from websockets.frames import Frame
from websockets.http11 import Request, Response
from websockets.protocol import State

from engram_bus.api.edge.frames import FIN_TEXT, FrameEnd, whole_message
from engram_bus.api.edge.socket import SOCKET, Written
from engram_bus.api.problems import CONTENT_TYPE as PROBLEM
from engram_bus.api.problems import problem_body
from engram_bus.errors import EngramError, HeadersTooLarge, InvalidRequest
from engram_bus.limits import HEADER_BYTES_MAX, LEAVE_SECONDS_MAX
from engram_bus.subscribers.sockets import Listener

# A query may be longer than a line that this library reads by itself; all of the headers are bounded before it.
http11.MAX_LINE_LENGTH = HEADER_BYTES_MAX

_OPEN = State.OPEN


class Receiver(Listener, Protocol):
    """Who takes a WebSocket's messages."""

    def received(self, message: bytes) -> None:
        """One whole message."""


class EdgeWebSocket(Written, WebSocketsSansIOProtocol):
    """A WebSocket that hands messages to its connection at once and takes prebuilt frames.

    uvicorn's own path queues a dictionary per message and stops reading in between: three times slower. Messages of one
    small frame, nearly all there are, are read here, in a tenth of the time that the library takes; every other frame
    is the library's, each whole, so that it stands between two frames whenever a message is read past it.
    """

    _receiver: Receiver | None = None
    _joined: bytearray | None = None
    _frame_end: FrameEnd | None = None
    """None until the handshake was read, which comes as one piece."""

    def data_received(self, data: bytes) -> None:
        frame_end = self._frame_end
        if frame_end is None:
            self._frame_end = FrameEnd()
            self._read_handshake(data)
            return
        at, size, receiver, conn = 0, len(data), self._receiver, self.conn
        while at < size:
            found = None
            # Where a message may begin, and is for our receiver.
            if frame_end.is_reached and receiver is not None and conn.state is _OPEN and conn.current_size is None:
                found = whole_message(data, at)
            if found is None:
                end = frame_end.find(data, at)
                super().data_received(data[at:end])
                at = end
            else:
                is_text = data[at] == FIN_TEXT
                message, at = found
                self._take(message, is_text=is_text)

    def _read_handshake(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_complete:
            fault = HeadersTooLarge(f"the handshake cannot be read: {self.conn.handshake_exc}")
            self._refuse_handshake(self.conn.reject(HTTPStatus(fault.status), fault.title), fault)

    def handle_connect(self, event: Request) -> None:
        refused = self.conn.accept(event)
        if refused.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            super().handle_connect(event)
        else:
            fault = InvalidRequest(f"not a WebSocket handshake: {refused.body.decode().strip()}")
            self._refuse_handshake(refused, fault)

    def _refuse_handshake(self, refused: Response, fault: EngramError) -> None:
        """As uvicorn does it, but with a problem for a body."""
        body = problem_body(fault)
        for name, value in (("Content-Type", PROBLEM), ("Content-Length", str(len(body)))):
            # Its headers are many by name: setting one adds it.
            del refused.headers[name]
            refused.headers[name] = value
        refused.body = body
        self.handshake_complete = self.close_sent = True
        self.transport.write(refused.serialize())
        self.transport.close()

    async def run_asgi(self) -> None:
        self.scope["extensions"] = {**(self.scope["extensions"] or {}), SOCKET: self}  # type: ignore[dict-item]
        await super().run_asgi()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # It was refused in full: nothing is missing that uvicorn would complain of.

    def attach(self, receiver: Receiver) -> None:
        """From now on messages go to this one; the handshake is complete."""
        self._receiver = receiver
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def handle_cont(self, event: Frame) -> None:
        # One buffer, not a list: a message may come in two million fragments of a byte, or of none.
        if self._joined is None:
            self._joined = bytearray(self.frames[0])
        self._joined += event.data
        if event.fin:
            self.frames, self._joined = [bytes(self._joined)], None
            self.send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """The peer broke the protocol or a bound (1002, 1007, 1009): say so, and let it read that before it is cut."""
        sent = self.conn.close_sent
        assert sent is not None, "the protocol says why it failed"
        if not self.close_sent:
            self._closing(sent.code, sent.reason)
            self.transport.write_eof()  # No answer to the close frame can be understood any more.

    def send_receive_event_to_app(self) -> None:
        if self._receiver is None:
            super().send_receive_event_to_app()
            return
        message = bytes(self.frames[0]) if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        if not self.close_sent:
            self._take(message, is_text=self.curr_msg_data_type == "text")

    def _take(self, message: bytes, *, is_text: bool) -> None:
        assert self._receiver is not None, "messages are taken for a receiver"
        if is_text and not (message.isascii() or _is_utf8(message)):
            self.end(1007, "text that is not UTF-8")
            return
        self._receiver.received(message)

    def end(self, code: int, reason: str) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        # A close frame's reason holds 123 bytes (RFC 6455, 5.5).
        self.conn.send_close(code, reason.encode()[:123].decode("utf-8", "ignore"))
        self._closing(code, reason)

    def _closing(self, code: int, reason: str) -> None:
        """The close frame goes out; the peer answers it, or is cut after a while."""
        self.leave_off()
        self.stop_keepalive()
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.close_timer = self.loop.call_later(LEAVE_SECONDS_MAX, self.transport.close)
        self.resume_reading()

    def handle_close(self, event: Frame) -> None:
        self.leave_off()
        super().handle_close(event)

    def shutdown(self) -> None:
        self.leave_off()
        # Who was told to go reads that first: closing now, on bytes it may just send, would reset the connection.
        if not self.close_sent:
            super().shutdown()
        self.abort_after(LEAVE_SECONDS_MAX)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.was_lost()

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
