"""A model of the sentence-transformers library, run on this machine."""

import importlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from engram_bus.projections.search.embedders.contract import (
    EmbedderUnavailable,
    Vectors,
    seen,
    unit_rows,
)

TEXT_CHARACTERS_MAX = 8_000
"""Of a text, its beginning: such models read 256 to 8,192 tokens."""
TEXTS_AT_ONCE = 32


class SentenceTransformersEmbedder:
    """Loads its model with the first texts: seconds, or minutes where it has to come over the network."""

    is_at_hand = False

    def __init__(self, model: str, *, name: str) -> None:
        self.name = name
        self.dimension: int | None = None
        self._path = model
        self._model: Any = None
        self._loading = threading.Lock()

    def embed(self, texts: Sequence[str]) -> Vectors:
        model = self._loaded()
        places = seen(texts)
        given = [texts[place][:TEXT_CHARACTERS_MAX].encode("utf-8", "replace").decode() for place in places]
        try:
            found = model.encode(
                given or ["a"], batch_size=TEXTS_AT_ONCE, convert_to_numpy=True, show_progress_bar=False
            )
        except (RuntimeError, MemoryError) as exc:  # What torch raises, of memory above all.
            raise EmbedderUnavailable(f"the model {self._path} failed: {exc}") from exc
        rows = unit_rows(found, count=len(places) or 1, dimension=self.dimension)
        self.dimension = rows.shape[1]
        vectors = np.zeros((len(texts), rows.shape[1]), np.float32)
        if places:
            vectors[places] = rows
        return vectors

    def close(self) -> None:
        self._model = None

    def _loaded(self) -> Any:
        with self._loading:
            if self._model is None:
                try:
                    library = importlib.import_module("sentence_transformers")  # Optional, and seconds.
                    self._model = library.SentenceTransformer(self._path)
                except Exception as exc:  # What the hub, the disk and torch raise, in many versions.
                    raise EmbedderUnavailable(f"{self._path} cannot be loaded: {type(exc).__name__}: {exc}") from exc
            return self._model
