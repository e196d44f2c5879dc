"""The JSON Schemas of what goes over the wire: what msgspec says of the types, and the bounds of `limits.py`."""

from collections.abc import Iterable
from functools import cache
from typing import Any, Final

import msgspec

from engram_bus.errors import EngramError
from engram_bus.limits import (
    BULK_UNITS_MAX,
    CONTENT_TYPE_BYTES_MAX,
    CONTEXT_CHANGES_MAX,
    CONTEXT_FENCES_MAX,
    DISPLAY_NAME_BYTES_MAX,
    FILTER_VALUES_MAX,
    IDEMPOTENCY_KEY_BYTES_MAX,
    LOCK_HOLDERS_SHOWN_MAX,
    LOCK_QUEUE_SHOWN_MAX,
    LOCK_REASON_BYTES_MAX,
    LOCK_RESOURCES_MAX,
    LOCK_TTL_MS_MAX,
    LOCK_TTL_MS_MIN,
    LOCK_WAIT_MS_MAX,
    META_ENTRIES_MAX,
    META_KEY_BYTES_MAX,
    META_VALUE_BYTES_MAX,
    MIN_SEQ_TIMEOUT_MS_DEFAULT,
    MIN_SEQ_TIMEOUT_MS_MAX,
    NAME_BYTES_MAX,
    PAGE_UNITS_MAX,
    RELATED_UNITS_MAX,
    RELATIONSHIPS_MAX,
    RESOURCE_BYTES_MAX,
    RESOURCES_MAX,
    SEARCH_HALF_LIFE_MS_MAX,
    SEARCH_INTEGER_MAX,
    SEARCH_LIMIT_MAX,
    SEARCH_QUERY_BYTES_MAX,
    SEARCH_RANK_CONSTANT_MAX,
    SEARCH_WEIGHT_MAX,
    TRACEPARENT_BYTES_MAX,
)
from engram_bus.projections.search.requests import FUSIONS, MODES
from engram_bus.units import LockMode, RelationshipType, UnitType

Schema = dict[str, Any]

_REF = "#/components/schemas/{name}"

UNIT_TYPE: Final[Schema] = {
    "anyOf": [{"enum": list(UnitType)}, {"type": "integer", "minimum": 0, "maximum": len(UnitType) - 1}]
}
_RELATIONSHIP_TYPE: Final[Schema] = {
    "anyOf": [{"enum": list(RelationshipType)}, {"type": "integer", "minimum": 1, "maximum": len(RelationshipType)}]
}
_NAME: Final[Schema] = {"minLength": 1, "maxLength": NAME_BYTES_MAX, "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]*$"}
_META: Final[Schema] = {
    "maxProperties": META_ENTRIES_MAX,
    "propertyNames": {"minLength": 1, "maxLength": META_KEY_BYTES_MAX},
    "additionalProperties": {"type": "string", "maxLength": META_VALUE_BYTES_MAX},
}
_VERSION: Final[Schema] = {"minimum": 0, "maximum": 2**63 - 1}
_KEY: Final[Schema] = {"minLength": 1, "maxLength": IDEMPOTENCY_KEY_BYTES_MAX}
_UUID: Final = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_UNIT_BOUNDS: Final[dict[str, Schema]] = {
    "context_id": _NAME,
    "agent_id": _NAME,
    "type": UNIT_TYPE,
    "kind": {
        "maxLength": NAME_BYTES_MAX,
        "pattern": "^[a-z0-9_]+(-[a-z0-9_]+)*(\\.[a-z0-9_]+(-[a-z0-9_]+)*)*$",
        "description": "Dotted lower case, like build.failed; context.*, lock.*, mail.*, memory.*, agent.* and bus.* "
        "are the bus's own.",
    },
    "content_type": {"maxLength": CONTENT_TYPE_BYTES_MAX},
    "meta": _META,
    "resources": {
        "maxItems": RESOURCES_MAX,
        "items": {"type": "string", "minLength": 1, "maxLength": RESOURCE_BYTES_MAX},
    },
    "relationships": {"maxItems": RELATIONSHIPS_MAX},
    "traceparent": {"maxLength": TRACEPARENT_BYTES_MAX, "description": "W3C Trace Context."},
    "id": {"format": "uuid", "pattern": _UUID},
    "idempotency_key": _KEY,
    "expected_version": _VERSION,
}
_CHANGES: Final[Schema] = {"maxItems": CONTEXT_CHANGES_MAX, "items": {"type": "string", **_NAME}}
_RESOURCE: Final[Schema] = {"minLength": 1, "maxLength": RESOURCE_BYTES_MAX}
_TTL: Final[Schema] = {
    "description": f"How long the lease lasts unless it is refreshed: {LOCK_TTL_MS_MIN / 1_000:g} to "
    f"{LOCK_TTL_MS_MAX / 1_000:g}."
}
_LOCK_BOUNDS: Final[dict[str, Schema]] = {
    "resource": {**_RESOURCE, "description": "What to hold, with all that lies below it. This, or resources."},
    "resources": {"minItems": 1, "maxItems": LOCK_RESOURCES_MAX, "items": {"type": "string", **_RESOURCE}},
    "agent_id": _NAME,
    "ttl_seconds": _TTL,
    "mode": {"enum": list(LockMode)},
    "wait_seconds": {
        "description": f"How long to wait in line: 0 to {LOCK_WAIT_MS_MAX / 1_000:g}. Who goes meanwhile is out of it."
    },
    "reason": {"maxLength": LOCK_REASON_BYTES_MAX},
    "context_id": _NAME,
}
_REFRESH_BOUNDS: Final[dict[str, Schema]] = {
    "lock_id": {"format": "uuid", "pattern": _UUID},
    "agent_id": _NAME,
    "ttl_seconds": _TTL,
}
_NAMES: Final[Schema] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": FILTER_VALUES_MAX},
        {"type": "null"},
    ]
}
_PLACE: Final[Schema] = {"minimum": 0, "maximum": SEARCH_INTEGER_MAX}
_WEIGHT: Final[Schema] = {"minimum": 0, "maximum": SEARCH_WEIGHT_MAX}
_TIME: Final[Schema] = {"format": "date-time", "description": "A time like 2026-01-31T12:00:00Z, itself left out."}
_SEARCH_BOUNDS: Final[dict[str, Schema]] = {
    "query": {
        "maxLength": SEARCH_QUERY_BYTES_MAX,
        "description": "Any text. Words in double quotes have to stand in a unit in this order, compared by their "
        "stems; little ones (the, of) count only as gaps.",
    },
    "mode": {"enum": list(MODES), "description": "By words and meaning together, or by one of them alone."},
    "limit": {"minimum": 1, "maximum": SEARCH_LIMIT_MAX},
    "context_id": _NAMES,
    "agent_id": _NAMES,
    "type": {
        "anyOf": [
            *UNIT_TYPE["anyOf"],
            {"type": "array", "items": UNIT_TYPE, "minItems": 1, "maxItems": FILTER_VALUES_MAX},
            {"type": "null"},
        ]
    },
    "kind": {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": FILTER_VALUES_MAX},
            {"type": "null"},
        ],
        "description": "Globs: `build.*`; an empty one is of units without a kind.",
    },
    "resource": {**_NAMES, "description": "Globs: `src/*`."},
    "related_to": {**_NAMES, "description": "Ids: units that name one of them in a relationship."},
    "after_seq": {**_PLACE, "description": "A seq, itself left out."},
    "before_seq": {**_PLACE, "description": "A seq, itself left out."},
    "after_ts": _TIME,
    "before_ts": _TIME,
    "page": {"description": "Where to go on: `next_page` of the answer before."},
    "as_of_seq": {**_PLACE, "description": "Search the log as if it ended at this seq."},
    "min_seq": {**_PLACE, "description": "Wait until the log has reached this seq: read your writes."},
    "timeout_ms": {
        "minimum": 0,
        "maximum": MIN_SEQ_TIMEOUT_MS_MAX,
        "description": "How long to wait for min_seq, in milliseconds; then 503 MIN_SEQ_TIMEOUT. Unless it is said, "
        f"{MIN_SEQ_TIMEOUT_MS_DEFAULT:,}.",
    },
    "stale": {
        "description": "Answer at once over what the index has taken in, however far the log is ahead of it, but up to "
        "min_seq: applied_seq tells how far that is. Without it, over everything acknowledged, or 503 SEARCH_BUILDING.",
    },
    "facets": {"description": "Count all that is let through by context, agent, type and kind."},
    "explain": {"description": "Say what each score is the sum of."},
    "include": {"enum": ["ids", "units"], "description": "Whether the units come along."},
    "max_tokens": {
        **_PLACE,
        "description": "Fill this budget in order of rank, passing over what does not fit any more.",
    },
    "fusion": {
        "enum": list(FUSIONS),
        "description": "How two rankings become one: z-scores, reciprocal ranks, or scores relative to the best.",
    },
    "vector_weight": {
        "minimum": 0,
        "maximum": 1,
        "description": "Of meaning, in mode hybrid; that of words is what is left of 1.",
    },
    "rank_constant": {
        "minimum": 0,
        "maximum": SEARCH_RANK_CONSTANT_MAX,
        "description": "Of reciprocal ranks: the larger, the less the first ranks count beside those that follow.",
    },
    "half_life_ms": {
        "minimum": 1,
        "maximum": SEARCH_HALF_LIFE_MS_MAX,
        "description": "Let new units be better: by recency_weight, halved each time this passes. A unit's age is "
        "counted from the newest one that was looked at.",
    },
    "recency_weight": {
        **_WEIGHT,
        "description": "What a unit of now gets, where half_life_ms is given: in standard deviations (of z), or in "
        "scores of a leg's best unit.",
    },
    "neighbour_weight": {
        **_WEIGHT,
        "description": "The share of its better neighbour's score that a unit gets: of the two units beside it in its "
        "context, as far as they are found too. Helps in dialogue (0.2), less elsewhere.",
    },
    "distinct": {
        "description": "Of units that say nearly the same only the best; `duplicates` counts the others.",
    },
}
_BOUNDS: Final[dict[str, dict[str, Schema]]] = {
    "UnitIn": {
        **_UNIT_BOUNDS,
        "payload": {"description": "A string for text; any JSON value for application/json. At most 1 MiB of bytes."},
        "payload_base64": {"contentEncoding": "base64", "description": "Any bytes, in the place of payload."},
    },
    "UnitPacked": {**_UNIT_BOUNDS, "payload": {"description": "bin, or str for text; at most 1 MiB."}},
    "RelationshipIn": {"target_id": _NAME, "type": _RELATIONSHIP_TYPE, "meta": _META},
    "ContextIn": {
        "agent_id": _NAME,
        "display_name": {"maxLength": DISPLAY_NAME_BYTES_MAX},
        "add_agents": _CHANGES,
        "remove_agents": _CHANGES,
        "pin_units": _CHANGES,
        "unpin_units": _CHANGES,
        "meta": {
            **_META,
            "additionalProperties": {
                "anyOf": [{"type": "string", "maxLength": META_VALUE_BYTES_MAX}, {"type": "null"}]
            },
        },
        "fences": {
            "maxItems": CONTEXT_FENCES_MAX,
            "items": {"type": "string", "minLength": 1, "maxLength": RESOURCE_BYTES_MAX},
        },
        "expected_version": _VERSION,
        "idempotency_key": _KEY,
    },
    "LockIn": _LOCK_BOUNDS,
    "AcquireLock": _LOCK_BOUNDS,
    "RefreshIn": _REFRESH_BOUNDS,
    "RefreshLock": _REFRESH_BOUNDS,
    "ReleaseLock": {"lock_id": _REFRESH_BOUNDS["lock_id"], "agent_id": _NAME},
    "LockList": {"locks": {"maxItems": PAGE_UNITS_MAX}},
    "LocksOut": {"locks": {"minItems": 2, "maxItems": LOCK_RESOURCES_MAX}},
    "ResourceOut": {
        "holders": {"maxItems": LOCK_HOLDERS_SHOWN_MAX},
        "queue": {"maxItems": LOCK_QUEUE_SHOWN_MAX},
    },
    "SearchIn": _SEARCH_BOUNDS,
    "SearchOut": {"results": {"maxItems": SEARCH_LIMIT_MAX}},
    "UnitList": {"work_units": {"maxItems": PAGE_UNITS_MAX}},
    "ContextList": {"contexts": {"maxItems": PAGE_UNITS_MAX}},
    "RelatedList": {"related": {"maxItems": RELATED_UNITS_MAX}},
    "BulkOut": {"results": {"maxItems": BULK_UNITS_MAX}},
}
"""What the types of the fields do not say: component -> property -> what its schema also says.

Lengths here are in characters, and so never less than what the bus takes: it counts bytes."""


def components(types: Iterable[Any]) -> dict[str, Schema]:
    """The schemas of these types and of all they hold, by name."""
    unique = sorted(set(types), key=str)
    _, found = msgspec.json.schema_components(unique, ref_template=_REF)
    return {name: _bounded(name, schema) for name, schema in sorted(found.items())}


def schema_of(type_: Any) -> Schema:
    """The schema of one type; structs are referred to by name."""
    return dict(_schema_of(type_))


def codes(family: type[EngramError] = EngramError) -> set[str]:
    """Every code of the error table."""
    own = {family.code} if "code" in vars(family) else set()
    return own.union(*(codes(child) for child in family.__subclasses__()))


@cache  # A problem is asked for by each of some 200 refusals, whenever a bus starts.
def _schema_of(type_: Any) -> Schema:
    (schema,), _ = msgspec.json.schema_components([type_], ref_template=_REF)
    return schema


def _bounded(name: str, schema: Schema) -> Schema:
    """The schema msgspec gives, with what `_BOUNDS` says of its properties."""
    properties = dict(schema.get("properties", {}))
    for field, bounds in _BOUNDS.get(name, {}).items():
        properties[field] = _narrowed(properties[field], bounds)
    if "code" in properties:
        properties["code"] = {"enum": sorted(codes())}
    return {**schema, "properties": properties} if properties else schema


def _narrowed(schema: Schema, bounds: Schema) -> Schema:
    """A property's schema with bounds on its value; null, where it may be, stays beside them."""
    default = {"default": schema["default"]} if "default" in schema else {}
    branches = [branch for branch in schema.get("anyOf", []) if branch != {"type": "null"}]
    about = {"description": bounds["description"]} if "description" in bounds else {}
    bounds = {key: value for key, value in bounds.items() if key != "description"}
    if "anyOf" in bounds:
        return {**bounds, **about, **default}
    if len(branches) == 1 and len(schema["anyOf"]) == 2:
        return {"anyOf": [{**branches[0], **bounds}, {"type": "null"}], **about, **default}
    return {**schema, **bounds, **about}
