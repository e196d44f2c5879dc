"""What a connection needs of its socket; the edge's protocol classes give it."""

from collections.abc import Callable
from typing import Protocol


class Listener(Protocol):
    """Who hears of a socket's state."""

    def full(self) -> None:
        """The socket holds more than its high-water mark, or begins to close."""

    def drained(self) -> None:
        """The socket takes more again."""

    def lost(self) -> None:
        """The socket is gone."""


class Socket(Protocol):
    """A socket that is written whole frames. Writing to one that is gone does nothing."""

    @property
    def has_room(self) -> bool:
        """False while more than the high-water mark waits to be sent, and from when it begins to close."""

    def listen(self, listener: Listener) -> None:
        """Tell this one of the socket's state."""

    def write_raw(self, frame: bytes) -> None:
        """Send bytes as they are."""

    @property
    def push(self) -> Callable[[bytes], object]:
        """The same without a question: for who asked `has_room`, and has not heard that it is full."""

    def pause_reading(self) -> None:
        """Take nothing more from the other side for now."""

    def resume_reading(self) -> None:
        """Take again."""

    def abort_after(self, seconds: float) -> None:
        """Cut the connection if it is still there then; of two times the sooner counts."""


class WebSocket(Socket, Protocol):
    """A socket that also closes as RFC 6455 says."""

    def end(self, code: int, reason: str) -> None:
        """Send a close frame; the other side has a while to answer it."""
