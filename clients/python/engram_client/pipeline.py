"""Appends without waiting for each answer: one connection, a window of unacknowledged units, sent again after a cut."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Generator
from typing import Any, Self, Unpack, assert_never
from uuid import uuid4

from engram_client.backoff import Backoff
from engram_client.errors import EngramConnectionError, EngramError, TooLarge
from engram_client.frames import Appended, Refused
from engram_client.limits import APPEND_FRAME_BYTES_MAX, FAILURES_KEPT, STEADY_SECONDS
from engram_client.outbox import Outbox
from engram_client.retry import pause
from engram_client.values import Draft, DraftFields, Receipt
from engram_client.verbs import Publisher, Publishing


class PendingReceipt(Awaitable[Receipt]):
    """The receipt of one append, once it is there: await it, as often as you like, or raise what the bus refused."""

    def __init__(self) -> None:
        self._future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self.looked_at = False
        """Whether anybody has asked for it."""

    def __await__(self) -> Generator[Any, None, Receipt]:
        self.looked_at = True
        # Giving up waiting takes nothing back: the unit is on its way.
        return asyncio.shield(self._future).__await__()

    def done(self) -> bool:
        """Whether the answer is there."""
        return self._future.done()

    def resolve(self, answer: Receipt | Exception) -> None:
        """What the bus said; for the pipeline to call."""
        if isinstance(answer, Receipt):
            self._future.set_result(answer)
        else:
            self._future.set_exception(answer)
            self._future.exception()  # looked at by __await__ or raised by the pipeline, so no warning is due

    @property
    def error(self) -> Exception | None:
        """What was refused, if the answer is there and it was."""
        error = self._future.exception() if self._future.done() else None
        return error if isinstance(error, Exception) else None


class Pipeline:
    """Appends in order over one connection, at most `window` of them unacknowledged. Made by `Client.pipeline`.

    Leaving the context waits for every acknowledgement, and raises the first refusal that nobody has looked at. After
    a lost connection all that is unacknowledged is sent again, in order, under the same idempotency keys: nothing is
    lost, nothing doubled.
    """

    def __init__(
        self,
        publishing: Publishing,
        *,
        window: int,
        max_retries: int | None,
        running: set[Any],
    ) -> None:
        self._publishing = publishing
        self._key = uuid4().hex
        self._outbox = Outbox(window)
        self._backoff = Backoff(max_retries)
        self._running = running
        self._waiting: dict[int, PendingReceipt] = {}
        self._refused: deque[PendingReceipt] = deque(maxlen=FAILURES_KEPT)
        self._failure: Exception | None = None
        self._closed = False
        self._worker: asyncio.Task[None] | None = None
        self._to_send = asyncio.Event()
        self._settled = asyncio.Event()

    async def append(self, context_id: str, payload: Any = b"", **fields: Unpack[DraftFields]) -> PendingReceipt:
        """Send a unit on its way: waits for room in the window, not for the answer. The fields are those of `Draft`."""
        return await self.send(Draft(context_id, payload, **fields))

    async def send(self, draft: Draft) -> PendingReceipt:
        """As `append`, for a draft that is already there."""
        while not self._outbox.has_room:
            await self._wait_settled()
        self._raise_failure()
        frame_id = self._outbox.next_id()
        frame = self._publishing.append(draft, append_id=frame_id, idempotency_key=f"{self._key}-{frame_id}")
        if len(frame) > APPEND_FRAME_BYTES_MAX:
            raise TooLarge(f"{len(frame)} bytes, at most {APPEND_FRAME_BYTES_MAX}", limit=APPEND_FRAME_BYTES_MAX)
        if not self._waiting:
            self._backoff.worked()  # failures while there was nothing to send are not this unit's
        pending = self._waiting[frame_id] = PendingReceipt()
        self._outbox.put(frame_id, frame)
        self._to_send.set()
        return pending

    async def flush(self) -> None:
        """Until everything sent so far is answered; raises the first refusal that nobody has looked at."""
        last = next(reversed(self._waiting), 0)
        while next(iter(self._waiting), last + 1) <= last:
            await self._wait_settled()
        unseen = [pending for pending in self._refused if not pending.looked_at]
        self._refused.clear()
        if unseen and (error := unseen[0].error) is not None:
            if len(unseen) > 1:
                error.add_note(f"and {len(unseen) - 1} more appends of this pipeline were refused")
            raise error

    async def __aenter__(self) -> Self:
        self._running.add(self)
        self._worker = asyncio.create_task(self._work(), name="engram pipeline")
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        try:
            if exc_type is None:
                await self.flush()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Leave at once. What is unacknowledged may be in the log or not; its receipts raise EngramConnectionError."""
        self._closed = True
        self._running.discard(self)
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        self._fail(EngramConnectionError("the pipeline is closed", retryable=False))

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed or self._worker is None:
            raise EngramConnectionError("the pipeline is not open", retryable=False)

    async def _wait_settled(self) -> None:
        self._raise_failure()
        self._settled.clear()
        await self._settled.wait()

    async def _work(self) -> None:
        """Connection after connection, until it is closed or an error will not pass."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                connected_at = loop.time()
                try:
                    await self._work_connection()
                except EngramError as error:
                    idle = not self._waiting
                    if idle and loop.time() - connected_at > STEADY_SECONDS:
                        self._backoff.worked()
                    # Who has nothing to send loses nothing by a bus that is away: only its pauses grow.
                    what = f"pipeline with {len(self._outbox)} unacknowledged"
                    await pause(self._backoff, error, what, for_ever=idle)
        except Exception as error:  # whatever it is, it belongs to whoever waits for receipts
            self._fail(error)

    async def _work_connection(self) -> None:
        async with self._publishing.connect() as publisher:
            self._outbox.reconnected()
            self._to_send.set()
            sender = asyncio.create_task(self._send(publisher))
            receiver = asyncio.create_task(self._receive(publisher))
            try:
                await asyncio.wait((sender, receiver), return_when=asyncio.FIRST_COMPLETED)
            finally:
                sender.cancel()
                receiver.cancel()
                await asyncio.wait((sender, receiver))
            # The receiver first: it knows more, a refusal or a close code.
            errors = [ended.exception() for ended in (receiver, sender) if not ended.cancelled()]
            raise next(error for error in errors if error is not None)

    async def _send(self, publisher: Publisher) -> None:
        while True:
            self._to_send.clear()
            while frames := self._outbox.take_some():
                await publisher.send(frames)
            await self._to_send.wait()

    async def _receive(self, publisher: Publisher) -> None:
        while True:
            for answer in await publisher.receive():
                self._hear(answer)

    def _hear(self, answer: Appended | Refused) -> None:
        match answer:
            case Appended(id=frame_id, receipt=receipt):
                self._backoff.worked()
                self._settle(frame_id, receipt)
            case Refused(id=int() as frame_id, error=error) if not error.retryable:
                self._backoff.worked()
                self._settle(frame_id, error)
            case Refused(error=error):
                # Not now: like a lost connection. What came behind it is likely refused as well, and going on would
                # put it before this one.
                raise error
            case _:
                assert_never(answer)

    def _settle(self, frame_id: int, answer: Receipt | EngramError) -> None:
        if not self._outbox.settle(frame_id):
            return
        pending = self._waiting.pop(frame_id)
        pending.resolve(answer)
        if pending.error is not None:
            self._refused.append(pending)
        self._settled.set()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        for frame_id in self._outbox.drain():
            pending = self._waiting.pop(frame_id)
            pending.resolve(error)
            self._refused.append(pending)
        self._settled.set()
