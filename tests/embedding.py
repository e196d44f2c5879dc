"""Servers that embed, for tests: the protocols of OpenAI and Ollama over loopback, the shipped model's vectors."""

import importlib.util
import json
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tokenizers import Tokenizer

from engram_bus.projections.search.embedders import StaticEmbedder, Vectors
from engram_bus.projections.search.embedders.static import SHIPPED, _tensor

MODEL = StaticEmbedder()
ADDRESSES = {"openai": "/v1/embeddings", "ollama": "/api/embed"}


class Reply(NamedTuple):
    """An answer that is not vectors."""

    status: int
    body: bytes = b'{"error": "no"}'
    headers: dict[str, str] = {}  # noqa: RUF012 (never written)


Answering = Callable[[Sequence[str]], "Vectors | Reply"]


class EmbeddingServer:
    """Answers with `answering`, which a test may exchange; keeps what was asked."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.answering: Answering = MODEL.embed
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.held = threading.Event()
        self.held.set()
        """While it is clear, requests get no answer."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def setting(self) -> str:
        return f"{self.kind}:{self.url}#minilm"

    def reply(self, path: str, asked: dict[str, Any]) -> Reply:
        if path != ADDRESSES[self.kind]:
            return Reply(404, b'{"error": "no such path"}')
        self.asked.append(asked)
        self.held.wait(20)
        found = self.answering(asked["input"])
        if isinstance(found, Reply):
            return found
        rows = found.tolist()
        if self.kind == "ollama":
            return Reply(200, json.dumps({"model": asked["model"], "embeddings": rows}).encode())
        # In no order: the index says which is which.
        data = [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)][::-1]
        return Reply(200, json.dumps({"object": "list", "data": data, "usage": {"total_tokens": 1}}).encode())

    def close(self) -> None:
        self.held.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def library_model(path: Path) -> Path:
    """The shipped model as sentence-transformers keeps models; skips where that library is not installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is not installed: it brings torch, some gigabytes")
    with warnings.catch_warnings(action="ignore"):  # Its modules have moved, and move again.
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import StaticEmbedding
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    rows = _tensor(SHIPPED / "model.safetensors", "embeddings").astype(np.float32)
    rows[tokenizer.token_to_id("[UNK]")] = 0
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=rows)], device="cpu").save(str(path))
    return path


def _handler(server: EmbeddingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # Head and body in one packet.

        def do_POST(self) -> None:
            server.keys.append(self.headers.get("authorization"))
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            reply = server.reply(self.path, asked)
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "content-length": str(len(reply.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
            except OSError:
                self.close_connection = True  # Nobody waits any more.

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    return Handler


@contextmanager
def serving(kind: str) -> Iterator[EmbeddingServer]:
    """A server that is closed afterwards."""
    server = EmbeddingServer(kind)
    try:
        yield server
    finally:
        server.close()
