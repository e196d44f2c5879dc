"""Pauses grow, are as long as the bus asks at least, and end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_client.backoff import Backoff
from engram_client.errors import Busy, EngramConnectionError, InvalidRequest, ShuttingDown
from engram_client.limits import BACKOFF_SECONDS_MAX, RETRY_AFTER_SECONDS_MAX


def test_pauses_grow_up_to_a_bound() -> None:
    backoff = Backoff(None)
    pauses = [backoff.seconds(Busy("full"), chance=0.5) for _ in range(100)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.1, BACKOFF_SECONDS_MAX / 2)


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1e9))
def test_the_bus_may_ask_for_more_but_not_for_ever(chance: float, asked: float) -> None:
    pause = Backoff(None).seconds(ShuttingDown("bye", retry_after_seconds=asked), chance=chance)
    assert min(asked, RETRY_AFTER_SECONDS_MAX) <= pause <= RETRY_AFTER_SECONDS_MAX + BACKOFF_SECONDS_MAX


def test_what_will_not_pass_is_raised_at_once() -> None:
    with pytest.raises(InvalidRequest):
        Backoff(None).seconds(InvalidRequest("no"), chance=0.0)


def test_it_gives_up_after_so_many_in_a_row_and_says_how_many() -> None:
    backoff = Backoff(2)
    for _ in range(2):
        backoff.seconds(EngramConnectionError("refused"), chance=0.0)
    with pytest.raises(EngramConnectionError, match="refused \\(3 attempts\\)"):
        backoff.seconds(EngramConnectionError("refused"), chance=0.0)


def test_success_starts_counting_again() -> None:
    backoff = Backoff(1)
    for _ in range(5):
        backoff.seconds(Busy("full"), chance=0.0)
        backoff.worked()
