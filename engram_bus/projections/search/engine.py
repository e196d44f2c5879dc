"""One search index: units in, in order, and answers out, over what is indexed and what only came a moment ago."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from engram_bus.projections.search import bm25, fusion
from engram_bus.projections.search.bm25 import Question, Terms
from engram_bus.projections.search.documents import PAIR_UNITS, is_searched, line_of, text_of, together
from engram_bus.projections.search.embedders import Embedder
from engram_bus.projections.search.highlights import highlight
from engram_bus.projections.search.keywords import FACETS, Keyworded, Keywords
from engram_bus.projections.search.scope import EVERYTHING, Scope, predicate
from engram_bus.projections.search.values import Asked, Found, Hit, Leg
from engram_bus.projections.search.vectors import Rows
from engram_bus.units import WorkUnit, ts_us

DEPTH = 200
"""Candidates of each leg: 50 cost recall, 1,000 gained nothing."""
AS_OF_DEPTH = 1_000
"""Candidates that are scored again as of a seq."""
LOOK_BACK_UNITS = 8
FACET_VALUES_MAX = 100
_CONTEXTS_REMEMBERED = 10_000


class _Recent(msgspec.Struct):
    """A unit that was added and not committed: the keyword leg looks at it by itself."""

    unit: WorkUnit
    text: str
    line: str
    terms: Terms | None = None


class Source(Protocol):
    """The log, as far as an index reads it again."""

    def unit(self, seq: int) -> WorkUnit:
        """The unit at this seq, which must be there."""

    def before(self, unit: WorkUnit, count: int) -> Sequence[WorkUnit]:
        """The last units before this one in its context, oldest first, up to so many."""


class SearchIndex:
    """Keyword and vector leg of one log. What is taken in is found at once; after `commit` it outlives a restart."""

    def __init__(self, path: Path, embedder: Embedder, source: Source) -> None:
        self._embedder = embedder
        self._keywords = Keywords(path / "keywords")
        self._rows = Rows(path / "vectors", dimension=embedder.dimension, count=self._keywords.rows)
        self._source = source
        self._lines: OrderedDict[str, list[tuple[int, str]]] = OrderedDict()
        self._recent: dict[int, _Recent] = {}
        self.taken = self._keywords.cursor
        self.taken_us = 0

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
            self.taken, self.taken_us = units[-1].seq, ts_us(units[-1].ts)

    def _keyworded(self, unit: WorkUnit, line: str, row: int) -> Keyworded:
        before = self._lines.pop(unit.context_id, None)
        if before is None:
            before = [(one.version, line_of(one, text_of(one))) for one in self._searched_before(unit)]
        self._lines[unit.context_id] = [*before, (unit.version, line)][-PAIR_UNITS:]
        if len(self._lines) > _CONTEXTS_REMEMBERED:
            self._lines.popitem(last=False)
        recent = [earlier for version, earlier in before if version >= unit.version - LOOK_BACK_UNITS]
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
            text=together(line, recent),
            line=line,
            row=row,
        )

    def _searched_before(self, unit: WorkUnit) -> list[WorkUnit]:
        """The last units before one in its context, passing over those that are not searched, as far as is looked."""
        before = [one for one in self._source.before(unit, LOOK_BACK_UNITS) if is_searched(one)]
        return before[-PAIR_UNITS:]

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
        scope = asked.scope if asked.as_of_seq is None else _cut(asked.scope, asked.as_of_seq)
        recent = self._recent_within(scope)
        question = self._keywords.question(asked.query)
        keyword = self._keyword_leg(question, scope, recent, asked.as_of_seq) if asked.mode != "semantic" else {}
        vector = self._vector_leg(asked.query, scope, recent, keyword) if asked.mode != "keyword" else {}
        counted = question if asked.mode == "keyword" else None
        if counted is not None:
            recent = [one for one, score in self._scored(counted, recent) if score > 0]
        return Found(
            self._hits(asked, question, keyword, vector),
            self._keywords.total(counted, scope) + len(recent),
            self.taken if asked.as_of_seq is None else min(self.taken, asked.as_of_seq),
            self._facets(counted, scope, recent) if asked.facets else {},
        )

    def _hits(self, asked: Asked, question: Question, keyword: dict[int, float], vector: dict[int, float]) -> list[Hit]:
        parts = _fused(asked, keyword, vector)
        scores = {seq: left + right for seq, (left, right) in parts.items()}
        keyword_ranks, vector_ranks = _ranks(keyword), _ranks(vector)
        return [
            Hit(
                seq,
                scores[seq],
                Leg(keyword_ranks[seq], keyword[seq]) if seq in keyword else None,
                Leg(vector_ranks[seq], vector[seq]) if seq in vector else None,
                *parts[seq],
                highlight(text_of(self._source.unit(seq)), question.words, question.names, self._keywords.stem),
            )
            for seq in fusion.ranked(scores)[asked.offset : asked.offset + asked.limit]
        ]

    def _keyword_leg(
        self, question: Question, scope: Scope, recent: Sequence[_Recent], as_of_seq: int | None
    ) -> dict[int, float]:
        if as_of_seq is None:
            scores = self._keywords.search(question, scope, DEPTH)
            scores.update((one.unit.seq, score) for one, score in self._scored(question, recent) if score > 0)
        else:
            scores = self._scores_as_of(question, scope, recent, as_of_seq)
        return {seq: scores[seq] for seq in fusion.ranked(scores)[:DEPTH]}

    def _scores_as_of(
        self, question: Question, scope: Scope, recent: Sequence[_Recent], as_of_seq: int
    ) -> dict[int, float]:
        """What the index would have said when the log ended there: how rare a word was then is counted again."""
        cut = _cut(EVERYTHING, as_of_seq)
        more = self._terms(self._recent_within(cut))
        statistics = self._keywords.statistics(question, cut).with_more(question, more)
        seqs = list(self._keywords.search(question, scope, AS_OF_DEPTH))
        terms = [self._terms_of(seq) for seq in seqs] + self._terms(recent)
        found = zip([*seqs, *(one.unit.seq for one in recent)], bm25.scores(question, statistics, terms), strict=True)
        return {seq: score for seq, score in found if score > 0}

    def _terms_of(self, seq: int) -> Terms:
        """What a unit consists of as it was indexed: it and what came before it."""
        unit = self._source.unit(seq)
        line = line_of(unit, text_of(unit))
        before = [line_of(one, text_of(one)) for one in self._searched_before(unit)]
        return self._keywords.terms(together(line, before), line)

    def _terms(self, recent: Sequence[_Recent]) -> list[Terms]:
        """What they consist of: most are committed before anyone asks."""
        for one in recent:
            if one.terms is None:
                one.terms = self._keywords.terms(one.text, one.line)
        return [one.terms for one in recent if one.terms is not None]

    def _vector_leg(
        self, query: str, scope: Scope, recent: Sequence[_Recent], keyword: dict[int, float]
    ) -> dict[int, float]:
        vector = self._embedder.embed([query])[0]
        if not vector.any():
            return {}
        nearest = self._rows.nearest(vector, self._rows_within(scope, recent), DEPTH)
        return nearest | self._rows.cosines_of(vector, [seq for seq in keyword if seq not in nearest])

    def _rows_within(self, scope: Scope, recent: Sequence[_Recent]) -> NDArray[np.intp] | None:
        """The rows that a scope lets through; None for all of them."""
        if scope == EVERYTHING:
            return None
        allowed = np.array([*self._keywords.seqs(scope), *(one.unit.seq for one in recent)], np.uint64)
        return np.flatnonzero(np.isin(self._rows.seqs, allowed))

    def _recent_within(self, scope: Scope) -> list[_Recent]:
        wanted = predicate(scope)
        return [one for one in self._recent.values() if wanted(one.unit)]

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


def _fused(asked: Asked, keyword: dict[int, float], vector: dict[int, float]) -> fusion.Parts:
    if asked.mode == "keyword" or not vector:
        return {seq: (score, 0.0) for seq, score in keyword.items()}
    if asked.mode == "semantic":
        return {seq: (0.0, score) for seq, score in vector.items()}
    match asked.fusion:
        case "rrf":
            return fusion.reciprocal_rank(keyword, vector, vector_weight=asked.vector_weight)
        case "relative":
            return fusion.relative_score(keyword, vector, vector_weight=asked.vector_weight)
        case _:
            return fusion.z_union(keyword, vector, vector_weight=asked.vector_weight)


def _ranks(scores: dict[int, float]) -> dict[int, int]:
    return {seq: rank for rank, seq in enumerate(fusion.ranked(scores), start=1)}


def _cut(scope: Scope, as_of_seq: int) -> Scope:
    """The same of a log that ends there."""
    before_seq = as_of_seq + 1 if scope.before_seq is None else min(scope.before_seq, as_of_seq + 1)
    return msgspec.structs.replace(scope, before_seq=before_seq)
