"""How the bus is, said once for every transport: at a glance, and whether it takes appends."""

from msgspec import UNSET

from engram_bus import clock
from engram_bus.api.operations import Disk, Ready, SearchStatus, Status
from engram_bus.decisions.state import State
from engram_bus.embedded import Bus
from engram_bus.errors import LogDamaged, StorageFailed
from engram_bus.projections.search.contract import Search
from engram_bus.units import ts_us


class Health:
    """One bus, as one process serves it: its numbers are of the whole bus."""

    def __init__(self, bus: Bus, *, version: str, worker: int | None = None) -> None:
        self.worker = worker
        """Which of several processes this is; None where there is one."""
        self.grpc_port: int | None = None
        """Where gRPC is served."""
        self.grpc_detail: str | None = "gRPC is off"
        """Why it is not."""
        self._bus = bus
        self._version = version
        self._started = clock.monotonic_seconds()

    def status(self) -> Status:
        """The bus at a glance."""
        bus, refusal = self._bus, self._bus.writer.refusal
        counts = bus.counts
        try:
            state = bus.writer.state
        except (LogDamaged, StorageFailed):
            state = State()  # How many there are is not known: `reason` says why, and the rest is told all the same.
        return Status(
            version=self._version,
            epoch=bus.epoch,
            head=bus.head,
            cursor=bus.cursor,
            durability=bus.durability,
            ready=refusal is None,
            reason=None if refusal is None else refusal.code,
            started_at=bus.started_at,
            uptime_seconds=round(clock.monotonic_seconds() - self._started, 3),
            contexts=len(state.contexts),
            locks=state.locks.held_count,
            lock_waits=state.locks.waiting_count,
            subscribers=counts.subscribers,
            lag_units=counts.lag_units,
            queue_commands=counts.queue_commands,
            search=None if bus.searcher is None else search_status(bus, bus.searcher),
            disk=Disk(*bus.log.sizes()),
            worker=UNSET if self.worker is None else self.worker,
        )

    def ready(self) -> Ready:
        """Whether appends are taken, and where."""
        refusal = self._bus.writer.refusal
        return Ready(
            ready=refusal is None,
            reason=None if refusal is None else refusal.code,
            detail=None if refusal is None else refusal.message,
            head=self._bus.head,
            epoch=self._bus.epoch,
            grpc_port=self.grpc_port,
            grpc_detail=self.grpc_detail,
            worker=UNSET if self.worker is None else self.worker,
        )


def search_status(bus: Bus, searcher: Search) -> SearchStatus:
    """How far the index is. How far behind the log it is, the bus finds: the index may stand still."""
    state = searcher.state
    return SearchStatus(
        taken_seq=state.taken,
        lag_units=searcher.lag_units,
        lag_ms=_waiting_ms(bus, state.taken + 1) if searcher.lag_units else 0,
        generation=state.generation,
        rebuilt_seq=state.rebuilt,
        embedder=state.embedder,
        embedder_lag_units=state.embedder_lag_units,
        embedder_trouble=state.embedder_trouble,
    )


def _waiting_ms(bus: Bus, seq: int) -> int:
    """For how long a unit has waited; 0 where the log does not tell any more when it was said."""
    try:
        return max(0, bus.writer.now_us() - ts_us(bus.log.record(seq).unit.ts)) // 1_000
    except (LogDamaged, StorageFailed):
        return 0
