"""Any cursor at all gives the units after it, contiguous, or an error that says why not. Never silence."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.embedded import Bus
from engram_bus.errors import EngramError
from engram_bus.log.contract import Epoch
from engram_bus.log.memory import MemoryLog
from tests.contracts.cursors import CursorCase, any_cursor, expected, odd_cursors

EPOCHS = (Epoch("e1", 1), Epoch("e2", 4), Epoch("e3", 6))
HEAD = 8


async def _outcome(text: str | int | None) -> int | str:
    """The seq after which units came, or the code of the refusal. Units that do not follow fail here."""
    bus = Bus(MemoryLog(EPOCHS))
    try:
        for number in range(HEAD):
            await bus.append("plan", str(number), agent_id="ann")
        try:
            subscription = bus.subscribe("plan", after=text)
        except EngramError as exc:
            return exc.code
        after = int(subscription.cursor.rpartition(".")[2])
        await bus.append("plan", "one more", agent_id="ann")
        async with subscription:
            seqs = [(await anext(subscription)).seq for _ in range(HEAD + 1 - after)]
        assert seqs == list(range(after + 1, HEAD + 2))
        return after
    finally:
        await bus.stop("the test is over")


@pytest.mark.parametrize("case", odd_cursors(EPOCHS, HEAD), ids=str)
async def test_an_odd_cursor_gives_the_units_after_it_or_says_why_not(case: CursorCase) -> None:
    assert await _outcome(case.text) == (case.seq if case.code is None else case.code)


@given(any_cursor(EPOCHS, HEAD))
def test_any_text_does(text: str) -> None:
    assert asyncio.run(_outcome(text)) == expected(text, EPOCHS, HEAD)


@given(st.integers())
def test_a_seq_may_be_a_number(seq: int) -> None:
    assert asyncio.run(_outcome(seq)) == expected(str(seq), EPOCHS, HEAD)


def test_the_cases_hold_each_outcome() -> None:
    codes = {case.code for case in odd_cursors(EPOCHS, HEAD)}
    assert codes == {None, "CURSOR_INVALID", "CURSOR_AHEAD", "EPOCH_CHANGED"}
    assert {case.seq for case in odd_cursors(EPOCHS, HEAD)} >= set(range(HEAD + 1))
