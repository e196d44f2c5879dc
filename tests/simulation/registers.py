"""Two sequential objects with recorded histories: a register with compare-and-set, and keys with appended values."""

from collections.abc import Hashable, Iterable, Iterator

import msgspec

from tests.simulation.linearizability import Operation


class Read(msgspec.Struct, frozen=True):
    pass


class Write(msgspec.Struct, frozen=True):
    value: int


class Cas(msgspec.Struct, frozen=True):
    old: int
    new: int


class Value(msgspec.Struct, frozen=True):
    """What was read; None for nothing there yet."""

    value: int | None


class Done(msgspec.Struct, frozen=True):
    """Whether a write took place (a `Cas` may not)."""

    took_place: bool = True


RegisterOperation = Operation[Read | Write | Cas, Value | Done]


class Register:
    """Its state is its value, at first None."""

    initial: int | None = None

    def part(self, call: Read | Write | Cas) -> Hashable:
        return None

    def observes(self, operation: RegisterOperation) -> bool:
        return isinstance(operation.call, Read) or operation.result == Done(False)

    def step(self, state: int | None, operation: RegisterOperation, until: int) -> Iterator[int | None]:
        fitting, after = _answer(operation.call, state)
        if operation.result is None or operation.result == fitting:
            yield after


def _answer(call: Read | Write | Cas, state: int | None) -> tuple[Value | Done, int | None]:
    """What it says, and what it is then."""
    match call:
        case Read():
            return Value(state), state
        case Write(value):
            return Done(), value
        case Cas(old, new):
            return Done(state == old), new if state == old else state


class Get(msgspec.Struct, frozen=True):
    key: str


class Put(msgspec.Struct, frozen=True):
    key: str
    value: str


class Extend(msgspec.Struct, frozen=True):
    key: str
    value: str


class Text(msgspec.Struct, frozen=True):
    """What stands under a key; empty for nothing (of a `Put` or an `Extend` nothing is told)."""

    text: str = ""


KeyOperation = Operation[Get | Put | Extend, Text]


class Keys:
    """The state of each key is its text."""

    initial: str = ""

    def part(self, call: Get | Put | Extend) -> Hashable:
        return call.key

    def observes(self, operation: KeyOperation) -> bool:
        return isinstance(operation.call, Get)

    def step(self, state: str, operation: KeyOperation, until: int) -> Iterable[str]:
        match operation.call:
            case Get():
                return (state,) if operation.result in (None, Text(state)) else ()
            case Put(_, value):
                return (value,)
            case Extend(_, value):
                return (state + value,)
