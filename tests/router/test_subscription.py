"""The state machine alone: where a subscriber stands, and what can happen to it there."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.router.subscription import Event, State, Subscription

MOVES = {
    State.CATCHING_UP: {
        Event.REACHED_HEAD: State.LIVE,
        Event.SOCKET_FULL: State.WAITING,
        Event.CLOSED: State.CLOSED,
    },
    State.LIVE: {Event.SOCKET_FULL: State.WAITING, Event.CLOSED: State.CLOSED},
    State.WAITING: {Event.SOCKET_DRAINED: State.CATCHING_UP, Event.CLOSED: State.CLOSED},
    State.CLOSED: {},
}


def standing(state: State, after: int = 0) -> Subscription:
    subscription = Subscription(after)
    subscription.state = state
    return subscription


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_it_moves_as_its_picture_says_and_no_other_way(state: State, event: Event) -> None:
    subscription = standing(state)
    if event in MOVES[state]:
        assert subscription.move(event) is MOVES[state][event]
        assert subscription.state is MOVES[state][event]
    else:
        with pytest.raises(AssertionError, match=f"{event} cannot happen while {state}"):
            subscription.move(event)


def test_it_begins_behind_at_its_cursor() -> None:
    subscription = Subscription(5)
    assert (subscription.state, subscription.cursor(9)) == (State.CATCHING_UP, 5)


def test_live_it_stands_at_the_head_whatever_that_is() -> None:
    subscription = standing(State.LIVE, 5)
    assert [subscription.cursor(head) for head in (5, 6, 9)] == [5, 6, 9]


def test_the_cursor_never_goes_back() -> None:
    subscription = Subscription(5)
    subscription.advance(5)
    with pytest.raises(AssertionError, match="from 5 to 4"):
        subscription.advance(4)


@given(st.lists(st.tuples(st.sampled_from(Event), st.integers(0, 5)), max_size=30))
def test_on_any_path_the_cursor_stays_between_what_it_was_and_the_head(steps: list[tuple[Event, int]]) -> None:
    """The shell's rules: it advances to the head before it goes live, and to where it was when it stops being so."""
    subscription, head, last = Subscription(0), 0, 0
    for event, appended in steps:
        head += appended
        if event not in MOVES[subscription.state]:
            continue
        stood = head if event is Event.REACHED_HEAD else subscription.cursor(head)
        subscription.move(event)
        subscription.advance(stood)
        assert last <= subscription.cursor(head) <= head
        last = subscription.cursor(head)
