"""What a worker and the log process say to one another: length-prefixed MessagePack over a socket pair.

In one direction commands, in the other every committed record, in order, and the answers. An answer names the head it
was given at, and is passed on when the worker stands there.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from engram_bus.embedded import Counts
from engram_bus.errors import EngramError, InternalError
from engram_bus.log.contract import Epoch
from engram_bus.projections.search.messages import State
from engram_bus.projections.search.values import Asked, Found
from engram_bus.units import (
    AcquireLock,
    Append,
    AppendAtomic,
    BreakLock,
    Command,
    Context,
    Lock,
    RefreshLock,
    ReleaseLock,
    UpdateContext,
)

LENGTH_BYTES = 4

COMMANDS: tuple[type[Command], ...] = (
    Append,
    AppendAtomic,
    UpdateContext,
    AcquireLock,
    RefreshLock,
    ReleaseLock,
    BreakLock,
)
"""By their place here: a command does not say what it is."""


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """An EngramError on its way."""

    code: str
    message: str
    field: str | None
    limit: int | None
    index: int | None
    details: dict[str, Any]

    def error(self) -> EngramError:
        return _ERRORS[self.code](self.message, field=self.field, limit=self.limit, index=self.index, **self.details)


def refusal_of(error: EngramError) -> Refusal:
    """The same, as a message."""
    try:
        details = msgspec.to_builtins(error.details)
    except TypeError:
        return refusal_of(InternalError(f"a refusal could not be passed on: {error.message}"))
    return Refusal(error.code, error.message, error.field, error.limit, error.index, details)


def _all_errors(parent: type[EngramError]) -> Iterator[type[EngramError]]:
    for child in parent.__subclasses__():
        yield child
        yield from _all_errors(child)


_ERRORS = {error.code: error for error in _all_errors(EngramError) if "code" in vars(error)}


# --- To the log process ----------------------------------------------------------------------------------------------


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Decide and record this admitted command; `kind` is its place in COMMANDS."""

    id: int
    kind: int
    held_bytes: int
    gathers: bool
    command: msgspec.Raw


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Nobody waits for this command's lock any more."""

    id: int


class EndSession(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Release what is tied to a connection that ended a grace ago."""

    session: str


class Find(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Answer this search."""

    id: int
    asked: Asked


class StartSearch(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Have search ready; `rebuild` it from the first unit."""

    rebuild: bool = False


class Tally(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """What is open at this worker."""

    counts: Counts


ToLogProcess = Submit | Cancel | EndSession | Find | StartSearch | Tally


# --- To a worker -----------------------------------------------------------------------------------------------------


class Readiness(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Whether appends are taken now, and if not, why."""

    refusal: Refusal | None


class Totals(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Every WORKER_TALLY_SECONDS: what the other workers have open, how the log is, and how far the writer's time is
    ahead of the time since the machine's start."""

    elsewhere: Counts
    commits: int
    ahead_us: int


class SearchState(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """How far the index is."""

    state: State


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """First of all: the bus as of `head`. What follows continues there."""

    path: str
    """Where the log lies."""
    size_bytes_max: int
    """What it may grow to."""
    epochs: list[Epoch]
    durability: str
    started_at: str
    head: int
    held: int
    """Up to where LMDB holds the log; `tail` are the records after it."""
    tail: list[bytes]
    states: dict[str, bytes]
    """The decisions' state, each part's as its snapshot."""
    readiness: Readiness
    totals: Totals
    search: State | None


class Committed(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Records from `first` on, durable; LMDB holds all up to `held`."""

    first: int
    raws: list[bytes]
    held: int


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What one command came to: `count` units from `first` on, or a refusal."""

    id: int
    first: int = 0
    count: int = 0
    replayed: bool = False
    context: Context | None = None
    lock: Lock | None = None
    refusal: Refusal | None = None


class Answers(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """What commands of this worker came to, given at `head`."""

    head: int
    outcomes: list[Outcome]


class Skipped(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """A record cannot be read by who is behind: the worker has to begin anew."""

    first: int
    last: int


class Answered(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """What a search found, or why nothing was."""

    id: int
    found: Found | None
    refusal: Refusal | None = None


class Settled(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """LMDB holds all up to `held`."""

    held: int


ToWorker = Readiness | Totals | SearchState | Hello | Committed | Answers | Skipped | Answered | Settled

_encode = msgspec.msgpack.Encoder().encode
decode_to_log_process: Callable[[bytes | memoryview], ToLogProcess] = msgspec.msgpack.Decoder(ToLogProcess).decode
decode_to_worker: Callable[[bytes | memoryview], ToWorker] = msgspec.msgpack.Decoder(ToWorker).decode
_kinds = {command: kind for kind, command in enumerate(COMMANDS)}
_decoders: list[Callable[[msgspec.Raw], Command]] = [msgspec.msgpack.Decoder(command).decode for command in COMMANDS]


def framed(message: ToLogProcess | ToWorker) -> bytes:
    """A message with its length before it."""
    body = _encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def submit(number: int, command: Command, held_bytes: int, *, gathers: bool) -> Submit:
    return Submit(number, _kinds[type(command)], held_bytes, gathers, msgspec.Raw(_encode(command)))


def command_of(message: Submit) -> Command:
    return _decoders[message.kind](message.command)
