"""What both protocol classes are as sockets: they take prebuilt bytes, and tell when they are full, drained or gone."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from engram_bus.limits import PEER_SILENT_SECONDS, SOCKET_BUFFER_BYTES
from engram_bus.subscribers.sockets import Listener

SOCKET = "engram.socket"
"""The ASGI extension under which a scope holds its socket (`subscribers.sockets.Socket`)."""


def socket_of(scope: Any) -> Any:
    """The socket behind a request. Only this edge gives one: the bus streams under no other server."""
    socket = (scope.get("extensions") or {}).get(SOCKET)
    assert socket is not None, "this application runs behind the edge's protocol classes"
    return socket


class Written(asyncio.BaseProtocol):
    """The writing half of a socket, before a protocol class of uvicorn's."""

    transport: asyncio.Transport
    _listener: Listener | None = None
    _full = False
    _is_leaving = False
    _abort: asyncio.TimerHandle | None = None

    @property
    def has_room(self) -> bool:
        return not self._full and not self._is_leaving

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

    @property
    def push(self) -> Callable[[bytes], object]:
        return self.transport.write

    def abort_after(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._abort is not None:
            if self._abort.when() <= at:
                return
            self._abort.cancel()
        self._abort = loop.call_at(at, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._full = True
        if self._listener is not None:
            self._listener.full()

    def leave_off(self) -> None:
        """Nothing may follow what was written last: it is the connection's end."""
        self._is_leaving = True
        if self._listener is not None:
            self._listener.full()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._full = False
        if self._listener is not None and not self._is_leaving:
            self._listener.drained()

    def was_lost(self) -> None:
        if self._abort is not None:
            self._abort.cancel()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.lost()
