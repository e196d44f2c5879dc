"""What can go wrong for a caller: one class, one code, one status on each transport.

EngramError
├── Invalid                    the request itself is at fault; sending it again will not help
│   ├── InvalidRequest         a field is missing, of the wrong type, or has a value that is not allowed
│   ├── TooLarge               a bound of `limits.py` was reached
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
│   ├── VersionMoved           expected_version is not the context's version
│   ├── ContextClosed
│   ├── LockHeld               another agent holds what was asked for, or waited for it first
│   ├── Deadlock               the wait would never end: its holders wait for the one who asks
│   ├── LockLost               the lock is not held any more
│   ├── NotHolder              the lock is another agent's
│   ├── FenceStale             the lock whose token was shown is not held any more
│   ├── FenceRequired          the context asks for a lock on what the unit touches
│   ├── CursorAhead            the cursor lies after the head of the log
│   └── EpochChanged           the cursor is of a history this log does not continue
└── Unavailable                not the caller's fault; the same request may work later
    ├── TooSlow                the request did not come in time
    ├── Busy                   the writer's queue is full, too many connections are open, or a worker lags
    ├── MinSeqTimeout          min_seq was not reached in time
    ├── WaitEnded              a wait for a lock ended without a grant, a refusal or its deadline
    ├── SearchBuilding         the search index is being built and not far enough yet
    ├── SearchUnavailable      the search process is being started
    ├── StorageFull            no room on the disk; appends go on by themselves once there is
    ├── StorageReadOnly        the disk refuses writes
    ├── StorageFailed          the disk failed; appends go on after a restart
    ├── LogSilent              the process that keeps the log does not answer the one that was asked
    ├── LogDamaged             what was read is not what was written
    ├── SlowConsumer           the socket did not take what was sent
    ├── ShuttingDown
    └── InternalError          our mistake
"""

from copy import copy
from typing import Any, ClassVar


class EngramError(Exception):
    """An answer that says no, the same on every transport.

    `field` names the part of the request at fault, `limit` the bound that was reached, `index` the item of a batch;
    `details` holds what a caller can act on (the current version, the head, ...).
    """

    code: ClassVar[str]
    status: ClassVar[int]
    """Of HTTP."""
    close_code: ClassVar[int]
    """Of a WebSocket."""
    grpc: ClassVar[str]
    """The name of the status of gRPC."""
    title: ClassVar[str]
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        limit: int | None = None,
        index: int | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.limit = limit
        self.index = index
        self.details = details

    def at(self, index: int) -> "EngramError":
        """The same refusal, naming the item of the batch it is about."""
        named = copy(self)
        named.index = index
        return named


class Invalid(EngramError):
    status = 400
    close_code = 4500
    grpc = "INVALID_ARGUMENT"


class InvalidRequest(Invalid):
    code = "INVALID_REQUEST"
    title = "The request is not valid"


class TooLarge(Invalid):
    code = "TOO_LARGE"
    status = 413
    close_code = 4513
    title = "A limit was reached"


class HeadersTooLarge(TooLarge):
    code = "HEADERS_TOO_LARGE"
    status = 431
    title = "The request's headers are too large"


class CursorInvalid(Invalid):
    code = "CURSOR_INVALID"
    close_code = 4501
    title = "Not a cursor"


class UnsupportedMedia(Invalid):
    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415
    title = "This content type is not read here"


class MethodNotAllowed(Invalid):
    code = "METHOD_NOT_ALLOWED"
    status = 405
    grpc = "UNIMPLEMENTED"
    title = "The path does not take this method"


class ForbiddenOrigin(Invalid):
    code = "FORBIDDEN_ORIGIN"
    status = 403
    close_code = 4503
    grpc = "PERMISSION_DENIED"
    title = "Web pages of this origin are not let in"


class NotFound(EngramError):
    status = 404
    close_code = 4504
    grpc = "NOT_FOUND"


class RouteNotFound(NotFound):
    code = "NOT_FOUND"
    grpc = "UNIMPLEMENTED"
    title = "No such path"


class UnitNotFound(NotFound):
    code = "UNIT_NOT_FOUND"
    title = "No such work unit"


class ContextNotFound(NotFound):
    code = "CONTEXT_NOT_FOUND"
    title = "No such context"


class LockNotFound(NotFound):
    code = "LOCK_NOT_FOUND"
    title = "No such lock is held"


class Conflict(EngramError):
    status = 409
    close_code = 4509
    grpc = "FAILED_PRECONDITION"


class IdempotencyConflict(Conflict):
    code = "IDEMPOTENCY_CONFLICT"
    grpc = "ALREADY_EXISTS"
    title = "The idempotency key was used with another body"


class IdTaken(Conflict):
    code = "ID_TAKEN"
    grpc = "ALREADY_EXISTS"
    title = "A work unit of this id exists"


class VersionMoved(Conflict):
    code = "VERSION_MOVED"
    status = 412
    grpc = "ABORTED"
    title = "The context has another version"


class ContextClosed(Conflict):
    code = "CONTEXT_CLOSED"
    title = "The context is closed"


class LockHeld(Conflict):
    code = "LOCK_HELD"
    title = "The lock is held"


class Deadlock(Conflict):
    code = "DEADLOCK"
    grpc = "ABORTED"
    title = "The wait would never end"


class LockLost(Conflict):
    code = "LOCK_LOST"
    title = "The lock is not held any more"


class NotHolder(Conflict):
    code = "NOT_HOLDER"
    grpc = "PERMISSION_DENIED"
    title = "The lock is another agent's"


class FenceStale(Conflict):
    code = "FENCE_STALE"
    status = 412
    title = "The lock behind this fence is not held any more"


class FenceRequired(Conflict):
    code = "FENCE_REQUIRED"
    status = 412
    title = "The context asks for a lock on what the unit touches"


class CursorAhead(Conflict):
    code = "CURSOR_AHEAD"
    close_code = 4510
    title = "The cursor lies after the head of the log"


class EpochChanged(Conflict):
    code = "EPOCH_CHANGED"
    close_code = 4511
    title = "The cursor is of a history that this log does not continue"


class Unavailable(EngramError):
    status = 503
    close_code = 4003
    grpc = "UNAVAILABLE"
    retryable = True


class TooSlow(Unavailable):
    code = "REQUEST_TIMEOUT"
    status = 408
    grpc = "DEADLINE_EXCEEDED"
    title = "The request did not come in time"


class Busy(Unavailable):
    code = "BUSY"
    status = 429
    grpc = "RESOURCE_EXHAUSTED"
    title = "The bus has too much to do"


class MinSeqTimeout(Unavailable):
    code = "MIN_SEQ_TIMEOUT"
    title = "min_seq was not reached in time"


class WaitEnded(Unavailable):
    code = "WAIT_ENDED"
    title = "The wait for the lock ended"


class SearchBuilding(Unavailable):
    code = "SEARCH_BUILDING"
    title = "The search index is being built"


class SearchUnavailable(Unavailable):
    code = "SEARCH_UNAVAILABLE"
    title = "Search is being started"


class StorageFull(Unavailable):
    code = "STORAGE_FULL"
    status = 507
    grpc = "RESOURCE_EXHAUSTED"
    title = "No room on the disk"


class StorageReadOnly(Unavailable):
    code = "STORAGE_READ_ONLY"
    title = "The disk refuses writes"


class StorageFailed(Unavailable):
    code = "STORAGE_FAILED"
    title = "The disk failed"


class LogSilent(Unavailable):
    code = "LOG_SILENT"
    title = "The log process does not answer"


class LogDamaged(Unavailable):
    code = "LOG_DAMAGED"
    status = 500
    close_code = 4512
    grpc = "DATA_LOSS"
    retryable = False
    title = "What was read is not what was written"


class SlowConsumer(Unavailable):
    code = "SLOW_CONSUMER"
    close_code = 4008
    title = "The socket did not take what was sent"


class ShuttingDown(Unavailable):
    code = "SHUTTING_DOWN"
    close_code = 4001
    title = "The bus is stopping"


class InternalError(Unavailable):
    code = "INTERNAL"
    status = 500
    close_code = 4000
    grpc = "INTERNAL"
    title = "The bus made a mistake"


class DataDirectoryError(Exception):
    """The data directory cannot be used: in use, damaged, of another format, or on a file system that loses writes.

    Raised at start only, to whoever starts the bus; it never reaches a caller over the wire.
    """


class DataDamaged(DataDirectoryError):
    """What lies in the data directory is not what was written there."""


class BackupError(Exception):
    """A backup or an export cannot be made, or what it should be restored to cannot be.

    Like `DataDirectoryError` it is told to whoever asked for it, never over the wire.
    """


class ImportRefused(BackupError):
    """A line of an exported file is not what an export writes: `line` counts from 1, `field` is what is at fault."""

    def __init__(self, message: str, *, line: int, field: str | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.field = field
