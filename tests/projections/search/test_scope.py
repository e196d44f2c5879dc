"""A scope lets through what all of its fields let through, each by any of its values."""

import pytest

from engram_bus.projections.search.scope import EVERYTHING, Scope, predicate
from engram_bus.units import Relationship, RelationshipType, UnitType, WorkUnit

UNIT = WorkUnit(
    seq=7,
    id="u7",
    context_id="plan",
    version=3,
    agent_id="ann",
    type=UnitType.ERROR,
    ts="2026-01-31T12:00:00.000001Z",
    content_type="text/plain",
    kind="build.failed",
    meta={"run": "1", "tool": ""},
    resources=["src/main.py", "docs/a.md"],
    relationships=[Relationship("u5", RelationshipType.CAUSES), Relationship("u6", RelationshipType.REFERENCES)],
    payload=b"",
)
BARE = WorkUnit(
    seq=1,
    id="u1",
    context_id="other",
    version=1,
    agent_id="bob",
    type=UnitType.MESSAGE,
    ts="1970-01-01T00:00:00.000000Z",
    content_type="text/plain",
    payload=b"",
)
AT_US = 1_769_860_800_000_001


@pytest.mark.parametrize(
    "scope",
    [
        EVERYTHING,
        Scope(contexts=("other", "plan")),
        Scope(agents=("ann",)),
        Scope(types=(UnitType.ERROR, UnitType.SYSTEM)),
        Scope(kinds=("build.*",)),
        Scope(kinds=("x", "build.failed")),
        Scope(resources=("docs/*",)),
        Scope(resources=("src/main.py", "no")),
        Scope(meta=(("run", "1"),)),
        Scope(meta=(("run", "1"), ("run", "2"), ("tool", ""))),
        Scope(related_to=("u6", "u9")),
        Scope(after_seq=6, before_seq=8),
        Scope(after_us=AT_US - 1, before_us=AT_US + 1),
        Scope(contexts=("plan",), agents=("ann",), kinds=("*",), resources=("*",), after_seq=0),
    ],
)
def test_it_is_let_through(scope: Scope) -> None:
    assert predicate(scope)(UNIT)


@pytest.mark.parametrize(
    "scope",
    [
        Scope(contexts=("Plan", "plan ")),
        Scope(agents=("bob",)),
        Scope(types=(UnitType.MESSAGE,)),
        Scope(kinds=("build",)),
        Scope(kinds=("BUILD.*",)),
        Scope(resources=("src",)),
        Scope(meta=(("run", "2"),)),
        Scope(meta=(("run", "1"), ("tool", "x"))),
        Scope(meta=(("absent", ""),)),
        Scope(related_to=("u7",)),
        Scope(after_seq=7),
        Scope(before_seq=7),
        Scope(after_us=AT_US),
        Scope(before_us=AT_US),
        Scope(contexts=("plan",), agents=("bob",)),
    ],
)
def test_it_is_kept_out(scope: Scope) -> None:
    assert not predicate(scope)(UNIT)


def test_no_kind_is_an_empty_one_and_no_resource_is_none() -> None:
    assert predicate(Scope(kinds=("*",)))(BARE)
    assert predicate(Scope(kinds=("",)))(BARE)
    assert not predicate(Scope(kinds=("?*",)))(BARE)
    assert not predicate(Scope(resources=("*",)))(BARE)
    assert not predicate(Scope(meta=(("run", ""),)))(BARE)
