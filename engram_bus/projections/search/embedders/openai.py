"""Any server that speaks OpenAI's /v1/embeddings."""

from collections.abc import Sequence

import msgspec


class _Row(msgspec.Struct, frozen=True):
    embedding: list[float]
    index: int | None = None


class _Answer(msgspec.Struct, frozen=True):
    data: list[_Row]


_decode = msgspec.json.Decoder(_Answer).decode


def address(url: str) -> str:
    """Where to ask: of a server its /v1/embeddings; what ends in another version, or in /embeddings, as it is."""
    host, slash, path = url.removeprefix("https://").removeprefix("http://").rstrip("/").partition("/")
    if path.endswith("embeddings"):
        return url.rstrip("/")
    return url.rstrip("/") + ("/embeddings" if slash and host and path else "/v1/embeddings")


def read(answer: bytes) -> Sequence[Sequence[float]]:
    """The vectors in the order of the texts: by index, where the server says it."""
    rows = _decode(answer).data
    if any(row.index is None for row in rows):
        return [row.embedding for row in rows]
    by_index = {row.index: row.embedding for row in rows}
    if by_index.keys() != set(range(len(rows))):
        raise ValueError(f"{len(rows)} rows are numbered {[row.index for row in rows]}")
    return [by_index[place] for place in range(len(rows))]
