from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("server_version", "word_space", "word_width", "limits", "galleries")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORD_SPACE_FIELD_NUMBER: _ClassVar[int]
    WORD_WIDTH_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    GALLERIES_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    word_space: str
    word_width: int
    limits: Limits
    galleries: _containers.RepeatedCompositeFieldContainer[Gallery]
    def __init__(self, server_version: _Optional[str] = ..., word_space: _Optional[str] = ..., word_width: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., galleries: _Optional[_Iterable[_Union[Gallery, _Mapping]]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_top_k", "max_sentence_length", "max_modifier_bytes", "context_length", "max_excluded_ids", "max_filter_conditions", "max_filter_values", "max_filter_depth")
    MAX_TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_SENTENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_MODIFIER_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_EXCLUDED_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_FILTER_CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_FILTER_VALUES_FIELD_NUMBER: _ClassVar[int]
    MAX_FILTER_DEPTH_FIELD_NUMBER: _ClassVar[int]
    max_top_k: int
    max_sentence_length: int
    max_modifier_bytes: int
    context_length: int
    max_excluded_ids: int
    max_filter_conditions: int
    max_filter_values: int
    max_filter_depth: int
    def __init__(self, max_top_k: _Optional[int] = ..., max_sentence_length: _Optional[int] = ..., max_modifier_bytes: _Optional[int] = ..., context_length: _Optional[int] = ..., max_excluded_ids: _Optional[int] = ..., max_filter_conditions: _Optional[int] = ..., max_filter_values: _Optional[int] = ..., max_filter_depth: _Optional[int] = ...) -> None: ...

class Gallery(_message.Message):
    __slots__ = ("name", "version", "target_space", "target", "size", "embedding_width", "index_kind", "index_recall_at_10", "has_items", "columns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGET_SPACE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_WIDTH_FIELD_NUMBER: _ClassVar[int]
    INDEX_KIND_FIELD_NUMBER: _ClassVar[int]
    INDEX_RECALL_AT_10_FIELD_NUMBER: _ClassVar[int]
    HAS_ITEMS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    target_space: str
    target: str
    size: int
    embedding_width: int
    index_kind: str
    index_recall_at_10: float
    has_items: bool
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., target_space: _Optional[str] = ..., target: _Optional[str] = ..., size: _Optional[int] = ..., embedding_width: _Optional[int] = ..., index_kind: _Optional[str] = ..., index_recall_at_10: _Optional[float] = ..., has_items: bool = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("key", "type")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    key: str
    type: str
    def __init__(self, key: _Optional[str] = ..., type: _Optional[str] = ...) -> None: ...

class SentenceTokens(_message.Message):
    __slots__ = ("length", "width", "fp16", "int8")
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    FP16_FIELD_NUMBER: _ClassVar[int]
    INT8_FIELD_NUMBER: _ClassVar[int]
    length: int
    width: int
    fp16: bytes
    int8: Int8Tokens
    def __init__(self, length: _Optional[int] = ..., width: _Optional[int] = ..., fp16: _Optional[bytes] = ..., int8: _Optional[_Union[Int8Tokens, _Mapping]] = ...) -> None: ...

class Int8Tokens(_message.Message):
    __slots__ = ("values", "scales")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    values: bytes
    scales: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[bytes] = ..., scales: _Optional[_Iterable[float]] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("tokens", "word_space", "modifier", "gallery", "top_k", "excluded_ids", "with_metadata", "target_space", "filter", "every_picture", "collapse_duplicates", "text", "start_id", "preferences", "min_score", "offset")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WORD_SPACE_FIELD_NUMBER: _ClassVar[int]
    MODIFIER_FIELD_NUMBER: _ClassVar[int]
    GALLERY_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_IDS_FIELD_NUMBER: _ClassVar[int]
    WITH_METADATA_FIELD_NUMBER: _ClassVar[int]
    TARGET_SPACE_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EVERY_PICTURE_FIELD_NUMBER: _ClassVar[int]
    COLLAPSE_DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    START_ID_FIELD_NUMBER: _ClassVar[int]
    PREFERENCES_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    tokens: SentenceTokens
    word_space: str
    modifier: str
    gallery: str
    top_k: int
    excluded_ids: _containers.RepeatedScalarFieldContainer[str]
    with_metadata: bool
    target_space: str
    filter: Filter
    every_picture: bool
    collapse_duplicates: bool
    text: str
    start_id: str
    preferences: _containers.RepeatedCompositeFieldContainer[Preference]
    min_score: float
    offset: int
    def __init__(self, tokens: _Optional[_Union[SentenceTokens, _Mapping]] = ..., word_space: _Optional[str] = ..., modifier: _Optional[str] = ..., gallery: _Optional[str] = ..., top_k: _Optional[int] = ..., excluded_ids: _Optional[_Iterable[str]] = ..., with_metadata: bool = ..., target_space: _Optional[str] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., every_picture: bool = ..., collapse_duplicates: bool = ..., text: _Optional[str] = ..., start_id: _Optional[str] = ..., preferences: _Optional[_Iterable[_Union[Preference, _Mapping]]] = ..., min_score: _Optional[float] = ..., offset: _Optional[int] = ...) -> None: ...

class Preference(_message.Message):
    __slots__ = ("id", "weight")
    ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    id: str
    weight: float
    def __init__(self, id: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("all_of", "any_of", "negated", "comparison", "membership", "prefix", "existence")
    ALL_OF_FIELD_NUMBER: _ClassVar[int]
    ANY_OF_FIELD_NUMBER: _ClassVar[int]
    NEGATED_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    EXISTENCE_FIELD_NUMBER: _ClassVar[int]
    all_of: FilterList
    any_of: FilterList
    negated: Filter
    comparison: Comparison
    membership: Membership
    prefix: Prefix
    existence: Existence
    def __init__(self, all_of: _Optional[_Union[FilterList, _Mapping]] = ..., any_of: _Optional[_Union[FilterList, _Mapping]] = ..., negated: _Optional[_Union[Filter, _Mapping]] = ..., comparison: _Optional[_Union[Comparison, _Mapping]] = ..., membership: _Optional[_Union[Membership, _Mapping]] = ..., prefix: _Optional[_Union[Prefix, _Mapping]] = ..., existence: _Optional[_Union[Existence, _Mapping]] = ...) -> None: ...

class FilterList(_message.Message):
    __slots__ = ("filters",)
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    def __init__(self, filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ...) -> None: ...

class Comparison(_message.Message):
    __slots__ = ("key", "operator", "value")
    class Operator(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OPERATOR_UNSPECIFIED: _ClassVar[Comparison.Operator]
        EQUAL: _ClassVar[Comparison.Operator]
        NOT_EQUAL: _ClassVar[Comparison.Operator]
        LESS: _ClassVar[Comparison.Operator]
        LESS_OR_EQUAL: _ClassVar[Comparison.Operator]
        GREATER: _ClassVar[Comparison.Operator]
        GREATER_OR_EQUAL: _ClassVar[Comparison.Operator]
    OPERATOR_UNSPECIFIED: Comparison.Operator
    EQUAL: Comparison.Operator
    NOT_EQUAL: Comparison.Operator
    LESS: Comparison.Operator
    LESS_OR_EQUAL: Comparison.Operator
    GREATER: Comparison.Operator
    GREATER_OR_EQUAL: Comparison.Operator
    KEY_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    operator: Comparison.Operator
    value: Value
    def __init__(self, key: _Optional[str] = ..., operator: _Optional[_Union[Comparison.Operator, str]] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

class Membership(_message.Message):
    __slots__ = ("key", "values")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    key: str
    values: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, key: _Optional[str] = ..., values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class Prefix(_message.Message):
    __slots__ = ("key", "prefix")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    key: str
    prefix: str
    def __init__(self, key: _Optional[str] = ..., prefix: _Optional[str] = ...) -> None: ...

class Existence(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("text", "integer", "real", "boolean")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    BOOLEAN_FIELD_NUMBER: _ClassVar[int]
    text: str
    integer: int
    real: float
    boolean: bool
    def __init__(self, text: _Optional[str] = ..., integer: _Optional[int] = ..., real: _Optional[float] = ..., boolean: bool = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("id", "score", "metadata", "item", "metadata_left_out")
    ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    METADATA_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    id: str
    score: float
    metadata: _struct_pb2.Struct
    item: str
    metadata_left_out: bool
    def __init__(self, id: _Optional[str] = ..., score: _Optional[float] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., item: _Optional[str] = ..., metadata_left_out: bool = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("hits", "gallery", "gallery_version", "timing", "warnings")
    HITS_FIELD_NUMBER: _ClassVar[int]
    GALLERY_FIELD_NUMBER: _ClassVar[int]
    GALLERY_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    gallery: str
    gallery_version: str
    timing: Timing
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., gallery: _Optional[str] = ..., gallery_version: _Optional[str] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ms", "encode_ms", "search_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_MS_FIELD_NUMBER: _ClassVar[int]
    SEARCH_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    encode_ms: float
    search_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., encode_ms: _Optional[float] = ..., search_ms: _Optional[float] = ...) -> None: ...

class AddPicturesRequest(_message.Message):
    __slots__ = ("gallery", "id", "image", "metadata_json", "replace")
    GALLERY_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    gallery: str
    id: str
    image: bytes
    metadata_json: str
    replace: bool
    def __init__(self, gallery: _Optional[str] = ..., id: _Optional[str] = ..., image: _Optional[bytes] = ..., metadata_json: _Optional[str] = ..., replace: bool = ...) -> None: ...

class AddPicturesResponse(_message.Message):
    __slots__ = ("id", "status", "reason", "gallery_version")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[AddPicturesResponse.Status]
        ADDED: _ClassVar[AddPicturesResponse.Status]
        REPLACED: _ClassVar[AddPicturesResponse.Status]
        UNCHANGED: _ClassVar[AddPicturesResponse.Status]
        REJECTED: _ClassVar[AddPicturesResponse.Status]
    STATUS_UNSPECIFIED: AddPicturesResponse.Status
    ADDED: AddPicturesResponse.Status
    REPLACED: AddPicturesResponse.Status
    UNCHANGED: AddPicturesResponse.Status
    REJECTED: AddPicturesResponse.Status
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    GALLERY_VERSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: AddPicturesResponse.Status
    reason: str
    gallery_version: str
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[AddPicturesResponse.Status, str]] = ..., reason: _Optional[str] = ..., gallery_version: _Optional[str] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("gallery", "ids", "filter")
    GALLERY_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    gallery: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    filter: Filter
    def __init__(self, gallery: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ("removed", "missing", "gallery_version")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    GALLERY_VERSION_FIELD_NUMBER: _ClassVar[int]
    removed: int
    missing: _containers.RepeatedScalarFieldContainer[str]
    gallery_version: str
    def __init__(self, removed: _Optional[int] = ..., missing: _Optional[_Iterable[str]] = ..., gallery_version: _Optional[str] = ...) -> None: ...

class UpdateMetadataRequest(_message.Message):
    __slots__ = ("gallery", "updates")
    GALLERY_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    gallery: str
    updates: _containers.RepeatedCompositeFieldContainer[MetadataUpdate]
    def __init__(self, gallery: _Optional[str] = ..., updates: _Optional[_Iterable[_Union[MetadataUpdate, _Mapping]]] = ...) -> None: ...

class MetadataUpdate(_message.Message):
    __slots__ = ("id", "metadata_json")
    ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    id: str
    metadata_json: str
    def __init__(self, id: _Optional[str] = ..., metadata_json: _Optional[str] = ...) -> None: ...

class UpdateMetadataResponse(_message.Message):
    __slots__ = ("updated", "unchanged", "missing", "gallery_version")
    UPDATED_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    GALLERY_VERSION_FIELD_NUMBER: _ClassVar[int]
    updated: int
    unchanged: int
    missing: _containers.RepeatedScalarFieldContainer[str]
    gallery_version: str
    def __init__(self, updated: _Optional[int] = ..., unchanged: _Optional[int] = ..., missing: _Optional[_Iterable[str]] = ..., gallery_version: _Optional[str] = ...) -> None: ...

class CompactRequest(_message.Message):
    __slots__ = ("gallery", "index_kind")
    GALLERY_FIELD_NUMBER: _ClassVar[int]
    INDEX_KIND_FIELD_NUMBER: _ClassVar[int]
    gallery: str
    index_kind: str
    def __init__(self, gallery: _Optional[str] = ..., index_kind: _Optional[str] = ...) -> None: ...

class CompactResponse(_message.Message):
    __slots__ = ("gallery_version", "size", "added", "removed", "updated", "index_kind", "index_recall_at_10")
    GALLERY_VERSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    UPDATED_FIELD_NUMBER: _ClassVar[int]
    INDEX_KIND_FIELD_NUMBER: _ClassVar[int]
    INDEX_RECALL_AT_10_FIELD_NUMBER: _ClassVar[int]
    gallery_version: str
    size: int
    added: int
    removed: int
    updated: int
    index_kind: str
    index_recall_at_10: float
    def __init__(self, gallery_version: _Optional[str] = ..., size: _Optional[int] = ..., added: _Optional[int] = ..., removed: _Optional[int] = ..., updated: _Optional[int] = ..., index_kind: _Optional[str] = ..., index_recall_at_10: _Optional[float] = ...) -> None: ...
