"""Processes of the bus: how one is started, and what one that serves is set up with before its loop runs (what it logs,
its limits, its collector, its end)."""

import ctypes
import faulthandler
import gc
import logging
import os
import resource
import signal
import sys

from engram_bus.limits import CONNECTIONS_MAX

_STDERR = 2
"""The descriptor: `sys.stderr` may be something that has none."""
_PR_SET_PDEATHSIG = 1


def set_up(log_level: str, *, name: str = "") -> None:
    """`name` says which process of several it is."""
    # A page of the log whose length leads out of its file ends the process (SIGBUS): it says where, at least.
    faulthandler.enable(_STDERR)
    set_up_logging(log_level, name=name)
    _raise_file_limit()
    _calm_collector()


def set_up_logging(level: str, *, name: str = "") -> None:
    """To stderr."""
    where = f" [{name}]" if name else ""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format=f"%(asctime)s %(levelname)-7s %(name)s{where}: %(message)s"
    )
    # Its every connection and shutdown step is news to no one.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def python(module: str, *arguments: str) -> list[str]:
    """The command line of a process that runs a module of ours.

    With -P, for the current directory is anybody's: a random.py that lies there is none of our modules.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def path_variables() -> dict[str, str]:
    """The environment of a process that finds our modules where this one did; the current directory (empty in
    `sys.path`) is left out."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def die_with(parent_pid: int) -> None:
    """Be killed when the process that started this one ends, however that ends: no process is left behind."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent_pid:
        raise SystemExit(1)  # Without words: who would have read them is gone.


def _raise_file_limit() -> None:
    """A socket is a file, and the usual soft limit of 1,024 is for programs that use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + 1_024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _calm_collector() -> None:
    """What was imported lives as long as the process: the cycle collector need not walk it, and it comes less often,
    because the hot paths make no cycles and a full collection holds the loop for some 10 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
