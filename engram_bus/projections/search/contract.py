"""What answers the searches of one log: a process of its own, this one (for a log in memory), or another one's."""

from typing import Protocol

from engram_bus.projections.search.messages import State
from engram_bus.projections.search.values import Asked, Found


class Search(Protocol):
    """As the bus asks it. It never waits in a call that is not awaited."""

    @property
    def state(self) -> State:
        """How far the index is."""

    @property
    def lag_units(self) -> int:
        """How many units the index has still to take in."""

    def tell(self, head: int) -> None:
        """The log has units up to here."""

    def rebuild(self) -> None:
        """Have the index built again from the log's first unit. Raises SearchUnavailable."""

    async def search(self, asked: Asked) -> Found:
        """What is found over all units up to the newest, or as far as was asked at least. Raises SearchBuilding,
        SearchUnavailable, Busy, ShuttingDown."""

    def close(self) -> None:
        """End at once."""
