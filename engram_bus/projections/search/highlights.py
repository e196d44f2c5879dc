"""Where a text says what was looked for: the part of it that says most, with the places of the words."""

import re
from collections.abc import Callable, Collection, Iterator

import msgspec

from engram_bus.projections.search.analysis import UNSPACED_RUN, identifiers

FRAGMENT_CHARACTERS_MAX = 240
_WORD = re.compile(r"\w+")
_WORDS_MAX = 5_000
"""Words of a text that are looked at: about 30 KB of it."""
_RUN_CHARACTERS_MAX = 2_000
"""Of a word, how far into it scripts without spaces are looked for."""


class Highlight(msgspec.Struct, frozen=True):
    """A part of a unit's text; `spans` are [first, end) of what matched, in characters of the part."""

    text: str
    spans: list[tuple[int, int]]


def highlight(
    text: str, wanted: Collection[str], names: Collection[str], stem: Callable[[str], list[str]]
) -> Highlight | None:
    """The densest part; None where the text holds nothing of it. `stem` gives the index's form of a word."""
    known: dict[str, bool] = {}
    spans: list[tuple[int, int]] = []
    for first, end in _words(text):
        word = text[first:end]
        if word not in known:
            known[word] = any(one in wanted for one in stem(word)) or any(one in names for one in identifiers(word))
        if known[word]:
            if spans and first < spans[-1][1]:
                spans[-1] = spans[-1][0], end
            else:
                spans.append((first, end))
    return _part(text, spans) if spans else None


def _words(text: str) -> Iterator[tuple[int, int]]:
    """From where to where each word goes. Of scripts without spaces every one and every two characters may be one."""
    for count, match in enumerate(_WORD.finditer(text)):
        if count == _WORDS_MAX:
            return
        at = match.start()
        for run in UNSPACED_RUN.finditer(text, match.start(), min(match.end(), match.start() + _RUN_CHARACTERS_MAX)):
            if at < run.start():
                yield at, run.start()
            for place in range(*run.span()):
                yield place, place + 1
                if place + 1 < run.end():
                    yield place, place + 2
            at = run.end()
        if at < match.end():
            yield at, match.end()


def _part(text: str, spans: list[tuple[int, int]]) -> Highlight:
    first, last = _densest(spans)
    margin = max(0, FRAGMENT_CHARACTERS_MAX - (spans[last][1] - spans[first][0])) // 2
    begin = max(0, spans[first][0] - margin)
    end = min(len(text), begin + FRAGMENT_CHARACTERS_MAX)
    inside = [(left - begin, min(right, end) - begin) for left, right in spans if begin <= left < end]
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
