"""The bus in this process: every verb, no server. `engram serve` is this with an edge around it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from engram_bus import clock
from engram_bus.bus.admission import admit, bulk
from engram_bus.bus.writer import Answer, Done, Writer
from engram_bus.codec import Entry, encode_json
from engram_bus.errors import (
    ContextNotFound,
    EngramError,
    InvalidRequest,
    MinSeqTimeout,
    UnitNotFound,
)
from engram_bus.limits import (
    HEARTBEAT_SECONDS,
    LOG_SIZE_BYTES_MAX,
    MIN_SEQ_TIMEOUT_MS_DEFAULT,
    MIN_SEQ_TIMEOUT_MS_MAX,
    PAGE_BYTES_MAX,
    PAGE_UNITS_DEFAULT,
    PAGE_UNITS_MAX,
    RELATED_DEPTH_MAX,
    RELATED_UNITS_MAX,
    SCAN_UNITS_MAX,
    SOCKET_STALL_SECONDS,
)
from engram_bus.log.contract import Log, cursor_seq, cursor_text
from engram_bus.log.directory import DataDirectory
from engram_bus.log.lmdb import LmdbLog
from engram_bus.log.memory import MemoryLog
from engram_bus.router.contract import Framing, Sink
from engram_bus.router.fanout import Fanout, Feed
from engram_bus.router.filters import Filter, make_filter, predicate
from engram_bus.router.local import LocalSubscription
from engram_bus.units import (
    ANONYMOUS,
    FORMAT_BYTES,
    FORMAT_JSON,
    FORMAT_TEXT,
    Append,
    AppendAtomic,
    Command,
    Context,
    Draft,
    Relationship,
    RelationshipType,
    UnitType,
    UpdateContext,
    WorkUnit,
    ts_text,
)


class Page(msgspec.Struct, frozen=True):
    """A part of a list: its units, where it goes on (None at the end), and the seq it reflects."""

    entries: tuple[Entry, ...]
    next_page: str | None
    applied_seq: int

    @property
    def work_units(self) -> list[WorkUnit]:
        return [entry.unit for entry in self.entries]


class ContextPage(msgspec.Struct, frozen=True):
    """A part of the list of contexts, in byte order of their ids."""

    contexts: tuple[Context, ...]
    next_page: str | None
    applied_seq: int


class Related(msgspec.Struct, frozen=True):
    """A unit reached over relationships: by which edge, from which unit, and after how many steps."""

    entry: Entry
    relationship: RelationshipType
    direction: str
    from_id: str
    depth: int


class RelatedPage(msgspec.Struct, frozen=True):
    """Everything reached, nearest first; targets that are not in the log; whether a bound ended the search."""

    related: tuple[Related, ...]
    missing: tuple[str, ...]
    truncated: bool
    applied_seq: int


class Bus:
    """One open bus. Use `async with Bus.open(path) as bus:`; everything runs in that loop's thread."""

    def __init__(
        self,
        log: Log,
        *,
        directory: DataDirectory | None = None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stall_seconds: float = SOCKET_STALL_SECONDS,
    ) -> None:
        self.log = log
        self.started_at = ts_text(clock.wall_us())
        self.fanout = Fanout(log, heartbeat_seconds=heartbeat_seconds, stall_seconds=stall_seconds)
        self.writer = Writer(log, tell=self._tell)
        self._directory = directory
        self._waiting: set[tuple[int, asyncio.Future[None]]] = set()
        self._pulse: asyncio.Task[None] | None = asyncio.get_running_loop().create_task(self._pulses())

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        path: str | Path | None,
        *,
        size_bytes_max: int = LOG_SIZE_BYTES_MAX,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stall_seconds: float = SOCKET_STALL_SECONDS,
    ) -> AsyncIterator[Self]:
        """A bus on a data directory, or in memory (None: for tests). Raises DataDirectoryError."""
        bus = cls.start(
            path, size_bytes_max=size_bytes_max, heartbeat_seconds=heartbeat_seconds, stall_seconds=stall_seconds
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
    ) -> Self:
        """Open without a context manager; whoever starts a bus calls `stop`."""
        if path is None:
            return cls(MemoryLog(), heartbeat_seconds=heartbeat_seconds, stall_seconds=stall_seconds)
        directory = DataDirectory(Path(path), created_at=ts_text(clock.wall_us()))
        try:
            log = LmdbLog(directory.tenant(), size_bytes_max=size_bytes_max, writable=directory.writable)
            try:
                return cls(
                    log, directory=directory, heartbeat_seconds=heartbeat_seconds, stall_seconds=stall_seconds
                )
            except BaseException:
                log.close()
                raise
        except BaseException:
            directory.close()
            raise

    async def stop(self, reason: str) -> None:
        """Commit what waits, send subscribers off with their cursors, close the log. Stopping again does nothing."""
        if self._pulse is None:
            return
        self._pulse.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pulse
        self._pulse = None
        self.writer.close()
        self.fanout.goaway(reason)
        self.log.close()
        if self._directory is not None:
            self._directory.close()

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

    # --- Append ------------------------------------------------------------------------------------------------------

    def submit(self, command: Command, done: Done) -> None:
        """Check a command and queue it; `done` is called once it is durable, or refused. Raises EngramError."""
        self.writer.submit(command, admit(command), done)

    async def execute(self, command: Command) -> Answer:
        """Check a command, queue it, wait for its answer. Raises EngramError."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.submit(command, _resolve(answered))
        return await answered

    async def execute_bulk(self, appends: Sequence[Append]) -> list[Answer | EngramError]:
        """Each append by itself, in order, in as few commits as they fit. Raises when the batch itself is at fault."""
        if not appends:
            raise InvalidRequest("the batch is empty: name at least one unit")
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
        type: UnitType | str = UnitType.MESSAGE,
        kind: str | None = None,
        content_type: str | None = None,
        meta: dict[str, str] | None = None,
        resources: Sequence[str] = (),
        relationships: Sequence[Relationship] = (),
        traceparent: str | None = None,
        id: str | None = None,
        idempotency_key: str | None = None,
        expected_version: int | None = None,
    ) -> WorkUnit:
        """Record one unit. A str payload is text, bytes are bytes, anything else is JSON. Raises EngramError."""
        content_type, raw = _payload(payload, content_type)
        answer = await self.execute(
            Append(
                draft=Draft(
                    context_id=context_id,
                    agent_id=agent_id,
                    type=UnitType(type),
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
            bulk(appends)
            outcomes = await self.execute_bulk(appends)
            return [outcome if isinstance(outcome, EngramError) else outcome.entries[0].unit for outcome in outcomes]
        answer = await self.execute(AppendAtomic(appends=appends, idempotency_key=idempotency_key))
        return [entry.unit for entry in answer.entries]

    # --- Read --------------------------------------------------------------------------------------------------------

    async def wait_for(self, min_seq: int, *, timeout_ms: int = MIN_SEQ_TIMEOUT_MS_DEFAULT) -> None:
        """Return when the head has reached `min_seq`. Raises MinSeqTimeout after `timeout_ms`."""
        if min_seq <= self.head:
            return
        if not 0 <= timeout_ms <= MIN_SEQ_TIMEOUT_MS_MAX:
            raise InvalidRequest(
                f"timeout_ms {timeout_ms}, at most {MIN_SEQ_TIMEOUT_MS_MAX}",
                field="timeout_ms",
                limit=MIN_SEQ_TIMEOUT_MS_MAX,
            )
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
        seq = self.log.seq_of_id(unit_id) if len(unit_id) == 36 and unit_id.isascii() else None
        if seq is None:
            raise UnitNotFound(f"no unit of id {unit_id[:64]!r}")
        record = self.log.record(seq)
        return Entry(seq, record.body, record.unit)

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

        An unknown context is an empty page. Raises InvalidRequest, LogDamaged.
        """
        if not 1 <= limit <= PAGE_UNITS_MAX:
            raise InvalidRequest(f"limit {limit} is not 1 to {PAGE_UNITS_MAX}", field="limit", limit=PAGE_UNITS_MAX)
        applied_seq = self.head
        if page is not None:
            position = self._page_seq(page)
            after, before = (after, position) if reverse else (position, before)
        wants = None if wanted is None else predicate(wanted)
        found: list[Entry] = []
        room_bytes, looked_at, ended = PAGE_BYTES_MAX, 0, False
        position = before if reverse else after
        while len(found) < limit and room_bytes > 0 and looked_at < SCAN_UNITS_MAX:
            some = self.log.read_context(
                context_id,
                after=after,
                before=before,
                reverse=reverse,
                units_max=limit - len(found) if wants is None else PAGE_UNITS_MAX,
                bytes_max=room_bytes,
            )
            if not some:
                ended = True
                break
            looked_at += len(some)
            for entry in some:
                if len(found) == limit:
                    break
                if wants is None or wants(entry.unit):
                    found.append(entry)
                    room_bytes -= len(entry.body)
                position = entry.seq
            after, before = (after, position) if reverse else (position, before)
        if not ended and not self.log.read_context(
            context_id, after=after, before=before, reverse=reverse, units_max=1, bytes_max=1
        ):
            ended = True
        return Page(tuple(found), None if ended else cursor_text(self.epoch, position or 0), applied_seq)

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
            raise InvalidRequest(f"depth {depth} is not 1 to {RELATED_DEPTH_MAX}", field="depth", limit=RELATED_DEPTH_MAX)
        applied_seq = self.head
        level = [self.get(unit_id)]
        seen = {unit_id}
        found: list[Related] = []
        missing: dict[str, None] = {}
        for step in range(1, depth + 1):
            next_level: list[Entry] = []
            for entry in level:
                for related in self._neighbours(entry, direction, types, step, missing):
                    if related.entry.unit.id in seen:
                        continue
                    if len(found) == RELATED_UNITS_MAX:
                        return RelatedPage(tuple(found), tuple(missing), True, applied_seq)
                    seen.add(related.entry.unit.id)
                    found.append(related)
                    next_level.append(related.entry)
            level = next_level
        return RelatedPage(tuple(found), tuple(missing), False, applied_seq)

    def _neighbours(
        self, entry: Entry, direction: str, types: Sequence[RelationshipType], step: int, missing: dict[str, None]
    ) -> Iterable[Related]:
        unit = entry.unit
        if direction in ("out", "both"):
            for relationship in unit.relationships:
                if types and relationship.type not in types:
                    continue
                try:
                    target = self.get(relationship.target_id)
                except UnitNotFound:
                    missing[relationship.target_id] = None
                else:
                    yield Related(target, relationship.type, "out", unit.id, step)
        if direction in ("in", "both"):
            for seq in self.log.seqs_relating_to(unit.id, units_max=RELATED_UNITS_MAX):
                record = self.log.record(seq)
                for relationship in record.unit.relationships:
                    if relationship.target_id == unit.id and (not types or relationship.type in types):
                        yield Related(Entry(seq, record.body, record.unit), relationship.type, "in", unit.id, step)

    # --- Contexts ----------------------------------------------------------------------------------------------------

    def context(self, context_id: str) -> Context:
        """A context as it stands. Raises ContextNotFound."""
        context = self.writer.contexts.view(context_id)
        if context is None:
            raise ContextNotFound(f"no context {context_id[:256]!r}")
        return context

    def contexts(self, *, limit: int = PAGE_UNITS_DEFAULT, page: str | None = None, prefix: str = "") -> ContextPage:
        """Contexts in byte order of their ids, `page` being the id to go on after."""
        if not 1 <= limit <= PAGE_UNITS_MAX:
            raise InvalidRequest(f"limit {limit} is not 1 to {PAGE_UNITS_MAX}", field="limit", limit=PAGE_UNITS_MAX)
        ids = self.log.context_ids(page or "", prefix=prefix, limit=limit + 1)
        views = (self.writer.contexts.view(context_id) for context_id in ids[:limit])
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
        admit(command)
        for index, unit_id in enumerate(command.pin_units):
            if len(unit_id) != 36 or self.log.seq_of_id(unit_id) is None:
                raise UnitNotFound(f"no unit of id {unit_id[:64]!r} to pin", field=f"pin_units[{index}]")
        return await self.execute(command)

    # --- Subscribe ---------------------------------------------------------------------------------------------------

    def seq_of_cursor(self, after: str | int | None) -> int:
        """The seq to begin after: a cursor, a seq, 0 for the beginning, None for now. Raises Conflict, CursorInvalid."""
        if after is None:
            return self.fanout.head
        return cursor_seq(str(after), epochs=self.log.epochs, head=self.head)

    def feed(self, wanted: Filter, framing: Framing[Any], sink: Sink[Any], after: int) -> Feed:
        """Begin a subscription on a transport."""
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

    def _tell(self, entries: Sequence[Entry]) -> None:
        self.fanout.offer(entries)
        for min_seq, reached in self._waiting:
            if min_seq <= self.head and not reached.done():
                reached.set_result(None)

    async def _pulses(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.fanout.pulse()


def _payload(payload: Any, content_type: str | None) -> tuple[str, bytes]:
    match payload:
        case bytes():
            return content_type or (FORMAT_BYTES if payload else FORMAT_TEXT), payload
        case str():
            return content_type or FORMAT_TEXT, payload.encode("utf-8", "surrogatepass")
        case _:
            try:
                return content_type or FORMAT_JSON, encode_json(payload)
            except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as exc:
                raise InvalidRequest(f"payload cannot be written as JSON: {exc}", field="payload") from exc


def _resolve(answered: asyncio.Future[Answer]) -> Done:
    def done(outcome: Answer | EngramError) -> None:
        if answered.done():
            return
        if isinstance(outcome, EngramError):
            answered.set_exception(outcome)
        else:
            answered.set_result(outcome)

    return done


