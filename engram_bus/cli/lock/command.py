"""The command of `engram lock run`: a child that is there before the lock is, and becomes the command when told.

A process whose threads speak gRPC cannot fork without harm to them, so this one is forked before there are any. It
waits in a process group of its own, and goes with who forked it.
"""

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from engram_bus.cli.lock.guard import Guard
from engram_bus.cli.lock.terminal import Terminal

_READ_BYTES = 65_536


class Command:
    """The child from the side of `run`."""

    def __init__(self, words: list[str], guard: Guard, terminal: Terminal) -> None:
        self.name = words[0]
        told, self._tell = os.pipe()
        self._hear, say = os.pipe()
        self._has_begun = False
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._tell)
            _become(words, guard, terminal, told, say)
        os.close(told)
        os.close(say)

    def begin(self, variables: Mapping[str, str]) -> None:
        """Return when it is the command, in this environment and these. Raises OSError where it cannot be."""
        self._has_begun = True
        os.write(self._tell, json.dumps(variables).encode())
        os.close(self._tell)
        if number := os.read(self._hear, _READ_BYTES):
            os.waitpid(self.pid, 0)
            raise OSError(int(number), os.strerror(int(number)))

    async def ended(self) -> int:
        """Its exit code, or the negative number of the signal that ended it; asked for once."""
        loop, pidfd = asyncio.get_running_loop(), os.pidfd_open(self.pid)
        ends: asyncio.Future[None] = loop.create_future()
        loop.add_reader(pidfd, ends.set_result, None)
        try:
            await ends
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])  # noqa: ASYNC222 - it has ended

    def over(self) -> None:
        """It is not needed, if it has not begun."""
        if not self._has_begun:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _become(words: list[str], guard: Guard, terminal: Terminal, told: int, say: int) -> None:
    """All that the child does before it is the command; it never returns."""
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
            signal.signal(number, signal.SIG_DFL)
        said = b""
        while piece := os.read(told, _READ_BYTES):
            said += piece
        if said:
            _keep_files()
            guard.tell()
            terminal.take_as_child()
            os.execvpe(words[0], words, os.environ | json.loads(said))  # noqa: S606 - what the user asked for
    except OSError as exc:
        os.write(say, str(exc.errno).encode())
    finally:
        os._exit(1)


def _keep_files() -> None:
    """The command has stdin, stdout and stderr; what else was inherited stays with us."""
    for file in Path("/proc/self/fd").iterdir():
        try:
            os.set_inheritable(int(file.name), int(file.name) <= 2)
        except OSError:  # that of the list itself
            pass
