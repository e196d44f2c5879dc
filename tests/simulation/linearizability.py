"""Whether what clients saw has an order in which one sequential object would have answered just so (Wing & Gong; Lowe).

The search goes through the events in the order of time. What was invoked before the first return that is still open may
take effect next; each set of operations that took effect is looked at once per state it left. Each part of a history
(one key, one resource) is searched by itself: together they are linearizable where each is.
"""

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

C = TypeVar("C")
R = TypeVar("R")
S = TypeVar("S", bound=Hashable)

NEVER = 2**63
"""After every time."""


class Operation(msgspec.Struct, Generic[C, R], frozen=True, kw_only=True):
    """One call of one process, and what it knows of its end.

    Without a result nobody knows whether it took effect, so it may have, at any time until `returned_at`, or not at
    all. Without `returned_at` it may still do so.
    """

    process: str
    call: C
    invoked_at: int
    returned_at: int | None = None
    result: R | None = None

    @property
    def end(self) -> int:
        return NEVER if self.returned_at is None else self.returned_at


class Model(Protocol[S, C, R]):
    """The sequential object."""

    @property
    def initial(self) -> S: ...

    def part(self, call: C) -> Hashable:
        """Which of several independent objects this is about."""

    def observes(self, operation: Operation[C, R]) -> bool:
        """Whether it changes nothing, whenever it takes effect. What only looks, and may look now, need not wait."""

    def step(self, state: S, operation: Operation[C, R], until: int) -> Iterable[S]:
        """The states it may leave, none where it cannot have had this result. It takes effect no later than `until`,
        and so does whatever comes before it."""


def is_linearizable(history: Iterable[Operation[C, R]], model: Model[S, C, R]) -> bool:
    return all(find_order(part, model) is not None for part in parts(history, model))


def parts(history: Iterable[Operation[C, R]], model: Model[S, C, R]) -> list[list[Operation[C, R]]]:
    found: dict[Hashable, list[Operation[C, R]]] = {}
    for operation in history:
        found.setdefault(model.part(operation.call), []).append(operation)
    return list(found.values())


def find_order(part: Sequence[Operation[C, R]], model: Model[S, C, R]) -> list[Operation[C, R]] | None:
    """The operations of one part that took effect, in an order that explains all results; None where there is none."""
    return _Search(part, model).run()


def shortest_failure(history: Iterable[Operation[C, R]], model: Model[S, C, R]) -> list[Operation[C, R]]:
    """The shortest beginning of one part that cannot be explained. Only where the history is not linearizable."""
    part = next(part for part in parts(history, model) if find_order(part, model) is None)
    ends = sorted(operation.end for operation in part if operation.result is not None)
    first = bisect_left(ends, True, key=lambda end: find_order(list(beginning(part, end)), model) is None)
    return list(beginning(part, ends[first]))


def beginning(history: Iterable[Operation[C, R]], end: int) -> Iterator[Operation[C, R]]:
    """What was known of it at this time."""
    for operation in history:
        if operation.end <= end:
            yield operation
        elif operation.invoked_at <= end:
            yield msgspec.structs.replace(operation, returned_at=None, result=None)


class _Search(Generic[S, C, R]):
    """A walk in depth over which operation took effect next. The events that are left form a linked list, from which
    an operation is lifted when it takes effect and into which it is put back when that led nowhere."""

    def __init__(self, part: Sequence[Operation[C, R]], model: Model[S, C, R]) -> None:
        self._model = model
        self._operations = part
        self._is_observer = [operation.result is not None and model.observes(operation) for operation in part]
        # A call comes before a return of the same moment: the two may have overlapped.
        events = [(operation.invoked_at, False, index) for index, operation in enumerate(part)]
        events += [(operation.end, True, index) for index, operation in enumerate(part) if operation.end != NEVER]
        events.sort()
        self._events = events
        self._places: list[list[int]] = [[] for _ in part]
        for place, (_, _, index) in enumerate(events):
            self._places[index].append(place)
        # The place after the last is the head of the circle.
        self._head = len(events)
        self._next = [*range(1, self._head + 1), 0]
        self._previous = [self._head, *range(self._head)]

    def run(self) -> list[Operation[C, R]] | None:
        open_count = sum(operation.result is not None for operation in self._operations)
        state, lifted_set = self._model.initial, 0
        seen: set[tuple[int, S]] = set()
        path: list[tuple[int, bool, int]] = []
        choices = [self._choices(state)]
        while open_count:
            for index, state, took_effect in choices[-1]:
                wider_set = lifted_set | 1 << index
                if (wider_set, state) not in seen:
                    seen.add((wider_set, state))
                    path.append((index, took_effect, lifted_set))
                    lifted_set = wider_set
                    open_count -= self._operations[index].result is not None
                    self._lift(index)
                    choices.append(self._choices(state))
                    break
            else:
                choices.pop()
                if not path:
                    return None
                index, _, lifted_set = path.pop()
                open_count += self._operations[index].result is not None
                self._put_back(index)
        return [self._operations[index] for index, took_effect, _ in path if took_effect]

    def _choices(self, state: S) -> Iterator[tuple[int, S, bool]]:
        """What may take effect next, what state that leaves, and whether it did take effect."""
        model, operations, events, following = self._model, self._operations, self._events, self._next
        callable_now: list[int] = []
        until, first_to_return = NEVER, None
        place = following[self._head]
        while place != self._head:
            time, is_return, index = events[place]
            if is_return:
                until, first_to_return = time, index
                break
            callable_now.append(index)
            place = following[place]
        found: list[tuple[int, S, bool]] = []
        for index in callable_now:
            for after in model.step(state, operations[index], until):
                if self._is_observer[index] and after == state:
                    return iter([(index, state, True)])
                found.append((index, after, True))
        if first_to_return is not None and operations[first_to_return].result is None:
            found.append((first_to_return, state, False))
        return iter(found)

    def _lift(self, index: int) -> None:
        for place in self._places[index]:
            before, after = self._previous[place], self._next[place]
            self._next[before], self._previous[after] = after, before

    def _put_back(self, index: int) -> None:
        for place in reversed(self._places[index]):
            self._next[self._previous[place]] = self._previous[self._next[place]] = place
