"""What a build and an open gallery call: an index from its vectors to the manifest, and back."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import BundleError, Manifest
from numpy.typing import NDArray

from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.indexes.exact import ReadOnlyIndex
from asymcir_server.gallery.indexes.kinds import AUTO, EXACT, KINDS, Effort, IndexConfig, choose_kind
from asymcir_server.gallery.indexes.mapped import MappedIndex
from asymcir_server.gallery.indexes.recall import MIN_RECALL, SearchIndex, make_check
from asymcir_server.gallery.indexes.training import write_index
from asymcir_server.gallery.indexes.tuning import measure_curve

INDEX_NAME = "index.faiss"
_OLD_EXACT = "flat-ip"
"""What snapshots before kinds call exact."""

_log = logging.getLogger(__name__)

__all__ = ["INDEX_NAME", "SearchIndex", "build_index", "open_index"]


def build_index(vectors_path: Path, index_path: Path, config: IndexConfig) -> dict[str, Any]:
    """Build the index of a snapshot, measure it, and choose its search effort.

    Args:
        vectors_path: .npy, [N, E] float32, at least one row.
        index_path: where the index is written; nothing is written for the exact kind.
        config: which kind, and the recall to reach.

    Returns:
        Manifest properties: `index_kind`, `index_recall_at_10` and `index`.

    Raises:
        GalleryBuildError: recall queries that do not fit, a file that cannot be written, or a FAISS that answers
            wrongly.
    """
    exact = ReadOnlyIndex(vectors_path)
    kind = choose_kind(exact.size, exact.width, config.memory_budget_bytes) if config.kind == AUTO else config.kind
    vectors: NDArray[np.float32] = np.load(vectors_path, mmap_mode="r", allow_pickle=False)
    check = make_check(vectors, config.recall_queries)
    queries = {"source": check.source, "count": len(check.queries)}
    if kind == EXACT:
        recall, _error = check.measure(exact.search(check.queries, check.depth)[1], vectors)
        if recall < MIN_RECALL:
            raise GalleryBuildError(
                f"the index finds {recall:.4f} of the true top 10, expected at least {MIN_RECALL}: this machine's "
                "FAISS build answers wrongly, install another faiss-cpu"
            )
        return _describe(kind, recall, {"recall_queries": queries})
    parameters = write_index(kind, exact, index_path)
    index = MappedIndex(index_path, kind, exact, Effort(probes=1, candidates=1))
    curve, chosen = measure_curve(index, vectors, check, config.recall)
    size_bytes = index_path.stat().st_size
    _log.info("index %s: recall@10 %.4f at %s", kind, chosen.recall_at_10, chosen.effort)
    return _describe(
        kind,
        chosen.recall_at_10,
        {
            "parameters": parameters,
            "bytes_per_vector": round(size_bytes / exact.size, 1),
            "effort": {"probes": chosen.effort.probes, "candidates": chosen.effort.candidates},
            "recall_asked": config.recall,
            "recall_queries": queries,
            "recall_curve": [point.to_record() for point in curve],
        },
    )


def open_index(snapshot: Path, vectors_path: Path, manifest: Manifest) -> SearchIndex:
    """Open the index of a snapshot whose files were checked against its manifest.

    Args:
        snapshot: its folder.
        vectors_path: .npy, [N, E] float32.
        manifest: of the snapshot, read and checked.

    Raises:
        BundleError: an unknown kind, or a file that does not fit it.
    """
    exact = ReadOnlyIndex(vectors_path)
    kind = manifest.require("index_kind")
    if kind in (EXACT, _OLD_EXACT):
        return exact
    if kind not in KINDS:
        raise BundleError(
            f"{snapshot} has an index of the kind {kind!r}, this asymcir knows {', '.join(KINDS)}: "
            "build the gallery again, or install the asymcir version that built it"
        )
    if INDEX_NAME not in manifest.files:  # a file that no digest guards is not shown to FAISS
        raise BundleError(f"{snapshot} has no {INDEX_NAME} in its manifest: build the gallery again")
    try:
        effort = Effort(**manifest.properties["index"]["effort"])
    except (KeyError, TypeError) as exc:
        raise BundleError(f"the manifest of {snapshot} has no search effort: build the gallery again") from exc
    return MappedIndex(snapshot / INDEX_NAME, kind, exact, effort)


def _describe(kind: str, recall: float, index: dict[str, Any]) -> dict[str, Any]:
    return {
        "index_kind": kind,
        "index_recall_at_10": recall,
        "index": {"kind": kind, "recall_at_10": recall, **index},
    }
