"""What a subscription wants: a filter over units, as a value, and the predicate it compiles to."""

from collections.abc import Callable, Sequence
from functools import reduce

import msgspec

from engram_bus.bus.admission import check_name
from engram_bus.errors import InvalidRequest, TooLarge
from engram_bus.globs import matcher
from engram_bus.limits import FILTER_GLOB_BYTES_MAX, FILTER_VALUES_MAX, META_KEY_BYTES_MAX, META_VALUE_BYTES_MAX
from engram_bus.units import UnitType, WorkUnit

ALL_CONTEXTS = "*"

Predicate = Callable[[WorkUnit], bool]


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Fields are joined by and, the values of one field by or; an empty field wants everything.

    `kinds` and `resources` are globs (`*`, `?`, `[...]`) over the whole name; a unit without a kind has an empty one.
    Of `meta`, different keys are joined by and, values of the same key by or. `exclude_agents` wins over `agents`.
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
    contexts: Sequence[str] = (ALL_CONTEXTS,),
    types: Sequence[str | int] = (),
    kinds: Sequence[str] = (),
    agents: Sequence[str] = (),
    exclude_agents: Sequence[str] = (),
    resources: Sequence[str] = (),
    meta: Sequence[tuple[str, str]] = (),
) -> Filter:
    """A filter from what a client names: contexts (`*` for all), type names or numbers, globs.

    Equal filters come from the same names in any order. Raises InvalidRequest, TooLarge.
    """
    if not contexts:
        raise InvalidRequest("name at least one context, or * for all", field="context")
    meta_keys, meta_values = [key for key, _ in meta], [value for _, value in meta]
    _check_count("type", types)
    _check_names("context", contexts)
    _check_names("agent", agents)
    _check_names("exclude_agent", exclude_agents)
    _check_texts("meta", meta_keys, META_KEY_BYTES_MAX)
    _check_texts("meta", meta_values, META_VALUE_BYTES_MAX, empty=True)
    _check_globs("kind", kinds)
    _check_globs("resource", resources)
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
    if isinstance(value, UnitType):
        return value
    number: str | int = value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 3:
        number = int(value)
    if isinstance(number, int) and 0 <= number < len(_TYPES):
        return _TYPES[number]
    if isinstance(value, str) and value in UnitType.__members__:
        return UnitType(value)
    raise InvalidRequest(f"type {str(value)[:64]!r} is unknown; one of {', '.join(UnitType)}", field="type")


def _check_count(field: str, values: Sequence[object]) -> None:
    if len(values) > FILTER_VALUES_MAX:
        raise TooLarge(
            f"{field} names {len(values)}, at most {FILTER_VALUES_MAX}", field=field, limit=FILTER_VALUES_MAX
        )


def _check_names(field: str, names: Sequence[str]) -> None:
    _check_count(field, names)
    for name in names:
        check_name(name, field)


def _check_texts(field: str, texts: Sequence[str], bytes_max: int, *, empty: bool = False) -> None:
    _check_count(field, texts)
    for text in texts:
        if not text and not empty:
            raise InvalidRequest(f"{field} is empty", field=field)
        size_bytes = len(text.encode("utf-8", "surrogatepass"))
        if size_bytes > bytes_max:
            raise TooLarge(f"{field} has {size_bytes} bytes, at most {bytes_max}", field=field, limit=bytes_max)


def _check_globs(field: str, globs: Sequence[str]) -> None:
    _check_texts(field, globs, FILTER_GLOB_BYTES_MAX)
    size_bytes = sum(len(glob.encode("utf-8", "surrogatepass")) for glob in globs)
    if size_bytes > FILTER_GLOB_BYTES_MAX:
        raise TooLarge(
            f"the globs of {field} have {size_bytes} bytes together, at most {FILTER_GLOB_BYTES_MAX}",
            field=field,
            limit=FILTER_GLOB_BYTES_MAX,
        )


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
    if wanted.meta:
        tests.append(_meta(wanted.meta))
    if wanted.kinds:
        kind = matcher(wanted.kinds)
        tests.append(lambda unit: kind(unit.kind or "") is not None)
    if wanted.resources:
        resource = matcher(wanted.resources)
        tests.append(lambda unit: any(resource(name) is not None for name in unit.resources))
    return reduce(_both, tests) if tests else _everything


def _everything(unit: WorkUnit) -> bool:
    return True


def _both(first: Predicate, second: Predicate) -> Predicate:
    return lambda unit: first(unit) and second(unit)


def _meta(pairs: Sequence[tuple[str, str]]) -> Predicate:
    wanted = frozenset(pairs)
    keys = tuple({key for key, _ in pairs})
    return lambda unit: all((key, unit.meta.get(key)) in wanted for key in keys)
