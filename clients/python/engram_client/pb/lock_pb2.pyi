import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Lock(_message.Message):
    __slots__ = ("lock_id", "resource", "holder_agent", "mode", "fencing_token", "acquired_seq", "granted_at", "expires_at", "remaining_seconds", "reason", "context_id")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        EXCLUSIVE: _ClassVar[Lock.Mode]
        SHARED: _ClassVar[Lock.Mode]
    EXCLUSIVE: Lock.Mode
    SHARED: Lock.Mode
    LOCK_ID_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_AGENT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ACQUIRED_SEQ_FIELD_NUMBER: _ClassVar[int]
    GRANTED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    lock_id: str
    resource: str
    holder_agent: str
    mode: Lock.Mode
    fencing_token: int
    acquired_seq: int
    granted_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    remaining_seconds: float
    reason: str
    context_id: str
    def __init__(self, lock_id: _Optional[str] = ..., resource: _Optional[str] = ..., holder_agent: _Optional[str] = ..., mode: _Optional[_Union[Lock.Mode, str]] = ..., fencing_token: _Optional[int] = ..., acquired_seq: _Optional[int] = ..., granted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., remaining_seconds: _Optional[float] = ..., reason: _Optional[str] = ..., context_id: _Optional[str] = ...) -> None: ...

class LockWait(_message.Message):
    __slots__ = ("wait_id", "resources", "agent_id", "mode", "queued_at", "deadline", "reason")
    WAIT_ID_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    QUEUED_AT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    wait_id: str
    resources: _containers.RepeatedScalarFieldContainer[str]
    agent_id: str
    mode: Lock.Mode
    queued_at: _timestamp_pb2.Timestamp
    deadline: _timestamp_pb2.Timestamp
    reason: str
    def __init__(self, wait_id: _Optional[str] = ..., resources: _Optional[_Iterable[str]] = ..., agent_id: _Optional[str] = ..., mode: _Optional[_Union[Lock.Mode, str]] = ..., queued_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class AcquireLockRequest(_message.Message):
    __slots__ = ("resources", "agent_id", "ttl_seconds", "mode", "wait_seconds", "reason", "context_id", "session")
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    resources: _containers.RepeatedScalarFieldContainer[str]
    agent_id: str
    ttl_seconds: float
    mode: Lock.Mode
    wait_seconds: float
    reason: str
    context_id: str
    session: str
    def __init__(self, resources: _Optional[_Iterable[str]] = ..., agent_id: _Optional[str] = ..., ttl_seconds: _Optional[float] = ..., mode: _Optional[_Union[Lock.Mode, str]] = ..., wait_seconds: _Optional[float] = ..., reason: _Optional[str] = ..., context_id: _Optional[str] = ..., session: _Optional[str] = ...) -> None: ...

class AcquireLockResponse(_message.Message):
    __slots__ = ("locks", "extended", "applied_seq")
    LOCKS_FIELD_NUMBER: _ClassVar[int]
    EXTENDED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    locks: _containers.RepeatedCompositeFieldContainer[Lock]
    extended: bool
    applied_seq: int
    def __init__(self, locks: _Optional[_Iterable[_Union[Lock, _Mapping]]] = ..., extended: _Optional[bool] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class HoldSessionRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class HoldSessionResponse(_message.Message):
    __slots__ = ("session", "id")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    session: str
    id: int
    def __init__(self, session: _Optional[str] = ..., id: _Optional[int] = ...) -> None: ...

class RefreshLockRequest(_message.Message):
    __slots__ = ("lock_id", "agent_id", "ttl_seconds", "resource")
    LOCK_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    lock_id: str
    agent_id: str
    ttl_seconds: float
    resource: str
    def __init__(self, lock_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., ttl_seconds: _Optional[float] = ..., resource: _Optional[str] = ...) -> None: ...

class RefreshLockResponse(_message.Message):
    __slots__ = ("locks", "applied_seq")
    LOCKS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    locks: _containers.RepeatedCompositeFieldContainer[Lock]
    applied_seq: int
    def __init__(self, locks: _Optional[_Iterable[_Union[Lock, _Mapping]]] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class ReleaseLockRequest(_message.Message):
    __slots__ = ("lock_id", "agent_id", "resource")
    LOCK_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    lock_id: str
    agent_id: str
    resource: str
    def __init__(self, lock_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., resource: _Optional[str] = ...) -> None: ...

class ReleaseLockResponse(_message.Message):
    __slots__ = ("released", "applied_seq")
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    released: bool
    applied_seq: int
    def __init__(self, released: _Optional[bool] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class BreakLockRequest(_message.Message):
    __slots__ = ("resource", "agent_id", "reason", "lock_id")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LOCK_ID_FIELD_NUMBER: _ClassVar[int]
    resource: str
    agent_id: str
    reason: str
    lock_id: str
    def __init__(self, resource: _Optional[str] = ..., agent_id: _Optional[str] = ..., reason: _Optional[str] = ..., lock_id: _Optional[str] = ...) -> None: ...

class BreakLockResponse(_message.Message):
    __slots__ = ("lock_ids", "applied_seq")
    LOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    lock_ids: _containers.RepeatedScalarFieldContainer[str]
    applied_seq: int
    def __init__(self, lock_ids: _Optional[_Iterable[str]] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class GetLockRequest(_message.Message):
    __slots__ = ("resource", "token", "min_seq", "timeout_ms")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQ_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    resource: str
    token: int
    min_seq: int
    timeout_ms: int
    def __init__(self, resource: _Optional[str] = ..., token: _Optional[int] = ..., min_seq: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class GetLockResponse(_message.Message):
    __slots__ = ("resource", "holders", "holder_count", "queue_length", "queue", "valid", "applied_seq")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    HOLDER_COUNT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    VALID_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    resource: str
    holders: _containers.RepeatedCompositeFieldContainer[Lock]
    holder_count: int
    queue_length: int
    queue: _containers.RepeatedCompositeFieldContainer[LockWait]
    valid: bool
    applied_seq: int
    def __init__(self, resource: _Optional[str] = ..., holders: _Optional[_Iterable[_Union[Lock, _Mapping]]] = ..., holder_count: _Optional[int] = ..., queue_length: _Optional[int] = ..., queue: _Optional[_Iterable[_Union[LockWait, _Mapping]]] = ..., valid: _Optional[bool] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class ListLocksRequest(_message.Message):
    __slots__ = ("holder", "prefix", "limit", "page", "min_seq", "timeout_ms")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQ_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    holder: str
    prefix: str
    limit: int
    page: str
    min_seq: int
    timeout_ms: int
    def __init__(self, holder: _Optional[str] = ..., prefix: _Optional[str] = ..., limit: _Optional[int] = ..., page: _Optional[str] = ..., min_seq: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class ListLocksResponse(_message.Message):
    __slots__ = ("locks", "next_page", "applied_seq")
    LOCKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    locks: _containers.RepeatedCompositeFieldContainer[Lock]
    next_page: str
    applied_seq: int
    def __init__(self, locks: _Optional[_Iterable[_Union[Lock, _Mapping]]] = ..., next_page: _Optional[str] = ..., applied_seq: _Optional[int] = ...) -> None: ...
