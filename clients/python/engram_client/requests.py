"""What the bus can be asked, as frozen values: what is None was not said, and names are those of the wire."""

from collections.abc import Sequence
from datetime import datetime
from math import isfinite
from typing import Literal

import msgspec

from engram_client.errors import InvalidRequest
from engram_client.limits import WAIT_MS_DEFAULT

Direction = Literal["out", "in", "both"]
Mode = Literal["hybrid", "keyword", "semantic"]
Fusion = Literal["z", "rrf", "relative"]
Include = Literal["ids", "units"]
Time = str | datetime | None
"""RFC 3339 with a zone (`2026-01-31T12:00:00Z`), or a datetime with one."""


class Read(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Anything that is read: as of `min_seq` or later, which may be waited for up to `timeout_ms`."""

    min_seq: int | None = None
    timeout_ms: int | None = None

    @property
    def wait_seconds(self) -> float:
        """How long the bus may take to answer, beyond what any request may. Raises InvalidRequest."""
        if self.min_seq is None:
            return 0.0
        if self.timeout_ms is not None and not isfinite(self.timeout_ms):
            raise InvalidRequest(f"timeout_ms {self.timeout_ms} is not a number of milliseconds", field="timeout_ms")
        return (WAIT_MS_DEFAULT if self.timeout_ms is None else self.timeout_ms) / 1_000


# --- Units -----------------------------------------------------------------------------------------------------------


class ReadUnit(Read, frozen=True):
    """One unit."""

    id: str


class ReadUnits(Read, frozen=True):
    """One page of a context's units."""

    context_id: str
    limit: int | None = None
    page: str | None = None
    reverse: bool = False
    after: str | None = None
    before: str | None = None
    type: Sequence[str] | None = None
    agent: Sequence[str] | None = None
    kind: Sequence[str] | None = None


class ReadRelated(Read, frozen=True):
    """What a unit relates to."""

    id: str
    type: Sequence[str] | None = None
    direction: Direction | None = None
    depth: int | None = None


class Search(Read, frozen=True):
    """What to find, and where."""

    query: str
    mode: Mode | None = None
    limit: int | None = None
    context_id: Sequence[str] | None = None
    agent_id: Sequence[str] | None = None
    type: Sequence[str] | None = None
    kind: Sequence[str] | None = None
    resource: Sequence[str] | None = None
    meta: dict[str, str] | None = None
    related_to: Sequence[str] | None = None
    after_seq: int | None = None
    before_seq: int | None = None
    after_ts: Time = None
    before_ts: Time = None
    as_of_seq: int | None = None
    page: str | None = None
    facets: bool = False
    explain: bool = False
    include: Include | None = None
    max_tokens: int | None = None
    fusion: Fusion | None = None
    vector_weight: float | None = None
    rank_constant: float | None = None
    half_life_ms: int | None = None
    recency_weight: float | None = None
    neighbour_weight: float | None = None
    distinct: bool = False
    stale: bool = False


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which units a subscription wants."""

    context: Sequence[str]
    type: Sequence[str] | None = None
    kind: Sequence[str] | None = None
    agent: Sequence[str] | None = None
    exclude_agent: Sequence[str] | None = None
    resource: Sequence[str] | None = None
    meta: dict[str, str] = {}


# --- Contexts --------------------------------------------------------------------------------------------------------


class ReadContext(Read, frozen=True):
    """One context."""

    context_id: str


class ReadContexts(Read, frozen=True):
    """One page of the contexts."""

    prefix: str | None = None
    limit: int | None = None
    page: str | None = None


class ContextChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is to be different in a context; a meta value of None removes its key."""

    display_name: str | None = None
    add_agents: Sequence[str] | None = None
    remove_agents: Sequence[str] | None = None
    pin_units: Sequence[str] | None = None
    unpin_units: Sequence[str] | None = None
    meta: dict[str, str | None] | None = None
    fences: Sequence[str] | None = None
    closed: bool | None = None
    expected_version: int | None = None
    idempotency_key: str
    agent_id: str


# --- Locks -----------------------------------------------------------------------------------------------------------


class LockRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What one asks to hold."""

    resources: tuple[str, ...]
    agent_id: str
    ttl_seconds: float
    mode: str
    reason: str
    context_id: str


class BreakRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is taken from those who hold it."""

    resource: str
    reason: str
    lock_id: str | None
    agent_id: str


class ReadLock(Read, frozen=True):
    """Who holds a resource, and whether a token is still good for it."""

    resource: str
    token: int | None = None


class ReadLocks(Read, frozen=True):
    """One page of what is held."""

    holder: str | None = None
    prefix: str | None = None
    limit: int | None = None
    page: str | None = None
