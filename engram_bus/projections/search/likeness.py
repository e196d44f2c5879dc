"""Which units say nearly the same: they mean the same, and share nearly all of their pairs of words."""

import re
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from engram_bus.projections.search.analysis import words

COSINE = 0.9
"""Of vectors, below which texts are not compared: it costs little to know, and what shares most of its words lies
above. By itself it is not enough: two parts of one program, or "step 41 done" and "step 42 done", lie above too."""
RESEMBLANCE = 0.8
"""Of the pairs of words in either text, the share that is in both (Broder, On the resemblance and containment of
documents, 1997): a word changed in twenty, or a line added to a page; not a number in a short sentence."""
_CHARACTERS_MAX = 2_000
"""Of a text whose words are compared: about 300 of them."""
_WORD = re.compile(r"\w+")

Pairs = frozenset[tuple[str, str]]


class Likeness:
    """Compares units by their texts and their vectors (zeros: none), row n of the n-th text."""

    def __init__(self, texts: Mapping[int, str], vectors: NDArray[np.int8]) -> None:
        self._texts = {seq: " ".join(text.split()) for seq, text in texts.items()}
        self._seqs = list(texts)
        self._place = {seq: place for place, seq in enumerate(self._seqs)}
        self._near = _near(vectors)
        self._pairs: dict[int, Pairs] = {}
        self._equal: dict[str, list[int]] = {}
        for seq, text in self._texts.items():
            self._equal.setdefault(text, []).append(seq)

    def alike(self, one: int, others: Collection[int]) -> set[int]:
        """Which of the others say what this one says, or nearly. What says nothing is like nothing."""
        if not self._texts[one]:
            return set()
        near = {self._seqs[place] for place in np.flatnonzero(self._near[self._place[one]]).tolist()}
        resembling = {seq for seq in near.intersection(others) if resembles(self._pairs_of(one), self._pairs_of(seq))}
        return resembling | set(self._equal[self._texts[one]]).intersection(others)

    def _pairs_of(self, seq: int) -> Pairs:
        if seq not in self._pairs:
            self._pairs[seq] = pairs_of(self._texts[seq])
        return self._pairs[seq]


def pairs_of(text: str) -> Pairs:
    """The neighbouring words of a text, its first word with nothing before it."""
    said = _WORD.findall(words(text[:_CHARACTERS_MAX]).lower())
    return frozenset(zip(["", *said], said, strict=False))


def resembles(one: Pairs, other: Pairs) -> bool:
    """Whether of all that is in either, enough is in both. Without words nothing is."""
    if not one or min(len(one), len(other)) < RESEMBLANCE * max(len(one), len(other)):
        return False  # Even if all of the smaller were in the larger.
    both = len(one & other)
    return both >= RESEMBLANCE * (len(one) + len(other) - both)


def _near(vectors: NDArray[np.int8]) -> NDArray[np.bool_]:
    # Products of whole numbers, exact in 64 bits: a cosine does not depend on which rows are multiplied together.
    wide = vectors.astype(np.float64)
    products = wide @ wide.T
    lengths = np.sqrt(np.diag(products))
    # (Of two without a vector the product is 0, and so is what it has to reach: their words alone tell.)
    is_near = products >= COSINE * np.outer(lengths, lengths)
    return np.asarray(is_near & ((lengths == 0) == (lengths == 0)[:, None]))
