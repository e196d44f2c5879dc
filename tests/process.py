"""`engram` as processes: a bus that can be killed and started again where it was, and commands run to their end."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from typer.testing import CliRunner, Result

ENGRAM = (sys.executable, "-m", "engram_bus.cli")


def environment(**variables: str) -> dict[str, str]:
    """This process's, without what would set a bus's or a terminal's ways.

    A bus searches only when it is asked to: the process that indexes costs half a second of each start. It is one
    process, however slow the disk.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "200", "ENGRAM_SEARCH": "false", "ENGRAM_WORKERS": "0", **variables}


def engram(
    *arguments: str, said: bytes | str = b"", timeout: float = 60, **variables: str
) -> subprocess.CompletedProcess[str]:
    """One command, from its start to its end; `said` is its stdin."""
    ended = subprocess.run(
        [*ENGRAM, *arguments],
        input=said.encode() if isinstance(said, str) else said,
        capture_output=True,
        timeout=timeout,
        env=environment(**variables),
    )
    assert b"Traceback" not in ended.stderr, ended.stderr.decode()
    return subprocess.CompletedProcess(ended.args, ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def engram_here(*arguments: str) -> Result:
    """One command called in this process, for what comes before its own code: help, and options that are none. That is
    a tenth of what a process takes."""
    from engram_bus.cli.app import app

    return CliRunner().invoke(app, arguments, env=environment(), prog_name="engram")


@contextmanager
def running(*arguments: str, in_front: bool = False, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """One command beside the test; killed by its pid where the test leaves it running.

    One that is in front has a process group of its own, as a terminal's job has: see `interrupt`.
    """
    process = subprocess.Popen(
        [*ENGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
        process_group=0 if in_front else None,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C: the terminal sends it to all of the job that is in front."""
    os.killpg(process.pid, signal.SIGINT)


class BusProcess:
    """`engram serve` over a data directory. Started again, it listens where it did before."""

    def __init__(self, data_dir: Path, *flags: str) -> None:
        self.data_dir = data_dir
        self.url = ""
        self._flags = flags
        self._port = "0"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Return when it answers."""
        assert self._process is None, "it runs"
        serve = ("serve", "--port", self._port, "--data-dir", str(self.data_dir), "--log-level", "warning")
        self._process = subprocess.Popen(
            [*ENGRAM, *serve, *self._flags], stdout=subprocess.PIPE, text=True, env=environment()
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        found = re.search(r"http://\S+:(\d+)", said)
        assert found is not None, f"the bus did not start: {said!r}"
        self.url, self._port = found[0], found[1]

    def stop(self) -> int:
        """As an operator stops it; its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9`."""
        assert self._end(signal.SIGKILL) == -signal.SIGKILL

    def _end(self, how: signal.Signals) -> int:
        assert self._process is not None, "it does not run"
        process, self._process = self._process, None
        process.send_signal(how)
        with process:
            return process.wait(20)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._end(signal.SIGKILL if kind is not None else signal.SIGTERM)
