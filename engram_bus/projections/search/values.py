"""A search and what it found, as values."""

import msgspec

from engram_bus.projections.search.fusion import RANK_CONSTANT
from engram_bus.projections.search.highlights import Highlight
from engram_bus.projections.search.scope import EVERYTHING, Scope

VECTOR_WEIGHT = 0.35
"""Of meaning beside words: 0.3 to 0.4 is flat on documents, dialogue, meetings, failed runs and code; above, dialogue
loses, and below, documents."""
RECENCY_WEIGHT = 0.5
"""Of a unit of now, where recency counts: half a standard deviation of the score (of z), so that of about equally good
units the new one is first, and a much better old one stays before it."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One search."""

    query: str
    mode: str = "hybrid"
    scope: Scope = EVERYTHING
    offset: int = 0
    limit: int = 10
    facets: bool = False
    as_of_seq: int | None = None
    """As if the log ended here."""
    statistics_seq: int | None = None
    """How rare a word is, and how long a unit usually, is told by the log up to here; None: as it suits."""
    reach_seq: int | None = None
    """The index has to have come this far before it answers; None: to the head of the log."""
    fusion: str = "z"
    vector_weight: float = VECTOR_WEIGHT
    rank_constant: float = RANK_CONSTANT
    half_life_ms: int | None = None
    """After so long a unit's recency counts half; None: not at all."""
    recency_weight: float = RECENCY_WEIGHT
    neighbour_weight: float = 0.0
    distinct: bool = False

    def reach(self, head: int) -> int:
        """How far the index has to have come, where the log goes up to `head`."""
        return head if self.reach_seq is None else min(head, self.reach_seq)


class Leg(msgspec.Struct, frozen=True):
    """Where a unit stands in one ranking."""

    rank: int
    score: float


class Hit(msgspec.Struct, frozen=True):
    """One unit that was found: its score is the sum of its parts."""

    seq: int
    score: float
    keyword: Leg | None
    vector: Leg | None
    keyword_part: float
    vector_part: float
    highlight: Highlight | None
    neighbour_part: float = 0.0
    recency_part: float = 0.0
    duplicates: int = 0
    """How many units that say the same were left out for it."""


class Found(msgspec.Struct, frozen=True):
    """The best units, how many were let through, and up to which seq was looked."""

    hits: list[Hit]
    total: int
    applied_seq: int
    statistics_seq: int
    """Asked for with `applied_seq`, gives the same ranking again."""
    facets: dict[str, dict[str, int]] = {}
    degraded: bool = False
    """The chosen embedder did not rank all of it: the shipped one did, or some units were found by words only."""
