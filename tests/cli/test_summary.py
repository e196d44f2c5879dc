"""The summary of a replay counts what the subscriber saw against what was acknowledged."""

import msgspec
import pytest

from engram_bus.cli.replay.player import Played
from engram_bus.cli.replay.recording import Recording, parse
from engram_bus.cli.replay.summary import Percentiles, Summary, summarise
from engram_bus.cli.replay.watcher import Seen, Watched
from engram_client import Receipt

MS = 1_000_000


def recorded(*sessions: str) -> Recording:
    rows = ({"agent": "ann", "text": "", "session": session} for session in sessions)
    return parse(b"\n".join(map(msgspec.json.encode, rows)), run="r", order="file")


RECORDING = recorded("a", "a", "b")
PLAYED = [
    Played(step, sent_ns=step.place * MS, acknowledged_ns=(step.place + 2) * MS, receipt=receipt)
    for step, receipt in zip(
        RECORDING.steps,
        [Receipt(unit_id=step.draft.id or "", seq=11 + step.place, version=1) for step in RECORDING.steps],
        strict=True,
    )
]
SEEN = [
    Seen(one.receipt.unit_id, one.step.draft.context_id, one.receipt.seq, version, one.sent_ns + 3 * MS)
    for one, version in zip(PLAYED, [4, 5, 1], strict=True)
]


def summary(*seen: Seen, repeats: int = 0, after_seq: int = 10) -> Summary:
    return summarise(RECORDING, PLAYED, Watched(seen, repeats, 0), after_seq=after_seq)


def test_all_is_well() -> None:
    found = summary(*SEEN)
    assert found.is_clean
    assert (found.appended_units, found.replayed_units, found.agents, found.contexts) == (3, 0, 1, 2)
    assert (found.seconds, found.units_per_second) == (0.004, 750)
    assert found.delivery_ms == Percentiles(3, 3, 3)
    assert found.acknowledgement_ms == Percentiles(2, 2, 2)


def test_what_was_there_from_before_is_neither_new_nor_lost() -> None:
    found = summary(SEEN[2], after_seq=12)
    assert (found.appended_units, found.replayed_units, found.lost) == (1, 2, 0)


@pytest.mark.parametrize(
    ("seen", "repeats", "lost", "repeated", "out_of_order"),
    [
        (SEEN[:2], 0, 1, 0, 0),
        ([], 0, 3, 0, 0),
        ([*SEEN, SEEN[2]], 0, 0, 1, 1),
        (SEEN, 2, 0, 2, 0),
        ([SEEN[0], SEEN[2], SEEN[1]], 0, 0, 0, 1),
        ([SEEN[0], SEEN[1]._replace(version=6), SEEN[2]], 0, 0, 0, 1),
        ([SEEN[1]._replace(seq=11, version=4), SEEN[0]._replace(seq=12, version=5), SEEN[2]], 0, 0, 0, 1),
    ],
    ids=["lost", "all lost", "seen twice", "sent twice", "late", "version gap", "not as recorded"],
)
def test_what_went_wrong_is_counted(
    seen: list[Seen], repeats: int, lost: int, repeated: int, out_of_order: int
) -> None:
    found = summary(*seen, repeats=repeats)
    assert (found.lost, found.repeated, found.out_of_order) == (lost, repeated, out_of_order)
    assert not found.is_clean


def test_units_of_others_in_the_same_context_are_not_ours_to_judge() -> None:
    other = Seen("other", SEEN[0].context_id, 12, 5, 0)
    assert summary(SEEN[0], other, SEEN[1]._replace(seq=13, version=6), SEEN[2]._replace(seq=14)).is_clean
