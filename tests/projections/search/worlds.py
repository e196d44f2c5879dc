"""Logs of random units, the index over one of them, and what a reader who looks at every unit would find."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import strategies as st

from engram_bus.projections.search import engine, vectors
from engram_bus.projections.search.documents import is_searched
from engram_bus.projections.search.embedders import StaticEmbedder
from engram_bus.projections.search.engine import SearchIndex
from engram_bus.projections.search.scope import Scope, predicate
from engram_bus.projections.search.values import Asked, Found
from engram_bus.units import FORMAT_TEXT, Relationship, RelationshipType, UnitType, WorkUnit, ts_text
from tests.values import unit_id

CONTEXTS = ("plan", "plan:b", "日本", "x y")
AGENTS = ("ann", "bob", "çelik")
KINDS = ("", "note", "build.failed", "build.ok", "my kind*", "lock.granted", "lock.released")
RESOURCES = ("src/main.py", "src/parseHTTP.py", "my file.txt", "a[b]", "docs/é.md")
META = (("run", "1"), ("run", "2"), ("run", ""), ("tool", "grep"), ("tool", "end of the world"))
TYPES = (UnitType.MESSAGE, UnitType.TOOL_CALL, UnitType.ERROR)
SAYINGS = (
    "the parser fails",
    "src/parseHTTP.py fails with E0308",
    "end of the world",
    "ok",
    "",
    "日本語のテキスト",
    "ConnectionError: timed out",
    "we test the parser again",
    "the world ends",
    "🎉",
)
EMBEDDER = StaticEmbedder()


@st.composite
def logs(draw: st.DrawFn, *, units_max: int = 40) -> list[WorkUnit]:
    """A log whose units repeat a few words, names and values."""
    return log(Random(draw(st.integers(0, 2**32))), draw(st.integers(0, units_max)))


def log(dice: Random, count: int) -> list[WorkUnit]:
    versions: dict[str, int] = {}
    units = []
    for seq in range(1, count + 1):
        context = dice.choice(CONTEXTS)
        versions[context] = versions.get(context, 0) + 1
        units.append(_unit(dice, seq, context, versions[context]))
    return units


def _unit(dice: Random, seq: int, context: str, version: int) -> WorkUnit:
    targets = dice.sample(range(1, seq), k=min(seq - 1, dice.choice((0, 0, 1, 2))))
    return WorkUnit(
        seq=seq,
        id=unit_id(seq),
        context_id=context,
        version=version,
        agent_id=dice.choice(AGENTS),
        type=dice.choice(TYPES),
        ts=ts_text(1_000_000 * (seq // 2)),
        content_type=FORMAT_TEXT,
        kind=dice.choice(KINDS) or None,
        meta=dict(dice.sample(META, k=dice.choice((0, 1, 2)))),
        resources=dice.sample(RESOURCES, k=dice.choice((0, 0, 1, 2))),
        relationships=[Relationship(unit_id(target), RelationshipType.REFERENCES) for target in targets],
        payload=" ".join(dice.choices(SAYINGS, k=dice.choice((1, 1, 2, 3)))).encode(),
    )


def _some(values: Sequence[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from([*values, "nobody"]), min_size=1, max_size=3).map(tuple)


TIMES = st.integers(-2, 25).map(lambda second: second * 1_000_000)
FIELDS: dict[str, st.SearchStrategy[object]] = {
    "contexts": _some(CONTEXTS),
    "agents": _some(AGENTS),
    "types": st.lists(st.sampled_from(TYPES), min_size=1).map(tuple),
    "kinds": _some([*KINDS, "build.*", "*", "?*", "[!b]*", "my kind[*]", "[z-a]", "no[st]e"]),
    "resources": _some([*RESOURCES, "src/*", "*.py", "a[[]b]", "a[b]*", "*[!y]", "my f*"]),
    "meta": st.lists(st.sampled_from([*META, ("run", "3")]), min_size=1, max_size=2).map(tuple),
    "related_to": _some([unit_id(1), unit_id(2), unit_id(3)]),
    "after_seq": st.integers(-2, 45),
    "before_seq": st.integers(-2, 45),
    "after_us": TIMES,
    "before_us": TIMES,
}
SCOPES = st.lists(st.sampled_from(list(FIELDS)), max_size=3, unique=True).flatmap(
    lambda fields: st.builds(Scope, **{field: FIELDS[field] for field in fields})
)
"""Most let something through."""
QUERIES = st.sampled_from(
    [
        "parser",
        "parse",
        "http",
        "src/parseHTTP.py",
        "the end of the world",
        "日本",
        "E0308 timed out",
        '"end of the world"',
        '"world ends" parser',
        '"fails"',
        "par*",
        'wor* src/pa* "end of"',
        "nowhere",
        "",
        "🎉",
        "ann",
        "grep failing tests",
    ]
)


class Log:
    """What the index reads again, from a list."""

    def __init__(self, units: Sequence[WorkUnit]) -> None:
        self._units = units

    def unit(self, seq: int) -> WorkUnit:
        return self._units[seq - 1]

    def chain(self, seq: int) -> bytes:
        return blake2b("".join(unit.id for unit in self._units[:seq]).encode()).digest()

    def before(self, unit: WorkUnit, count: int) -> Sequence[WorkUnit]:
        of_context = [one for one in self._units[: unit.seq - 1] if one.context_id == unit.context_id]
        return of_context[-count:]


COMPARED = st.sampled_from([(vectors.EXACT_ROWS_MAX, vectors.CANDIDATES), (4, 3)])
"""Up to how many rows are all compared, and how many of more: those that are shipped, and few."""


@contextmanager
def few_compared(exact_rows_max: int, candidates: int) -> Iterator[None]:
    """As if the index were very large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "EXACT_ROWS_MAX", exact_rows_max)
        patch.setattr(vectors, "CANDIDATES", candidates)
        patch.setattr(engine, "BESIDE_ROWS", exact_rows_max)
        yield


@contextmanager
def indexed(units: Sequence[WorkUnit], *commits: int, path: Path | None = None) -> Iterator[SearchIndex]:
    """An index over all of them, committed after each of these units."""
    with TemporaryDirectory() as directory:
        index = SearchIndex(path or Path(directory), EMBEDDER, Log(units))
        taken = index.taken
        for end in (*sorted(commits), len(units)):
            index.take(units[taken:end])
            taken = max(taken, end)
            if end in commits:
                index.commit()
        try:
            yield index
        finally:
            index.close()


def let_through(units: Sequence[WorkUnit], scope: Scope) -> list[WorkUnit]:
    """Every unit that is searched and in the scope."""
    wanted = predicate(scope)
    return [unit for unit in units if is_searched(unit) and wanted(unit)]


def counts(units: Sequence[WorkUnit], of: Callable[[WorkUnit], str]) -> dict[str, int]:
    """How many units have which value."""
    found: dict[str, int] = {}
    for unit in units:
        found[of(unit)] = found.get(of(unit), 0) + 1
    return found


Told = tuple[int, float, int | None, int | None, int]


def told(found: Found) -> list[Told]:
    """What of an answer has to be the same: which units, with which scores, at which ranks, for how many."""
    return [
        (hit.seq, round(hit.score, 4), hit.keyword and hit.keyword.rank, hit.vector and hit.vector.rank, hit.duplicates)
        for hit in found.hits
    ]


RANKINGS: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.fixed_dictionaries(
    {},
    optional={
        "fusion": st.sampled_from(["z", "rrf", "relative"]),
        "vector_weight": st.sampled_from([0.0, 0.5, 1.0]),
        "rank_constant": st.sampled_from([0.0, 5.0]),
        "half_life_ms": st.sampled_from([1, 3_000, 10**9]),
        "recency_weight": st.sampled_from([0.0, 2.0]),
        "neighbour_weight": st.sampled_from([0.2, 1.0]),
        "distinct": st.booleans(),
    },
)
"""How the ranking is made: half of the time as it is made when nobody says how."""


def all_of(
    query: str, mode: str = "hybrid", *, scope: Scope | None = None, as_of_seq: int | None = None, **ranking: Any
) -> Asked:
    """A search for everything there is."""
    return Asked(
        query=query,
        mode=mode,
        scope=Scope() if scope is None else scope,
        limit=1_000,
        facets=True,
        as_of_seq=as_of_seq,
        **ranking,
    )
