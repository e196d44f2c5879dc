"""The parser reads what the HTML standard says, wherever the chunks are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_client.errors import EngramConnectionError
from engram_client.sse import Event, EventParser

STREAM = (
    b"\xef\xbb\xbfretry: 1000\r\n"
    b"event: subscribed\r\nid: e1.0\r\ndata: {}\r\n\r\n"
    b": a comment\n\n"
    b"id: e1.1\ndata: first\ndata:second\ndata\n\n"
    b"event: nothing to tell\n\n"
    b"id: e1.\0\ndata: \xc3\xa9\xe2\x80\xa8 one line\r\r"
    b"id: e1.3\rdata:  kept space\r\n\n"
    b"data: cut off"
)
EVENTS = [
    Event("subscribed", "{}", "e1.0"),
    Event("", "first\nsecond\n", "e1.1"),
    Event("", "\u00e9\u2028 one line", "e1.1"),
    Event("", " kept space", "e1.3"),
]


def parsed(chunks: list[bytes]) -> list[Event]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_one_chunk() -> None:
    assert parsed([STREAM]) == EVENTS


def test_byte_by_byte() -> None:
    assert parsed([STREAM[at : at + 1] for at in range(len(STREAM))]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM))))
def test_cut_anywhere(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert parsed([STREAM[start:end] for start, end in pairwise(edges)]) == EVENTS


@given(st.binary())
def test_noise_is_no_error(noise: bytes) -> None:
    parsed([noise])


@pytest.mark.parametrize("chunk", [b"x" * 1024, b"data: " + b"x" * 1024 + b"\n"])
def test_an_event_without_end_is_an_error(chunk: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engram_client.sse.SSE_EVENT_BYTES_MAX", 10_000)
    with pytest.raises(EngramConnectionError, match="more than"):
        parsed([chunk] * 20)
