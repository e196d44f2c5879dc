"""What can be done to the server under test by one who only has a shell: nothing, or what a command does."""

import asyncio
import os
from collections.abc import Sequence

from engram_bus.conformance.transports.contract import Broken
from engram_bus.conformance.transports.table import Place


class Nothing:
    """It is left as it is."""

    can: frozenset[str] = frozenset()

    async def set(self, stage: str) -> None:
        raise Broken(f"the server cannot be made to {stage}")

    async def well(self) -> None:
        pass

    def place(self, needs: Sequence[str]) -> Place | None:
        return None


class ByCommand(Nothing):
    """It is restarted by a command that returns when the server answers again; ENGRAM_STAGE tells it how."""

    can = frozenset({"restart"})

    def __init__(self, command: str) -> None:
        self._command = command

    async def set(self, stage: str) -> None:
        if stage not in ("restart", "kill"):
            await super().set(stage)
        process = await asyncio.create_subprocess_shell(self._command, env={**os.environ, "ENGRAM_STAGE": stage})
        if (code := await process.wait()) != 0:
            raise Broken(f"{self._command!r} ended with {code}")
