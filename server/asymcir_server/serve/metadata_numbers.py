"""Whole numbers of metadata in an answer, whose message holds doubles."""

from collections.abc import Mapping
from typing import Any

_MAX_EXACT = 2**53


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
