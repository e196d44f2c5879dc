"""The messages of proto/engram/v1 to what the bus is asked, and its answers to messages: each shape once."""

from collections.abc import Sequence

from google.protobuf import json_format

from engram_bus.api.operations import SearchStatus, Status
from engram_bus.codec import LockOut, encode_json, lock_on, milliseconds
from engram_bus.decisions.locks import LockState
from engram_bus.errors import InvalidRequest
from engram_bus.limits import LOCK_TTL_MS_DEFAULT
from engram_bus.pb import context_pb2, lock_pb2, read_pb2, search_pb2, status_pb2
from engram_bus.projections.search.requests import FUSIONS, MODES, Explained, SearchHit, SearchIn, SearchOut
from engram_bus.projections.search.values import Leg
from engram_bus.protobuf import RELATIONSHIP_NUMBERS, timestamp, type_of, unit_message
from engram_bus.reading import Related
from engram_bus.resources import covers
from engram_bus.units import (
    ANONYMOUS,
    LOCKS_CONTEXT,
    AcquireLock,
    Context,
    Lock,
    LockMode,
    LockWait,
    UpdateContext,
    WorkUnit,
)

DIRECTIONS = ("both", "out", "in")
_MODES = tuple(LockMode)


def one_of(number: int, names: Sequence[str], field: str) -> str:
    """The name of an enum's number, which may be any. Raises InvalidRequest."""
    if not 0 <= number < len(names):
        raise InvalidRequest(f"{field} {number} is unknown; 0 to {len(names) - 1}, as {', '.join(names)}", field=field)
    return names[number]


def related(one: Related) -> read_pb2.RelatedUnit:
    """A unit reached over a relationship."""
    return read_pb2.RelatedUnit(
        work_unit=unit_message(one.entry.unit),
        relationship=RELATIONSHIP_NUMBERS[one.relationship],  # type: ignore[arg-type]  # A number will do.
        direction=one.direction.upper(),
        depth=one.depth,
        from_id=one.from_id,
    )


# --- Contexts --------------------------------------------------------------------------------------------------------


def update_from(asked: context_pb2.UpdateContextRequest, *, agent_id: str | None) -> UpdateContext:
    """The command a message asks for. Raises InvalidRequest."""
    both = next((key for key in asked.unset_meta if key in asked.meta), None)
    if both is not None:
        raise InvalidRequest(f"meta {both[:64]!r} is set and unset", field="unset_meta")
    return UpdateContext(
        context_id=asked.context_id,
        agent_id=(asked.agent_id if asked.HasField("agent_id") else agent_id) or ANONYMOUS,
        display_name=asked.display_name if asked.HasField("display_name") else None,
        add_agents=tuple(asked.add_agents),
        remove_agents=tuple(asked.remove_agents),
        pin_units=tuple(asked.pin_units),
        unpin_units=tuple(asked.unpin_units),
        meta={**asked.meta, **dict.fromkeys(asked.unset_meta)},
        fences=tuple(asked.fences.globs) if asked.HasField("fences") else None,
        closed=asked.closed if asked.HasField("closed") else None,
        expected_version=asked.expected_version if asked.HasField("expected_version") else None,
        idempotency_key=asked.idempotency_key if asked.HasField("idempotency_key") else None,
    )


def context(found: Context) -> context_pb2.Context:
    """A context as it stands."""
    return context_pb2.Context(
        id=found.id,
        version=found.version,
        created_at=timestamp(found.created_at),
        updated_at=timestamp(found.updated_at),
        display_name=found.display_name,
        agent_ids=found.agent_ids,
        pinned_units=found.pinned_units,
        meta=found.meta,
        fences=found.fences,
        closed=found.closed,
    )


# --- Locks -----------------------------------------------------------------------------------------------------------


def acquire_from(asked: lock_pb2.AcquireLockRequest, *, agent_id: str) -> AcquireLock:
    """The command a message asks for. Raises InvalidRequest."""
    ttl_seconds = asked.ttl_seconds if asked.HasField("ttl_seconds") else LOCK_TTL_MS_DEFAULT / 1_000
    if not asked.resources:
        raise InvalidRequest("name the resource, or several resources", field="resources")
    return AcquireLock(
        resources=tuple(asked.resources),
        agent_id=agent_id,
        ttl_ms=milliseconds(ttl_seconds, "ttl_seconds"),
        mode=LockMode(one_of(asked.mode, _MODES, "mode")),
        wait_ms=milliseconds(asked.wait_seconds, "wait_seconds"),
        reason=asked.reason,
        context_id=asked.context_id if asked.HasField("context_id") else LOCKS_CONTEXT,
        session=asked.session if asked.HasField("session") else None,
    )


def locks(held: Lock) -> list[lock_pb2.Lock]:
    """A lock as one on each of its resources."""
    return [lock(lock_on(held, resource)) for resource in held.resources]


def lock(held: LockOut) -> lock_pb2.Lock:
    """A lock on one resource."""
    return lock_pb2.Lock(
        lock_id=held.lock_id,
        resource=held.resource,
        holder_agent=held.holder_agent,
        mode=held.mode.name,
        fencing_token=held.fencing_token,
        acquired_seq=held.acquired_seq,
        granted_at=timestamp(held.granted_at),
        expires_at=timestamp(held.expires_at),
        remaining_seconds=held.remaining_seconds,
        reason=held.reason,
        context_id=held.context_id,
    )


def lock_state(state: LockState, *, valid: bool | None, applied_seq: int) -> lock_pb2.GetLockResponse:
    """One resource: who holds it, who waits for it."""
    return lock_pb2.GetLockResponse(
        resource=state.resource,
        holders=[lock(lock_on(held, covering(held, state.resource))) for held in state.holders],
        holder_count=state.holder_count,
        queue_length=state.queue_length,
        queue=[_wait(waiting) for waiting in state.queue],
        valid=valid,
        applied_seq=applied_seq,
    )


def covering(held: Lock, resource: str) -> str:
    """Which of a lock's resources covers this one."""
    return next(name for name in held.resources if covers(name, resource))


def _wait(waiting: LockWait) -> lock_pb2.LockWait:
    return lock_pb2.LockWait(
        wait_id=waiting.wait_id,
        resources=waiting.resources,
        agent_id=waiting.agent_id,
        mode=waiting.mode.name,
        queued_at=timestamp(waiting.queued_at),
        deadline=timestamp(waiting.deadline),
        reason=waiting.reason,
    )


# --- Search ----------------------------------------------------------------------------------------------------------

_AS_THEY_ARE = (
    *("limit", "after_seq", "before_seq", "after_ts", "before_ts", "page", "as_of_seq", "timeout_ms", "max_tokens"),
    *("vector_weight", "rank_constant", "half_life_ms", "recency_weight", "neighbour_weight"),
)
"""Fields that may be absent, and then have the default of every transport."""


def search_from(asked: search_pb2.SearchRequest) -> SearchIn:
    """What a message asks for. Raises InvalidRequest."""
    if not asked.HasField("query"):
        raise InvalidRequest("query is missing", field="query")
    return SearchIn(
        query=asked.query,
        mode=one_of(asked.mode, MODES, "mode"),
        context_id=list(asked.context_id) or None,
        agent_id=list(asked.agent_id) or None,
        type=[type_of(number) for number in asked.type] or None,
        kind=list(asked.kind) or None,
        resource=list(asked.resource) or None,
        meta=dict(asked.meta),
        related_to=list(asked.related_to) or None,
        min_seq=asked.min_seq,
        facets=asked.facets,
        explain=asked.explain,
        include=one_of(asked.include, ("ids", "units"), "include"),
        fusion=one_of(asked.fusion, FUSIONS, "fusion"),
        distinct=asked.distinct,
        stale=asked.stale,
        **{name: getattr(asked, name) for name in _AS_THEY_ARE if asked.HasField(name)},
    )


def search_answer(found: SearchOut, units: dict[int, WorkUnit]) -> search_pb2.SearchResponse:
    """What was found; `units` are those to be shown, by their seq."""
    facets = found.facets if isinstance(found.facets, dict) else {}
    return search_pb2.SearchResponse(
        results=[_result(hit, units.get(hit.seq)) for hit in found.results],
        total=found.total,
        applied_seq=found.applied_seq,
        next_page=found.next_page,
        facets={name: search_pb2.Facet(counts=counts) for name, counts in facets.items()},
        degraded=found.degraded,
    )


def _result(hit: SearchHit, unit: WorkUnit | None) -> search_pb2.SearchResult:
    return search_pb2.SearchResult(
        unit_id=hit.unit_id,
        seq=hit.seq,
        score=hit.score,
        tokens=hit.tokens,
        keyword=_leg(hit.keyword),
        vector=_leg(hit.vector),
        highlights=[
            search_pb2.Highlight(
                text=one.text, spans=[search_pb2.Span(first=first, end=end) for first, end in one.spans]
            )
            for one in hit.highlights
        ],
        duplicates=hit.duplicates,
        explain=_explained(hit.explain) if isinstance(hit.explain, Explained) else None,
        unit=None if unit is None else unit_message(unit),
    )


def _leg(leg: Leg | None) -> search_pb2.SearchLeg | None:
    return None if leg is None else search_pb2.SearchLeg(rank=leg.rank, score=leg.score)


def _explained(explained: Explained) -> search_pb2.SearchExplained:
    return search_pb2.SearchExplained(
        fusion=explained.fusion.upper(),
        vector_weight=explained.vector_weight,
        keyword_part=explained.keyword_part,
        vector_part=explained.vector_part,
        neighbour_part=explained.neighbour_part,
        recency_part=explained.recency_part,
    )


# --- The bus itself --------------------------------------------------------------------------------------------------


def status(found: Status) -> status_pb2.GetStatusResponse:
    """The bus at a glance. (Its JSON is that of the message, which is what json_format reads.)"""
    return json_format.Parse(encode_json(found), status_pb2.GetStatusResponse(), ignore_unknown_fields=True)


def search_status(found: SearchStatus) -> search_pb2.SearchStatus:
    """How far the search index is."""
    return json_format.Parse(encode_json(found), search_pb2.SearchStatus())
