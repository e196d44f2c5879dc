"""Embedders elsewhere: what is asked of a server, and what becomes of each kind of answer."""

import socket
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from engram_bus.projections.search.choice import Choice, EmbedderMissing, UnknownEmbedder, check, parsed
from engram_bus.projections.search.embedders import StaticEmbedder, Vectors, made, ollama, openai
from engram_bus.projections.search.embedders.contract import EmbedderRefused, EmbedderUnavailable, unit_rows
from engram_bus.projections.search.embedders.remote import (
    ANSWER_BYTES_MAX,
    HARMLESS,
    PAUSE_SECONDS_MAX,
    TEXT_CHARACTERS_MAX,
    TEXTS_PER_REQUEST,
    TRIES,
    RemoteEmbedder,
    pause_seconds,
)
from engram_bus.projections.search.embedders.sentence_transformers import SentenceTransformersEmbedder
from tests.embedding import MODEL, Answering, EmbeddingServer, Reply, library_model, serving

TEXTS = ["the parser lost a token", "", "weather in Lisbon"]


@pytest.fixture(params=["openai", "ollama"])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddingServer]:
    with serving(request.param) as server:
        yield server


class Asked:
    """An embedder of a server, which notes its pauses instead of making them."""

    def __init__(self, server: EmbeddingServer, *, key: str | None = None, answer_seconds: float = 20) -> None:
        speaks = openai if server.kind == "openai" else ollama
        self.pauses: list[float] = []
        self.embedder = RemoteEmbedder(
            speaks.address(server.url),
            speaks.read,
            name="test",
            fields={"model": "minilm"},
            key=key,
            answer_seconds=answer_seconds,
            pause=self.pauses.append,
        )

    def __enter__(self) -> "Asked":
        return self

    def __exit__(self, *_: object) -> None:
        self.embedder.close()


def one_after_another(*answers: Answering | Reply) -> Answering:
    left = list(answers)

    def answering(texts: Sequence[str]) -> Vectors | Reply:
        answer = left.pop(0) if len(left) > 1 else left[0]
        return answer if isinstance(answer, Reply) else answer(texts)

    return answering


# --- What is asked ---------------------------------------------------------------------------------------------------


def test_the_vectors_are_the_servers(server: EmbeddingServer) -> None:
    with Asked(server) as asked:
        assert asked.embedder.dimension is None
        assert np.allclose(asked.embedder.embed(TEXTS), MODEL.embed(TEXTS), atol=1e-6)
        assert asked.embedder.dimension == MODEL.dimension
        assert [one["model"] for one in server.asked] == ["minilm"]


def test_texts_are_asked_a_few_at_a_time_without_the_empty_ones(server: EmbeddingServer) -> None:
    texts = [f"number {number}" for number in range(2 * TEXTS_PER_REQUEST + 1)]
    with Asked(server) as asked:
        assert np.allclose(asked.embedder.embed(["", *texts]), MODEL.embed(["", *texts]), atol=1e-6)
    assert [len(one["input"]) for one in server.asked] == [TEXTS_PER_REQUEST, TEXTS_PER_REQUEST, 1]


def test_of_a_long_text_the_beginning_is_asked(server: EmbeddingServer) -> None:
    with Asked(server) as asked:
        asked.embedder.embed(["word " * 10_000])
    assert len(server.asked[0]["input"][0]) == TEXT_CHARACTERS_MAX


def test_the_key_is_shown_to_the_server_and_to_nobody_else(server: EmbeddingServer) -> None:
    server.answering = lambda texts: Reply(401, b'{"error": "sk-secret is no key"}')
    with Asked(server, key="sk-secret") as asked, pytest.raises(EmbedderRefused, match="401") as refused:
        asked.embedder.embed(TEXTS)
    assert server.keys == ["Bearer sk-secret"]
    assert "sk-secret" not in str(refused.value)


def test_no_proxy_stands_before_this_machine(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Asked(server) as asked:
        assert len(asked.embedder.embed(TEXTS)) == 3


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://h", "http://h/v1/embeddings"),
        ("http://h:1/", "http://h:1/v1/embeddings"),
        ("https://h/v1", "https://h/v1/embeddings"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai/embeddings"),
        ("https://h/v1/embeddings", "https://h/v1/embeddings"),
    ],
)
def test_an_openai_address_is_as_far_as_it_is_given(url: str, asked: str) -> None:
    assert openai.address(url) == asked


def test_an_ollama_address_is_its_api() -> None:
    assert {ollama.address(f"http://h:1{path}") for path in ("", "/", "/api/embed")} == {"http://h:1/api/embed"}


# --- What is asked again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(server: EmbeddingServer, status: int) -> None:
    server.answering = one_after_another(Reply(status), Reply(status), MODEL.embed)
    with Asked(server) as asked:
        assert np.allclose(asked.embedder.embed(TEXTS), MODEL.embed(TEXTS), atol=1e-6)
        assert asked.pauses == [0.25, 0.5]


def test_what_does_not_pass_is_unavailable(server: EmbeddingServer) -> None:
    server.answering = lambda texts: Reply(503, b"loading")
    with Asked(server) as asked, pytest.raises(EmbedderUnavailable, match="503: loading"):
        asked.embedder.embed(TEXTS)
    assert len(server.asked) == TRIES


def test_a_server_that_fails_at_everything_is_unavailable(server: EmbeddingServer) -> None:
    server.answering = lambda texts: Reply(500, b"out of memory")
    with Asked(server) as asked, pytest.raises(EmbedderUnavailable, match="500: out of memory"):
        asked.embedder.embed(TEXTS)
    assert server.asked[-1]["input"] == [HARMLESS]


def test_a_server_that_asks_for_a_pause_gets_it(server: EmbeddingServer) -> None:
    server.answering = one_after_another(Reply(429, headers={"retry-after": "3"}), MODEL.embed)
    with Asked(server) as asked:
        asked.embedder.embed(TEXTS)
        assert asked.pauses == [3.0]


@pytest.mark.parametrize(
    ("tried", "retry_after", "seconds"),
    [(1, None, 0.25), (2, None, 0.5), (3, "2", 2.0), (1, "3600", PAUSE_SECONDS_MAX), (1, "Wed, 21 Oct", 0.25)],
)
def test_pauses_grow_and_end(tried: int, retry_after: str | None, seconds: float) -> None:
    assert pause_seconds(tried, retry_after) == seconds


def test_a_server_that_says_nothing_is_unavailable(server: EmbeddingServer) -> None:
    server.held.clear()
    with Asked(server, answer_seconds=0.05) as asked, pytest.raises(EmbedderUnavailable, match="ReadTimeout"):
        asked.embedder.embed(TEXTS)


def test_where_nobody_listens_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    pauses: list[float] = []
    embedder = RemoteEmbedder(f"http://127.0.0.1:{port}", ollama.read, name="t", fields={}, pause=pauses.append)
    with pytest.raises(EmbedderUnavailable, match="ConnectError"):
        embedder.embed(TEXTS)
    embedder.close()
    assert len(pauses) == TRIES - 1


def test_a_server_that_comes_back_is_asked_on(server: EmbeddingServer) -> None:
    server.answering = lambda texts: Reply(503)
    with Asked(server) as asked:
        with pytest.raises(EmbedderUnavailable):
            asked.embedder.embed(TEXTS)
        server.answering = MODEL.embed
        assert asked.embedder.embed(TEXTS).any()


# --- What cannot be used ---------------------------------------------------------------------------------------------


GARBAGE = {
    "no JSON": b"<html>gateway</html>",
    "nothing": b"",
    "another shape": b'{"data": "x", "embeddings": {}}',
    "words": b'{"data": [{"index": 0, "embedding": ["a"]}], "embeddings": [["a"]]}',
    "too few": b'{"data": [], "embeddings": []}',
    "too many": b'{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1]}], "embeddings": [[1], [1]]}',
    "no numbers": b'{"data": [{"index": 0, "embedding": []}], "embeddings": [[]]}',
    "not finite": b'{"data": [{"index": 0, "embedding": [1e200]}], "embeddings": [[1e200]]}',
    "null": b'{"data": [{"index": 0, "embedding": null}], "embeddings": null}',
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused(server: EmbeddingServer, body: bytes) -> None:
    server.answering = lambda texts: Reply(200, body)
    with Asked(server) as asked, pytest.raises(EmbedderRefused):
        asked.embedder.embed(["one"])
    assert len(server.asked) == 1, "asking again would not help"


def test_an_endless_answer_is_refused(server: EmbeddingServer) -> None:
    server.answering = lambda texts: Reply(200, bytes(ANSWER_BYTES_MAX + 1))
    with Asked(server) as asked, pytest.raises(EmbedderRefused, match="more than"):
        asked.embedder.embed(["one"])


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_a_refusal_is_not_asked_again(server: EmbeddingServer, status: int) -> None:
    server.answering = lambda texts: Reply(status, b"no such model", {"location": "/"})
    with Asked(server) as asked, pytest.raises(EmbedderRefused, match=f"{status}: no such model"):
        asked.embedder.embed(TEXTS)
    assert len(server.asked) == 1


def test_another_dimension_is_refused(server: EmbeddingServer) -> None:
    server.answering = one_after_another(MODEL.embed, lambda texts: MODEL.embed(texts)[:, :128])
    with Asked(server) as asked:
        asked.embedder.embed(TEXTS)
        with pytest.raises(EmbedderRefused, match="128 numbers came where 256"):
            asked.embedder.embed(TEXTS)


def test_rows_numbered_twice_are_refused() -> None:
    with pytest.raises(ValueError, match=r"numbered \[0, 0\]"):
        openai.read(b'{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [2]}]}')


def test_rows_without_numbers_are_in_order() -> None:
    assert openai.read(b'{"data": [{"embedding": [1]}, {"embedding": [2]}]}') == [[1.0], [2.0]]


def test_vectors_of_different_lengths_are_refused() -> None:
    with pytest.raises(EmbedderRefused, match="different lengths"):
        unit_rows([[1.0], [1.0, 2.0]], count=2, dimension=None)


def test_a_vector_is_scaled_whatever_its_length() -> None:
    rows = unit_rows([[3e38, 3e38], [1e-30, 0], [0, 0]], count=3, dimension=2)
    assert rows == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [1, 0], [0, 0]]), abs=1e-6)


# --- A text that a server cannot read --------------------------------------------------------------------------------


def refusing(is_bad: Callable[[str], bool], status: int) -> Answering:
    def answering(texts: Sequence[str]) -> Vectors | Reply:
        return Reply(status, b"cannot read it") if any(map(is_bad, texts)) else MODEL.embed(texts)

    return answering


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_what_is_too_long_is_cut_until_it_is_taken(server: EmbeddingServer, status: int) -> None:
    server.answering = refusing(lambda text: len(text) > 2_000, status)
    long = "word " * 2_000
    with Asked(server) as asked:
        vectors = asked.embedder.embed(["before", long, "after"])
    assert np.allclose(vectors, MODEL.embed(["before", long[:2_000], "after"]), atol=1e-6)


@pytest.mark.parametrize("status", [400, 500])
def test_what_is_never_taken_is_zero_and_holds_up_no_other(server: EmbeddingServer, status: int) -> None:
    server.answering = refusing(lambda text: "poison" in text, status)
    with Asked(server) as asked:
        vectors = asked.embedder.embed(["before", "poison", "after"])
    assert np.allclose(vectors, MODEL.embed(["before", "", "after"]), atol=1e-6)


def test_a_server_that_refuses_even_the_harmless_is_refused(server: EmbeddingServer) -> None:
    server.answering = lambda texts: Reply(400, b"no such model")
    with Asked(server) as asked, pytest.raises(EmbedderRefused, match="400: no such model"):
        asked.embedder.embed(TEXTS)


# --- Which one -------------------------------------------------------------------------------------------------------


def test_a_setting_names_a_kind_a_place_and_a_model() -> None:
    assert parsed("static") == Choice("static")
    assert parsed("sentence-transformers:all/x:y") == Choice("sentence-transformers", "all/x:y")
    assert parsed("openai:https://h/v1#text-3") == Choice("openai", "text-3", "https://h/v1")
    assert parsed("ollama:http://[::1]:11434#nomic:v1.5") == Choice("ollama", "nomic:v1.5", "http://[::1]:11434")


@pytest.mark.parametrize(
    "setting",
    ["", "Static", "static:x", "sentence-transformers", "sentence-transformers:", "bert:x", "openai:", "openai:x#y",
     "openai:http://h", "openai:http://h#", "openai:http://#m", "ollama:ftp://h#m", "ollama:http://h:x#m",
     "ollama:http://[::1#m"],
)  # fmt: skip
def test_what_names_none_is_refused(setting: str) -> None:
    with pytest.raises(UnknownEmbedder):
        check(setting)


def test_a_key_does_not_belong_in_the_address() -> None:
    with pytest.raises(UnknownEmbedder, match="ENGRAM_EMBEDDER_KEY") as refused:
        check("openai:https://me:sk-secret@h#m")
    assert "sk-secret" not in str(refused.value)


def test_another_model_or_place_has_another_name() -> None:
    settings = ["openai:http://a#m", "openai:http://b#m", "ollama:http://a#m", "openai:http://a#M", "openai:http://a#n"]
    names = [parsed(setting).name for setting in settings]
    assert len(set(names)) == len(names)
    assert names[0].startswith("openai-m-")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbedderMissing, match=r"engram-bus\[sentence-transformers\]"):
        made("sentence-transformers:x")


def test_a_model_that_cannot_be_loaded_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr("importlib.import_module", no_library)
    with pytest.raises(EmbedderUnavailable, match="nowhere cannot be loaded: ImportError"):
        SentenceTransformersEmbedder("nowhere", name="t").embed(["x"])


def test_a_model_of_the_library_gives_its_vectors(tmp_path_factory: pytest.TempPathFactory) -> None:
    embedder = made(f"sentence-transformers:{library_model(tmp_path_factory.mktemp('model'))}")
    assert np.allclose(embedder.embed(TEXTS), MODEL.embed(TEXTS), atol=1e-5)
    assert embedder.dimension == MODEL.dimension


def test_the_default_is_the_shipped_one() -> None:
    assert isinstance(made("static"), StaticEmbedder)


def test_what_is_made_asks_nothing_yet(server: EmbeddingServer) -> None:
    made(server.setting).close()
    assert server.asked == []
