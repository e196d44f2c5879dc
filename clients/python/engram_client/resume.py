"""Where a subscription stands: takes in frames, gives out units, knows where to go on after a cut. No I/O, no clock.

Two cursors. `received` covers what came over the wire and is where a new connection goes on; `cursor` covers what the
user has got and is what a user saves. Between them lies `pending`.
"""

from collections import deque
from typing import NamedTuple, assert_never

from engram_client.errors import Gap
from engram_client.frames import Heartbeat, Missing, StreamFrame, Subscribed, Units
from engram_client.values import Cursor, WorkUnit


class Resume:
    """One subscription over any number of connections: each unit is taken once, in order."""

    def __init__(self, after: str | int | None) -> None:
        self._asked = None if after is None else str(after)
        self._received = _cursor(self._asked)
        self._cursor = self._received
        self._pending: deque[_Pending] = deque()
        self.pending_bytes = 0
        """The payloads of what is pending."""
        self.head = 0
        """The newest seq of the log that the bus told of."""
        self.subscribed = False
        """Whether the bus has ever said where this subscription starts."""
        self.repeats = 0
        """Units that came again, or late, and were left out."""

    @property
    def cursor(self) -> str | None:
        """Everything up to here was taken; None while the bus has not said where a subscription from now on starts."""
        return None if self._cursor is None else str(self._cursor)

    @property
    def after(self) -> str | None:
        """What the next connection asks for."""
        return self._asked if self._received is None else str(self._received)

    def __len__(self) -> int:
        """How many units (and gaps) were received and not yet taken."""
        return len(self._pending)

    def receive(self, frame: StreamFrame) -> None:
        """Take in what the connection says. Units that were received before are left out."""
        match frame:
            case Subscribed():
                self._start(frame)
            case Units():
                for unit in frame.units:
                    self._reach(Cursor(frame.cursor.epoch, unit.seq), unit)
                self._reach(frame.cursor)
            case Heartbeat():
                self.head = max(self.head, frame.head)
                self._reach(frame.cursor)
            case Missing():
                self._miss(frame)
            case _:
                assert_never(frame)

    def take(self) -> WorkUnit | Gap | None:
        """The next unit, or gap, or None where nothing is pending; with it, `cursor` moves on."""
        if not self._pending:
            return None
        taken = self._pending.popleft()
        self._cursor = taken.cursor
        self.pending_bytes -= _bytes(taken.value)
        return taken.value

    def _start(self, frame: Subscribed) -> None:
        self.subscribed = True
        self.head = max(self.head, frame.head)
        asked = self._received
        if asked is not None and frame.cursor.seq > asked.seq:
            # Never silence: a bus that starts later than it was asked to has left something out.
            self._miss(Missing(asked.seq + 1, frame.cursor.seq, "the bus started later than asked"))
        self._reach(frame.cursor)

    def _reach(self, cursor: Cursor, value: WorkUnit | Gap | None = None) -> None:
        """Everything up to `cursor` is received, `value` being the last of it; what lies before is a repeat."""
        known = self._received
        if known is not None and (cursor.seq < known.seq or (value is not None and cursor.seq == known.seq)):
            self.repeats += isinstance(value, WorkUnit)
            return
        self._received = cursor
        self.head = max(self.head, cursor.seq)
        if value is not None:
            self._pending.append(_Pending(value, cursor))
            self.pending_bytes += _bytes(value)
        elif self._pending:
            self._pending[-1] = self._pending[-1]._replace(cursor=cursor)
        else:
            self._cursor = cursor

    def _miss(self, frame: Missing) -> None:
        known = self._received or Cursor("", 0)
        if frame.to_seq > known.seq:
            gap = Gap(max(frame.from_seq, known.seq + 1), frame.to_seq, frame.reason)
            self._reach(Cursor(known.epoch, frame.to_seq), gap)


class _Pending(NamedTuple):
    value: WorkUnit | Gap
    cursor: Cursor
    """Where the reader stands once it has taken the value."""


def _bytes(value: WorkUnit | Gap) -> int:
    return len(value.payload) if isinstance(value, WorkUnit) else 0


def _cursor(after: str | None) -> Cursor | None:
    """The cursor in `after`; None where there is none, or one that the bus will refuse."""
    try:
        return None if after is None else Cursor.parse(after)
    except ValueError:
        return None
