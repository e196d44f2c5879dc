"""Every odd cursor, and what it must come to: a place to begin after, or a code. For the bus and for each transport."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from hypothesis import strategies as st

from engram_bus.errors import CursorAhead, CursorInvalid, EpochChanged
from engram_bus.log.contract import Epoch


class CursorCase(NamedTuple):
    """`text` is what a client sends (None: nothing); it comes to units after `seq`, or to an error of `code`."""

    text: str | None
    seq: int | None
    code: str | None

    def __str__(self) -> str:
        return repr(self.text)[:40]


_WORDS = """
    . .. .1 1. e. -1 +1 -0 1_0 0x1 1e1 1,0 1; * null None NaN Infinity true now latest $ 007 e1.007
    0.0 1.0 1.1 a.b a.b.c a..1 unknown.0 unknown.1 E1.1 e1.-1 e1.+1 e1.1.1 e1.1. e1:1 e1/1 e1-1 %30 e1%2E1
    9223372036854775807 18446744073709551615 18446744073709551616
"""
_UNSEEN = ["", " ", " 1", "1 ", "1\n", "e1 .1", "e1.1 ", "\x001", "1\x00", "\u202e1", "\ufeff1"]
_FOREIGN_DIGITS = ["\u0663", "\uff11", "\u00b2", "1\u0663", "e1.\u0663", "e1.\u00b2", "\u00e9.1", "\u65e5\u672c.1"]
_LONG = ["0" * 20, "0" * 21, "9" * 19, "9" * 20, "9" * 21, "1" * 5_000, "e" * 5_000 + ".1", "e1." + "9" * 20]
ODD = [*_WORDS.split(), *_UNSEEN, *_FOREIGN_DIGITS, *_LONG]


def odd_cursors(epochs: Sequence[Epoch], head: int) -> list[CursorCase]:
    """All of them for a log of this history: the fixed ones, and those that lie about its edges."""
    texts: list[str | None] = [None, *ODD]
    for seq in sorted({0, 1, head - 1, head, head + 1, 2 * head + 10}):
        texts += [str(seq), f"unknown.{seq}"]
    for epoch in epochs:
        for seq in sorted({0, 1, epoch.first_seq - 1, epoch.first_seq, head, head + 1}):
            texts += [f"{epoch.name}.{seq}", f"{epoch.name.upper()}.{seq}", f"{epoch.name}.{epoch.name}.{seq}"]
    for epoch in epochs[1:]:
        texts += [f"{known.name}.{epoch.first_seq + step}" for known in epochs for step in (-2, -1, 0, 1)]
    return [_case(text, epochs, head) for text in dict.fromkeys(texts)]


def any_cursor(epochs: Sequence[Epoch], head: int) -> st.SearchStrategy[str]:
    """Text that is, or nearly is, a cursor."""
    names = st.sampled_from([epoch.name for epoch in epochs] + ["unknown", "", "."]) | st.text(max_size=3)
    seqs = st.integers(0, 2 * head + 2).map(str) | st.integers().map(str) | st.text(max_size=3)
    return st.builds(lambda name, dot, seq: name + dot + seq, names, st.sampled_from([".", ".", "", ".."]), seqs) | seqs


def _case(text: str | None, epochs: Sequence[Epoch], head: int) -> CursorCase:
    outcome = expected(text, epochs, head)
    return CursorCase(text, outcome, None) if isinstance(outcome, int) else CursorCase(text, None, outcome)


def expected(text: str | None, epochs: Sequence[Epoch], head: int) -> int | str:
    """The rule, spelled out: the seq to begin after, or the code of the error."""
    if text is None:
        return head
    shape = re.fullmatch(r"(?:(.+)\.)?([0-9]{1,20})", text, re.DOTALL)
    if shape is None:
        return CursorInvalid.code
    name, seq = shape.group(1), int(shape.group(2))
    ends = {known.name: later.first_seq - 1 for known, later in pairwise(epochs)}
    if name is not None and name != epochs[-1].name and not (name in ends and seq <= ends[name]):
        return EpochChanged.code
    return seq if seq <= head else CursorAhead.code
