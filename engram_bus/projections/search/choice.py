"""The setting that chooses an embedder: read and checked, without loading any."""

import hashlib
import importlib.util
import re
from urllib.parse import urlsplit

import msgspec

KEY_VARIABLE = "ENGRAM_EMBEDDER_KEY"
"""The environment variable that holds the key of a server: not a setting, for settings are shown."""
STATIC = "static"
SENTENCE_TRANSFORMERS = "sentence-transformers"
PROTOCOLS = ("openai", "ollama")
FORMS = "static, sentence-transformers:MODEL, openai:URL#MODEL or ollama:URL#MODEL"
_NOT_OF_NAMES = re.compile(r"[^a-z0-9.]+")


class UnknownEmbedder(ValueError):
    """The setting names none that there is."""


class EmbedderMissing(ValueError):
    """The library that it needs is not installed; names the extra that brings it."""


class Choice(msgspec.Struct, frozen=True):
    """Which embedder: its kind, its model, and where it is."""

    kind: str
    model: str = ""
    url: str = ""

    @property
    def name(self) -> str:
        """Fit for a file name, and another for another model or place."""
        readable = _NOT_OF_NAMES.sub("-", self.model.lower())[-40:].strip("-.")
        digest = hashlib.sha256(f"{self.kind}:{self.url}#{self.model}".encode()).hexdigest()[:8]
        return f"{self.kind}-{readable}-{digest}"


def parsed(setting: str) -> Choice:
    """Raises UnknownEmbedder."""
    kind, _, rest = setting.partition(":")
    if setting == STATIC:
        return Choice(STATIC)
    if kind == SENTENCE_TRANSFORMERS and rest:
        return Choice(kind, rest)
    if kind not in PROTOCOLS:
        raise UnknownEmbedder(f"{setting!r} is not {FORMS}")
    address, _, model = rest.partition("#")
    try:
        url = urlsplit(address)
        has_password, host, _ = url.username is not None or url.password is not None, url.hostname, url.port
    except ValueError as exc:
        raise UnknownEmbedder(f"{setting!r} holds no address: {exc}") from exc
    if has_password:
        raise UnknownEmbedder(f"the embedder's address holds a name or password: a key is read from {KEY_VARIABLE}")
    if url.scheme not in ("http", "https") or not host or not model:
        raise UnknownEmbedder(f"{setting!r} is not {kind}:URL#MODEL, as {kind}:http://127.0.0.1:8000#a-model")
    return Choice(kind, model, address)


def check(setting: str) -> None:
    """Whether it can be made here. Raises UnknownEmbedder, EmbedderMissing."""
    if parsed(setting).kind == SENTENCE_TRANSFORMERS and importlib.util.find_spec("sentence_transformers") is None:
        raise EmbedderMissing(
            f"{setting} needs a library that is not installed: pip install 'engram-bus[sentence-transformers]'"
        )
