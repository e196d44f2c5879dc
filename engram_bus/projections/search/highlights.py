"""Where a text says what was looked for: the part of it that says most, with the places of the words."""

import re
from collections.abc import Callable, Collection, Iterator

import msgspec

from engram_bus.projections.search.analysis import UNSPACED_RUN, identifiers

FRAGMENT_CHARACTERS_MAX = 240
_WORD = re.compile(r"\w+")
_SEPARATOR = re.compile(r"\W+")
_RUN_CHARACTERS_MAX = 2_000
"""Of a word, how far into it scripts without spaces are looked for."""


class Highlight(msgspec.Struct, frozen=True):
    """A part of a unit's text; `spans` are [first, end) of what matched, in characters of the part."""

    text: str
    spans: list[tuple[int, int]]


class Sought(dict[str, bool]):
    """Whether a word is one that was looked for, each thought about once. `stem` gives the index's form of a word,
    `written` what of it may begin as one of `starts`."""

    def __init__(
        self,
        words: Collection[str],
        names: Collection[str],
        stem: Callable[[str], list[str]],
        starts: Collection[str] = (),
        written: Callable[[str], Collection[str]] = lambda word: (word,),
    ) -> None:
        super().__init__()
        self._words = words
        self._names = names
        self._stem = stem
        # Words are marked, not whole paths.
        self._starts = tuple(last for start in starts if (last := _SEPARATOR.split(start)[-1]))
        self._written = written

    def __missing__(self, word: str) -> bool:
        is_wanted = (
            any(one in self._words for one in self._stem(word))
            or any(one in self._names for one in identifiers(word))
            or (bool(self._starts) and any(one.startswith(self._starts) for one in self._written(word)))
        )
        self[word] = is_wanted
        return is_wanted


def highlight(text: str, sought: Sought) -> Highlight | None:
    """The densest part; None where the text holds nothing of it."""
    if UNSPACED_RUN.search(text) is None:
        words = _WORD.finditer(text)
        spans = [match.span() for match in words if sought[match.group()]]
    else:
        spans = []
        for first, end in _words(text):
            if sought[text[first:end]]:
                if spans and first < spans[-1][1]:
                    spans[-1] = spans[-1][0], end
                else:
                    spans.append((first, end))
    return _part(text, spans) if spans else None


def _words(text: str) -> Iterator[tuple[int, int]]:
    """From where to where each word goes. Of scripts without spaces every one and every two characters may be one."""
    for match in _WORD.finditer(text):
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
    while begin < spans[first][0] and _is_inside(text, begin):
        begin += 1
    end = min(len(text), begin + FRAGMENT_CHARACTERS_MAX)
    while end > spans[last][1] and _is_inside(text, end):
        end -= 1
    inside = [(left - begin, min(right, end) - begin) for left, right in spans if begin <= left < end]
    return Highlight(text[begin:end], inside)


def _is_inside(text: str, at: int) -> bool:
    """Whether a word goes on there; of scripts without spaces none does."""
    return 0 < at < len(text) and all(
        (one.isalnum() or one == "_") and UNSPACED_RUN.match(one) is None for one in text[at - 1 : at + 1]
    )


def _densest(spans: list[tuple[int, int]]) -> tuple[int, int]:
    """The first and last of the most spans that fit one fragment."""
    best, first = (0, 0), 0
    for last in range(len(spans)):
        while spans[last][1] - spans[first][0] > FRAGMENT_CHARACTERS_MAX and first < last:
            first += 1
        if last - first > best[1] - best[0]:
            best = first, last
    return best
