from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
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
    __slots__ = ("max_top_k", "max_sentence_length", "max_modifier_bytes", "context_length", "max_excluded_ids")
    MAX_TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_SENTENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_MODIFIER_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_EXCLUDED_IDS_FIELD_NUMBER: _ClassVar[int]
    max_top_k: int
    max_sentence_length: int
    max_modifier_bytes: int
    context_length: int
    max_excluded_ids: int
    def __init__(self, max_top_k: _Optional[int] = ..., max_sentence_length: _Optional[int] = ..., max_modifier_bytes: _Optional[int] = ..., context_length: _Optional[int] = ..., max_excluded_ids: _Optional[int] = ...) -> None: ...

class Gallery(_message.Message):
    __slots__ = ("name", "version", "target_space", "target", "size", "embedding_width", "index_kind", "index_recall_at_10")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGET_SPACE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_WIDTH_FIELD_NUMBER: _ClassVar[int]
    INDEX_KIND_FIELD_NUMBER: _ClassVar[int]
    INDEX_RECALL_AT_10_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    target_space: str
    target: str
    size: int
    embedding_width: int
    index_kind: str
    index_recall_at_10: float
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., target_space: _Optional[str] = ..., target: _Optional[str] = ..., size: _Optional[int] = ..., embedding_width: _Optional[int] = ..., index_kind: _Optional[str] = ..., index_recall_at_10: _Optional[float] = ...) -> None: ...

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
    __slots__ = ("tokens", "word_space", "modifier", "gallery", "top_k", "excluded_ids", "with_metadata", "target_space")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WORD_SPACE_FIELD_NUMBER: _ClassVar[int]
    MODIFIER_FIELD_NUMBER: _ClassVar[int]
    GALLERY_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_IDS_FIELD_NUMBER: _ClassVar[int]
    WITH_METADATA_FIELD_NUMBER: _ClassVar[int]
    TARGET_SPACE_FIELD_NUMBER: _ClassVar[int]
    tokens: SentenceTokens
    word_space: str
    modifier: str
    gallery: str
    top_k: int
    excluded_ids: _containers.RepeatedScalarFieldContainer[str]
    with_metadata: bool
    target_space: str
    def __init__(self, tokens: _Optional[_Union[SentenceTokens, _Mapping]] = ..., word_space: _Optional[str] = ..., modifier: _Optional[str] = ..., gallery: _Optional[str] = ..., top_k: _Optional[int] = ..., excluded_ids: _Optional[_Iterable[str]] = ..., with_metadata: bool = ..., target_space: _Optional[str] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("id", "score", "metadata")
    ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    id: str
    score: float
    metadata: _struct_pb2.Struct
    def __init__(self, id: _Optional[str] = ..., score: _Optional[float] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("hits", "gallery", "gallery_version", "timing")
    HITS_FIELD_NUMBER: _ClassVar[int]
    GALLERY_FIELD_NUMBER: _ClassVar[int]
    GALLERY_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    gallery: str
    gallery_version: str
    timing: Timing
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., gallery: _Optional[str] = ..., gallery_version: _Optional[str] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ms", "encode_ms", "search_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_MS_FIELD_NUMBER: _ClassVar[int]
    SEARCH_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    encode_ms: float
    search_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., encode_ms: _Optional[float] = ..., search_ms: _Optional[float] = ...) -> None: ...
