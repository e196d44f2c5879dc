"""How long a commit waits for commands that come one in a turn of the loop: as long as waiting has paid."""

from engram_bus.limits import GATHER_IDLE_TURNS_MAX, GATHER_TURNS_MAX


class Gathering:
    """Turns of the loop given away before a commit.

    gRPC brings a call in a turn, or in one of several: committed at once, each would pay for a flush of its own. What
    one client sends in lockstep is not to wait for others that do not come. So the turns without a command that are
    waited out double whenever a commit gathered several, and halve whenever it gathered one.
    """

    def __init__(self) -> None:
        self._patience = 1
        self._gathered = self._turns = self._idle_turns = 0

    def goes_on(self, queued: int) -> bool:
        """Whether to give this turn away, with so many commands queued; False begins anew."""
        self._idle_turns = 0 if queued > self._gathered else self._idle_turns + 1
        self._gathered = queued
        self._turns += 1
        if self._idle_turns <= self._patience and self._turns < GATHER_TURNS_MAX:
            return True
        self._patience = min(2 * self._patience, GATHER_IDLE_TURNS_MAX) if queued > 1 else max(self._patience // 2, 1)
        self._gathered = self._turns = self._idle_turns = 0
        return False
