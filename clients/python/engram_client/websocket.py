"""The door to websockets: one socket that sends messages and receives frames, or says why not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from engram_client import codec
from engram_client.errors import EngramConnectionError, EngramError, error_of_close
from engram_client.frames import Frame
from engram_client.http import is_loopback
from engram_client.limits import CLOSE_SECONDS, FRAME_BYTES_MAX, FRAMES_QUEUED

Encoding = Literal["msgpack", "json"]


class Socket:
    """An open connection. Whatever ends it is an EngramError, `retryable` where coming back makes sense."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def send(self, message: bytes) -> None:
        try:
            await self._connection.send(message)
        except ConnectionClosed as exc:
            raise _closed(exc) from exc

    async def receive(self, *, silence_seconds: float | None = None, subscription: int | None = None) -> Frame:
        """The next frame of this subscription (None: the URL's)."""
        try:
            async with asyncio.timeout(silence_seconds):
                message = await self._connection.recv()
        except TimeoutError as exc:
            raise EngramConnectionError(f"nothing heard for {silence_seconds} s, not even a heartbeat") from exc
        except ConnectionClosed as exc:
            raise _closed(exc) from exc
        return codec.frame(message, subscription=subscription)


OpenSocket = Callable[[], AbstractAsyncContextManager[Socket]]


@asynccontextmanager
async def open_socket(
    url: str, *, encoding: Encoding, timeout_seconds: float, ping_seconds: float | None = None
) -> AsyncIterator[Socket]:
    """A socket to `url`; with `ping_seconds` it asks for a sign of life that often."""
    try:
        connection = await connect(
            url,
            subprotocols=[Subprotocol(f"engram.v1.{encoding}")],
            proxy=None if is_loopback(url) else True,
            compression=None,
            open_timeout=timeout_seconds,
            close_timeout=CLOSE_SECONDS,
            ping_interval=ping_seconds,
            ping_timeout=ping_seconds,
            max_size=FRAME_BYTES_MAX,
            max_queue=FRAMES_QUEUED,
        )
    except InvalidStatus as exc:
        answer = exc.response
        raise codec.problem(answer.status_code, bytes(answer.body), answer.headers.get("Retry-After")) from exc
    except (OSError, TimeoutError, WebSocketException) as exc:
        raise EngramConnectionError(f"{type(exc).__name__} {exc}".rstrip()) from exc
    try:
        async with connection:
            yield Socket(connection)
    finally:
        # Closing waits for the other side, and that wait can itself be cut short: the socket is then still open.
        connection.transport.abort()


def _closed(exc: ConnectionClosed) -> EngramError:
    if exc.rcvd is None:
        return EngramConnectionError(f"the connection broke: {exc}")
    return error_of_close(exc.rcvd.code, exc.rcvd.reason)
