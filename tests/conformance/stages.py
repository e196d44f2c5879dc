"""The stages of proto/vectors/README.md, for a staged bus in a process of its own."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from engram_bus.conformance.transports.connections import Place
from tests.process import environment

PROGRAM = (sys.executable, "-m", "tests.conformance.staged_bus")
ROOT = Path(__file__).parents[2]


class StagedBus:
    """Where it is, and what can be done to it."""

    can = frozenset("restart storage damage busy history slow mistake no_search".split())

    def __init__(self, process: subprocess.Popen[str], ports: Sequence[str]) -> None:
        self._process = process
        self.usual = _place(*ports[:2])
        self._history = _place(*ports[2:])

    async def set(self, stage: str) -> None:
        answer = await asyncio.to_thread(self._say, stage)  # who is subscribed has to answer that it is ended
        assert answer == "ok\n", f"no answer to {stage!r}"

    async def well(self) -> None:
        await self.set("well")

    def place(self, needs: Sequence[str]) -> Place | None:
        return self._history if "history" in needs else None

    def _say(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()


def _place(port: str, grpc_port: str) -> Place:
    return Place(f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}")


@contextlib.contextmanager
def staged_bus(data: Path) -> Iterator[StagedBus]:
    """Started, and stopped at last."""
    process = subprocess.Popen(
        [*PROGRAM, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )
    with process:
        assert process.stdout is not None
        yield StagedBus(process, process.stdout.readline().split())
        assert process.stdin is not None
        process.stdin.close()
