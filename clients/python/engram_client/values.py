"""What is sent and what comes back: drafts, work units, contexts, pages and receipts, as frozen values."""

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self, TypedDict

import msgspec

from engram_client.errors import EngramError

LOCKS_CONTEXT: Final = "locks"
"""Where lock units stand unless the request names another context."""


class _Name(StrEnum):
    """Names on the wire. One that a newer bus sends and this client does not know stays as it is."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = member._value_ = value
        return member


class UnitType(_Name):
    """What a unit is."""

    UNKNOWN = "UNKNOWN"
    MESSAGE = "MESSAGE"
    REASONING = "REASONING"
    TOOL_CALL = "TOOL_CALL"
    TOOL_RESULT = "TOOL_RESULT"
    FILE_CHANGE = "FILE_CHANGE"
    TASK_STATUS = "TASK_STATUS"
    ERROR = "ERROR"
    SYSTEM = "SYSTEM"


class RelationshipType(_Name):
    """How a unit relates to the one it names."""

    SEQUENTIAL = "SEQUENTIAL"
    CAUSES = "CAUSES"
    DEPENDS_ON = "DEPENDS_ON"
    REFERENCES = "REFERENCES"
    RESPONDS_TO = "RESPONDS_TO"
    MODIFIES = "MODIFIES"
    REPLACES = "REPLACES"


class LockMode(_Name):
    """Exclusive: nobody else holds it, or anything above or below it. Shared: others may share."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"


class Relationship(msgspec.Struct, frozen=True, omit_defaults=True):
    """A typed edge from the unit that carries it to `target_id` (which need not be in the log)."""

    target_id: str
    type: RelationshipType
    meta: dict[str, str] = {}


class WorkUnit(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable step of one agent in one context.

    `seq` is its place in the log, `version` its place in its context, both from 1 without a gap. `ts` is the bus's
    clock as RFC 3339 UTC with microseconds. `payload` is bytes; `text` and `json()` read them.
    """

    seq: int
    id: str
    context_id: str
    version: int
    agent_id: str
    type: UnitType
    ts: str
    content_type: str
    kind: str | None = None
    meta: dict[str, str] = {}
    resources: list[str] = []
    relationships: list[Relationship] = []
    traceparent: str | None = None
    payload: bytes = b""

    @property
    def text(self) -> str:
        """The payload as text; bytes that are not UTF-8 show as U+FFFD."""
        return self.payload.decode("utf-8", "replace")

    def json(self) -> Any:
        """The payload as a JSON value. Raises ValueError where it is not JSON."""
        return msgspec.json.decode(self.payload)

    @property
    def time(self) -> datetime:
        """`ts` as a datetime in UTC."""
        return datetime.fromisoformat(self.ts)


class Fence(msgspec.Struct, frozen=True):
    """What a writer shows to prove that it still holds: a resource, and the fencing token of its lock."""

    resource: str
    token: int


class Draft(msgspec.Struct, frozen=True):
    """A unit to append: all but what the bus gives it.

    `payload` is bytes, or a str (text), or any other value (sent as JSON). Without `content_type` these are
    application/octet-stream, text/plain and application/json; with it, bytes and str go as they are.
    """

    context_id: str
    payload: Any = b""
    type: str = UnitType.MESSAGE
    kind: str | None = None
    content_type: str | None = None
    meta: dict[str, str] | None = None
    resources: list[str] | None = None
    relationships: list[Relationship] | None = None
    traceparent: str | None = None
    id: str | None = None
    idempotency_key: str | None = None
    expected_version: int | None = None
    agent_id: str | None = None
    """Who says it, where that is not the client's own agent."""
    fence: Fence | None = None
    """Refused (FenceStale) unless the agent still holds this."""


class DraftFields(TypedDict, total=False):
    """What else a Draft says, as keywords of `append`: said once for every client."""

    type: str
    kind: str | None
    content_type: str | None
    meta: dict[str, str] | None
    resources: list[str] | None
    relationships: list[Relationship] | None
    traceparent: str | None
    id: str | None
    idempotency_key: str | None
    expected_version: int | None
    agent_id: str | None
    fence: Fence | None


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The acknowledgement of a pipelined append: the unit is in the log, as durable as `durability` says."""

    unit_id: str
    seq: int
    version: int
    durability: str = ""
    context_id: str = ""
    replayed: bool = False
    """Whether the idempotency key was known, and this is the answer of the first time."""


class Context(msgspec.Struct, frozen=True):
    """A shared context as of its `version` (the version of its newest unit)."""

    id: str
    version: int
    created_at: str
    updated_at: str
    display_name: str = ""
    agent_ids: list[str] = []
    pinned_units: list[str] = []
    meta: dict[str, str] = {}
    fences: list[str] = []
    closed: bool = False


class Page(msgspec.Struct, frozen=True):
    """Some units of a context. `next_page` is the `page` of the next request, None at the end."""

    work_units: list[WorkUnit]
    next_page: str | None
    applied_seq: int

    def __iter__(self) -> Iterator[WorkUnit]:
        return iter(self.work_units)

    def __len__(self) -> int:
        return len(self.work_units)


class ContextPage(msgspec.Struct, frozen=True):
    """Some contexts, by id. `next_page` is the `page` of the next request, None at the end."""

    contexts: list[Context]
    next_page: str | None
    applied_seq: int

    def __iter__(self) -> Iterator[Context]:
        return iter(self.contexts)

    def __len__(self) -> int:
        return len(self.contexts)


class RelatedUnit(msgspec.Struct, frozen=True):
    """A unit reached over `depth` relationships, the last one of type `relationship` from or to `from_id`."""

    work_unit: WorkUnit
    relationship: RelationshipType
    direction: str
    depth: int
    from_id: str


class Related(msgspec.Struct, frozen=True):
    """What a unit relates to. `missing` are ids that are named but not in the log."""

    related: list[RelatedUnit]
    missing: list[str]
    truncated: bool
    applied_seq: int


class SearchLeg(msgspec.Struct, frozen=True):
    """Where a unit stands in one ranking: by its words (BM25), or by its meaning (cosine)."""

    rank: int
    score: float


class Highlight(msgspec.Struct, frozen=True):
    """A part of a unit's text; `spans` are [first, end) of what matched, in characters of the part."""

    text: str
    spans: list[tuple[int, int]] = []


class SearchExplained(msgspec.Struct, frozen=True):
    """The arithmetic: a hit's score is the sum of its parts."""

    fusion: str
    vector_weight: float
    keyword_part: float
    vector_part: float
    neighbour_part: float = 0.0
    """What the better of the units beside it gives, with `neighbour_weight`."""
    recency_part: float = 0.0
    """With `half_life_ms`."""


class SearchHit(msgspec.Struct, frozen=True, kw_only=True):
    """One unit that was found, and why. `tokens` is about how much of a model's context it fills."""

    unit_id: str
    seq: int
    score: float
    tokens: int
    keyword: SearchLeg | None = None
    """None where no word of the query is in it, or `mode` is semantic."""
    vector: SearchLeg | None = None
    highlights: list[Highlight] = []
    duplicates: int = 0
    """How many units that say nearly the same were left out for it, with `distinct`."""
    explain: SearchExplained | None = None
    """With `explain`."""
    unit: WorkUnit | None = None
    """With `include="units"`."""


class SearchPage(msgspec.Struct, frozen=True):
    """The best units, best first. `next_page` is the `page` of the next request, None at the end.

    `total` counts what the filters and phrases let through, duplicates too (in mode keyword: and holds a word of the
    query), `facets` by context, agent, type and kind; both over all pages.
    """

    results: list[SearchHit]
    total: int
    applied_seq: int
    next_page: str | None
    facets: dict[str, dict[str, int]] | None = None
    """With `facets`."""
    degraded: bool = False
    """Whether the embedder that the bus was told to use was out of reach, or has not seen all units yet."""

    def __iter__(self) -> Iterator[SearchHit]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """A lease on one or several resources, as of when the bus answered."""

    lock_id: str
    resources: list[str]
    """In their canonical form, sorted; in a listing, the one it is listed under."""
    holder_agent: str
    mode: LockMode
    fencing_token: int
    """The seq of its grant: it grows with every grant, over all resources."""
    granted_at: str
    expires_at: str
    remaining_seconds: float
    reason: str = ""
    context_id: str = ""
    extended: bool = False
    """Whether it was held before, and is now held for longer."""

    def fence(self, resource: str | None = None) -> Fence:
        """What an append shows as its `fence`: this lock, by one of its resources (the first) or what lies below."""
        return Fence(self.resources[0] if resource is None else resource, self.fencing_token)


class LockWait(msgspec.Struct, frozen=True, kw_only=True):
    """One who waits for a lock."""

    wait_id: str
    resources: list[str]
    agent_id: str
    mode: LockMode
    queued_at: str
    deadline: str
    reason: str = ""


class LockState(msgspec.Struct, frozen=True, kw_only=True):
    """One resource: the locks on it or above it, and who waits for it. Without holders, it is free."""

    resource: str
    holders: list[Lock]
    """The first thousand of them."""
    holder_count: int
    queue_length: int
    queue: list[LockWait]
    """The first hundred of them."""
    applied_seq: int
    valid: bool | None = None
    """Whether the token that was asked about is of a live lock that covers the resource; None without a token."""


class Disk(msgspec.Struct, frozen=True):
    """What the bus takes on its disk, and what is left there."""

    log_bytes: int = 0
    index_bytes: int = 0
    free_bytes: int | None = None


class SearchStatus(msgspec.Struct, frozen=True):
    """How far the bus's search index is behind its log, and the embedder that ranks by meaning."""

    taken_seq: int
    lag_units: int = 0
    lag_ms: int = 0
    generation: int = 0
    """Another one, as soon as an index that was built again has taken the place of this one."""
    rebuilt_seq: int | None = None
    """Up to where that index has been built; None while none is."""
    embedder: str = ""
    embedder_lag_units: int = 0
    """Units that it has not seen yet: the shipped model ranks until it has."""
    embedder_trouble: str | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How the bus is."""

    epoch: str
    head: int
    cursor: str
    durability: str = ""
    ready: bool = True
    reason: str | None = None
    started_at: str = ""
    uptime_seconds: float = 0.0
    version: str = ""
    contexts: int = 0
    locks: int = 0
    lock_waits: int = 0
    subscribers: int = 0
    queue_commands: int = 0
    lag_units: int = 0
    worker: int | msgspec.UnsetType = msgspec.UNSET
    """Which of several processes answered: not there where one is all, and over gRPC."""
    search: SearchStatus | None = None
    """None where nobody has searched yet, and the bus was told not to index before."""
    disk: Disk = Disk()


class Cursor(NamedTuple):
    """How far a reader has come: everything up to `seq` in the history called `epoch` ("" where nobody has said)."""

    epoch: str
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.seq}" if self.epoch else str(self.seq)

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Of `epoch.seq` or a bare `seq`. Raises ValueError for anything else."""
        epoch, dot, seq = text.rpartition(".")
        if bool(epoch) != bool(dot) or not (seq.isascii() and seq.isdigit()):
            raise ValueError(f"{text!r} is not a cursor")
        return cls(epoch, int(seq))


Outcome = WorkUnit | EngramError
"""What became of one item of a bulk append."""
