"""Ollama's /api/embed."""

from collections.abc import Sequence

import msgspec


class _Answer(msgspec.Struct, frozen=True):
    embeddings: list[list[float]]


_decode = msgspec.json.Decoder(_Answer).decode


def address(url: str) -> str:
    """Where to ask."""
    return url.rstrip("/").removesuffix("/api/embed") + "/api/embed"


def read(answer: bytes) -> Sequence[Sequence[float]]:
    """The vectors in the order of the texts."""
    return _decode(answer).embeddings
