"""What each sentence token is worth: composed queries with some of the tokens, with their mean, and in another order.

Notation: L sentence tokens, D word-embedding width, E joint-embedding width, q queries.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
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
from asymcir_benchmarks.emojicir.sentence_lengths import LengthCost, measure_lengths
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
    """Rank the targets of queries under every change of the tokens.

    Args:
        triplets: q queries; one without a reference asks with the picture of its target.
        tokens: slug -> [L, D], of at least their references, as the wire brings them.
        towers: encode the queries.
        gallery: searched; every picture of the reference concept is taken out.
        catalogue: which pictures answer; without it, the one whose id is the target's slug.

    Returns:
        The names of `change_tokens` -> ranks [q].
    """
    slugs = [triplet.reference or triplet.target for triplet in triplets]
    modifiers = [triplet.modifier for triplet in triplets]
    changed = {slug: change_tokens(rows) for slug, rows in tokens.items()}
    queries = {
        name: towers.compose(
            EncodedPictures(tokens={slug: rows[name] for slug, rows in changed.items()}, large={}), slugs, modifiers
        )
        for name in next(iter(changed.values()))
    }
    return rank_triplets(triplets, queries, gallery, catalogue)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenAblation:
    """What the tokens of a split's pictures are worth.

    Attributes:
        split: of EmojiCIR.
        composed: composed queries, under every change of the tokens.
        identity: pictures that ask for their own concept, without a typed change; None where the split has none.
        costs: of a sentence of 1 to L tokens.
    """

    split: str
    composed: Evaluation
    identity: Evaluation | None
    costs: list[LengthCost]

    def figures(self) -> dict[str, float]:
        """Return name -> number, for result files."""
        found: dict[str, float] = {}
        for name in self.composed.ranks:
            found |= {f"{self.split}, {name}, R@{k}": self.composed.mean_recall(name, k) for k in (1, 10)}
            if self.identity is not None:
                found |= {f"{self.split}, {name}, own concept, R@{k}": self.identity.recall(name, k) for k in (1, 10)}
        for cost in self.costs:
            found |= {f"{cost.length} tokens, {name}": value for name, value in cost.figures().items()}
        return found


def evaluate_tokens(assets: Path, split: str, encoder: QueryEncoder, server_bundle: Path) -> TokenAblation:
    """Rank the queries of a split of EmojiCIR under every change of the tokens, and measure what each length costs.

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
    triplets, own = dataset.triplets[split], dataset.identity.get(split, [])
    tokens = {
        slug: unpack_tokens(pack_tokens(encoder.encode_image(read_image(dataset.query(slug), reader))))
        for slug in sorted({triplet.reference for triplet in triplets} | set(own))
    }
    asked = [Triplet(reference="", modifier="", target=slug, family="picture") for slug in own]
    towers = Towers(bundle, encoder)
    with tempfile.TemporaryDirectory(prefix="asymcir-eval-") as folder:
        target = bundle.default_target
        build_gallery(dataset.gallery_list, bundle, Path(folder), config=BuildConfig(target=target))
        with closing(Gallery.open(Path(folder), bundle.target_spaces)) as gallery:
            return TokenAblation(
                split=split,
                composed=ablate_tokens(triplets, tokens, towers, gallery, dataset.catalogue),
                identity=ablate_tokens(asked, tokens, towers, gallery, dataset.catalogue) if own else None,
                costs=measure_lengths(
                    tokens[triplets[0].reference], [triplet.modifier for triplet in triplets], towers.text_encoder
                ),
            )


def describe_tokens(found: TokenAblation) -> str:
    """Lay out R@1 and R@10 of every change, and the cost of every length."""
    composed, own = found.composed, found.identity
    width = max(len(name) for name in composed.ranks)
    lines = [
        f"{found.split}: composed queries ({len(composed.triplets)}), mean of families"
        + (f"; pictures to their own concept ({len(own.triplets)})" if own else ""),
        f"{'sent':<{width}}    R@1   R@10" + ("   own R@1  R@10" if own else ""),
    ]
    for name in composed.ranks:
        line = f"{name:<{width}}  {composed.mean_recall(name, 1):.3f}  {composed.mean_recall(name, 10):.3f}"
        lines.append(line + (f"     {own.recall(name, 1):.3f} {own.recall(name, 10):.3f}" if own else ""))
    lines += ["", "tokens  bytes (fp16, int8)  text encoder, ms (median, p95)"]
    for cost in found.costs:
        size = f"{cost.fp16_bytes}, {cost.int8_bytes}"
        lines.append(f"{cost.length:>6}  {size:<19} {cost.encode_ms:.2f}, {cost.encode_p95_ms:.2f}")
    return "\n".join(lines)
