"""A subscriber that does not read costs only itself: bounded memory, and an end that says where to resume."""

import asyncio
import json
import socket
from contextlib import AsyncExitStack
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame
from websockets.uri import parse_uri

from engram_bus.embedded import Bus
from engram_bus.limits import DRAIN_SECONDS_MAX, MIB, SOCKET_BUFFER_BYTES
from tests.live import LiveBus

HEALTHY = 99
UNITS = 400
PAYLOAD = "x" * 25_000
"""10 MB in all: more than a socket and its kernel hold."""


class FrozenSocket:
    """A WebSocket subscriber whose process stopped: it read its first frame, and nothing more until it wakes."""

    def __init__(self, bus: LiveBus, query: str) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self._socket.settimeout(20)
        self._socket.connect(bus.address)
        self._protocol = ClientProtocol(parse_uri(bus.stream_url(query)), max_size=None)
        self._protocol.send_request(self._protocol.connect())
        self._socket.sendall(b"".join(self._protocol.data_to_send()))
        while not self._frames():
            self._read()

    def close(self) -> None:
        self._socket.close()

    def wake(self) -> Close:
        """Read to the end; why it ended."""
        while self._protocol.close_rcvd is None:
            self._read()
        self.close()
        return self._protocol.close_rcvd

    def seqs(self, count: int) -> list[int]:
        """Read until so many units came."""
        seqs: list[int] = []
        while len(seqs) < count:
            self._read()
            for frame in self._frames():
                seqs += [unit["seq"] for unit in json.loads(bytes(frame.data)).get("units", [])]
        self.close()
        return seqs

    def _frames(self) -> list[Frame]:
        return [event for event in self._protocol.events_received() if isinstance(event, Frame)]

    def _read(self) -> None:
        data = self._socket.recv(1 << 20)
        assert data, "it was cut without a word"
        self._protocol.receive_data(data)


async def test_one_frozen_subscriber_beside_many_healthy_ones() -> None:
    with LiveBus(stall_seconds=2) as bus:
        frozen = await asyncio.to_thread(FrozenSocket, bus, "?context=plan")
        async with AsyncExitStack() as stack:
            readers = [await stack.enter_async_context(_connected(bus)) for _ in range(HEALTHY)]
            reading = [asyncio.create_task(_read(reader, UNITS)) for reader in readers]
            for _ in range(UNITS):
                await asyncio.to_thread(bus.append, "plan", PAYLOAD)
                assert bus.call(_waiting_bytes) <= SOCKET_BUFFER_BYTES + MIB
            for seqs in await asyncio.gather(*reading):
                assert seqs == list(range(1, UNITS + 1))
        await asyncio.to_thread(bus.wait, lambda inner: len(inner.fanout) == 0)
        closed = await asyncio.to_thread(frozen.wake)
        assert closed.code == 4008
        assert closed.reason.startswith("SLOW_CONSUMER")
        cursor = closed.reason.rpartition(" ")[2]
        after = int(cursor.rpartition(".")[2])
        assert after < UNITS
        async with _connected(bus, f"&after={cursor}") as again:
            assert await _read(again, UNITS - after) == list(range(after + 1, UNITS + 1))


async def test_a_frozen_subscriber_that_wakes_in_time_gets_everything() -> None:
    with LiveBus() as bus:
        frozen = await asyncio.to_thread(FrozenSocket, bus, "?context=plan")
        for _ in range(UNITS):
            await asyncio.to_thread(bus.append, "plan", PAYLOAD)
        assert 0 < bus.call(_waiting_bytes) <= SOCKET_BUFFER_BYTES + MIB
        assert await asyncio.to_thread(frozen.seqs, UNITS) == list(range(1, UNITS + 1))


async def test_a_stop_does_not_wait_for_a_frozen_subscriber() -> None:
    with LiveBus() as bus:
        frozen = await asyncio.to_thread(FrozenSocket, bus, "?context=plan")
        for _ in range(UNITS):
            await asyncio.to_thread(bus.append, "plan", PAYLOAD)
        async with asyncio.timeout(DRAIN_SECONDS_MAX + 5):
            await asyncio.to_thread(bus.stop)
        frozen.close()


def _connected(bus: LiveBus, query: str = "") -> connect:
    return connect(bus.stream_url(f"?context=plan{query}"), max_size=None)


def _waiting_bytes(bus: Bus) -> int:
    """The most that waits for any subscriber's socket."""
    feeds: list[Any] = list(bus.fanout._feeds)
    return max((feed.sink._socket.transport.get_write_buffer_size() for feed in feeds), default=0)


async def _read(connection: ClientConnection, count: int) -> list[int]:
    seqs: list[int] = []
    while len(seqs) < count:
        fields = json.loads(await connection.recv())
        seqs += [unit["seq"] for unit in fields.get("units", [])]
    return seqs
