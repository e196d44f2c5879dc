"""What a decision is: decide before the write, evolve after it, and nothing else ever changes its state.

The writer keeps the order: `decide` sees every unit before it (those of the batch being built too), a refusal leaves no
unit, and `evolve` is called for every unit exactly once, in order, live and on restart alike. So what a client was told
is a fact in the log, and a later version of the code cannot take it back.
"""

from typing import Protocol

from engram_bus.units import Placed, WorkUnit


class Part(Protocol):
    """State that is folded from the log. Reads no clock, no disk, no randomness."""

    name: str
    """Under which its snapshots are kept; the state's format version is part of it."""

    def evolve(self, unit: WorkUnit | Placed) -> None:
        """Take in one recorded unit."""

    def snapshot(self) -> bytes:
        """The state, such that `restore` of it and evolving what came later gives the same state."""

    def restore(self, state: bytes | None) -> None:
        """Start from a snapshot, or (None) from nothing."""
