"""Two rankings become one: always in the same order, and each unit's score is the sum of its parts."""

from collections.abc import Callable
from statistics import mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.projections.search.fusion import (
    Parts,
    Scores,
    distinct,
    neighbours,
    ranked,
    recency,
    reciprocal_rank,
    relative_score,
    z_union,
)

Fusion = Callable[..., Parts]
FUSIONS: list[Fusion] = [z_union, reciprocal_rank, relative_score]
each = pytest.mark.parametrize("fuse", FUSIONS)

SCORES = st.dictionaries(st.integers(1, 60), st.integers(0, 800).map(lambda score: score / 8), max_size=40)
WEIGHTS = st.sampled_from([0.0, 0.25, 0.4, 0.5, 1.0])


def total(parts: Parts) -> dict[int, float]:
    return {seq: left + right for seq, (left, right) in parts.items()}


@each
@given(keyword=SCORES, vector=SCORES, weight=WEIGHTS, order=st.randoms())
def test_the_order_of_what_comes_in_does_not_matter(
    fuse: Fusion, keyword: Scores, vector: Scores, weight: float, order: object
) -> None:
    def shuffled(scores: Scores) -> Scores:
        items = list(scores.items())
        order.shuffle(items)  # type: ignore[attr-defined]
        return dict(items)

    one = fuse(keyword, vector, vector_weight=weight)
    assert one == fuse(shuffled(keyword), shuffled(vector), vector_weight=weight)


@each
@given(keyword=SCORES, vector=SCORES, weight=WEIGHTS)
def test_every_unit_of_either_ranking_is_there_once(
    fuse: Fusion, keyword: Scores, vector: Scores, weight: float
) -> None:
    assert fuse(keyword, vector, vector_weight=weight).keys() == keyword.keys() | vector.keys()


@each
@given(keyword=SCORES, vector=SCORES, weight=WEIGHTS)
def test_who_is_better_in_both_is_not_worse_together(
    fuse: Fusion, keyword: Scores, vector: Scores, weight: float
) -> None:
    both = keyword.keys() & vector.keys()
    scores = total(fuse(keyword, vector, vector_weight=weight))
    for one in both:
        for other in both:
            if keyword[one] > keyword[other] and vector[one] > vector[other]:
                assert scores[one] >= scores[other] - 1e-9


@each
@given(ranking=SCORES.filter(bool), weight=st.sampled_from([0.1, 0.4, 0.9]))
def test_one_ranking_alone_keeps_its_order(fuse: Fusion, ranking: Scores, weight: float) -> None:
    for parts in (fuse(ranking, {}, vector_weight=weight), fuse({}, ranking, vector_weight=weight)):
        scores = total(parts)
        in_order = [ranking[seq] for seq in ranked(scores)]
        assert in_order == sorted(in_order, reverse=True)


@each
@given(keyword=SCORES, vector=SCORES)
def test_a_weight_of_nothing_gives_nothing(fuse: Fusion, keyword: Scores, vector: Scores) -> None:
    assert all(right == 0 for _, right in fuse(keyword, vector, vector_weight=0.0).values())
    assert all(left == 0 for left, _ in fuse(keyword, vector, vector_weight=1.0).values())


@given(SCORES)
def test_ranks_are_by_score_then_newest_first(scores: Scores) -> None:
    order = ranked(scores)
    assert sorted(order) == sorted(scores)
    assert order == sorted(sorted(scores, reverse=True), key=lambda seq: -scores[seq])


@given(SCORES.filter(lambda scores: len(set(scores.values())) > 1), SCORES)
def test_z_scores_are_those_of_the_textbook(keyword: Scores, vector: Scores) -> None:
    union = keyword.keys() | vector.keys()
    values = [keyword.get(seq, 0.0) for seq in union]
    parts = z_union(keyword, vector, vector_weight=0.4)
    for seq in union:
        expected = (keyword.get(seq, 0.0) - mean(values)) / pstdev(values)
        assert parts[seq][0] == pytest.approx(0.6 * expected, abs=1e-9)


def test_a_leg_without_spread_says_nothing() -> None:
    assert z_union({1: 2.0, 2: 2.0}, {1: 0.1, 2: 0.9}, vector_weight=0.5) == {1: (0.0, -0.5), 2: (0.0, 0.5)}
    assert z_union({}, {}, vector_weight=0.5) == {}


def test_reciprocal_ranks_are_those_of_the_paper() -> None:
    parts = reciprocal_rank({1: 9.0, 2: 3.0}, {2: 0.5}, vector_weight=0.5)
    assert parts == {1: (0.5 / 61, 0.0), 2: (0.5 / 62, 0.5 / 61)}


def test_a_small_constant_makes_the_first_ranks_count_more() -> None:
    assert reciprocal_rank({1: 9.0, 2: 3.0}, {}, vector_weight=0.0, rank_constant=0.0) == {1: (1, 0), 2: (0.5, 0)}


@given(
    st.dictionaries(st.integers(1, 60), st.floats(-1e18, 1e18)), st.integers(1, 10**12), st.sampled_from([0.0, 0.5, 9])
)
def test_the_newer_the_more_and_never_more_than_the_weight(ages_ms: Scores, half_life_ms: int, weight: float) -> None:
    parts = recency(ages_ms, half_life_ms=half_life_ms, weight=weight)
    assert parts.keys() == ages_ms.keys()
    assert all(0 <= part <= weight for part in parts.values())
    for one in parts:
        assert all(parts[one] >= parts[other] for other in parts if ages_ms[one] <= ages_ms[other])


def test_what_recency_gives_is_halved_each_half_life() -> None:
    parts = recency({1: 0, 2: 100, 3: 200, 4: 10**15}, half_life_ms=100, weight=0.8)
    assert parts == {1: 0.8, 2: 0.4, 3: 0.2, 4: 0.0}


def test_a_unit_gets_a_share_of_the_better_of_its_neighbours() -> None:
    scores = {1: 4.0, 2: 1.0, 3: -2.0, 4: -1.0, 9: 5.0}
    parts = neighbours(scores, [(1, 2), (2, 3), (3, 4)], weight=0.5)
    assert parts == {1: 0.5, 2: 2.0, 3: 0.5, 4: 0.0}


@given(st.lists(st.integers(1, 30), unique=True), st.integers(1, 6))
def test_of_what_is_alike_the_best_stands_for_all(order: list[int], kinds: int) -> None:
    kept = distinct(order, lambda one, others: [other for other in others if other % kinds == one % kinds])
    best: dict[int, int] = {}
    for seq in order:
        best.setdefault(seq % kinds, seq)
    assert list(kept) == list(best.values())
    assert sum(kept.values()) + len(kept) == len(order)


def test_what_is_like_one_that_was_left_out_stays() -> None:
    near = {(1, 2), (2, 3)}
    kept = distinct([1, 2, 3], lambda one, others: [other for other in others if (one, other) in near])
    assert kept == {1: 1, 3: 0}


def test_relative_scores_lie_between_nothing_and_all() -> None:
    parts = relative_score({1: 9.0, 2: 3.0, 3: 6.0}, {4: 0.5}, vector_weight=0.5)
    assert parts == {1: (0.5, 0.0), 2: (0.0, 0.0), 3: (0.25, 0.0), 4: (0.0, 0.5)}
    assert relative_score({}, {}, vector_weight=0.5) == {}
