"""What a search finds, in figures: floors on collections whose answers are known."""

from collections.abc import Callable
from pathlib import Path

import pytest

import engram_bus.cli
from benchmarks.search_quality import MEASURES, Scores, compared, ndcg, reciprocal_rank, scored
from benchmarks.search_sets import Absent, Collection, cases, code, cut, locomo, recording, scifact

pytestmark = pytest.mark.anyio

FLEET = Path(engram_bus.cli.__file__).parent / "recordings" / "fleet.jsonl"


def there(collection: Callable[[], Collection]) -> Collection:
    """The collection, where its files lie beside the repository."""
    try:
        return collection()
    except Absent as exc:
        pytest.skip(str(exc))


def found(scores: Scores, mode: str, measure: str) -> int:
    return int(sum(scores.by_mode[mode][measure]))


async def test_a_shipped_recording_is_found_by_names_paths_errors_and_questions(tmp_path: Path) -> None:
    scores = await scored(recording(FLEET, cases("fleet")), MEASURES["code"], tmp_path)
    assert found(scores, "hybrid", "hit@5") >= 8, scores.by_mode["hybrid"]["hit@5"]


async def test_documents_are_found_by_claims_about_them_in_a_small_library(tmp_path: Path) -> None:
    scores = await scored(cut(there(scifact), questions=40, others=500), MEASURES["scifact"], tmp_path)
    keyword, semantic, hybrid = (scores.mean(mode, "ndcg@10") for mode in ("keyword", "semantic", "hybrid"))
    assert keyword > 0.75
    assert semantic > 0.6
    assert hybrid > max(keyword, semantic) - 0.03, "both together are no worse than one"


@pytest.mark.long
@pytest.mark.timeout(1_800)
async def test_documents_are_found_better_by_both_than_by_words(tmp_path: Path) -> None:
    scores = await scored(there(scifact), MEASURES["scifact"], tmp_path)
    assert scores.mean("keyword", "ndcg@10") >= 0.69
    better = compared(scores.by_mode["hybrid"]["ndcg@10"], scores.by_mode["keyword"]["ndcg@10"])
    assert better.difference > 0, better
    assert better.p < 0.05, better


@pytest.mark.long
@pytest.mark.timeout(1_800)
async def test_turns_of_a_long_dialogue_are_found_by_questions_about_them(tmp_path: Path) -> None:
    scores = await scored(there(locomo), MEASURES["locomo"], tmp_path)
    assert scores.mean("hybrid", "recall@10") >= 0.75


@pytest.mark.long
@pytest.mark.timeout(1_800)
async def test_what_coding_agents_did_is_found_again(tmp_path: Path) -> None:
    collection = there(code)
    assert len(collection.questions) == 40
    scores = await scored(collection, MEASURES["code"], tmp_path)
    missed = [
        question.text
        for question, hit in zip(collection.questions, scores.by_mode["hybrid"]["hit@5"], strict=True)
        if not hit
    ]
    assert len(missed) <= 4, missed


def test_gain_is_discounted_by_rank() -> None:
    assert ndcg([7, 3], frozenset({7}), at=10) == 1.0
    assert ndcg([3, 7], frozenset({7}), at=10) == pytest.approx(0.6309, abs=1e-4)
    assert ndcg([3, 7, 9], frozenset({7, 9}), at=10) == pytest.approx((0.6309 + 0.5) / 1.6309, abs=1e-4)
    assert ndcg([3, 7], frozenset({7}), at=1) == 0.0


def test_the_rank_of_the_first_answer_counts() -> None:
    assert reciprocal_rank([5, 3, 1], frozenset({1, 3})) == 0.5
    assert reciprocal_rank([5], frozenset({1})) == 0.0


def test_a_difference_is_told_from_chance() -> None:
    assert compared([1.0] * 40, [0.0] * 40).p < 0.01
    assert compared([1.0, 0.0] * 20, [0.0, 1.0] * 20).p > 0.5
    assert compared([1.0] * 5, [1.0] * 5)[:5] == (0.0, 0.0, 0.0, 0, 0)
