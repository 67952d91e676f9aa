"""Metadata in an answer: whole numbers, which its message holds as doubles, and no more than a message takes."""

from collections.abc import Mapping, Sequence
from typing import Any

from asymcir_protos.v1 import retrieval_pb2
from google.protobuf.struct_pb2 import Struct

_MAX_EXACT = 2**53
_FIELD_BYTES = 16  # the tags and lengths around a hit's metadata, at most


def add_metadata(
    response: retrieval_pb2.SearchResponse, records: Sequence[Mapping[str, Any]], *, most_bytes: int
) -> None:
    """Add metadata to the hits of an answer, the best first, as far as it fits; mark the hits that go without.

    Args:
        response: complete but for this.
        records: one for each hit; an empty one is sent as such.
        most_bytes: of the whole answer.
    """
    room = most_bytes - response.ByteSize() - _FIELD_BYTES * len(response.hits)
    for hit, record in zip(response.hits, records, strict=True):
        message = Struct()
        message.update(mark_inexact(record))
        if (size_bytes := message.ByteSize()) > room:
            hit.metadata_left_out = True
            continue
        room -= size_bytes
        hit.metadata.CopyFrom(message)
        hit.metadata.SetInParent()


def mark_inexact(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata in which a whole number that a double does not hold is a text of its digits.

    So nothing is rounded on the way; protobuf's JSON writes 64-bit numbers as texts for the same reason. A whole number
    beyond 2^53 is sent so even where a double happens to hold it: the form does not depend on the last digits.
    """
    return {key: _mark(value) for key, value in record.items()}


def _mark(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mark(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_mark(held) for held in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MAX_EXACT:
        return str(value)
    return value
