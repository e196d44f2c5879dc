"""Our count of BM25 is tantivy's."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_bus.projections.search.bm25 import Question, Statistics, Terms, holds, scores, told_length
from engram_bus.projections.search.keywords import DIGITS, Keyworded, Keywords
from engram_bus.projections.search.scope import Scope

ASKED = "alpha gamma zeta iota Foo.bar x_1 E0308 日本語 al* E03* foo.b* be* no*".split()
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa Foo.bar x_1 E0308 日本語".split()


def keyworded(seq: int, text: str, line: str | None = None) -> Keyworded:
    return Keyworded(
        seq=seq,
        ts_us=seq,
        context_id="c",
        agent_id="a",
        type="MESSAGE",
        kind="",
        resources=[],
        meta={},
        targets=[],
        lines=[text],
        line=text if line is None else line,
        parts=[text],
    )


def corpus(dice: Random) -> list[tuple[str, str]]:
    """Texts, and of each the line whose names count; some longer than 40 words, where lengths are rounded."""
    texts = []
    for _ in range(dice.randrange(1, 60)):
        said = dice.choices(WORDS, weights=range(len(WORDS), 0, -1), k=dice.choice((0, 1, 3, 12, 39, 45, 90, 700)))
        texts.append((" ".join(said), " ".join(said[len(said) // 2 :])))
    return texts


@given(st.randoms(use_true_random=False), st.lists(st.sampled_from(ASKED), min_size=1, max_size=5))
@settings(max_examples=30)
def test_scores_are_those_of_tantivy(tmp_path_factory: pytest.TempPathFactory, dice: Random, asked: list[str]) -> None:
    keywords = Keywords(tmp_path_factory.mktemp("keywords"))
    texts = corpus(dice)
    for seq, (text, line) in enumerate(texts, start=1):
        keywords.add(keyworded(seq, text, line))
        if dice.random() < 0.1:
            keywords.commit()
    keywords.commit()
    question = keywords.question(" ".join(asked))
    hits = keywords._searcher.search(keywords._asked(question), 1_000).hits
    theirs = dict(zip(keywords._seqs_of(hits), (score for score, _ in hits), strict=True))
    terms = [keywords.terms(text, line) for text, line in texts]
    ours = dict(enumerate(scores(question, keywords.statistics(question), terms), start=1))
    assert {seq for seq, score in ours.items() if score > 0} == set(theirs)
    assert {seq for seq, one in enumerate(terms, start=1) if holds(question, one)} == set(theirs)
    assert {seq: ours[seq] for seq in theirs} == theirs
    assert keywords.search(question, Scope(), 1_000) == {seq: round(score, DIGITS) for seq, score in theirs.items()}
    keywords.close()


@given(st.randoms(use_true_random=False), st.lists(st.sampled_from(ASKED), min_size=1, max_size=5), st.integers(0, 60))
@settings(max_examples=20)
def test_statistics_with_more_are_those_of_all(
    tmp_path_factory: pytest.TempPathFactory, dice: Random, asked: list[str], committed: int
) -> None:
    some, whole = (Keywords(tmp_path_factory.mktemp("keywords")) for _ in range(2))
    texts = corpus(dice)
    for seq, (text, line) in enumerate(texts, start=1):
        for keywords in (some, whole) if seq <= committed else (whole,):
            keywords.add(keyworded(seq, text, line))
    some.commit()
    whole.commit()
    question = whole.question(" ".join(asked))
    more = [some.terms(text, line) for text, line in texts[committed:]]
    assert some.statistics(question).with_more(question, more) == whole.statistics(question)
    assert whole.statistics_then(question, committed) == some.statistics(question)
    some.close()
    whole.close()


def test_lengths_are_told_in_one_byte() -> None:
    told = sorted({told_length(length) for length in range(100_000)})
    assert told[:41] == list(range(41))
    assert told[41:60] == [42, 44, 46, 48, 50, 52, 54, 56, 60, 64, 68, 72, 76, 80, 84, 88, 96, 104, 112]
    assert all(told_length(length) <= length for length in range(100_000))
    assert len(told) < 256


def test_nothing_found_is_nothing() -> None:
    question = Question(["a"], ["b"], [])
    nothing = Statistics(0, 0, 0, {"a": 0}, {"b": 0})
    assert scores(question, nothing, [Terms(Counter(), Counter())]) == [0.0]
    assert scores(question, nothing, []) == []


def test_a_rare_word_weighs_more_than_a_common_one_and_a_short_text_more_than_a_long_one(tmp_path: Path) -> None:
    keywords = Keywords(tmp_path)
    for seq, text in enumerate(("common rare", "common other", "common " + "other " * 9), start=1):
        keywords.add(keyworded(seq, text))
    keywords.commit()
    rare = keywords.search(keywords.question("rare"), Scope(), 9)
    common = keywords.search(keywords.question("common"), Scope(), 9)
    assert rare[1] > common[1] > common[3]
    keywords.close()


def test_an_index_that_another_writes_is_not_taken_for_damaged(tmp_path: Path) -> None:
    keywords = Keywords(tmp_path)
    with pytest.raises(BlockingIOError, match="another process writes"):
        Keywords(tmp_path)
    keywords.close()
    Keywords(tmp_path).close()


def test_a_score_does_not_depend_on_how_the_index_came_to_be(tmp_path: Path) -> None:
    """Nor on which of its segments lack a term: that could be another order of a sum, which float32 would tell."""
    dice = Random(7)
    words = [f"word{number}" for number in range(100)]
    rarer = [1 / place for place in range(1, 101)]
    texts = [" ".join(dice.choices(words, rarer, k=dice.randrange(1, 60))) for _ in range(200)]
    piecemeal, at_once = Keywords(tmp_path / "piecemeal"), Keywords(tmp_path / "at once")
    for seq, text in enumerate(texts, start=1):
        for keywords in (piecemeal, at_once):
            keywords.add(keyworded(seq, text))
        if dice.random() < 0.03:
            piecemeal.commit()
    piecemeal.commit()
    at_once.commit()
    assert piecemeal._searcher.num_segments > at_once._searcher.num_segments == 1
    for scope in (Scope(), Scope(after_seq=50)):
        for _ in range(20):
            question = at_once.question(" ".join(dice.sample(words, k=16)))
            in_one, in_many = (
                [score for score, _ in keywords._searcher.search(keywords._within(query, question, scope), 200).hits]
                for keywords in (at_once, piecemeal)
                if (query := keywords._asked(question)) is not None
            )
            assert in_one == in_many
    piecemeal.close()
    at_once.close()
