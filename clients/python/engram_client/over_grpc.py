"""Every verb over gRPC: one call each, a stream for pipelines and subscriptions."""

import builtins
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from engram_client import protobuf
from engram_client.errors import EngramConnectionError, InvalidRequest
from engram_client.frames import Appended, Pong, Refused, StreamFrame
from engram_client.grpc import Call, Grpc
from engram_client.pb import (
    append_pb2,
    context_pb2,
    lock_pb2,
    read_pb2,
    search_pb2,
    status_pb2,
    subscription_pb2,
)
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
from engram_client.sessions import Conversation
from engram_client.streams import moves
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
from engram_client.verbs import LockPage, OpenStream, Publisher, Publishing, Session, keys


class OverGrpc:
    """The verbs of one agent at the bus of a grpc or grpcs URL. Raises ValueError for what is no URL."""

    def __init__(self, url: str, *, agent_id: str, timeout_seconds: float) -> None:
        self._url = url
        self._agent_id = agent_id
        self._timeout_seconds = timeout_seconds
        self._grpc = Grpc(url, agent_id=agent_id, timeout_seconds=timeout_seconds)

    async def aclose(self) -> None:
        await self._grpc.aclose()

    # --- Units -------------------------------------------------------------------------------------------------------

    async def append(self, draft: Draft, *, idempotency_key: str) -> WorkUnit:
        request = protobuf.append_request(draft, agent_id=self._agent_id, idempotency_key=idempotency_key)
        answer = await self._grpc.ask("Append", request, append_pb2.AppendResponse)
        return protobuf.read(protobuf.unit, answer.work_unit)

    async def append_bulk(
        self, drafts: Sequence[Draft], *, atomic: bool, idempotency_key: str
    ) -> builtins.list[Outcome]:
        request = protobuf.bulk_request(
            drafts,
            agent_id=self._agent_id,
            idempotency_keys=keys(len(drafts), atomic=atomic, idempotency_key=idempotency_key),
            atomic=atomic,
            idempotency_key=idempotency_key if atomic else None,
        )
        answer = await self._grpc.ask("AppendBulk", request, append_pb2.AppendBulkResponse)
        if answer.without_payloads:  # The answer was to be short; what was said is known here.
            for result, append in zip(answer.results, request.appends, strict=True):
                if result.HasField("work_unit"):
                    result.work_unit.payload = append.payload
        return protobuf.read(protobuf.outcomes, answer)

    async def get(self, asked: ReadUnit) -> WorkUnit:
        request = protobuf.get_request(asked)
        answer = await self._grpc.ask("Get", request, read_pb2.GetResponse, wait_seconds=asked.wait_seconds)
        return protobuf.read(protobuf.unit, answer.work_unit)

    async def list(self, asked: ReadUnits) -> Page:
        request = protobuf.list_request(asked)
        answer = await self._grpc.ask("List", request, read_pb2.ListResponse, wait_seconds=asked.wait_seconds)
        return protobuf.read(protobuf.page, answer)

    async def related(self, asked: ReadRelated) -> Related:
        request = protobuf.related_request(asked)
        answer = await self._grpc.ask("Related", request, read_pb2.RelatedResponse, wait_seconds=asked.wait_seconds)
        return protobuf.read(protobuf.related, answer)

    async def search(self, asked: Search) -> SearchPage:
        request = protobuf.search_request(asked)
        answer = await self._grpc.ask("Search", request, search_pb2.SearchResponse, wait_seconds=asked.wait_seconds)
        return protobuf.search_page(answer, facets=asked.facets)

    async def rebuild_search(self) -> SearchStatus:
        request = search_pb2.RebuildSearchRequest()
        answer = await self._grpc.ask("RebuildSearch", request, search_pb2.RebuildSearchResponse)
        return protobuf.search_status(answer.search)

    async def status(self) -> Status:
        request = status_pb2.GetStatusRequest()
        return protobuf.read(protobuf.status, await self._grpc.ask("GetStatus", request, status_pb2.GetStatusResponse))

    # --- Contexts ----------------------------------------------------------------------------------------------------

    async def get_context(self, asked: ReadContext) -> Context:
        request, seconds = protobuf.get_context_request(asked), asked.wait_seconds
        answer = await self._grpc.ask("GetContext", request, context_pb2.GetContextResponse, wait_seconds=seconds)
        return protobuf.read(protobuf.context, answer.context)

    async def update_context(self, context_id: str, change: ContextChange) -> Context:
        request = protobuf.update_request(context_id, change)
        answer = await self._grpc.ask("UpdateContext", request, context_pb2.UpdateContextResponse)
        return protobuf.read(protobuf.context, answer.context)

    async def contexts(self, asked: ReadContexts) -> ContextPage:
        request, seconds = protobuf.list_contexts_request(asked), asked.wait_seconds
        answer = await self._grpc.ask("ListContexts", request, context_pb2.ListContextsResponse, wait_seconds=seconds)
        return protobuf.read(protobuf.contexts, answer)

    # --- Locks -------------------------------------------------------------------------------------------------------

    async def acquire_lock(self, asked: LockRequest, *, wait_seconds: float, session: str | None = None) -> Lock:
        """`session` is one of this bus, held in another call."""
        request = protobuf.acquire_request(asked, wait_seconds=wait_seconds, session=session)
        answer = await self._grpc.ask(
            "AcquireLock",
            request,
            lock_pb2.AcquireLockResponse,
            wait_seconds=wait_seconds,
            takes_turn=wait_seconds == 0,
        )
        return protobuf.read(protobuf.acquired, answer)

    async def refresh_lock(self, lock: Lock, ttl_seconds: float | None, *, agent_id: str) -> Lock:
        request = protobuf.refresh_request(lock, ttl_seconds, agent_id=agent_id)
        answer = await self._grpc.ask("RefreshLock", request, lock_pb2.RefreshLockResponse, takes_turn=False)
        return protobuf.read(protobuf.refreshed, answer)

    async def release_lock(self, lock: Lock, *, agent_id: str) -> bool:
        request = protobuf.release_request(lock, agent_id=agent_id)
        answer = await self._grpc.ask("ReleaseLock", request, lock_pb2.ReleaseLockResponse, takes_turn=False)
        return answer.released

    async def break_lock(self, asked: BreakRequest) -> Sequence[str]:
        return (await self._grpc.ask("BreakLock", protobuf.break_request(asked), lock_pb2.BreakLockResponse)).lock_ids

    async def get_lock(self, asked: ReadLock) -> LockState:
        request = protobuf.get_lock_request(asked)
        answer = await self._grpc.ask("GetLock", request, lock_pb2.GetLockResponse, wait_seconds=asked.wait_seconds)
        return protobuf.read(protobuf.lock_state, answer)

    async def locks(self, asked: ReadLocks) -> LockPage:
        request, seconds = protobuf.list_locks_request(asked), asked.wait_seconds
        answer = await self._grpc.ask("ListLocks", request, lock_pb2.ListLocksResponse, wait_seconds=seconds)
        return protobuf.read(protobuf.lock_page, answer)

    # --- Streams -----------------------------------------------------------------------------------------------------

    def subscribe(
        self, wanted: Filter, *, transport: str | None, encoding: str | None, silence_seconds: float
    ) -> OpenStream:
        if transport is not None or encoding is not None:
            raise ValueError("over gRPC there is one way to subscribe: transport and encoding are of HTTP")

        async def frames(after: str | None) -> AsyncGenerator[StreamFrame, None]:
            with self._grpc.listen("Subscribe", protobuf.subscribe_request(wanted, after)) as call:
                patience_seconds = self._timeout_seconds  # It says at once where it begins.
                while True:
                    message = await call.receive(subscription_pb2.SubscribeResponse, silence_seconds=patience_seconds)
                    for frame in protobuf.read(protobuf.frames, message):
                        if (moved := moves(frame)) is not None:
                            yield moved
                    patience_seconds = silence_seconds

        return frames

    def publishing(self) -> Publishing:
        return _Publishing(self._grpc, agent_id=self._agent_id)

    def session(self, clock: Callable[[], float]) -> Session:
        return _CallSession(self._signs_of_life, clock)

    @asynccontextmanager
    async def _signs_of_life(self) -> AsyncIterator["_SignsOfLife"]:
        # On a connection of its own: over one that has died in silence, another call would not be heard of either.
        verbs = OverGrpc(self._url, agent_id=self._agent_id, timeout_seconds=self._timeout_seconds)
        try:
            with verbs._grpc.talk("HoldSession") as call:
                hello = await call.receive(lock_pb2.HoldSessionResponse, silence_seconds=self._timeout_seconds)
                yield _SignsOfLife(call, hello.session, verbs)
        finally:
            await verbs.aclose()


class _Publishing:
    def __init__(self, grpc: Grpc, *, agent_id: str) -> None:
        self._grpc = grpc
        self._agent_id = agent_id

    def append(self, draft: Draft, *, append_id: int, idempotency_key: str) -> bytes:
        return protobuf.stream_request(
            draft, append_id=append_id, agent_id=self._agent_id, idempotency_key=idempotency_key
        )

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Publisher]:
        with self._grpc.talk("AppendStream") as call:
            yield _Publisher(call)


class _Publisher:
    def __init__(self, call: Call) -> None:
        self._call = call

    async def send(self, appends: Sequence[bytes]) -> None:
        # Joined, they are one message: as few of them as possible is what makes this fast.
        await self._call.send(b"".join(appends))

    async def receive(self) -> Sequence[Appended | Refused]:
        return protobuf.read(protobuf.answers, await self._call.receive(append_pb2.AppendStreamResponse))


class _SignsOfLife:
    """The call that holds a session, the session's name, and the verbs on the same connection."""

    def __init__(self, call: Call, name: str, verbs: OverGrpc) -> None:
        self._call = call
        self.name = name
        self.verbs = verbs

    async def send(self, message: bytes) -> None:
        await self._call.send(message)

    async def receive(self) -> Pong:
        return Pong((await self._call.receive(lock_pb2.HoldSessionResponse)).id)


class _CallSession(Conversation[_SignsOfLife]):
    """Only signs of life are said in its call; locks are asked for in calls of their own, which name it."""

    async def acquire(self, asked: LockRequest, *, wait_seconds: float) -> Lock:
        line = await self.opened()
        try:
            asking = line.verbs.acquire_lock(asked, wait_seconds=wait_seconds, session=line.name)
            return await self.beside(asking)
        except InvalidRequest as refusal:
            if refusal.field != "session":
                raise
            raise EngramConnectionError(f"the session has ended: {refusal.message}") from refusal

    async def refresh(self, lock: Lock, ttl_seconds: float | None, *, agent_id: str) -> Lock:
        line = await self.opened()
        return await self.beside(line.verbs.refresh_lock(lock, ttl_seconds, agent_id=agent_id))

    async def release(self, lock: Lock, *, agent_id: str) -> None:
        line = await self.opened()
        await self.beside(line.verbs.release_lock(lock, agent_id=agent_id))

    async def ping(self) -> None:
        await self.ask(protobuf.sign_of_life)
