from engram_client.pb import error_pb2 as _error_pb2
from engram_client.pb import unit_pb2 as _unit_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AppendRequest(_message.Message):
    __slots__ = ("context_id", "agent_id", "type", "kind", "content_type", "payload", "meta", "resources", "relationships", "traceparent", "id", "idempotency_key", "expected_version", "fence")
    class MetaEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    RELATIONSHIPS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    context_id: str
    agent_id: str
    type: _unit_pb2.WorkUnit.Type
    kind: str
    content_type: str
    payload: bytes
    meta: _containers.ScalarMap[str, str]
    resources: _containers.RepeatedScalarFieldContainer[str]
    relationships: _containers.RepeatedCompositeFieldContainer[_unit_pb2.Relationship]
    traceparent: str
    id: str
    idempotency_key: str
    expected_version: int
    fence: Fence
    def __init__(self, context_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., type: _Optional[_Union[_unit_pb2.WorkUnit.Type, str]] = ..., kind: _Optional[str] = ..., content_type: _Optional[str] = ..., payload: _Optional[bytes] = ..., meta: _Optional[_Mapping[str, str]] = ..., resources: _Optional[_Iterable[str]] = ..., relationships: _Optional[_Iterable[_Union[_unit_pb2.Relationship, _Mapping]]] = ..., traceparent: _Optional[str] = ..., id: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., expected_version: _Optional[int] = ..., fence: _Optional[_Union[Fence, _Mapping]] = ...) -> None: ...

class Fence(_message.Message):
    __slots__ = ("resource", "token")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    resource: str
    token: int
    def __init__(self, resource: _Optional[str] = ..., token: _Optional[int] = ...) -> None: ...

class AppendResponse(_message.Message):
    __slots__ = ("work_unit", "durability", "replayed", "applied_seq")
    WORK_UNIT_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    work_unit: _unit_pb2.WorkUnit
    durability: str
    replayed: bool
    applied_seq: int
    def __init__(self, work_unit: _Optional[_Union[_unit_pb2.WorkUnit, _Mapping]] = ..., durability: _Optional[str] = ..., replayed: _Optional[bool] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class AppendBulkRequest(_message.Message):
    __slots__ = ("appends", "atomic", "idempotency_key")
    APPENDS_FIELD_NUMBER: _ClassVar[int]
    ATOMIC_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    appends: _containers.RepeatedCompositeFieldContainer[AppendRequest]
    atomic: bool
    idempotency_key: str
    def __init__(self, appends: _Optional[_Iterable[_Union[AppendRequest, _Mapping]]] = ..., atomic: _Optional[bool] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class AppendBulkResponse(_message.Message):
    __slots__ = ("results", "durability", "replayed", "applied_seq", "without_payloads")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[AppendResult]
    durability: str
    replayed: bool
    applied_seq: int
    without_payloads: bool
    def __init__(self, results: _Optional[_Iterable[_Union[AppendResult, _Mapping]]] = ..., durability: _Optional[str] = ..., replayed: _Optional[bool] = ..., applied_seq: _Optional[int] = ..., without_payloads: _Optional[bool] = ...) -> None: ...

class AppendResult(_message.Message):
    __slots__ = ("work_unit", "error")
    WORK_UNIT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    work_unit: _unit_pb2.WorkUnit
    error: _error_pb2.Error
    def __init__(self, work_unit: _Optional[_Union[_unit_pb2.WorkUnit, _Mapping]] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class AppendStreamRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[AppendStreamItem]
    def __init__(self, items: _Optional[_Iterable[_Union[AppendStreamItem, _Mapping]]] = ...) -> None: ...

class AppendStreamItem(_message.Message):
    __slots__ = ("id", "append")
    ID_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    id: int
    append: AppendRequest
    def __init__(self, id: _Optional[int] = ..., append: _Optional[_Union[AppendRequest, _Mapping]] = ...) -> None: ...

class AppendStreamResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[AppendStreamResult]
    def __init__(self, results: _Optional[_Iterable[_Union[AppendStreamResult, _Mapping]]] = ...) -> None: ...

class AppendStreamResult(_message.Message):
    __slots__ = ("id", "receipt", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    receipt: Receipt
    error: _error_pb2.Error
    def __init__(self, id: _Optional[int] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("unit_id", "context_id", "seq", "version", "durability", "replayed")
    UNIT_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    unit_id: str
    context_id: str
    seq: int
    version: int
    durability: str
    replayed: bool
    def __init__(self, unit_id: _Optional[str] = ..., context_id: _Optional[str] = ..., seq: _Optional[int] = ..., version: _Optional[int] = ..., durability: _Optional[str] = ..., replayed: _Optional[bool] = ...) -> None: ...
