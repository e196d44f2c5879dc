"""A highlight is a short part of the text, and its spans are words that were looked for."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from engram_bus.projections.search.highlights import FRAGMENT_CHARACTERS_MAX, Highlight, Sought, highlight


def stem(word: str) -> list[str]:
    return [word.lower().removesuffix("s")]


def shown(text: str, *wanted: str, names: tuple[str, ...] = ()) -> Highlight | None:
    return highlight(text, Sought(wanted, names, stem))


def marked(found: Highlight | None) -> list[str]:
    assert found is not None
    return [found.text[first:end] for first, end in found.spans]


TEXTS = st.lists(
    st.sampled_from(
        ["parser", "Parsers", "other", "x" * 300, "日本語のテキスト", "parseHTTP", "—", "parser" * 60, "\n"]
    ),
    max_size=120,
).map(" ".join)


@given(TEXTS | st.text(), st.sets(st.sampled_from(["parser", "日本", "x" * 300, "a", "absent"])))
@example("x" * 300, {"x" * 300})
def test_spans_lie_in_the_part_and_are_what_was_wanted(text: str, wanted: set[str]) -> None:
    found = highlight(text, Sought(wanted, {"http"}, stem))
    if found is None:
        return
    assert found.text in text
    assert len(found.text) <= FRAGMENT_CHARACTERS_MAX
    assert found.spans
    assert found.spans == sorted(found.spans)
    last = 0
    for first, end in found.spans:
        assert last <= first < end <= len(found.text)
        last = end
        word = found.text[first:end]
        # (Of a word that is longer than the part, its beginning.)
        assert stem(word)[0] in wanted or word == "parseHTTP" or any(one.startswith(word.lower()) for one in wanted)


@given(st.lists(st.sampled_from(["parser", "another", "word_s", "l'été", "x" * 40]), min_size=60, max_size=120))
def test_no_word_is_cut_where_the_part_begins_and_ends(said: list[str]) -> None:
    text = " ".join([*said, "parser", *said])
    found = shown(text, "parser")
    assert found is not None
    assert len(found.text) > FRAGMENT_CHARACTERS_MAX - 2 * 41
    assert {*re.findall(r"\w+", found.text)} <= {*re.findall(r"\w+", text)}


def test_a_text_that_fits_is_shown_whole() -> None:
    assert shown("I take the parser", "parser") == Highlight("I take the parser", [(11, 17)])


def test_a_run_without_spaces_is_cut_anywhere() -> None:
    found = shown("日" * 500 + "本" + "日" * 500, "日本")
    assert found is not None
    assert len(found.text) == FRAGMENT_CHARACTERS_MAX


def test_nothing_is_shown_where_nothing_was_found() -> None:
    assert shown("", "parser") is None
    assert shown("other words", "parser") is None
    assert shown("parser") is None


def test_all_forms_of_a_word_are_marked() -> None:
    assert marked(shown("Parsers and a parser", "parser")) == ["Parsers", "parser"]


def test_a_part_of_a_name_marks_the_name() -> None:
    assert marked(shown("see parseHTTP here", names=("http",))) == ["parseHTTP"]


def test_of_a_text_without_spaces_only_what_was_looked_for_is_marked() -> None:
    assert marked(shown("これは日本語です", "日本", "本語")) == ["日本語"]
    assert marked(shown("猫が好き", "猫")) == ["猫"]
    assert marked(shown("see日本now", "see", "now")) == ["see", "now"]


def test_the_densest_part_is_shown() -> None:
    text = "parser " + "other " * 100 + "parser parser other parser" + " other" * 100
    assert marked(shown(text, "parser")) == ["parser"] * 3


def test_the_end_of_a_text_is_shown_as_far_as_it_goes() -> None:
    text = "other " * 100 + "parser"
    found = shown(text, "parser")
    assert found is not None
    assert text.endswith(found.text)


def test_a_long_text_is_cut_to_the_part_that_says_most() -> None:
    assert marked(shown("other " * 6_000 + "parser", "parser")) == ["parser"]
