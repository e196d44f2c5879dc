"""uvicorn's HTTP with bounds on what a request may take, each answered with a problem."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import ClassVar, Literal

import httptools
import msgspec
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from engram_bus.api.edge.direct import DirectCycle, Head, Heads, Taker, is_direct
from engram_bus.api.edge.socket import SOCKET, Written
from engram_bus.api.problems import problem_body, problem_headers
from engram_bus.errors import Busy, EngramError, HeadersTooLarge, InvalidRequest, TooLarge, TooSlow
from engram_bus.limits import (
    BODY_SECONDS_MAX,
    BODY_WIRE_BYTES_MAX,
    CONNECTIONS_MAX,
    HEADER_BYTES_MAX,
    HEADER_SECONDS_MAX,
    LEAVE_SECONDS_MAX,
    QUERY_BYTES_MAX,
)

_OFFER = (b"upgrade", b"connection", b"http2-settings")
"""Headers that offer another protocol. (Who also said `Connection: close` closes by itself.)"""
_PHASES_OF_ONE = 3
"""Of a request that comes whole: its headers, its body, and then it lacks nothing."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What a connection is granted; tests grant less."""

    header_seconds: float = HEADER_SECONDS_MAX
    body_seconds: float = BODY_SECONDS_MAX
    leave_seconds: float = LEAVE_SECONDS_MAX
    connections_max: int = CONNECTIONS_MAX


USUAL = Bounds()


def edge_http(bounds: Bounds, direct: Mapping[bytes, Taker]) -> type["EdgeHttp"]:
    """The protocol class with these bounds and takers; uvicorn makes its instances."""
    return type("EdgeHttp", (EdgeHttp,), {"bounds": bounds, "direct": direct, "heads": Heads()})


class EdgeHttp(Written, HttpToolsProtocol):
    """HTTP/1.1 whose headers and body come within a time and a size, or are answered with a problem and closed.

    What a request still lacks is its phase. A request that comes in one piece (nearly all do) arms no timer.
    """

    bounds: ClassVar[Bounds] = USUAL
    direct: ClassVar[Mapping[bytes, Taker]] = {}
    """Who takes small POSTs to a target, without ASGI."""
    heads: ClassVar[Heads] = Heads()

    _lacks: Literal["nothing", "headers", "body"] = "nothing"
    _phase = 0
    _phase_bytes = 0
    _header_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _fault: EngramError | None = None
    _owed: EngramError | None = None
    _is_refused = False
    _held: DirectCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._answers = _Answers(self)
        if len(self.connections) > self.bounds.connections_max:
            self._refuse(Busy(f"{len(self.connections)} connections are open, at most {self.bounds.connections_max}"))
            return
        self._begin("headers")
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)
        self.was_lost()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        is_between = self._is_between()
        if is_between and (found := self.heads.find(data)) is not None:
            self._take_again(*found)
            return
        phase = self._phase
        self._feed(data)
        if is_between and self._phase == phase + _PHASES_OF_ONE:
            cycle = self._last_cycle()
            if isinstance(cycle, DirectCycle):
                self.heads.learn(data, cycle)
        if self._phase != phase:
            self._phase_bytes = 0
            self._arm()
        elif self._lacks != "nothing":
            self._phase_bytes += len(data)
            self._check_size()

    def _feed(self, data: bytes) -> None:
        """As uvicorn's `data_received`, but who offers another protocol is not answered without the body that follows:
        curl and Java's client offer HTTP/2 with the first request of a connection, whatever it is."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._refuse(self._fault or InvalidRequest(f"this cannot be read as HTTP/1.1: {exc}"))
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._start_again(data[upgrade.args[0] :])

    def _is_between(self) -> bool:
        """Whether all requests so far were read and answered, and more may come."""
        cycle = self._last_cycle()
        return self._lacks == "nothing" and cycle is not None and cycle.response_complete and cycle.keep_alive

    def _take_again(self, head: Head, body: bytes) -> None:
        """A request whose head was parsed before. The parser is between two messages, and stays there."""
        self._unset_keepalive_if_required()
        cycle = DirectCycle(self, head.take, head.headers, keep_alive=True)
        cycle.body, cycle.more_body, cycle.is_due = body, False, True
        self.cycle = cycle  # type: ignore[assignment]
        self._perform(cycle)

    def _start_again(self, rest: bytes) -> None:
        """The request once more, as if it offered nothing, and what came after its headers."""
        line = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        kept = [b"%b: %b" % header for header in self.headers if header[0] not in _OFFER]
        if len(kept) == len(self.headers):
            self._refuse(InvalidRequest("a tunnel (CONNECT) leads nowhere here"))
            return
        self.parser = httptools.HttpRequestParser(self)
        self._feed(b"\r\n".join((line, *kept, b"", rest)))

    def _declines(self) -> bool:
        """Whether the request offers a protocol that is not spoken here, and will be read again without the offer."""
        return bool(self.parser.should_upgrade()) and not self._should_upgrade()

    def handle_websocket_upgrade(self) -> None:
        self._begin("nothing")
        super().handle_websocket_upgrade()

    def shutdown(self) -> None:
        super().shutdown()
        self.abort_after(LEAVE_SECONDS_MAX)

    # --- What the parser says ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        # Not uvicorn's: it makes the scope, which not every request needs.
        self.url, self.headers, self.expect_100_continue = b"", [], False
        # The one before may have been answered while this one lay in the same piece.
        self._unset_keepalive_if_required()
        self._header_bytes = 0
        self._begin("headers")

    def _make_scope(self) -> None:
        """What uvicorn does when a message begins, for one whose headers were read."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        # uvicorn types extensions as dictionaries of dictionaries; ASGI lets them hold anything.
        self.scope["extensions"] = {SOCKET: self}  # type: ignore[dict-item]

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._header_bytes += len(url)
        if self._header_bytes > QUERY_BYTES_MAX:
            self._give_up("the request target has", QUERY_BYTES_MAX)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4  # ": " and the line's end.
        if self._header_bytes > HEADER_BYTES_MAX:
            self._give_up("the request headers have", HEADER_BYTES_MAX)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._declines():
            return
        taker = self.direct.get(self.url)
        if taker is not None and self._begin_directly(taker):
            self._begin("body")
            return
        self._make_scope()
        super().on_headers_complete()
        self._begin("body")
        cycle = self._last_cycle()
        if isinstance(cycle, RequestResponseCycle):
            cycle.transport = self._answers  # type: ignore[assignment]

    def _begin_directly(self, taker: Taker) -> bool:
        """Queue the request for its taker; False where it is not of the kind that is taken so."""
        headers = dict(self.headers)
        if len(headers) < len(self.headers):
            return False  # One comes twice: whether it may is decided where they are read.
        if self.parser.get_method() != b"POST" or self.parser.should_upgrade() or not is_direct(headers):
            return False
        before = self._last_cycle()
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        cycle = DirectCycle(self, taker, headers, keep_alive=keep_alive)
        # It has the names of uvicorn's that the connection uses.
        self.cycle = cycle  # type: ignore[assignment]
        if before is None or before.response_complete:
            cycle.is_due = True
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]
        return True

    def _start_asgi_task(self, cycle: RequestResponseCycle | DirectCycle, app: ASGI3Application) -> None:
        """As uvicorn's, of the request whose turn it is now."""
        if not isinstance(cycle, DirectCycle):
            super()._start_asgi_task(cycle, app)
            return
        cycle.is_due = True
        if not cycle.more_body:
            # Not within the answer to the one before: of a thousand in one piece each would lie in the last one's.
            self.loop.call_soon(self._perform, cycle)

    def _perform(self, cycle: DirectCycle) -> None:
        if self.flow.write_paused:
            self._held = cycle  # Answers lie there that are not read: this one waits until they are.
        elif not cycle.disconnected:
            cycle.perform()

    def responded(self, cycle: DirectCycle, response: bytes) -> None:
        self._answers.write(response)
        if not cycle.keep_alive:
            self.close()
        self.on_response_complete()

    def on_message_complete(self) -> None:
        if self._declines():
            return
        self._begin("nothing")
        super().on_message_complete()
        cycle = self._last_cycle()
        if isinstance(cycle, DirectCycle) and cycle.is_due and not cycle.response_complete:
            self._perform(cycle)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._owed is not None and self._is_answered():
            self._write_refusal(self._owed)

    # --- Bounds ------------------------------------------------------------------------------------------------------

    def _begin(self, lacks: Literal["nothing", "headers", "body"]) -> None:
        self._lacks = lacks
        self._phase += 1

    def _arm(self) -> None:
        self._disarm()
        if self._lacks != "nothing":
            seconds = self.bounds.header_seconds if self._lacks == "headers" else self.bounds.body_seconds
            self._timer = self.loop.call_later(seconds, self._late, seconds)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self, seconds: float) -> None:
        if self.flow.read_paused:
            self._arm()  # It was us who did not listen.
        else:
            self._refuse(TooSlow(f"the {self._lacks} took longer than {seconds:g} s"))

    def _give_up(self, what: str, bytes_max: int) -> None:
        self._fault = HeadersTooLarge(f"{what} more than {bytes_max} bytes", limit=bytes_max)
        # The parser turns it into an error of its own.
        raise ValueError(what)

    def _check_size(self) -> None:
        """What the parser holds back and has not told of yet: a header without end, chunks of nothing."""
        if self._lacks == "headers" and self._phase_bytes > HEADER_BYTES_MAX:
            self._refuse(
                HeadersTooLarge(f"the headers have more than {HEADER_BYTES_MAX} bytes", limit=HEADER_BYTES_MAX)
            )
        if self._lacks == "body" and self._phase_bytes > BODY_WIRE_BYTES_MAX:
            self._refuse(TooLarge(f"the body takes more than {BODY_WIRE_BYTES_MAX} bytes", limit=BODY_WIRE_BYTES_MAX))

    # --- Refusing in the application's place -------------------------------------------------------------------------

    def _refuse(self, error: EngramError) -> None:
        """Answer this and read no more requests. Requests before it are answered first."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._disarm()
        if self._lacks == "body":
            if self.cycle.response_started:
                self.leave()  # It was answered before it was whole.
                return
            self._take_from_application()
        if self._is_answered():
            self._write_refusal(error)
        else:
            self._owed = error

    def _take_from_application(self) -> None:
        """The request that lacks its body: whoever waits for the rest of it is told that the client left."""
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        self.pipeline = deque(queued for queued in self.pipeline if queued[0] is not self.cycle)

    def _is_answered(self) -> bool:
        """Whether every request before this moment has its whole answer, or will never have one."""
        cycle = self._last_cycle()
        return not self.pipeline and (cycle is None or cycle.response_complete or cycle.disconnected)

    def _last_cycle(self) -> RequestResponseCycle | DirectCycle | None:
        """The newest request with its answer: none before the first, whatever uvicorn's annotation says."""
        return self.cycle

    def _write_refusal(self, error: EngramError) -> None:
        body = problem_body(error)
        headers = [*problem_headers(error), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
        self.leave()

    def leave(self) -> None:
        """Say that nothing more comes, and take what still does: closing on unread bytes would reset the connection,
        and the answer with it."""
        if self.transport.is_closing():
            return
        self._is_refused = True
        self._disarm()
        self.flow.resume_reading()
        self.transport.write_eof()
        self.abort_after(self.bounds.leave_seconds)

    def close(self) -> None:
        """The last answer was given."""
        if self._lacks == "nothing":
            self.transport.close()
        else:
            self.leave()

    # --- As a socket -------------------------------------------------------------------------------------------------

    def resume_writing(self) -> None:
        super().resume_writing()
        held, self._held = self._held, None
        if held is not None:
            self._perform(held)

    def pause_reading(self) -> None:
        self.flow.pause_reading()

    def resume_reading(self) -> None:
        self.flow.resume_reading()


class _Answers:
    """The transport as answers see it: gone once the client is, and not cut while a request still comes in."""

    __slots__ = ("_edge", "_write", "is_closing")

    def __init__(self, edge: EdgeHttp) -> None:
        self._edge = edge
        self._write = edge.transport.write
        self.is_closing = edge.transport.is_closing

    def write(self, data: bytes) -> None:
        # uvloop raises where asyncio would forget the bytes, and the client may leave at any moment.
        if not self.is_closing():
            self._write(data)

    def close(self) -> None:
        self._edge.close()
