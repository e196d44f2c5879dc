"""The ring is the end of the log: what it holds it gives as the log would, and it holds no more than its bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.codec import Entry
from engram_bus.router.ring import Ring

UNITS_MAX, BYTES_MAX = 8, 100

batches = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=12), max_size=8)


def filled(sizes: list[list[int]], head: int = 0) -> tuple[Ring, list[Entry]]:
    ring, entries = Ring(head, units_max=UNITS_MAX, bytes_max=BYTES_MAX), []
    for batch in sizes:
        entries.append([Entry(ring.head + place, b"x" * size) for place, size in enumerate(batch, start=1)])
        ring.extend(entries[-1])
    return ring, [entry for batch in entries for entry in batch]


@given(batches, st.integers(0, 5))
def test_it_keeps_the_newest_within_its_bounds_and_the_last_batch_whole(sizes: list[list[int]], head: int) -> None:
    ring, entries = filled(sizes, head)
    kept = entries[len(entries) - len(ring) :]
    assert ring.head == head + len(entries)
    assert len(ring) >= (len(sizes[-1]) if sizes else 0)
    if sizes and len(ring) > len(sizes[-1]):
        assert len(ring) <= UNITS_MAX
        assert sum(len(entry.body) for entry in kept) <= BYTES_MAX
    if len(kept) < len(entries):
        one_more = entries[len(entries) - len(ring) - 1 :]
        assert len(one_more) > UNITS_MAX or sum(len(entry.body) for entry in one_more) > BYTES_MAX


@given(batches, st.integers(1, 10), st.integers(1, 150), st.data())
def test_a_page_is_what_the_log_would_give(
    sizes: list[list[int]], units_max: int, bytes_max: int, data: st.DataObject
) -> None:
    ring, entries = filled(sizes)
    after = data.draw(st.integers(ring.head - len(ring), ring.head))
    assert ring.holds(after)
    page = ring.read(after, units_max=units_max, bytes_max=bytes_max)
    following = entries[after:]
    assert page == following[: len(page)]
    assert len(page) <= units_max
    assert len(page) <= 1 or sum(len(entry.body) for entry in page) <= bytes_max
    more = following[: len(page) + 1]
    assert len(page) in (len(following), units_max) or sum(len(entry.body) for entry in more) > bytes_max


@given(batches)
def test_it_does_not_hold_what_made_room(sizes: list[list[int]]) -> None:
    ring, entries = filled(sizes)
    for after in range(len(entries) + 1):
        assert ring.holds(after) == (after >= len(entries) - len(ring))


def test_an_empty_ring_of_an_old_log_holds_only_its_end() -> None:
    ring = Ring(7, units_max=UNITS_MAX, bytes_max=BYTES_MAX)
    assert ring.holds(7)
    assert not ring.holds(6)
    assert ring.read(7, units_max=5, bytes_max=5) == []


def test_a_batch_that_does_not_follow_is_our_mistake() -> None:
    ring = Ring(7, units_max=UNITS_MAX, bytes_max=BYTES_MAX)
    with pytest.raises(AssertionError, match="seq 9 after 7"):
        ring.extend([Entry(9, b"")])
