"""What is recorded and what is asked: work units, relationships, contexts and commands, as frozen values."""

from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

import msgspec

FORMAT_TEXT = "text/plain; charset=utf-8"
FORMAT_JSON = "application/json"
FORMAT_BYTES = "application/octet-stream"

OWN_KINDS = ("context.", "lock.", "mail.", "memory.", "agent.", "bus.")
"""Kinds that only the bus writes; their type is SYSTEM."""

ANONYMOUS = "anonymous"
"""Who changed a context when nobody was named."""

BUS_AGENT = "engram"
"""Whose units they are that nobody asked for: a lease that ran out, a wait that ended."""

LOCKS_CONTEXT = "locks"
"""Where lock units stand unless the request names another context."""


class UnitType(StrEnum):
    """What a unit is. Names on the wire; the numbers (their order here, from 0) are read as well."""

    UNKNOWN = "UNKNOWN"
    MESSAGE = "MESSAGE"
    REASONING = "REASONING"
    TOOL_CALL = "TOOL_CALL"
    TOOL_RESULT = "TOOL_RESULT"
    FILE_CHANGE = "FILE_CHANGE"
    TASK_STATUS = "TASK_STATUS"
    ERROR = "ERROR"
    SYSTEM = "SYSTEM"


class RelationshipType(StrEnum):
    """How a unit relates to the one it names. Numbers on the wire are read too: 0 is refused, SEQUENTIAL is 1."""

    SEQUENTIAL = "SEQUENTIAL"
    CAUSES = "CAUSES"
    DEPENDS_ON = "DEPENDS_ON"
    REFERENCES = "REFERENCES"
    RESPONDS_TO = "RESPONDS_TO"
    MODIFIES = "MODIFIES"
    REPLACES = "REPLACES"


class Relationship(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A typed edge from the unit that carries it to `target_id` (which need not be known here)."""

    target_id: str
    type: RelationshipType
    meta: dict[str, str] = {}


class WorkUnit(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """One immutable step of one agent in one context.

    `seq` is its place in the log, `version` its place in its context, both from 1 without a gap. `ts` is the writer's
    clock as RFC 3339 UTC with microseconds. `payload` is the bytes as they came.
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
    # Last, so that a record can cover everything before it by its digest and the payload by a salted one.
    payload: bytes


class Placed(msgspec.Struct, frozen=True, gc=False):
    """What the decisions take in of a unit that has no kind, as nearly all have none: a start reads 100,000 of them."""

    seq: int
    context_id: str
    version: int
    ts: str
    kind: str | None = None


class Draft(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A unit before the writer gave it its place: all that a client or a decision says of it.

    Commands are digested to recognise a repeat for the life of the log: a new field needs a default that is left out.
    """

    context_id: str
    agent_id: str
    type: UnitType
    kind: str | None = None
    content_type: str = FORMAT_TEXT
    payload: bytes = b""
    meta: dict[str, str] = {}
    resources: list[str] = []
    relationships: list[Relationship] = []
    traceparent: str | None = None
    id: str | None = None


class Fence(msgspec.Struct, frozen=True, gc=False):
    """What a writer shows to prove that it still holds: the resource, and the fencing token of its lock."""

    resource: str
    token: int


class Append(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Record this draft, if its context is at `expected_version` and its lock is still held (when given)."""

    draft: Draft
    expected_version: int | None = None
    fence: Fence | None = None
    idempotency_key: str | None = None


class AppendAtomic(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Record all of these or none; each expected version counts the units before it in the batch."""

    appends: tuple[Append, ...]
    idempotency_key: str | None = None

    @property
    def agent_id(self) -> str:
        """Whose idempotency key it is: the first unit's agent."""
        return self.appends[0].draft.agent_id


class UpdateContext(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Make the context if it is not there, then change what is named; what is None stays."""

    context_id: str
    agent_id: str
    display_name: str | None = None
    add_agents: tuple[str, ...] = ()
    remove_agents: tuple[str, ...] = ()
    pin_units: tuple[str, ...] = ()
    unpin_units: tuple[str, ...] = ()
    meta: dict[str, str | None] = {}
    fences: tuple[str, ...] | None = None
    closed: bool | None = None
    expected_version: int | None = None
    idempotency_key: str | None = None


class LockMode(StrEnum):
    """Exclusive: nobody else holds it, or anything above or below it. Shared: others may share."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"


class AcquireLock(msgspec.Struct, frozen=True, kw_only=True):
    """Hold all of these resources or none, at once or within `wait_ms`; who holds just these extends its lease.

    It is idempotent by itself: a repeat gives the same lock.
    """

    resources: tuple[str, ...]
    agent_id: str
    ttl_ms: int
    mode: LockMode = LockMode.EXCLUSIVE
    wait_ms: int = 0
    reason: str = ""
    context_id: str = LOCKS_CONTEXT
    session: str | None = None
    """The connection it is tied to: it is released when that ends."""


class RefreshLock(msgspec.Struct, frozen=True, kw_only=True):
    """Let the lease of a lock that is still held end `ttl_ms` from now (None: as long as it was first asked for)."""

    lock_id: str
    agent_id: str
    resource: str | None = None
    ttl_ms: int | None = None


class ReleaseLock(msgspec.Struct, frozen=True, kw_only=True):
    """Give a lock back; of a lock that is not held any more, nothing is left to do."""

    lock_id: str
    agent_id: str
    resource: str | None = None


class BreakLock(msgspec.Struct, frozen=True, kw_only=True):
    """Take a resource from all who hold it (or one lock of them), on the record."""

    resource: str
    agent_id: str
    reason: str
    lock_id: str | None = None


class TendLocks(msgspec.Struct, frozen=True, kw_only=True):
    """What comes to locks without anyone asking: leases and waits that ran out, waits nobody waits for, grants due.

    The writer gives it to itself, before anything else of a commit and whenever it made a lock free.
    """

    units_max: int
    ended_waits: dict[str, str] = {}
    """Waits to end, and why."""
    ended_sessions: tuple[str, ...] = ()


KeyedCommand = Append | AppendAtomic | UpdateContext
"""What may come with an idempotency key."""
LockCommand = AcquireLock | RefreshLock | ReleaseLock | BreakLock
Command = KeyedCommand | LockCommand


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """A lease on one or several resources, as of when it was read."""

    lock_id: str
    """The id of the unit that granted it."""
    resources: tuple[str, ...]
    holder_agent: str
    mode: LockMode
    fencing_token: int
    """The seq of the unit that granted it: it grows with every grant, over all resources."""
    granted_at: str
    expires_at: str
    remaining_ms: int
    reason: str
    context_id: str
    session: str | None


class LockWait(msgspec.Struct, frozen=True, kw_only=True):
    """One who waits for a lock, as of when it was read."""

    wait_id: str
    """The id of the unit that queued it."""
    resources: tuple[str, ...]
    agent_id: str
    mode: LockMode
    queued_at: str
    deadline: str
    reason: str


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


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """What the writer gives a decision instead of a clock and randomness."""

    ts_us: int
    seed: int
    """62 random bits, new for every commit."""

    def unit_id(self, ordinal: int) -> str:
        """UUIDv7 of the ordinal-th unit of this commit (RFC 9562, 5.7; sub-millisecond time in rand_a, method 3)."""
        random = self.seed + ordinal
        return f"{_id_front(self.ts_us, random >> 48)}{random & 0xFFFF_FFFF_FFFF:012x}"


@lru_cache(maxsize=8)
def _id_front(ts_us: int, random_top: int) -> str:
    """What the ids of one commit have in common: time, version, variant and the upper 14 random bits."""
    ms, us = divmod(ts_us, 1_000)
    text = f"{ms & 0xFFFF_FFFF_FFFF:012x}"
    return f"{text[:8]}-{text[8:]}-7{us * 4096 // 1_000:03x}-{0b10 << 14 | random_top & 0x3FFF:04x}-"


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def ts_text(ts_us: int) -> str:
    """RFC 3339 UTC with exactly six decimals, so that text order is time order."""
    seconds, us = divmod(ts_us, 1_000_000)
    return f"{_second_text(seconds)}.{us:06d}Z"


@lru_cache(maxsize=8)
def _second_text(seconds: int) -> str:
    """Formatting a date costs ten times the rest of a stamp, and the writer stamps one second many times."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def ts_us(text: str) -> int:
    """Microseconds since 1970 of a `ts`. Raises ValueError for anything else."""
    delta = datetime.fromisoformat(text) - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def is_own_kind(kind: str | None) -> bool:
    """Whether only the bus may write units of this kind."""
    return kind is not None and kind.startswith(OWN_KINDS)


@lru_cache(maxsize=64)
def is_text(content_type: str) -> bool:
    """Text that must be UTF-8 and travels in JSON as a string."""
    base, _, parameters = content_type.lower().partition(";")
    if not base.strip().startswith("text/"):
        return False
    charset = parameters.partition("charset=")[2].strip(' "')
    return charset in ("", "utf-8", "utf8", "us-ascii")


@lru_cache(maxsize=64)
def is_json(content_type: str) -> bool:
    """A payload that must be JSON and travels in JSON as itself."""
    base = content_type.partition(";")[0].strip().lower()
    return base == FORMAT_JSON or base.endswith("+json")
