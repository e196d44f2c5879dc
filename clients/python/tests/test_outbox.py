"""What is put in is sent in order, and sent again in order until it is settled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_client.limits import WINDOW_BYTES_MAX
from engram_client.outbox import Outbox


def filled(count: int, window: int = 100) -> Outbox:
    outbox = Outbox(window)
    for _ in range(count):
        frame_id = outbox.next_id()
        outbox.put(frame_id, b"%d" % frame_id)
    return outbox


def sent(outbox: Outbox) -> list[bytes]:
    return [frame for frame in iter(outbox.take, None) if frame is not None]


def test_frames_leave_in_order_and_once() -> None:
    outbox = filled(3)
    assert sent(outbox) == [b"1", b"2", b"3"]
    assert sent(outbox) == []


def test_a_new_connection_gets_all_that_is_not_settled_in_order() -> None:
    outbox = filled(4)
    sent(outbox)
    outbox.settle(2)
    outbox.reconnected()
    assert sent(outbox) == [b"1", b"3", b"4"]


def test_a_frame_that_is_settled_before_it_is_sent_again_stays_here() -> None:
    outbox = filled(2)
    outbox.settle(1)
    assert sent(outbox) == [b"2"]


def test_a_second_answer_is_nobodys() -> None:
    outbox = filled(1)
    assert outbox.settle(1)
    assert not outbox.settle(1)


def test_the_window_counts_units_and_bytes() -> None:
    assert not filled(2, window=2).has_room
    outbox = Outbox(100)
    outbox.put(outbox.next_id(), bytes(WINDOW_BYTES_MAX))
    assert not outbox.has_room
    outbox.settle(1)
    assert outbox.has_room


def test_giving_up_names_what_is_left() -> None:
    outbox = filled(3)
    outbox.settle(2)
    assert outbox.drain() == [1, 3]
    assert (len(outbox), outbox.has_room, sent(outbox)) == (0, True, [])


def test_a_window_holds_one_at_least() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Outbox(0)


@given(st.lists(st.sampled_from(["put", "send", "answer", "cut"]), max_size=80))
def test_whatever_is_cut_the_bus_sees_first_sendings_in_order(steps: list[str]) -> None:
    outbox, wire, seen = filled(0), list[bytes](), list[bytes]()
    for step in steps:
        match step:
            case "put":
                outbox.put(frame_id := outbox.next_id(), b"%d" % frame_id)
            case "send" if (frame := outbox.take()) is not None:
                wire.append(frame)
            case "answer" if wire:
                seen.append(wire.pop(0))
                outbox.settle(int(seen[-1]))
            case "cut":  # the bus may have seen what was on the wire; the answers are lost
                seen += wire
                wire = []
                outbox.reconnected()
            case _:
                pass
    seen += wire + sent(outbox)
    firsts = list(dict.fromkeys(seen))
    assert firsts == [b"%d" % frame_id for frame_id in range(1, len(firsts) + 1)]
    assert set(firsts) >= {b"%d" % frame_id for frame_id in outbox.drain()}
