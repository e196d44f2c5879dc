"""Wherever a stream is cut, and whatever it repeats, each unit is taken once, in order."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_client.errors import Gap
from engram_client.frames import Heartbeat, Missing, Subscribed, Units
from engram_client.resume import Resume
from engram_client.values import Cursor, UnitType, WorkUnit

LOG_UNITS = 24


def unit(seq: int) -> WorkUnit:
    return WorkUnit(
        seq=seq,
        id=f"u{seq}",
        context_id="plan",
        version=seq,
        agent_id="ann",
        type=UnitType.MESSAGE,
        ts="2026-01-01T00:00:00.000000Z",
        content_type="text/plain; charset=utf-8",
    )


def units(*seqs: int, cursor: int | None = None, epoch: str = "e1") -> Units:
    return Units([unit(seq) for seq in seqs], Cursor(epoch, seqs[-1] if cursor is None else cursor))


def subscribed(seq: int, head: int = LOG_UNITS, epoch: str = "e1") -> Subscribed:
    return Subscribed(Cursor(epoch, seq), head)


def taken(resume: Resume) -> list[object]:
    found: list[object] = []
    while (value := resume.take()) is not None:
        found.append((value.from_seq, value.to_seq) if isinstance(value, Gap) else value.seq)
    return found


@st.composite
def worlds(draw: st.DrawFn) -> tuple[set[int], int, list[tuple[str, int]]]:
    """Which units match the filter, where the reader starts, and what happens, by turns."""
    matching = draw(st.sets(st.integers(1, LOG_UNITS)))
    start = draw(st.integers(0, LOG_UNITS))
    steps = st.tuples(st.sampled_from(["frame", "heartbeat", "cut", "rewound", "take"]), st.integers(1, 5))
    return matching, start, draw(st.lists(steps, max_size=60))


@given(worlds())
def test_any_cut_with_any_repeat_gives_each_unit_once_and_in_order(
    world: tuple[set[int], int, list[tuple[str, int]]],
) -> None:
    matching, start, steps = world
    resume = Resume(f"e1.{start}")
    wanted = [seq for seq in range(start + 1, LOG_UNITS + 1) if seq in matching]
    got: list[object] = []
    server = Server(matching, resume)
    for step, count in steps:
        match step:
            case "frame":
                server.frame(count)
            case "heartbeat":
                resume.receive(Heartbeat(Cursor("e1", server.at), LOG_UNITS))
            case "cut":
                server.accept(rewind=0)
            case "rewound":
                server.accept(rewind=count)
            case "take":
                got += [value.seq for value in [resume.take()] if isinstance(value, WorkUnit)]
        saved_is_exact(resume, got, wanted)
    while server.at < LOG_UNITS:
        server.frame(5)
    assert got + taken(resume) == wanted
    assert resume.cursor == f"e1.{LOG_UNITS}"


def saved_is_exact(resume: Resume, got: list[object], wanted: list[int]) -> None:
    """Who saves the cursor and starts again from it gets exactly what was not handed out."""
    saved = Cursor.parse(resume.cursor or "")
    assert got == [seq for seq in wanted if seq <= saved.seq]


class Server:
    """A bus that sends what matches, joined in frames, from wherever it was asked; or, `rewind`, from before that."""

    def __init__(self, matching: set[int], resume: Resume) -> None:
        self.matching = matching
        self.resume = resume
        self.accept(rewind=0)

    def accept(self, *, rewind: int) -> None:
        self.at = max(0, Cursor.parse(self.resume.after or "").seq - rewind)
        self.resume.receive(subscribed(self.at))

    def frame(self, count: int) -> None:
        reach = min(self.at + count, LOG_UNITS)
        found = [unit(seq) for seq in range(self.at + 1, reach + 1) if seq in self.matching]
        self.at = reach
        self.resume.receive(Units(found, Cursor("e1", reach)))


def test_the_cursor_moves_when_a_unit_is_taken_not_when_it_comes() -> None:
    resume = Resume("e1.0")
    resume.receive(units(1, 2))
    assert (resume.cursor, resume.after) == ("e1.0", "e1.2")
    resume.take()
    assert (resume.cursor, len(resume)) == ("e1.1", 1)


def test_what_comes_again_or_late_is_left_out_and_counted() -> None:
    resume = Resume("e1.0")
    resume.receive(units(1, 3))
    assert resume.repeats == 0
    resume.receive(units(2, 3, 4))
    assert (taken(resume), resume.repeats) == ([1, 3, 4], 2)


def test_what_is_pending_is_counted_in_units_and_bytes() -> None:
    resume = Resume("e1.0")
    resume.receive(Units([msgspec.structs.replace(unit(1), payload=b"abc"), unit(2)], Cursor("e1", 2)))
    assert (len(resume), resume.pending_bytes) == (2, 3)
    assert (taken(resume), len(resume), resume.pending_bytes) == ([1, 2], 0, 0)


def test_the_last_unit_of_a_frame_carries_the_cursor_behind_what_the_filter_left_out() -> None:
    resume = Resume("e1.0")
    resume.receive(units(1, 2, cursor=9))
    assert taken(resume) == [1, 2]
    assert resume.cursor == "e1.9"


def test_a_heartbeat_moves_the_cursor_only_behind_what_is_pending() -> None:
    resume = Resume("e1.0")
    resume.receive(Heartbeat(Cursor("e1", 4), 4))
    assert resume.cursor == "e1.4"
    resume.receive(units(5))
    resume.receive(Heartbeat(Cursor("e1", 8), 9))
    assert (resume.cursor, resume.after, resume.head) == ("e1.4", "e1.8", 9)
    resume.take()
    assert resume.cursor == "e1.8"


def test_without_a_cursor_it_asks_for_now_until_the_bus_has_named_one() -> None:
    resume = Resume(None)
    assert (resume.after, resume.cursor, resume.subscribed) == (None, None, False)
    resume.receive(subscribed(7))
    assert (resume.after, resume.cursor, resume.subscribed) == ("e1.7", "e1.7", True)


@pytest.mark.parametrize("after", [0, "0", 5, "5"])
def test_a_bare_seq_gets_its_epoch_from_the_bus(after: int | str) -> None:
    resume = Resume(after)
    assert (resume.after, resume.cursor) == (str(after), str(after))
    resume.receive(subscribed(int(after)))
    assert resume.cursor == f"e1.{after}"
    assert resume.take() is None


def test_what_is_no_cursor_is_asked_for_as_it_is_so_that_the_bus_can_refuse_it() -> None:
    resume = Resume("what?")
    assert (resume.after, resume.cursor) == ("what?", None)


def test_a_gap_comes_in_its_place_once_and_the_stream_goes_on_behind_it() -> None:
    resume = Resume("e1.0")
    resume.receive(units(1))
    resume.receive(Missing(2, 5, "PRUNED"))
    resume.receive(Missing(2, 5, "PRUNED"))
    resume.receive(units(6))
    assert resume.after == "e1.6"
    assert taken(resume) == [1, (2, 5), 6]


def test_a_gap_before_any_cursor_is_not_swallowed() -> None:
    resume = Resume(None)
    resume.receive(Missing(1, 3, "PRUNED"))
    assert taken(resume) == [(1, 3)]


def test_a_bus_that_starts_later_than_asked_is_told_as_a_gap() -> None:
    resume = Resume("e1.3")
    resume.receive(subscribed(6))
    resume.receive(units(7))
    assert taken(resume) == [(4, 6), 7]


def test_a_fork_at_the_cursor_goes_on_in_the_new_epoch() -> None:
    resume = Resume("e1.3")
    resume.receive(subscribed(3, epoch="e2"))
    assert resume.cursor == "e2.3"
    resume.receive(units(4, epoch="e2"))
    assert (taken(resume), resume.cursor) == ([4], "e2.4")
