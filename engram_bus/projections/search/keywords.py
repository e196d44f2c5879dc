"""The keyword leg: BM25 over a tantivy index, whose newest document says how far it reaches."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import translate
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
from engram_bus.projections.search.bm25 import NAME_WEIGHT, Question, Statistics, Terms
from engram_bus.projections.search.scope import Scope

VERSION = "keywords-1"
QUERY_TERMS_MAX = 64
_HEAP_BYTES = 64 * 1024 * 1024
_WORD = re.compile(r"\w{2,}")
_SUMS: dict[str, Any] = {"words": {"sum": {"field": "words"}}, "named": {"sum": {"field": "named"}}}


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
    text: str
    """Itself and what comes before it."""
    line: str
    """Itself alone: its names."""
    row: int
    """Its vector's row, from 1; 0 for none."""


class Keywords:
    """One index on the disk. One process writes it; what was added is found after `commit`."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._schema = _schema()
        self._index = Index(self._schema, str(path))
        self._words = _analyzer()
        self._index.register_tokenizer("words", self._words)
        self._index.register_tokenizer("names", TextAnalyzerBuilder(Tokenizer.whitespace()).build())
        self._index.config_reader("manual", 0)
        self._writer: Any = self._index.writer(_HEAP_BYTES, 1)
        self._reload()

    def _reload(self) -> None:
        self._index.reload()
        self._searcher = self._index.searcher()
        ends = self._aggregate({name: {"max": {"field": name}} for name in ("seq", "row")} | _SUMS)
        self.cursor = int(ends["seq"].get("value") or 0)
        self.rows = int(ends["row"].get("value") or 0)
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
        text, names = analysis.words(unit.text), list(analysis.identifiers(unit.line))
        document = Document()
        document.add_unsigned("seq", unit.seq)
        document.add_unsigned("ts", unit.ts_us)
        document.add_unsigned("row", unit.row)
        document.add_unsigned("words", len(self._words.analyze(text)))
        document.add_unsigned("named", len(names))
        document.add_text("text", text)
        document.add_text("names", " ".join(names))
        for field, values in (
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

    def terms(self, text: str, line: str) -> Terms:
        """What a text consists of, as the index sees it."""
        return Terms(Counter(self._words.analyze(analysis.words(text))), Counter(analysis.identifiers(line)))

    def stem(self, word: str) -> list[str]:
        """A word as the index knows it."""
        return list(self._words.analyze(analysis.words(word)))

    def commit(self) -> None:
        """Make what was added durable, and found."""
        self._writer.commit()
        self._reload()

    def close(self) -> None:
        self._writer.wait_merging_threads()
        self._writer = None

    # --- Finding -----------------------------------------------------------------------------------------------------

    def question(self, text: str) -> Question:
        """A query's terms. Any text is a query: nothing in it is syntax but pairs of double quotes around phrases."""
        words = list(dict.fromkeys(self._words.analyze(analysis.words(text))))[:QUERY_TERMS_MAX]
        # A plain word may be a part of a name (`http` of `parseHTTP`), unless it is one of those that say nothing.
        plain = (word.lower() for word in _WORD.findall(text) if self.stem(word))
        names = list(dict.fromkeys((*analysis.identifiers(text), *plain)))[:QUERY_TERMS_MAX]
        phrases = [self._words.analyze(analysis.words(part)) for part in text.split('"')[1:-1:2]]
        return Question(words, names, [phrase for phrase in phrases if len(phrase) > 1])

    def search(self, question: Question, scope: Scope, limit: int) -> dict[int, float]:
        """The best units by BM25: seq -> score."""
        query = self._asked(question)
        if query is None:
            return {}
        return self._hits(self._within(query, scope), limit)

    def seqs(self, scope: Scope) -> list[int]:
        """Every unit let through."""
        hits = self._searcher.search(self._within(None, scope), max(1, self.count), count=False).hits
        return self._seqs_of(hits)

    def total(self, question: Question | None, scope: Scope) -> int:
        """How many units are let through (and hold a word of the question)."""
        query = None if question is None else self._asked(question)
        if question is not None and query is None:
            return 0
        found: Any = self._searcher.search(self._within(query, scope), 1, count=True)
        return int(found.count or 0)

    def facets(self, question: Question | None, scope: Scope, size: int) -> dict[str, dict[str, int]]:
        """The commonest contexts, agents, types and kinds among them."""
        query = None if question is None else self._asked(question)
        if question is not None and query is None:
            return {name: {} for name in FACETS}
        asked = {name: {"terms": {"field": name, "size": size}} for name in FACETS}
        found = self._aggregate(asked, self._within(query, scope))
        return {name: {bucket["key"]: int(bucket["doc_count"]) for bucket in found[name]["buckets"]} for name in FACETS}

    def statistics(self, question: Question, scope: Scope | None = None) -> Statistics:
        """What BM25 asks of the whole: of everything indexed, or of what a scope lets through."""
        if scope is None:
            return Statistics(
                self.count,
                self._all_words,
                self._all_names,
                {word: self._searcher.doc_freq("text", word) for word in question.words},
                {name: self._searcher.doc_freq("names", name) for name in question.names},
            )
        sums = self._aggregate(_SUMS, self._within(None, scope))
        return Statistics(
            self.total(None, scope),
            float(sums["words"].get("value") or 0),
            float(sums["named"].get("value") or 0),
            {word: self._having("text", word, scope) for word in question.words},
            {name: self._having("names", name, scope) for name in question.names},
        )

    def _having(self, field: str, term: str, scope: Scope) -> int:
        query = self._within(Query.term_query(self._schema, field, term), scope)
        found: Any = self._searcher.search(query, 1, count=True)
        return int(found.count or 0)

    def _asked(self, question: Question) -> Any | None:
        parts = [(Occur.Should, Query.term_query(self._schema, "text", word)) for word in question.words]
        parts += [
            (Occur.Should, Query.boost_query(Query.term_query(self._schema, "names", name), NAME_WEIGHT))
            for name in question.names
        ]
        must = [(Occur.Must, Query.phrase_query(self._schema, "text", list(phrase))) for phrase in question.phrases]
        if not parts and not must:
            return None
        return Query.boolean_query([*must, *parts])

    def _within(self, query: Any | None, scope: Scope) -> Any:
        filters = list(self._filters(scope))
        if query is None and not filters:
            return Query.all_query()
        parts = [] if query is None else [(Occur.Must, query)]
        parts += [(Occur.Must, Query.const_score_query(one, 0.0)) for one in filters]
        return Query.boolean_query(parts)

    def _filters(self, scope: Scope) -> Iterable[Any]:
        for field, values in (
            ("context", scope.contexts),
            ("agent", scope.agents),
            ("type", tuple(str(one) for one in scope.types)),
            ("target", scope.related_to),
        ):
            if values:
                yield Query.term_set_query(self._schema, field, list(values))
        for field, globs in (("kind", scope.kinds), ("resource", scope.resources)):
            if globs:
                yield _any_of([_glob(self._schema, field, glob) for glob in globs])
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
                    0 if after is None else after,
                    2**63 if before is None else before,
                    include_lower=after is None,
                    include_upper=False,
                )

    def _hits(self, query: Any, limit: int) -> dict[int, float]:
        hits = self._searcher.search(query, limit, count=False).hits
        return dict(zip(self._seqs_of(hits), (float(score) for score, _ in hits), strict=True))

    def _seqs_of(self, hits: Sequence[tuple[Any, Any]]) -> list[int]:
        return [int(seq or 0) for seq in self._searcher.fast_field_values("seq", [address for _, address in hits])]


FACETS = ("context", "agent", "type", "kind")


def _schema() -> Any:
    builder = SchemaBuilder()
    builder.add_text_field("text", tokenizer_name="words", index_option="position")
    builder.add_text_field("names", tokenizer_name="names", index_option="freq")
    for field in ("context", "agent", "type", "kind"):
        builder.add_text_field(field, tokenizer_name="raw", index_option="basic", fast=True)
    for field in ("resource", "meta", "target"):
        builder.add_text_field(field, tokenizer_name="raw", index_option="basic")
    for field in ("seq", "ts", "row", "words", "named"):
        builder.add_unsigned_field(field, indexed=True, fast=True)
    return builder.build()


def _analyzer() -> Any:
    return (
        TextAnalyzerBuilder(Tokenizer.simple())
        .filter(Filter.remove_long(80))
        .filter(Filter.lowercase())
        .filter(Filter.ascii_fold())
        .filter(Filter.stopword("english"))
        .filter(Filter.stemmer("english"))
        .build()
    )


def _any_of(queries: Sequence[Any]) -> Any:
    return Query.boolean_query([(Occur.Should, query) for query in queries])


def _glob(schema: Any, field: str, glob: str) -> Any:
    """A glob as a regular expression of tantivy's, which matches whole terms and knows no flags."""
    if not any(sign in glob for sign in "*?["):
        return Query.term_query(schema, field, glob)
    expression = translate(glob).removeprefix("(?s:").removesuffix(")\\Z").replace("(?>", "(").replace(".*?", ".*")
    return Query.regex_query(schema, field, expression)
