"""Which bytes of a stream are a whole message, and where every other frame ends: held to the library's own reader."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from engram_bus.api.edge.frames import FrameEnd, whole_message

DATA = [Opcode.TEXT, Opcode.BINARY]


def _frame(opcode: Opcode, body: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, body, fin=fin).serialize(mask=True)


@pytest.mark.parametrize("size_bytes", [0, 1, 125, 126, 127, 300, 65_535])
@pytest.mark.parametrize("opcode", DATA)
def test_a_message_of_one_frame_is_read(opcode: Opcode, size_bytes: int) -> None:
    body = bytes(index % 251 for index in range(size_bytes))
    frame = _frame(opcode, body)
    assert whole_message(frame, 0) == (body, len(frame))
    assert whole_message(b"before" + frame + b"after", 6) == (body, 6 + len(frame))


def test_a_long_message_is_not_read_here() -> None:
    assert whole_message(_frame(Opcode.TEXT, bytes(65_536)), 0) is None


@pytest.mark.parametrize("body", [b"", b"{}", bytes(300)])
def test_a_message_that_is_cut_is_not_read(body: bytes) -> None:
    frame = _frame(Opcode.BINARY, body)
    assert [whole_message(frame[:size], 0) for size in range(len(frame))] == [None] * len(frame)


@pytest.mark.parametrize("frame", [
    _frame(Opcode.PING, b"1"),
    _frame(Opcode.PONG, b""),
    _frame(Opcode.CLOSE, b"\x03\xe8"),
    _frame(Opcode.TEXT, b"half", fin=False),
    _frame(Opcode.CONT, b"half"),
    b"\xc1\x80\x00\x00\x00\x00",
    b"\x81\x05hello world",
    b"\x81\x7e\x00\x05hello world",
])  # fmt: skip
def test_what_is_no_plain_message_is_not_read(frame: bytes) -> None:
    assert whole_message(frame, 0) is None


@given(
    st.lists(st.tuples(st.sampled_from(DATA), st.sampled_from([0, 5, 125, 126, 65_536]), st.booleans()), max_size=5),
    st.lists(st.sampled_from([1, 2, 3, 9, 14, 130, 70_000]), min_size=2).filter(lambda pieces: max(pieces) > 100),
)
def test_frames_end_where_they_end_however_they_are_cut(
    frames: list[tuple[Opcode, int, bool]], pieces: list[int]
) -> None:
    written = [Frame(opcode, bytes(size), fin=True).serialize(mask=masked) for opcode, size, masked in frames]
    stream, read, frame_end = b"".join(written), [b""], FrameEnd()
    turn = 0
    while stream:
        size = pieces[turn % len(pieces)]
        piece, stream, turn = stream[:size], stream[size:], turn + 1
        at = 0
        while at < len(piece):
            end = frame_end.find(piece, at)
            read[-1] += piece[at:end]
            if frame_end.is_reached:
                read.append(b"")
            at = end
    assert read == [*written, b""]
