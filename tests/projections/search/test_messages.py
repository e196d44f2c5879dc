"""What goes over the line arrives whole and in order, in whatever pieces it comes."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.projections.search.messages import (
    Answered,
    Ask,
    Behind,
    Failed,
    Ring,
    State,
    decode_to_bus,
    decode_to_search,
    packed,
    unpacked,
)
from engram_bus.projections.search.values import Asked, Found, Hit, Leg
from tests.projections.search.worlds import SCOPES

FOUND = Found([Hit(7, 1.5, Leg(1, 2.0), None, 1.0, 0.5, None)], 1, 9, 8, {"context": {"plan": 1}})
TO_SEARCH = st.builds(Ring, st.integers(0, 2**62)) | st.builds(
    Ask,
    st.integers(0, 2**62),
    st.integers(0, 2**62),
    st.builds(Asked, query=st.text(), scope=SCOPES),
    st.floats(allow_nan=False),
)
TO_BUS = (
    st.builds(State, st.integers(0, 99), st.integers(0, 99))
    | st.builds(Behind, st.integers(0, 99), st.integers(0, 99))
    | st.builds(Failed, st.integers(0, 99), st.text())
    | st.builds(Answered, st.integers(0, 99), st.just(FOUND))
)


def arrived(raw: bytes, cuts: list[int]) -> list[bytes]:
    received, messages, at = bytearray(), [], 0
    for cut in (*sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)):
        received += raw[at:cut]
        at = cut
        messages += unpacked(received)
    assert not received
    return messages


@given(st.lists(TO_SEARCH, max_size=5), st.lists(st.integers(0, 2_000)))
def test_what_the_bus_says_arrives(messages: list[Ring | Ask], cuts: list[int]) -> None:
    raw = b"".join(packed(message) for message in messages)
    assert [decode_to_search(body) for body in arrived(raw, cuts)] == messages


@given(st.lists(TO_BUS, max_size=5), st.lists(st.integers(0, 2_000)))
def test_what_search_says_arrives(messages: list[State | Answered | Behind | Failed], cuts: list[int]) -> None:
    raw = b"".join(packed(message) for message in messages)
    assert [decode_to_bus(body) for body in arrived(raw, cuts)] == messages


def test_a_message_of_any_size_arrives() -> None:
    ask = Ask(1, 2, msgspec.structs.replace(Asked(query=""), query="x" * 2**20), until=3.0)
    assert [decode_to_search(body) for body in arrived(packed(ask), [1, 2, 3, 70_000])] == [ask]
