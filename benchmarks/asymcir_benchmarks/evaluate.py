"""EmojiCIR through the exported bundles: the composed query against every baseline, on the same gallery.

Nothing here knows torch: tokens come from the device bundle, texts and the baselines' picture embeddings from the
server bundle, ranks from the gallery's own index.

Notation: q queries, E joint-embedding width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from asymcir_edge import QueryEncoder
from asymcir_protos import pack_tokens, preprocess, read_image, unpack_tokens
from asymcir_server import Gallery, ServerBundle, TextEncoder, VisualEncoder
from numpy.typing import NDArray

from asymcir_benchmarks.emojicir import Triplet
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.metrics import NOT_FOUND, bootstrap_interval, recall_at

METHODS = ("composed", "tokens only", "picture only", "text only", "picture + text", "target's name")
"""The query of each row. "picture" baselines use the server's large visual encoder; "tokens" the device's."""
CUTS = (1, 5, 10)
_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Ranks of the right answer.

    Attributes:
        triplets: q queries.
        ranks: method -> [q], from 1, NOT_FOUND past the last cut.
    """

    triplets: Sequence[Triplet]
    ranks: Mapping[str, NDArray[np.int64]]

    def recall(self, method: str, k: int, family: str | None = None) -> float:
        """R@k of a method, over all queries or over one family."""
        keep = np.array([family in (None, triplet.family) for triplet in self.triplets], dtype=bool)
        return recall_at(self.ranks[method][keep], k)

    def interval(self, method: str, k: int) -> tuple[float, float]:
        """95% interval of R@k over all queries, by resampling them."""
        return bootstrap_interval((self.ranks[method] <= k).astype(np.float64))

    def families(self) -> dict[str, int]:
        """Return family -> how many queries, in the order of first appearance."""
        counts: dict[str, int] = {}
        for triplet in self.triplets:
            counts[triplet.family] = counts.get(triplet.family, 0) + 1
        return counts


def read_triplets(path: Path) -> list[Triplet]:
    """Read triplets from JSON lines.

    Raises:
        BenchmarkError: no such file, or a line that is not a triplet.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise BenchmarkError(f"cannot read the triplets {path}: {exc.strerror}") from exc
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Triplet(**json.loads(line)))
        except (ValueError, TypeError) as exc:
            raise BenchmarkError(f"{path}:{number} is not a triplet with reference, modifier, target, family") from exc
    if not found:
        raise BenchmarkError(f"{path} holds no triplet")
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
) -> Evaluation:
    """Rank every triplet's target under every method; the reference concept is taken out of the gallery.

    Args:
        triplets: q queries.
        pictures: folder of query pictures, SLUG + suffix.
        suffix: ".webp", say.
        names: slug -> name, for the baseline that searches by the target's own name.
        bundle, encoder, gallery: what is measured.
    """
    slugs = sorted({triplet.reference for triplet in triplets})
    pixels = {slug: read_image(pictures / f"{slug}{suffix}") for slug in slugs}
    # The wire's own packing, so that its rounding is part of what is measured.
    tokens = {slug: unpack_tokens(pack_tokens(encoder.encode_image(picture))) for slug, picture in pixels.items()}
    text = TextEncoder(bundle)
    visual = VisualEncoder(bundle)
    large = dict(zip(slugs, _encode_pictures([pixels[slug] for slug in slugs], visual), strict=True))
    modifiers = [triplet.modifier for triplet in triplets]
    query_tokens = [tokens[triplet.reference] for triplet in triplets]
    picture = _normalise(np.stack([large[triplet.reference] for triplet in triplets]))  # [q, E]
    typed = _normalise(text.encode_text(modifiers))
    queries = {
        "composed": text.encode_queries(query_tokens, modifiers),
        "tokens only": text.encode_queries(query_tokens),
        "picture only": picture,
        "text only": typed,
        "picture + text": _normalise(picture + typed),
        "target's name": _normalise(text.encode_text([names[triplet.target] for triplet in triplets])),
    }
    ranks = {method: _rank(queries[method], triplets, gallery) for method in METHODS}
    return Evaluation(triplets=triplets, ranks=ranks)


def evaluate_pictures(
    slugs: Sequence[str], *, pictures: Path, suffix: str, bundle: ServerBundle, encoder: QueryEncoder, gallery: Gallery
) -> Evaluation:
    """Rank each picture's own concept, by its tokens and by the server's large visual encoder: sketches, for one."""
    pixels = [read_image(pictures / f"{slug}{suffix}") for slug in slugs]
    text = TextEncoder(bundle)
    tokens = [unpack_tokens(pack_tokens(encoder.encode_image(picture))) for picture in pixels]
    triplets = [Triplet(reference="", modifier="", target=slug, family="picture") for slug in slugs]
    queries = {
        "tokens only": text.encode_queries(tokens),
        "picture only": _normalise(np.stack(_encode_pictures(pixels, VisualEncoder(bundle)))),
    }
    return Evaluation(
        triplets=triplets, ranks={name: _rank(query, triplets, gallery) for name, query in queries.items()}
    )


def _encode_pictures(pixels: Sequence[NDArray[np.uint8]], visual: VisualEncoder) -> list[NDArray[np.float32]]:
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(pixels), _BATCH):
        part = np.stack([preprocess(picture, visual.preprocessing) for picture in pixels[start : start + _BATCH]])
        found.extend(visual.encode_image(part))
    return found


def _rank(queries: NDArray[np.float32], triplets: Sequence[Triplet], gallery: Gallery) -> NDArray[np.int64]:
    ranks = np.full(len(triplets), NOT_FOUND, dtype=np.int64)
    for number, triplet in enumerate(triplets):
        excluded = [triplet.reference] if triplet.reference else []
        hits = gallery.search(queries[number : number + 1], max(CUTS), excluded).ids[0]
        if triplet.target in hits:
            ranks[number] = hits.index(triplet.target) + 1
    return ranks


def _normalise(features: NDArray[np.float32]) -> NDArray[np.float32]:
    normalised: NDArray[np.float32] = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return normalised
