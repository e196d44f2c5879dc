from engram_client.pb import unit_pb2 as _unit_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetRequest(_message.Message):
    __slots__ = ("id", "min_seq", "timeout_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQ_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    min_seq: int
    timeout_ms: int
    def __init__(self, id: _Optional[str] = ..., min_seq: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("work_unit", "applied_seq")
    WORK_UNIT_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    work_unit: _unit_pb2.WorkUnit
    applied_seq: int
    def __init__(self, work_unit: _Optional[_Union[_unit_pb2.WorkUnit, _Mapping]] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("context_id", "limit", "page", "reverse", "after", "before", "type", "agent", "kind", "min_seq", "timeout_ms")
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    REVERSE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQ_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    context_id: str
    limit: int
    page: str
    reverse: bool
    after: str
    before: str
    type: _containers.RepeatedScalarFieldContainer[_unit_pb2.WorkUnit.Type]
    agent: _containers.RepeatedScalarFieldContainer[str]
    kind: _containers.RepeatedScalarFieldContainer[str]
    min_seq: int
    timeout_ms: int
    def __init__(self, context_id: _Optional[str] = ..., limit: _Optional[int] = ..., page: _Optional[str] = ..., reverse: _Optional[bool] = ..., after: _Optional[str] = ..., before: _Optional[str] = ..., type: _Optional[_Iterable[_Union[_unit_pb2.WorkUnit.Type, str]]] = ..., agent: _Optional[_Iterable[str]] = ..., kind: _Optional[_Iterable[str]] = ..., min_seq: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("work_units", "next_page", "applied_seq")
    WORK_UNITS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    work_units: _containers.RepeatedCompositeFieldContainer[_unit_pb2.WorkUnit]
    next_page: str
    applied_seq: int
    def __init__(self, work_units: _Optional[_Iterable[_Union[_unit_pb2.WorkUnit, _Mapping]]] = ..., next_page: _Optional[str] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class RelatedRequest(_message.Message):
    __slots__ = ("id", "type", "direction", "depth", "min_seq", "timeout_ms")
    class Direction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        BOTH: _ClassVar[RelatedRequest.Direction]
        OUT: _ClassVar[RelatedRequest.Direction]
        IN: _ClassVar[RelatedRequest.Direction]
    BOTH: RelatedRequest.Direction
    OUT: RelatedRequest.Direction
    IN: RelatedRequest.Direction
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQ_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    type: _containers.RepeatedScalarFieldContainer[_unit_pb2.Relationship.Type]
    direction: RelatedRequest.Direction
    depth: int
    min_seq: int
    timeout_ms: int
    def __init__(self, id: _Optional[str] = ..., type: _Optional[_Iterable[_Union[_unit_pb2.Relationship.Type, str]]] = ..., direction: _Optional[_Union[RelatedRequest.Direction, str]] = ..., depth: _Optional[int] = ..., min_seq: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class RelatedResponse(_message.Message):
    __slots__ = ("related", "missing", "truncated", "applied_seq")
    RELATED_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    related: _containers.RepeatedCompositeFieldContainer[RelatedUnit]
    missing: _containers.RepeatedScalarFieldContainer[str]
    truncated: bool
    applied_seq: int
    def __init__(self, related: _Optional[_Iterable[_Union[RelatedUnit, _Mapping]]] = ..., missing: _Optional[_Iterable[str]] = ..., truncated: _Optional[bool] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class RelatedUnit(_message.Message):
    __slots__ = ("work_unit", "relationship", "direction", "depth", "from_id")
    WORK_UNIT_FIELD_NUMBER: _ClassVar[int]
    RELATIONSHIP_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    FROM_ID_FIELD_NUMBER: _ClassVar[int]
    work_unit: _unit_pb2.WorkUnit
    relationship: _unit_pb2.Relationship.Type
    direction: RelatedRequest.Direction
    depth: int
    from_id: str
    def __init__(self, work_unit: _Optional[_Union[_unit_pb2.WorkUnit, _Mapping]] = ..., relationship: _Optional[_Union[_unit_pb2.Relationship.Type, str]] = ..., direction: _Optional[_Union[RelatedRequest.Direction, str]] = ..., depth: _Optional[int] = ..., from_id: _Optional[str] = ...) -> None: ...
