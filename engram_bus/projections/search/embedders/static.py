"""The small static model that ships with the package."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engram_bus.projections.search.embedders.contract import Vectors

SHIPPED = Path(__file__).parent.parent / "model"


class StaticEmbedder:
    """A bag of word pieces: the sum of a row for each, scaled to length 1. English, no network, about 90 us a text."""

    is_at_hand = True

    def __init__(self, path: Path = SHIPPED) -> None:
        self._rows = _tensor(path / "model.safetensors", "embeddings")
        self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._unknown = self._tokenizer.token_to_id("[UNK]")
        self.name = f"static-minilm-{self._rows.shape[1]}-1"

    @property
    def dimension(self) -> int:
        return int(self._rows.shape[1])

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for row, found in enumerate(self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)):
            pieces = [piece for piece in found.ids if piece != self._unknown]
            if pieces:
                vector = self._rows[pieces].sum(axis=0, dtype=np.float32)
                vectors[row] = vector / (np.linalg.norm(vector) or 1.0)
        return vectors

    def close(self) -> None:
        """Nothing is held."""


def _tensor(path: Path, name: str) -> NDArray[np.int8]:
    """One int8 tensor of a safetensors file: a JSON header of known size, then the bytes."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    header_bytes = int.from_bytes(raw[:8].tobytes(), "little")
    about = json.loads(raw[8 : 8 + header_bytes].tobytes())[name]
    assert about["dtype"] == "I8", about
    first, last = (8 + header_bytes + offset for offset in about["data_offsets"])
    return raw[first:last].view(np.int8).reshape(about["shape"])
