"""What a server answers, as plain frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asymcir_protos.v1 import retrieval_pb2
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

_MAX_EXACT = 2**53


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchHit:
    """One picture of a gallery.

    Attributes:
        id: of the picture.
        score: cosine similarity of the query embedding to the target representation.
        metadata: what the gallery knows of it, empty where that is nothing; None where it was not asked for, or was
            left out. Whole numbers are ints; one that no
            double holds, and a message cannot carry, is a text of its digits.
        item: what the picture shows, where the gallery groups pictures by item; else empty.
        metadata_left_out: it was asked for, and the answer would have been larger than a message may be.
    """

    id: str
    score: float
    metadata: Mapping[str, Any] | None
    item: str = ""
    metadata_left_out: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTiming:
    """Milliseconds: in each stage on the server, and from sending to receiving on the device."""

    queue_ms: float
    encode_ms: float
    search_ms: float
    round_trip_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The answer to one search.

    Attributes:
        hits: best first.
        gallery: the name of the gallery that answered.
        gallery_version: the snapshot of it that answered.
        timing: where the time went.
        request_size_bytes: of the message that was sent.
        warnings: what of the request had no effect, a sentence each.
    """

    hits: tuple[SearchHit, ...]
    gallery: str
    gallery_version: str
    timing: SearchTiming
    request_size_bytes: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerLimits:
    """What a server takes at most; lengths in tokens."""

    max_top_k: int
    max_sentence_length: int
    max_modifier_bytes: int
    context_length: int
    max_excluded_ids: int
    max_filter_conditions: int
    max_filter_values: int
    max_filter_depth: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryDescription:
    """A gallery and the snapshot of it that answers now.

    Attributes:
        index_recall_at_10: as measured when it was built.
        has_items: pictures name items, and hits are grouped by item.
        columns: metadata key -> type, of the keys that can be filtered by.
    """

    name: str
    version: str
    target_space: str
    target: str
    size: int
    embedding_width: int
    index_kind: str
    index_recall_at_10: float
    has_items: bool
    columns: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerDescription:
    """What a server holds.

    Attributes:
        server_version: of asymcir there.
        word_space: the space that sentence tokens must live in.
        word_width: D, the width of a sentence token.
        limits: of a request.
        galleries: the first one answers where a request names none.
    """

    server_version: str
    word_space: str
    word_width: int
    limits: ServerLimits
    galleries: tuple[GalleryDescription, ...]


def read_search_result(
    response: retrieval_pb2.SearchResponse, *, round_trip_ms: float, request_size_bytes: int
) -> SearchResult:
    """Read the answer to a search."""
    return SearchResult(
        hits=tuple(
            SearchHit(
                id=hit.id,
                score=hit.score,
                metadata=_read_metadata(hit.metadata) if hit.HasField("metadata") else None,
                item=hit.item,
                metadata_left_out=hit.metadata_left_out,
            )
            for hit in response.hits
        ),
        gallery=response.gallery,
        gallery_version=response.gallery_version,
        timing=SearchTiming(
            queue_ms=response.timing.queue_ms,
            encode_ms=response.timing.encode_ms,
            search_ms=response.timing.search_ms,
            round_trip_ms=round_trip_ms,
        ),
        request_size_bytes=request_size_bytes,
        warnings=tuple(response.warnings),
    )


def read_description(response: retrieval_pb2.DescribeResponse) -> ServerDescription:
    """Read the answer to a describe call."""
    limits = response.limits
    return ServerDescription(
        server_version=response.server_version,
        word_space=response.word_space,
        word_width=response.word_width,
        limits=ServerLimits(
            max_top_k=limits.max_top_k,
            max_sentence_length=limits.max_sentence_length,
            max_modifier_bytes=limits.max_modifier_bytes,
            context_length=limits.context_length,
            max_excluded_ids=limits.max_excluded_ids,
            max_filter_conditions=limits.max_filter_conditions,
            max_filter_values=limits.max_filter_values,
            max_filter_depth=limits.max_filter_depth,
        ),
        galleries=tuple(
            GalleryDescription(
                name=gallery.name,
                version=gallery.version,
                target_space=gallery.target_space,
                target=gallery.target,
                size=gallery.size,
                embedding_width=gallery.embedding_width,
                index_kind=gallery.index_kind,
                index_recall_at_10=gallery.index_recall_at_10,
                has_items=gallery.has_items,
                columns={column.key: column.type for column in gallery.columns},
            )
            for gallery in response.galleries
        ),
    )


def _read_metadata(metadata: Struct) -> dict[str, Any]:
    record: dict[str, Any] = _restore_whole_numbers(json_format.MessageToDict(metadata))
    return record


def _restore_whole_numbers(value: Any) -> Any:
    """Make ints of the doubles that are whole: JSON tells 20 and 20.0 apart no more than a Struct does."""
    if isinstance(value, dict):
        return {key: _restore_whole_numbers(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_restore_whole_numbers(held) for held in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_EXACT:
        return int(value)
    return value
