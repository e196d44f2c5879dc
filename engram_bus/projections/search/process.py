"""The search process: it follows the log beside the bus, and answers what the bus asks it over a socket pair.

It can lag, die and be made again without the bus noticing. It ends when the bus does.
"""

import faulthandler
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

import msgspec

from engram_bus.projections.follower import Follower
from engram_bus.projections.runner import Runner
from engram_bus.projections.search.choice import KEY_VARIABLE
from engram_bus.projections.search.embedders import Embedder, StaticEmbedder, made
from engram_bus.projections.search.engine import SearchIndex, TooLate
from engram_bus.projections.search.keywords import VERSION
from engram_bus.projections.search.late import VERSION as LATE_VERSION
from engram_bus.projections.search.late import Late
from engram_bus.projections.search.messages import (
    Answered,
    Ask,
    Behind,
    Failed,
    Rebuild,
    Ring,
    State,
    ToBus,
    decode_to_search,
    packed,
    unpacked,
)

log = logging.getLogger(__name__)

TELL_SECONDS = 0.25
LOCK_SECONDS = 0.02


class Gone(Exception):
    """The bus went."""


def main() -> None:
    """Serve one tenant's directory over the inherited socket whose number is given, with an embedder of choice."""
    faulthandler.enable()  # A file that is cut while it is mapped ends us (SIGBUS): say so, and where.
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    # Ctrl-C and a stopped service reach us too: the bus drains, and we end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tenant, number, setting = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    chosen = made(setting, key=os.environ.get(KEY_VARIABLE))
    # The bus comes first where there is not enough for both: at 5 a saturated machine of two processors lost more
    # appends, at 19 hardly fewer, and a search took twice as long there. (An idle class would never index where other
    # programs keep the processors busy.)
    os.nice(10)
    with socket.socket(fileno=number) as line:
        try:
            path = tenant / "search"
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (path / "lock").open("wb") as lock:
                _wait_for(lock.fileno(), line)
                _Search(tenant, path, line, chosen).serve()
        except (Gone, ConnectionError):
            pass
        except BaseException as exc:  # A panic in Rust is no Exception.
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
        self._path = path
        self._chosen = chosen
        follower, embedder = Follower(tenant), StaticEmbedder()
        self._runner = Runner(
            follower, path, f"{VERSION}-{embedder.name}", lambda at: SearchIndex(at, embedder, follower)
        )
        self._late = self._rank_with(chosen)
        self._told: State | None = None
        self._tell_at = 0.0
        self._is_tidy = False

    def _rank_with(self, chosen: Embedder) -> Late | None:
        """Beside the index, and not in it: an index that is built again keeps vectors that were paid for."""
        if chosen.is_at_hand:
            return None
        return self._runner.projection.rank_with(chosen, self._path / f"{LATE_VERSION}-{chosen.name}")

    def serve(self) -> None:
        """Until the bus goes."""
        awaited = [self._line, *([] if self._late is None else [self._late.wakes])]
        while True:
            if self._line in select.select(awaited, [], [], self._idle_seconds())[0]:
                self._receive()
            self._runner.step()
            self._tell_state()
            self._tidy()

    def _idle_seconds(self) -> float | None:
        """Until there is something to do of itself; None: nothing."""
        late_seconds = None if self._late is None else self._late.work()
        return min((one for one in (late_seconds, self._runner.idle_seconds()) if one is not None), default=None)

    def _tidy(self) -> None:
        """What other versions and other embedders left is not needed any more, once all units have their vector."""
        if self._is_tidy or self._runner.is_behind or (self._late is not None and self._late.missing):
            return
        self._is_tidy = True
        for other in self._path.iterdir():
            if other.is_dir() and not self._runner.owns(other) and (self._late is None or other != self._late.path):
                shutil.rmtree(other, ignore_errors=True)

    def _receive(self) -> None:
        received = self._line.recv(1 << 20)
        if not received:
            raise Gone
        self._received += received
        for body in unpacked(self._received):
            match decode_to_search(body):
                case Ring(head=head):
                    self._runner.hear(head)
                case Ask() as ask:
                    answer = self._answer(ask)
                    if answer is not None:
                        self._say(answer)
                case Rebuild():
                    self._runner.rebuild()

    def _answer(self, ask: Ask) -> ToBus | None:
        """None where it would come too late: nobody waits for it any more, and others wait behind it."""
        if time.monotonic() >= ask.until:
            return None
        try:
            if not self._runner.reach(ask.reach):
                return Behind(ask.id, self._runner.projection.taken)
            return Answered(ask.id, self._runner.projection.search(ask.asked, until=ask.until))
        except TooLate:
            return None
        except OSError:
            raise
        except BaseException as exc:  # A panic in Rust is no Exception.
            why = f"{type(exc).__name__}: {exc}"
            if self._runner.doubt(f"a search ended in {why}"):
                return Behind(ask.id, self._runner.projection.taken)
            log.exception("a search failed")
            return Failed(ask.id, why)

    def _tell_state(self) -> None:
        """When it has caught up, and now and then on the way."""
        now = time.monotonic()
        progress = self._runner.progress
        if now < self._tell_at and (self._runner.is_behind or progress.rebuilt is not None):
            return
        state = State(
            **msgspec.structs.asdict(progress),
            embedder=self._chosen.name,
            embedder_lag_units=0 if self._late is None else self._late.missing,
            embedder_trouble=None if self._late is None else self._late.trouble,
        )
        if state != self._told:
            self._told, self._tell_at = state, now + TELL_SECONDS
            self._say(state)

    def _say(self, message: ToBus) -> None:
        self._line.sendall(packed(message))


if __name__ == "__main__":
    main()
