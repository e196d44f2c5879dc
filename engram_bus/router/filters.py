"""What a subscription wants: a filter over units, as a value, and the predicate it compiles to."""

import re
from collections.abc import Callable, Sequence
from fnmatch import translate

import msgspec

from engram_bus.errors import InvalidRequest, TooLarge
from engram_bus.limits import FILTER_VALUES_MAX
from engram_bus.units import UnitType, WorkUnit

ALL_CONTEXTS = "*"

Predicate = Callable[[WorkUnit], bool]


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Fields are joined by and, the values of one field by or; an empty field wants everything.

    `kinds` and `resources` are globs (`*`, `?`, `[...]`); `exclude_agents` wins over `agents`.
    """

    contexts: frozenset[str] | None = None
    """None: all contexts."""
    types: frozenset[UnitType] = frozenset()
    kinds: tuple[str, ...] = ()
    agents: frozenset[str] = frozenset()
    exclude_agents: frozenset[str] = frozenset()
    resources: tuple[str, ...] = ()
    meta: tuple[tuple[str, str], ...] = ()

    @property
    def only_context(self) -> str | None:
        """The one context it wants, if it is one: that one's index is read instead of the whole log."""
        return next(iter(self.contexts)) if self.contexts is not None and len(self.contexts) == 1 else None


def make_filter(
    *,
    contexts: Sequence[str] = (),
    types: Sequence[str | int | UnitType] = (),
    kinds: Sequence[str] = (),
    agents: Sequence[str] = (),
    exclude_agents: Sequence[str] = (),
    resources: Sequence[str] = (),
    meta: Sequence[tuple[str, str]] = (),
) -> Filter:
    """A filter from what a client names: contexts (`*` for all), type names or numbers, globs.

    Raises InvalidRequest, TooLarge.
    """
    named = {
        "context": contexts,
        "type": types,
        "kind": kinds,
        "agent": agents,
        "exclude_agent": exclude_agents,
        "resource": resources,
        "meta": meta,
    }
    for field, values in named.items():
        if len(values) > FILTER_VALUES_MAX:
            raise TooLarge(f"{field} names {len(values)}, at most {FILTER_VALUES_MAX}", field=field, limit=FILTER_VALUES_MAX)
        if any(value == "" for value in values):
            raise InvalidRequest(f"{field} is empty", field=field)
    return Filter(
        contexts=None if ALL_CONTEXTS in contexts else frozenset(contexts),
        types=frozenset(unit_type(value) for value in types),
        kinds=tuple(sorted(set(kinds))),
        agents=frozenset(agents),
        exclude_agents=frozenset(exclude_agents),
        resources=tuple(sorted(set(resources))),
        meta=tuple(sorted(set(meta))),
    )


_TYPES = tuple(UnitType)


def unit_type(value: str | int) -> UnitType:
    """A type by name or number. Raises InvalidRequest rather than widen the filter."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 3:
        value = int(value)
    if isinstance(value, int) and 0 <= value < len(_TYPES):
        return _TYPES[value]
    if value in UnitType.__members__:
        return UnitType(value)
    raise InvalidRequest(f"type {value!r} is unknown; one of {', '.join(UnitType)}", field="type")


def predicate(wanted: Filter) -> Predicate:
    """What tells whether a unit is wanted; the tests that cost least come first."""
    tests: list[Predicate] = []
    if (contexts := wanted.contexts) is not None:
        tests.append(lambda unit: unit.context_id in contexts)
    if types := wanted.types:
        tests.append(lambda unit: unit.type in types)
    if agents := wanted.agents:
        tests.append(lambda unit: unit.agent_id in agents)
    if excluded := wanted.exclude_agents:
        tests.append(lambda unit: unit.agent_id not in excluded)
    if wanted.kinds:
        kind = _globs(wanted.kinds)
        tests.append(lambda unit: kind(unit.kind or "") is not None)
    if meta := wanted.meta:
        keys = {key for key, _ in meta}
        tests.append(lambda unit: all((key, unit.meta.get(key)) in meta for key in keys))
    if wanted.resources:
        resource = _globs(wanted.resources)
        tests.append(lambda unit: any(resource(name) is not None for name in unit.resources))
    return _all(tests)


def _all(tests: list[Predicate]) -> Predicate:
    match tests:
        case []:
            return lambda unit: True
        case [only]:
            return only
        case _:
            return lambda unit: all(test(unit) for test in tests)


def _globs(patterns: Sequence[str]) -> Callable[[str], re.Match[str] | None]:
    """One expression that matches any of these globs, whole."""
    return re.compile("|".join(translate(pattern) for pattern in patterns)).match
