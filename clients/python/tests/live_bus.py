"""A real bus in a process of its own, that can be stopped, killed and started again, and a wire to it that breaks."""

import asyncio
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self


class LiveBus:
    """`engram serve` over a data directory; started again, it listens where it did before."""

    def __init__(self, data_dir: Path, *flags: str, scheme: str = "http") -> None:
        self.urls: dict[str, str] = {}
        self._scheme = scheme
        self._data_dir = data_dir
        self._flags = flags
        self._port = "0"
        self._grpc_port = "0"
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where it is, over what the test is about."""
        return self.urls[self._scheme]

    def start(self) -> None:
        """Return when it answers."""
        command = [sys.executable, "-m", "engram_bus.cli", "serve", "--log-level", "warning"]
        ports = ["--port", self._port, "--grpc-port", self._grpc_port]
        self._process = subprocess.Popen(
            [*command, *ports, "--data-dir", str(self._data_dir), *self._flags],
            stdout=subprocess.PIPE,
            text=True,
            # What indexes starts with the first search, so that a bus which is not asked costs nothing. It is one
            # process, however slow the disk.
            env={**os.environ, "ENGRAM_SEARCH": "false", "ENGRAM_WORKERS": "0"},
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        found = re.search(r"http://\S+:(\d+)", said)
        assert found is not None, f"the bus did not start: {said!r}"
        self._port = found[1]
        self._grpc_port = str(self._ready()["grpc_port"])
        self.urls = {"http": found[0], "grpc": f"grpc://127.0.0.1:{self._grpc_port}"}

    def _ready(self) -> dict[str, object]:
        connection = http.client.HTTPConnection("127.0.0.1", int(self._port), timeout=10)
        try:
            connection.request("GET", "/readyz")
            found: dict[str, object] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()

    def stop(self) -> int:
        """As an operator stops it; its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a power cut stops it."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> int:
        assert self._process is not None, "it runs"
        process, self._process = self._process, None
        process.send_signal(how)
        with process:
            return process.wait(15)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._end(signal.SIGKILL if kind is not None else signal.SIGTERM)


class SameBus:
    """One that others use too, as it is reached over what the test is about."""

    def __init__(self, bus: LiveBus, scheme: str) -> None:
        self.url = bus.urls[scheme]


class Wire:
    """Another way to a bus, and how often it broke."""

    def __init__(self) -> None:
        self.url = ""
        self.cuts = 0


@asynccontextmanager
async def breaking_wire(url: str, *, seed: int, bytes_mean: int) -> AsyncIterator[Wire]:
    """A way to `url` whose connections are cut after a random number of bytes in either direction."""
    wire = Wire()
    scheme, _, address = url.partition("://")
    host, _, port = address.rpartition(":")
    dice = random.Random(seed)
    connections: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int) -> None:
        while chunk := await reader.read(min(65_536, budget)):
            budget -= len(chunk)
            writer.write(chunk)
            await writer.drain()
            if budget == 0:
                wire.cuts += 1
                return

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        writers = [writer]
        try:
            bus_reader, bus_writer = await asyncio.open_connection(host, int(port))
            writers.append(bus_writer)
            budget = [int(dice.expovariate(1 / bytes_mean)) + 1 for _ in range(2)]
            async with asyncio.TaskGroup() as ways:
                there = ways.create_task(carry(reader, bus_writer, budget[0]))
                back = ways.create_task(carry(bus_reader, writer, budget[1]))
                await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
                there.cancel()
                back.cancel()
        except (OSError, ExceptionGroup):
            pass
        finally:
            for end in writers:
                end.transport.abort()
            connections.discard(task)

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        wire.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield wire
    finally:
        server.close()
        for task in tuple(connections):
            task.cancel()
        if connections:
            await asyncio.wait(tuple(connections))


class Falling:
    """Another way to a bus, which may fall silent: what is connected then stays so, and hears nothing more."""

    def __init__(self) -> None:
        self.url = ""
        self.age = 0

    def fall_silent(self) -> None:
        """Those that connect from now on are carried."""
        self.age += 1


@asynccontextmanager
async def silent_wire(url: str) -> AsyncIterator[Falling]:
    """A way to `url`."""
    wire = Falling()
    scheme, _, address = url.partition("://")
    host, _, port = address.rpartition(":")
    writers: list[asyncio.StreamWriter] = []
    carrying: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, age: int) -> None:
        try:
            while (chunk := await reader.read(65_536)) and wire.age == age:
                writer.write(chunk)
        except OSError:
            pass
        if wire.age == age:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bus_reader, bus_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, bus_writer))
        for way in ((reader, bus_writer), (bus_reader, writer)):
            carrying.add(asyncio.create_task(carry(*way, wire.age)))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        wire.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield wire
    finally:
        server.close()
        for end in writers:
            end.transport.abort()
        await asyncio.gather(*carrying)
