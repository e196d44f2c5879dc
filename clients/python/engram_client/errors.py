"""What can go wrong: one class for each code of the bus, and two of our own for what the wire does.

EngramError
├── Invalid                    the request itself is at fault; sending it again will not help
│   ├── InvalidRequest         a field is missing, of the wrong type, or has a value that is not allowed
│   ├── TooLarge               a bound was reached; `limit` names it
│   │   └── HeadersTooLarge
│   ├── CursorInvalid          not a cursor
│   ├── UnsupportedMedia       a content type this route does not read
│   ├── MethodNotAllowed
│   └── ForbiddenOrigin        a web page of another origin asks, and it was not let in
├── NotFound
│   ├── RouteNotFound
│   ├── UnitNotFound
│   ├── ContextNotFound
│   └── LockNotFound
├── Conflict                   the request is fine, the state says no
│   ├── IdempotencyConflict    the key was used with another body
│   ├── IdTaken                a unit of this id exists
│   ├── VersionMoved           expected_version is not the context's version; `details["current_version"]` is
│   ├── ContextClosed
│   ├── LockHeld               another agent holds what was asked for, or waited for it first
│   ├── Deadlock               the wait would never end: `cycle` says who waits for whom
│   ├── LockLost               the lock is not held any more
│   ├── NotHolder              the lock is another agent's
│   ├── FenceStale             the lock whose token was shown is not held any more
│   ├── FenceRequired          the context asks for a lock on what the unit touches
│   ├── CursorAhead            the cursor lies after the head of the log
│   └── EpochChanged           the cursor is of a history this log does not continue
├── Unavailable                not the caller's fault; the same request may work later
│   ├── TooSlow                the request did not come in time
│   ├── Busy
│   ├── MinSeqTimeout          min_seq was not reached in time
│   ├── WaitEnded              a wait for a lock ended without a grant, a refusal or its deadline
│   ├── SearchBuilding         the search index is being built: `taken_seq` of `head` are in it
│   ├── SearchUnavailable      search is being started
│   ├── StorageFull
│   ├── StorageReadOnly
│   ├── StorageFailed
│   ├── LogSilent              the bus runs in several processes, and the one that keeps the log does not answer
│   ├── LogDamaged             not retryable
│   ├── SlowConsumer           the subscription was not read for too long; it resumes
│   ├── ShuttingDown
│   ├── InternalError
│   └── EngramConnectionError  no answer: the bus was not reached, or the connection broke
└── Gap                        a subscription cannot have these units; it goes on behind them
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class EngramError(Exception):
    """An answer that says no, the same on every transport.

    `retryable` tells whether the same request may work later, `status` is the HTTP status. `field` names the part of
    the request at fault, `limit` the bound that was reached, `index` the item of a batch; `details` holds what a
    caller can act on (the current version, the head, ...). A code that this client does not know comes as the family
    of its status, with `code` as it was sent.
    """

    code: str = "UNKNOWN"
    status: int = 500
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        retryable: bool | None = None,
        field: str | None = None,
        limit: int | None = None,
        index: int | None = None,
        details: Mapping[str, Any] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code if code is not None else self.code
        self.status = status if status is not None else self.status
        self.retryable = retryable if retryable is not None else self.retryable
        self.field = field
        self.limit = limit
        self.index = index
        self.details = dict(details or {})
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Invalid(EngramError):
    status = 400


class InvalidRequest(Invalid):
    code = "INVALID_REQUEST"


class TooLarge(Invalid):
    code = "TOO_LARGE"
    status = 413


class HeadersTooLarge(TooLarge):
    code = "HEADERS_TOO_LARGE"
    status = 431


class CursorInvalid(Invalid):
    code = "CURSOR_INVALID"


class UnsupportedMedia(Invalid):
    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415


class MethodNotAllowed(Invalid):
    code = "METHOD_NOT_ALLOWED"
    status = 405


class ForbiddenOrigin(Invalid):
    code = "FORBIDDEN_ORIGIN"
    status = 403


class NotFound(EngramError):
    status = 404


class RouteNotFound(NotFound):
    code = "NOT_FOUND"


class UnitNotFound(NotFound):
    code = "UNIT_NOT_FOUND"


class ContextNotFound(NotFound):
    code = "CONTEXT_NOT_FOUND"


class LockNotFound(NotFound):
    code = "LOCK_NOT_FOUND"


class Conflict(EngramError):
    status = 409


class IdempotencyConflict(Conflict):
    code = "IDEMPOTENCY_CONFLICT"


class IdTaken(Conflict):
    code = "ID_TAKEN"


class VersionMoved(Conflict):
    code = "VERSION_MOVED"
    status = 412


class ContextClosed(Conflict):
    code = "CONTEXT_CLOSED"


class LockHeld(Conflict):
    code = "LOCK_HELD"

    @property
    def holder_agent(self) -> str:
        """Who is in the way: the holder, or (`waits`) one who came first."""
        return str(self.details.get("holder_agent", ""))

    @property
    def waits(self) -> bool:
        """Whether the one in the way waits as well."""
        return self.details.get("waits") is True

    @property
    def resource(self) -> str:
        """What of theirs is in the way."""
        return str(self.details.get("resource", ""))

    @property
    def since(self) -> str:
        """When it was granted (or the wait began)."""
        return str(self.details.get("since", ""))

    @property
    def until(self) -> str:
        """When the lease (or the wait) runs out, unless it is refreshed."""
        return str(self.details.get("until", ""))

    @property
    def reason(self) -> str:
        """What its holder wants it for."""
        return str(self.details.get("reason", ""))

    @property
    def queue_length(self) -> int:
        """How many wait for it."""
        return int(self.details.get("queue_length", 0))


class WaitsFor(NamedTuple):
    """One step of a circle of waits."""

    agent_id: str
    waits_for: str
    resource: str


class Deadlock(Conflict):
    code = "DEADLOCK"

    @property
    def cycle(self) -> list[WaitsFor]:
        """Who waits for whom, and for what; the last one waits for the first."""
        return [
            WaitsFor(str(step["agent_id"]), str(step["waits_for"]), str(step["resource"]))
            for step in self.details.get("cycle", ())
        ]


class LockLost(Conflict):
    code = "LOCK_LOST"

    @property
    def lock_id(self) -> str:
        return str(self.details.get("lock_id", ""))


class NotHolder(Conflict):
    code = "NOT_HOLDER"

    @property
    def holder_agent(self) -> str:
        return str(self.details.get("holder_agent", ""))


class FenceStale(Conflict):
    code = "FENCE_STALE"
    status = 412


class FenceRequired(Conflict):
    code = "FENCE_REQUIRED"
    status = 412

    @property
    def resource(self) -> str:
        """What of the unit's resources is to be locked first."""
        return str(self.details.get("resource", ""))


class CursorAhead(Conflict):
    code = "CURSOR_AHEAD"


class EpochChanged(Conflict):
    code = "EPOCH_CHANGED"


class Unavailable(EngramError):
    status = 503
    retryable = True


class TooSlow(Unavailable):
    code = "REQUEST_TIMEOUT"
    status = 408


class Busy(Unavailable):
    code = "BUSY"
    status = 429


class MinSeqTimeout(Unavailable):
    code = "MIN_SEQ_TIMEOUT"


class WaitEnded(Unavailable):
    code = "WAIT_ENDED"


class SearchBuilding(Unavailable):
    code = "SEARCH_BUILDING"

    @property
    def taken_seq(self) -> int:
        """How far the index is."""
        return int(self.details.get("taken_seq", 0))

    @property
    def head(self) -> int:
        """How far it has to come."""
        return int(self.details.get("head", 0))


class SearchUnavailable(Unavailable):
    code = "SEARCH_UNAVAILABLE"


class StorageFull(Unavailable):
    code = "STORAGE_FULL"
    status = 507


class StorageReadOnly(Unavailable):
    code = "STORAGE_READ_ONLY"


class StorageFailed(Unavailable):
    code = "STORAGE_FAILED"


class LogSilent(Unavailable):
    code = "LOG_SILENT"


class LogDamaged(Unavailable):
    code = "LOG_DAMAGED"
    status = 500
    retryable = False


class SlowConsumer(Unavailable):
    code = "SLOW_CONSUMER"


class ShuttingDown(Unavailable):
    code = "SHUTTING_DOWN"


class InternalError(Unavailable):
    code = "INTERNAL"
    status = 500


class EngramConnectionError(Unavailable):
    """No answer from the bus, so nobody knows whether the request was carried out; its idempotency key makes it safe
    to send again."""

    code = "CONNECTION"


class Gap(EngramError):
    """The subscription cannot have the units from `from_seq` to `to_seq`; iterate again and it goes on behind them."""

    code = "GAP"
    status = 410

    def __init__(self, from_seq: int, to_seq: int, reason: str) -> None:
        super().__init__(f"no units from {from_seq} to {to_seq}: {reason}")
        self.from_seq = from_seq
        self.to_seq = to_seq
        self.reason = reason


def _with_code(family: type[EngramError]) -> dict[str, type[EngramError]]:
    named = {family.code: family} if "code" in vars(family) else {}
    for child in family.__subclasses__():
        named |= _with_code(child)
    return named


_OURS = ("UNKNOWN", "CONNECTION", "GAP")
BY_CODE = {code: error for code, error in _with_code(EngramError).items() if code not in _OURS}
"""Every code of the wire."""

BY_CLOSE_CODE: Mapping[int, type[EngramError]] = {
    4000: InternalError,
    4001: ShuttingDown,
    4003: Unavailable,
    4008: SlowConsumer,
    4500: InvalidRequest,
    4501: CursorInvalid,
    4503: ForbiddenOrigin,
    4504: NotFound,
    4509: Conflict,
    4510: CursorAhead,
    4511: EpochChanged,
    4512: LogDamaged,
    4513: TooLarge,
}
"""What a WebSocket's close code says where no `error` frame came before it."""

_PROBLEM_FIELDS = frozenset(
    "type title status detail instance code retryable field limit index message event id subscription".split()
)


def error_from(
    answer: Mapping[str, Any], *, status: int | None = None, retry_after_seconds: float | None = None
) -> EngramError:
    """The error that a problem (HTTP) or an `error` frame (WebSocket) describes."""
    said = answer.get("status")
    status = status if status is not None else said if isinstance(said, int) else None
    code = answer.get("code")
    known = BY_CODE.get(code) if isinstance(code, str) else None
    error = known or _family(status)
    message = answer.get("detail") or answer.get("message") or answer.get("title") or f"status {status}"
    retryable = answer.get("retryable")
    return error(
        str(message),
        code=code if isinstance(code, str) else None,
        status=status,
        retryable=retryable if isinstance(retryable, bool) else None,
        field=_if(str, answer.get("field")),
        limit=_if(int, answer.get("limit")),
        index=_if(int, answer.get("index")),
        details={key: value for key, value in answer.items() if key not in _PROBLEM_FIELDS},
        retry_after_seconds=retry_after_seconds,
    )


def error_of_close(close_code: int, reason: str) -> EngramError:
    """The error that a closed WebSocket means: 4500 to 4999, 1002, 1007 and 1009 will not get better by themselves."""
    retryable = not (4500 <= close_code <= 4999 or close_code in (1002, 1007, 1009))
    code = reason.partition(":")[0].partition(" ")[0]
    error = BY_CODE.get(code) or BY_CLOSE_CODE.get(close_code) or EngramConnectionError
    return error(f"the bus closed the connection: {close_code} {reason}".rstrip(), retryable=retryable)


def _family(status: int | None) -> type[EngramError]:
    match status:
        case None:
            return EngramError
        case 404:
            return NotFound
        case 409 | 412:
            return Conflict
        case 429:
            return Unavailable
        case _ if 400 <= status < 500:
            return Invalid
        case _:
            return Unavailable


def _if(wanted: type[T], value: object) -> T | None:
    return value if isinstance(value, wanted) else None
