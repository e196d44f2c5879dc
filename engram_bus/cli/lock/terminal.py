"""The terminal of a command that runs in a process group of its own: it is in front while it runs, and Ctrl-Z stops
all of us."""

import os
import signal
import sys

from engram_bus.cli.lock.guard import signal_group


class Terminal:
    """The terminal on stdin, or none."""

    def __init__(self) -> None:
        self._is_there = sys.stdin is not None and sys.stdin.isatty() and _is_in_front(os.getpgrp())

    def take_as_child(self) -> None:
        """Said by the child before it becomes the command: Ctrl-C and what is typed are its own."""
        if self._is_there:
            _put_in_front(os.getpid())

    def take_back(self, group: int) -> None:
        """The command has ended, or was stopped."""
        if self._is_there and _is_in_front(group):
            _put_in_front(os.getpgrp())

    def follow_stop(self, group: int) -> bool:
        """Where Ctrl-Z has stopped the command, stop as well. True when we are continued, and it is to `go_on`."""
        if not self._is_there or not _is_stopped(group):
            return False
        self.take_back(group)
        os.killpg(os.getpgrp(), signal.SIGTSTP)
        return True

    def go_on(self, group: int) -> None:
        """Continue the command, in front as we are (`fg`) or not (`bg`)."""
        if _is_in_front(os.getpgrp()):
            _put_in_front(group)
        signal_group(group, signal.SIGCONT)


def _is_in_front(group: int) -> bool:
    try:
        return os.tcgetpgrp(0) == group
    except OSError:  # the terminal has gone
        return False


def _is_stopped(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is not None
    except ChildProcessError:  # it has ended, and somebody has taken note
        return False


def _put_in_front(group: int) -> None:
    """Who is not in front may say who is only while SIGTTOU, which it gets for that, is ignored."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        os.tcsetpgrp(0, group)
    except OSError:  # the terminal has gone
        pass
    finally:
        signal.signal(signal.SIGTTOU, before)
