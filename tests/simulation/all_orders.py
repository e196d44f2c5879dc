"""Whether a history is linearizable, by trying every order of it: slow, and too plain to be wrong."""

from collections.abc import Iterator, Sequence
from itertools import permutations

from tests.simulation.linearizability import C, Model, Operation, R, S


def has_order(history: Sequence[Operation[C, R]], model: Model[S, C, R]) -> bool:
    return any(explains(order, model) for order in orders(history))


def orders(history: Sequence[Operation[C, R]]) -> Iterator[Sequence[Operation[C, R]]]:
    """Every order of those that returned, with and without each of those nobody knows of."""
    unknown = [operation for operation in history if operation.result is None]
    for chosen in range(1 << len(unknown)):
        left_out = [operation for bit, operation in enumerate(unknown) if chosen >> bit & 1]
        yield from permutations([operation for operation in history if not any(operation is one for one in left_out)])


def explains(order: Sequence[Operation[C, R]], model: Model[S, C, R]) -> bool:
    """Whether time allows this order, and the object answers so in it."""
    states = {model.initial}
    for place, operation in enumerate(order):
        until = min(later.end for later in order[place:])
        if operation.invoked_at > until:
            return False
        states = {after for state in states for after in model.step(state, operation, until)}
    return bool(states)
