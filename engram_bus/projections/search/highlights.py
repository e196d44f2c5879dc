"""Where a text says what was looked for: the part of it that says most, with the places of the words."""

import re
from collections.abc import Callable, Collection

import msgspec

from engram_bus.projections.search.analysis import identifiers

FRAGMENT_CHARACTERS_MAX = 240
_WORD = re.compile(r"\w+")
_WORDS_MAX = 5_000
"""Words of a text that are looked at: about 30 KB of it."""


class Highlight(msgspec.Struct, frozen=True):
    """A part of a unit's text; `spans` are [first, end) of what matched, in characters of the part."""

    text: str
    spans: list[tuple[int, int]]


def highlight(
    text: str, wanted: Collection[str], names: Collection[str], stem: Callable[[str], list[str]]
) -> Highlight | None:
    """The densest part; None where the text holds nothing of it. `stem` gives the index's form of a word."""
    known: dict[str, bool] = {}
    spans = []
    for count, match in enumerate(_WORD.finditer(text)):
        if count == _WORDS_MAX:
            break
        word = match.group()
        if word not in known:
            known[word] = any(one in wanted for one in stem(word)) or any(one in names for one in identifiers(word))
        if known[word]:
            spans.append(match.span())
    if not spans:
        return None
    first, last = _densest(spans)
    margin = max(0, FRAGMENT_CHARACTERS_MAX - (spans[last][1] - spans[first][0])) // 2
    begin = max(0, spans[first][0] - margin)
    end = min(len(text), begin + FRAGMENT_CHARACTERS_MAX)
    inside = [(left - begin, right - begin) for left, right in spans if left >= begin and right <= end]
    return Highlight(text[begin:end], inside)


def _densest(spans: list[tuple[int, int]]) -> tuple[int, int]:
    """The first and last of the most spans that fit one fragment."""
    best, first = (0, 0), 0
    for last in range(len(spans)):
        while spans[last][1] - spans[first][0] > FRAGMENT_CHARACTERS_MAX and first < last:
            first += 1
        if last - first > best[1] - best[0]:
            best = first, last
    return best
