import datetime

from engram_client.pb import search_pb2 as _search_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "epoch", "head", "cursor", "durability", "ready", "reason", "started_at", "uptime_seconds", "contexts", "locks", "lock_waits", "subscribers", "lag_units", "queue_commands", "search", "disk")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    LOCKS_FIELD_NUMBER: _ClassVar[int]
    LOCK_WAITS_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBERS_FIELD_NUMBER: _ClassVar[int]
    LAG_UNITS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_COMMANDS_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    version: str
    epoch: str
    head: int
    cursor: str
    durability: str
    ready: bool
    reason: str
    started_at: _timestamp_pb2.Timestamp
    uptime_seconds: float
    contexts: int
    locks: int
    lock_waits: int
    subscribers: int
    lag_units: int
    queue_commands: int
    search: _search_pb2.SearchStatus
    disk: Disk
    def __init__(self, version: _Optional[str] = ..., epoch: _Optional[str] = ..., head: _Optional[int] = ..., cursor: _Optional[str] = ..., durability: _Optional[str] = ..., ready: _Optional[bool] = ..., reason: _Optional[str] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., uptime_seconds: _Optional[float] = ..., contexts: _Optional[int] = ..., locks: _Optional[int] = ..., lock_waits: _Optional[int] = ..., subscribers: _Optional[int] = ..., lag_units: _Optional[int] = ..., queue_commands: _Optional[int] = ..., search: _Optional[_Union[_search_pb2.SearchStatus, _Mapping]] = ..., disk: _Optional[_Union[Disk, _Mapping]] = ...) -> None: ...

class Disk(_message.Message):
    __slots__ = ("log_bytes", "index_bytes", "free_bytes")
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    INDEX_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    log_bytes: int
    index_bytes: int
    free_bytes: int
    def __init__(self, log_bytes: _Optional[int] = ..., index_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ...) -> None: ...
