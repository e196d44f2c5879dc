"""What the bus does for a client, in values: the one interface of which each transport is an implementation."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from engram_client.frames import Appended, Refused, StreamFrame
from engram_client.requests import (
    BreakRequest,
    ContextChange,
    Filter,
    LockRequest,
    ReadContext,
    ReadContexts,
    ReadLock,
    ReadLocks,
    ReadRelated,
    ReadUnit,
    ReadUnits,
    Search,
)
from engram_client.values import (
    Context,
    ContextPage,
    Draft,
    Lock,
    LockState,
    Outcome,
    Page,
    Related,
    SearchPage,
    SearchStatus,
    Status,
    WorkUnit,
)

OpenStream = Callable[[str | None], AsyncGenerator[StreamFrame, None]]
"""Connects and asks for what lies after a cursor. Its frames end with an EngramError, never by themselves."""

LockPage = tuple[list[Lock], str | None]
"""The locks of a page, and where the next one is."""


class Publisher(Protocol):
    """One connection of a pipeline. Whatever ends it is an EngramError, `retryable` where coming back makes sense."""

    async def send(self, appends: Sequence[bytes]) -> None:
        """In this order, behind all that was sent before."""

    async def receive(self) -> Sequence[Appended | Refused]:
        """Answers that are there, or wait for one. A refusal without an id is about the connection."""


class Publishing(Protocol):
    """How a pipeline's appends travel."""

    def append(self, draft: Draft, *, append_id: int, idempotency_key: str) -> bytes:
        """It as it is sent. Raises InvalidRequest where it cannot be written."""

    def connect(self) -> AbstractAsyncContextManager[Publisher]: ...


class Session(Protocol):
    """A connection of its own that locks are tied to: the bus releases them a while after its end.

    Each verb is one try, and raises EngramError: EngramConnectionError where it has ended. What has ended stays so.
    """

    @property
    def has_ended(self) -> bool: ...

    @property
    def heard_at(self) -> float:
        """When the newest thing was said on it that the bus has answered there; the first is to open it."""

    async def acquire(self, asked: LockRequest, *, wait_seconds: float) -> Lock:
        """Tied to it. Whoever is cancelled closes it, and so leaves the line."""

    async def refresh(self, lock: Lock, ttl_seconds: float | None, *, agent_id: str) -> Lock: ...

    async def release(self, lock: Lock, *, agent_id: str) -> None: ...

    async def ping(self) -> None:
        """Ask for a sign of life."""

    async def wait_ended(self, seconds: float) -> None:
        """Until it has ended, but no longer than that."""

    async def aclose(self) -> None: ...


class Verbs(Protocol):
    """All that one agent can ask of one bus.

    Each verb is one try: it raises EngramError, among them EngramConnectionError where no answer came in time, and
    trying again is for whoever asks. One that is cancelled is asked no more. Drafts and requests that name no agent
    are this agent's.
    """

    async def append(self, draft: Draft, *, idempotency_key: str) -> WorkUnit: ...

    async def append_bulk(self, drafts: Sequence[Draft], *, atomic: bool, idempotency_key: str) -> list[Outcome]: ...

    async def get(self, asked: ReadUnit) -> WorkUnit: ...

    async def list(self, asked: ReadUnits) -> Page: ...

    async def related(self, asked: ReadRelated) -> Related: ...

    async def status(self) -> Status: ...

    async def search(self, asked: Search) -> SearchPage: ...

    async def rebuild_search(self) -> SearchStatus: ...

    async def get_context(self, asked: ReadContext) -> Context: ...

    async def update_context(self, context_id: str, change: ContextChange) -> Context: ...

    async def contexts(self, asked: ReadContexts) -> ContextPage: ...

    async def acquire_lock(self, asked: LockRequest, *, wait_seconds: float) -> Lock: ...

    async def refresh_lock(self, lock: Lock, ttl_seconds: float | None, *, agent_id: str) -> Lock: ...

    async def release_lock(self, lock: Lock, *, agent_id: str) -> bool: ...

    async def break_lock(self, asked: BreakRequest) -> Sequence[str]: ...

    async def get_lock(self, asked: ReadLock) -> LockState: ...

    async def locks(self, asked: ReadLocks) -> LockPage: ...

    def subscribe(
        self, wanted: Filter, *, transport: str | None, encoding: str | None, silence_seconds: float
    ) -> OpenStream:
        """Raises ValueError for a transport or an encoding that is not one of this one's."""

    def publishing(self) -> Publishing: ...

    def session(self, clock: Callable[[], float]) -> Session:
        """Begin one, which counts by this clock. What keeps it from beginning is raised to whoever asks in it."""

    async def aclose(self) -> None:
        """End its connections."""


def keys(count: int, *, atomic: bool, idempotency_key: str) -> list[str | None]:
    """The key of each draft of a bulk: all or none has one key for all; else each has one made from the bulk's, so
    that the same call gives the same answers."""
    return [None if atomic else f"{idempotency_key}-{index}" for index in range(count)]
