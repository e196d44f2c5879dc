"""`engram serve --workers 2` for tests: which process is which, and connections to just the one that is wanted."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
from websockets.sync.client import ClientConnection, connect

from tests.process import BusProcess

SECONDS = 30.0
"""How long a test waits for what must come."""


class WorkersBus(BusProcess):
    """A bus of a supervisor, a log process and some workers."""

    def __init__(self, data_dir: Path, *flags: str, workers: int = 2) -> None:
        super().__init__(data_dir, "--workers", str(workers), *flags)
        self.workers = range(1, workers + 1)

    @property
    def supervisor(self) -> int:
        assert self._process is not None, "it runs"
        return self._process.pid

    @property
    def log_process(self) -> int:
        [pid] = [pid for pid, number in self._children() if number is None]
        return pid

    def worker(self, number: int) -> int:
        """Its pid, once there is one."""
        found: list[int] = []

        def is_there() -> bool:
            found[:] = [pid for pid, one in self._children() if one == number]
            return bool(found)

        until(is_there)
        return found[0]

    def children(self) -> list[int]:
        return [pid for pid, _ in self._children()]

    def _children(self) -> Iterator[tuple[int, int | None]]:
        """Each with its number, if it is a worker."""
        text = Path(f"/proc/{self.supervisor}/task/{self.supervisor}/children").read_text()
        for pid in map(int, text.split()):
            try:
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if len(arguments) > 4 and arguments[3].startswith(b"engram_bus.workers."):
                yield pid, msgspec.json.decode(arguments[4]).get("number")

    def wait(self) -> int:
        """Until it ends by itself; its exit code."""
        assert self._process is not None, "it runs"
        process, self._process = self._process, None
        with process:
            return process.wait(SECONDS)

    # --- Connections -------------------------------------------------------------------------------------------------

    @contextmanager
    def connect(self, number: int) -> Iterator[httpx.Client]:
        """A client with one connection, to this worker."""
        until_at = time.monotonic() + SECONDS
        while time.monotonic() < until_at:
            one = httpx.Limits(max_connections=1)
            with httpx.Client(base_url=self.url, timeout=SECONDS, limits=one, headers={"x-agent-id": "ann"}) as client:
                if client.get("/readyz").json()["worker"] == number:
                    yield client
                    return
        raise AssertionError(f"worker {number} takes no connection")

    @contextmanager
    def stream(self, number: int, query: str = "") -> Iterator[ClientConnection]:
        """A WebSocket to this worker, after the frame that comes first."""
        until_at = time.monotonic() + SECONDS
        while time.monotonic() < until_at:
            with connect(self.url.replace("http", "ws") + f"/stream{query}") as stream:
                hear(stream, "subscribed")
                if self._is_of(stream, self.worker(number)):
                    yield stream
                    return
        raise AssertionError(f"worker {number} takes no connection")

    def _is_of(self, stream: ClientConnection, pid: int) -> bool:
        """Whether the other end of a connection is this process's: its sockets are files with the inode of the end."""
        here, there = stream.socket.getsockname()[1], int(self._port)
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if [int(end.rpartition(":")[2], 16) for end in fields[1:3]] == [there, here]:
                wanted = f"socket:[{fields[9]}]"
                return any(_target(file) == wanted for file in Path(f"/proc/{pid}/fd").iterdir())
        return False


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:
        return ""


def until(is_so: Callable[[], Any]) -> None:
    """Return when it is so."""
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it never was"
        time.sleep(0.01)


def kill(pid: int, how: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, how)


def is_gone(pid: int) -> bool:
    """Whether a process that is no child of ours has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def say(stream: ClientConnection, **operation: Any) -> None:
    stream.send(msgspec.json.encode(operation), text=True)


def hear(stream: ClientConnection, event: str) -> dict[str, Any]:
    """The next frame of this kind."""
    while True:
        heard: dict[str, Any] = msgspec.json.decode(stream.recv(SECONDS))
        if heard["event"] == event:
            return heard


def heard_units(stream: ClientConnection, last: int) -> list[dict[str, Any]]:
    """The units that come, up to that of a seq."""
    units: list[dict[str, Any]] = []
    while not units or units[-1]["seq"] < last:
        units += hear(stream, "units")["units"]
    return units


def heard_seqs(stream: ClientConnection, last: int) -> list[int]:
    """The same, their seqs."""
    return [unit["seq"] for unit in heard_units(stream, last)]


def append(client: httpx.Client, context_id: str, **fields: Any) -> dict[str, Any]:
    """One unit."""
    answered = client.post("/workunit", json={"context_id": context_id, "payload": "hello", **fields})
    assert answered.status_code == 201, answered.text
    unit: dict[str, Any] = answered.json()
    return unit


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process that does nothing, until it is killed or the block ends."""
    kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if not is_gone(pid):
            kill(pid, signal.SIGCONT)
