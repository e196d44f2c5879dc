import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Context(_message.Message):
    __slots__ = ("id", "version", "created_at", "updated_at", "display_name", "agent_ids", "pinned_units", "meta", "fences", "closed")
    class MetaEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    AGENT_IDS_FIELD_NUMBER: _ClassVar[int]
    PINNED_UNITS_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    FENCES_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: int
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    display_name: str
    agent_ids: _containers.RepeatedScalarFieldContainer[str]
    pinned_units: _containers.RepeatedScalarFieldContainer[str]
    meta: _containers.ScalarMap[str, str]
    fences: _containers.RepeatedScalarFieldContainer[str]
    closed: bool
    def __init__(self, id: _Optional[str] = ..., version: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., display_name: _Optional[str] = ..., agent_ids: _Optional[_Iterable[str]] = ..., pinned_units: _Optional[_Iterable[str]] = ..., meta: _Optional[_Mapping[str, str]] = ..., fences: _Optional[_Iterable[str]] = ..., closed: _Optional[bool] = ...) -> None: ...

class GetContextRequest(_message.Message):
    __slots__ = ("context_id", "min_seq", "timeout_ms")
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQ_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    context_id: str
    min_seq: int
    timeout_ms: int
    def __init__(self, context_id: _Optional[str] = ..., min_seq: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class GetContextResponse(_message.Message):
    __slots__ = ("context", "applied_seq")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    context: Context
    applied_seq: int
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class UpdateContextRequest(_message.Message):
    __slots__ = ("context_id", "agent_id", "display_name", "add_agents", "remove_agents", "pin_units", "unpin_units", "meta", "unset_meta", "fences", "closed", "expected_version", "idempotency_key")
    class MetaEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    ADD_AGENTS_FIELD_NUMBER: _ClassVar[int]
    REMOVE_AGENTS_FIELD_NUMBER: _ClassVar[int]
    PIN_UNITS_FIELD_NUMBER: _ClassVar[int]
    UNPIN_UNITS_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    UNSET_META_FIELD_NUMBER: _ClassVar[int]
    FENCES_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    context_id: str
    agent_id: str
    display_name: str
    add_agents: _containers.RepeatedScalarFieldContainer[str]
    remove_agents: _containers.RepeatedScalarFieldContainer[str]
    pin_units: _containers.RepeatedScalarFieldContainer[str]
    unpin_units: _containers.RepeatedScalarFieldContainer[str]
    meta: _containers.ScalarMap[str, str]
    unset_meta: _containers.RepeatedScalarFieldContainer[str]
    fences: FenceGlobs
    closed: bool
    expected_version: int
    idempotency_key: str
    def __init__(self, context_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., display_name: _Optional[str] = ..., add_agents: _Optional[_Iterable[str]] = ..., remove_agents: _Optional[_Iterable[str]] = ..., pin_units: _Optional[_Iterable[str]] = ..., unpin_units: _Optional[_Iterable[str]] = ..., meta: _Optional[_Mapping[str, str]] = ..., unset_meta: _Optional[_Iterable[str]] = ..., fences: _Optional[_Union[FenceGlobs, _Mapping]] = ..., closed: _Optional[bool] = ..., expected_version: _Optional[int] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class FenceGlobs(_message.Message):
    __slots__ = ("globs",)
    GLOBS_FIELD_NUMBER: _ClassVar[int]
    globs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, globs: _Optional[_Iterable[str]] = ...) -> None: ...

class UpdateContextResponse(_message.Message):
    __slots__ = ("context", "replayed", "applied_seq")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    context: Context
    replayed: bool
    applied_seq: int
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., replayed: _Optional[bool] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class ListContextsRequest(_message.Message):
    __slots__ = ("prefix", "limit", "page", "min_seq", "timeout_ms")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQ_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    limit: int
    page: str
    min_seq: int
    timeout_ms: int
    def __init__(self, prefix: _Optional[str] = ..., limit: _Optional[int] = ..., page: _Optional[str] = ..., min_seq: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class ListContextsResponse(_message.Message):
    __slots__ = ("contexts", "next_page", "applied_seq")
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    contexts: _containers.RepeatedCompositeFieldContainer[Context]
    next_page: str
    applied_seq: int
    def __init__(self, contexts: _Optional[_Iterable[_Union[Context, _Mapping]]] = ..., next_page: _Optional[str] = ..., applied_seq: _Optional[int] = ...) -> None: ...
