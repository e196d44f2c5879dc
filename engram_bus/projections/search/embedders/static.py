"""The small static model that ships with the package."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engram_bus.projections.search.embedders.contract import Vectors

SHIPPED = Path(__file__).parent.parent / "model"
_WORD = re.compile(r"[^ \t\r\n]+")
"""The tokenizer cuts at these, whatever stands there: a word has the same pieces in every text."""
_ATOM = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9]")
"""And in what is printable ASCII, around each sign."""
_ADDED = re.compile(r"\[(PAD|UNK)\]")
"""But for its own tokens."""
_KEPT_CHARACTERS = 2_000_000
"""Of words whose pieces are remembered, about 20 MB: nearly all of a text, and what cuts them is most of the work."""
_WORD_CHARACTERS = 16
"""What a word counts beside its own."""


class StaticEmbedder:
    """A bag of word pieces: the sum of a row for each, scaled to length 1. English, no network, about 90 us a text."""

    is_at_hand = True

    def __init__(self, path: Path = SHIPPED) -> None:
        self._rows = _tensor(path / "model.safetensors", "embeddings")
        self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._unknown = self._tokenizer.token_to_id("[UNK]")
        self._known: dict[str, list[int]] = {}
        self._kept_characters = 0
        self.name = f"static-minilm-{self._rows.shape[1]}-1"

    @property
    def dimension(self) -> int:
        return int(self._rows.shape[1])

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for row, pieces in enumerate(self._pieces([_WORD.findall(text) for text in texts])):
            if pieces:
                vector = self._rows[pieces].sum(axis=0, dtype=np.float32)
                vectors[row] = vector / (np.linalg.norm(vector) or 1.0)
        return vectors

    def _pieces(self, texts: Sequence[Sequence[str]]) -> Iterator[list[int]]:
        """Of each text's words."""
        if self._kept_characters > _KEPT_CHARACTERS:
            self._known, self._kept_characters = {}, 0  # What is common is soon back.
        known = self._known  # Which another thread may do meanwhile.
        for word in set(chain.from_iterable(texts)).difference(known):
            known[word] = self._cut(word, known)
        return (list(chain.from_iterable(map(known.__getitem__, words))) for words in texts)

    def _cut(self, word: str, known: dict[str, list[int]]) -> list[int]:
        """Where it can be taken apart, from what it consists of: that comes again more often."""
        self._kept_characters += len(word) + _WORD_CHARACTERS
        atoms = _ATOM.findall(word) if word.isascii() and word.isprintable() and not _ADDED.search(word) else [word]
        if len(atoms) > 1:
            return [
                piece for atom in atoms for piece in known.get(atom) or known.setdefault(atom, self._cut(atom, known))
            ]
        found = self._tokenizer.encode(word, add_special_tokens=False)
        return [piece for piece in found.ids if piece != self._unknown]

    def close(self) -> None:
        """Nothing is held."""


def _tensor(path: Path, name: str) -> NDArray[np.int8]:
    """One int8 tensor of a safetensors file: a JSON header of known size, then the bytes."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    header_bytes = int.from_bytes(raw[:8].tobytes(), "little")
    about = json.loads(raw[8 : 8 + header_bytes].tobytes())[name]
    assert about["dtype"] == "I8", about
    first, last = (8 + header_bytes + offset for offset in about["data_offsets"])
    return np.asarray(raw[first:last]).view(np.int8).reshape(about["shape"])
