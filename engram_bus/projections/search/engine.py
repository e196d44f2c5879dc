"""One search index: units in, in order, and answers out, over what is indexed and what only came a moment ago."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from engram_bus.projections.search import bm25, fusion
from engram_bus.projections.search.bm25 import Question, Terms
from engram_bus.projections.search.documents import PAIR_UNITS, is_searched, line_of, text_of, together
from engram_bus.projections.search.embedders import Embedder
from engram_bus.projections.search.keywords import FACETS, Keyworded, Keywords
from engram_bus.projections.search.scope import EVERYTHING, Scope, predicate
from engram_bus.projections.search.values import Asked, Found, Hit, Leg
from engram_bus.projections.search.vectors import Rows
from engram_bus.units import WorkUnit, ts_us

DEPTH = 200
"""Candidates of each leg: 50 cost recall, 1,000 gained nothing."""
FACET_VALUES_MAX = 100
_CONTEXTS_REMEMBERED = 10_000


class _Recent(msgspec.Struct):
    """A unit that was added and not committed: the keyword leg looks at it by itself."""

    unit: WorkUnit
    text: str
    line: str
    terms: Terms | None = None


Before = Callable[[WorkUnit, int], Sequence[WorkUnit]]
"""The last units before one in its context, oldest first, up to so many."""


class SearchIndex:
    """Keyword and vector leg of one log. What is taken in is found at once; after `commit` it outlives a restart."""

    def __init__(self, path: Path, embedder: Embedder, *, before: Before) -> None:
        self._embedder = embedder
        self._keywords = Keywords(path / "keywords")
        self._rows = Rows(path / "vectors", dimension=embedder.dimension, count=self._keywords.rows)
        self._before = before
        self._lines: OrderedDict[str, list[str]] = OrderedDict()
        self._recent: dict[int, _Recent] = {}
        self.taken = self._keywords.cursor

    @property
    def cursor(self) -> int:
        """The seq of the newest unit that outlives a restart."""
        return self._keywords.cursor

    @property
    def uncommitted(self) -> int:
        return len(self._recent)

    # --- Taking in ---------------------------------------------------------------------------------------------------

    def take(self, units: Sequence[WorkUnit]) -> None:
        """Index the next units of the log, in order."""
        searched = [unit for unit in units if is_searched(unit)]
        texts = [text_of(unit) for unit in searched]
        lines = [line_of(unit, text) for unit, text in zip(searched, texts, strict=True)]
        vectors = self._embedder.embed(lines)
        for unit, line, vector in zip(searched, lines, vectors, strict=True):
            seen = bool(vector.any())
            row = self._rows.add(vector, unit.seq) if seen else 0
            document = self._keyworded(unit, line, row)
            self._keywords.add(document)
            self._recent[unit.seq] = _Recent(unit, document.text, line)
        if units:
            self.taken = units[-1].seq

    def _keyworded(self, unit: WorkUnit, line: str, row: int) -> Keyworded:
        before = self._lines.pop(unit.context_id, None)
        if before is None:
            before = [line_of(one, text_of(one)) for one in self._before(unit, PAIR_UNITS)]
        self._lines[unit.context_id] = [*before, line][-PAIR_UNITS:]
        if len(self._lines) > _CONTEXTS_REMEMBERED:
            self._lines.popitem(last=False)
        return Keyworded(
            seq=unit.seq,
            ts_us=ts_us(unit.ts),
            context_id=unit.context_id,
            agent_id=unit.agent_id,
            type=unit.type,
            kind=unit.kind or "",
            resources=unit.resources,
            meta=unit.meta,
            targets=[edge.target_id for edge in unit.relationships],
            text=together(line, before),
            line=line,
            row=row,
        )

    def commit(self) -> None:
        """Make what was taken in outlive a restart: vectors first, for the keyword index counts them."""
        self._rows.flush()
        self._keywords.commit()
        self._recent.clear()

    def close(self) -> None:
        self._keywords.close()
        self._rows.close()

    # --- Answering ---------------------------------------------------------------------------------------------------

    def search(self, asked: Asked) -> Found:
        """The best units that the scope lets through."""
        wanted = predicate(asked.scope)
        recent = [one for one in self._recent.values() if wanted(one.unit)]
        question = self._keywords.question(asked.query)
        keyword = self._keyword_leg(question, asked, recent) if asked.mode != "semantic" else {}
        vector = self._vector_leg(asked, recent, keyword) if asked.mode != "keyword" else {}
        fused = _fused(asked, keyword, vector)
        ranks = [dict(zip(fusion.ranked(leg), range(1, len(leg) + 1), strict=True)) for leg in (keyword, vector)]
        hits = [
            Hit(
                seq,
                fused[seq],
                Leg(ranks[0][seq], keyword[seq]) if seq in keyword else None,
                Leg(ranks[1][seq], vector[seq]) if seq in vector else None,
            )
            for seq in fusion.ranked(fused)[: asked.limit]
        ]
        counted = question if asked.mode == "keyword" else None
        if counted is not None:
            recent = [one for one, score in self._scored(counted, recent) if score > 0]
        total = self._keywords.total(counted, asked.scope) + len(recent)
        facets = self._facets(counted, asked.scope, recent) if asked.facets else {}
        return Found(hits, total, self.taken, facets)

    def _keyword_leg(self, question: Question, asked: Asked, recent: Sequence[_Recent]) -> dict[int, float]:
        scores = self._keywords.search(question, asked.scope, DEPTH)
        for one, score in self._scored(question, recent):
            if score > 0:
                scores[one.unit.seq] = score
        return {seq: scores[seq] for seq in fusion.ranked(scores)[:DEPTH]}

    def _terms(self, recent: Sequence[_Recent]) -> list[Terms]:
        """What they consist of: most are committed before anyone asks."""
        for one in recent:
            if one.terms is None:
                one.terms = self._keywords.terms(one.text, one.line)
        return [one.terms for one in recent if one.terms is not None]

    def _vector_leg(self, asked: Asked, recent: Sequence[_Recent], keyword: dict[int, float]) -> dict[int, float]:
        query = self._embedder.embed([asked.query])[0]
        if not query.any():
            return {}
        nearest = self._rows.nearest(query, self._rows_within(asked.scope), DEPTH)
        cosines = nearest | self._rows.cosines_of(query, [seq for seq in keyword if seq not in nearest])
        return cosines

    def _rows_within(self, scope: Scope) -> NDArray[np.intp] | None:
        """The rows that a scope lets through; None for all of them."""
        if scope == EVERYTHING:
            return None
        allowed = np.array([*self._keywords.seqs(scope), *self._recent_within(scope)], np.uint64)
        return np.flatnonzero(np.isin(self._rows.seqs, allowed))

    def _recent_within(self, scope: Scope) -> list[int]:
        wanted = predicate(scope)
        return [seq for seq, one in self._recent.items() if wanted(one.unit)]

    def _scored(self, question: Question, recent: Sequence[_Recent]) -> list[tuple[_Recent, float]]:
        """Units that the index does not hold yet, by its statistics with all of theirs."""
        statistics = self._keywords.statistics(question).with_more(question, self._terms(list(self._recent.values())))
        return list(zip(recent, bm25.scores(question, statistics, self._terms(recent)), strict=True))

    def _facets(self, question: Question | None, scope: Scope, recent: Sequence[_Recent]) -> dict[str, dict[str, int]]:
        facets = self._keywords.facets(question, scope, FACET_VALUES_MAX)
        for one in recent:
            unit = one.unit
            for name, value in zip(FACETS, (unit.context_id, unit.agent_id, unit.type, unit.kind or ""), strict=True):
                facets[name][value] = facets[name].get(value, 0) + 1
        return facets


def _fused(asked: Asked, keyword: dict[int, float], vector: dict[int, float]) -> dict[int, float]:
    if asked.mode == "keyword" or not vector:
        return keyword
    if asked.mode == "semantic":
        return vector
    match asked.fusion:
        case "rrf":
            return fusion.reciprocal_rank(keyword, vector, vector_weight=asked.vector_weight)
        case "relative":
            return fusion.relative_score(keyword, vector, vector_weight=asked.vector_weight)
        case _:
            return fusion.z_union(keyword, vector, vector_weight=asked.vector_weight)
