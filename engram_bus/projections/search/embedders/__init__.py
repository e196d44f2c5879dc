"""Texts to vectors: one promise (`contract.py`), one file per kind of embedder."""

from engram_bus.projections.search import choice
from engram_bus.projections.search.embedders import ollama, openai
from engram_bus.projections.search.embedders.contract import Embedder, Vectors
from engram_bus.projections.search.embedders.static import StaticEmbedder

__all__ = ["Embedder", "StaticEmbedder", "Vectors", "made"]


def made(setting: str, *, key: str | None = None) -> Embedder:
    """The embedder that a setting chooses; nothing is asked of it yet. Raises UnknownEmbedder, EmbedderMissing."""
    choice.check(setting)
    chosen = choice.parsed(setting)
    match chosen.kind:
        case choice.STATIC:
            return StaticEmbedder()
        case choice.SENTENCE_TRANSFORMERS:
            from engram_bus.projections.search.embedders.sentence_transformers import (  # noqa: PLC0415 (optional)
                SentenceTransformersEmbedder,
            )

            return SentenceTransformersEmbedder(chosen.model, name=chosen.name)
        case _:
            from engram_bus.projections.search.embedders.remote import RemoteEmbedder  # noqa: PLC0415 (optional)

            speaks = openai if chosen.kind == "openai" else ollama
            return RemoteEmbedder(
                speaks.address(chosen.url), speaks.read, name=chosen.name, fields={"model": chosen.model}, key=key
            )
