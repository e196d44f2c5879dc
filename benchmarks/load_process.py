"""A process that puts load on a server: it is told each turn by a line on stdin, and says by lines what comes of it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

import uvloop

from benchmarks.harness import ROOT

Say = Callable[[Any], None]
Turn = Callable[..., Awaitable[None]]
"""Takes a `Say` and what it is told by name."""

TURN_SECONDS_MAX = 300


class LoadProcess:
    """Seen from who tells it what to do. `module` calls `take_turns`."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, turn: str, **what: Any) -> None:
        """Start a turn; whoever began it hears what it says."""
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.write(json.dumps([turn, what]) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """The next it says."""
        assert self._process.stdout is not None, "it is a pipe"
        line = self._process.stdout.readline()
        assert line, "the load ended; it says why on stderr"
        return json.loads(line)

    def turn(self, turn: str, **what: Any) -> Any:
        """A turn that says one thing."""
        self.begin(turn, **what)
        return self.hear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate(timeout=60)


def take_turns(turns: Mapping[str, Turn]) -> None:
    """Seen from within: one turn after the other, until stdin ends."""
    uvloop.run(_taking(turns))


async def _taking(turns: Mapping[str, Turn]) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        turn, what = json.loads(line)
        async with asyncio.timeout(TURN_SECONDS_MAX):
            await turns[turn](_say, **what)


def _say(something: Any) -> None:
    print(json.dumps(something), flush=True)
