"""The other end of a session over gRPC, as the scenes of a WebSocket know theirs: each connection meets a scene."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from engram_client.pb import error_pb2, lock_pb2

Context = Any
PING = "ping"
OPERATIONS: dict[str, tuple[str, type[Message]]] = {
    "AcquireLock": ("lock.acquire", lock_pb2.AcquireLockRequest),
    "RefreshLock": ("lock.refresh", lock_pb2.RefreshLockRequest),
    "ReleaseLock": ("lock.release", lock_pb2.ReleaseLockRequest),
}


class Refusal(Exception):
    """Ends a call."""

    def __init__(self, status: str, *details: Message) -> None:
        self.status = status
        self.details = details


class Caller:
    """One connection: the call of its session, and all that is asked beside it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._left = asyncio.Event()
        self._last_id = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """What the session's call is ended with."""

    # --- For scenes

    async def hear(self) -> dict[str, Any]:
        return await self._asked.get()

    async def say(self, event: str, **fields: Any) -> None:
        match event:
            case "error" | "goaway":
                refusal = _refusal(**fields)
                if "id" in fields:
                    self._answers[fields["id"]].set_exception(refusal)
                else:
                    self._end(refusal)
            case "locked":
                locks = [ParseDict({**lock, "mode": lock["mode"].upper()}, lock_pb2.Lock()) for lock in fields["locks"]]
                self._answer(fields["id"], lock_pb2.AcquireLockResponse(locks=locks, extended=fields["extended"]))
            case "released":
                self._answer(fields["id"], lock_pb2.ReleaseLockResponse(released=fields["released"]))
            case "pong":
                self._answer(fields["id"], lock_pb2.HoldSessionResponse(session=self.name, id=fields["id"]))
            case _:
                raise AssertionError(event)

    async def stay(self) -> None:
        await self._left.wait()

    def cut(self) -> None:
        self._end(Refusal("UNAVAILABLE"))

    def _answer(self, id: int, answer: Message) -> None:
        self._answers[id].set_result(answer)

    def _end(self, refusal: Refusal) -> None:
        for waited_for in (self.ended, *self._answers.values()):
            if not waited_for.done():
                waited_for.set_exception(refusal)
                waited_for.exception()  # for whoever waits, if anybody does

    # --- For the server

    async def ask(self, operation: str, request: Message, *, id: int | None = None) -> Any:
        if self.ended.done():
            self.ended.result()
        self._last_id += 1
        # Numbers of signs of life are the client's; others are out of their way.
        number = 1_000_000 + self._last_id if id is None else id
        self._answers[number] = asyncio.get_running_loop().create_future()
        said = {field.name: getattr(request, field.name) for field in request.DESCRIPTOR.fields}
        await self._asked.put({**said, "op": operation, "id": number})
        return await self._answers[number]

    async def serve(self, context: Context) -> None:
        """The session's call, until the client leaves or the scene ends it."""
        await context.write(lock_pb2.HoldSessionResponse(session=self.name).SerializeToString())
        reading = asyncio.create_task(self._read(context))
        try:
            await asyncio.wait([reading, self.ended], return_when=asyncio.FIRST_COMPLETED)
            if self.ended.done():
                self.ended.result()
        finally:
            reading.cancel()
            self._left.set()

    async def _read(self, context: Context) -> None:
        while not self.ended.done() and (message := await context.read()) is not grpc.aio.EOF:
            sign = lock_pb2.HoldSessionRequest.FromString(message)
            try:
                answer = await self.ask(PING, sign, id=sign.id)
            except Refusal:
                return
            await context.write(answer.SerializeToString())


Scene = Callable[[Caller], Awaitable[None]]


class Playing:
    """gRPC servers that play prepared scenes."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def start(self, *scenes: Scene) -> str:
        """A URL whose n-th session meets the n-th scene; later ones meet the last."""
        callers: dict[str, Caller] = {}
        running: list[asyncio.Task[None]] = []

        async def act(scene: Scene, caller: Caller) -> None:
            try:
                await scene(caller)
            except BaseException:
                caller.cut()
                raise

        async def hold(_: Any, context: Context) -> None:
            caller = callers[context.peer()] = Caller(f"session {len(running)}")
            running.append(asyncio.create_task(act(scenes[min(len(running), len(scenes) - 1)], caller)))
            try:
                await caller.serve(context)
            except Refusal as refusal:
                await _refuse(context, refusal)

        def unary(operation: str, request: Any) -> Any:
            async def meet(body: bytes, context: Context) -> bytes:
                try:
                    said = await callers[context.peer()].ask(operation, request.FromString(body))
                    # Scenes tell who refreshes as much as who acquires.
                    found = lock_pb2.RefreshLockResponse(locks=said.locks) if operation == "lock.refresh" else said
                    return bytes(found.SerializeToString())
                except Refusal as refusal:
                    await _refuse(context, refusal)
                    raise

            return grpc.unary_unary_rpc_method_handler(meet)

        handlers = {name: unary(*kinds) for name, kinds in OPERATIONS.items()}
        handlers["HoldSession"] = grpc.stream_stream_rpc_method_handler(hold)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("engram.v1.EngramBus", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._stack.push_async_callback(self._stop, server, running)
        return f"grpc://127.0.0.1:{port}"

    async def _stop(self, server: grpc.aio.Server, running: list[asyncio.Task[None]]) -> None:
        await server.stop(0)
        for scene in running:
            scene.cancel()
        for found in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(found, Exception):
                raise found


def _refusal(
    *,
    code: str = "",
    reason: str = "",
    message: str = "",
    retryable: bool = True,
    field: str | None = None,
    retry_after_ms: int = 0,
    **more: Any,
) -> Refusal:
    details = {name: value for name, value in more.items() if name not in ("id", "cursor")}
    said = error_pb2.Error(code=code or reason, message=message, retryable=retryable, field=field, details=details)
    if not retry_after_ms:
        return Refusal("UNAVAILABLE" if retryable else "FAILED_PRECONDITION", said)
    pause = error_details_pb2.RetryInfo()
    pause.retry_delay.FromMilliseconds(retry_after_ms)
    return Refusal("UNAVAILABLE", said, pause)


async def _refuse(context: Context, refusal: Refusal) -> None:
    packed = []
    for detail in refusal.details:
        packed.append(Packed())
        packed[-1].Pack(detail)
    code = grpc.StatusCode[refusal.status]
    rich = rpc_status.to_status(status_pb2.Status(code=code.value[0], message="no", details=packed))
    await context.abort(code, "no", rich.trailing_metadata if packed else ())
