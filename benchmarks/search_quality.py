"""How good is what a search finds, by words, by meaning and by both?

Asked on documents, dialogue, meetings, failed runs and code, through a bus on a disk, as an application uses it. No set
ships with the repository (search_sets.py says where they lie); one that is not there is left out.

    python -m benchmarks.search_quality [--small] [--neighbour-weight=0.2] [--fusion=rrf] ... [set ...]
    python -m benchmarks.search_quality --embedder=sentence-transformers:PATH [set ...]

A figure is kept only of a full run with the ranking that is made when nobody says how. Another embedder is asked once
it has seen every unit, and how long that took is told.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvloop

from benchmarks.harness import keep, machine, scratch
from benchmarks.search_sets import COLLECTIONS, Absent, Collection, Question, cut
from engram_bus import Bus
from engram_bus.errors import SearchBuilding, SearchUnavailable
from engram_bus.projections.search.choice import STATIC
from engram_bus.units import WorkUnit

QUESTION = "quality of search by mode, on sets whose answers are known"
MODES = ("keyword", "semantic", "hybrid")
DEPTH = 50
RESAMPLES = 10_000
NO_OPTIONS: Mapping[str, Any] = {}
_BULK = 200

Ranking = Sequence[int]
"""Places in the collection, best first."""
Measure = Callable[[Ranking, frozenset[int]], float]


def ndcg(ranking: Ranking, wanted: frozenset[int], *, at: int) -> float:
    """Gain discounted by rank, of the most that could be had (every answer counts alike)."""
    had = sum(_discount(rank) for rank, place in enumerate(ranking[:at]) if place in wanted)
    return had / sum(_discount(rank) for rank in range(min(at, len(wanted))))


def recall(ranking: Ranking, wanted: frozenset[int], *, at: int) -> float:
    """The share of the answers that is among the first."""
    return len(wanted.intersection(ranking[:at])) / len(wanted)


def precision(ranking: Ranking, wanted: frozenset[int], *, at: int) -> float:
    """The share of the first that is an answer."""
    return len(wanted.intersection(ranking[:at])) / at


def hit(ranking: Ranking, wanted: frozenset[int], *, at: int) -> float:
    """1 where any answer is among the first."""
    return float(not wanted.isdisjoint(ranking[:at]))


def reciprocal_rank(ranking: Ranking, wanted: frozenset[int]) -> float:
    """1 / rank of the first answer, 0 where it is not found."""
    return next((1 / rank for rank, place in enumerate(ranking, start=1) if place in wanted), 0.0)


MEASURES: dict[str, dict[str, Measure]] = {
    "scifact": {"ndcg@10": partial(ndcg, at=10), "recall@50": partial(recall, at=50)},
    "locomo": {"recall@10": partial(recall, at=10), "recall@50": partial(recall, at=50)},
    "qmsum": {
        "hit@10": partial(hit, at=10),
        "precision@10": partial(precision, at=10),
        "recall@10": partial(recall, at=10),
        "recall@50": partial(recall, at=50),
    },
    "whowhen": {"recall@10": partial(recall, at=10), "mrr": reciprocal_rank},
    "code": {"hit@5": partial(hit, at=5), "mrr": reciprocal_rank},
}


class Compared(NamedTuple):
    """One mode against another over the same questions: the mean difference, its 95% interval, how often better and
    worse, and how probable as much is if there is no difference (two-sided)."""

    difference: float
    low: float
    high: float
    wins: int
    losses: int
    p: float


def compared(ours: Sequence[float], others: Sequence[float]) -> Compared:
    """A paired bootstrap over the questions."""
    differences = np.array(ours) - np.array(others)
    draw = np.random.default_rng(1)
    means = np.array(
        [differences[draw.integers(0, len(differences), len(differences))].mean() for _ in range(RESAMPLES)]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    p = 2 * min(np.mean(means <= 0), np.mean(means >= 0))
    return Compared(
        round(float(differences.mean()), 4),
        round(float(low), 4),
        round(float(high), 4),
        int((differences > 0).sum()),
        int((differences < 0).sum()),
        min(1.0, max(float(p), 1 / RESAMPLES)),
    )


class Scores(NamedTuple):
    """What each question of a collection scored: by mode and measure, in the order of the questions."""

    groups: Sequence[str]
    by_mode: Mapping[str, Mapping[str, Sequence[float]]]

    def mean(self, mode: str, measure: str, group: str | None = None) -> float:
        """Over all questions, or those of a group."""
        values = [
            value
            for value, of in zip(self.by_mode[mode][measure], self.groups, strict=True)
            if group is None or of == group
        ]
        return sum(values) / len(values)


async def scored(
    collection: Collection,
    measures: Mapping[str, Measure],
    path: Path | None,
    options: Mapping[str, Any] = NO_OPTIONS,
    *,
    embedder: str = STATIC,
) -> Scores:
    """Append everything to a new bus, ask every question in every mode, and measure what was found."""
    by_mode: dict[str, dict[str, list[float]]] = {mode: {name: [] for name in measures} for mode in MODES}
    async with Bus.open(path, embedder=embedder) as bus:
        places = await _filled(bus, collection)
        if embedder != STATIC:
            started = time.perf_counter()
            await _found(bus, collection.questions[0], "semantic", options)
            print(f"{embedder} has seen {len(places)} units after {time.perf_counter() - started:.0f} seconds")
        for question, mode in itertools.product(collection.questions, MODES):
            ranking = [places[seq] for seq in await _found(bus, question, mode, options)]
            for name, measure in measures.items():
                by_mode[mode][name].append(measure(ranking, question.wanted))
    return Scores([question.group for question in collection.questions], by_mode)


async def _filled(bus: Bus, collection: Collection) -> dict[int, int]:
    """Which place of the collection each seq is."""
    places: dict[int, int] = {}
    for first in range(0, len(collection.drafts), _BULK):
        for unit in await bus.append_bulk(collection.drafts[first : first + _BULK]):
            assert isinstance(unit, WorkUnit), unit
            places[unit.seq] = len(places)
    return places


async def _found(bus: Bus, question: Question, mode: str, options: Mapping[str, Any]) -> list[int]:
    """The seqs, once the index has caught up and the chosen embedder ranks."""
    while True:
        try:
            found = await bus.search(question.text, mode=mode, limit=DEPTH, context_id=question.context_id, **options)
        except (SearchBuilding, SearchUnavailable):
            await asyncio.sleep(0.2)
        else:
            if not found.degraded:
                return [one.seq for one in found.results]
            await asyncio.sleep(0.2)


def figures(scores: Scores) -> dict[str, Any]:
    """Every measure of every mode, over all and by group; hybrid against the better of its legs."""
    shown: dict[str, Any] = {}
    for measure in scores.by_mode["hybrid"]:
        best = max(("keyword", "semantic"), key=lambda mode: scores.mean(mode, measure))
        shown[measure] = {
            **{mode: round(scores.mean(mode, measure), 4) for mode in MODES},
            f"hybrid - {best}": compared(scores.by_mode["hybrid"][measure], scores.by_mode[best][measure])._asdict(),
        }
        if len(groups := sorted(set(scores.groups))) > 1:
            shown[measure]["by group"] = {
                f"{group} ({scores.groups.count(group)})": {
                    mode: round(scores.mean(mode, measure, group), 4) for mode in MODES
                }
                for group in groups
            }
    return shown


def table(name: str, collection: Collection, shown: Mapping[str, Any]) -> Iterable[str]:
    """The same for people."""
    yield f"{name}: {len(collection.drafts)} units, {len(collection.questions)} questions"
    yield f"  {'':34}" + "".join(f"{mode:>10}" for mode in MODES)
    for measure, values in shown.items():
        yield f"  {measure:34}" + "".join(f"{values[mode]:>10.4f}" for mode in MODES)
        for group, means in values.get("by group", {}).items():
            yield f"    {group:32}" + "".join(f"{means[mode]:>10.4f}" for mode in MODES)
        for label, by in values.items():
            if label.startswith("hybrid -"):
                yield (
                    f"    {label}: {by['difference']:+.4f} [{by['low']:+.4f}, {by['high']:+.4f}]"
                    f" {by['wins']} won {by['losses']} lost, p {by['p']:.4f}"
                )


def main() -> None:
    """Every named set, or all."""
    small = "--small" in sys.argv
    options = _options(sys.argv[1:])
    embedder = options.pop("embedder", STATIC)
    names = [name for name in sys.argv[1:] if not name.startswith("-")] or list(COLLECTIONS)
    sets: dict[str, Any] = {}
    with scratch() as directory:
        about = machine(directory)
        for name in names:
            try:
                whole = COLLECTIONS[name]()
            except Absent as exc:
                print(f"{name}: left out, {exc}")
                continue
            collection = cut(whole, questions=20, others=300) if small else whole
            shown = figures(
                uvloop.run(scored(collection, MEASURES[name], directory / name, options, embedder=embedder))
            )
            sets[name] = {"units": len(collection.drafts), "questions": len(collection.questions), **shown}
            print("\n".join(table(name, collection, shown)))
    if not small and not options and embedder == STATIC and sets.keys() == COLLECTIONS.keys():
        keep(QUESTION, {"machine": about, "sets": sets})


def _options(arguments: Sequence[str]) -> dict[str, Any]:
    """What is said of how the ranking is made, `--vector-weight=0.5`, and of the embedder."""
    said = [argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument]
    return {name.replace("-", "_"): value if name in ("fusion", "embedder") else float(value) for name, value in said}


def _discount(rank: int) -> float:
    return 1 / float(np.log2(rank + 2))


if __name__ == "__main__":
    main()
