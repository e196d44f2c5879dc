"""What says nearly the same is alike, and what only means the same is not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.projections.search.likeness import Likeness, pairs_of, resembles
from engram_bus.projections.search.vectors import quantized
from tests.projections.search.worlds import EMBEDDER

LONG = "the parser of the new compiler drops every comment that stands after the last statement of a block of code"


def likeness(*texts: str) -> Likeness:
    vectors = [quantized(vector) for vector in EMBEDDER.embed(list(texts))]
    return Likeness(dict(enumerate(texts)), np.array(vectors, np.int8))


@pytest.mark.parametrize(
    ("one", "other", "are_alike"),
    [
        ("the parser is broken", "the parser is broken", True),
        ("Thanks, Nate! It is greatly appreciated.", "thanks Nate, it is greatly appreciated", True),
        (LONG, LONG + " again", True),
        (LONG, f"{LONG} {LONG[::-1]}", False),
        ("step 41 done", "step 42 done", False),
        ("the car broke down", "the automobile broke down", False),
        ("Yeah .", "Yeah ,", True),
        ("これは日本語です", "これは日本語です。", True),
        ("これは日本語です", "これは中国語です", False),
        ("", "", False),
        (" \n", " \n", False),
        ("🎉 !", "🎉\n!", True),
        ("🎉", "🎉", True),
        ("🎉", "🚀", False),
        ("...", "…", False),
    ],
)
def test_it_is_the_words_that_count(one: str, other: str, are_alike: bool) -> None:
    assert likeness(one, other).alike(0, [1]) == ({1} if are_alike else set())
    assert likeness(one, other).alike(1, [0]) == ({0} if are_alike else set())


@given(st.lists(st.text(max_size=30), min_size=1, max_size=8))
def test_being_alike_is_mutual_and_only_said_of_those_asked_about(texts: list[str]) -> None:
    compared = likeness(*texts)
    every = range(len(texts))
    like = {one: compared.alike(one, every) for one in every}
    assert all((one in like[other]) == (other in like[one]) for one in every for other in every)
    assert all(compared.alike(one, []) == set() for one in every)


@given(st.text(alphabet="ab ", max_size=12), st.text(alphabet="ab ", max_size=12))
def test_resembling_is_sharing_four_fifths_of_all_pairs(one: str, other: str) -> None:
    left, right = pairs_of(one), pairs_of(other)
    if left or right:
        assert resembles(left, right) == (len(left & right) / len(left | right) >= 0.8)
