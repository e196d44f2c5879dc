"""The shipped model looks words up instead of cutting them again: nobody can tell from its vectors."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engram_bus.projections.search.embedders import StaticEmbedder, static

MODEL = StaticEmbedder()
SEPARATORS = " \t\r\n\v\f\0\x1c\x85\u00a0\u2003\u2028"
SIGNS = "._-/()[]{}'\"`*@#\u0301\u200b\ufffd"

words = st.sampled_from(["parser", "Émigré", "ﬁn", "漢字", "[PAD]", "[unk]", "[UNK]", "a" * 101, "##ing", "İ", "ΣΑΣ"])
texts = st.lists(words | st.text(SEPARATORS + SIGNS, max_size=3) | st.text(max_size=6)).map("".join)


def cut_whole(text: str) -> list[int]:
    found = MODEL._tokenizer.encode(text, add_special_tokens=False)
    return [piece for piece in found.ids if piece != MODEL._unknown]


@given(text=texts)
@example("self.parseHTTP(body)[UNK]x")
@example("a\0b\x1cc\x85d\u00a0e")
def test_a_text_has_the_pieces_that_it_has_as_a_whole(text: str) -> None:
    [pieces] = MODEL._pieces([static._WORD.findall(text)])
    assert pieces == cut_whole(text)


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "_KEPT_CHARACTERS", 1_000)
    model = StaticEmbedder()
    text = " ".join(f"word{number}" for number in range(500))
    first = model.embed([text])
    assert np.array_equal(model.embed(["forgotten", text])[1], first[0])
    model.embed(["other"])
    assert len(model._known) < 10
