"""The large log holds what its figures are said to be of."""

from collections import Counter

from benchmarks.large_log import CONTEXTS, CONVERSATION_UNITS, PAYLOAD_BYTES, Content, conversations


def test_a_conversation_that_is_over_has_all_its_units() -> None:
    units = Counter(draft.context_id for draft in Content().drafts(1, 19_999))
    said = [units[context_id] for context_id in conversations(20_000)]
    assert sum(said) == len(said) * CONVERSATION_UNITS - 1, "there is no unit 0"
    assert len(units) == 50 + 15_000, "all others are elsewhere"
    assert len({f"context/{number}" for number in range(CONTEXTS)} | {*conversations(10_000_000)}) == 100_000


def test_a_unit_is_the_same_however_often_the_writing_was_ended() -> None:
    content = Content()
    assert content.drafts(1, 500)[250:] == content.drafts(251, 250)
    assert {len(draft.payload) for draft in content.drafts(1, 500)} == {PAYLOAD_BYTES}
