"""A search as it stands on the wire: what one asks, as a value, and what is answered."""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from engram_bus.codec import UnitOut, unit_out
from engram_bus.errors import InvalidRequest, TooLarge
from engram_bus.limits import (
    FILTER_GLOB_BYTES_MAX,
    FILTER_VALUES_MAX,
    SEARCH_HALF_LIFE_MS_MAX,
    SEARCH_INTEGER_MAX,
    SEARCH_LIMIT_MAX,
    SEARCH_QUERY_BYTES_MAX,
    SEARCH_RANK_CONSTANT_MAX,
    SEARCH_WEIGHT_MAX,
)
from engram_bus.projections.search.fusion import RANK_CONSTANT
from engram_bus.projections.search.highlights import Highlight
from engram_bus.projections.search.scope import Scope
from engram_bus.projections.search.values import RECENCY_WEIGHT, VECTOR_WEIGHT, Asked, Found, Hit, Leg
from engram_bus.units import UnitType, WorkUnit, ts_us

MODES = ("hybrid", "keyword", "semantic")
FUSIONS = ("z", "rrf", "relative")
Names = str | list[str] | None
T = TypeVar("T")
BYTES_PER_TOKEN = 4
"""A rule of thumb for English and code; a context's budget is an estimate either way."""


_PAGE = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})\.([0-9]{1,6})")


class SearchIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to find, and where. Filters are joined by and, the values of one by or."""

    query: str
    mode: str = "hybrid"
    limit: int = 10
    context_id: Names = None
    agent_id: Names = None
    type: str | int | list[str | int] | None = None
    kind: Names = None
    resource: Names = None
    meta: dict[str, str] = {}
    related_to: Names = None
    after_seq: int | None = None
    before_seq: int | None = None
    after_ts: str | None = None
    before_ts: str | None = None
    page: str | None = None
    as_of_seq: int | None = None
    min_seq: int = 0
    timeout_ms: int | None = None
    stale: bool = False
    facets: bool = False
    explain: bool = False
    include: str = "ids"
    max_tokens: int | None = None
    fusion: str = "z"
    vector_weight: float = VECTOR_WEIGHT
    rank_constant: float = RANK_CONSTANT
    half_life_ms: int | None = None
    recency_weight: float = RECENCY_WEIGHT
    neighbour_weight: float = 0.0
    distinct: bool = False


class Explained(msgspec.Struct, frozen=True):
    """The arithmetic: the score is the sum of what both legs, the units beside it and its recency give."""

    fusion: str
    vector_weight: float
    keyword_part: float
    vector_part: float
    neighbour_part: float
    recency_part: float


class SearchHit(msgspec.Struct, frozen=True, omit_defaults=True):
    """One unit that was found, and why. `duplicates`: units that say the same and were left out for it."""

    unit_id: str
    seq: int
    score: float
    tokens: int
    keyword: Leg | None = None
    vector: Leg | None = None
    highlights: list[Highlight] = []
    duplicates: int = 0
    explain: Explained | UnsetType = UNSET
    unit: UnitOut | UnsetType = UNSET


class SearchOut(msgspec.Struct, frozen=True):
    """The best units, best first; `total` counts what the filters let through, duplicates too (mode keyword: and holds
    a word of the query), `applied_seq` says up to which seq was looked.

    `degraded`: the embedder that was chosen is out of reach, or has not seen all units yet. What it has not ranked is
    ranked by the shipped model, or found by its words only."""

    results: list[SearchHit]
    total: int
    applied_seq: int
    next_page: str | None
    facets: dict[str, dict[str, int]] | UnsetType = UNSET
    degraded: bool = False


class Window(msgspec.Struct, frozen=True):
    """The part of the ranking that a page shows, in the log as of a seq."""

    offset: int
    as_of_seq: int | None
    statistics_seq: int | None = None


def asked_from(search: SearchIn, window: Window) -> Asked:
    """What is asked of the index. Raises InvalidRequest, TooLarge."""
    if (size := len(search.query.encode("utf-8", "replace"))) > SEARCH_QUERY_BYTES_MAX:
        raise TooLarge(
            f"query has {size} bytes, at most {SEARCH_QUERY_BYTES_MAX}", field="query", limit=SEARCH_QUERY_BYTES_MAX
        )
    _one_of(search.mode, MODES, "mode")
    _one_of(search.fusion, FUSIONS, "fusion")
    _one_of(search.include, ("ids", "units"), "include")
    if not 1 <= search.limit <= SEARCH_LIMIT_MAX:
        raise InvalidRequest(
            f"limit {search.limit} is not 1 to {SEARCH_LIMIT_MAX}", field="limit", limit=SEARCH_LIMIT_MAX
        )
    for field in ("after_seq", "before_seq", "as_of_seq", "min_seq", "max_tokens"):
        _between(getattr(search, field), 0, SEARCH_INTEGER_MAX, field)
    _between(search.vector_weight, 0, 1, "vector_weight")
    _between(search.rank_constant, 0, SEARCH_RANK_CONSTANT_MAX, "rank_constant")
    _between(search.half_life_ms, 1, SEARCH_HALF_LIFE_MS_MAX, "half_life_ms")
    _between(search.recency_weight, 0, SEARCH_WEIGHT_MAX, "recency_weight")
    _between(search.neighbour_weight, 0, SEARCH_WEIGHT_MAX, "neighbour_weight")
    return Asked(
        query=search.query,
        mode=search.mode,
        scope=Scope(
            contexts=_filled(_names(search.context_id, "context_id"), "context_id"),
            agents=_filled(_names(search.agent_id, "agent_id"), "agent_id"),
            types=_types(search.type),
            kinds=_globs(search.kind, "kind"),
            resources=_filled(_globs(search.resource, "resource"), "resource"),
            meta=tuple(zip(_filled(tuple(search.meta), "meta"), search.meta.values(), strict=True)),
            related_to=_filled(_names(search.related_to, "related_to"), "related_to"),
            after_seq=search.after_seq,
            before_seq=search.before_seq,
            after_us=_time(search.after_ts, "after_ts"),
            before_us=_time(search.before_ts, "before_ts"),
        ),
        offset=window.offset,
        limit=search.limit + 1,
        as_of_seq=window.as_of_seq,
        statistics_seq=window.statistics_seq,
        reach_seq=window.as_of_seq if window.as_of_seq is not None else search.min_seq if search.stale else None,
        facets=search.facets,
        fusion=search.fusion,
        vector_weight=search.vector_weight,
        rank_constant=search.rank_constant,
        half_life_ms=search.half_life_ms,
        recency_weight=search.recency_weight,
        neighbour_weight=search.neighbour_weight,
        distinct=search.distinct,
    )


def window_of(search: SearchIn) -> Window:
    """Which part of which ranking. Raises InvalidRequest."""
    if search.page is None:
        return Window(0, search.as_of_seq)
    found = _PAGE.fullmatch(search.page)
    if found is None:
        raise InvalidRequest(f"page {search.page[:64]!r} is not one a search gave", field="page")
    seq, statistics_seq, offset = map(int, found.groups())
    return Window(offset, seq, statistics_seq)


def answer(search: SearchIn, window: Window, found: Found, units: Sequence[tuple[Hit, WorkUnit]]) -> SearchOut:
    """The page of these hits, the first of those found; with `max_tokens`, as much of it in rank order as fits."""
    results: list[SearchHit] = []
    room = search.max_tokens
    for hit, unit in units:
        tokens = -(-len(unit.payload) // BYTES_PER_TOKEN)
        if room is not None:
            if tokens > room:
                continue
            room -= tokens
        results.append(
            SearchHit(
                unit_id=unit.id,
                seq=unit.seq,
                score=hit.score,
                tokens=tokens,
                keyword=hit.keyword,
                vector=hit.vector,
                highlights=[] if hit.highlight is None else [hit.highlight],
                duplicates=hit.duplicates,
                explain=_explained(search, hit) if search.explain else UNSET,
                unit=unit_out(unit) if search.include == "units" else UNSET,
            )
        )
    following = f"{found.applied_seq}.{found.statistics_seq}.{window.offset + len(units)}"
    return SearchOut(
        results,
        found.total,
        found.applied_seq,
        following if len(found.hits) > len(units) else None,
        found.facets if search.facets else UNSET,
        found.degraded,
    )


def _explained(search: SearchIn, hit: Hit) -> Explained:
    return Explained(
        search.fusion,
        search.vector_weight,
        hit.keyword_part,
        hit.vector_part,
        hit.neighbour_part,
        hit.recency_part,
    )


def _one_of(value: str, values: Sequence[str], field: str) -> None:
    if value not in values:
        raise InvalidRequest(f"{field} {value[:64]!r} is unknown; one of {', '.join(values)}", field=field)


def _filled(names: tuple[str, ...], field: str) -> tuple[str, ...]:
    """Names of what has one: a kind may be empty, which is to have none."""
    if "" in names:
        raise InvalidRequest(f"{field} is empty; leave it out to search all", field=field)
    return names


def _names(names: Names, field: str) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else _some(names, field)


def _globs(names: Names, field: str) -> tuple[str, ...]:
    globs = _names(names, field)
    if (size := sum(len(glob.encode()) for glob in globs)) > FILTER_GLOB_BYTES_MAX:
        raise TooLarge(
            f"the globs of {field} have {size} bytes together, at most {FILTER_GLOB_BYTES_MAX}",
            field=field,
            limit=FILTER_GLOB_BYTES_MAX,
        )
    return globs


def _some(values: Sequence[T], field: str) -> tuple[T, ...]:
    """A list of nothing would let everything through."""
    if not values:
        raise InvalidRequest(f"{field} names nothing; leave it out to search all", field=field)
    if len(values) > FILTER_VALUES_MAX:
        raise TooLarge(
            f"{field} names {len(values)}, at most {FILTER_VALUES_MAX}", field=field, limit=FILTER_VALUES_MAX
        )
    return tuple(values)


def _between(value: float | None, low: int, high: int, field: str) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{field} {value} is not {low} to {high}", field=field, limit=high)


def _types(types: Any) -> tuple[UnitType, ...]:
    values = [] if types is None else _some(types, "type") if isinstance(types, list) else [types]
    known: dict[Any, UnitType] = {one.value: one for one in UnitType}
    known.update(enumerate(UnitType))
    for value in values:
        if value not in known:
            raise InvalidRequest(f"type {str(value)[:64]!r} is unknown; one of {', '.join(UnitType)}", field="type")
    return tuple(known[value] for value in values)


def _time(text: str | None, field: str) -> int | None:
    if text is None:
        return None
    try:
        return ts_us(text)
    except (ValueError, TypeError) as exc:
        raise InvalidRequest(f"{field} {text[:64]!r} is not a time like 2026-01-31T12:00:00Z", field=field) from exc
