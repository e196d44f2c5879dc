"""A worker that is the test's own process, joined to a log process of its own."""

import asyncio
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engram_bus.embedded import Bus
from engram_bus.settings import Settings
from engram_bus.units import Command
from engram_bus.workers import worker
from engram_bus.workers.line import pair
from engram_bus.workers.messages import framed, submit
from engram_bus.workers.orders import LogOrder, WorkerOrder, control_pair, encode_order, give
from engram_bus.workers.remote import Remote


class Joined:
    """The worker's bus, its end of the line, and that of another worker, which says a word now and then."""

    def __init__(self, bus: Bus, remote: Remote, other: socket.socket) -> None:
        self.bus = bus
        self.remote = remote
        self._other = other

    @property
    def recorded(self) -> int:
        """The newest seq of the log, whether this worker took it in or not."""
        return self.remote.word.head

    def submit_elsewhere(self, command: Command) -> None:
        """Through the other worker."""
        self._other.sendall(framed(submit(0, command, 0, gathers=False)))


@asynccontextmanager
async def joined(data_dir: Path) -> AsyncIterator[Joined]:
    """Both, until the block ends."""
    settings = Settings(data_dir=str(data_dir), search=False, log_level="warning")
    head_fd = os.memfd_create("engram-head")
    os.ftruncate(head_fd, mmap.PAGESIZE)
    control, theirs = control_pair()
    (line, far_end), (other, other_far_end) = pair(), pair()
    with control, theirs, other, pytest.MonkeyPatch.context() as patched:
        # A worker ends with its line, at once; the test's process does not.
        patched.setattr(worker, "_end", _lost)
        for serial, end in enumerate((far_end, other_far_end), 1):
            give(control, serial, end)
            end.close()
        order = encode_order(LogOrder(settings, os.getpid(), theirs.fileno(), head_fd))
        program = [sys.executable, "-m", "engram_bus.workers.log_process", order]
        with subprocess.Popen(program, pass_fds=(theirs.fileno(), head_fd)) as log_process:
            try:
                bus, remote = await worker._joined(
                    WorkerOrder(settings, os.getpid(), 1, 1, -1, head_fd, line.detach(), -1, None, "gRPC is off")
                )
                tallying = asyncio.ensure_future(worker._tally(remote))
                try:
                    yield Joined(bus, remote, other)
                finally:
                    tallying.cancel()
                    await bus.stop("shutdown")
                    remote.line.close()
            finally:
                log_process.terminate()
    os.close(head_fd)


def _lost(why: str) -> None:
    raise AssertionError(f"the worker has to end: {why}")
