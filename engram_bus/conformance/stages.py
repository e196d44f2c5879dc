"""What can be done to the server under test, and what one can do who only has a shell."""

import asyncio
import os
from collections.abc import Sequence
from typing import Protocol

from engram_bus.conformance.transports.connections import Place
from engram_bus.conformance.transports.contract import Broken


class Stages(Protocol):
    """Whoever can change the server."""

    @property
    def can(self) -> frozenset[str]:
        """What exchanges may need."""

    async def set(self, stage: str) -> None:
        """Change the server."""

    async def well(self) -> None:
        """End every stage: it is as it was."""

    def place(self, needs: Sequence[str]) -> Place | None:
        """Another server that has what these need; None: the usual one."""


class Nothing:
    """It is left as it is."""

    can: frozenset[str] = frozenset()

    async def set(self, stage: str) -> None:
        raise Broken(f"the server cannot be brought to {stage!r}")

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
