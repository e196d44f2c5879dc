"""How a pipeline's appends travel over a WebSocket: one connection each, no memory."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import assert_never

from engram_client import codec
from engram_client.frames import (
    Appended,
    Goaway,
    Heartbeat,
    Locked,
    Missing,
    Other,
    Pong,
    Refused,
    Released,
    Subscribed,
    Units,
)
from engram_client.values import Draft
from engram_client.websocket import OpenSocket, Socket


class OverWebSocket:
    """Each append a frame."""

    def __init__(self, open_socket: OpenSocket, *, agent_id: str) -> None:
        self._open_socket = open_socket
        self._agent_id = agent_id

    def append(self, draft: Draft, *, append_id: int, idempotency_key: str) -> bytes:
        return codec.append_frame(draft, frame_id=append_id, agent_id=self._agent_id, idempotency_key=idempotency_key)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator["_Publisher"]:
        async with self._open_socket() as socket:
            yield _Publisher(socket)


class _Publisher:
    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    async def send(self, appends: Sequence[bytes]) -> None:
        for frame in appends:
            await self._socket.send(frame)

    async def receive(self) -> Sequence[Appended | Refused]:
        frame = await self._socket.receive()
        match frame:
            case Appended() | Refused():
                return (frame,)
            case Goaway():
                raise frame.error
            case Subscribed() | Units() | Heartbeat() | Missing() | Locked() | Released() | Pong() | Other():
                return ()
            case _:
                assert_never(frame)
