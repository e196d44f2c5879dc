"""The search process: it follows the log beside the bus, and answers what the bus asks it over a socket pair.

It can lag, die and be made again without the bus noticing. It ends when the bus does.
"""

import errno
import fcntl
import logging
import os
import select
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from engram_bus.limits import DISK_RESERVE_BYTES, DISK_RESERVE_DIVISOR
from engram_bus.log.record import RecordError
from engram_bus.projections.follower import Follower
from engram_bus.projections.search.choice import KEY_VARIABLE
from engram_bus.projections.search.embedders import Embedder, StaticEmbedder, made
from engram_bus.projections.search.engine import SearchIndex
from engram_bus.projections.search.keywords import VERSION
from engram_bus.projections.search.late import VERSION as LATE_VERSION
from engram_bus.projections.search.late import Late
from engram_bus.projections.search.messages import (
    Answered,
    Ask,
    Behind,
    Failed,
    Ring,
    State,
    ToBus,
    decode_to_search,
    packed,
    unpacked,
)

log = logging.getLogger(__name__)

SLICE_UNITS = 32
"""Taken in between two looks at the socket: a few milliseconds."""
SLICE_BYTES = 256 * 1024
COMMIT_UNITS = 1_000
COMMIT_SECONDS = 0.5
TELL_SECONDS = 0.25
BEHIND_UNITS = 2_000
"""Who asks waits for as many to be taken in; beyond, it is told that the index is being built."""
ROOM_SECONDS = 1.0
"""How often a full disk is looked at again."""
LOCK_SECONDS = 0.02

_NOT_DAMAGE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENOMEM}
)
"""A disk or a machine that refuses does not get better by building the index again."""

assert COMMIT_UNITS < BEHIND_UNITS, "who waits for units does not wait for a commit"


class Gone(Exception):
    """The bus went."""


def main() -> None:
    """Serve one tenant's directory over the inherited socket whose number is given, with an embedder of choice."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    # Ctrl-C and a stopped service reach us too: the bus drains, and we end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tenant, number, setting = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    chosen = made(setting, key=os.environ.get(KEY_VARIABLE))
    os.nice(5)  # The bus comes first where there is not enough for both.
    with socket.socket(fileno=number) as line:
        try:
            path = tenant / "search"
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (path / "lock").open("wb") as lock:
                _wait_for(lock.fileno(), line)
                _Search(tenant, path, line, chosen).serve()
        except (Gone, ConnectionError):
            pass
        except Exception as exc:
            log.error("search stopped: %s: %s", type(exc).__name__, exc, exc_info=not isinstance(exc, OSError))
            sys.exit(1)


def _wait_for(lock: int, line: socket.socket) -> None:
    """Until the search process of a bus before this one has ended. Raises Gone."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if select.select([line], [], [], LOCK_SECONDS)[0]:
                if not line.recv(1, socket.MSG_PEEK):
                    raise Gone from None
                time.sleep(LOCK_SECONDS)
        else:
            return


class _Search:
    def __init__(self, tenant: Path, path: Path, line: socket.socket, chosen: Embedder) -> None:
        self._line = line
        self._received = bytearray()
        self._follower = Follower(tenant)
        self._embedder = StaticEmbedder()
        self._path = path / f"{VERSION}-{self._embedder.name}"
        self._head = self._follower.head
        self._has_room = True
        self._index = self._opened()
        self._chosen = chosen
        self._late = self._rank_with(chosen)
        self._commit_at: float | None = None
        self._told: State | None = None
        self._tell_at = 0.0
        self._is_tidy = False
        self._damage: RecordError | None = None

    def _opened(self) -> SearchIndex:
        """The index as it was left, or a new one where it cannot be used: the log has all of it."""
        try:
            index = SearchIndex(self._path, self._embedder, self._follower)
            if index.is_of(self._follower, self._head):
                return index
            index.close()
            reason = f"it is of another log, or of one that went on to {index.cursor}; this one is at {self._head}"
        except BaseException as exc:  # A panic in Rust is no Exception.
            if isinstance(exc, OSError) and exc.errno in _NOT_DAMAGE:
                raise
            if not self._finds_room():
                raise OSError(errno.ENOSPC, f"no room for the index: {exc}") from exc
            reason = f"{type(exc).__name__}: {exc}"
        log.warning("the search index is built again: %s", reason)
        if self._path.exists():
            shutil.rmtree(self._path)
        return SearchIndex(self._path, self._embedder, self._follower)

    def _rank_with(self, chosen: Embedder) -> Late | None:
        """Beside the index, and not in it: an index that is built again keeps vectors that were paid for."""
        if chosen.is_at_hand:
            return None
        return self._index.rank_with(chosen, self._path.parent / f"{LATE_VERSION}-{chosen.name}")

    def serve(self) -> None:
        """Until the bus goes."""
        awaited = [self._line, *([] if self._late is None else [self._late.wakes])]
        while True:
            if self._line in select.select(awaited, [], [], self._idle_seconds())[0]:
                self._receive()
            if self._can_take and self._finds_room():
                self._take()
            if self._until_commit() == 0.0:
                self._commit()
            self._tell_state()
            if not self._is_tidy and not self._is_behind and not self._index.uncommitted:
                self._tidy()

    @property
    def _is_behind(self) -> bool:
        return self._index.taken < self._head

    @property
    def _can_take(self) -> bool:
        return self._is_behind and self._damage is None

    def _idle_seconds(self) -> float | None:
        """Until there is something to do of itself; None: nothing."""
        late_seconds = None if self._late is None else self._late.work()
        if self._can_take:
            return 0.0 if self._has_room else ROOM_SECONDS
        return min((one for one in (late_seconds, self._until_commit()) if one is not None), default=None)

    def _until_commit(self) -> float | None:
        if self._index.uncommitted >= COMMIT_UNITS and self._has_room:
            return 0.0
        return None if self._commit_at is None else max(0.0, self._commit_at - time.monotonic())

    def _take(self) -> None:
        """The next units, none beyond what the bus told of: before, they are not sure to stay."""
        units_max = min(SLICE_UNITS, self._head - self._index.taken)
        try:
            units = self._follower.units(self._index.taken, units_max=units_max, bytes_max=SLICE_BYTES)
            self._index.take(units)
        except RecordError as exc:
            log.error("search ends before the unit after %d, which cannot be read: %s", self._index.taken, exc)
            self._damage = exc
        if self._index.uncommitted and self._commit_at is None:
            self._commit_at = time.monotonic() + COMMIT_SECONDS

    def _commit(self) -> None:
        if self._finds_room():
            self._index.commit()
            self._commit_at = None
        else:
            self._commit_at = time.monotonic() + ROOM_SECONDS

    def _finds_room(self) -> bool:
        """Whether the disk has more room than the bus needs for itself: units that are added are written too."""
        disk = os.statvfs(self._path.parent)
        reserve_bytes = min(DISK_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // DISK_RESERVE_DIVISOR)
        has_room = disk.f_bavail * disk.f_frsize >= 2 * reserve_bytes
        if has_room != self._has_room:
            log.warning("the search index %s", "goes on" if has_room else "waits: the disk is full")
            self._has_room = has_room
        return has_room

    def _tidy(self) -> None:
        """What other versions and other embedders left is not needed any more, once all units have their vector."""
        if self._late is not None and self._late.missing:
            return
        self._is_tidy = True
        kept = (self._path, None if self._late is None else self._late.path)
        for other in self._path.parent.iterdir():
            if other.is_dir() and other not in kept:
                shutil.rmtree(other, ignore_errors=True)

    def _receive(self) -> None:
        received = self._line.recv(1 << 20)
        if not received:
            raise Gone
        self._received += received
        for body in unpacked(self._received):
            match decode_to_search(body):
                case Ring(head=head):
                    self._head = max(self._head, head)
                case Ask() as ask:
                    self._say(self._answer(ask))

    def _answer(self, ask: Ask) -> ToBus:
        self._head = max(self._head, ask.head)
        try:
            while self._index.taken < ask.head and self._damage is None:
                if ask.head - self._index.taken > BEHIND_UNITS or not self._finds_room():
                    return Behind(ask.id, self._index.taken)
                if self._index.uncommitted >= COMMIT_UNITS:
                    self._commit()
                self._take()
            return Answered(ask.id, self._index.search(ask.asked))
        except OSError:
            raise
        except Exception as exc:
            log.exception("a search failed")
            return Failed(ask.id, f"{type(exc).__name__}: {exc}")

    def _tell_state(self) -> None:
        """When it has caught up, and now and then on the way."""
        now = time.monotonic()
        if self._is_behind and now < self._tell_at:
            return
        state = State(
            self._index.cursor,
            self._index.taken,
            self._lag_ms(),
            self._chosen.name,
            0 if self._late is None else self._late.missing,
            None if self._late is None else self._late.trouble,
        )
        if state != self._told:
            self._told, self._tell_at = state, now + TELL_SECONDS
            self._say(state)

    def _lag_ms(self) -> int:
        return max(0, time.time_ns() // 1_000 - self._index.taken_us) // 1_000 if self._is_behind else 0

    def _say(self, message: ToBus) -> None:
        self._line.sendall(packed(message))


if __name__ == "__main__":
    main()
