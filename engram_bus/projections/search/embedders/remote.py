"""An embedder behind an HTTP address: what is asked of it, how long, how often again, and what its answers mean."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import msgspec
import numpy as np

from engram_bus.projections.search.embedders.contract import (
    EmbedderError,
    EmbedderRefused,
    EmbedderUnavailable,
    Vectors,
    seen,
    unit_rows,
)
from engram_bus.settings import is_loopback

Read = Callable[[bytes], Sequence[Sequence[float]]]
"""An answer's body to its vectors, in the order of the texts. Raises MsgspecError, ValueError."""

TEXTS_PER_REQUEST = 32
TEXT_CHARACTERS_MAX = 8_000
"""Of a text, its beginning: the common models read 512 to 8,192 tokens, and some refuse more instead of cutting it."""
SHORT_CHARACTERS = 256
"""What is refused although it is as short is not refused for its length."""
ANSWER_BYTES_MAX = 32 * 1024 * 1024
"""Far above 32 vectors of 8,192 numbers, written out."""
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 30.0
"""Without a byte: a model may have to be loaded first."""
TRIES = 4
PAUSE_SECONDS = 0.25
"""Before the second try; twice as long before each further one."""
PAUSE_SECONDS_MAX = 8.0
MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""What may be otherwise in a moment."""
TEXT_AT_FAULT = frozenset({400, 413, 422, 500})
"""What servers say of a text that they cannot read. They say it of other things too: a harmless text tells."""
HARMLESS = "a text that no model refuses"
_TOLD_CHARACTERS = 300


class _TextAtFault(Exception):
    """Perhaps one of these texts cannot be read; if not, it meant this."""

    def __init__(self, meant: EmbedderError) -> None:
        self.meant = meant


class RemoteEmbedder:
    """The model of a server, whatever it speaks. Its dimension is what its first answer has; another is refused then.

    A text that is refused though others are taken is cut shorter, and at last left out.
    """

    is_at_hand = False

    def __init__(
        self,
        url: str,
        read: Read,
        *,
        name: str,
        fields: Mapping[str, Any],
        key: str | None = None,
        answer_seconds: float = ANSWER_SECONDS,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self.dimension: int | None = None
        self._url = httpx.URL(url)
        self._read = read
        self._fields = fields
        self._key = key
        self._pause = pause
        self._http = httpx.Client(
            headers={"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(answer_seconds, connect=CONNECT_SECONDS),
            trust_env=not is_loopback(self._url.host),  # No proxy stands before this machine.
        )

    def embed(self, texts: Sequence[str]) -> Vectors:
        """As Embedder's. Raises EmbedderUnavailable, EmbedderRefused."""
        places = seen(texts)
        parts = [
            self._batch([texts[place][:TEXT_CHARACTERS_MAX] for place in places[first : first + TEXTS_PER_REQUEST]])
            for first in range(0, len(places), TEXTS_PER_REQUEST)
        ]
        if self.dimension is None:
            self._check()
        assert self.dimension is not None, "a good answer tells it"
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        if parts:
            vectors[places] = np.concatenate(parts)
        return vectors

    def close(self) -> None:
        self._http.close()

    def _batch(self, texts: Sequence[str]) -> Vectors:
        try:
            return self._ask(texts)
        except _TextAtFault:
            self._check()
            return np.concatenate([self._alone(text) for text in texts])

    def _check(self) -> None:
        """Raises what is wrong with the server, if it is not the texts."""
        try:
            self._ask([HARMLESS])
        except _TextAtFault as exc:
            raise exc.meant from exc

    def _alone(self, text: str) -> Vectors:
        """As much of a text as is taken; zero where it is nothing."""
        while True:
            try:
                return self._ask([text])
            except _TextAtFault:
                if len(text) <= SHORT_CHARACTERS:
                    return np.zeros((1, self.dimension or 0), np.float32)
                text = text[: len(text) // 2]

    def _ask(self, texts: Sequence[str]) -> Vectors:
        # Lone surrogates cannot be written.
        written = [text.encode("utf-8", "replace").decode() for text in texts]
        answer = self._answer(msgspec.json.encode({**self._fields, "input": written}))
        try:
            vectors = self._read(answer)
        except (msgspec.MsgspecError, ValueError) as exc:
            raise EmbedderRefused(f"{self._url} answered {self._told(answer)!r}, not vectors: {exc}") from exc
        rows = unit_rows(vectors, count=len(texts), dimension=self.dimension)
        self.dimension = rows.shape[1]
        return rows

    def _answer(self, body: bytes) -> bytes:
        """The first good answer of a few tries. Raises EmbedderUnavailable, EmbedderRefused, _TextAtFault."""
        problem: EmbedderError | _TextAtFault
        for tried in range(1, TRIES + 1):
            retry_after = None
            try:
                with self._http.stream("POST", self._url, content=body) as response:
                    answer = _bounded(response)
            except (httpx.TransportError, httpx.DecodingError) as exc:
                problem = EmbedderUnavailable(f"{self._url} cannot be reached: {type(exc).__name__} {exc}")
            else:
                if response.is_success:
                    return answer
                problem = self._problem(response.status_code, answer)
                retry_after = response.headers.get("retry-after")
                if response.status_code not in MAY_PASS:
                    break
            if tried < TRIES:
                self._pause(pause_seconds(tried, retry_after))
        raise problem

    def _problem(self, status: int, answer: bytes) -> EmbedderError | _TextAtFault:
        kind = EmbedderUnavailable if status in MAY_PASS else EmbedderRefused
        problem = kind(f"{self._url} answered {status}: {self._told(answer)}")
        return _TextAtFault(problem) if status in TEXT_AT_FAULT else problem

    def _told(self, answer: bytes) -> str:
        """The beginning of an answer, for people; a server may repeat the key."""
        text = answer[: 4 * _TOLD_CHARACTERS].decode("utf-8", "replace")
        return (text.replace(self._key, "***") if self._key else text)[:_TOLD_CHARACTERS]


def pause_seconds(tried: int, retry_after: str | None) -> float:
    """How long to wait after so many tries; what the server asks for, within reason."""
    doubled = PAUSE_SECONDS * 2 ** (tried - 1)
    asked = float(retry_after) if retry_after is not None and retry_after.isascii() and retry_after.isdigit() else 0.0
    return float(min(max(doubled, asked), PAUSE_SECONDS_MAX))


def _bounded(response: httpx.Response) -> bytes:
    """The body. Raises EmbedderRefused where it does not end."""
    answer = bytearray()
    for part in response.iter_bytes():
        answer += part
        if len(answer) > ANSWER_BYTES_MAX:
            raise EmbedderRefused(f"{response.url} answered more than {ANSWER_BYTES_MAX} bytes")
    return bytes(answer)
