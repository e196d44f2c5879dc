"""All decisions together: which of them decides a command, and what each asks of the others."""

from collections.abc import Sequence

from engram_bus.decisions.contexts import Contexts
from engram_bus.decisions.contract import Part
from engram_bus.decisions.locks import Locks
from engram_bus.errors import EngramError
from engram_bus.units import (
    LOCKS_CONTEXT,
    AcquireLock,
    Append,
    AppendAtomic,
    BreakLock,
    Command,
    Draft,
    RefreshLock,
    ReleaseLock,
    Stamp,
    TendLocks,
    UpdateContext,
    WorkUnit,
)


class State:
    """What is decided from. Every unit of the log is taken in by all of it, in order."""

    def __init__(self) -> None:
        self.contexts = Contexts()
        self.locks = Locks()

    @property
    def parts(self) -> Sequence[Part]:
        """Each keeps its own snapshot."""
        return self.contexts, self.locks

    def decide(self, command: Command | TendLocks, stamp: Stamp) -> Sequence[Draft]:
        """The units a command asks for. Raises the refusals of the decision it belongs to."""
        match command:
            case Append():
                self.check_append(command, stamp)
                return (command.draft,)
            case AppendAtomic():
                drafts = self.contexts.decide(command, stamp)
                for index, append in enumerate(command.appends):
                    try:
                        self._check_fences(append, self.contexts.fences(append.draft.context_id), stamp)
                    except EngramError as exc:
                        raise exc.at(index) from None
                return drafts
            case UpdateContext():
                return self.contexts.decide(command, stamp)
            case AcquireLock():
                if command.context_id != LOCKS_CONTEXT:
                    self.contexts.check_open(command.context_id)
                return self.locks.decide(command, stamp)
            case RefreshLock() | ReleaseLock() | BreakLock() | TendLocks():
                return self.locks.decide(command, stamp)

    def check_append(self, append: Append, stamp: Stamp) -> None:
        """Whether an append is taken, which asks for the one unit that it brings. Raises as `decide`."""
        self._check_fences(append, self.contexts.check_append(append), stamp)

    def _check_fences(self, append: Append, fences: Sequence[str], stamp: Stamp) -> None:
        if fences or append.fence is not None:
            self.locks.check_fences(append, fences, stamp.ts_us)

    def evolve(self, unit: WorkUnit) -> None:
        """Take in one recorded unit."""
        self.contexts.evolve(unit)
        if unit.kind is not None:
            self.locks.evolve(unit)
