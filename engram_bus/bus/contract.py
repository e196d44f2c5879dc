"""Where commands are decided and recorded, as the bus sees it: in this process (`writer.Writer`), or over a line to the
one process that may."""

from collections.abc import Callable, Sequence
from typing import Protocol

from engram_bus.bus.writer import Done, Ticket
from engram_bus.codec import Entry
from engram_bus.decisions.state import State
from engram_bus.errors import EngramError
from engram_bus.units import Command


class Decider(Protocol):
    """What the `Writer` is to a bus, and what stands in for it where another process decides."""

    @property
    def state(self) -> State:
        """The decisions' state as of the newest seq that was told to anyone. Raises where the log could not be read up
        to there (LogDamaged, StorageFailed)."""

    @property
    def commits(self) -> int:
        """Commits of the log since the start."""

    @property
    def refusal(self) -> EngramError | None:
        """Why nothing is appended now; None while all is well."""

    @property
    def is_closed(self) -> bool:
        """Whether the bus is stopping."""

    @property
    def queue_commands(self) -> int:
        """Commands that wait for their commit."""

    def now_us(self) -> int:
        """The writer's time, by which leases run out."""

    def submit(self, command: Command, held_bytes: int, done: Done, *, gathers: bool = False) -> Ticket:
        """Queue an admitted command. Raises Busy, StorageFull, ... at once rather than let it wait without bound."""

    def cancel(self, ticket: Ticket) -> None:
        """Leave the queue for a lock, or never join it: `done` is then told WaitEnded. What was granted stays so."""

    def end_session(self, session: str) -> None:
        """Release what is tied to a connection that ended."""

    def settle(self) -> None:
        """Let the log take over what was appended lately, for whoever reads it beside the bus. Raises as
        `Log.settle`."""

    def catch_up(self) -> None:
        """Before anything is read: take in all that any answer of this bus, given by whichever process, has seen.

        Raises Busy where that does not come in time.
        """

    def close(self) -> None:
        """Commit what waits, and refuse from now on."""


class DeciderOf(Protocol):
    """Makes one. `tell` is called with every committed batch, in order, after its callers were answered; `tell_ready`
    whenever `refusal` may have changed; `tell_settled` with the seq up to which the log can be read beside the bus."""

    def __call__(
        self,
        *,
        tell: Callable[[Sequence[Entry]], None],
        tell_ready: Callable[[], None],
        tell_settled: Callable[[int], None],
    ) -> Decider: ...
