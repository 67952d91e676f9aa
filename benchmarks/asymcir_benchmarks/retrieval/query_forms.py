"""Searches from a picture of the gallery, and searches with preferences, on EmojiCIR: what weights are worth.

    python -m asymcir_benchmarks.retrieval.query_forms --assets demo/assets --work FOLDER --out RESULT.json

Each composed query is asked in two more ways. From the gallery: the reference is its first picture there instead of a
drawing in an unseen style, and the change's text embedding is added by a weight. In two turns: whoever asked says after
the first answers that they should be less like the best one, where that is wrong, or more like the best that shows the
target's figure in another variant; the picture that was named is left out of the second answers, with weight 0 too.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from asymcir_common import AsymcirError
from asymcir_common.arguments import ArgumentParser
from asymcir_edge import DeviceBundle, QueryEncoder
from asymcir_server import Gallery, ServerBundle, build_gallery
from numpy.typing import NDArray

from asymcir_benchmarks.emojicir.dataset import EmojiCir
from asymcir_benchmarks.emojicir.rules import Triplet
from asymcir_benchmarks.emojicir.towers import Towers, normalise
from asymcir_benchmarks.results import write_result
from asymcir_benchmarks.retrieval.metrics import recall_at
from asymcir_benchmarks.retrieval.ranking import rank_first_answer

SPLITS = ("dev", "test", "novel")
CHANGE_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
MORE_WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0)
LESS_WEIGHTS = (0.0, 0.1, 0.2, 0.5)
CUTS = (1, 10)
_LOG = logging.getLogger(__name__)

Ids = Sequence[frozenset[str]]
Vectors = NDArray[np.float32]


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.retrieval.query_forms", description=__doc__)
    parser.add_argument("--assets", type=Path, required=True, help="the data set's folder, such as demo/assets")
    parser.add_argument("--work", type=Path, required=True, help="for the gallery, kept")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the figures."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        figures = measure(args)
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    write_result(args.out, figures=figures, command="make bench-query-forms")
    return 0


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Return flat figures by split, way and weight."""
    dataset, bundle = EmojiCir.load(args.assets), ServerBundle.load(args.assets / "server")
    folder = args.work / "query-forms"
    if not (folder / "CURRENT").exists():
        build_gallery(dataset.gallery_list, bundle, folder)
    gallery = Gallery.open(folder, bundle.target_spaces)
    towers = Towers(bundle, QueryEncoder(DeviceBundle.load(args.assets / "device")))
    figures: dict[str, float] = {}
    for split in SPLITS:
        _LOG.info("measuring %s", split)
        found = measure_split(dataset, split, towers, gallery)
        figures |= {f"{split}, {name}": round(value, 4) for name, value in found.items()}
    gallery.close()
    return figures


def measure_split(dataset: EmojiCir, split: str, towers: Towers, gallery: Gallery) -> dict[str, float]:
    """Return R@k over all queries of a split, and as the mean of its families, by way and weight."""
    catalogue, triplets = dataset.catalogue, dataset.triplets[split]
    references, changes = [one.reference for one in triplets], [one.modifier for one in triplets]
    answers: Ids = [catalogue.answers(one.target) for one in triplets]
    excluded: Ids = [catalogue.pictures_of(one.reference) for one in triplets]
    typed = towers.encode_texts(changes)
    starts = _look_up(gallery, [sorted(catalogue.pictures_of(reference))[0] for reference in references])
    pictures = towers.encode_pictures({slug: dataset.query(slug) for slug in set(references)}, f"pictures of {split}")
    composed = towers.compose(pictures, references, changes)
    figures: dict[str, float] = {}

    def note(name: str, queries: Vectors, named: Sequence[str | None] | None = None) -> None:
        left_out = excluded
        if named is not None:
            left_out = [ids | {one} if one else ids for ids, one in zip(excluded, named, strict=True)]
        ranks = rank_first_answer(queries.astype(np.float32), answers, left_out, gallery, max(CUTS))
        for cut in CUTS:
            figures[f"{name}, R@{cut}"] = recall_at(ranks, cut)
            figures[f"{name}, families, R@{cut}"] = _mean_of_families(triplets, ranks, cut)

    note("composed", composed)
    for weight in CHANGE_WEIGHTS:
        note(f"from the gallery, change by {weight:g}", normalise(starts + weight * typed))
    first = [
        gallery.search(query[None], max(CUTS), list(ids), every_picture=True).ids[0]
        for query, ids in zip(composed, excluded, strict=True)
    ]
    wrong = [hits[0] if hits[0] not in right else None for hits, right in zip(first, answers, strict=True)]
    alike: list[str | None] = []
    for triplet, hits, right, best in zip(triplets, first, answers, wrong, strict=True):
        figure = catalogue.same_figure(triplet.target) - right
        alike.append(next((one for one in hits if one in figure), None) if best else None)
    for way, named, weights, sign in (("less", wrong, LESS_WEIGHTS, -1.0), ("more", alike, MORE_WEIGHTS, 1.0)):
        figures[f"{way} like one, queries"] = float(sum(one is not None for one in named))
        vectors = _look_up(gallery, [one or hits[0] for one, hits in zip(named, first, strict=True)])
        there = np.array([one is not None for one in named], np.float32)[:, None]
        for weight in weights:
            note(f"{way} like one by {weight:g}", normalise(composed + sign * weight * there * vectors), named)
    return figures


def _mean_of_families(triplets: Sequence[Triplet], ranks: NDArray[np.int64], cut: int) -> float:
    families = np.array([one.family for one in triplets])
    return float(np.mean([recall_at(ranks[families == family], cut) for family in dict.fromkeys(families.tolist())]))


def _look_up(gallery: Gallery, ids: Sequence[str]) -> Vectors:
    held: Mapping[str, Vectors] = gallery.vectors(list(dict.fromkeys(ids)))
    return np.stack([held[one] for one in ids])


if __name__ == "__main__":
    sys.exit(main())
