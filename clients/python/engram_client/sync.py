"""The client for threads without a loop: the same verbs, each waits; one background thread runs the loop."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from engram_client.client import Client
from engram_client.errors import EngramConnectionError
from engram_client.lease import Lease
from engram_client.limits import (
    CHUNK_UNITS,
    LEASE_SECONDS,
    PIPELINE_RETRIES,
    REQUEST_RETRIES,
    TIMEOUT_SECONDS,
    WINDOW_UNITS,
)
from engram_client.pipeline import PendingReceipt, Pipeline
from engram_client.subscription import Subscription
from engram_client.values import LOCKS_CONTEXT, Fence, Lock, LockMode, Receipt, WorkUnit

P = ParamSpec("P")
T = TypeVar("T")


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engram client", daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run it there; the result is to come."""
        if self.closed:
            coroutine.close()
            raise EngramConnectionError("the client is closed", retryable=False)
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it there and wait for its result; an interrupt here (Ctrl-C) cancels it."""
        future = self.start(coroutine)
        try:
            return future.result()
        except CancelledError as exc:
            raise EngramConnectionError("the client was closed", retryable=False) from exc
        finally:
            future.cancel()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def close(self) -> None:
        """Stop the loop and the thread; whoever still waits for a result there hears of it."""
        self.run(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others)
    await asyncio.get_running_loop().shutdown_asyncgens()


def _waiting(
    verb: Callable[Concatenate[Client, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["SyncClient", P], T]:
    """A verb of the client that waits for its answer."""

    @wraps(verb)
    def wait(self: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.thread.run(verb(self.client, *args, **kwargs))

    return wait


def _iterating(
    verb: Callable[Concatenate[Client, P], AsyncIterator[T]],
) -> Callable[Concatenate["SyncClient", P], Iterator[T]]:
    """A verb of the client that gives one thing after another."""

    @wraps(verb)
    def iterate(self: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        found = verb(self.client, *args, **kwargs)
        while chunk := self.thread.run(_chunk(found)):
            yield from chunk

    return iterate


def _subscribing(
    verb: Callable[Concatenate[Client, P], Subscription],
) -> Callable[Concatenate["SyncClient", P], "SyncSubscription"]:
    @wraps(verb)
    def subscribe(self: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> "SyncSubscription":
        return SyncSubscription(verb(self.client, *args, **kwargs), self.thread)

    return subscribe


def _appending(
    verb: Callable[Concatenate[Pipeline, P], Coroutine[Any, Any, PendingReceipt]],
) -> Callable[Concatenate["SyncPipeline", P], "SyncReceipt"]:
    @wraps(verb)
    def append(self: "SyncPipeline", /, *args: P.args, **kwargs: P.kwargs) -> "SyncReceipt":
        return SyncReceipt(self.thread.run(verb(self.pipeline, *args, **kwargs)), self.thread)

    return append


async def _chunk(found: AsyncIterator[T]) -> list[T]:
    """Several at once: a change of threads costs more than most of what is carried over."""
    chunk: list[T] = []
    async for item in found:
        chunk.append(item)
        if len(chunk) == CHUNK_UNITS:
            break
    return chunk


class SyncClient:
    """One agent at one bus, for threads: `with SyncClient(agent_id="ann") as bus`. The verbs are those of `Client`."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        agent_id: str,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_retries: int = REQUEST_RETRIES,
    ) -> None:
        self.client = Client(url, agent_id=agent_id, timeout_seconds=timeout_seconds, max_retries=max_retries)
        self.thread = LoopThread()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End its subscriptions and pipelines, its connections and its thread."""
        if not self.thread.closed:
            try:
                self.thread.run(self.client.aclose())
            finally:
                self.thread.close()

    append = _waiting(Client.append)
    append_bulk = _waiting(Client.append_bulk)
    get = _waiting(Client.get)
    list = _waiting(Client.list)
    units = _iterating(Client.units)
    related = _waiting(Client.related)
    search = _waiting(Client.search)
    rebuild_search = _waiting(Client.rebuild_search)
    status = _waiting(Client.status)
    get_context = _waiting(Client.get_context)
    update_context = _waiting(Client.update_context)
    contexts = _waiting(Client.contexts)
    acquire_lock = _waiting(Client.acquire_lock)
    refresh_lock = _waiting(Client.refresh_lock)
    release_lock = _waiting(Client.release_lock)
    break_lock = _waiting(Client.break_lock)
    get_lock = _waiting(Client.get_lock)
    locks = _iterating(Client.locks)
    subscribe = _subscribing(Client.subscribe)

    def lock(
        self,
        *resources: str,
        ttl_seconds: float = LEASE_SECONDS,
        wait_seconds: float = 0,
        mode: str = LockMode.EXCLUSIVE,
        reason: str = "",
        context_id: str = LOCKS_CONTEXT,
        agent_id: str | None = None,
        session: bool = False,
    ) -> "SyncLease":
        """As `Client.lock`: `with bus.lock("plan.md") as lease`. A thread cannot be cancelled: when the lock is lost,
        `lease.check()` and the end of the block raise LockLost."""
        lease = self.client.lock(
            *resources,
            ttl_seconds=ttl_seconds,
            wait_seconds=wait_seconds,
            mode=mode,
            reason=reason,
            context_id=context_id,
            agent_id=agent_id,
            on_lost="raise",
            session=session,
        )
        return SyncLease(lease, self.thread)

    def pipeline(self, window: int = WINDOW_UNITS, *, max_retries: int | None = PIPELINE_RETRIES) -> "SyncPipeline":
        """As `Client.pipeline`: `with bus.pipeline() as pipe: pipe.append(...)`."""
        return SyncPipeline(self.client.pipeline(window, max_retries=max_retries), self.thread)


class SyncSubscription:
    """Units as they come: `for unit in bus.subscribe(...)`. As `Subscription`; for one thread at a time."""

    def __init__(self, subscription: Subscription, thread: LoopThread) -> None:
        self._subscription = subscription
        self._thread = thread
        self._ahead: Future[WorkUnit] | None = None
        self._cursor = subscription.cursor

    @property
    def cursor(self) -> str | None:
        """Everything up to here was handed to you: save it after your work."""
        # What a wait that was interrupted has taken in is not handed out yet.
        return self._subscription.cursor if self._ahead is None else self._cursor

    @property
    def head(self) -> int:
        """The newest seq of the log that this subscription has heard of."""
        return self._subscription.head

    def wait_subscribed(self) -> None:
        """Until the bus has taken up the subscription."""
        self._thread.run(self._subscription.wait_subscribed())

    def next(self, timeout_seconds: float | None = None) -> WorkUnit:
        """The next unit. Raises TimeoutError; nothing is lost by it, nor by an interrupt."""
        if self._ahead is None:
            self._cursor = self._subscription.cursor
            self._ahead = self._thread.start(self._take())
        try:
            unit = self._ahead.result(timeout_seconds)
        except TimeoutError:
            raise  # Even if it has come since: then it is the next one's.
        except CancelledError as exc:
            raise EngramConnectionError("the client was closed", retryable=False) from exc
        except Exception:
            self._ahead = None
            raise
        self._ahead = None
        return unit

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WorkUnit:
        try:
            return self.next()
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Self:
        self._thread.run(self._subscription.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self._thread.run(self._subscription.aclose())

    async def _take(self) -> WorkUnit:
        return await self._subscription.__anext__()


class SyncPipeline:
    """Appends without waiting for each answer. As `Pipeline`."""

    def __init__(self, pipeline: Pipeline, thread: LoopThread) -> None:
        self.pipeline = pipeline
        self.thread = thread

    append = _appending(Pipeline.append)
    send = _appending(Pipeline.send)

    def flush(self) -> None:
        """Until everything sent so far is answered; raises the first refusal that nobody has looked at."""
        self.thread.run(self.pipeline.flush())

    def __enter__(self) -> Self:
        self.thread.run(self.pipeline.__aenter__())
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self.thread.run(self.pipeline.__aexit__(exc_type))


class SyncReceipt:
    """The receipt of one append, once it is there."""

    def __init__(self, pending: PendingReceipt, thread: LoopThread) -> None:
        self._pending = pending
        self._thread = thread

    def done(self) -> bool:
        """Whether the answer is there."""
        return self._pending.done()

    def result(self, timeout_seconds: float | None = None) -> Receipt:
        """Wait for it. Raises what the bus refused, or TimeoutError."""
        return self._thread.run(self._wait(timeout_seconds))

    async def _wait(self, timeout_seconds: float | None) -> Receipt:
        async with asyncio.timeout(timeout_seconds):
            return await self._pending


class SyncLease:
    """A lock held for as long as a block runs, refreshed in the background. As `Lease`."""

    def __init__(self, lease: Lease, thread: LoopThread) -> None:
        self._lease = lease
        self._thread = thread

    @property
    def lock(self) -> Lock:
        """The lock as of its last refresh."""
        return self._lease.lock

    @property
    def token(self) -> int:
        """The fencing token."""
        return self._lease.token

    def fence(self, resource: str | None = None) -> Fence:
        """What an append shows as its `fence`."""
        return self._lease.fence(resource)

    @property
    def is_held(self) -> bool:
        """Whether it is certain, at this moment, that nobody else holds it."""
        return self._lease.is_held

    def check(self) -> None:
        """Raises LockLost unless `is_held`: say it before what cannot be undone."""
        self._lease.check()

    def __enter__(self) -> Self:
        self._thread.run(self._lease.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.run(self._lease.__aexit__(kind, error, traceback))
