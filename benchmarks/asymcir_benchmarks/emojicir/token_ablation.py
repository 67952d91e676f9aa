"""What each sentence token is worth: composed queries with some of the tokens, with their mean, and in another order.

Notation: L sentence tokens, D word-embedding width, E joint-embedding width, q queries.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from asymcir_common import read_image
from asymcir_common.places import PathReader
from asymcir_edge import QueryEncoder
from asymcir_protos import pack_tokens, unpack_tokens
from asymcir_server import BuildConfig, Gallery, ServerBundle, build_gallery
from numpy.typing import NDArray

from asymcir_benchmarks.emojicir.catalogue import Catalogue
from asymcir_benchmarks.emojicir.dataset import EmojiCir
from asymcir_benchmarks.emojicir.evaluate import Evaluation, rank_triplets
from asymcir_benchmarks.emojicir.rules import Triplet
from asymcir_benchmarks.emojicir.towers import EncodedPictures, Towers


def change_tokens(tokens: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """List what can be sent in place of a picture's tokens [L, D].

    Returns:
        Name -> [1 or more, D]: all tokens, the first 1 to L - 1, L times their mean, all in reverse order, and all
        without each.
    """
    length = len(tokens)
    changed = {"all tokens": tokens}
    changed |= {f"first {count}": tokens[:count] for count in range(1, length)}
    if length > 1:
        changed["their mean, repeated"] = np.repeat(tokens.mean(axis=0, keepdims=True), length, axis=0)
        changed["reversed"] = np.ascontiguousarray(tokens[::-1])
        changed |= {f"without token {number + 1}": np.delete(tokens, number, axis=0) for number in range(length)}
    return changed


def ablate_tokens(
    triplets: Sequence[Triplet],
    tokens: Mapping[str, NDArray[np.float32]],
    towers: Towers,
    gallery: Gallery,
    catalogue: Catalogue | None = None,
) -> Evaluation:
    """Rank the targets of composed queries under every change of the tokens.

    Args:
        triplets: q queries.
        tokens: slug -> [L, D], of at least their references, as the wire brings them.
        towers: encode the queries.
        gallery: searched; every picture of the reference concept is taken out.
        catalogue: which pictures answer; without it, the one whose id is the target's slug.

    Returns:
        The names of `change_tokens` -> ranks [q].
    """
    slugs, modifiers = [triplet.reference for triplet in triplets], [triplet.modifier for triplet in triplets]
    changed = {slug: change_tokens(rows) for slug, rows in tokens.items()}
    queries = {
        name: towers.compose(
            EncodedPictures(tokens={slug: rows[name] for slug, rows in changed.items()}, large={}), slugs, modifiers
        )
        for name in next(iter(changed.values()))
    }
    return rank_triplets(triplets, queries, gallery, catalogue)


def evaluate_tokens(assets: Path, split: str, encoder: QueryEncoder, server_bundle: Path) -> Evaluation:
    """Rank the composed queries of a split of EmojiCIR under every change of the tokens.

    Args:
        assets: the data set's folder.
        split: which of its splits.
        encoder: makes the tokens.
        server_bundle: of the same foundation; makes the gallery and the queries.

    Raises:
        BenchmarkError: a damaged data set, or one without this split.
        BundleError: the server bundle cannot be opened.
    """
    dataset = EmojiCir.load(assets)
    dataset.require([split])
    bundle, reader = ServerBundle.load(server_bundle), PathReader()
    triplets = dataset.triplets[split]
    tokens = {
        slug: unpack_tokens(pack_tokens(encoder.encode_image(read_image(dataset.query(slug), reader))))
        for slug in sorted({triplet.reference for triplet in triplets})
    }
    with tempfile.TemporaryDirectory(prefix="asymcir-eval-") as folder:
        target = bundle.default_target
        build_gallery(dataset.gallery_list, bundle, Path(folder), config=BuildConfig(target=target))
        with closing(Gallery.open(Path(folder), bundle.target_spaces)) as gallery:
            return ablate_tokens(triplets, tokens, Towers(bundle, encoder), gallery, dataset.catalogue)


def describe_tokens(found: Evaluation, split: str) -> str:
    """Lay out R@1 and R@10 of every change, means over the families."""
    width = max(len(name) for name in found.ranks)
    lines = [
        f"composed queries of {split} ({len(found.triplets)}), mean of families",
        f"{'sent':<{width}}    R@1   R@10",
    ]
    for name in found.ranks:
        lines.append(f"{name:<{width}}  {found.mean_recall(name, 1):.3f}  {found.mean_recall(name, 10):.3f}")
    return "\n".join(lines)
