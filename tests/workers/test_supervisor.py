"""The supervisor keeps as many workers as were asked for."""

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from engram_bus.ports import hold
from engram_bus.settings import Settings
from engram_bus.workers import supervisor
from engram_bus.workers.orders import give
from tests.workers.bus import SECONDS


async def test_a_worker_that_could_not_be_given_a_line_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serials: list[int] = []

    def give_the_second(control: socket.socket, serial: int, end: socket.socket) -> None:
        serials.append(serial)
        if serial == 1:
            raise BlockingIOError("the log process takes nothing")
        give(control, serial, end)

    monkeypatch.setattr(supervisor, "give", give_the_second)
    answering = asyncio.Event()
    settings = Settings(data_dir=str(tmp_path / "data"), grpc=False, search=False, log_level="warning")
    with hold("127.0.0.1", 0) as held:
        one = supervisor.Supervisor(settings, 1, held, None, "gRPC is off", lambda url: answering.set(), "")
        running = asyncio.ensure_future(one.run())
        try:
            async with asyncio.timeout(SECONDS):
                await answering.wait()
        finally:
            signal.raise_signal(signal.SIGTERM)
            await running
    assert serials == [1, 2]
