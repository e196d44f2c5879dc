"""The vector leg compares every row while they are few, and of many those whose sketches are closest."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import engram_bus.cli
from engram_bus.projections.search.sketches import Sketches
from engram_bus.projections.search.vectors import KeptRows, Rows, quantized, scales_of
from tests.projections.search.worlds import EMBEDDER, few_compared

FLEET = Path(engram_bus.cli.__file__).parent / "recordings" / "fleet.jsonl"


def rows_of(kept: NDArray[np.int8]) -> Rows:
    sketches = Sketches(kept.shape[1])
    sketches.add(kept)
    return Rows(kept, scales_of(kept), sketches)


@pytest.fixture(scope="module")
def said() -> NDArray[np.int8]:
    """The lines of a recording, each once, as vectors."""
    units = [json.loads(line) for line in FLEET.read_text(encoding="utf-8").splitlines()]
    lines = dict.fromkeys(part for one in units for part in re.split(r"[.!?]\s|\n", one.get("text", "")) if " " in part)
    embedded = EMBEDDER.embed(list(lines))
    return np.array([quantized(one) for one in embedded if one.any()])


QUESTIONS = EMBEDDER.embed(
    [
        "who merged the branch",
        "tests fail",
        "a refactoring of the parser",
        "status of the polecat",
        "rate limits",
        "docs",
    ]
)


def test_of_real_text_the_nearest_are_among_few_that_are_compared(said: NDArray[np.int8]) -> None:
    rows = rows_of(said)
    assert len(said) > 700
    for question in QUESTIONS:
        exact, cosines = rows.nearest(question, None, 10)
        with few_compared(100, 100):
            found, told = rows.nearest(question, None, 10)
        assert len(set(found.tolist()) & set(exact.tolist())) >= 9
        assert told[:5] == cosines[:5]


def test_every_row_is_at_no_distance_from_itself(said: NDArray[np.int8]) -> None:
    sketches = Sketches(said.shape[1])
    sketches.add(said)
    for place in range(0, len(said), 50):
        assert place in sketches.nearest(said[place], None, 3)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_what_the_mask_keeps_out_takes_no_place_among_the_compared(said: NDArray[np.int8], share: float) -> None:
    mask = np.random.default_rng(1).random(len(said)) < share
    places = np.flatnonzero(mask)
    with few_compared(100, 100):
        for question in QUESTIONS:
            found, cosines = rows_of(said).nearest(question, mask, 20)
            alone = rows_of(said[mask]).nearest(question, None, 20)
            assert (found.tolist(), cosines) == (places[alone[0]].tolist(), alone[1])


@given(st.integers(1, 200), st.integers(1, 70), st.lists(st.integers(0, 70), max_size=3), st.integers(0, 2**32))
def test_sketches_are_the_same_in_however_many_parts_they_were_made(
    dimension: int, count: int, cuts: list[int], seed: int
) -> None:
    kept = np.random.default_rng(seed).integers(-127, 128, (count, dimension), dtype=np.int8)
    at_once, in_parts = Sketches(dimension), Sketches(dimension)
    at_once.add(kept)
    for part in np.split(kept, sorted(cut % (count + 1) for cut in cuts)):
        in_parts.add(part)
    assert in_parts.count == count
    for limit in (1, count):
        assert in_parts.nearest(kept[0], None, limit).tolist() == at_once.nearest(kept[0], None, limit).tolist()


VECTORS = st.lists(st.lists(st.integers(-5, 5), min_size=4, max_size=4), min_size=1, max_size=40)


@given(VECTORS, st.lists(st.integers(-5, 5), min_size=4, max_size=4), st.lists(st.booleans()), st.integers(1, 50))
def test_the_nearest_are_those_of_a_plain_sort(
    given_vectors: list[list[int]], asked: list[int], let_through: list[bool], limit: int
) -> None:
    kept = np.array([quantized(np.array(vector, np.float32)) for vector in given_vectors])
    mask = np.array((let_through + [True] * len(kept))[: len(kept)])
    query = np.array(asked, np.float32) / max(1.0, float(np.linalg.norm(asked)))
    found = rows_of(kept)
    for allowed in (mask, None):
        places, cosines = found.nearest(query, allowed, limit)
        expected = []
        for place, row in enumerate(kept.astype(np.float64)):
            if row.any() and (allowed is None or allowed[place]):
                expected.append((-round(float(row @ query / np.linalg.norm(row)), 4), -place))
        assert len(places) == min(limit, len(expected))
        assert cosines == sorted(cosines, reverse=True)
        told = [(-round(cosine, 4), -int(place)) for place, cosine in zip(places, cosines, strict=True)]
        assert [one for one, _ in told] == pytest.approx([one for one, _ in sorted(expected)][:limit], abs=2e-4)
        assert found.cosines(query, places) == cosines
    zero = np.flatnonzero(~kept.any(axis=1))
    assert found.cosines(query, zero) == [None] * len(zero)


@pytest.mark.parametrize("compared", [(50_000, 20_000), (100, 50)])
def test_of_equally_near_ones_the_newest_come_first(tmp_path: Path, compared: tuple[int, int]) -> None:
    kept = KeptRows(tmp_path, dimension=2, count=0)
    for number in range(20_000):
        kept.add(np.array([[1, 0] if number % 2 else [0, 1]], np.float32))
    few = np.zeros(20_000, np.bool_)
    few[:9_000] = True
    with few_compared(*compared):
        places, cosines = kept.rows.nearest(np.array([1, 0], np.float32), None, 3)
        assert (places.tolist(), cosines) == ([19_999, 19_997, 19_995], [1.0, 1.0, 1.0])
        assert kept.rows.nearest(np.array([1, 0], np.float32), few, 2)[0].tolist() == [8_999, 8_997]
        assert len(kept.rows.nearest(np.array([1, 0], np.float32), np.zeros(20_000, np.bool_), 2)[0]) == 0


def test_an_index_may_have_more_units_than_vectors(tmp_path: Path) -> None:
    kept = KeptRows(tmp_path, dimension=2, count=0)
    assert len(kept.rows.nearest(np.array([1, 0], np.float32), np.ones(3, np.bool_), 2)[0]) == 0
    kept.add(np.array([[1, 0]], np.float32))
    assert kept.rows.nearest(np.array([1, 0], np.float32), np.ones(3, np.bool_), 2)[0].tolist() == [0]
    kept.add(np.array([[0, 1]], np.float32))
    with few_compared(1, 1):
        assert kept.rows.nearest(np.array([1, 0], np.float32), np.ones(3, np.bool_), 2)[0].tolist() == [0]
