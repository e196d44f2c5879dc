"""How far one subscriber has read and what it does next: a state machine without a socket, a log or a clock.

Rule 1: where a subscriber stands and whether it is behind is decided here; the shell (`Feed`) obeys.
Rule 2: an event a state does not list cannot happen there.

    CATCHING_UP --reached_head--> LIVE --socket_full--> WAITING --socket_drained--> CATCHING_UP
    CATCHING_UP --socket_full--> WAITING                any --closed--> CLOSED

A subscription owns a cursor, not a queue: the log is the queue. All units up to the cursor that the filter wants were
handed over, once, in order. While LIVE the cursor is the router's head, so it is not kept here.
"""

from enum import StrEnum


class State(StrEnum):
    """Where a subscription gets its next unit from."""

    CATCHING_UP = "catching_up"
    LIVE = "live"
    WAITING = "waiting"
    CLOSED = "closed"


class Event(StrEnum):
    """What can happen to a subscription."""

    REACHED_HEAD = "reached_head"
    SOCKET_FULL = "socket_full"
    SOCKET_DRAINED = "socket_drained"
    CLOSED = "closed"


_MOVES = {
    (State.CATCHING_UP, Event.REACHED_HEAD): State.LIVE,
    (State.CATCHING_UP, Event.SOCKET_FULL): State.WAITING,
    (State.CATCHING_UP, Event.CLOSED): State.CLOSED,
    (State.LIVE, Event.SOCKET_FULL): State.WAITING,
    (State.LIVE, Event.CLOSED): State.CLOSED,
    (State.WAITING, Event.SOCKET_DRAINED): State.CATCHING_UP,
    (State.WAITING, Event.CLOSED): State.CLOSED,
}


class Subscription:
    """One subscriber's place in the log."""

    __slots__ = ("_cursor", "state")

    def __init__(self, after: int) -> None:
        self.state = State.CATCHING_UP
        self._cursor = after

    def cursor(self, head: int) -> int:
        """Up to where everything wanted was handed over; `head` is the router's."""
        return head if self.state is State.LIVE else self._cursor

    def advance(self, seq: int) -> None:
        """Everything up to `seq` was handed over or is not wanted."""
        assert seq >= self._cursor, f"the cursor went back from {self._cursor} to {seq}"
        self._cursor = seq

    def move(self, event: Event) -> State:
        """Go to the next state; a move the table does not list is a mistake of the shell."""
        try:
            self.state = _MOVES[self.state, event]
        except KeyError:
            raise AssertionError(f"{event} cannot happen while {self.state}") from None
        return self.state
