from engram_client.pb import unit_pb2 as _unit_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SearchRequest(_message.Message):
    __slots__ = ("query", "mode", "limit", "context_id", "agent_id", "type", "kind", "resource", "meta", "related_to", "after_seq", "before_seq", "after_ts", "before_ts", "page", "as_of_seq", "min_seq", "timeout_ms", "facets", "explain", "include", "max_tokens", "fusion", "vector_weight", "rank_constant", "half_life_ms", "recency_weight", "neighbour_weight", "distinct", "stale")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        HYBRID: _ClassVar[SearchRequest.Mode]
        KEYWORD: _ClassVar[SearchRequest.Mode]
        SEMANTIC: _ClassVar[SearchRequest.Mode]
    HYBRID: SearchRequest.Mode
    KEYWORD: SearchRequest.Mode
    SEMANTIC: SearchRequest.Mode
    class Fusion(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        Z: _ClassVar[SearchRequest.Fusion]
        RRF: _ClassVar[SearchRequest.Fusion]
        RELATIVE: _ClassVar[SearchRequest.Fusion]
    Z: SearchRequest.Fusion
    RRF: SearchRequest.Fusion
    RELATIVE: SearchRequest.Fusion
    class Include(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        IDS: _ClassVar[SearchRequest.Include]
        UNITS: _ClassVar[SearchRequest.Include]
    IDS: SearchRequest.Include
    UNITS: SearchRequest.Include
    class MetaEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    QUERY_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    RELATED_TO_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    BEFORE_SEQ_FIELD_NUMBER: _ClassVar[int]
    AFTER_TS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_TS_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    AS_OF_SEQ_FIELD_NUMBER: _ClassVar[int]
    MIN_SEQ_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FUSION_FIELD_NUMBER: _ClassVar[int]
    VECTOR_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    RANK_CONSTANT_FIELD_NUMBER: _ClassVar[int]
    HALF_LIFE_MS_FIELD_NUMBER: _ClassVar[int]
    RECENCY_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOUR_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DISTINCT_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    query: str
    mode: SearchRequest.Mode
    limit: int
    context_id: _containers.RepeatedScalarFieldContainer[str]
    agent_id: _containers.RepeatedScalarFieldContainer[str]
    type: _containers.RepeatedScalarFieldContainer[_unit_pb2.WorkUnit.Type]
    kind: _containers.RepeatedScalarFieldContainer[str]
    resource: _containers.RepeatedScalarFieldContainer[str]
    meta: _containers.ScalarMap[str, str]
    related_to: _containers.RepeatedScalarFieldContainer[str]
    after_seq: int
    before_seq: int
    after_ts: str
    before_ts: str
    page: str
    as_of_seq: int
    min_seq: int
    timeout_ms: int
    facets: bool
    explain: bool
    include: SearchRequest.Include
    max_tokens: int
    fusion: SearchRequest.Fusion
    vector_weight: float
    rank_constant: float
    half_life_ms: int
    recency_weight: float
    neighbour_weight: float
    distinct: bool
    stale: bool
    def __init__(self, query: _Optional[str] = ..., mode: _Optional[_Union[SearchRequest.Mode, str]] = ..., limit: _Optional[int] = ..., context_id: _Optional[_Iterable[str]] = ..., agent_id: _Optional[_Iterable[str]] = ..., type: _Optional[_Iterable[_Union[_unit_pb2.WorkUnit.Type, str]]] = ..., kind: _Optional[_Iterable[str]] = ..., resource: _Optional[_Iterable[str]] = ..., meta: _Optional[_Mapping[str, str]] = ..., related_to: _Optional[_Iterable[str]] = ..., after_seq: _Optional[int] = ..., before_seq: _Optional[int] = ..., after_ts: _Optional[str] = ..., before_ts: _Optional[str] = ..., page: _Optional[str] = ..., as_of_seq: _Optional[int] = ..., min_seq: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., facets: _Optional[bool] = ..., explain: _Optional[bool] = ..., include: _Optional[_Union[SearchRequest.Include, str]] = ..., max_tokens: _Optional[int] = ..., fusion: _Optional[_Union[SearchRequest.Fusion, str]] = ..., vector_weight: _Optional[float] = ..., rank_constant: _Optional[float] = ..., half_life_ms: _Optional[int] = ..., recency_weight: _Optional[float] = ..., neighbour_weight: _Optional[float] = ..., distinct: _Optional[bool] = ..., stale: _Optional[bool] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("results", "total", "applied_seq", "next_page", "facets", "degraded")
    class FacetsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Facet
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Facet, _Mapping]] = ...) -> None: ...
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[SearchResult]
    total: int
    applied_seq: int
    next_page: str
    facets: _containers.MessageMap[str, Facet]
    degraded: bool
    def __init__(self, results: _Optional[_Iterable[_Union[SearchResult, _Mapping]]] = ..., total: _Optional[int] = ..., applied_seq: _Optional[int] = ..., next_page: _Optional[str] = ..., facets: _Optional[_Mapping[str, Facet]] = ..., degraded: _Optional[bool] = ...) -> None: ...

class Facet(_message.Message):
    __slots__ = ("counts",)
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.ScalarMap[str, int]
    def __init__(self, counts: _Optional[_Mapping[str, int]] = ...) -> None: ...

class SearchResult(_message.Message):
    __slots__ = ("unit_id", "seq", "score", "tokens", "keyword", "vector", "highlights", "duplicates", "explain", "unit")
    UNIT_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEYWORD_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    HIGHLIGHTS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    unit_id: str
    seq: int
    score: float
    tokens: int
    keyword: SearchLeg
    vector: SearchLeg
    highlights: _containers.RepeatedCompositeFieldContainer[Highlight]
    duplicates: int
    explain: SearchExplained
    unit: _unit_pb2.WorkUnit
    def __init__(self, unit_id: _Optional[str] = ..., seq: _Optional[int] = ..., score: _Optional[float] = ..., tokens: _Optional[int] = ..., keyword: _Optional[_Union[SearchLeg, _Mapping]] = ..., vector: _Optional[_Union[SearchLeg, _Mapping]] = ..., highlights: _Optional[_Iterable[_Union[Highlight, _Mapping]]] = ..., duplicates: _Optional[int] = ..., explain: _Optional[_Union[SearchExplained, _Mapping]] = ..., unit: _Optional[_Union[_unit_pb2.WorkUnit, _Mapping]] = ...) -> None: ...

class SearchLeg(_message.Message):
    __slots__ = ("rank", "score")
    RANK_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    score: float
    def __init__(self, rank: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...

class Highlight(_message.Message):
    __slots__ = ("text", "spans")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    text: str
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    def __init__(self, text: _Optional[str] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("first", "end")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    first: int
    end: int
    def __init__(self, first: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class SearchExplained(_message.Message):
    __slots__ = ("fusion", "vector_weight", "keyword_part", "vector_part", "neighbour_part", "recency_part")
    FUSION_FIELD_NUMBER: _ClassVar[int]
    VECTOR_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    KEYWORD_PART_FIELD_NUMBER: _ClassVar[int]
    VECTOR_PART_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOUR_PART_FIELD_NUMBER: _ClassVar[int]
    RECENCY_PART_FIELD_NUMBER: _ClassVar[int]
    fusion: SearchRequest.Fusion
    vector_weight: float
    keyword_part: float
    vector_part: float
    neighbour_part: float
    recency_part: float
    def __init__(self, fusion: _Optional[_Union[SearchRequest.Fusion, str]] = ..., vector_weight: _Optional[float] = ..., keyword_part: _Optional[float] = ..., vector_part: _Optional[float] = ..., neighbour_part: _Optional[float] = ..., recency_part: _Optional[float] = ...) -> None: ...

class RebuildSearchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RebuildSearchResponse(_message.Message):
    __slots__ = ("search",)
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    search: SearchStatus
    def __init__(self, search: _Optional[_Union[SearchStatus, _Mapping]] = ...) -> None: ...

class SearchStatus(_message.Message):
    __slots__ = ("taken_seq", "lag_units", "lag_ms", "generation", "rebuilt_seq", "embedder", "embedder_lag_units", "embedder_trouble")
    TAKEN_SEQ_FIELD_NUMBER: _ClassVar[int]
    LAG_UNITS_FIELD_NUMBER: _ClassVar[int]
    LAG_MS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REBUILT_SEQ_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_LAG_UNITS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_TROUBLE_FIELD_NUMBER: _ClassVar[int]
    taken_seq: int
    lag_units: int
    lag_ms: int
    generation: int
    rebuilt_seq: int
    embedder: str
    embedder_lag_units: int
    embedder_trouble: str
    def __init__(self, taken_seq: _Optional[int] = ..., lag_units: _Optional[int] = ..., lag_ms: _Optional[int] = ..., generation: _Optional[int] = ..., rebuilt_seq: _Optional[int] = ..., embedder: _Optional[str] = ..., embedder_lag_units: _Optional[int] = ..., embedder_trouble: _Optional[str] = ...) -> None: ...
