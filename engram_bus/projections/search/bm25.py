"""BM25 as tantivy counts it, for units that its index does not hold yet, or holds with too much around them.

score = sum over terms of idf * tf * (1 + k1) / (tf + k1 * (1 - b + b * length / average length)), k1 = 1.2, b = 0.75,
idf = ln(1 + (N - n + 0.5) / (n + 0.5)) (Robertson, Zaragoza 2009; the sources of tantivy and Lucene), lengths rounded
down to what one byte tells.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from ctypes import CDLL, c_float
from itertools import chain
from math import log

import msgspec
from numpy import float32

NAME_WEIGHT = 0.3
"""Of a name beside a word: measured on SciFact (.6995 -> .7038) and dialogue (no change)."""
PATH_WEIGHT = 1.0
"""Of touching a path that is asked for, beside saying a word that is as rare: what changed a file before what speaks of
it. Measured on code (37 to 40 of 40 among the first five; 0.5: 39, more changes nothing)."""
_K1, _B, _1, _HALF = float32(1.2), float32(0.75), float32(1), float32(0.5)
_K1_AND_1 = _1 + _K1
_EXACT_LENGTHS = 40
_logf = CDLL(None).logf
"""The C library's, which tantivy takes: the logarithm of a double, rounded, is another one in 1 of 1,000."""
_logf.argtypes, _logf.restype = [c_float], c_float


Phrase = tuple[tuple[int, str], ...]
"""Words and their places, the first of them at 0."""


class Question(msgspec.Struct, frozen=True):
    """The words and names that are looked for, phrases that must be there, what may be the end of a path, and how words
    or names begin."""

    words: list[str]
    names: list[str]
    phrases: list[Phrase]
    paths: list[str] = []
    starts: list[str] = []


class Terms(msgspec.Struct, frozen=True):
    """The words and names of one text, each as often as it stands there, and all of them as they are written."""

    words: Counter[str]
    names: Counter[str]
    written: frozenset[str] = frozenset()

    def begins(self, start: str) -> bool:
        """Whether a word or name of it begins so."""
        return any(one.startswith(start) for one in self.written)


class Statistics(msgspec.Struct, frozen=True):
    """Of all texts: how many, how long together, and how many hold each term."""

    texts: int
    words: float
    names: float
    having_word: dict[str, int]
    having_name: dict[str, int]
    having_start: dict[str, int] = {}

    def with_more(self, question: Question, more: Sequence[Terms]) -> "Statistics":
        """With these texts among them."""
        return Statistics(
            self.texts + len(more),
            self.words + sum(one.words.total() for one in more),
            self.names + sum(one.names.total() for one in more),
            {word: self.having_word[word] + sum(word in one.words for one in more) for word in question.words},
            {name: self.having_name[name] + sum(name in one.names for one in more) for name in question.names},
            {start: self.having_start[start] + sum(one.begins(start) for one in more) for start in question.starts},
        )

    def without(self, others: "Statistics") -> "Statistics":
        """With these, which are among them, taken away."""
        return Statistics(
            self.texts - others.texts,
            self.words - others.words,
            self.names - others.names,
            {word: count - others.having_word[word] for word, count in self.having_word.items()},
            {name: count - others.having_name[name] for name, count in self.having_name.items()},
            {start: count - others.having_start[start] for start, count in self.having_start.items()},
        )


def holds(question: Question, terms: Terms) -> bool:
    """Whether anything that is looked for is there."""
    return (
        any(word in terms.words for word in question.words)
        or any(name in terms.names for name in question.names)
        or any(map(terms.begins, question.starts))
    )


def scores(question: Question, statistics: Statistics, texts: Sequence[Terms]) -> list[float]:
    """The score of each text; 0 for one that holds no term. To the last digit what tantivy makes of it: it counts in
    float32, and adds up in the order asked."""
    words = _Leg(question.words, statistics.having_word, statistics.texts, statistics.words, 1.0)
    names = _Leg(question.names, statistics.having_name, statistics.texts, statistics.names, NAME_WEIGHT)
    starts = [(start, float32(rarity(statistics.texts, statistics.having_start[start]))) for start in question.starts]
    return [
        float(
            sum(
                chain(
                    words.of(one.words),
                    names.of(one.names),
                    (weight for start, weight in starts if one.begins(start)),
                ),
                float32(0),
            )
        )
        for one in texts
    ]


class _Leg:
    """What the terms of one field weigh."""

    def __init__(
        self, asked: Sequence[str], having: dict[str, int], texts: int, all_terms: float, weight: float
    ) -> None:
        self._weights = {term: _idf(texts, having[term]) * _K1_AND_1 * float32(weight) for term in asked}
        # Where no text has any, as before the first commit, none is longer than usual.
        self._usual = float32(all_terms) / float32(texts) if all_terms else None

    def of(self, terms: Counter[str]) -> Iterator[float32]:
        """Of each term that is there, in the order asked."""
        found = [term for term in self._weights if term in terms]
        if found:
            length = self._length(terms.total())
            for term in found:
                count = float32(terms[term])
                yield self._weights[term] * (count / (count + length))

    def _length(self, total: int) -> float32:
        usual = _B if self._usual is None else _B * float32(told_length(total)) / self._usual
        return _K1 * (_1 - _B + usual)


def _idf(texts: int, having: int) -> float32:
    """The `rarity` that tantivy counts itself, in its digits."""
    return float32(_logf(_1 + (float32(texts - having) + _HALF) / (float32(having) + _HALF)))


def rarity(texts: int, having: int) -> float:
    """What a term weighs that so many of the texts hold."""
    return log(1 + (texts - having + 0.5) / (having + 0.5))


def told_length(length: int) -> int:
    """A length as one byte tells it: exact up to 40, then eight steps of 2, eight of 4, and so on, rounded down."""
    if length <= _EXACT_LENGTHS:
        return length
    first, step = _EXACT_LENGTHS, 2
    while length >= first + 8 * step:
        first, step = first + 8 * step, 2 * step
    return first + (length - first) // step * step
