"""A bit for every number of a vector: how many bits differ tells, for little, which rows are worth comparing.

Numbers are shuffled, flipped and mixed first (a Hadamard transform), so that each bit tells of many numbers, and all
bits tell alike. A row's sketch depends on the row alone, and is made of whole numbers: however and whenever an index
was made, the same rows are found.
"""

from hashlib import shake_256

import numpy as np
from numpy.typing import NDArray

WORD_BITS = 64
MIXED_NUMBERS = 256
"""At most so many into one bit: their sum fits 16 bits."""
MIXED_ROWS = 256
"""Mixed at a time: what the processor's cache holds."""
COMPARED_WORDS = 131_072
"""Compared at a time, for the same reason."""
SAMPLED_ROWS = 64
"""One of so many tells about how far the nearest are."""

Places = NDArray[np.intp]
Vectors = NDArray[np.int8]
Words = NDArray[np.uint64]
Mixed = NDArray[np.int16]

assert MIXED_NUMBERS * 127 < 2**15, "sums are whole numbers of 16 bits"


class Sketches:
    """Of rows that are added in their order. They are not kept: a million of 256 numbers take a second to make."""

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._dimension = dimension
        self._numbers = -(-dimension // WORD_BITS) * WORD_BITS
        # Digests, not numpy's random numbers: those may become others with a later version.
        drawn = np.frombuffer(shake_256(b"order").digest(8 * self._numbers), "<u8")
        self._order = np.argsort(drawn, kind="stable")
        flips = np.frombuffer(shake_256(b"signs").digest(self._numbers), np.uint8) & 1
        self._signs = (1 - 2 * flips.astype(np.int16))[:, None]
        self._words: Words = np.empty((self._numbers // WORD_BITS, 1_024), np.uint64)

    def add(self, vectors: Vectors) -> None:
        """Those of the next rows."""
        end = self.count + len(vectors)
        if end > self._words.shape[1]:
            more = np.empty((len(self._words), end + end // 4), np.uint64)
            more[:, : self.count] = self._words[:, : self.count]
            self._words = more
        for first in range(0, len(vectors), MIXED_ROWS):
            part = vectors[first : first + MIXED_ROWS]
            self._words[:, self.count : self.count + len(part)] = self._words_of(self._mixed(part) > 0)
            self.count += len(part)

    def nearest(self, vector: Vectors, places: Places | None, limit: int) -> Places:
        """Those whose bits differ least, in their order; of equally near ones the newest. Of these places (None: of all
        rows), which are at least so many."""
        distances = self._distances(self._mixed(vector[None]), places)
        near = _about(distances, limit)
        cut = np.partition(distances[near], limit - 1)[limit - 1]
        within = near[distances[near] <= cut]
        oldest = np.flatnonzero(distances[within] == cut)[: len(within) - limit]
        nearest = np.delete(within, oldest)
        return nearest if places is None else places[nearest]

    def _distances(self, query: Mixed, places: Places | None) -> NDArray[np.uint16]:
        """Only where the query's number is one of its larger half: these bits say more by themselves than with the
        others, which would count for as much."""
        sketch, larger = self._words_of(query > 0), self._words_of(np.abs(query) >= np.median(np.abs(query)))
        count = self.count if places is None else len(places)
        distances = np.empty(count, np.uint16)
        step = COMPARED_WORDS // len(self._words)
        for first in range(0, count, step):
            last = min(first + step, count)
            differing = self._part(places, first, last) ^ sketch
            differing &= larger
            np.bitwise_count(differing).sum(axis=0, dtype=np.uint16, out=distances[first:last])
        return distances

    def _part(self, places: Places | None, first: int, last: int) -> Words:
        """Picked one by one only where they do not lie side by side, as those of a time do."""
        if places is None:
            return self._words[:, first:last]
        if places[last - 1] - places[first] == last - 1 - first:
            return self._words[:, places[first] : places[last - 1] + 1]
        return self._words.take(places[first:last], axis=1)

    def _mixed(self, vectors: Vectors) -> Mixed:
        """A column of numbers for each."""
        numbers = np.zeros((self._numbers, len(vectors)), np.int16)
        numbers[: self._dimension] = vectors.T
        mixed: Mixed = numbers[self._order] * self._signs
        half = 1
        while 2 * half <= MIXED_NUMBERS and self._numbers % (2 * half) == 0:
            pairs = mixed.reshape(-1, 2, half, len(vectors))
            pairs[:, 0], pairs[:, 1] = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
            half *= 2
        return mixed

    def _words_of(self, bits: NDArray[np.bool_]) -> Words:
        """A column of words for each column of bits."""
        octets = np.packbits(bits, axis=0).reshape(len(self._words), WORD_BITS // 8, -1)
        words: Words = np.ascontiguousarray(octets.transpose(0, 2, 1)).view(np.uint64)[:, :, 0]
        return words


def _about(distances: NDArray[np.uint16], count: int) -> Places:
    """The places of the least, so many or more: a sample tells where about they end."""
    sample = distances[::SAMPLED_ROWS]
    rank = min(len(sample) - 1, count * 5 // 4 // SAMPLED_ROWS)
    near = np.flatnonzero(distances <= np.partition(sample, rank)[rank])
    return near if len(near) >= count else np.arange(len(distances))
