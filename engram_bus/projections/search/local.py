"""Search without a process: for a log in memory, which no other process could read."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engram_bus.errors import ShuttingDown
from engram_bus.limits import CATCH_UP_BYTES
from engram_bus.log.contract import Log
from engram_bus.projections.runner import COMMIT_UNITS, SLICE_BYTES, SLICE_UNITS
from engram_bus.projections.search.embedders import StaticEmbedder
from engram_bus.projections.search.engine import SearchIndex
from engram_bus.projections.search.messages import State
from engram_bus.projections.search.values import Asked, Found
from engram_bus.units import WorkUnit


class LocalSearch:
    """An index in a temporary directory, brought up to the log's head by whoever asks."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._directory = tempfile.TemporaryDirectory(prefix="engram-search-")
        self._embedder = StaticEmbedder()
        self._generation = 0
        self._is_closed = False
        self._index = self._begun()

    def _begun(self) -> SearchIndex:
        self._generation += 1
        return SearchIndex(Path(self._directory.name) / str(self._generation), self._embedder, self)

    @property
    def state(self) -> State:
        """Where the last search left it."""
        return State(self._index.cursor, self._index.taken, generation=self._generation, embedder=self._embedder.name)

    def rebuild(self) -> None:
        """The next search builds it again."""
        self._index.close()
        self._index = self._begun()

    @property
    def lag_units(self) -> int:
        """None: who asks waits for all of it."""
        return 0

    def tell(self, head: int) -> None:
        """Nothing to ring."""

    async def search(self, asked: Asked) -> Found:
        """What is found over all units up to the newest, a slice taken in in each turn of the loop. Raises
        ShuttingDown."""
        while entries := self._log.read(self._index.taken, units_max=SLICE_UNITS, bytes_max=SLICE_BYTES):
            self._index.take([entry.unit for entry in entries])
            if self._index.uncommitted >= COMMIT_UNITS:
                self._index.commit()
            await asyncio.sleep(0)
            if self._is_closed:
                raise ShuttingDown("the bus is stopping")
        return self._index.search(asked)

    def unit(self, seq: int) -> WorkUnit:
        return self._log.record(seq).unit

    def chain(self, seq: int) -> bytes:
        return self._log.record(seq).chain

    def close(self) -> None:
        self._is_closed = True
        self._index.close()
        self._directory.cleanup()

    def before(self, unit: WorkUnit, count: int) -> Sequence[WorkUnit]:
        entries = self._log.read_context(
            unit.context_id, after=0, before=unit.seq, reverse=True, units_max=count, bytes_max=CATCH_UP_BYTES
        )
        return [entry.unit for entry in reversed(entries)]
