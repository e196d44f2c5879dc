"""Every verb that answers once, as a message in and a message out; who carries them (gRPC) is not known here."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from google.protobuf import message_factory
from google.protobuf.message import Message

from engram_bus.api import messages
from engram_bus.api.health import Health, search_status
from engram_bus.bus.writer import Answer
from engram_bus.codec import acting, lock_on, milliseconds
from engram_bus.decisions.locks import CANCELLED, GRANTED, change_of
from engram_bus.embedded import Bus
from engram_bus.errors import EngramError, InvalidRequest, TooLarge, WaitEnded
from engram_bus.limits import (
    BULK_BYTES_MAX,
    BULK_UNITS_MAX,
    CONTEXT_REQUEST_BYTES_MAX,
    GRPC_ANSWER_BYTES_MAX,
    GRPC_ITEM_ERROR_BYTES_MAX,
    LOCK_REQUEST_BYTES_MAX,
    MIN_SEQ_TIMEOUT_MS_DEFAULT,
    PAGE_UNITS_DEFAULT,
    SEARCH_REQUEST_BYTES_MAX,
    UNIT_REQUEST_BYTES_MAX,
)
from engram_bus.log.contract import cursor_text
from engram_bus.pb import append_pb2, bus_pb2, context_pb2, lock_pb2, read_pb2, search_pb2, status_pb2
from engram_bus.projections.search.requests import answer as search_out
from engram_bus.protobuf import (
    append_from_message,
    bounded,
    error_message,
    fitting,
    parse,
    relationship_of,
    unit_message,
    units_field,
)
from engram_bus.router.filters import make_filter
from engram_bus.units import AcquireLock, Append, AppendAtomic, BreakLock, RefreshLock, ReleaseLock

SERVICE: Final = bus_pb2.DESCRIPTOR.services_by_name["EngramBus"]

_BYTES_MAX: Final[Mapping[str, int]] = {
    "Append": UNIT_REQUEST_BYTES_MAX,
    "AppendBulk": BULK_BYTES_MAX,
    "UpdateContext": CONTEXT_REQUEST_BYTES_MAX,
    "Search": SEARCH_REQUEST_BYTES_MAX,
}


class Caller(Protocol):
    """Who asks."""

    @property
    def agent_id(self) -> str | None:
        """Whom the call names as the one who acts, for requests that do not."""


Perform = Callable[[Any, Caller], Awaitable[bytes]]


class Verb(NamedTuple):
    """How one method's request is read, and what answers it."""

    request: type[Message]
    bytes_max: int
    perform: Perform

    async def __call__(self, request: bytes, caller: Caller) -> bytes:
        """The answer's bytes. Raises EngramError."""
        if len(request) > self.bytes_max:
            raise TooLarge(f"the request has {len(request)} bytes, at most {self.bytes_max}", limit=self.bytes_max)
        return await self.perform(parse(self.request, request), caller)


class Verbs:
    """The verbs of one bus. Each method below is one of the service, in its order."""

    def __init__(self, bus: Bus, health: Health) -> None:
        self.sessions: dict[str, asyncio.Future[None]] = {}
        """Those that are open, and when they end."""
        self._bus = bus
        self._health = health

    def by_method(self) -> Mapping[str, Verb]:
        """Every method of the service that answers once."""
        return {
            method.name: Verb(
                message_factory.GetMessageClass(method.input_type),
                _BYTES_MAX.get(method.name, LOCK_REQUEST_BYTES_MAX),
                getattr(self, f"_{_snake(method.name)}"),
            )
            for method in SERVICE.methods
            if not (method.client_streaming or method.server_streaming)
        }

    # --- Append ------------------------------------------------------------------------------------------------------

    async def _append(self, asked: append_pb2.AppendRequest, caller: Caller) -> bytes:
        answer = await self._bus.execute(append_from_message(asked, agent_id=caller.agent_id), gathers=True)
        rest = append_pb2.AppendResponse(
            durability=self._bus.durability, replayed=answer.replayed, applied_seq=self._bus.head
        )
        return b"".join((*units_field(answer.entries[:1]), rest.SerializeToString()))

    async def _append_bulk(self, asked: append_pb2.AppendBulkRequest, caller: Caller) -> bytes:
        if (count := len(asked.appends)) > BULK_UNITS_MAX:
            raise TooLarge(f"{count} units in one batch, at most {BULK_UNITS_MAX}", limit=BULK_UNITS_MAX)
        parsed = [_parsed(append, caller.agent_id) for append in asked.appends]
        key = asked.idempotency_key if asked.HasField("idempotency_key") else None
        if not asked.atomic:
            if key is not None:
                raise InvalidRequest(
                    "one idempotency key is for an atomic batch; each unit of this one may have its own",
                    field="idempotency_key",
                )
            return self._bulk_answer(await self._bus.execute_bulk(parsed), replayed=False)
        for index, one in enumerate(parsed):
            if isinstance(one, EngramError):
                raise one.at(index)
        appends = tuple(one for one in parsed if isinstance(one, Append))
        answer = await self._bus.execute(AppendAtomic(appends=appends, idempotency_key=key))
        return self._bulk_answer([Answer((entry,)) for entry in answer.entries], replayed=answer.replayed)

    def _bulk_answer(self, outcomes: list[Answer | EngramError], *, replayed: bool) -> bytes:
        entries = [outcome.entries[0] for outcome in outcomes if isinstance(outcome, Answer)]
        without_payloads = fitting(entries, GRPC_ANSWER_BYTES_MAX) < len(entries)
        results = []
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, EngramError):
                error = bounded(error_message(outcome.at(index)), GRPC_ITEM_ERROR_BYTES_MAX)
                results.append(append_pb2.AppendResult(error=error))
                continue
            unit = unit_message(outcome.entries[0].unit)
            if without_payloads:
                unit.ClearField("payload")
            results.append(append_pb2.AppendResult(work_unit=unit))
        answer = append_pb2.AppendBulkResponse(
            results=results,
            durability=self._bus.durability,
            replayed=replayed,
            applied_seq=self._bus.head,
            without_payloads=without_payloads,
        )
        return answer.SerializeToString()

    # --- Read --------------------------------------------------------------------------------------------------------

    async def _reached(self, asked: Any) -> None:
        """Once the log has reached the `min_seq` of a read. Raises MinSeqTimeout."""
        timeout_ms = asked.timeout_ms if asked.HasField("timeout_ms") else MIN_SEQ_TIMEOUT_MS_DEFAULT
        await self._bus.wait_for(asked.min_seq, timeout_ms=timeout_ms)

    async def _get(self, asked: read_pb2.GetRequest, caller: Caller) -> bytes:
        await self._reached(asked)
        rest = read_pb2.GetResponse(applied_seq=self._bus.head)
        return b"".join((*units_field([self._bus.get(asked.id)]), rest.SerializeToString()))

    async def _list(self, asked: read_pb2.ListRequest, caller: Caller) -> bytes:
        await self._reached(asked)
        narrows = asked.type or asked.agent or asked.kind
        page = self._bus.list(
            asked.context_id,
            limit=_limit(asked),
            page=_page(asked),
            reverse=asked.reverse,
            after=self._bus.seq_of_bound(asked.after, "after") if asked.HasField("after") else 0,
            before=self._bus.seq_of_bound(asked.before, "before") if asked.HasField("before") else None,
            wanted=make_filter(types=tuple(asked.type), agents=tuple(asked.agent), kinds=tuple(asked.kind))
            if narrows
            else None,
        )
        count = fitting(page.entries, GRPC_ANSWER_BYTES_MAX)
        next_page = page.next_page
        if count < len(page.entries):
            next_page = cursor_text(self._bus.epoch, page.entries[count - 1].seq)
        rest = read_pb2.ListResponse(next_page=next_page, applied_seq=page.applied_seq)
        return b"".join((*units_field(page.entries[:count]), rest.SerializeToString()))

    async def _related(self, asked: read_pb2.RelatedRequest, caller: Caller) -> bytes:
        await self._reached(asked)
        page = self._bus.related(
            asked.id,
            direction=messages.one_of(asked.direction, messages.DIRECTIONS, "direction"),
            depth=asked.depth if asked.HasField("depth") else 1,
            types=[relationship_of(number) for number in asked.type],
        )
        count = fitting([one.entry for one in page.related], GRPC_ANSWER_BYTES_MAX)
        found = read_pb2.RelatedResponse(
            related=[messages.related(one) for one in page.related[:count]],
            missing=page.missing,
            truncated=page.truncated or count < len(page.related),
            applied_seq=page.applied_seq,
        )
        return found.SerializeToString()

    # --- Contexts ----------------------------------------------------------------------------------------------------

    async def _get_context(self, asked: context_pb2.GetContextRequest, caller: Caller) -> bytes:
        await self._reached(asked)
        context = messages.context(self._bus.context(asked.context_id))
        return context_pb2.GetContextResponse(context=context, applied_seq=self._bus.head).SerializeToString()

    async def _update_context(self, asked: context_pb2.UpdateContextRequest, caller: Caller) -> bytes:
        answer = await self._bus.execute_update(messages.update_from(asked, agent_id=caller.agent_id))
        assert answer.context is not None, "an update answers with its context"
        changed = context_pb2.UpdateContextResponse(
            context=messages.context(answer.context), replayed=answer.replayed, applied_seq=self._bus.head
        )
        return changed.SerializeToString()

    async def _list_contexts(self, asked: context_pb2.ListContextsRequest, caller: Caller) -> bytes:
        await self._reached(asked)
        page = self._bus.contexts(limit=_limit(asked), page=_page(asked), prefix=asked.prefix)
        found = context_pb2.ListContextsResponse(next_page=page.next_page, applied_seq=page.applied_seq)
        size_bytes = 0
        for context in map(messages.context, page.contexts):
            size_bytes += context.ByteSize()
            if size_bytes > GRPC_ANSWER_BYTES_MAX and found.contexts:
                found.next_page = found.contexts[-1].id
                break
            found.contexts.append(context)
        return found.SerializeToString()

    # --- Locks -------------------------------------------------------------------------------------------------------

    async def _acquire_lock(self, asked: lock_pb2.AcquireLockRequest, caller: Caller) -> bytes:
        if asked.HasField("session") and asked.session not in self.sessions:
            raise InvalidRequest(f"session {asked.session[:64]!r} is not open here", field="session")
        answer = await self._held(messages.acquire_from(asked, agent_id=_agent(asked, caller)))
        assert answer.lock is not None, "an acquire answers with its lock"
        held = lock_pb2.AcquireLockResponse(
            locks=messages.locks(answer.lock),
            extended=answer.entries[0].unit.kind != GRANTED,
            applied_seq=self._bus.head,
        )
        return held.SerializeToString()

    async def _held(self, command: AcquireLock) -> Answer:
        """The answer. Who does not want it any more leaves the line: a call that is cancelled or runs out of time (then
        this is cancelled), and one whose session ends, which could not be released any more."""
        if command.session is None:
            return await self._bus.execute_lock(command)
        over = self.sessions[command.session]
        with self._bus.asking(command) as answered:
            await asyncio.wait((answered, over), return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                raise WaitEnded("the session that it is tied to has ended", why=CANCELLED)
            return answered.result()

    async def _refresh_lock(self, asked: lock_pb2.RefreshLockRequest, caller: Caller) -> bytes:
        command = RefreshLock(
            lock_id=asked.lock_id,
            agent_id=_agent(asked, caller),
            resource=asked.resource if asked.HasField("resource") else None,
            ttl_ms=milliseconds(asked.ttl_seconds, "ttl_seconds") if asked.HasField("ttl_seconds") else None,
        )
        answer = await self._bus.execute(command)
        assert answer.lock is not None, "a refresh answers with its lock"
        held = lock_pb2.RefreshLockResponse(locks=messages.locks(answer.lock), applied_seq=self._bus.head)
        return held.SerializeToString()

    async def _release_lock(self, asked: lock_pb2.ReleaseLockRequest, caller: Caller) -> bytes:
        command = ReleaseLock(
            lock_id=asked.lock_id,
            agent_id=_agent(asked, caller),
            resource=asked.resource if asked.HasField("resource") else None,
        )
        answer = await self._bus.execute(command)
        released = lock_pb2.ReleaseLockResponse(released=bool(answer.entries), applied_seq=self._bus.head)
        return released.SerializeToString()

    async def _break_lock(self, asked: lock_pb2.BreakLockRequest, caller: Caller) -> bytes:
        command = BreakLock(
            resource=asked.resource,
            agent_id=_agent(asked, caller),
            reason=asked.reason,
            lock_id=asked.lock_id if asked.HasField("lock_id") else None,
        )
        answer = await self._bus.execute(command)
        lock_ids = [change_of(entry.unit).lock_id or "" for entry in answer.entries]
        return lock_pb2.BreakLockResponse(lock_ids=lock_ids, applied_seq=self._bus.head).SerializeToString()

    async def _get_lock(self, asked: lock_pb2.GetLockRequest, caller: Caller) -> bytes:
        await self._reached(asked)
        valid = self._bus.is_fence_valid(asked.resource, asked.token) if asked.HasField("token") else None
        state = self._bus.lock(asked.resource)
        return messages.lock_state(state, valid=valid, applied_seq=self._bus.head).SerializeToString()

    async def _list_locks(self, asked: lock_pb2.ListLocksRequest, caller: Caller) -> bytes:
        await self._reached(asked)
        page = self._bus.locks(
            holder=asked.holder if asked.HasField("holder") else None,
            prefix=asked.prefix,
            limit=_limit(asked),
            page=_page(asked),
        )
        found = lock_pb2.ListLocksResponse(
            locks=[messages.lock(lock_on(lock, resource)) for resource, lock in page.locks],
            next_page=page.next_page,
            applied_seq=page.applied_seq,
        )
        return found.SerializeToString()

    # --- Search ------------------------------------------------------------------------------------------------------

    async def _search(self, asked: search_pb2.SearchRequest, caller: Caller) -> bytes:
        search = messages.search_from(asked)
        window, found, hits = await self._bus.find(search)
        shown = search_out(msgspec.structs.replace(search, include="ids"), window, found, hits)
        units = {unit.seq: unit for _, unit in hits} if search.include == "units" else {}
        return messages.search_answer(shown, units).SerializeToString()

    async def _rebuild_search(self, asked: search_pb2.RebuildSearchRequest, caller: Caller) -> bytes:
        self._bus.rebuild_search()
        status = messages.search_status(search_status(self._bus, self._bus.start_search()))
        return search_pb2.RebuildSearchResponse(search=status).SerializeToString()

    # --- The bus itself ----------------------------------------------------------------------------------------------

    async def _get_status(self, asked: status_pb2.GetStatusRequest, caller: Caller) -> bytes:
        return messages.status(self._health.status()).SerializeToString()


def _snake(name: str) -> str:
    """`GetContext` as `get_context`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _limit(asked: Any) -> int:
    return asked.limit if asked.HasField("limit") else PAGE_UNITS_DEFAULT


def _page(asked: Any) -> str | None:
    return asked.page if asked.HasField("page") else None


def _agent(asked: Any, caller: Caller) -> str:
    return acting(asked.agent_id if asked.HasField("agent_id") else None, caller.agent_id)


def _parsed(asked: append_pb2.AppendRequest, agent_id: str | None) -> Append | EngramError:
    try:
        return append_from_message(asked, agent_id=agent_id)
    except EngramError as exc:
        return exc
