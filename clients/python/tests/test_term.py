"""When a lease is refreshed, and when it is over: counted from before the bus was asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_client.term import Term
from engram_client.values import Lock, LockMode

times = st.floats(0, 1e6)
chances = st.floats(0, 1, exclude_max=True)


def lock(remaining_seconds: float) -> Lock:
    return Lock(
        lock_id="l1",
        resources=["plan.md"],
        holder_agent="ann",
        mode=LockMode.EXCLUSIVE,
        fencing_token=7,
        granted_at="",
        expires_at="",
        remaining_seconds=remaining_seconds,
    )


def test_a_lease_counts_from_before_it_was_asked_for() -> None:
    term = Term.of(lock(30), asked_at=100)
    assert not term.is_over(129.9)
    assert term.is_over(130)


def test_it_is_refreshed_at_a_third_or_a_little_earlier() -> None:
    term = Term.of(lock(30), asked_at=100)
    assert term.refresh_in(100, chance=0) == pytest.approx(10)
    assert term.refresh_in(100, chance=0.5) == pytest.approx(9)
    assert term.refresh_in(104, chance=0) == pytest.approx(6)
    assert term.refresh_in(120, chance=0) == 0


def test_it_can_only_be_cut_shorter() -> None:
    term = Term.of(lock(30), asked_at=100)
    assert term.cut(None) == term
    assert term.cut(140) == term
    assert term.cut(105).is_over(105)


def test_a_wait_as_long_as_the_lease_leaves_nothing_to_believe_in() -> None:
    term = Term.of(lock(30), asked_at=100)
    assert term.refresh_in(140, chance=0) == 0
    assert term.is_over(140)


@given(times, st.floats(0.1, 86_400), times, chances, st.integers(1, 1_000), st.none() | st.floats(0, 1e5))
def test_nothing_takes_longer_than_the_lease_has_left(
    asked_at: float, seconds: float, later: float, chance: float, failures: int, asked: float | None
) -> None:
    term, now = Term.of(lock(seconds), asked_at=asked_at), asked_at + later
    left = max(0.0, term.ends_at - now)
    pause = term.pause_seconds(now, failures=failures, asked_seconds=asked, chance=chance)
    assert 0 <= term.try_seconds(now) + pause <= left
    assert 0 <= term.refresh_in(now, chance=chance) <= seconds / 3 + 1e-6


def test_pauses_grow_and_the_bus_may_ask_for_longer_ones() -> None:
    term = Term.of(lock(1_000), asked_at=0)
    pauses = [term.pause_seconds(0, failures=n, asked_seconds=None, chance=0.5) for n in (1, 2, 3, 50)]
    assert pauses == [0.1, 0.2, 0.4, 0.5]
    assert term.pause_seconds(0, failures=1, asked_seconds=2.5, chance=0) == 2.5
