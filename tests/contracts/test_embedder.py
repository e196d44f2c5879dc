"""Every embedder keeps what `embedders/contract.py` promises."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_bus.projections.search.embedders import Embedder, StaticEmbedder, made
from tests.embedding import library_model, serving

ODD = [
    "",
    " \n\t",
    "\0",
    "a\0b",
    "👩‍👩‍👧 émigré ﷽",
    "\u202eright to left",
    "e\u0301" * 50,
    "漢字かな交じり文",
    "\ufffe\U0010ffff",
]
TEXTS = ["the parser lost a token", "SELECT * FROM units", "weather in Lisbon", *ODD]


@pytest.fixture(scope="module", params=["static", "sentence-transformers", "openai", "ollama"])
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    with ExitStack() as stack:
        match request.param:
            case "static":
                embedder: Embedder = StaticEmbedder()
            case "sentence-transformers":
                embedder = made(f"sentence-transformers:{library_model(tmp_path_factory.mktemp('model'))}")
            case kind:
                embedder = made(stack.enter_context(serving(kind)).setting)
        yield embedder
        embedder.close()


def test_a_text_is_a_row_of_the_dimension(embedder: Embedder) -> None:
    vectors = embedder.embed(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), embedder.dimension)


def test_no_text_is_no_row(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, embedder.dimension)


def test_a_row_has_length_one_or_is_zero(embedder: Embedder) -> None:
    lengths = np.linalg.norm(embedder.embed(TEXTS), axis=1)
    assert all(length == 0 or length == pytest.approx(1, abs=1e-5) for length in lengths)
    assert lengths[:3] == pytest.approx([1, 1, 1], abs=1e-5)


def test_what_is_empty_is_zero(embedder: Embedder) -> None:
    assert not embedder.embed(["", " \n\t", "\u2003"]).any()


def test_the_same_text_has_the_same_vector(embedder: Embedder) -> None:
    assert np.array_equal(embedder.embed(TEXTS), embedder.embed(TEXTS))


def test_rows_are_in_the_order_of_the_texts(embedder: Embedder) -> None:
    assert np.allclose(embedder.embed(TEXTS[::-1]), embedder.embed(TEXTS)[::-1], atol=1e-5)


def test_a_text_is_where_it_is_alone(embedder: Embedder) -> None:
    texts = [*TEXTS, *(f"text number {number}" for number in range(70))]
    singles = np.concatenate([embedder.embed([text]) for text in texts])
    assert np.allclose(embedder.embed(texts), singles, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["a long story " * 100_000, "x" * 1_000_000, "漢" * 300_000], ids=["words", "run", "han"]
)
def test_a_huge_text_is_a_text(embedder: Embedder, text: str) -> None:
    vectors = embedder.embed(["before", text, "after"])
    assert np.isfinite(vectors).all()
    assert np.allclose(vectors[[0, 2]], embedder.embed(["before", "after"]), atol=1e-5)


@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs",))), max_size=5))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_unicode_is_a_text(embedder: Embedder, texts: list[str]) -> None:
    vectors = embedder.embed(texts)
    lengths = np.linalg.norm(vectors, axis=1)
    assert all(length == 0 or abs(length - 1) < 1e-5 for length in lengths)


def test_what_means_alike_is_near(embedder: Embedder) -> None:
    cat, kitten, tax = embedder.embed(["a cat sat on the mat", "the kitten lay on a rug", "corporate tax law"])
    assert cat @ kitten > cat @ tax


def test_its_name_is_fit_for_a_file_and_stays(embedder: Embedder) -> None:
    assert embedder.name == embedder.name
    assert Path(embedder.name).name == embedder.name
    assert embedder.name.isascii()
