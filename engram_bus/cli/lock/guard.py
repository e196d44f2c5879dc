"""A process that outlives a killed `engram lock run` just long enough to end the command that ran under its lock.

It is forked before anything else happens, in a session of its own, and reads a pipe whose other end only `run` (and,
until it becomes the command, the child) holds. The end of that pipe without the word that all is over means that `run`
was killed: then nobody refreshes the lock, and the command's process group is ended as when a lock is lost.
"""

import os
import signal
import sys
import time
from typing import Final

GRACE_SECONDS: Final = 5.0
"""Between SIGTERM and SIGKILL."""
_LOOK_SECONDS: Final = 0.05
_OVER: Final = b"over\n"


class Guard:
    """The guard from the side of `run`."""

    def __init__(self) -> None:
        read_end, self._write_end = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._write_end)
            _watch(read_end)
        os.close(read_end)

    def tell(self) -> None:
        """Said by the child itself, before it becomes the command: there is no moment in which nobody knows of it."""
        self._say(b"%d\n" % os.getpid())

    def over(self) -> None:
        """The command has ended: what it left in the background is its own affair."""
        self._say(_OVER)
        os.close(self._write_end)
        os.waitpid(self._pid, 0)

    def _say(self, word: bytes) -> None:
        try:
            os.write(self._write_end, word)
        except BrokenPipeError:  # somebody has killed the guard: the command is no worse off than without one
            pass


def is_alive(group: int) -> bool:
    """Whether a process group has any process left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it has one, of another user
        return True
    return True


def signal_group(group: int, number: int) -> None:
    """Send a signal to whoever of the group is left."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass


def end_group(group: int) -> None:
    """SIGTERM to all of a process group, and SIGKILL to whoever is left after a while."""
    signal_group(group, signal.SIGTERM)
    signal_group(group, signal.SIGCONT)  # what is stopped has to hear it
    until = time.monotonic() + GRACE_SECONDS
    while is_alive(group) and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    signal_group(group, signal.SIGKILL)


def _watch(read_end: int) -> None:
    """All that the guard does; it never returns."""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        with open(read_end, "rb") as pipe:
            said = pipe.read().splitlines(keepends=True)
        if said and said[-1] != _OVER:
            end_group(int(said[0]))
            print("engram: lock run was killed, so its command was ended", file=sys.stderr, flush=True)
    finally:
        os._exit(0)
