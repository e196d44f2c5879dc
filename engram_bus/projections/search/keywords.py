"""The keyword leg: BM25 over a tantivy index, whose newest document says how far it reaches."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from errno import EAGAIN
from math import inf
from pathlib import Path
from typing import Any

import msgspec
from tantivy import (
    Document,
    FieldType,
    Filter,
    Index,
    Occur,
    Query,
    SchemaBuilder,
    TextAnalyzerBuilder,
    Tokenizer,
)

from engram_bus.projections.search import analysis
from engram_bus.projections.search.bm25 import NAME_WEIGHT, Phrase, Question, Statistics, Terms, rarity
from engram_bus.projections.search.scope import Scope

VERSION = "keywords-5"
QUERY_TERMS_MAX = 64
THEN_DEPTH_MAX = 3_200
"""Units that are read again for a search as of a seq, a quarter of a millisecond each: only where very many score
alike, and texts have become much longer or shorter since, one of the best of then may be missing."""
QUERY_STARTS_MAX = 8
"""Each is compared with every word there is."""
DIGITS = 3
"""Of a score that count: of units whose scores differ by less, the newest is the best."""
_HEAP_BYTES = 64 * 1024 * 1024
_STEMS_MAX = 20_000
_LINES_MAX, _LINE_CHARACTERS_MAX = 4_000, 2_000
"""Whose words are counted once: as many, and only short ones."""
_WORD_CHARACTERS_MAX = 80
"""Longer ones are data, not words."""
_WORD = re.compile(r"\w{2,}")
_SUMS: dict[str, Any] = {"words": {"sum": {"field": "words"}}, "named": {"sum": {"field": "named"}}}
_APART = "the " * 8
"""Before each part of a unit: words that say nothing take up places, so that no phrase goes on into the next part."""


class Keyworded(msgspec.Struct, frozen=True):
    """One unit as it is indexed."""

    seq: int
    ts_us: int
    context_id: str
    agent_id: str
    type: str
    kind: str
    resources: Sequence[str]
    meta: dict[str, str]
    targets: Sequence[str]
    lines: Sequence[str]
    """Itself and what comes before it."""
    line: str
    """Itself alone: its names."""
    parts: Sequence[str]
    """Itself alone: where phrases must stand."""

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Keywords:
    """One index on the disk. One process writes it; what was added is found after `commit`."""

    def __init__(self, path: Path) -> None:
        """Raises BlockingIOError where another one writes it, and what tantivy raises where it cannot be used."""
        path.mkdir(parents=True, exist_ok=True)
        self._schema = _schema()
        self._index = Index(self._schema, str(path))
        self._words = _analyzer()
        self._written = _plain_analyzer(Tokenizer.simple(), characters_max=_WORD_CHARACTERS_MAX)
        self._folded = _plain_analyzer(Tokenizer.raw(), characters_max=4 * analysis.NAME_CHARACTERS_MAX)
        self._stems: dict[str, list[str]] = {}
        self._word_counts: dict[str, int] = {}
        self._index.register_tokenizer("words", self._words)
        self._index.register_tokenizer("names", TextAnalyzerBuilder(Tokenizer.whitespace()).build())
        self._index.config_reader("manual", 0)
        self._writer: Any = self._written_by_us(path)
        self._reload()

    def _written_by_us(self, path: Path) -> Any:
        try:
            return self._index.writer(_HEAP_BYTES, 1)
        except ValueError as exc:
            if "LockBusy" in str(exc):  # There is no type of its own for it, and it is no damage.
                raise BlockingIOError(EAGAIN, f"another process writes {path}") from exc
            raise

    def _reload(self) -> None:
        self._index.reload()
        self._searcher = self._index.searcher()
        ends = self._aggregate({"seq": {"max": {"field": "seq"}}} | _SUMS)
        self.cursor = int(ends["seq"].get("value") or 0)
        self.count = int(self._searcher.num_docs)
        self._all_words = float(ends["words"].get("value") or 0)
        self._all_names = float(ends["named"].get("value") or 0)

    def _aggregate(self, what: dict[str, Any], query: Any = None) -> dict[str, Any]:
        if self._searcher.num_docs == 0:
            return {name: {"value": 0, "buckets": []} for name in what}
        found = self._searcher.aggregate(query or Query.all_query(), what)
        return dict(found)

    # --- Adding ------------------------------------------------------------------------------------------------------

    def add(self, unit: Keyworded) -> None:
        """Add a unit, to be found after the next commit."""
        names = list(analysis.identifiers(unit.line))
        document = Document()
        document.add_unsigned("seq", unit.seq)
        document.add_unsigned("ts", unit.ts_us)
        document.add_unsigned("words", sum(map(self._word_count, unit.lines)))
        document.add_unsigned("named", len(names))
        document.add_text("text", analysis.indexed_words(unit.text))
        document.add_text("names", " ".join(names))
        document.add_text("written", " ".join(self._all_written(unit.line, names)))
        for field, values in (
            ("own", (_APART + analysis.words(part) for part in unit.parts)),
            ("context", (unit.context_id,)),
            ("agent", (unit.agent_id,)),
            ("type", (unit.type,)),
            ("kind", (unit.kind,)),
            ("resource", unit.resources),
            ("meta", (f"{key}\0{value}" for key, value in unit.meta.items())),
            ("target", unit.targets),
        ):
            for value in values:
                document.add_text(field, value)
        self._writer.add_document(document)

    def _word_count(self, line: str) -> int:
        """Of a line that stands with the next ones of its context, too."""
        count = self._word_counts.get(line)
        if count is None:
            count = len(self._words.analyze(analysis.indexed_words(line)))
            if len(line) <= _LINE_CHARACTERS_MAX:
                if len(self._word_counts) >= _LINES_MAX:
                    self._word_counts.clear()
                self._word_counts[line] = count
        return count

    def terms(self, text: str, line: str) -> Terms:
        """What a text consists of, as the index sees it."""
        names = Counter(analysis.identifiers(line))
        words = Counter(self._words.analyze(analysis.indexed_words(text)))
        return Terms(words, names, self._all_written(line, names))

    def written(self, text: str) -> frozenset[str]:
        """Words and names as they are written, but for capitals and accents: not cut to their stems."""
        return self._all_written(text, analysis.identifiers(text))

    def _all_written(self, line: str, names: Iterable[str]) -> frozenset[str]:
        folded = names if line.isascii() else map(self._fold, names)  # Which are without capitals already.
        return frozenset(self._written.analyze(line)).union(folded)

    def _fold(self, name: str) -> str:
        """Without capitals and accents."""
        return name.lower() if name.isascii() else "".join(self._folded.analyze(name))

    def stem(self, word: str) -> list[str]:
        """A word as the index knows it. Most words of a text are those of other texts."""
        known = self._stems.get(word)
        if known is None:
            if len(self._stems) >= _STEMS_MAX:
                self._stems.clear()
            known = self._stems[word] = list(self._words.analyze(analysis.words(word)))
        return known

    def commit(self) -> None:
        """Make what was added durable, and found."""
        self._writer.commit()
        self._reload()

    def close(self) -> None:
        self._writer.wait_merging_threads()
        self._writer = None

    # --- Finding -----------------------------------------------------------------------------------------------------

    def question(self, text: str) -> Question:
        """A query's terms. Any text is a query: nothing in it is syntax but pairs of double quotes around phrases,
        and a star behind the beginning of a word."""
        starts, text = analysis.starts(analysis.normal(text))
        said = analysis.without_asking(text)
        words = self._words.analyze(analysis.words(said))
        if not words:
            said = text
            words = self._words.analyze(analysis.words(said))
        # A plain word may be a part of a name (`http` of `parseHTTP`), unless it is one of those that say nothing.
        plain = (word.lower() for word in _WORD.findall(said) if self.stem(word))
        names = list(dict.fromkeys((*analysis.identifiers(text), *plain)))[:QUERY_TERMS_MAX]
        phrases = dict.fromkeys(self._phrase(part) for part in text.split('"')[1:-1:2])
        return Question(
            list(dict.fromkeys(words))[:QUERY_TERMS_MAX],
            names,
            [phrase for phrase in phrases if phrase],
            list(dict.fromkeys(filter(None, map(analysis.path_of, said.split()))))[:QUERY_TERMS_MAX],
            list(dict.fromkeys(map(self._fold, starts)))[:QUERY_STARTS_MAX],
        )

    def _phrase(self, text: str) -> Phrase:
        tokens = self._words.pre_tokenize(analysis.words(text)).tokens
        return tuple((token.position - tokens[0].position, token.text) for token in tokens)

    def says(self, parts: Sequence[str], phrases: Sequence[Phrase]) -> bool:
        """Whether all of these phrases stand in a unit, each in one of its parts."""
        if not phrases:
            return True
        said = [{(place, word) for place, word in self._phrase(part)} for part in parts]
        return all(any(_stands(phrase, places) for places in said) for phrase in phrases)

    def search(
        self,
        question: Question,
        scope: Scope,
        limit: int,
        *,
        then: Statistics | None = None,
        touching: Sequence[str] = (),
    ) -> dict[int, float]:
        """The best units by BM25, of equal ones the newest: seq -> score. With the statistics of `then`, words are as
        rare as they were; how long a text usually is stays what it is now. Only those `touching` one of these."""
        query = self._asked(question, then)
        if query is None:
            return {}
        if touching:
            touched = Query.term_set_query(self._schema, "resource", list(touching))
            query = Query.boolean_query([(Occur.Must, query), (Occur.Must, Query.const_score_query(touched, 0.0))])
        query, asked = self._within(query, question, scope), 2 * limit
        while True:
            found = self._searcher.search(query, asked, count=False).hits
            scores = [round(float(score), DIGITS) for score, _ in found]
            if len(found) < asked or scores[-1] < scores[limit - 1]:
                break
            asked *= 4  # Units that score alike go on: which of them are the newest?
        best = sorted(zip(scores, self._seqs_of(found), strict=True), reverse=True)[:limit]
        return {seq: score for score, seq in best}

    def best_then(
        self, question: Question, scope: Scope, limit: int, then: Statistics, *, touching: Sequence[str] = ()
    ) -> dict[int, float]:
        """All units that may have been among the best with the statistics of `then`, and some more.

        Words are as rare as they were; how long a text usually is stays what it is now, which changes a score at most
        by the factor f between then and now. So whatever was among the best has now at least 1 / f^2 of the last of
        them.
        """
        factor = max(
            _factor(self._all_words * then.texts, then.words * self.count),
            _factor(self._all_names * then.texts, then.names * self.count),
        )
        depth = 2 * limit
        while True:
            found = self.search(question, scope, depth, then=then, touching=touching)
            scores = list(found.values())
            if len(scores) < depth or depth >= THEN_DEPTH_MAX:
                return found
            if scores[-1] < scores[limit - 1] / factor**2 - 2 * 10.0**-DIGITS:
                return found
            depth = min(4 * depth, THEN_DEPTH_MAX)

    def seqs(self, question: Question, scope: Scope, *, with_words: bool) -> list[int]:
        """Every unit let through that has the question's phrases (and, if so, one of its words)."""
        query = self._asked(question) if with_words else None
        if with_words and query is None:
            return []
        hits = self._searcher.search(self._within(query, question, scope), max(1, self.count), count=False).hits
        return self._seqs_of(hits)

    def total(self, question: Question, scope: Scope) -> int:
        """How many units are let through, have the question's phrases, and one of its words."""
        query = self._asked(question)
        return 0 if query is None else self._count(self._within(query, question, scope))

    def statistics(self, question: Question) -> Statistics:
        """What BM25 asks of the whole."""
        return Statistics(
            self.count,
            self._all_words,
            self._all_names,
            {word: self._searcher.doc_freq("text", word) for word in question.words},
            {name: self._searcher.doc_freq("names", name) for name in question.names},
            {start: self._count(self._starting(start)) for start in question.starts},
        )

    def statistics_then(self, question: Question, seq: int) -> Statistics:
        """The same of what was indexed up to a seq: by what has come since, where that is less."""
        if seq < self.cursor // 2:
            return self._statistics_of(question, Scope(before_seq=seq + 1))
        return self.statistics(question).without(self._statistics_of(question, Scope(after_seq=seq)))

    def _statistics_of(self, question: Question, scope: Scope) -> Statistics:
        within = self._within(None, None, scope)
        sums = self._aggregate(_SUMS, within)
        return Statistics(
            self._count(within),
            float(sums["words"].get("value") or 0),
            float(sums["named"].get("value") or 0),
            {word: self._having("text", word, scope) for word in question.words},
            {name: self._having("names", name, scope) for name in question.names},
            {start: self._count(self._within(self._starting(start), None, scope)) for start in question.starts},
        )

    def _having(self, field: str, term: str, scope: Scope) -> int:
        return self._count(self._within(Query.term_query(self._schema, field, term), None, scope))

    def _count(self, query: Any) -> int:
        found: Any = self._searcher.search(query, 1, count=True)
        return int(found.count or 0)

    def _asked(self, question: Question, then: Statistics | None = None) -> Any | None:
        was = self._rarer(question, then)
        parts = [self._weighed("text", word, was.get(("text", word), 1.0)) for word in question.words]
        parts += [self._weighed("names", name, NAME_WEIGHT * was.get(("names", name), 1.0)) for name in question.names]
        if question.starts:
            told = then or self.statistics(question)
            parts += [
                (Occur.Should, Query.boost_query(self._starting(start), rarity(told.texts, told.having_start[start])))
                for start in question.starts
            ]
        return Query.boolean_query(parts) if parts else None

    def _starting(self, start: str) -> Any:
        """What has a word or a name that begins so; scored 1."""
        found = Query.fuzzy_term_query(self._schema, "written", start, distance=0, prefix=True)
        return Query.const_score_query(found, 1.0)

    def _rarer(self, question: Question, then: Statistics | None) -> dict[tuple[str, str], float]:
        """How many times what it weighs now each term weighed then."""
        if then is None:
            return {}
        now = self.statistics(question)
        return {
            (field, term): rarity(then.texts, count) / rarity(now.texts, counted[term])
            for field, counts, counted in (
                ("text", then.having_word, now.having_word),
                ("names", then.having_name, now.having_name),
            )
            for term, count in counts.items()
        }

    def _weighed(self, field: str, term: str, weight: float) -> tuple[Any, Any]:
        return Occur.Should, Query.boost_query(Query.term_query(self._schema, field, term), weight)

    def _within(self, query: Any | None, question: Question | None, scope: Scope) -> Any:
        phrases = [] if question is None else [self._standing(phrase) for phrase in question.phrases]
        filters = [*phrases, *self._filters(scope)]
        if query is None and not filters:
            return Query.all_query()
        if query is not None and not filters:
            return query  # As it is: only a bare union of terms passes over what cannot be among the best.
        parts = [] if query is None else [(Occur.Must, query)]
        parts += [(Occur.Must, Query.const_score_query(one, 0.0)) for one in filters]
        return Query.boolean_query(parts)

    def _standing(self, phrase: Phrase) -> Any:
        if len(phrase) == 1:
            return Query.term_query(self._schema, "own", phrase[0][1])
        return Query.phrase_query(self._schema, "own", list(phrase))

    def _filters(self, scope: Scope) -> Iterable[Any]:
        for field, values in (
            ("context", scope.contexts),
            ("agent", scope.agents),
            ("type", tuple(str(one) for one in scope.types)),
            ("target", scope.related_to),
            ("kind", scope.kinds),
            ("resource", scope.resources),
        ):
            if values:
                yield Query.term_set_query(self._schema, field, list(values))
        by_key: dict[str, list[str]] = {}
        for key, value in scope.meta:
            by_key.setdefault(key, []).append(f"{key}\0{value}")
        for pairs in by_key.values():
            yield Query.term_set_query(self._schema, "meta", pairs)
        for field, after, before in (
            ("seq", scope.after_seq, scope.before_seq),
            ("ts", scope.after_us, scope.before_us),
        ):
            if after is not None or before is not None:
                yield Query.range_query(
                    self._schema,
                    field,
                    FieldType.Unsigned,
                    max(0, after or 0),
                    2**63 if before is None else before,
                    include_lower=after is None or after < 0,
                    include_upper=False,
                )

    def _seqs_of(self, hits: Sequence[tuple[Any, Any]]) -> list[int]:
        return [int(seq or 0) for seq in self._searcher.fast_field_values("seq", [address for _, address in hits])]


def _schema() -> Any:
    builder = SchemaBuilder()
    builder.add_text_field("text", tokenizer_name="words", index_option="freq")
    builder.add_text_field("own", tokenizer_name="words", index_option="position")
    builder.add_text_field("names", tokenizer_name="names", index_option="freq")
    builder.add_text_field("written", tokenizer_name="names", index_option="basic")
    for field in ("context", "agent", "type", "kind", "resource", "meta", "target"):
        builder.add_text_field(field, tokenizer_name="raw", index_option="basic")
    for field in ("seq", "ts", "words", "named"):
        builder.add_unsigned_field(field, indexed=True, fast=True)
    return builder.build()


def _analyzer() -> Any:
    return (
        TextAnalyzerBuilder(Tokenizer.simple())
        .filter(Filter.remove_long(_WORD_CHARACTERS_MAX))
        .filter(Filter.ascii_fold())
        .filter(Filter.lowercase())
        .filter(Filter.stopword("english"))
        .filter(Filter.stemmer("english"))
        .build()
    )


def _factor(one: float, other: float) -> float:
    """How many times the larger is the smaller."""
    if one == other:
        return 1.0
    return max(one, other) / min(one, other) if min(one, other) > 0 else inf


def _plain_analyzer(tokenizer: Any, *, characters_max: int) -> Any:
    """No stems: how a word begins is how it is written."""
    builder = TextAnalyzerBuilder(tokenizer).filter(Filter.remove_long(characters_max))
    return builder.filter(Filter.ascii_fold()).filter(Filter.lowercase()).build()


def _stands(phrase: Phrase, places: set[tuple[int, str]]) -> bool:
    first = phrase[0][1]
    return any(
        all((start + offset, word) in places for offset, word in phrase) for start, one in places if one == first
    )
