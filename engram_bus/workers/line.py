"""A line between two processes of one bus: whole messages over a socket, sent together once in a turn of the loop, and
taken either as they come or at once, by who has to know what was said so far."""

import asyncio
import mmap
import select
import socket
from collections import deque
from collections.abc import Callable

from engram_bus.limits import KIB, WORKER_TALLY_SECONDS
from engram_bus.workers.messages import LENGTH_BYTES

_READ_BYTES = 256 * KIB
SOCKET_BYTES = 1024 * KIB
"""Asked of the kernel for each direction, so that a usual batch is one write; it may give less."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    return ends


class Line:
    """One end. `received` is called with each message in order, `ended` when the other side is gone, `drained` when
    what waited to be sent was taken. All of it runs in the loop's thread."""

    def __init__(
        self,
        end: socket.socket,
        *,
        received: Callable[[memoryview], None],
        ended: Callable[[str], None],
        drained: Callable[[], None] = lambda: None,
    ) -> None:
        end.setblocking(False)
        self._end = end
        self._received = received
        self._ended = ended
        self._drained = drained
        self._partial = bytearray()
        self._messages: deque[memoryview] = deque()
        self._unsent: deque[memoryview | bytes] = deque()
        self.unsent_bytes = 0
        self.is_handling = False
        self._flush_due = False
        self._is_full = False
        self._is_open = True
        self._poll = select.poll()
        self._poll.register(end.fileno(), select.POLLIN)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end.fileno(), self._readable)

    # --- Sending -----------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """With what else is sent in this turn of the loop."""
        if not self._is_open:
            return
        self._unsent.append(frame)
        self.unsent_bytes += len(frame)
        if not self._flush_due and not self._is_full:
            self._flush_due = True
            self._loop.call_soon(self._flush_in_turn)

    def _flush_in_turn(self) -> None:
        self._flush_due = False
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes now; the rest follows by itself."""
        if not self._unsent or not self._is_open or self._is_full:
            return
        try:
            self._send_all()
        except BlockingIOError:
            self._is_full = True
            self._loop.add_writer(self._end.fileno(), self._writable)
        except OSError as exc:
            self._end_with(f"cannot be written: {exc}")

    def _send_all(self) -> None:
        while self._unsent:
            sent = self._end.sendmsg([self._unsent[place] for place in range(min(len(self._unsent), 64))])
            self.unsent_bytes -= sent
            while sent:
                first = self._unsent[0]
                if len(first) > sent:
                    self._unsent[0] = memoryview(first)[sent:]
                    break
                sent -= len(first)
                self._unsent.popleft()

    def _writable(self) -> None:
        self._is_full = False
        self._loop.remove_writer(self._end.fileno())
        self.flush()
        if not self._is_full and self._is_open:
            self._drained()

    # --- Receiving ---------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        while self._is_open and self._read() == _READ_BYTES:
            self._handle()
        self._handle()

    def take(self, timeout_seconds: float) -> bool:
        """Handle what has come, or comes within the time. False where nothing does."""
        if not self._is_open or not self._poll.poll(max(0.0, timeout_seconds) * 1_000):
            return False
        self._readable()
        return True

    def _read(self) -> int:
        try:
            chunk = self._end.recv(_READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError as exc:
            self._end_with(f"cannot be read: {exc}")
            return 0
        if not chunk:
            self._end_with("was closed by the other side")
            return 0
        self._split(chunk)
        return len(chunk)

    def _split(self, chunk: bytes) -> None:
        """Whole messages are handed on as they lie; a part of one waits for its rest."""
        if self._partial:
            self._partial += chunk
            needed = LENGTH_BYTES + int.from_bytes(self._partial[:LENGTH_BYTES], "big")
            if len(self._partial) < max(needed, LENGTH_BYTES + 1):
                return
            chunk, self._partial = bytes(self._partial), bytearray()
        view, place = memoryview(chunk), 0
        while place + LENGTH_BYTES <= len(chunk):
            end = place + LENGTH_BYTES + int.from_bytes(view[place : place + LENGTH_BYTES], "big")
            if end > len(chunk):
                break
            self._messages.append(view[place + LENGTH_BYTES : end])
            place = end
        self._partial += view[place:]

    def _handle(self) -> None:
        """In order, and never one within another."""
        if self.is_handling:
            return
        self.is_handling = True
        try:
            while self._messages:
                self._received(self._messages.popleft())
        finally:
            self.is_handling = False

    # --- Ending ------------------------------------------------------------------------------------------------------

    def _end_with(self, why: str) -> None:
        if self._is_open:
            self._handle()
            self.close()
            self._ended(why)

    def close(self) -> None:
        """Say no more and hear no more; what was not sent is lost."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._end.fileno())
            self._loop.remove_writer(self._end.fileno())
            self._end.close()


class Silence:
    """How long the other end of a line has said nothing. It tells what it counts as often as it is looked at; looks are
    counted, not seconds: after this process stood still the other has to be heard first."""

    def __init__(self, seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._looks: int | None = None

    def heard(self) -> None:
        """Something was said."""
        self._looks = 0

    def look(self) -> bool:
        """Whether it is too long by now. Before anything was heard it never is."""
        if self._looks is None:
            return False
        self._looks += 1
        return self._looks * WORKER_TALLY_SECONDS > self._seconds_max


class HeadWord:
    """The newest seq that any answer may have seen, in memory that all processes of a bus share.

    The log process sets it when a commit is durable, before it tells anyone; so who reads finds with one look whether
    there is more to take in first.
    """

    def __init__(self, fd: int) -> None:
        self._words = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")

    @property
    def head(self) -> int:
        return self._words[0]

    @head.setter
    def head(self, seq: int) -> None:
        self._words[0] = seq
