"""What an exported part is compared by: numbers, pictures, and answers of a search."""

from asymcir_export.checks.agreement import Thresholds, check_agreement
from asymcir_export.checks.parity import (
    check_device_parity,
    check_parity,
    encode_original,
    load_pictures,
    storage_thresholds,
    worst_storage,
)
from asymcir_export.checks.search_set import Answers, SearchSet, compare_answers
from asymcir_export.checks.server_answers import check_answers, encode_pictures, open_device
from asymcir_export.checks.server_parity import check_server_parity

__all__ = [
    "Answers",
    "SearchSet",
    "Thresholds",
    "check_agreement",
    "check_answers",
    "check_device_parity",
    "check_parity",
    "check_server_parity",
    "compare_answers",
    "encode_original",
    "encode_pictures",
    "load_pictures",
    "open_device",
    "storage_thresholds",
    "worst_storage",
]
