"""The server bundle's threshold on answers: composed queries searched before and after its towers were made leaner.

Before means the same towers in float32, which parity.py compares with PyTorch; after, what the bundle holds: its text
tower reads the queries, and its visual tower and UNION head make the gallery.

Notation: p query pictures, L sentence tokens, D word-embedding width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_edge import DeviceBundle, QueryEncoder
from numpy.typing import NDArray

from asymcir_export.checks.search_set import MAX_RECALL_LOSS, SearchSet, compare_answers
from asymcir_export.errors import ExportError, ParityError


def open_device(folder: Path | None, search_set: Path, word_space: str) -> QueryEncoder:
    """Open the device bundle that turns the search set's pictures into sentence tokens.

    Args:
        folder: the bundle.
        search_set: for the message.
        word_space: of the server bundle that is written.

    Raises:
        ExportError: no device bundle, or one of another word_space.
        BundleError: it does not load.
    """
    if folder is None:
        raise ExportError(
            f"the search set {search_set} needs a device bundle to read its pictures: pass --device-bundle"
        )
    bundle = DeviceBundle.load(folder)
    if bundle.word_space != word_space:
        raise ExportError(
            f"the device bundle {folder} is of word_space {bundle.word_space[:12]}, the foundation of "
            f"{word_space[:12]}: pass a device bundle that was exported for this foundation"
        )
    return QueryEncoder(bundle)


def check_answers(search_set: Path, device: QueryEncoder, *, original: Path, leaner: Path) -> dict[str, Any]:
    """Search with two server bundles of the same foundation, and compare.

    Args:
        search_set: queries and gallery, see checks/search_set.py.
        device: gives the queries' sentence tokens.
        original: the bundle in float32.
        leaner: the bundle that is judged.

    Returns:
        What `compare_answers` says, and `max_recall_loss`, for the manifest.

    Raises:
        ParityError: R@10 fell by more than MAX_RECALL_LOSS.
    """
    before = SearchSet(search_set, original)
    tokens = encode_pictures(device, before)
    expected = before.search(tokens)
    del before  # its towers, before the others are opened
    record = compare_answers(expected, SearchSet(search_set, leaner).search(tokens))
    check_recall(record)
    return {**record, "max_recall_loss": MAX_RECALL_LOSS}


def encode_pictures(device: QueryEncoder, queries: SearchSet) -> NDArray[np.float32]:
    """Encode the query pictures of a search set: [p, L, D]."""
    return np.stack([device.encode_image(picture) for picture in queries.pictures])


def check_recall(record: Mapping[str, Any]) -> None:
    """Refuse a loss of R@10.

    Raises:
        ParityError: it is above MAX_RECALL_LOSS.
    """
    change = record["recall_at_10_change"]
    if change < -MAX_RECALL_LOSS:
        low, high = record["recall_at_10_change_interval"]
        raise ParityError(
            f"R@10 of {record['queries']} composed queries fell from {record['recall_at_10_original']:.4f} to "
            f"{record['recall_at_10']:.4f} (95%: {low:+.4f} to {high:+.4f}), at most {MAX_RECALL_LOSS} may be lost: "
            "let the towers compute or be stored in more"
        )
