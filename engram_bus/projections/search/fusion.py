"""How two rankings become one: each gives every unit a part of its score; ties are broken by seq."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from math import exp2, fsum, sqrt

Scores = Mapping[int, float]
"""Seq -> score, higher is better."""
Parts = dict[int, tuple[float, float]]
"""Seq -> what the keyword leg and what the vector leg give it: together its score."""

RANK_CONSTANT = 60.0
"""Of reciprocal ranks: the larger, the less the very first ranks count beside those that follow."""


def z_union(keyword: Scores, vector: Scores, *, vector_weight: float) -> Parts:
    """Weighted z-scores over the union of both rankings.

    A unit that a leg did not find has the leg's score 0 there (BM25 of no common word; cosine is computed for all of
    the union where it can be). z(x) = (x - mean) / standard deviation over the union; 0 for a leg without spread.
    """
    union = keyword.keys() | vector.keys()
    left, right = _standardized(keyword, union), _standardized(vector, union)
    return {seq: ((1 - vector_weight) * left[seq], vector_weight * right[seq]) for seq in union}


def reciprocal_rank(
    keyword: Scores, vector: Scores, *, vector_weight: float, rank_constant: float = RANK_CONSTANT
) -> Parts:
    """Weighted reciprocal ranks, weight / (constant + rank) (Cormack, Clarke, Buettcher, SIGIR 2009)."""
    left, right = _reciprocal(keyword, rank_constant), _reciprocal(vector, rank_constant)
    return _weighted(left, right, vector_weight)


def relative_score(keyword: Scores, vector: Scores, *, vector_weight: float) -> Parts:
    """Weighted scores scaled to 0..1 within each leg; what a leg did not find has 0."""
    return _weighted(_scaled(keyword), _scaled(vector), vector_weight)


def recency(ages_ms: Scores, *, half_life_ms: float, weight: float) -> dict[int, float]:
    """What each unit gets for being new: weight * 2 ** (-age / half-life).

    Exponential decay, as Li and Croft (Time-based language models, CIKM 2003) weigh documents by their age, said by its
    half-life: of now the whole weight, a half-life old half of it, long ago nothing.
    """
    return {seq: weight * exp2(-max(0.0, age) / half_life_ms) for seq, age in ages_ms.items()}


def neighbours(scores: Scores, adjacent: Iterable[tuple[int, int]], *, weight: float) -> dict[int, float]:
    """What each unit gets for standing beside one that was found: weight * the better score of both its neighbours.

    `adjacent` are pairs of units that follow each other. A score below 0 (of z-scores: below the mean) is no evidence.
    """
    best: dict[int, float] = {}
    for one, other in adjacent:
        for seq, beside in ((one, other), (other, one)):
            best[seq] = max(best.get(seq, 0.0), scores[beside])
    return {seq: weight * score for seq, score in best.items()}


def distinct(order: Sequence[int], alike: Callable[[int, Sequence[int]], Collection[int]]) -> dict[int, int]:
    """Of units that say the same only the best, in the same order, each with how many it stands for beside itself.

    `alike` gives which of the worse ones say what the better one says.
    """
    kept: dict[int, int] = {}
    left = list(order)
    while left:
        best, rest = left[0], left[1:]
        same = frozenset(alike(best, rest))
        kept[best] = len(same)
        left = [seq for seq in rest if seq not in same]
    return kept


def ranked(scores: Scores) -> list[int]:
    """Best first; equal scores newest first, so that the order is the same every time."""
    return sorted(scores, key=lambda seq: (-scores[seq], -seq))


def _standardized(scores: Scores, union: Set[int]) -> dict[int, float]:
    values = [scores.get(seq, 0.0) for seq in union]
    if not values:
        return {}
    # fsum: a plain sum depends on the order of its terms, and ties would break by it.
    mean = fsum(values) / len(values)
    spread = sqrt(fsum((value - mean) ** 2 for value in values) / len(values))
    return {seq: (scores.get(seq, 0.0) - mean) / spread if spread > 0 else 0.0 for seq in union}


def _reciprocal(scores: Scores, rank_constant: float) -> dict[int, float]:
    return {seq: 1 / (rank_constant + rank) for rank, seq in enumerate(ranked(scores), start=1)}


def _scaled(scores: Scores) -> dict[int, float]:
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    return {seq: (score - low) / (high - low) if high > low else 1.0 for seq, score in scores.items()}


def _weighted(left: Scores, right: Scores, vector_weight: float) -> Parts:
    return {
        seq: ((1 - vector_weight) * left.get(seq, 0.0), vector_weight * right.get(seq, 0.0))
        for seq in left.keys() | right.keys()
    }
