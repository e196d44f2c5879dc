"""A process that ends the command which ran under a lock when `engram lock run` cannot: killed, or standing still for
longer than its lease.

It is forked before anything else happens, in a session of its own, and reads a pipe whose other end only `run` (and,
until it becomes the command, the child) holds. At every refresh it is told until when the lock is held. That moment
passing without news, or the end of the pipe without the word that all is over, means that nobody refreshes the lock any
more: then the command's process group is ended as when a lock is lost.
"""

import math
import os
import select
import signal
import sys
import time
from typing import Final, Literal, NamedTuple

from engram_client.lease import now

GRACE_SECONDS: Final = 5.0
"""Between SIGTERM and SIGKILL."""
_LOOK_SECONDS: Final = 0.05
_LOOK_AT_CLOCK_SECONDS: Final = 0.25
"""A wait does not count the time that the machine sleeps; the lease does."""
_NOTICE_SECONDS: Final = 1.0
"""A `run` that does not stand still has noticed by then as well, and says more about it than the guard can."""
_READ_BYTES: Final = 4_096
_HAS_ENDED_IT: Final = 3
"""The guard's exit code when it has ended the command."""


class Guard:
    """The guard from the side of `run`. With `only_warns` it says that a lease is over, and lets the command run on."""

    def __init__(self, *, only_warns: bool) -> None:
        read_end, self._write_end = os.pipe()
        self._code: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._write_end)
            _stand_by(read_end, only_warns)
        os.close(read_end)
        os.set_blocking(self._write_end, False)

    def tell(self) -> None:
        """Said by the child itself, before it becomes the command: there is no moment in which nobody knows of it."""
        self._say(f"group {os.getpid()}")

    def until(self, ends_at: float) -> None:
        """The lock is held until then, by `engram_client.lease.now()`."""
        self._say(f"until {ends_at!r}")

    def end(self, group: int) -> None:
        """End the command now, and return when it has ended; as the guard would, where somebody has killed the guard.

        It is the guard's so that it happens once, and to its end, whatever becomes of `run`.
        """
        self._say("end")
        if not self._has_ended_it():
            end_group(group)

    def over(self) -> bool:
        """The command has ended: what it left in the background is its own affair. Whether it was ended for its lock;
        said once or more often."""
        if self._code is None:
            self._say("over")
        return self._has_ended_it()

    def _has_ended_it(self) -> bool:
        if self._code is None:
            os.close(self._write_end)
            os.kill(self._pid, signal.SIGCONT)  # should somebody have stopped it
            _, status = os.waitpid(self._pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
        return self._code == _HAS_ENDED_IT

    def _say(self, words: str) -> None:
        try:
            os.write(self._write_end, words.encode() + b"\n")
        except (BrokenPipeError, BlockingIOError):
            pass  # somebody has killed or stopped the guard: the command is no worse off than without one


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


def _stand_by(read_end: int, only_warns: bool) -> None:
    """All that the guard does; it never returns."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        group, why = _watch(read_end, only_warns)
        if group is not None:
            end_group(group)  # before anything is said: stderr may be full, and nobody read it
            code = _HAS_ENDED_IT
            if why == "killed":
                _tell("lock run was killed, so its command was ended")
            elif why == "late" and not _has_news(read_end, _NOTICE_SECONDS):
                _tell("lock run stood still until its lock ran out, so its command was ended")
    finally:
        os._exit(code)


class _End(NamedTuple):
    group: int | None
    """What has to be ended, if anything."""
    why: Literal["over", "asked", "killed", "late"]


def _watch(read_end: int, only_warns: bool) -> _End:
    """Until all is over, in one way or another."""
    group: int | None = None
    ends_at, rest = math.inf, b""
    while True:
        due_at = math.inf if group is None else ends_at + (_NOTICE_SECONDS if only_warns else 0)
        seconds_left = due_at - now()  # before the look: who stood still has to hear first what was said meanwhile
        if not _has_news(read_end, None if group is None else min(max(0.0, seconds_left), _LOOK_AT_CLOCK_SECONDS)):
            if seconds_left > 0:
                continue
            if not only_warns:
                return _End(group, "late")
            ends_at = math.inf
            _tell("lock run stands still, its lock has run out, and the command runs on without it")
        elif piece := os.read(read_end, _READ_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                match line.split():
                    case [b"group", pid]:
                        group = int(pid)
                    case [b"until", moment]:
                        ends_at = float(moment)
                    case [b"end"]:
                        return _End(group, "asked")
                    case [b"over"]:
                        return _End(None, "over")
                    case _:
                        raise AssertionError(f"{line!r} is no word of a guard's")
        else:
            return _End(group, "killed")


def _has_news(read_end: int, seconds: float | None) -> bool:
    """Wait for it, for so long at most."""
    return bool(select.select([read_end], [], [], seconds)[0])


def _tell(text: str) -> None:
    print(f"engram: {text}", file=sys.stderr, flush=True)
