import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkUnit(_message.Message):
    __slots__ = ("seq", "id", "context_id", "version", "agent_id", "type", "ts", "content_type", "kind", "meta", "resources", "relationships", "traceparent", "payload")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[WorkUnit.Type]
        MESSAGE: _ClassVar[WorkUnit.Type]
        REASONING: _ClassVar[WorkUnit.Type]
        TOOL_CALL: _ClassVar[WorkUnit.Type]
        TOOL_RESULT: _ClassVar[WorkUnit.Type]
        FILE_CHANGE: _ClassVar[WorkUnit.Type]
        TASK_STATUS: _ClassVar[WorkUnit.Type]
        ERROR: _ClassVar[WorkUnit.Type]
        SYSTEM: _ClassVar[WorkUnit.Type]
    UNKNOWN: WorkUnit.Type
    MESSAGE: WorkUnit.Type
    REASONING: WorkUnit.Type
    TOOL_CALL: WorkUnit.Type
    TOOL_RESULT: WorkUnit.Type
    FILE_CHANGE: WorkUnit.Type
    TASK_STATUS: WorkUnit.Type
    ERROR: WorkUnit.Type
    SYSTEM: WorkUnit.Type
    class MetaEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    RELATIONSHIPS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    seq: int
    id: str
    context_id: str
    version: int
    agent_id: str
    type: WorkUnit.Type
    ts: _timestamp_pb2.Timestamp
    content_type: str
    kind: str
    meta: _containers.ScalarMap[str, str]
    resources: _containers.RepeatedScalarFieldContainer[str]
    relationships: _containers.RepeatedCompositeFieldContainer[Relationship]
    traceparent: str
    payload: bytes
    def __init__(self, seq: _Optional[int] = ..., id: _Optional[str] = ..., context_id: _Optional[str] = ..., version: _Optional[int] = ..., agent_id: _Optional[str] = ..., type: _Optional[_Union[WorkUnit.Type, str]] = ..., ts: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., content_type: _Optional[str] = ..., kind: _Optional[str] = ..., meta: _Optional[_Mapping[str, str]] = ..., resources: _Optional[_Iterable[str]] = ..., relationships: _Optional[_Iterable[_Union[Relationship, _Mapping]]] = ..., traceparent: _Optional[str] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Relationship(_message.Message):
    __slots__ = ("target_id", "type", "meta")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Relationship.Type]
        SEQUENTIAL: _ClassVar[Relationship.Type]
        CAUSES: _ClassVar[Relationship.Type]
        DEPENDS_ON: _ClassVar[Relationship.Type]
        REFERENCES: _ClassVar[Relationship.Type]
        RESPONDS_TO: _ClassVar[Relationship.Type]
        MODIFIES: _ClassVar[Relationship.Type]
        REPLACES: _ClassVar[Relationship.Type]
    UNSPECIFIED: Relationship.Type
    SEQUENTIAL: Relationship.Type
    CAUSES: Relationship.Type
    DEPENDS_ON: Relationship.Type
    REFERENCES: Relationship.Type
    RESPONDS_TO: Relationship.Type
    MODIFIES: Relationship.Type
    REPLACES: Relationship.Type
    class MetaEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    target_id: str
    type: Relationship.Type
    meta: _containers.ScalarMap[str, str]
    def __init__(self, target_id: _Optional[str] = ..., type: _Optional[_Union[Relationship.Type, str]] = ..., meta: _Optional[_Mapping[str, str]] = ...) -> None: ...
