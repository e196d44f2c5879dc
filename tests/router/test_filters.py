"""A filter wants exactly the units that a plain reading of its fields would pick."""

import random
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.errors import EngramError, InvalidRequest, TooLarge
from engram_bus.limits import FILTER_GLOB_BYTES_MAX, FILTER_VALUES_MAX, META_VALUE_BYTES_MAX, NAME_BYTES_MAX
from engram_bus.router.filters import Filter, make_filter, predicate, unit_type
from engram_bus.units import UnitType, WorkUnit
from tests.values import unit

NAMES = ["a", "b", "a/b", "é"]
KINDS = [None, "build", "build.failed", "test.failed"]
GLOBS = ["*", "build*", "*.failed", "b?ild", "[bt]*", "[!b]*", "", "build.failed"]


def unit_with(**fields: Any) -> WorkUnit:
    return msgspec.structs.replace(unit(), **fields)


def plainly_wants(wanted: Filter, one: WorkUnit) -> bool:
    """The rule, spelled out: and between fields, or within one, an empty field wants everything."""
    pairs: dict[str, set[str]] = {}
    for key, value in wanted.meta:
        pairs.setdefault(key, set()).add(value)
    return (
        (wanted.contexts is None or one.context_id in wanted.contexts)
        and (not wanted.types or one.type in wanted.types)
        and (not wanted.agents or one.agent_id in wanted.agents)
        and one.agent_id not in wanted.exclude_agents
        and (not wanted.kinds or any(fnmatchcase(one.kind or "", glob) for glob in wanted.kinds))
        and all(one.meta.get(key) in values for key, values in pairs.items())
        and (
            not wanted.resources or any(fnmatchcase(name, glob) for name in one.resources for glob in wanted.resources)
        )
    )


filters = st.builds(
    Filter,
    contexts=st.none() | st.frozensets(st.sampled_from(NAMES)),
    types=st.frozensets(st.sampled_from(UnitType), max_size=3),
    kinds=st.lists(st.sampled_from(GLOBS), max_size=2).map(tuple),
    agents=st.frozensets(st.sampled_from(NAMES), max_size=2),
    exclude_agents=st.frozensets(st.sampled_from(NAMES), max_size=2),
    resources=st.lists(st.sampled_from(GLOBS), max_size=2).map(tuple),
    meta=st.lists(st.tuples(st.sampled_from("xy"), st.sampled_from("12")), max_size=3).map(tuple),
)
units = st.builds(
    unit_with,
    context_id=st.sampled_from(NAMES),
    type=st.sampled_from(UnitType),
    kind=st.sampled_from(KINDS),
    agent_id=st.sampled_from(NAMES),
    resources=st.lists(st.sampled_from(["build.py", "a.failed", "x"]), max_size=2),
    meta=st.dictionaries(st.sampled_from("xyz"), st.sampled_from("12")),
)


@given(filters, st.lists(units, max_size=8))
def test_it_wants_what_a_plain_reading_wants(wanted: Filter, some: list[WorkUnit]) -> None:
    wants = predicate(wanted)
    assert [one for one in some if wants(one)] == [one for one in some if plainly_wants(wanted, one)]


@given(st.text(alphabet="ab*?[]!^-&|~\\.(){}+$#\n é", max_size=12), st.text(alphabet="ab-]\\.\n é", max_size=8))
def test_any_text_is_a_glob_that_compiles_and_matches_as_in_a_shell(glob: str, name: str) -> None:
    wants = predicate(Filter(resources=(glob,)))
    assert wants(unit_with(resources=[name])) == fnmatchcase(name, glob)


def test_several_globs_want_what_any_of_them_wants() -> None:
    wants = predicate(make_filter(kinds=["build.*", "*.failed"]))
    assert [wants(unit_with(kind=kind)) for kind in ("build.ok", "test.failed", "test.ok", None)] == [1, 1, 0, 0]


def test_equal_filters_come_from_the_same_names_in_any_order() -> None:
    names = [f"n{i}" for i in range(20)]
    pairs = [(name, name) for name in names]

    def in_some_order() -> Filter:
        random.shuffle(names)
        random.shuffle(pairs)
        some = [*names, names[0]]
        return make_filter(
            contexts=some, kinds=some, agents=some, exclude_agents=some, resources=some, meta=[*pairs, pairs[0]]
        )

    assert in_some_order() == in_some_order()
    assert hash(in_some_order()) == hash(in_some_order())


def test_without_anything_named_it_wants_everything() -> None:
    assert make_filter() == Filter()
    assert predicate(make_filter())(unit_with())


def test_a_star_among_the_contexts_means_all_of_them() -> None:
    assert make_filter(contexts=["plan", "*"]).contexts is None


def test_only_one_context_is_told_apart_from_several() -> None:
    assert make_filter(contexts=["plan"]).only_context == "plan"
    assert make_filter(contexts=["plan", "b"]).only_context is None
    assert make_filter().only_context is None


@pytest.mark.parametrize(("value", "found"), [("ERROR", UnitType.ERROR), (0, UnitType.UNKNOWN), ("8", UnitType.SYSTEM)])
def test_types_go_by_name_and_by_number(value: str | int, found: UnitType) -> None:
    assert unit_type(value) is found


@pytest.mark.parametrize("value", ["message", "9", 9, -1, "-1", "٣", "0.0", "", "x" * 5_000])
def test_an_unknown_type_is_refused_rather_than_widening_the_filter(value: str | int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make_filter(types=[value])
    assert refused.value.field == "type"
    assert len(refused.value.message) < 300


LONG = "x" * (NAME_BYTES_MAX + 1)


@pytest.mark.parametrize(
    ("named", "error"),
    [
        ({"contexts": []}, InvalidRequest),
        ({"contexts": [""]}, InvalidRequest),
        ({"contexts": ["a\0b"]}, InvalidRequest),
        ({"contexts": ["\ud800"]}, InvalidRequest),
        ({"contexts": [LONG]}, TooLarge),
        ({"contexts": ["é" * NAME_BYTES_MAX]}, TooLarge),
        ({"contexts": ["a"] * (FILTER_VALUES_MAX + 1)}, TooLarge),
        ({"types": [1] * (FILTER_VALUES_MAX + 1)}, TooLarge),
        ({"agents": [""]}, InvalidRequest),
        ({"exclude_agents": [LONG]}, TooLarge),
        ({"kinds": [""]}, InvalidRequest),
        ({"kinds": ["*"] * (FILTER_VALUES_MAX + 1)}, TooLarge),
        ({"kinds": ["*" * (FILTER_GLOB_BYTES_MAX + 1)]}, TooLarge),
        ({"resources": ["*x" * 100] * (FILTER_GLOB_BYTES_MAX // 200 + 1)}, TooLarge),
        ({"meta": [("", "1")]}, InvalidRequest),
        ({"meta": [("k", "v" * (META_VALUE_BYTES_MAX + 1))]}, TooLarge),
    ],
)
def test_what_no_unit_can_have_is_refused_by_name(named: dict[str, list[str]], error: type[EngramError]) -> None:
    with pytest.raises(error) as refused:
        make_filter(**named)  # type: ignore[arg-type]
    assert refused.value.field == next(iter(named)).removesuffix("s")


def test_an_empty_meta_value_can_be_wanted() -> None:
    wants = predicate(make_filter(meta=[("done", "")]))
    assert wants(unit_with(meta={"done": ""}))
    assert not wants(unit_with(meta={}))
