"""Which units a search may find: a filter as a value, and the predicate it compiles to."""

from collections.abc import Callable

import msgspec

from engram_bus.globs import matcher
from engram_bus.units import UnitType, WorkUnit, ts_us

Predicate = Callable[[WorkUnit], bool]


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """Fields are joined by and, the values of one field by or; an empty field lets everything through.

    `kinds` and `resources` are globs. Seqs and times are bounds that are not themselves let through.
    """

    contexts: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    types: tuple[UnitType, ...] = ()
    kinds: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    meta: tuple[tuple[str, str], ...] = ()
    related_to: tuple[str, ...] = ()
    after_seq: int | None = None
    before_seq: int | None = None
    after_us: int | None = None
    before_us: int | None = None


EVERYTHING = Scope()


def predicate(scope: Scope) -> Predicate:
    """What tells of one unit whether it is let through."""
    contexts, agents, types = frozenset(scope.contexts), frozenset(scope.agents), frozenset(scope.types)
    kind = matcher(scope.kinds) if scope.kinds else None
    resource = matcher(scope.resources) if scope.resources else None
    wanted_meta, meta_keys = frozenset(scope.meta), {key for key, _ in scope.meta}
    related = frozenset(scope.related_to)

    def lets_through(unit: WorkUnit) -> bool:
        return (
            (not contexts or unit.context_id in contexts)
            and (not agents or unit.agent_id in agents)
            and (not types or unit.type in types)
            and (scope.after_seq is None or unit.seq > scope.after_seq)
            and (scope.before_seq is None or unit.seq < scope.before_seq)
            and (kind is None or kind(unit.kind or "") is not None)
            and (resource is None or any(resource(name) is not None for name in unit.resources))
            and all((key, unit.meta.get(key)) in wanted_meta for key in meta_keys)
            and (not related or any(edge.target_id in related for edge in unit.relationships))
            and (scope.after_us is None or ts_us(unit.ts) > scope.after_us)
            and (scope.before_us is None or ts_us(unit.ts) < scope.before_us)
        )

    return lets_through
