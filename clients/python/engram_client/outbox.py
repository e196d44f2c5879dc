"""Appends on their way: what may be sent, what waits for its answer, what to send again after a cut. No I/O."""

from collections import deque

from engram_client.limits import BATCH_BYTES, BATCH_UNITS_MAX, WINDOW_BYTES_MAX


class Outbox:
    """Frames by id, in the order they were put in, until each is settled."""

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"window is {window}, at least 1")
        self._window = window
        self._frames: dict[int, bytes] = {}
        self._unsent: deque[int] = deque()
        self._bytes = 0
        self._last_id = 0

    def __len__(self) -> int:
        """How many are not settled."""
        return len(self._frames)

    @property
    def has_room(self) -> bool:
        """Whether one more may be put in; an empty outbox takes a frame of any size."""
        return len(self._frames) < self._window and self._bytes < WINDOW_BYTES_MAX

    def next_id(self) -> int:
        """The id of the next frame."""
        self._last_id += 1
        return self._last_id

    def put(self, frame_id: int, frame: bytes) -> None:
        """To be sent, after all that was put in before."""
        assert frame_id not in self._frames, "an id is used once"
        self._frames[frame_id] = frame
        self._unsent.append(frame_id)
        self._bytes += len(frame)

    def take(self) -> bytes | None:
        """The next frame to send, or None."""
        while self._unsent:
            frame = self._frames.get(self._unsent.popleft())
            if frame is not None:
                return frame
        return None

    def take_some(self) -> list[bytes]:
        """The next frames, as many as one message should hold; none where nothing is to be sent."""
        some: list[bytes] = []
        some_bytes = 0
        while some_bytes < BATCH_BYTES and len(some) < BATCH_UNITS_MAX and (frame := self.take()) is not None:
            some.append(frame)
            some_bytes += len(frame)
        return some

    def settle(self, frame_id: int) -> bool:
        """An answer came. False where nobody waits for it (a second answer after a resend)."""
        frame = self._frames.pop(frame_id, None)
        if frame is None:
            return False
        self._bytes -= len(frame)
        return True

    def reconnected(self) -> None:
        """A new connection knows of nothing: everything unsettled is sent again, in its order."""
        self._unsent = deque(self._frames)

    def drain(self) -> list[int]:
        """Give up: the ids that will not be settled."""
        given_up = list(self._frames)
        self._frames.clear()
        self._unsent.clear()
        self._bytes = 0
        return given_up
