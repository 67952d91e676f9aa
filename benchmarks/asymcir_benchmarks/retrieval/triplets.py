"""Recall of composed queries over a list of triplets, straight from checkpoints: the papers' own systems beside ours.

This is for research: it needs torch and the foundation, and searches the gallery exactly, in memory. What is shipped
is measured through the bundles (`asymcir eval emojicir`).

Notation: t triplets, N gallery size, E joint-embedding width, P patches.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_training.foundation.model import Foundation
from asymcir_training.models.checkpoints import load_union_head
from asymcir_training.models.union_head import UnionHead
from asymcir_training.pictures.files import PictureFiles
from asymcir_training.teacher.cache import TeacherCache, build_teacher_cache
from asymcir_training.trainers.targets import represent_targets
from asymcir_training.triplets.pictures import gather_gallery
from asymcir_training.triplets.ranking import rank_answers
from asymcir_training.triplets.triplet import PictureTriplet
from numpy.typing import NDArray
from torch import Tensor

from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.retrieval.metrics import Estimate, bootstrap_interval, recall_at
from asymcir_benchmarks.retrieval.query_systems import QuerySystem, check_foundation

CUTS = (1, 5, 10, 50)
_BATCH = 256
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TripletReport:
    """Where the right answers stand.

    Attributes:
        ranks: [t], from 1.
        gallery_size: N, before the reference is taken out.
        unreadable: pictures that could not be read; triplets that need one are not among the t.
    """

    ranks: NDArray[np.int64]
    gallery_size: int
    unreadable: int

    def recall(self, k: int) -> Estimate:
        """R@k and its 95% interval by resampling queries."""
        low, high = bootstrap_interval((self.ranks <= k).astype(np.float64))
        return Estimate(value=recall_at(self.ranks, k), low=low, high=high)

    def median_rank(self) -> float:
        """The rank that half of the queries do not exceed."""
        return float(np.median(self.ranks))


def evaluate_triplets(
    triplets: Sequence[PictureTriplet],
    system: QuerySystem,
    foundation: Foundation,
    *,
    target: str,
    head: UnionHead | None = None,
    folders: Sequence[Path] = (),
    keep_reference: bool = False,
    cache: Path,
    workers: int = 0,
) -> TripletReport:
    """Rank the right answers of triplets under one system.

    Args:
        triplets: t of them; those with a picture that cannot be read are left out, and counted.
        system: makes the queries.
        foundation: makes the gallery.
        target: what stands in the gallery, "union", "sum" or "original".
        head: for "union".
        folders: whose pictures are searched beside the triplets' own.
        keep_reference: leave the reference, and what a triplet excludes, in the ranking.
        cache: folder that keeps what the foundation says about pictures and texts, and the composed queries; that of
            a training run serves too.
        workers: processes that decode; 0: none beside this one.

    Raises:
        BenchmarkError: no triplet whose pictures can all be read.
        DataError: a gallery folder without pictures, "union" without a head, or a modifier that does not fit the
            context.
        CacheError: see `build_teacher_cache`.
    """
    system.check(triplets)
    device = foundation.word_embedding_table().device
    gallery = gather_gallery(triplets, folders)
    options: dict[str, Any] = {"workers": workers, "device": device}
    seen = build_teacher_cache(cache, foundation, PictureFiles(gallery.paths), patches=False, **options)
    # With folders the gallery may be of another kind than the queries, whose pictures are then no part of it.
    references = PictureFiles(list(dict.fromkeys(triplet.reference for triplet in triplets)))
    apart = bool(folders) or system.needs_patches
    asking = (
        build_teacher_cache(cache, foundation, references, patches=system.needs_patches, **options) if apart else seen
    )
    asked = references.paths if apart else gallery.paths
    places = {asked[number].resolve(): row for row, number in enumerate(asking.kept.tolist())}
    askable = [triplet.reference.resolve() in places for triplet in triplets]
    usable, gallery = gallery.restrict(seen.kept.tolist(), askable)
    if not usable:
        raise BenchmarkError(f"none of {len(triplets)} triplets has pictures that can be read: see {seen.folder}")
    if len(usable) < len(triplets):
        _LOG.warning("%d triplets are left out: their pictures cannot be read", len(triplets) - len(usable))
    kept = [triplets[number] for number in usable]
    rows = [places[triplet.reference.resolve()] for triplet in kept]
    queries = system.encode(kept, asking, rows, root=cache, workers=workers)
    targets = _represent(foundation, seen, target, head)
    ranks = rank_answers(queries, targets, gallery.answers, None if keep_reference else gallery.excluded)
    return TripletReport(ranks=ranks.numpy(), gallery_size=len(targets), unreadable=len(seen.problems))


def load_head(checkpoint: Path | None, foundation: Foundation, *, target: str, system: QuerySystem) -> UnionHead | None:
    """Open the UNION head that a target needs.

    Raises:
        BenchmarkError: one is needed and not given, given and not needed, or of another foundation or TransAgg.
        CheckpointError: no such checkpoint, or one of another kind.
    """
    if (target == "union") != (checkpoint is not None):
        way = "needs a UNION head: pass its checkpoint" if checkpoint is None else "has no UNION head: leave it away"
        raise BenchmarkError(f"the target {target} {way} (--union)")
    trained = system.metadata.get("target")
    if trained is not None and trained != target:
        # A comparison that the public code itself makes, whose galleries are always `original`.
        _LOG.warning("this TransAgg learned to find %s targets; the gallery is of %s", trained, target)
    if checkpoint is None:
        return None
    head, metadata = load_union_head(checkpoint)
    check_foundation(checkpoint, metadata, foundation)
    space = system.metadata.get("target_space")
    if trained == "union" and space is not None and space != foundation.target_spaces(head)["union"]:
        raise BenchmarkError(f"the UNION head {checkpoint} is not the one that was trained with this TransAgg")
    return head.to(foundation.word_embedding_table().device)


def report_figures(report: TripletReport, *, system: str, target: str) -> dict[str, float]:
    """Flatten to "SYSTEM, TARGET, R@k" with "low" and "high", the median rank, and the counts."""
    prefix = f"{system}, {target}"
    figures: dict[str, float] = {}
    for k in CUTS:
        estimate = report.recall(k)
        figures[f"{prefix}, R@{k}"] = round(estimate.value, 6)
        figures[f"{prefix}, R@{k} low"] = round(estimate.low, 6)
        figures[f"{prefix}, R@{k} high"] = round(estimate.high, 6)
    figures[f"{prefix}, median rank"] = report.median_rank()
    counts = {"queries": len(report.ranks), "gallery pictures": report.gallery_size, "unreadable": report.unreadable}
    return figures | {f"{prefix}, {name}": float(count) for name, count in counts.items()}


def format_report(report: TripletReport, *, system: str, target: str) -> str:
    """Lay out as lines."""
    lines = [f"{system} in a gallery of {report.gallery_size} ({target}), {len(report.ranks)} queries"]
    for k in CUTS:
        estimate = report.recall(k)
        lines.append(f"{f'R@{k}':<12}{estimate.value:>8.3f}   95% {estimate.low:.3f} to {estimate.high:.3f}")
    return "\n".join([*lines, f"{'median rank':<12}{report.median_rank():>8g}"])


@torch.no_grad()
def _represent(foundation: Foundation, seen: TeacherCache, target: str, head: UnionHead | None) -> Tensor:
    """Make the gallery: [N, E], on the CPU."""
    device = foundation.word_embedding_table().device
    null = foundation.encode_null()
    found = []
    for start in range(0, len(seen.embedding), _BATCH):
        features = torch.from_numpy(np.array(seen.embedding[start : start + _BATCH])).to(device)
        found.append(represent_targets(features, null, target, head).float().cpu())
    return torch.cat(found)
