"""The search process: it follows the log beside the bus, and answers what the bus asks it over a socket pair.

It can lag, die and be made again without the bus noticing. It ends when the bus does.
"""

import logging
import os
import select
import shutil
import socket
import sys
import time
from pathlib import Path

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


def main() -> None:
    """Serve one tenant's directory over the inherited socket whose number is given, with an embedder of choice."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    tenant, number, setting = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    chosen = made(setting, key=os.environ.get(KEY_VARIABLE))
    os.nice(5)  # The bus comes first where there is not enough for both.
    with socket.socket(fileno=number) as line:
        _Search(tenant, line, chosen).serve()


class _Search:
    def __init__(self, tenant: Path, line: socket.socket, chosen: Embedder) -> None:
        self._line = line
        self._received = bytearray()
        self._follower = Follower(tenant)
        self._embedder = StaticEmbedder()
        self._path = tenant / "search" / f"{VERSION}-{self._embedder.name}"
        self._head = self._follower.head
        self._index = self._opened()
        self._chosen = chosen
        self._late = self._rank_with(chosen)
        self._is_tidy = False
        self._commit_at: float | None = None
        self._told: State | None = None
        self._tell_at = 0.0

    def _opened(self) -> SearchIndex:
        """The index as it was left, or a new one where it cannot be used: the log has all of it."""
        try:
            index = SearchIndex(self._path, self._embedder, self._follower)
            if index.cursor <= self._head:
                return index
            reason = f"it is at {index.cursor}, the log at {self._head}"
        except Exception as exc:
            reason = f"{type(exc).__name__}: {exc}"
        if self._path.exists():
            log.warning("the search index is built again: %s", reason)
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
            ready = select.select(awaited, [], [], self._idle_seconds())[0]
            if self._line in ready and not self._receive():
                return
            if self._is_behind:
                self._take()
            if self._index.uncommitted >= COMMIT_UNITS or self._until_commit() == 0.0:
                self._index.commit()
                self._commit_at = None
            self._tell_state()
            if not self._is_tidy and not self._is_behind and not self._index.uncommitted:
                self._tidy()

    @property
    def _is_behind(self) -> bool:
        return self._index.taken < self._head

    def _idle_seconds(self) -> float | None:
        """Until there is something to do of itself; None: nothing."""
        late_seconds = None if self._late is None else self._late.work()
        if self._is_behind:
            return 0.0
        return min((one for one in (late_seconds, self._until_commit()) if one is not None), default=None)

    def _tidy(self) -> None:
        """What other versions and other embedders left is not needed any more, once all units have their vector."""
        if self._late is not None and self._late.missing:
            return
        self._is_tidy = True
        kept = (self._path, None if self._late is None else self._late.path)
        for other in self._path.parent.iterdir():
            if other.is_dir() and other not in kept:
                shutil.rmtree(other, ignore_errors=True)

    def _until_commit(self) -> float | None:
        return None if self._commit_at is None else max(0.0, self._commit_at - time.monotonic())

    def _take(self) -> None:
        units = self._follower.units(self._index.taken, units_max=SLICE_UNITS, bytes_max=SLICE_BYTES)
        self._index.take(units)
        if self._index.uncommitted and self._commit_at is None:
            self._commit_at = time.monotonic() + COMMIT_SECONDS

    def _receive(self) -> bool:
        """Whether the bus is still there."""
        received = self._line.recv(1 << 20)
        self._received += received
        for body in unpacked(self._received):
            match decode_to_search(body):
                case Ring(head=head):
                    self._head = max(self._head, head)
                case Ask() as ask:
                    self._say(self._answer(ask))
        return bool(received)

    def _answer(self, ask: Ask) -> ToBus:
        self._head = max(self._head, ask.head)
        if ask.head - self._index.taken > BEHIND_UNITS:
            return Behind(ask.id, self._index.taken)
        try:
            while self._index.taken < ask.head:
                self._take()
            return Answered(ask.id, self._index.search(ask.asked))
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
