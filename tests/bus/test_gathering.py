"""A commit waits for commands that come one in a turn, as long as that has paid, and never without bound."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from engram_bus.bus.gathering import Gathering
from engram_bus.embedded import Bus
from engram_bus.limits import GATHER_IDLE_TURNS_MAX, GATHER_TURNS_MAX
from tests.values import append


def turns_given(gathering: Gathering, arrivals: list[int]) -> int:
    """Turns given away before a commit, with so many commands queued in each; the last one's stay queued."""
    turns = 0
    while gathering.goes_on(arrivals[min(turns, len(arrivals) - 1)]):
        turns += 1
    return turns


def test_who_comes_alone_soon_waits_for_one_idle_turn_only() -> None:
    gathering = Gathering()
    assert [turns_given(gathering, [1]) for _ in range(5)] == [2, 2, 2, 2, 2]


def test_a_crowd_that_trickles_in_is_waited_for_longer_and_longer() -> None:
    gathering = Gathering()
    gaps = [turns_given(gathering, [1, 2]) - 2 for _ in range(8)]
    assert gaps == [1, 2, 4, 8, 16, 32, 32, 32]
    assert gaps[-1] == GATHER_IDLE_TURNS_MAX
    # And when the crowd has gone, what is left soon waits no more.
    assert [turns_given(gathering, [1]) - 1 for _ in range(8)] == [32, 16, 8, 4, 2, 1, 1, 1]


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=GATHER_TURNS_MAX + 10).map(sorted))
def test_a_commit_is_never_put_off_without_bound(arrivals: list[int]) -> None:
    gathering = Gathering()
    for _ in range(3):
        assert turns_given(gathering, arrivals) < GATHER_TURNS_MAX


async def test_what_trickles_in_is_few_commits_and_what_does_not_is_committed_at_once() -> None:
    async with Bus.open(None) as bus:

        async def append_later(turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await bus.execute(append(), gathers=True)

        for _ in range(5):
            before = bus.writer.commits
            await asyncio.gather(*(append_later(2 * one) for one in range(30)))
        assert bus.writer.commits - before == 1
        before = bus.writer.commits
        waiting = asyncio.ensure_future(bus.execute(append(), gathers=True))
        await asyncio.sleep(0)
        await bus.execute(append())
        assert waiting.done()
        assert bus.writer.commits - before == 1


async def test_what_waits_for_others_is_committed_by_a_stop() -> None:
    async with Bus.open(None) as bus:
        waiting = asyncio.ensure_future(bus.execute(append(), gathers=True))
        await asyncio.sleep(0)
        bus.goaway("test")
        assert (await waiting).entries[0].seq == 1
