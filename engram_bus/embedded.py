"""The bus in this process: every verb, no server. `engram serve` is this with an edge around it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from engram_bus import clock
from engram_bus.bus.admission import admit, check_name, check_resource, check_token
from engram_bus.bus.contract import DeciderOf
from engram_bus.bus.writer import Answer, Done, Ticket, Writer
from engram_bus.codec import Entry, encode_json, json_payload, lock_mode, milliseconds, parse
from engram_bus.decisions.locks import GRANTED, LockState, change_of
from engram_bus.errors import (
    ContextNotFound,
    DataDamaged,
    EngramError,
    InvalidRequest,
    LogDamaged,
    MinSeqTimeout,
    ShuttingDown,
    TooLarge,
    Unavailable,
    UnitNotFound,
)
from engram_bus.limits import (
    BULK_UNITS_MAX,
    HEARTBEAT_SECONDS,
    LOCK_SESSION_GRACE_SECONDS,
    LOCK_TTL_MS_DEFAULT,
    LOG_SIZE_BYTES_MAX,
    MIN_SEQ_TIMEOUT_MS_DEFAULT,
    MIN_SEQ_TIMEOUT_MS_MAX,
    PAGE_UNITS_DEFAULT,
    PAGE_UNITS_MAX,
    RELATED_DEPTH_MAX,
    SEARCH_PAGE_BYTES_MAX,
    SEARCH_STEP_BYTES,
    SOCKET_STALL_SECONDS,
)
from engram_bus.log.contract import Log, cursor_seq, cursor_text
from engram_bus.log.directory import DataDirectory
from engram_bus.log.lmdb import LmdbLog
from engram_bus.log.memory import MemoryLog
from engram_bus.newest import Newest
from engram_bus.projections.search.choice import STATIC
from engram_bus.projections.search.choice import check as check_embedder
from engram_bus.projections.search.contract import Search
from engram_bus.projections.search.fusion import RANK_CONSTANT
from engram_bus.projections.search.requests import SearchIn, SearchOut, Window, answer, asked_from, window_of
from engram_bus.projections.search.searcher import Searcher, building
from engram_bus.projections.search.values import RECENCY_WEIGHT, VECTOR_WEIGHT, Asked, Found, Hit
from engram_bus.reading import Page, RelatedPage, Scan, Walk, entry_of
from engram_bus.router.contract import Framing, Sink
from engram_bus.router.fanout import Fanout, Feed
from engram_bus.router.filters import Filter, make_filter, predicate, unit_type
from engram_bus.router.local import LocalSubscription
from engram_bus.units import (
    ANONYMOUS,
    FORMAT_BYTES,
    FORMAT_JSON,
    FORMAT_TEXT,
    LOCKS_CONTEXT,
    AcquireLock,
    Append,
    AppendAtomic,
    BreakLock,
    Command,
    Context,
    Draft,
    Fence,
    Lock,
    LockMode,
    RefreshLock,
    Relationship,
    RelationshipType,
    ReleaseLock,
    UnitType,
    UpdateContext,
    WorkUnit,
    ts_text,
)

if TYPE_CHECKING:
    from engram_bus.projections.search.local import LocalSearch

_PULSE_SECONDS = 1.0
_decode_search = msgspec.json.Decoder(SearchIn).decode


class ContextPage(msgspec.Struct, frozen=True):
    """A part of the list of contexts, in byte order of their ids."""

    contexts: tuple[Context, ...]
    next_page: str | None
    applied_seq: int


class LockPage(msgspec.Struct, frozen=True):
    """A part of the list of locks: each resource with a lock on it, and where it goes on."""

    locks: tuple[tuple[str, Lock], ...]
    next_page: str | None
    applied_seq: int


class Counts(NamedTuple):
    """What is open and under way on a bus."""

    subscribers: int = 0
    lag_units: int = 0
    """Of the subscription that is furthest behind."""
    delivered_units: int = 0
    queue_commands: int = 0

    def plus(self, other: "Counts") -> "Counts":
        return Counts(
            self.subscribers + other.subscribers,
            max(self.lag_units, other.lag_units),
            self.delivered_units + other.delivered_units,
            self.queue_commands + other.queue_commands,
        )


class Bus:
    """One open bus. Use `async with Bus.open(path) as bus:`; everything runs in that loop's thread."""

    def __init__(
        self,
        log: Log,
        *,
        directory: DataDirectory | None = None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stall_seconds: float = SOCKET_STALL_SECONDS,
        session_grace_seconds: float = LOCK_SESSION_GRACE_SECONDS,
        embedder: str = STATIC,
        decider: DeciderOf | None = None,
        search: Callable[[], Search] | None = None,
    ) -> None:
        """`decider` and `search` stand in for the writer and the search of this process, where another one has them."""
        self.log = log
        self._stopped = False
        self.stall_seconds = stall_seconds
        """How long a socket or a call may take nothing of what it is sent."""
        self.started_at = ts_text(clock.wall_us())
        self.fanout = Fanout(log, heartbeat_seconds=heartbeat_seconds, stall_seconds=stall_seconds)
        self.on_ready: list[Callable[[], None]] = []
        """Called whenever it may have changed whether appends are taken."""
        begin: DeciderOf = partial(Writer, log) if decider is None else decider
        self.writer = begin(tell=self._tell, tell_ready=self._tell_ready, tell_settled=self._tell_settled)
        self._newest = Newest()
        self._directory = directory
        self._embedder = embedder
        self._search = search
        self.searcher: Search | None = None
        self.elsewhere = Counts()
        """What other processes of the same bus count."""
        self._session_grace_seconds = session_grace_seconds
        self._session_ends: dict[str, asyncio.TimerHandle] = {}
        if decider is None:
            # No connection of before lives: who comes back in time keeps what was tied to it.
            for session in self.writer.state.locks.sessions:
                self.end_session(session)
        self._waiting: set[tuple[int, asyncio.Future[None]]] = set()
        self._next_pulse = asyncio.get_running_loop().call_later(_PULSE_SECONDS, self._pulse)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        path: str | Path | None,
        *,
        size_bytes_max: int = LOG_SIZE_BYTES_MAX,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stall_seconds: float = SOCKET_STALL_SECONDS,
        embedder: str = STATIC,
    ) -> AsyncIterator[Self]:
        """A bus on a data directory, or in memory (None: for tests, and searched with the shipped embedder).

        Raises DataDirectoryError; UnknownEmbedder and EmbedderMissing, which are ValueErrors.
        """
        bus = cls.start(
            path,
            size_bytes_max=size_bytes_max,
            heartbeat_seconds=heartbeat_seconds,
            stall_seconds=stall_seconds,
            embedder=embedder,
        )
        try:
            yield bus
        finally:
            await bus.stop("closed")

    @classmethod
    def start(
        cls,
        path: str | Path | None,
        *,
        size_bytes_max: int = LOG_SIZE_BYTES_MAX,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stall_seconds: float = SOCKET_STALL_SECONDS,
        embedder: str = STATIC,
        log_type: type[LmdbLog] = LmdbLog,
    ) -> Self:
        """Open without a context manager; whoever starts a bus calls `stop`. Raises as `open`."""
        check_embedder(embedder)
        if path is None:
            return cls(MemoryLog(), heartbeat_seconds=heartbeat_seconds, stall_seconds=stall_seconds)
        try:
            directory = DataDirectory(Path(path), created_at=ts_text(clock.wall_us()))
        except DataDamaged as exc:
            raise _advised(path, exc) from exc
        try:
            log = log_type(directory.tenant(), size_bytes_max=size_bytes_max, writable=directory.writable)
            try:
                return cls(
                    log,
                    directory=directory,
                    heartbeat_seconds=heartbeat_seconds,
                    stall_seconds=stall_seconds,
                    embedder=embedder,
                )
            except BaseException:
                log.close()
                raise
        except (LogDamaged, DataDamaged) as exc:
            directory.close()
            raise _advised(path, exc) from exc
        except BaseException:
            directory.close()
            raise

    async def stop(self, reason: str) -> None:
        """Commit what waits, send subscribers off with their cursors, close the log. Stopping again does nothing."""
        if self._stopped:
            return
        self._stopped = True
        self._next_pulse.cancel()
        for timer in self._session_ends.values():
            timer.cancel()
        try:
            self.goaway(reason)
        finally:
            if self.searcher is not None:
                self.searcher.close()
            self.log.close()
            if self._directory is not None:
                self._directory.close()

    def goaway(self, reason: str) -> None:
        """Commit what waits, then tell who waits for more that nothing comes. What is there can still be read."""
        self.writer.close()
        self.fanout.goaway(reason)
        self._release_waiting()

    # --- What it is --------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> str:
        return self.log.epochs[-1].name

    @property
    def head(self) -> int:
        """The newest seq that is durable and told."""
        return self.log.head

    @property
    def durability(self) -> str:
        return self.log.durability

    @property
    def cursor(self) -> str:
        """The cursor of the head: subscribe after it to get what comes next."""
        return cursor_text(self.epoch, self.head)

    @property
    def counts(self) -> Counts:
        """Of the whole bus: here now, in other processes as they told last."""
        return self.counts_here.plus(self.elsewhere)

    @property
    def counts_here(self) -> Counts:
        """Of this process."""
        fanout = self.fanout
        return Counts(len(fanout), fanout.furthest_behind, fanout.delivered_units, self.writer.queue_commands)

    # --- Append ------------------------------------------------------------------------------------------------------

    def submit(self, command: Command, done: Done, *, gathers: bool = False) -> Ticket:
        """Check a command and queue it; `done` is called once it is durable, or refused. With `gathers` its commit may
        be put off by some turns of the loop, for others that come one in a turn. Raises EngramError."""
        return self.writer.submit(command, admit(command), done, gathers=gathers)

    async def execute(self, command: Command, *, gathers: bool = False) -> Answer:
        """Check a command, queue it, wait for its answer. Raises EngramError."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.submit(command, _resolve(answered), gathers=gathers)
        return await answered

    async def execute_bulk(self, appends: Sequence[Append | EngramError]) -> list[Answer | EngramError]:
        """Each append by itself, in order, in as few commits as they fit; what could not be read is its own outcome.
        Raises when the batch itself is at fault."""
        if not appends:
            raise InvalidRequest("the batch is empty: name at least one unit")
        if len(appends) > BULK_UNITS_MAX:
            raise TooLarge(f"{len(appends)} units in one batch, at most {BULK_UNITS_MAX}", limit=BULK_UNITS_MAX)
        outcomes: list[Answer | EngramError | None] = [None] * len(appends)
        all_done = asyncio.get_running_loop().create_future()
        open_count = len(appends)

        def one_done(index: int, outcome: Answer | EngramError) -> None:
            nonlocal open_count
            outcomes[index] = outcome
            open_count -= 1
            if open_count == 0 and not all_done.done():
                all_done.set_result(None)

        for index, append in enumerate(appends):
            if isinstance(append, EngramError):
                one_done(index, append)
                continue
            try:
                self.submit(append, lambda outcome, index=index: one_done(index, outcome))  # type: ignore[misc]
            except EngramError as exc:
                one_done(index, exc)
        await all_done
        return [outcome for outcome in outcomes if outcome is not None]

    async def append(
        self,
        context_id: str,
        payload: Any = b"",
        *,
        agent_id: str,
        type: UnitType | str | int = UnitType.MESSAGE,
        kind: str | None = None,
        content_type: str | None = None,
        meta: dict[str, str] | None = None,
        resources: Sequence[str] = (),
        relationships: Sequence[Relationship] = (),
        traceparent: str | None = None,
        id: str | None = None,
        idempotency_key: str | None = None,
        expected_version: int | None = None,
        fence: Fence | None = None,
    ) -> WorkUnit:
        """Record one unit. A str payload is text, bytes are bytes, anything else is JSON. Raises EngramError."""
        content_type, raw = _payload(payload, content_type)
        answer = await self.execute(
            Append(
                draft=Draft(
                    context_id=context_id,
                    agent_id=agent_id,
                    type=unit_type(type),
                    kind=kind,
                    content_type=content_type,
                    payload=raw,
                    meta=meta or {},
                    resources=list(resources),
                    relationships=list(relationships),
                    traceparent=traceparent,
                    id=id,
                ),
                idempotency_key=idempotency_key,
                expected_version=expected_version,
                fence=fence,
            )
        )
        return answer.entries[0].unit

    async def append_bulk(
        self, drafts: Iterable[Draft], *, atomic: bool = False, idempotency_key: str | None = None
    ) -> list[WorkUnit | EngramError]:
        """Record many: each by itself (a refusal stands in its place), or all or none (a refusal is raised)."""
        appends = tuple(Append(draft=draft) for draft in drafts)
        if not atomic:
            if idempotency_key is not None:
                raise InvalidRequest("one idempotency key is for an atomic batch", field="idempotency_key")
            outcomes = await self.execute_bulk(appends)
            return [outcome if isinstance(outcome, EngramError) else outcome.entries[0].unit for outcome in outcomes]
        answer = await self.execute(AppendAtomic(appends=appends, idempotency_key=idempotency_key))
        return [entry.unit for entry in answer.entries]

    # --- Read --------------------------------------------------------------------------------------------------------

    async def wait_for(self, min_seq: int, *, timeout_ms: int = MIN_SEQ_TIMEOUT_MS_DEFAULT) -> None:
        """Return when the head has reached `min_seq`. Raises MinSeqTimeout after `timeout_ms`, ShuttingDown."""
        self._require_open()
        if not 0 <= timeout_ms <= MIN_SEQ_TIMEOUT_MS_MAX:
            raise InvalidRequest(
                f"timeout_ms {timeout_ms}, at most {MIN_SEQ_TIMEOUT_MS_MAX}",
                field="timeout_ms",
                limit=MIN_SEQ_TIMEOUT_MS_MAX,
            )
        if min_seq <= self.head:
            return
        if self.writer.is_closed:
            raise ShuttingDown(f"the bus is stopping: the log stays at {self.head}")
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (min_seq, reached)
        self._waiting.add(waiting)
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                await reached
        except TimeoutError:
            raise MinSeqTimeout(
                f"the log is at {self.head} after {timeout_ms} ms, not at {min_seq}", field="min_seq", head=self.head
            ) from None
        finally:
            self._waiting.discard(waiting)

    def get(self, unit_id: str) -> Entry:
        """The unit of this id. Raises UnitNotFound, LogDamaged."""
        self._require_open()
        return entry_of(self.log, unit_id)

    def list(
        self,
        context_id: str,
        *,
        limit: int = PAGE_UNITS_DEFAULT,
        page: str | None = None,
        reverse: bool = False,
        after: int = 0,
        before: int | None = None,
        wanted: Filter | None = None,
    ) -> Page:
        """The units of a context with after < seq < before, oldest first; `wanted` narrows them further.

        An unknown context is an empty page. A page ends early (perhaps empty) where looking further would hold up the
        loop; `next_page` is None only at the end. Raises InvalidRequest, LogDamaged.
        """
        self._require_open()
        check_name(context_id, "context_id")
        if not 1 <= limit <= PAGE_UNITS_MAX:
            raise InvalidRequest(f"limit {limit} is not 1 to {PAGE_UNITS_MAX}", field="limit", limit=PAGE_UNITS_MAX)
        if page is not None:
            position = self._page_seq(page)
            after, before = (after, position) if reverse else (position, before)
        is_newest = reverse and page is None and after == 0 and before is None and wanted is None
        if is_newest and (newest := self._newest.of(context_id, limit)) is not None:
            oldest = newest[-1]
            more = None if oldest.unit.version == 1 else cursor_text(self.epoch, oldest.seq)
            return Page(tuple(newest), more, self.head)
        wants = None if wanted is None else predicate(wanted)
        scan = Scan(self.log, context_id, reverse=reverse, after=after, before=before)
        found: list[Entry] = []
        while len(found) < limit and scan.may_go_on:
            for entry in scan.next(PAGE_UNITS_MAX if wants is not None else limit - len(found)):
                scan.passed(entry)
                if wants is None or wants(entry.unit):
                    found.append(entry)
                    if len(found) == limit:
                        break
        is_all = scan.is_at_end()
        if is_newest and (is_all or len(found) == limit):
            self._newest.keep(context_id, found)
        return Page(tuple(found), None if is_all else cursor_text(self.epoch, scan.position), self.head)

    def _page_seq(self, page: str) -> int:
        try:
            return cursor_seq(page, epochs=self.log.epochs, head=self.head)
        except EngramError as exc:
            raise InvalidRequest(f"page {page[:64]!r} is not one this log gave: {exc.message}", field="page") from exc

    def related(
        self, unit_id: str, *, direction: str = "both", depth: int = 1, types: Sequence[RelationshipType] = ()
    ) -> RelatedPage:
        """What a unit relates to ("out"), what relates to it ("in"), or both, nearest first. Cycles end.

        Raises UnitNotFound, InvalidRequest, LogDamaged.
        """
        if direction not in ("out", "in", "both"):
            raise InvalidRequest(f"direction {direction[:64]!r} is not out, in or both", field="direction")
        if not 1 <= depth <= RELATED_DEPTH_MAX:
            raise InvalidRequest(
                f"depth {depth} is not 1 to {RELATED_DEPTH_MAX}", field="depth", limit=RELATED_DEPTH_MAX
            )
        walk = Walk(self.log, self.get(unit_id), direction, types)
        for step in range(1, depth + 1):
            walk.step(step)
        return RelatedPage(tuple(walk.found), tuple(walk.missing), walk.truncated, self.head)

    # --- Contexts ----------------------------------------------------------------------------------------------------

    def context(self, context_id: str) -> Context:
        """A context as it stands. Raises ContextNotFound."""
        self._require_open()
        context = self.writer.state.contexts.view(context_id)
        if context is None:
            raise ContextNotFound(f"no context {context_id[:256]!r}")
        return context

    def contexts(self, *, limit: int = PAGE_UNITS_DEFAULT, page: str | None = None, prefix: str = "") -> ContextPage:
        """Contexts in byte order of their ids, `page` being the id to go on after. Raises InvalidRequest."""
        self._require_open()
        for name, field in ((page, "page"), (prefix, "prefix")):
            if name:
                check_name(name, field)
        if not 1 <= limit <= PAGE_UNITS_MAX:
            raise InvalidRequest(f"limit {limit} is not 1 to {PAGE_UNITS_MAX}", field="limit", limit=PAGE_UNITS_MAX)
        ids = self.log.context_ids(page or "", prefix=prefix, limit=limit + 1)
        views = (self.writer.state.contexts.view(context_id) for context_id in ids[:limit])
        return ContextPage(
            tuple(view for view in views if view is not None), ids[limit - 1] if len(ids) > limit else None, self.head
        )

    async def update_context(
        self,
        context_id: str,
        *,
        agent_id: str = ANONYMOUS,
        display_name: str | None = None,
        add_agents: Sequence[str] = (),
        remove_agents: Sequence[str] = (),
        pin_units: Sequence[str] = (),
        unpin_units: Sequence[str] = (),
        meta: dict[str, str | None] | None = None,
        fences: Sequence[str] | None = None,
        closed: bool | None = None,
        expected_version: int | None = None,
        idempotency_key: str | None = None,
    ) -> Context:
        """Make a context or change it; each change is a unit. Raises EngramError."""
        command = UpdateContext(
            context_id=context_id,
            agent_id=agent_id,
            display_name=display_name,
            add_agents=tuple(add_agents),
            remove_agents=tuple(remove_agents),
            pin_units=tuple(pin_units),
            unpin_units=tuple(unpin_units),
            meta=meta or {},
            fences=None if fences is None else tuple(fences),
            closed=closed,
            expected_version=expected_version,
            idempotency_key=idempotency_key,
        )
        answer = await self.execute_update(command)
        assert answer.context is not None, "an update answers with its context"
        return answer.context

    async def execute_update(self, command: UpdateContext) -> Answer:
        """As `execute`, after checking that what is pinned exists (units are never removed, so it will then too)."""
        self._require_open()
        admit(command)
        for index, unit_id in enumerate(command.pin_units):
            if len(unit_id) != 36 or self.log.seq_of_id(unit_id) is None:
                raise UnitNotFound(f"no unit of id {unit_id[:64]!r} to pin", field=f"pin_units[{index}]")
        return await self.execute(command)

    # --- Locks -------------------------------------------------------------------------------------------------------

    async def acquire_lock(
        self,
        *resources: str,
        agent_id: str,
        ttl_seconds: float = LOCK_TTL_MS_DEFAULT / 1_000,
        mode: str = LockMode.EXCLUSIVE,
        wait_seconds: float = 0,
        reason: str = "",
        context_id: str = LOCKS_CONTEXT,
    ) -> Lock:
        """Hold all of these resources or none, waiting in line up to `wait_seconds`; asking again extends the lease.

        A lock covers what lies below its resources (`repo/src` covers `repo/src/a.py`). Who stops waiting (is
        cancelled) leaves the line. Raises LockHeld, Deadlock, WaitEnded, InvalidRequest, TooLarge, ...
        """
        command = AcquireLock(
            resources=resources,
            agent_id=agent_id,
            ttl_ms=milliseconds(ttl_seconds, "ttl_seconds"),
            mode=lock_mode(mode),
            wait_ms=milliseconds(wait_seconds, "wait_seconds"),
            reason=reason,
            context_id=context_id,
        )
        answer = await self.execute_lock(command)
        assert answer.lock is not None, "an acquire answers with its lock"
        return answer.lock

    async def refresh_lock(self, lock_id: str, *, agent_id: str, ttl_seconds: float | None = None) -> Lock:
        """Let the lease end `ttl_seconds` from now (None: as long as first asked for). Raises LockLost, NotHolder."""
        ttl_ms = None if ttl_seconds is None else milliseconds(ttl_seconds, "ttl_seconds")
        answer = await self.execute(RefreshLock(lock_id=lock_id, agent_id=agent_id, ttl_ms=ttl_ms))
        assert answer.lock is not None, "a refresh answers with its lock"
        return answer.lock

    async def release_lock(self, lock_id: str, *, agent_id: str) -> bool:
        """Give a lock back; False where it was not held any more. Raises NotHolder."""
        return bool((await self.execute(ReleaseLock(lock_id=lock_id, agent_id=agent_id))).entries)

    async def break_lock(
        self, resource: str, *, agent_id: str, reason: str, lock_id: str | None = None
    ) -> Sequence[str]:
        """Take a resource from all who hold just it, or from one lock; gives the ids. Raises LockNotFound."""
        answer = await self.execute(BreakLock(resource=resource, agent_id=agent_id, reason=reason, lock_id=lock_id))
        return [change_of(entry.unit).lock_id or "" for entry in answer.entries]

    async def execute_lock(self, command: AcquireLock) -> Answer:
        """As `execute`; a caller that is cancelled leaves the line, and what it was granted meanwhile is released."""
        with self.asking(command) as answered:
            return await answered

    @contextlib.contextmanager
    def asking(self, command: AcquireLock) -> Iterator[asyncio.Future[Answer]]:
        """The answer to come, wanted until the block ends: where that raises, the line is left, and what was granted
        meanwhile is released."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        abandon = self.submit_lock(command, _resolve(answered))
        try:
            yield answered
        except BaseException:
            answered.cancel()
            abandon()
            raise

    def submit_lock(self, command: AcquireLock, done: Done) -> Callable[[], None]:
        """As `submit`. What it gives is to be called when nobody wants the lock any more: then the line is left (`done`
        is told so), and what was granted meanwhile is released."""
        outcome: EngramError | Answer | None = None
        is_abandoned = False

        def settle(settled: Answer | EngramError) -> None:
            nonlocal outcome
            outcome = settled
            if is_abandoned:
                self.give_back(settled)
            done(settled)

        def abandon() -> None:
            nonlocal is_abandoned
            if not is_abandoned:
                is_abandoned = True
                self.writer.cancel(ticket)
                if outcome is not None:
                    self.give_back(outcome)

        ticket = self.submit(command, settle)
        return abandon

    def give_back(self, outcome: Answer | EngramError) -> None:
        """Release a lock that was granted and that nobody is there to receive. (One that was extended was there before,
        and stays.)"""
        if isinstance(outcome, Answer) and outcome.lock is not None and outcome.entries[0].unit.kind == GRANTED:
            release = ReleaseLock(lock_id=outcome.lock.lock_id, agent_id=outcome.lock.holder_agent)
            with contextlib.suppress(EngramError):  # It runs out by itself then.
                self.submit(release, lambda released: None)

    def lock(self, resource: str) -> LockState:
        """Who holds a resource (or what lies above it), and who waits for it. Raises InvalidRequest, TooLarge."""
        self._require_open()
        check_resource(resource, "resource")
        return self.writer.state.locks.state(resource, self.writer.now_us())

    def is_fence_valid(self, resource: str, token: int) -> bool:
        """Whether a fencing token is of a live lock that covers the resource: for what is written outside the bus."""
        self._require_open()
        check_resource(resource, "resource")
        check_token(token, "token")
        return self.writer.state.locks.is_valid(resource, token, self.writer.now_us())

    def locks(
        self, *, holder: str | None = None, prefix: str = "", limit: int = PAGE_UNITS_DEFAULT, page: str | None = None
    ) -> LockPage:
        """What is held, by one agent or all, in order of resources; a lock on several comes once for each.

        Raises InvalidRequest, TooLarge.
        """
        self._require_open()
        if holder is not None:
            check_name(holder, "holder")
        if prefix:
            check_resource(prefix, "prefix")
        if not 1 <= limit <= PAGE_UNITS_MAX:
            raise InvalidRequest(f"limit {limit} is not 1 to {PAGE_UNITS_MAX}", field="limit", limit=PAGE_UNITS_MAX)
        found = self.writer.state.locks.held(
            after=("", 0) if page is None else _lock_place(page),
            prefix=prefix,
            holder=holder,
            limit=limit + 1,
            now_us=self.writer.now_us(),
        )
        shown = found[:limit]
        next_page = f"{shown[-1][1].fencing_token}.{shown[-1][0]}" if len(found) > limit else None
        return LockPage(tuple(shown), next_page, self.head)

    def new_session(self) -> str:
        """A name for a connection that locks can be tied to."""
        return os.urandom(12).hex()

    def end_session(self, session: str) -> None:
        """The connection ended: its locks are released after a grace, in which the agent may ask for them again."""
        # (Also where nothing is tied to it: what it asked for last may be granted only now.)
        if not self._stopped and session not in self._session_ends:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._session_grace_seconds, self._release_session, session)
            self._session_ends[session] = timer

    def _release_session(self, session: str) -> None:
        del self._session_ends[session]
        self.writer.end_session(session)

    # --- Search ------------------------------------------------------------------------------------------------------

    async def search(
        self,
        query: str,
        *,
        mode: str = "hybrid",
        limit: int = 10,
        context_id: str | Sequence[str] | None = None,
        agent_id: str | Sequence[str] | None = None,
        type: str | int | Sequence[str | int] | None = None,
        kind: str | Sequence[str] | None = None,
        resource: str | Sequence[str] | None = None,
        meta: dict[str, str] | None = None,
        related_to: str | Sequence[str] | None = None,
        after_seq: int | None = None,
        before_seq: int | None = None,
        after_ts: str | None = None,
        before_ts: str | None = None,
        as_of_seq: int | None = None,
        page: str | None = None,
        facets: bool = False,
        explain: bool = False,
        max_tokens: int | None = None,
        fusion: str = "z",
        vector_weight: float = VECTOR_WEIGHT,
        rank_constant: float = RANK_CONSTANT,
        half_life_ms: int | None = None,
        recency_weight: float = RECENCY_WEIGHT,
        neighbour_weight: float = 0.0,
        distinct: bool = False,
        stale: bool = False,
    ) -> SearchOut:
        """What is found by its words and its meaning, over everything acknowledged so far; `get` gives a hit's unit.

        With `stale`, over what the index has taken in so far: `applied_seq` tells how far that is. The first search
        starts what answers it. Raises InvalidRequest, TooLarge, SearchBuilding, SearchUnavailable.
        """
        asked = {
            "query": query,
            "mode": mode,
            "limit": limit,
            "context_id": context_id,
            "agent_id": agent_id,
            "type": type,
            "kind": kind,
            "resource": resource,
            "meta": meta or {},
            "related_to": related_to,
            "after_seq": after_seq,
            "before_seq": before_seq,
            "after_ts": after_ts,
            "before_ts": before_ts,
            "as_of_seq": as_of_seq,
            "page": page,
            "facets": facets,
            "explain": explain,
            "max_tokens": max_tokens,
            "fusion": fusion,
            "vector_weight": vector_weight,
            "rank_constant": rank_constant,
            "half_life_ms": half_life_ms,
            "recency_weight": recency_weight,
            "neighbour_weight": neighbour_weight,
            "distinct": distinct,
            "stale": stale,
        }
        return await self.execute_search(_search_in(asked))

    async def execute_search(self, asked: SearchIn) -> SearchOut:
        """As `search`, of what came over a wire, once the log has reached its `min_seq`. Raises MinSeqTimeout too."""
        return answer(asked, *await self.find(asked))

    async def find(self, asked: SearchIn) -> tuple[Window, Found, Sequence[tuple[Hit, WorkUnit]]]:
        """The same, before an answer is made of it (`projections.search.requests.answer`), with the units."""
        self._require_open()
        window = window_of(asked)
        question = asked_from(asked, window)
        timeout_ms = MIN_SEQ_TIMEOUT_MS_DEFAULT if asked.timeout_ms is None else asked.timeout_ms
        await self.wait_for(asked.min_seq, timeout_ms=timeout_ms)
        found = await self.ask_search(question)
        bytes_max = SEARCH_PAGE_BYTES_MAX if asked.include == "units" else None
        return window, found, await self._read_hits(found.hits[: asked.limit], bytes_max=bytes_max)

    async def ask_search(self, asked: Asked) -> Found:
        """What search answers, which reads the log beside us. Raises as `search`."""
        searcher = self.start_search()
        if asked.reach(self.head) > self.log.settled:
            try:
                self.writer.settle()
            except Unavailable as exc:
                why = f"search can read the log up to {self.log.settled} of {self.head}: {exc.message}"
                raise building(asked, why, taken=searcher.state.taken, head=self.head) from exc
        searcher.tell(self.log.settled)  # A large commit settled at once, and nobody was told.
        return await searcher.search(asked)

    async def _read_hits(self, hits: Sequence[Hit], *, bytes_max: int | None) -> Sequence[tuple[Hit, WorkUnit]]:
        """Their units, as far as a page holds them (at least one), some in each turn of the loop."""
        units: list[tuple[Hit, WorkUnit]] = []
        read_bytes = step_bytes = 0
        for hit in hits:
            self._require_open()
            unit = self.log.record(hit.seq).unit
            read_bytes += len(unit.payload)
            if units and bytes_max is not None and read_bytes > bytes_max:
                break
            units.append((hit, unit))
            if read_bytes - step_bytes > SEARCH_STEP_BYTES:
                step_bytes = read_bytes
                await asyncio.sleep(0)
        return units

    def rebuild_search(self) -> None:
        """Have the search index built again from the log's first unit; the one there is answers until it is done.

        Nothing loses it, and nothing but doubt asks for it: what is damaged or of another version is found and built
        again without. Raises SearchUnavailable where search is just being started.
        """
        self.start_search().rebuild()

    def start_search(self) -> Search:
        """What searches this log, in a process of its own (in this one for a log in memory); started only once."""
        self._require_open()
        if self.searcher is None:
            self.searcher = self._own_search() if self._search is None else self._search()
        return self.searcher

    def _own_search(self) -> Search:
        if self._directory is None:
            return _in_memory(self.log)
        return Searcher(self._directory.tenant(), head=self.log.settled, embedder=self._embedder)

    # --- Subscribe ---------------------------------------------------------------------------------------------------

    def seq_of_cursor(self, after: str | int | None) -> int:
        """The seq to begin after: a cursor, a seq, 0 for the beginning, None: now. Raises Conflict, CursorInvalid."""
        self._require_open()
        if after is None:
            return self.fanout.head
        return cursor_seq(str(after), epochs=self.log.epochs, head=self.head)

    def seq_of_bound(self, bound: str, field: str) -> int:
        """The seq that bounds a list, which may lie ahead of the head: it then bounds nothing, or everything.

        Raises CursorInvalid; CursorAhead, EpochChanged for a cursor.
        """
        if bound.isascii() and bound.isdigit() and len(bound) <= 18:
            return int(bound)
        self._require_open()
        return cursor_seq(bound, epochs=self.log.epochs, head=self.head, field=field)

    def feed(self, wanted: Filter, framing: Framing[Any], sink: Sink[Any], after: int) -> Feed:
        """Begin a subscription on a transport. Raises ShuttingDown."""
        self._require_open()
        return self.fanout.subscribe(wanted, framing, sink, after)

    def subscribe(
        self,
        *contexts: str,
        after: str | int | None = None,
        types: Sequence[str] = (),
        kinds: Sequence[str] = (),
        agents: Sequence[str] = (),
        exclude_agents: Sequence[str] = (),
        resources: Sequence[str] = (),
        meta: dict[str, str] | None = None,
    ) -> LocalSubscription:
        """Units as they come, from `after` on: `async for unit in bus.subscribe("plan", after=0)`.

        No context means all of them. Raises InvalidRequest, CursorInvalid, CursorAhead, EpochChanged.
        """
        wanted = make_filter(
            contexts=contexts or ("*",),
            types=types,
            kinds=kinds,
            agents=agents,
            exclude_agents=exclude_agents,
            resources=resources,
            meta=tuple((meta or {}).items()),
        )
        return LocalSubscription(self.fanout, wanted, self.seq_of_cursor(after))

    # --- Inside ------------------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        """Before every verb that reads."""
        if self._stopped:
            raise ShuttingDown("the bus is closed")
        self.writer.catch_up()

    def _tell(self, entries: Sequence[Entry]) -> None:
        self.fanout.offer(entries)
        self._newest.take(entries)
        for min_seq, reached in self._waiting:
            if min_seq <= self.head and not reached.done():
                reached.set_result(None)

    def _tell_settled(self, seq: int) -> None:
        if self.searcher is not None:
            self.searcher.tell(seq)

    def _tell_ready(self) -> None:
        for changed in self.on_ready:
            changed()

    def _release_waiting(self) -> None:
        for _, reached in self._waiting:
            if not reached.done():
                reached.set_exception(ShuttingDown("the bus is stopping"))

    def _pulse(self) -> None:
        self._next_pulse = asyncio.get_running_loop().call_later(_PULSE_SECONDS, self._pulse)
        self.fanout.pulse()


def _advised(path: str | Path, exc: LogDamaged | DataDamaged) -> DataDamaged:
    """What is damaged, and what to do about it."""
    return DataDamaged(f"{exc}. `engram verify {path}` says more, `engram repair {path}` what can be done")


def _payload(payload: Any, content_type: str | None) -> tuple[str, bytes]:
    match payload:
        case bytes() | bytearray() | memoryview():
            return content_type or (FORMAT_BYTES if payload else FORMAT_TEXT), bytes(payload)
        case str():
            return content_type or FORMAT_TEXT, payload.encode("utf-8", "surrogatepass")
        case _:
            try:
                return content_type or FORMAT_JSON, json_payload(payload)
            except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
                raise InvalidRequest(f"payload cannot be written as JSON: {exc}", field="payload") from exc


def _search_in(asked: dict[str, Any]) -> SearchIn:
    """The same search as if it came over a wire: held to the same types, by the same words."""
    try:
        body = encode_json(asked)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
        raise InvalidRequest(f"the search cannot be written as JSON: {exc}") from exc
    return parse(_decode_search, body)


def _in_memory(log: Log) -> "LocalSearch":
    # What it stands on takes 0.2 s and 25 MiB to load: a bus on a disk does not need it, and `engram --help` neither.
    from engram_bus.projections.search.local import LocalSearch  # noqa: PLC0415

    return LocalSearch(log)


def _lock_place(page: str) -> tuple[str, int]:
    token, _, resource = page.partition(".")
    if not (token.isascii() and token.isdigit() and len(token) <= 19 and resource):
        raise InvalidRequest(f"page {page[:64]!r} is not one this list gave", field="page")
    check_resource(resource, "page")
    return resource, int(token)


def _resolve(answered: asyncio.Future[Answer]) -> Done:
    def done(outcome: Answer | EngramError) -> None:
        if answered.done():
            return
        if isinstance(outcome, EngramError):
            answered.set_exception(outcome)
        else:
            answered.set_result(outcome)

    return done
