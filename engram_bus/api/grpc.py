"""The door to gRPC: calls to verbs and streams, refusals to statuses, and the services beside our own."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from engram_bus import clock
from engram_bus.api.append_stream import AppendStream
from engram_bus.api.health import Health
from engram_bus.api.metrics import Metrics
from engram_bus.api.verbs import SERVICE, Verb, Verbs
from engram_bus.embedded import Bus
from engram_bus.errors import EngramError, InternalError, InvalidRequest, ShuttingDown, Unavailable
from engram_bus.limits import (
    BODY_WIRE_BYTES_MAX,
    CONNECTIONS_MAX,
    DRAIN_SECONDS_MAX,
    GRPC_ERROR_BYTES_MAX,
    GRPC_MESSAGE_BYTES_MAX,
    HEADER_BYTES_MAX,
    HEARTBEAT_SECONDS,
    PEER_SILENT_SECONDS,
    RETRY_AFTER_SECONDS,
)
from engram_bus.pb import lock_pb2, subscription_pb2
from engram_bus.protobuf import bounded, error_message, parse, shortened
from engram_bus.subscribers.grpc_stream import Stream
from engram_bus.subscribers.requests import from_message

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", BODY_WIRE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", HEADER_BYTES_MAX),
    # Calls that were not taken up yet: beyond a thousand they would be cancelled, at random and without a word.
    ("grpc.server.max_pending_requests", CONNECTIONS_MAX),
    ("grpc.server.max_pending_requests_hard_limit", CONNECTIONS_MAX),
    ("grpc.keepalive_time_ms", int(HEARTBEAT_SECONDS * 1_000)),
    ("grpc.keepalive_timeout_ms", int(PEER_SILENT_SECONDS * 1_000)),
    # A client may ask for a sign of life as often as we do, and while it has no call under way.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", int(HEARTBEAT_SECONDS * 1_000) // 2),
    ("grpc.keepalive_permit_without_calls", 1),
)
_SERVICES: Final = ("", SERVICE.full_name)
"""What health tells of: everything, and our service."""


class GrpcServer:
    """gRPC around one bus: our service, health, and (if wanted) reflection."""

    def __init__(
        self, bus: Bus, health_of_bus: Health, metrics: Metrics, *, reflects: bool, shares_port: bool = False
    ) -> None:
        """With `shares_port` other processes of the same bus listen there too."""
        self._bus = bus
        self._metrics = metrics
        self._verbs = Verbs(bus, health_of_bus)
        self._appending: set[AppendStream] = set()
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way = 0
        self._idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._telling: asyncio.Future[None] | None = None
        self._health = health.aio.HealthServicer()
        # Else a second bus would share the port, and the calls, in silence.
        options = (("grpc.so_reuseport", int(shares_port)), *_OPTIONS)
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=CONNECTIONS_MAX)
        self._server.add_generic_rpc_handlers((self._handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflects:
            names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    async def start(self, host: str, port: int) -> int:
        """Listen; gives the port (0 takes a free one). Raises OSError where it is taken."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as exc:
            raise OSError(f"cannot listen on {address}") from exc
        await self._server.start()
        await self._tell_health()
        self._bus.on_ready.append(self._tell_health_soon)
        return bound

    def _tell_health_soon(self) -> None:
        self._telling = asyncio.ensure_future(self._tell_health())

    async def _tell_health(self) -> None:
        """Say whether appends are taken now, to who asks and to who watches."""
        is_ready = self._bus.writer.refusal is None
        status = health_pb2.HealthCheckResponse.SERVING if is_ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in _SERVICES:
            await self._health.set(service, status)

    def goaway(self) -> None:
        """The bus stops: subscriptions were told already; streams of appends and sessions are told here."""
        self._stopping.set_result(None)
        for stream in list(self._appending):
            stream.goaway()

    async def stop(self) -> None:
        """Take no more calls, wait a while for those of ours that are under way, and cut the rest: who watches health
        or reflects would stay for ever."""
        self._bus.on_ready.remove(self._tell_health_soon)
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.ensure_future(self._server.stop(DRAIN_SECONDS_MAX))
        if self._under_way:
            await asyncio.wait((stopping, self._idle), return_when=asyncio.FIRST_COMPLETED)
        await self._server.stop(None)
        await stopping

    # --- Calls -------------------------------------------------------------------------------------------------------

    def _handlers(self) -> grpc.GenericRpcHandler:
        """Every method, on bytes: what cannot be read is answered as over every transport."""
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(partial(self._answer, name, verb))
            for name, verb in self._verbs.by_method().items()
        }
        handlers["AppendStream"] = grpc.stream_stream_rpc_method_handler(
            partial(self._stream, "AppendStream", self._append_stream)
        )
        handlers["HoldSession"] = grpc.stream_stream_rpc_method_handler(
            partial(self._stream, "HoldSession", self._hold_session)
        )
        handlers["Subscribe"] = grpc.unary_stream_rpc_method_handler(
            partial(self._stream, "Subscribe", self._subscribe)
        )
        assert handlers.keys() == {method.name for method in SERVICE.methods}, "every method has a handler"
        return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """A call of ours is under way."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if self._under_way == 0 and self._stopping.done() and not self._idle.done():
                self._idle.set_result(None)

    async def _answer(self, name: str, verb: Verb, request: bytes, context: Context) -> bytes:
        with self._counted():
            return await self._answered(name, verb, request, context)

    async def _answered(self, name: str, verb: Verb, request: bytes, context: Context) -> bytes:
        started = clock.monotonic_seconds()
        try:
            answer = await verb(request, _Caller(context))
        except EngramError as exc:
            refusal = exc
        except Exception as exc:
            refusal = _mistake(name, exc)
        else:
            self._metrics.called(name, "OK", clock.monotonic_seconds() - started)
            return answer
        self._metrics.called(name, refusal.grpc, clock.monotonic_seconds() - started)
        return await self._refuse(context, refusal)

    async def _refuse(self, context: Context, refusal: EngramError) -> NoReturn:
        """End the call with a status that holds the refusal."""
        status = rpc_status.to_status(
            status_pb2.Status(
                code=grpc.StatusCode[refusal.grpc].value[0],
                message=shortened(refusal.message, GRPC_MESSAGE_BYTES_MAX),
                details=_details(refusal),
            )
        )
        reflected = (
            ("engram-durability", self._bus.durability),
            ("engram-applied-seq", str(self._bus.head)),
        )
        await context.abort(status.code, status.details, (*status.trailing_metadata, *reflected))

    def _require_open(self) -> None:
        """Raises ShuttingDown."""
        if self._bus.writer.is_closed and self._bus.writer.refusal is not None:
            raise self._bus.writer.refusal

    # --- Streams -----------------------------------------------------------------------------------------------------

    async def _stream(
        self, name: str, serve: Callable[[Any, Context], Awaitable[None]], asked: Any, context: Context
    ) -> None:
        """A call that answers more than once. What is asked is its request, or (several are read from the context) an
        iterator that nobody needs."""
        with self._counted():
            await self._streamed(name, serve, asked, context)

    async def _streamed(
        self, name: str, serve: Callable[[Any, Context], Awaitable[None]], asked: Any, context: Context
    ) -> None:
        started = clock.monotonic_seconds()
        status, refusal = "CANCELLED", None
        try:
            self._require_open()
            await serve(asked, context)
            status = "OK"
        except EngramError as exc:
            refusal = exc
        except grpc.aio.InternalError:
            pass  # The client has left, and what was written to it failed.
        except Exception as exc:
            refusal = _mistake(name, exc)
        finally:
            self._metrics.called(name, status if refusal is None else refusal.grpc, clock.monotonic_seconds() - started)
        if refusal is not None:
            # (Who takes nothing takes no end either: this then waits until the client has left.)
            with contextlib.suppress(grpc.aio.InternalError):
                await self._refuse(context, refusal)

    async def _append_stream(self, _: Any, context: Context) -> None:
        stream = AppendStream(self._bus, agent_id=_Caller(context).agent_id)
        self._appending.add(stream)
        try:
            await stream.run(partial(_read, context), context.write)
        finally:
            self._appending.discard(stream)

    async def _hold_session(self, _: Any, context: Context) -> None:
        session = self._bus.new_session()
        over = self._verbs.sessions[session] = asyncio.get_running_loop().create_future()
        try:
            await context.write(lock_pb2.HoldSessionResponse(session=session).SerializeToString())
            while (request := await self._read_on(context)) is not None:
                sign = parse(lock_pb2.HoldSessionRequest, request)
                await context.write(lock_pb2.HoldSessionResponse(session=session, id=sign.id).SerializeToString())
        finally:
            del self._verbs.sessions[session]
            over.set_result(None)
            self._bus.end_session(session)

    async def _read_on(self, context: Context) -> bytes | None:
        """The next message of a stream, while the bus does not stop. Raises ShuttingDown."""
        reading = asyncio.ensure_future(_read(context))
        try:
            await asyncio.wait((reading, self._stopping), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise ShuttingDown("the bus is stopping")
            return reading.result()
        finally:
            reading.cancel()

    async def _subscribe(self, request: bytes, context: Context) -> None:
        asked = from_message(parse(subscription_pb2.SubscribeRequest, request))
        await Stream(self._bus, asked, self._bus.seq_of_cursor(asked.after)).run(context.write)


async def _read(context: Context) -> bytes | None:
    """The next message of a stream; None when the client has said everything."""
    message: Any = await context.read()
    return None if message is grpc.aio.EOF else bytes(message)


class _Caller:
    """Whom a call's metadata names."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def agent_id(self) -> str | None:
        """`x-agent-id`; a name that is not ASCII comes as `x-agent-id-bin`. Raises InvalidRequest."""
        for name, value in self._context.invocation_metadata() or ():
            if name == "x-agent-id":
                return str(value)
            if name == "x-agent-id-bin" and isinstance(value, bytes):
                try:
                    return value.decode()
                except UnicodeDecodeError as exc:
                    raise InvalidRequest("x-agent-id-bin is not UTF-8", field="x-agent-id-bin") from exc
        return None


def _details(refusal: EngramError) -> list[any_pb2.Any]:
    """The refusal as every transport tells it, and when to come back, where that makes sense."""
    details: list[Message] = [bounded(error_message(refusal), GRPC_ERROR_BYTES_MAX)]
    if isinstance(refusal, Unavailable) and refusal.retryable:
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_SECONDS)))
    packed = [any_pb2.Any() for _ in details]
    for one, detail in zip(packed, details, strict=True):
        one.Pack(detail)
    return packed


def _mistake(name: str, mistake: Exception) -> EngramError:
    log.error("a call of %s failed", name, exc_info=mistake)
    return InternalError("the call could not be answered; the log of the bus says why")
