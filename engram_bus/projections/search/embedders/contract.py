"""What every embedder promises, and how it says that it cannot keep it.

EmbedderError
├── EmbedderUnavailable  out of reach or busy: the same texts may do later
└── EmbedderRefused      it answered, and asking again would not help: another key, model or address is needed
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


class EmbedderError(Exception):
    """No vectors for these texts."""


class EmbedderUnavailable(EmbedderError):
    """Out of reach, busy or still being loaded."""


class EmbedderRefused(EmbedderError):
    """What it answered cannot be used: a refusal, not vectors at all, or vectors of another dimension than before."""


class Embedder(Protocol):
    """Gives texts a place where near means alike. The same name always gives the same vectors.

    Who implements it keeps: rows in the order of the texts; a text's row does not depend on the others; any Unicode of
    any length is a text, of which only the beginning may count; safe to be called by two threads at once.
    """

    @property
    def name(self) -> str:
        """Which model, with its version, fit for a file name: an index belongs to one."""

    @property
    def dimension(self) -> int | None:
        """Numbers per vector; None until a model that is elsewhere has given the first."""

    @property
    def is_at_hand(self) -> bool:
        """Whether it answers in microseconds and never fails: a unit then gets its vector as it is taken in."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One row per text, of length 1, or all zero for a text the model cannot see. Shape (len(texts), dimension).

        Raises EmbedderError, unless it is at hand.
        """

    def close(self) -> None:
        """Let go of what it holds. It is not asked again."""


def seen(texts: Sequence[str]) -> list[int]:
    """The places of the texts that have something to embed: many models refuse an empty text, or give it a meaning."""
    return [place for place, text in enumerate(texts) if text.strip()]


def unit_rows(vectors: Any, *, count: int, dimension: int | None) -> Vectors:
    """What a model gave, checked and scaled to length 1. Raises EmbedderRefused."""
    try:
        rows = np.asarray(vectors, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as exc:
        raise EmbedderRefused("vectors of different lengths were given") from exc
    if rows.ndim != 2 or len(rows) != count or rows.shape[1] == 0:
        raise EmbedderRefused(f"{count} texts were given, and vectors of shape {rows.shape} came")
    if dimension is not None and rows.shape[1] != dimension:
        raise EmbedderRefused(f"vectors of {rows.shape[1]} numbers came where {dimension} are usual: another model?")
    with np.errstate(over="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    if not np.isfinite(lengths).all():
        raise EmbedderRefused("a vector with a number that is not finite came")
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0)[:, np.newaxis], dtype=np.float32)
