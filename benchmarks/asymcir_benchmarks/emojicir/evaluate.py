"""Composed queries and baselines through the exported bundles, on the same gallery.

Nothing here knows torch: tokens come from the device bundle, texts and the baselines' picture embeddings from the
server bundle, ranks from the gallery's own index.

Notation: q queries, E joint-embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from asymcir_edge import QueryEncoder
from asymcir_server import Gallery, ServerBundle
from numpy.typing import NDArray

from asymcir_benchmarks.emojicir.catalogue import Catalogue
from asymcir_benchmarks.emojicir.rows import read_rows
from asymcir_benchmarks.emojicir.rules import Triplet
from asymcir_benchmarks.emojicir.towers import EncodedPictures, Towers, look_up, normalise
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.retrieval.metrics import bootstrap_interval, recall_at
from asymcir_benchmarks.retrieval.ranking import rank_first_answer

METHODS = ("composed", "tokens only", "picture only", "text only", "picture + text", "target's name")
"""The query of each row. "picture" baselines use the server's large visual encoder; "tokens" the device's."""
CUTS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Ranks of the right answer.

    Attributes:
        triplets: q queries.
        ranks: method -> [q], from 1, NOT_FOUND past the last cut.
    """

    triplets: Sequence[Triplet]
    ranks: Mapping[str, NDArray[np.int64]]

    def hits(self, method: str, k: int) -> NDArray[np.float64]:
        """Return 1 for queries whose answer is among the first k, else 0: [q]."""
        return (self.ranks[method] <= k).astype(np.float64)

    def recall(self, method: str, k: int, family: str | None = None) -> float:
        """R@k of a method, over all queries or over one family."""
        keep = np.array([family in (None, triplet.family) for triplet in self.triplets], dtype=bool)
        return recall_at(self.ranks[method][keep], k)

    def mean_recall(self, method: str, k: int) -> float:
        """R@k of a method as the mean over families, each of the same weight."""
        return float(np.mean([self.recall(method, k, family) for family in self.families()]))

    def interval(self, method: str, k: int) -> tuple[float, float]:
        """95% interval of R@k over all queries, by resampling them."""
        return bootstrap_interval(self.hits(method, k))

    def families(self) -> dict[str, int]:
        """Return family -> how many queries, in the order of first appearance."""
        counts: dict[str, int] = {}
        for triplet in self.triplets:
            counts[triplet.family] = counts.get(triplet.family, 0) + 1
        return counts


def read_triplets(path: Path) -> list[Triplet]:
    """Read triplets from JSON lines: reference, modifier, target, family, and split where there are splits.

    Raises:
        BenchmarkError: no such file, or a line that is not a triplet.
    """
    fields = ("reference", "modifier", "target", "family")
    found = []
    for number, row in enumerate(read_rows(path, fields), start=1):
        if not row.keys() <= {*fields, "split"} or not isinstance(row.get("split", ""), str):
            raise BenchmarkError(f"{path}:{number} is not a triplet with {', '.join(fields)} and at most a split more")
        found.append(Triplet(**row))
    return found


def evaluate_triplets(
    triplets: Sequence[Triplet],
    *,
    pictures: Path,
    suffix: str,
    names: Mapping[str, str],
    bundle: ServerBundle,
    encoder: QueryEncoder,
    gallery: Gallery,
    catalogue: Catalogue | None = None,
) -> Evaluation:
    """Rank every triplet's target under every method; the reference concept is taken out of the gallery.

    Args:
        triplets: q queries.
        pictures: folder or archive of query pictures, SLUG + suffix.
        suffix: ".webp", say.
        names: slug -> name, for the baseline that searches by the target's own name.
        bundle, encoder, gallery: what is measured.
        catalogue: which pictures answer a query; without it, the one whose id is the target's slug.
    """
    towers = Towers(bundle, encoder)
    slugs = {triplet.reference for triplet in triplets}
    encoded = towers.encode_pictures({slug: pictures / f"{slug}{suffix}" for slug in slugs}, "query pictures")
    queries = encode_methods(triplets, encoded, names, towers)
    return rank_triplets(triplets, queries, gallery, catalogue)


def evaluate_pictures(
    slugs: Sequence[str],
    *,
    pictures: Path,
    suffix: str,
    bundle: ServerBundle,
    encoder: QueryEncoder,
    gallery: Gallery,
    catalogue: Catalogue | None = None,
) -> Evaluation:
    """Rank each picture's own concept, by its tokens and by the server's large visual encoder: sketches, for one."""
    towers = Towers(bundle, encoder)
    encoded = towers.encode_pictures({slug: pictures / f"{slug}{suffix}" for slug in slugs})
    return rank_pictures(slugs, encoded, towers, gallery, catalogue)


def encode_methods(
    triplets: Sequence[Triplet], pictures: EncodedPictures, names: Mapping[str, str], towers: Towers
) -> dict[str, NDArray[np.float32]]:
    """Make every method's queries.

    Args:
        triplets: q queries.
        pictures: at least their references.
        names: slug -> name, of the targets.
        towers: encode them.

    Returns:
        METHODS -> [q, E], L2-normalised.
    """
    slugs = [triplet.reference for triplet in triplets]
    modifiers = [triplet.modifier for triplet in triplets]
    picture, typed = look_up(pictures, slugs), towers.encode_texts(modifiers)
    return {
        "composed": towers.compose(pictures, slugs, modifiers),
        "tokens only": towers.encode_tokens(pictures, slugs),
        "picture only": picture,
        "text only": typed,
        "picture + text": normalise(picture + typed),
        "target's name": towers.encode_texts([names[triplet.target] for triplet in triplets]),
    }


def rank_triplets(
    triplets: Sequence[Triplet],
    queries: Mapping[str, NDArray[np.float32]],
    gallery: Gallery,
    catalogue: Catalogue | None = None,
) -> Evaluation:
    """Rank the targets of q triplets under each method; every picture of the reference concept is taken out."""
    if catalogue is None:
        answers = [frozenset({triplet.target}) for triplet in triplets]
        excluded = [frozenset({triplet.reference} - {""}) for triplet in triplets]
    else:
        answers = [catalogue.answers(triplet.target) for triplet in triplets]
        excluded = [catalogue.pictures_of(triplet.reference) for triplet in triplets]
    ranks = {
        method: rank_first_answer(vectors, answers, excluded, gallery, max(CUTS)) for method, vectors in queries.items()
    }
    return Evaluation(triplets=triplets, ranks=ranks)


def rank_pictures(
    slugs: Sequence[str],
    pictures: EncodedPictures,
    towers: Towers,
    gallery: Gallery,
    catalogue: Catalogue | None = None,
) -> Evaluation:
    """Rank the own concept of pictures that stand for themselves; nothing is taken out of the gallery."""
    asked = [Triplet(reference="", modifier="", target=slug, family="picture") for slug in slugs]
    queries = {"tokens only": towers.encode_tokens(pictures, slugs), "picture only": look_up(pictures, slugs)}
    return rank_triplets(asked, queries, gallery, catalogue)
