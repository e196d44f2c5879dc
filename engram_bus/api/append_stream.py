"""One AppendStream call: items in, results out as they become durable, and a bound on how many are under way."""

import asyncio
from collections.abc import Awaitable, Callable

from engram_bus.bus.writer import Answer
from engram_bus.embedded import Bus
from engram_bus.errors import EngramError, ShuttingDown, SlowConsumer, TooLarge
from engram_bus.limits import (
    BULK_BYTES_MAX,
    BULK_UNITS_MAX,
    GRPC_ITEM_ERROR_BYTES_MAX,
    STREAM_PENDING_BYTES_MAX,
    STREAM_PENDING_MAX,
)
from engram_bus.pb import append_pb2
from engram_bus.protobuf import append_from_message, bounded, error_message, parse

Read = Callable[[], Awaitable[bytes | None]]
"""The next message, or None when the client has said everything."""
Write = Callable[[bytes], Awaitable[None]]


class AppendStream:
    """What one client said and is owed. An item is under way until its result was handed to the call."""

    def __init__(self, bus: Bus, *, agent_id: str | None) -> None:
        self._bus = bus
        self._agent_id = agent_id
        self._results: list[append_pb2.AppendStreamResult] = []
        self._result_bytes = 0
        self._pending = 0
        self._pending_bytes = 0
        self._reading: asyncio.Task[None] | None = None
        self._is_sent_off = False
        self._changed = asyncio.Event()
        self._room: asyncio.Future[None] | None = None

    async def run(self, read: Read, write: Write) -> None:
        """Until the client has said everything and was answered. Raises what ends the call: InvalidRequest, TooLarge
        for a message that cannot be read, ShuttingDown after `goaway`; all that was taken is answered before."""
        self._reading = asyncio.create_task(self._read(read))
        # Not in the task itself: one that is cancelled before its first step runs none of it.
        self._reading.add_done_callback(lambda _: self._changed.set())
        try:
            while not (self._reading.done() and self._pending == 0):
                await self._changed.wait()
                self._changed.clear()
                await self._answer(write)
            if self._is_sent_off and self._reading.cancelled():
                raise ShuttingDown("the bus is stopping: send again what was not answered")
            await self._reading
        finally:
            self._reading.cancel()

    def goaway(self) -> None:
        """The bus stops: what was taken is answered by now, or will be; nothing more is taken."""
        self._is_sent_off = True
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self, read: Read) -> None:
        while (message := await read()) is not None:
            self._take(message)
            while not self._has_room:
                self._room = asyncio.get_running_loop().create_future()
                await self._room

    @property
    def _has_room(self) -> bool:
        return self._pending < STREAM_PENDING_MAX and self._pending_bytes < STREAM_PENDING_BYTES_MAX

    def _take(self, message: bytes) -> None:
        if len(message) > BULK_BYTES_MAX:
            raise TooLarge(f"{len(message)} bytes in one message, at most {BULK_BYTES_MAX}", limit=BULK_BYTES_MAX)
        items = parse(append_pb2.AppendStreamRequest, message).items
        if len(items) > BULK_UNITS_MAX:
            raise TooLarge(
                f"{len(items)} units in one message, at most {BULK_UNITS_MAX}", field="items", limit=BULK_UNITS_MAX
            )
        for item in items:
            self._submit(item, len(message) // len(items))

    def _submit(self, item: append_pb2.AppendStreamItem, item_bytes: int) -> None:
        item_id = item.id
        self._pending += 1
        self._pending_bytes += item_bytes

        def done(outcome: Answer | EngramError) -> None:
            self._result_bytes += item_bytes
            self._results.append(_result(item_id, outcome, self._bus.durability))
            self._changed.set()

        try:
            self._bus.submit(append_from_message(item.append, agent_id=self._agent_id), done, gathers=True)
        except EngramError as exc:
            done(exc)

    async def _answer(self, write: Write) -> None:
        """Hand over all results that are there, in one message."""
        while self._results:
            results, self._results = self._results, []
            size_bytes, self._result_bytes = self._result_bytes, 0
            try:
                async with asyncio.timeout(self._bus.stall_seconds):
                    await write(append_pb2.AppendStreamResponse(results=results).SerializeToString())
            except TimeoutError:
                raise SlowConsumer(f"no answer was taken for {self._bus.stall_seconds:g} s") from None
            self._pending -= len(results)
            self._pending_bytes -= size_bytes
            if self._room is not None and not self._room.done():
                self._room.set_result(None)


def _result(item_id: int, outcome: Answer | EngramError, durability: str) -> append_pb2.AppendStreamResult:
    if isinstance(outcome, EngramError):
        return append_pb2.AppendStreamResult(
            id=item_id, error=bounded(error_message(outcome), GRPC_ITEM_ERROR_BYTES_MAX)
        )
    unit = outcome.entries[0].unit
    receipt = append_pb2.Receipt(
        unit_id=unit.id,
        context_id=unit.context_id,
        seq=unit.seq,
        version=unit.version,
        durability=durability,
        replayed=outcome.replayed,
    )
    return append_pb2.AppendStreamResult(id=item_id, receipt=receipt)
