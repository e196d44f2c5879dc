"""The door to grpc: one channel to one bus, its calls and streams, and what it means when they fail."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from engram_client import protobuf
from engram_client.errors import EngramConnectionError, EngramError, TooLarge, error_from
from engram_client.http import is_loopback
from engram_client.limits import (
    ANSWER_BYTES_MAX,
    CONNECTIONS_MAX,
    KEEPALIVE_ANSWER_SECONDS,
    KEEPALIVE_SECONDS,
    METADATA_BYTES_MAX,
    RECONNECT_SECONDS_MAX,
    RECONNECT_SECONDS_MIN,
)
from engram_client.pb import error_pb2

A = TypeVar("A", bound=Message)
T = TypeVar("T")

_SERVICE: Final = "/engram.v1.EngramBus"

_STATUSES: Final[Mapping[grpc.StatusCode, int]] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNIMPLEMENTED: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
}
"""What would have been the status of HTTP, where the answer is a refusal, whoever gave it."""


class Grpc:
    """Calls of one agent to one bus."""

    def __init__(self, url: str, *, agent_id: str, timeout_seconds: float) -> None:
        """Raises ValueError for what is no URL of a host and a port."""
        self._target = _target(url)
        self._options = _options(timeout_seconds, is_local=is_loopback(url))
        self._is_secure = url.startswith("grpcs:")
        self._metadata = _named(agent_id)
        self._timeout_seconds = timeout_seconds
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False
        self._calls: set[Any] = set()
        # Of too many at once the bus refuses some, and time would run while they wait.
        self._turn = asyncio.Semaphore(CONNECTIONS_MAX)

    async def aclose(self) -> None:
        """End its connection."""
        self._is_closed = True
        channel, self._channel = self._channel, None
        if channel is None:
            return
        for call in list(self._calls):
            call.cancel()
        try:
            await _reported(channel)
        finally:
            await channel.close()

    async def ask(
        self, method: str, request: Message, answer: type[A], *, wait_seconds: float = 0, takes_turn: bool = True
    ) -> A:
        """The answer to one try, which may take so much longer than any. One that may wait for long, or that somebody
        counts on, takes no turn: it holds up nobody, and nobody it."""
        body, seconds = request.SerializeToString(), self._timeout_seconds + wait_seconds
        async with self._turn if takes_turn else nullcontext():
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._connected().unary_unary(f"{_SERVICE}/{method}")
            with _failures(), self._called(ask(body, timeout=seconds, metadata=self._metadata)) as call:
                said = await _own(call)
        return protobuf.parse(answer, said)

    @contextmanager
    def listen(self, method: str, request: Message) -> Iterator["Call"]:
        """A request, and answers without an end."""
        listen: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._connected().unary_stream(f"{_SERVICE}/{method}")
        with self._called(Call(listen(request.SerializeToString(), metadata=self._metadata))) as call:
            yield call

    @contextmanager
    def talk(self, method: str) -> Iterator["Call"]:
        """Requests and answers without an end."""
        talk: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._connected().stream_stream(f"{_SERVICE}/{method}")
        with self._called(Call(talk(metadata=self._metadata))) as call:
            yield call

    @contextmanager
    def _called(self, call: Any) -> Iterator[Any]:
        """Cancelled, unless it has ended, when it is left; or with the client."""
        self._calls.add(call)
        try:
            yield call
        finally:
            call.cancel()
            self._calls.discard(call)

    def _connected(self) -> grpc.aio.Channel:
        """Made by the loop that uses it, which need not be there yet when the client is made."""
        if self._is_closed:
            raise EngramConnectionError("the client is closed", retryable=False)
        if self._channel is None:
            self._channel = (
                grpc.aio.secure_channel(self._target, grpc.ssl_channel_credentials(_roots()), self._options)
                if self._is_secure
                else grpc.aio.insecure_channel(self._target, self._options)
            )
        return self._channel


class Call:
    """One stream. Whatever ends it is an EngramError, `retryable` where coming back makes sense."""

    def __init__(self, call: Any) -> None:  # of whichever kind: grpc.aio has no common type that reads and writes
        self._call = call
        self._turn = asyncio.Lock()
        self._writing: asyncio.Future[None] | None = None

    def cancel(self) -> None:
        """End it, also for a message that waits for a connection: grpc would let that wait for ever."""
        self._call.cancel()
        if self._writing is not None:
            self._writing.cancel()

    async def send(self, message: bytes) -> None:
        """Whoever stops waiting does not take it back."""
        # grpc would: by ending the call, which others use too.
        sending = asyncio.create_task(self._write(message), name="engram write")
        sending.add_done_callback(_heard)
        try:
            await asyncio.wait([sending])
            sending.result()
        finally:
            del sending  # As in `_own`: it has the exception, and that this frame.

    async def _write(self, message: bytes) -> None:
        with _failures():
            async with self._turn:
                is_written = await self._is_written(message)
            if not is_written:
                await self._call.read()  # It tells why.
                raise EngramConnectionError("the stream ended")

    async def _is_written(self, message: bytes) -> bool:
        """False where the call has ended."""
        writing = self._writing = asyncio.ensure_future(self._call.write(message))
        try:
            await asyncio.wait([writing])
            if writing.cancelled():
                return False
            writing.result()
        except asyncio.InvalidStateError:
            return False
        finally:
            self._writing = None
            writing.cancel()
            del writing
        return True

    async def receive(self, answer: type[A], *, silence_seconds: float | None = None) -> A:
        try:
            async with asyncio.timeout(silence_seconds):
                with _failures():
                    said = await _own(self._call.read())
        except TimeoutError as exc:
            raise EngramConnectionError(f"nothing heard for {silence_seconds} s, not even a heartbeat") from exc
        if said is grpc.aio.EOF:
            raise EngramConnectionError("the stream ended")
        return protobuf.parse(answer, said)


def _target(url: str) -> str:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or port is None or parts.username is not None or parts.path or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not grpc:// or grpcs:// with a host and a port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"dns:///{host}:{port}"


def _options(timeout_seconds: float, *, is_local: bool) -> list[tuple[str, int]]:
    options = [
        ("grpc.enable_retries", 0),  # That is ours.
        ("grpc.use_local_subchannel_pool", 1),  # A connection for each client, as over HTTP.
        ("grpc.max_receive_message_length", ANSWER_BYTES_MAX),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1_000)),
        ("grpc.keepalive_timeout_ms", int(KEEPALIVE_ANSWER_SECONDS * 1_000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", int(RECONNECT_SECONDS_MIN * 1_000)),
        ("grpc.max_reconnect_backoff_ms", int(RECONNECT_SECONDS_MAX * 1_000)),
        # In spite of its name, how long one try to connect may take.
        ("grpc.min_reconnect_backoff_ms", max(1, int(timeout_seconds * 1_000))),
    ]
    return [*options, ("grpc.enable_http_proxy", 0)] if is_local else options


def _named(agent_id: str) -> tuple[tuple[str, str | bytes], ...]:
    """Who acts. Text of metadata is ASCII, and trimmed."""
    if agent_id.isascii() and agent_id == agent_id.strip():
        return (("x-agent-id", agent_id),)
    return (("x-agent-id-bin", agent_id.encode()),)


def _roots() -> bytes | None:
    """The certificates that this system trusts; None, which is those that come with grpc, where it names none."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return Path(paths.cafile).read_bytes()
    found = sorted(Path(paths.capath).glob("*.[0-9]")) if paths.capath else []
    return b"".join(path.read_bytes() for path in found) or None


async def _reported(channel: grpc.aio.Channel) -> None:
    """Until cancelled calls have reported to this loop, which may be closed next and take no reports any more: a call
    that is over before it begins ends after them."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{_SERVICE}/GetStatus")
    with suppress(grpc.aio.AioRpcError):
        await call(b"", timeout=-1)


async def _own(operation: Awaitable[T]) -> T:
    """What it gives. Who is cancelled meanwhile gets that very CancelledError: grpc would raise one of its own, which
    nobody (as a scope of anyio) knows to be theirs."""
    running = asyncio.ensure_future(operation)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        running.cancel()
        raise
    finally:
        del running  # It has the exception, and that this frame: a circle, which would keep the connection.


def _heard(writing: "asyncio.Task[None]") -> None:
    """Whoever waits for it hears of its failure; that nobody waits any more is none."""
    if not writing.cancelled():
        writing.exception()


@contextmanager
def _failures() -> Iterator[None]:
    """What goes wrong in a call, as an EngramError."""
    try:
        yield
    except grpc.aio.AioRpcError as exc:
        raise error_of(exc) from exc
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Not whoever waits was cancelled, but the call.
        raise EngramConnectionError("the client was closed", retryable=False) from exc


def error_of(exc: grpc.aio.AioRpcError) -> EngramError:
    """The error that a failed call means: what the bus says in the details of its status, else what its code tells."""
    code, details = exc.code(), _details(exc)
    status = _STATUSES.get(code)
    if (said := _detail(details, error_pb2.Error)) is not None:
        pause = _detail(details, error_details_pb2.RetryInfo)
        return protobuf.error(
            said,
            status=status or 503,
            retry_after_seconds=None if pause is None else max(0.0, pause.retry_delay.ToTimedelta().total_seconds()),
        )
    message = f"{code.name}: {exc.details()}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (exc.details() or ""):
        return TooLarge(message)
    if status is not None:
        return error_from({"message": message}, status=status)
    return EngramConnectionError(message)


def _details(exc: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    try:
        found: status_pb2.Status | None = rpc_status.from_call(exc)
    except ValueError:  # Somebody in between has changed the status, and not its details.
        return None
    return found


def _detail(status: status_pb2.Status | None, kind: Callable[[], A]) -> A | None:
    """The detail of this kind."""
    wanted = kind()
    for detail in status.details if status is not None else ():
        if detail.Unpack(wanted):
            return wanted
    return None
