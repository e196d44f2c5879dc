"""Every HTTP operation said once: its path, what it takes, what it answers; routes and documents are made from it."""

from typing import Any, Final

import msgspec

from engram_bus.api.parameters import Parameter
from engram_bus.api.schemas import UNIT_TYPE
from engram_bus.codec import JSON, MSGPACK, LockIn, LockOut, LocksOut, RefreshIn, UnitIn, UnitOut, UnitPacked
from engram_bus.errors import (
    Busy,
    ContextClosed,
    ContextNotFound,
    CursorAhead,
    CursorInvalid,
    Deadlock,
    EngramError,
    EpochChanged,
    FenceRequired,
    FenceStale,
    ForbiddenOrigin,
    HeadersTooLarge,
    IdempotencyConflict,
    IdTaken,
    InternalError,
    InvalidRequest,
    LockHeld,
    LockLost,
    LockNotFound,
    LogDamaged,
    LogSilent,
    MethodNotAllowed,
    MinSeqTimeout,
    NotHolder,
    RouteNotFound,
    SearchBuilding,
    SearchUnavailable,
    ShuttingDown,
    StorageFailed,
    StorageFull,
    StorageReadOnly,
    TooLarge,
    TooSlow,
    UnitNotFound,
    UnsupportedMedia,
    VersionMoved,
    WaitEnded,
)
from engram_bus.limits import (
    CONTEXT_CHANGES_MAX,
    MIN_SEQ_TIMEOUT_MS_DEFAULT,
    MIN_SEQ_TIMEOUT_MS_MAX,
    PAGE_UNITS_DEFAULT,
    PAGE_UNITS_MAX,
    RELATED_DEPTH_MAX,
)
from engram_bus.projections.search.requests import SearchIn, SearchOut
from engram_bus.protobuf import PROTOBUF
from engram_bus.units import Context, LockWait, RelationshipType

SEQ_MAX: Final = 2**63 - 1
NDJSON: Final = "application/x-ndjson"


class ContextIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A change of a context: what is not named stays. A meta value of null removes its key."""

    agent_id: str | None = None
    display_name: str | None = None
    add_agents: list[str] = []
    remove_agents: list[str] = []
    pin_units: list[str] = []
    unpin_units: list[str] = []
    meta: dict[str, str | None] = {}
    fences: list[str] | None = None
    closed: bool | None = None
    expected_version: int | None = None
    idempotency_key: str | None = None


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457 problem details; `code` is the same on every transport, further members tell what to act on."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    field: str | msgspec.UnsetType = msgspec.UNSET
    limit: int | msgspec.UnsetType = msgspec.UNSET
    index: int | msgspec.UnsetType = msgspec.UNSET


class BulkResult(msgspec.Struct, frozen=True):
    """What became of one unit of a bulk."""

    work_unit: UnitOut | msgspec.UnsetType = msgspec.UNSET
    error: Problem | msgspec.UnsetType = msgspec.UNSET


class BulkOut(msgspec.Struct, frozen=True):
    """One result for each unit, in order."""

    results: list[BulkResult]
    applied_seq: int


class UnitList(msgspec.Struct, frozen=True):
    """A page of a context's units; `next_page` is null at the end."""

    work_units: list[UnitOut]
    next_page: str | None
    applied_seq: int


class RelatedOut(msgspec.Struct, frozen=True):
    """A unit reached over relationships."""

    work_unit: UnitOut
    relationship: RelationshipType
    direction: str
    depth: int
    from_id: str


class RelatedList(msgspec.Struct, frozen=True):
    """Units reached, nearest first; `missing` are targets that are not in the log."""

    related: list[RelatedOut]
    missing: list[str]
    truncated: bool
    applied_seq: int


class ContextList(msgspec.Struct, frozen=True):
    """A page of contexts in byte order of their ids; `next_page` is null at the end."""

    contexts: list[Context]
    next_page: str | None
    applied_seq: int


class LockList(msgspec.Struct, frozen=True):
    """A page of what is held, in order of resources and then of grants; `next_page` is null at the end."""

    locks: list[LockOut]
    next_page: str | None
    applied_seq: int


class ResourceOut(msgspec.Struct, frozen=True):
    """One resource: the locks on it or above it, oldest first, and who waits for it, first come first."""

    resource: str
    holders: list[LockOut]
    """The first thousand of them."""
    holder_count: int
    queue_length: int
    queue: list[LockWait]
    """The first hundred of them."""
    applied_seq: int
    valid: bool | msgspec.UnsetType = msgspec.UNSET
    """With `token`: whether it is of a live lock that covers the resource."""


class Released(msgspec.Struct, frozen=True):
    """Whether the lock was still held; and with `break`, the locks that were broken."""

    resource: str
    released: bool
    lock_ids: list[str]
    applied_seq: int


class Disk(msgspec.Struct, frozen=True):
    """Bytes taken and left; null where they cannot be known."""

    log_bytes: int
    index_bytes: int
    free_bytes: int | None


class SearchStatus(msgspec.Struct, frozen=True):
    """How far the search index is, and the embedder that ranks; null where it was not started: with
    `--no-search`, until someone searches.

    `generation` is another when an index was built again and took the place of this one; `rebuilt_seq` says how far the
    one that will is, null where none is being built."""

    taken_seq: int
    lag_units: int
    lag_ms: int
    generation: int
    rebuilt_seq: int | None
    embedder: str
    embedder_lag_units: int
    embedder_trouble: str | None


class Status(msgspec.Struct, frozen=True):
    """The bus at a glance."""

    version: str
    epoch: str
    head: int
    cursor: str
    durability: str
    ready: bool
    reason: str | None
    started_at: str
    uptime_seconds: float
    contexts: int
    locks: int
    lock_waits: int
    subscribers: int
    lag_units: int
    queue_commands: int
    search: SearchStatus | None
    disk: Disk
    worker: int | msgspec.UnsetType = msgspec.UNSET
    """Which of several processes answers, for a bus of several."""


class Alive(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str


class Ready(msgspec.Struct, frozen=True):
    """Whether appends are taken; `reason` is the code of what is in the way. `grpc_port` is where gRPC is served, null
    where it is not; then `grpc_detail` says why. `worker` is the process that answers, of a bus of several."""

    ready: bool
    reason: str | None
    detail: str | None
    head: int
    epoch: str
    grpc_port: int | None
    grpc_detail: str | None
    worker: int | msgspec.UnsetType = msgspec.UNSET


class Out(msgspec.Struct, frozen=True):
    """One answer: what it means, the types its body may be of (none: text), its media type, and headers of its own."""

    description: str
    bodies: tuple[Any, ...] = ()
    media_type: str = JSON
    headers: tuple[str, ...] = ()
    also: dict[str, "Opaque"] = {}
    """Media types that `Accept` may ask for instead."""


class Opaque(msgspec.Struct, frozen=True):
    """A body that JSON Schema has no words for."""

    description: str


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path."""

    name: str
    method: str
    path: str
    """With `{name}` for one segment and `{name:path}` for all that is left, slashes included."""
    summary: str
    parameters: tuple[Parameter, ...] = ()
    requests: dict[str, Any] = {}
    """Media type -> the type of the body, or Opaque."""
    answers: dict[int, Out]
    errors: tuple[type[EngramError], ...] = ()
    is_read: bool = False
    """Takes `min_seq` and `timeout_ms`."""


MIN_SEQ = (
    Parameter(
        name="min_seq",
        kind="integer",
        default=0,
        maximum=SEQ_MAX,
        description="Wait until the log has reached this seq: read your writes.",
    ),
    Parameter(
        name="timeout_ms",
        kind="integer",
        default=MIN_SEQ_TIMEOUT_MS_DEFAULT,
        maximum=MIN_SEQ_TIMEOUT_MS_MAX,
        description="How long to wait for min_seq, in milliseconds; then 503 MIN_SEQ_TIMEOUT.",
    ),
)
_LIMIT = Parameter(
    name="limit",
    kind="integer",
    default=PAGE_UNITS_DEFAULT,
    minimum=1,
    maximum=PAGE_UNITS_MAX,
    description="How many at most.",
)
_PAGE = Parameter(name="page", description="Where to go on: `next_page` of the answer before.")
_AGENT_HEADER = Parameter(
    name="X-Agent-ID", where="header", description="Who acts, where the body does not name an agent_id."
)
_KEY_HEADER = Parameter(
    name="Idempotency-Key",
    where="header",
    description="A repeat with the same key, agent and body gets the first answer again, for the life of the log.",
)
_IF_MATCH = Parameter(
    name="If-Match", where="header", description='The context must be at this version ("5"), or exist (*).'
)
_IF_NONE_MATCH = Parameter(name="If-None-Match", where="header", description="* : the context must not exist yet.")
_WRITE_HEADERS = (_AGENT_HEADER, _KEY_HEADER, _IF_MATCH, _IF_NONE_MATCH)
_CONTEXT_ID = Parameter(
    name="context_id", where="path", required=True, description="The context; slashes may stand as they are."
)
_CONTEXT_QUERY = Parameter(name="context_id", required=True, description="The context, where the path cannot hold it.")
_RESOURCE = Parameter(
    name="resource", where="path", required=True, description="What is locked; slashes may stand as they are."
)
_RESOURCE_QUERY = Parameter(
    name="resource", required=True, description="What is locked, where the path cannot hold it."
)
_TOKEN = Parameter(
    name="token", kind="integer", minimum=1, maximum=SEQ_MAX, description="A fencing token to be checked."
)
_FILTERS = (
    Parameter(name="type", many=True, schema=UNIT_TYPE, description="Only units of these types, by name or number."),
    Parameter(name="agent", many=True, description="Only units of these agents."),
    Parameter(name="kind", many=True, description="Only units whose kind matches one of these globs."),
)
_LISTING = (
    _LIMIT,
    _PAGE,
    Parameter(name="reverse", kind="boolean", default=False, description="Newest first."),
    Parameter(name="after", description="Only units after this cursor or seq."),
    Parameter(name="before", description="Only units before this cursor or seq."),
    *_FILTERS,
)
SUBSCRIBE = (
    Parameter(name="context", many=True, description="Contexts to subscribe to; * for all."),
    Parameter(name="after", description="Begin after this cursor or seq; 0 from the beginning; default: now."),
    *_FILTERS,
    Parameter(name="exclude_agent", many=True, description="No units of these agents."),
    Parameter(name="resource", many=True, description="Only units that touch a resource matching one of these globs."),
)

_STORAGE = (StorageFull, StorageReadOnly, StorageFailed, LogSilent, ShuttingDown)
_WRITE = (
    TooLarge,
    UnsupportedMedia,
    IdempotencyConflict,
    IdTaken,
    VersionMoved,
    ContextClosed,
    LogDamaged,
    *_STORAGE,
)
_APPEND = (*_WRITE, FenceStale, FenceRequired)
_READ = (MinSeqTimeout, LogDamaged, ShuttingDown)
EVERYWHERE: Final[tuple[type[EngramError], ...]] = (
    InvalidRequest,
    RouteNotFound,
    MethodNotAllowed,
    ForbiddenOrigin,
    HeadersTooLarge,
    TooSlow,
    Busy,
    InternalError,
)
"""What any request may be answered, whatever it asks for."""

_REPLAYED = ("Idempotency-Replayed",)
_UNIT = {200: Out("The unit.", (UnitOut,))}
_CONTEXT = {200: Out("The context as it stands.", (Context,), headers=("ETag",))}
_CHANGED = {200: Out("The context as it stands now.", (Context,), headers=("ETag", *_REPLAYED))}
_UNITS = {200: Out("A page of units.", (UnitList,))}

OPERATIONS: Final = (
    Operation(
        name="append",
        method="POST",
        path="/workunit",
        summary="Record one work unit; the answer leaves when it is durable.",
        parameters=_WRITE_HEADERS,
        requests={JSON: UnitIn, MSGPACK: UnitPacked, PROTOBUF: Opaque("An `engram.v1.AppendRequest`.")},
        answers={
            201: Out(
                "The unit as recorded, in the encoding that `Accept` prefers.",
                (UnitOut,),
                headers=("ETag", *_REPLAYED),
                also={
                    MSGPACK: Opaque("The unit as a map; its `payload` is bin."),
                    PROTOBUF: Opaque("An `engram.v1.WorkUnit`."),
                },
            )
        },
        errors=_APPEND,
    ),
    Operation(
        name="append_bulk",
        method="POST",
        path="/workunits",
        summary="Record up to 1,000 units: each by itself, or (atomic) all or none.",
        parameters=(
            Parameter(name="atomic", kind="boolean", default=False, description="All or none."),
            _AGENT_HEADER,
            Parameter(name="Idempotency-Key", where="header", description="One key for an atomic batch."),
        ),
        requests={JSON: list[UnitIn], NDJSON: UnitIn},
        answers={
            201: Out("All were recorded.", (BulkOut,), headers=_REPLAYED),
            207: Out("Some were refused: each result says which and why.", (BulkOut,), headers=_REPLAYED),
        },
        errors=_APPEND,
    ),
    Operation(
        name="get",
        method="GET",
        path="/workunit/{id}",
        summary="One unit by its id.",
        parameters=(Parameter(name="id", where="path", required=True, description="The unit's id."), *MIN_SEQ),
        answers=_UNIT,
        errors=(UnitNotFound, *_READ),
        is_read=True,
    ),
    Operation(
        name="related",
        method="GET",
        path="/workunit/{id}/related",
        summary="What a unit relates to, and what relates to it, to a depth.",
        parameters=(
            Parameter(name="id", where="path", required=True, description="The unit's id."),
            Parameter(
                name="type",
                many=True,
                choices=tuple(RelationshipType),
                description="Only relationships of these types.",
            ),
            Parameter(name="direction", choices=("out", "in", "both"), default="both", description="Which way."),
            Parameter(
                name="depth", kind="integer", default=1, minimum=1, maximum=RELATED_DEPTH_MAX, description="Steps."
            ),
            *MIN_SEQ,
        ),
        answers={200: Out("Units reached, nearest first.", (RelatedList,))},
        errors=(UnitNotFound, *_READ),
        is_read=True,
    ),
    Operation(
        name="list",
        method="GET",
        path="/workunits/{context_id:path}",
        summary="A context's units, oldest first; a context nobody wrote to is an empty list.",
        parameters=(_CONTEXT_ID, *_LISTING, *MIN_SEQ),
        answers=_UNITS,
        errors=(CursorInvalid, CursorAhead, EpochChanged, TooLarge, *_READ),
        is_read=True,
    ),
    Operation(
        name="list_by_query",
        method="GET",
        path="/workunits",
        summary="A context's units, with the context named in the query.",
        parameters=(_CONTEXT_QUERY, *_LISTING, *MIN_SEQ),
        answers=_UNITS,
        errors=(CursorInvalid, CursorAhead, EpochChanged, TooLarge, *_READ),
        is_read=True,
    ),
    Operation(
        name="get_context",
        method="GET",
        path="/contexts/{context_id:path}",
        summary="A context as it stands.",
        parameters=(_CONTEXT_ID, *MIN_SEQ),
        answers=_CONTEXT,
        errors=(ContextNotFound, *_READ),
        is_read=True,
    ),
    Operation(
        name="update_context",
        method="PATCH",
        path="/contexts/{context_id:path}",
        summary=f"Make a context or change it; each change is a unit. At most {CONTEXT_CHANGES_MAX} names in a list.",
        parameters=(_CONTEXT_ID, *_WRITE_HEADERS),
        requests={JSON: ContextIn},
        answers=_CHANGED,
        errors=(UnitNotFound, *_WRITE),
    ),
    Operation(
        name="contexts",
        method="GET",
        path="/contexts",
        summary="All contexts in byte order of their ids; with context_id, that one.",
        parameters=(
            Parameter(name="context_id", description="This context alone, where the path cannot hold it."),
            Parameter(name="prefix", default="", description="Only ids that begin with this."),
            _LIMIT,
            _PAGE,
            *MIN_SEQ,
        ),
        answers={200: Out("A page of contexts, or the one named.", (ContextList, Context), headers=("ETag",))},
        errors=(ContextNotFound, *_READ),
        is_read=True,
    ),
    Operation(
        name="update_context_by_query",
        method="PATCH",
        path="/contexts",
        summary="Change the context named in the query.",
        parameters=(_CONTEXT_QUERY, *_WRITE_HEADERS),
        requests={JSON: ContextIn},
        answers=_CHANGED,
        errors=(UnitNotFound, *_WRITE),
    ),
    Operation(
        name="acquire_lock",
        method="POST",
        path="/locks",
        summary="Hold resources, all or none: at once, or after waiting in line. Asking again extends the lease.",
        parameters=(_AGENT_HEADER,),
        requests={JSON: LockIn},
        answers={
            201: Out("Granted.", (LockOut, LocksOut)),
            200: Out("Held already: the lease is extended, lock_id and fencing token stay.", (LockOut, LocksOut)),
        },
        errors=(TooLarge, UnsupportedMedia, LockHeld, Deadlock, ContextClosed, WaitEnded, *_STORAGE),
    ),
    *(
        operation
        for by_query in (False, True)
        for operation in (
            Operation(
                name="refresh_lock_by_query" if by_query else "refresh_lock",
                method="PATCH",
                path="/locks" if by_query else "/locks/{resource:path}",
                summary="Extend a lease that has not run out.",
                parameters=(_RESOURCE_QUERY if by_query else _RESOURCE, _AGENT_HEADER),
                requests={JSON: RefreshIn},
                answers={200: Out("The lock with the time that remains.", (LockOut, LocksOut))},
                errors=(TooLarge, UnsupportedMedia, LockLost, NotHolder, *_STORAGE),
            ),
            Operation(
                name="release_lock_by_query" if by_query else "release_lock",
                method="DELETE",
                path="/locks" if by_query else "/locks/{resource:path}",
                summary="Give a lock back (again and again, if need be), or break those of others, on the record.",
                parameters=(
                    _RESOURCE_QUERY if by_query else _RESOURCE,
                    Parameter(name="agent_id", description="Whose lock it is, or who breaks it; else X-Agent-ID."),
                    Parameter(name="lock_id", description="Which lock. A break without it takes all on the resource."),
                    Parameter(name="break", kind="boolean", default=False, description="Take it from its holders."),
                    Parameter(name="reason", default="", description="Why it is broken."),
                    _AGENT_HEADER,
                ),
                answers={200: Out("What was released.", (Released,))},
                errors=(TooLarge, NotHolder, LockNotFound, *_STORAGE),
            ),
        )
    ),
    Operation(
        name="lock",
        method="GET",
        path="/locks/{resource:path}",
        summary="Who holds a resource and who waits for it; with token, whether that fencing token is still valid.",
        parameters=(_RESOURCE, _TOKEN, *MIN_SEQ),
        answers={200: Out("The resource; without holders, it is free.", (ResourceOut,))},
        errors=(TooLarge, *_READ),
        is_read=True,
    ),
    Operation(
        name="locks",
        method="GET",
        path="/locks",
        summary="Everything that is held, in order of resources; with resource, that one as under its path.",
        parameters=(
            Parameter(name="resource", description="This resource alone, where the path cannot hold it."),
            _TOKEN,
            Parameter(name="holder", description="Only locks of this agent."),
            Parameter(name="prefix", default="", description="Only resources that begin with this."),
            _LIMIT,
            _PAGE,
            *MIN_SEQ,
        ),
        answers={200: Out("A page of locks, or the resource named.", (LockList, ResourceOut))},
        errors=(TooLarge, *_READ),
        is_read=True,
    ),
    Operation(
        name="search",
        method="POST",
        path="/search",
        summary="What was said, by its words and by its meaning, up to the newest unit.",
        requests={JSON: SearchIn},
        answers={200: Out("The best units, best first.", (SearchOut,))},
        errors=(TooLarge, UnsupportedMedia, MinSeqTimeout, LogDamaged, SearchBuilding, SearchUnavailable, ShuttingDown),
    ),
    Operation(
        name="rebuild_search",
        method="POST",
        path="/search/rebuild",
        summary="Build the search index again from the log, while the one there is answers; /status tells how far.",
        answers={202: Out("It is being built.", (SearchStatus,))},
        errors=(SearchUnavailable, ShuttingDown),
    ),
    Operation(
        name="stream_sse",
        method="GET",
        path="/stream-sse",
        summary="Units as server-sent events, from a cursor on and without end. `meta.KEY=VALUE` filters by meta.",
        parameters=(
            *SUBSCRIBE,
            Parameter(name="Last-Event-ID", where="header", description="The cursor to resume after; wins over after."),
        ),
        answers={200: Out("The stream; asyncapi.json says what is on it.", media_type="text/event-stream")},
        errors=(TooLarge, CursorInvalid, CursorAhead, EpochChanged, ShuttingDown),
    ),
    Operation(
        name="status",
        method="GET",
        path="/status",
        summary="The bus at a glance: head, lag, disk, subscribers, durability, epoch.",
        answers={200: Out("The bus at a glance.", (Status,))},
    ),
    Operation(
        name="healthz",
        method="GET",
        path="/healthz",
        summary="Whether the process answers.",
        answers={200: Out("It does.", (Alive,))},
    ),
    Operation(
        name="readyz",
        method="GET",
        path="/readyz",
        summary="Whether the log is recovered and appends are taken.",
        answers={200: Out("Ready.", (Ready,)), 503: Out("Not ready, and why.", (Ready,))},
    ),
    Operation(
        name="metrics",
        method="GET",
        path="/metrics",
        summary="Prometheus metrics.",
        answers={200: Out("Metrics in Prometheus's text format.", media_type="text/plain")},
    ),
)
