"""One search index: units in, in order, and answers out, over what is indexed and what only came a moment ago."""

import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf
from pathlib import Path
from typing import Self

import msgspec
import numpy as np

from engram_bus.projections.contract import Damaged, Source
from engram_bus.projections.search import bm25, fusion
from engram_bus.projections.search.analysis import normal
from engram_bus.projections.search.bm25 import Question, Statistics, Terms
from engram_bus.projections.search.columns import FACETS, Columns, Mask, Places
from engram_bus.projections.search.commits import COMMIT, NO_ROWS, NOTHING, Commit, Stamp, read_commit, write_commit
from engram_bus.projections.search.documents import (
    PAIR_UNITS,
    glance_of,
    is_searched,
    line_of,
    meaning_of,
    parts_of,
    text_of,
    together,
)
from engram_bus.projections.search.embedders import Embedder
from engram_bus.projections.search.highlights import Sought, highlight
from engram_bus.projections.search.keywords import DIGITS, Keyworded, Keywords
from engram_bus.projections.search.late import Late, Units, Wanted
from engram_bus.projections.search.likeness import Likeness
from engram_bus.projections.search.scope import Scope, predicate
from engram_bus.projections.search.segments import SEGMENTS, Segments
from engram_bus.projections.search.values import Asked, Found, Hit, Leg
from engram_bus.projections.search.vectors import KeptRows, Query, Rows
from engram_bus.units import WorkUnit, ts_us

DEPTH = 200
"""Candidates of each leg: 50 cost recall, 1,000 gained nothing."""
BESIDE_ROWS = 100_000
"""From here on, both legs of a search run beside each other: each of them takes milliseconds."""
TERMS_KEPT = 4 * DEPTH
"""What units consist of, read again from the log: ten kilobytes each."""
LOOK_BACK_UNITS = 8
FACET_VALUES_MAX = 100
_CONTEXTS_REMEMBERED = 10_000


class _Recent(msgspec.Struct):
    """A unit that was added and not committed: the keyword leg looks at it by itself."""

    unit: WorkUnit
    document: Keyworded
    terms: Terms | None = None


class TooLate(Exception):
    """Nobody waits for the answer any more."""


class SearchIndex:
    """Keyword and vector leg of one log. What is taken in is found at once; after `commit` it outlives a restart."""

    late: Late | None = None
    """Vectors that rank instead of the index's own, when they can."""

    def __init__(self, path: Path, embedder: Embedder, source: Source) -> None:
        """Open what was committed; the embedder is at hand. Raises Damaged, and what tantivy raises, where it cannot be
        used."""
        self._embedder = embedder
        self._path = path
        self._commit = _commit_in(path)
        self._segments = Segments(path, self._commit)
        count, cursor = self._commit.count, self._commit.cursor
        self._columns = Columns(path / "columns", count=count, cursor=cursor)
        dimension = embedder.dimension
        assert dimension is not None, "it is at hand"
        self._vectors = KeptRows(path / "vectors", dimension=dimension, count=count)
        self._refuse_others()
        self._keywords = Keywords(self._segments.work)
        if (self._keywords.count, self._keywords.cursor) != (count, cursor):
            raise Damaged(f"{path} holds {self._keywords.count} units up to {self._keywords.cursor}, not what it says")
        self._source = source
        self._lines: OrderedDict[str, list[tuple[int, str]]] = OrderedDict()
        self._recent: dict[int, _Recent] = {}
        self._terms_read: dict[int, Terms] = {}
        self._beside = ThreadPoolExecutor(1, "vectors")
        self._until = inf
        self.taken = cursor

    def _refuse_others(self) -> None:
        """Raises Damaged where tables are whole, and not those that were committed."""
        for name, stamp in self._stamps().items():
            if stamp != self._commit.tables.get(name, NO_ROWS):
                raise Damaged(f"{self._path / name} is not the file that was committed")

    def _stamps(self) -> dict[str, Stamp]:
        columns = {f"columns/{name}": stamp for name, stamp in self._columns.stamps.items()}
        return columns | {"vectors/rows": self._vectors.stamp}

    @property
    def cursor(self) -> int:
        """The seq of the newest unit that outlives a restart."""
        return self._keywords.cursor

    def is_of(self, source: Source, head: int) -> bool:
        """Whether this is the log, up to its head, that was indexed: the newest unit is there, and all up to it is the
        same."""
        if self.cursor == 0:
            return True
        return self.cursor <= head and source.chain(self.cursor).hex() == self._commit.chain

    def rank_with(self, embedder: Embedder, path: Path) -> Late:
        """Let this one say what is near, whenever it can; its vectors are kept under the path."""
        assert self.late is None, "one embedder is chosen"
        self.late = Late(path, embedder, self._units)
        return self.late

    def succeed(self, older: Self) -> None:
        """Rank with what another index of the same log ranked with."""
        self.late, older.late = older.late, None
        if self.late is not None:
            self.late.units = self._units

    @property
    def _units(self) -> Units:
        return Units(lambda: self._columns.count, self._wanted)

    def _wanted(self, first: int, count: int) -> list[Wanted]:
        last = min(first + count, self._columns.count)
        units = [self._source.unit(seq) for seq in self._columns.seqs_of(np.arange(first, last))]
        texts = [text_of(unit) for unit in units]
        return [
            Wanted(unit.seq, unit.id, meaning_of(unit, text, line=line_of(unit, text)))
            for unit, text in zip(units, texts, strict=True)
        ]

    @property
    def uncommitted(self) -> int:
        return len(self._recent)

    # --- Taking in ---------------------------------------------------------------------------------------------------

    def take(self, units: Sequence[WorkUnit]) -> None:
        """Index the next units of the log, in order."""
        searched = [unit for unit in units if is_searched(unit)]
        texts = [text_of(unit) for unit in searched]
        lines = [line_of(unit, text) for unit, text in zip(searched, texts, strict=True)]
        of_all = list(zip(searched, texts, lines, strict=True))
        vectors = self._embedder.embed([meaning_of(unit, text, line=line) for unit, text, line in of_all])
        for unit, text, line in of_all:
            document = self._keyworded(unit, text, line)
            self._columns.add(unit)
            self._keywords.add(document)
            self._recent[unit.seq] = _Recent(unit, document)
        self._vectors.add(vectors)
        if units:
            self.taken = units[-1].seq

    def _keyworded(self, unit: WorkUnit, text: str, line: str) -> Keyworded:
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
            lines=together(line, recent, text=text),
            line=line,
            parts=parts_of(unit, text),
        )

    def _searched_before(self, unit: WorkUnit) -> list[WorkUnit]:
        """The last units before one in its context, passing over those that are not searched, as far as is looked."""
        before = [one for one in self._source.before(unit, LOOK_BACK_UNITS) if is_searched(one)]
        return before[-PAIR_UNITS:]

    def commit(self) -> None:
        """Make what was taken in outlive a restart: it does when the last file says what all the others are."""
        self._columns.flush()
        self._vectors.flush()
        self._keywords.commit()
        meta, segments = self._segments.keep()
        chain = self._source.chain(self.cursor).hex() if self.cursor else ""
        self._commit = Commit(self._keywords.count, self.cursor, chain, self._stamps(), segments, meta)
        write_commit(self._path, self._commit)
        self._segments.drop_others(segments)
        self._recent.clear()

    def check(self) -> None:
        """Whether the files that are read while it answers are what was written. Raises Damaged, OSError."""
        self._segments.check()

    def close(self) -> None:
        self._beside.shutdown()
        self._keywords.close()
        if self.late is not None:
            self.late.close()

    # --- Answering ---------------------------------------------------------------------------------------------------

    def search(self, asked: Asked, *, until: float = inf) -> Found:
        """The best units that the scope lets through and in which the query's phrases stand.

        Raises TooLate, if the monotonic clock is found to be beyond `until`.
        """
        self._until = until
        moment = self._moment(asked)
        within = self._within(_cut(asked.scope, moment), asked.query)
        if within is None:
            return Found([], 0, moment.as_of_seq, moment.statistics_seq, {name: {} for name in FACETS})
        leg = self._vector_leg(asked, within) if asked.mode != "keyword" else None
        keyword = self._keyword_leg(within, moment) if asked.mode != "semantic" else {}
        vector = {} if leg is None else self._near(leg, keyword)
        total, facets = self._counted_words(within) if asked.mode == "keyword" else self._counted(within)
        return Found(
            self._hits(asked, moment, within.question, keyword, vector),
            total,
            moment.as_of_seq,
            moment.statistics_seq,
            facets() if asked.facets else {},
            leg is not None and leg.is_degraded,
        )

    def _moment(self, asked: Asked) -> "_Moment":
        """Statistics are the index's own, where nothing else is asked for: those of the log up to what is committed.
        What was taken in since is scored by them too, so that equal units are equal."""
        as_of_seq = self.taken if asked.as_of_seq is None else min(self.taken, asked.as_of_seq)
        own = self.cursor or self.taken
        if asked.statistics_seq is not None:
            statistics_seq = asked.statistics_seq
        else:
            statistics_seq = own if asked.as_of_seq is None else as_of_seq
        is_own = statistics_seq == own or (statistics_seq > own and not self._recent)
        is_now = as_of_seq == self.taken and is_own
        return _Moment(as_of_seq, statistics_seq, is_now=is_now)

    def _within(self, scope: Scope, query: str) -> "_Within | None":
        """What may be found at all; None where that is nothing."""
        question = self._keywords.question(query)
        exact = self._columns.exact(scope)
        if exact is None:
            return None
        mask = self._columns.mask(exact)
        if mask is not None and not mask.any():
            return None
        wanted = predicate(scope)
        recent = [
            one
            for one in self._recent.values()
            if wanted(one.unit) and self._keywords.says(one.document.parts, question.phrases)
        ]
        if question.phrases:
            seqs = self._keywords.seqs(question, exact, with_words=False)
            mask = np.zeros(self._columns.count, np.bool_)
            mask[self._columns.places_of([*seqs, *(one.unit.seq for one in recent)])] = True
        return _Within(question, exact, mask, recent)

    def _counted(self, within: "_Within") -> "_Counted":
        mask = within.mask
        if mask is None:
            return self._columns.count, lambda: self._facets(None)
        return int(np.count_nonzero(mask)), lambda: self._facets(np.flatnonzero(mask))

    def _counted_words(self, within: "_Within") -> "_Counted":
        """Only those with a word of the query."""
        recent = [
            one.unit.seq
            for one, terms in zip(within.recent, self._terms(within.recent), strict=True)
            if bm25.holds(within.question, terms)
        ]

        def facets() -> dict[str, dict[str, int]]:
            seqs = self._keywords.seqs(within.question, within.scope, with_words=True)
            return self._facets(self._columns.places_of([*seqs, *recent]))

        return self._keywords.total(within.question, within.scope) + len(recent), facets

    def _facets(self, places: Places | None) -> dict[str, dict[str, int]]:
        """The commonest values, commonest first."""
        return {field: self._columns.commonest(field, places, FACET_VALUES_MAX) for field in FACETS}

    def _hits(
        self, asked: Asked, moment: "_Moment", question: Question, keyword: dict[int, float], vector: dict[int, float]
    ) -> list[Hit]:
        parts = self._parts(asked, moment, keyword, vector)
        scores = {seq: words + meaning + beside + new for seq, (words, meaning, beside, new) in parts.items()}
        ranking = fusion.ranked(scores)
        duplicates = (
            fusion.distinct(ranking, self._likeness(ranking).alike) if asked.distinct else dict.fromkeys(ranking, 0)
        )
        sought = Sought(
            frozenset(question.words),
            frozenset(question.names),
            self._keywords.stem,
            question.starts,
            self._keywords.written,
        )
        keyword_ranks, vector_ranks = _ranks(keyword), _ranks(vector)
        return [
            Hit(
                seq=seq,
                score=scores[seq],
                keyword=Leg(keyword_ranks[seq], keyword[seq]) if seq in keyword else None,
                vector=Leg(vector_ranks[seq], vector[seq]) if seq in vector else None,
                keyword_part=parts[seq][0],
                vector_part=parts[seq][1],
                highlight=highlight(glance_of(self._source.unit(seq)), sought),
                neighbour_part=parts[seq][2],
                recency_part=parts[seq][3],
                duplicates=duplicates[seq],
            )
            for seq in list(duplicates)[asked.offset : asked.offset + asked.limit]
        ]

    def _parts(
        self, asked: Asked, moment: "_Moment", keyword: dict[int, float], vector: dict[int, float]
    ) -> dict[int, tuple[float, float, float, float]]:
        """What each unit gets for its words, its meaning, the units beside it, and for being new."""
        legs = _fused(asked, keyword, vector)
        beside: dict[int, float] = {}
        if asked.neighbour_weight:
            scores = {seq: words + meaning for seq, (words, meaning) in legs.items()}
            beside = fusion.neighbours(scores, self._columns.adjacent(list(scores)), weight=asked.neighbour_weight)
        new = self._recency(asked, asked.half_life_ms, moment, list(legs)) if asked.half_life_ms and legs else {}
        return {seq: (*both, beside.get(seq, 0.0), new.get(seq, 0.0)) for seq, both in legs.items()}

    def _recency(self, asked: Asked, half_life_ms: int, moment: "_Moment", seqs: Sequence[int]) -> dict[int, float]:
        """By the newest unit that is looked at, and no clock: asked again, it is the same."""
        now_us = ts_us(self._source.unit(moment.as_of_seq).ts)
        ages_ms = {seq: (now_us - us) / 1_000 for seq, us in self._columns.times_of(seqs).items()}
        weight = asked.recency_weight * _best_score(asked)
        return fusion.recency(ages_ms, half_life_ms=half_life_ms, weight=weight)

    def _likeness(self, seqs: Sequence[int]) -> Likeness:
        texts = {seq: glance_of(self._source.unit(seq)) for seq in seqs}
        return Likeness(texts, self._vectors.kept(self._columns.places_of(seqs)))

    def _keyword_leg(self, within: "_Within", moment: "_Moment") -> dict[int, float]:
        question, recent = within.question, within.recent
        touched = self._columns.ending(question.paths)
        if moment.is_now:
            scores = self._keywords.search(question, within.scope, DEPTH)
            if touched:
                scores |= self._keywords.search(question, within.scope, DEPTH, touching=touched)
            statistics = self._statistics(question)
        else:
            # All that may have been among the best then, scored again by what was told then.
            statistics = self._statistics_then(question, moment.statistics_seq)
            best = self._keywords.best_then(question, within.scope, DEPTH, statistics)
            if touched:
                best |= self._keywords.best_then(question, within.scope, DEPTH, statistics, touching=touched)
            scores = _scores(list(best), question, statistics, [self._terms_of(seq) for seq in best])
        scores.update(_scores([one.unit.seq for one in recent], question, statistics, self._terms(recent)))
        if touched:
            self._add_paths(scores, touched, texts=statistics.texts, statistics_seq=moment.statistics_seq)
        return {seq: scores[seq] for seq in fusion.ranked(scores)[:DEPTH]}

    def _add_paths(self, scores: dict[int, float], touched: Sequence[str], *, texts: int, statistics_seq: int) -> None:
        """What touches a path that was asked for gets as much as a word gives that is as rare."""
        touching = self._columns.seqs_of(np.flatnonzero(self._columns.touching(touched)))
        having = bisect_right(touching, statistics_seq)
        for seq in scores.keys() & set(touching):
            scores[seq] = round(scores[seq] + bm25.PATH_WEIGHT * bm25.rarity(texts, having), DIGITS)

    def _statistics(self, question: Question) -> Statistics:
        """Of what is committed; before there is anything, of what is not."""
        statistics = self._keywords.statistics(question)
        return statistics if self.cursor else statistics.with_more(question, self._terms(list(self._recent.values())))

    def _statistics_then(self, question: Question, seq: int) -> Statistics:
        """Of the log up to a seq."""
        more = self._terms([one for one in self._recent.values() if one.unit.seq <= seq])
        return self._keywords.statistics_then(question, seq).with_more(question, more)

    def _terms_of(self, seq: int) -> Terms:
        """What a unit consists of as it was indexed: it and what came before it. The next page asks for the same."""
        known = self._terms_read.get(seq)
        if known is None:
            if len(self._terms_read) >= TERMS_KEPT:
                self._terms_read.clear()
            known = self._terms_read[seq] = self._read_terms(seq)
        return known

    def _read_terms(self, seq: int) -> Terms:
        if time.monotonic() >= self._until:
            raise TooLate
        unit = self._source.unit(seq)
        text = text_of(unit)
        line = line_of(unit, text)
        before = [line_of(one, text_of(one)) for one in self._searched_before(unit)]
        return self._keywords.terms("\n".join(together(line, before, text=text)), line)

    def _terms(self, recent: Sequence[_Recent]) -> list[Terms]:
        """What they consist of: most are committed before anyone asks."""
        for one in recent:
            if one.terms is None:
                one.terms = self._keywords.terms(one.document.text, one.document.line)
        return [one.terms for one in recent if one.terms is not None]

    def _vector_leg(self, asked: Asked, within: "_Within") -> "_VectorLeg":
        """Begin to look for the nearest: beside the keyword leg, where both take long."""
        vector = None if self.late is None else self.late.vector_of(asked.query)
        if self.late is not None and vector is not None:
            rows, is_degraded = self.late.rows, self.late.missing > 0
        else:
            vector, rows = self._embedder.embed([normal(asked.query)])[0], self._vectors.rows
            is_degraded = self.late is not None
        look = partial(rows.nearest, vector, within.mask, DEPTH)
        is_beside = asked.mode == "hybrid" and rows.count >= BESIDE_ROWS
        return _VectorLeg(vector, rows, is_degraded, self._beside.submit(look).result if is_beside else look)

    def _near(self, leg: "_VectorLeg", keyword: dict[int, float]) -> dict[int, float]:
        """The nearest, and how near those are that the keyword leg found."""
        if not leg.vector.any():
            return {}
        places, cosines = leg.nearest()
        found = dict(zip(self._columns.seqs_of(places), cosines, strict=True))
        more = self._columns.places_of([seq for seq in keyword if seq not in found])
        more = more[more < leg.rows.count]
        told = zip(self._columns.seqs_of(more), leg.rows.cosines(leg.vector, more), strict=True)
        found.update((seq, one) for seq, one in told if one is not None)
        return found


def _commit_in(path: Path) -> Commit:
    """The newest; nothing, where there is not yet anything else either. Raises Damaged."""
    commit = read_commit(path)
    if commit is None and any((path / SEGMENTS).glob("*")):
        raise Damaged(f"{path / COMMIT} is gone")
    return commit or NOTHING


_Counted = tuple[int, Callable[[], dict[str, dict[str, int]]]]
"""How many units are found in all, and what counts them by facet."""


class _Within(msgspec.Struct, frozen=True):
    """What may be found: in the columns, in the keyword index (with names instead of globs), and not committed yet."""

    question: Question
    scope: Scope
    mask: Mask | None
    recent: list[_Recent]


class _VectorLeg(msgspec.Struct, frozen=True):
    """A query's vector, what it is compared with, and what waits for the nearest; `is_degraded` if the chosen embedder
    does not say of each unit how near it is."""

    vector: Query
    rows: Rows
    is_degraded: bool
    nearest: Callable[[], tuple[Places, list[float]]]


class _Moment(msgspec.Struct, frozen=True):
    """As if the log ended at `as_of_seq`, with its statistics at another seq; `is_now` if that changes nothing."""

    as_of_seq: int
    statistics_seq: int
    is_now: bool


def _scores(
    seqs: Sequence[int], question: Question, statistics: Statistics, terms: Sequence[Terms]
) -> dict[int, float]:
    """Of those that hold anything of the question."""
    scores = bm25.scores(question, statistics, terms)
    return {
        seq: round(score, DIGITS)
        for seq, score, one in zip(seqs, scores, terms, strict=True)
        if bm25.holds(question, one)
    }


def _fused(asked: Asked, keyword: dict[int, float], vector: dict[int, float]) -> fusion.Parts:
    """A single leg's scores stay what they are, unless something is to be added that has the measure of the fusion."""
    is_plain = asked.half_life_ms is None and not asked.neighbour_weight
    vector_weight = asked.vector_weight
    if asked.mode == "keyword" or not vector:
        if is_plain:
            return {seq: (score, 0.0) for seq, score in keyword.items()}
        vector_weight = 0.0
    elif asked.mode == "semantic":
        if is_plain:
            return {seq: (0.0, score) for seq, score in vector.items()}
        vector_weight = 1.0
    match asked.fusion:
        case "rrf":
            constant = asked.rank_constant
            return fusion.reciprocal_rank(keyword, vector, vector_weight=vector_weight, rank_constant=constant)
        case "relative":
            return fusion.relative_score(keyword, vector, vector_weight=vector_weight)
        case _:
            return fusion.z_union(keyword, vector, vector_weight=vector_weight)


def _best_score(asked: Asked) -> float:
    """What 1 is in the measure of the fusion: of z-scores a standard deviation, otherwise what the best unit has."""
    return 1 / (asked.rank_constant + 1) if asked.fusion == "rrf" else 1.0


def _ranks(scores: dict[int, float]) -> dict[int, int]:
    return {seq: rank for rank, seq in enumerate(fusion.ranked(scores), start=1)}


def _cut(scope: Scope, moment: _Moment) -> Scope:
    """The same of a log that ends there."""
    if moment.is_now:
        return scope
    end = moment.as_of_seq + 1
    return msgspec.structs.replace(scope, before_seq=end if scope.before_seq is None else min(scope.before_seq, end))
