"""How two rankings become one; all of it arithmetic on scores, ties broken by seq."""

from collections.abc import Mapping
from math import sqrt

Scores = Mapping[int, float]
"""Seq -> score, higher is better."""


def z_union(keyword: Scores, vector: Scores, *, vector_weight: float) -> dict[int, float]:
    """Weighted sum of z-scores over the union of both rankings.

    A unit that a leg did not find has the leg's score 0 there (BM25 of no common word; cosine is computed for all of
    the union where it can be). z(x) = (x - mean) / standard deviation over the union; 0 for a leg without spread.
    """
    union = keyword.keys() | vector.keys()
    left, right = _standardized(keyword, union), _standardized(vector, union)
    return {seq: (1 - vector_weight) * left[seq] + vector_weight * right[seq] for seq in union}


def reciprocal_rank(
    keyword: Scores, vector: Scores, *, vector_weight: float, constant: float = 60.0
) -> dict[int, float]:
    """Weighted reciprocal rank fusion (Cormack, Clarke, Buettcher, SIGIR 2009): sum of weight / (constant + rank)."""
    fused: dict[int, float] = {}
    for scores, weight in ((keyword, 1 - vector_weight), (vector, vector_weight)):
        for rank, seq in enumerate(ranked(scores), start=1):
            fused[seq] = fused.get(seq, 0.0) + weight / (constant + rank)
    return fused


def relative_score(keyword: Scores, vector: Scores, *, vector_weight: float) -> dict[int, float]:
    """Weighted sum of scores scaled to 0..1 within each leg; what a leg did not find has 0."""
    fused: dict[int, float] = {}
    for scores, weight in ((keyword, 1 - vector_weight), (vector, vector_weight)):
        if scores:
            low, high = min(scores.values()), max(scores.values())
            for seq, score in scores.items():
                scaled = (score - low) / (high - low) if high > low else 1.0
                fused[seq] = fused.get(seq, 0.0) + weight * scaled
    return fused


def ranked(scores: Scores) -> list[int]:
    """Best first; equal scores newest first, so that the order is the same every time."""
    return sorted(scores, key=lambda seq: (-scores[seq], -seq))


def _standardized(scores: Scores, union: "set[int] | frozenset[int]") -> dict[int, float]:
    values = [scores.get(seq, 0.0) for seq in union]
    mean = sum(values) / len(values) if values else 0.0
    spread = sqrt(sum((value - mean) ** 2 for value in values) / len(values)) if values else 0.0
    return {seq: (scores.get(seq, 0.0) - mean) / spread if spread > 0 else 0.0 for seq in union}
