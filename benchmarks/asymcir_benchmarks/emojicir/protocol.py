"""EmojiCIR, the whole evaluation: composed queries, pictures and sketches by themselves, and the three target types."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asymcir_edge import QueryEncoder
from asymcir_server import BuildConfig, Gallery, ServerBundle, build_gallery

from asymcir_benchmarks.emojicir.dataset import EmojiCir
from asymcir_benchmarks.emojicir.evaluate import Evaluation, encode_methods, rank_pictures, rank_triplets
from asymcir_benchmarks.emojicir.towers import Towers, look_up
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.retrieval.ranking import Rankings, rank_all_relevant

TARGETS = ("union", "original", "sum")
"""Target types; the tables are of the first that the server bundle makes, the others stand beside it."""

SKETCH_METHODS = ("tokens of line art", "large tower of line art", "tokens of colour", "large tower of colour")
PRECISION_CUTS = (1, 5, 10)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitReport:
    """What one split gives.

    Attributes:
        triplets: every method, in the gallery of the first target type.
        composed: target type -> the composed queries alone.
        identity: query pictures that ask for themselves; None where the split has none.
        sketches: SKETCH_METHODS -> rankings in the same gallery; empty where the split has none.
        sketch_targets: target type -> rankings of SKETCH_METHODS[0].
    """

    triplets: Evaluation
    composed: Mapping[str, Evaluation]
    identity: Evaluation | None
    sketches: Mapping[str, Rankings]
    sketch_targets: Mapping[str, Rankings]


def build_galleries(dataset: EmojiCir, bundle: ServerBundle, work: Path) -> dict[str, Gallery]:
    """Build and open the data set's gallery once for each of the bundle's target types, with the server's builder.

    Args:
        dataset: whose gallery.
        bundle: makes the vectors.
        work: the galleries are made in here.

    Raises:
        BenchmarkError: a picture cannot be used.
        GalleryBuildError: a gallery cannot be built.
    """
    galleries: dict[str, Gallery] = {}
    for target in [target for target in TARGETS if target in bundle.target_spaces]:
        folder = work / target
        config = BuildConfig(target=target, replace_space=True)
        report = build_gallery(dataset.gallery_list, bundle, folder, config=config)
        if report.quarantined:
            raise BenchmarkError(
                f"{report.quarantined} of the pictures in {dataset.gallery_list} cannot be used, and figures without "
                f"them would be of another gallery: see {report.snapshot / 'quarantine.jsonl'}"
            )
        _LOG.info("gallery of %s targets: %d pictures in %.0f s", target, report.size, report.elapsed_s)
        galleries[target] = Gallery.open(folder, bundle.target_spaces)
    return galleries


def evaluate_emojicir(
    dataset: EmojiCir,
    *,
    bundle: ServerBundle,
    encoder: QueryEncoder,
    galleries: Mapping[str, Gallery],
    splits: Sequence[str],
) -> dict[str, SplitReport]:
    """Evaluate splits.

    Args:
        dataset: the queries.
        bundle, encoder: what is measured.
        galleries: target type -> gallery, of the data set's own list; the first is what the tables are of.
        splits: at least one of SPLITS.

    Raises:
        BenchmarkError: a split has no composed queries.
    """
    dataset.require(splits)
    towers = Towers(bundle, encoder)
    return {split: _evaluate_split(dataset, split, towers, galleries) for split in splits}


def _evaluate_split(dataset: EmojiCir, split: str, towers: Towers, galleries: Mapping[str, Gallery]) -> SplitReport:
    (first, main), *others = galleries.items()
    catalogue = dataset.catalogue
    triplets, identity = dataset.triplets[split], dataset.identity.get(split, [])
    shown = {triplet.reference for triplet in triplets} | set(identity)
    pictures = towers.encode_pictures({slug: dataset.query(slug) for slug in shown}, f"query pictures of {split}")
    names = {triplet.target: catalogue.name(triplet.target) for triplet in triplets}
    queries = encode_methods(triplets, pictures, names, towers)
    _LOG.info("encoded %d composed queries of %s and their baselines", len(triplets), split)
    evaluation = rank_triplets(triplets, queries, main, catalogue)
    alone = {"composed": queries["composed"]}
    composed = {target: rank_triplets(triplets, alone, gallery, catalogue) for target, gallery in others}
    _LOG.info("ranked the composed queries of %s in %d galleries", split, len(galleries))
    sketches, sketch_targets = _evaluate_sketches(dataset, split, towers, galleries)
    if not identity or not sketches:
        counts = len(identity), len(dataset.sketches.get(split, []))
        _LOG.warning(
            "%s has %d identity queries and %d sketches: figures of what is absent are left out", split, *counts
        )
    return SplitReport(
        triplets=evaluation,
        composed={first: evaluation, **composed},
        identity=rank_pictures(identity, pictures, towers, main, catalogue) if identity else None,
        sketches=sketches,
        sketch_targets=sketch_targets,
    )


def _evaluate_sketches(
    dataset: EmojiCir, split: str, towers: Towers, galleries: Mapping[str, Gallery]
) -> tuple[dict[str, Rankings], dict[str, Rankings]]:
    """Rank every picture of the sketched figure: by line art and by the same drawing in colour."""
    slugs = dataset.sketches.get(split, [])
    if not slugs:
        return {}, {}
    relevant = [dataset.catalogue.same_figure(slug) for slug in slugs]
    lines = towers.encode_pictures({slug: dataset.sketch(slug) for slug in slugs}, f"sketches of {split}")
    colour = towers.encode_pictures({slug: dataset.coloured(slug) for slug in slugs}, f"coloured drawings of {split}")
    tokens = towers.encode_tokens(lines, slugs)
    queries = (tokens, look_up(lines, slugs), towers.encode_tokens(colour, slugs), look_up(colour, slugs))
    (first, main), *rest = galleries.items()
    found = {
        method: rank_all_relevant(vectors, relevant, main)
        for method, vectors in zip(SKETCH_METHODS, queries, strict=True)
    }
    others = {target: rank_all_relevant(tokens, relevant, gallery) for target, gallery in rest}
    _LOG.info("ranked %d sketches of %s in %d galleries", len(slugs), split, len(galleries))
    return found, {first: found[SKETCH_METHODS[0]], **others}
