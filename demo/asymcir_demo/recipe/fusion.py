"""The demo's UNION head: trained from triplets of seen concepts, queries through the distilled light encoder."""

import logging
from pathlib import Path

import numpy as np
import torch
from asymcir_benchmarks import derive_triplets
from asymcir_training import UnionHead, load_foundation, load_light_encoder, normalise_pixels, save_union_head
from asymcir_training.distil import embed_pictures
from asymcir_training.loop import LoopConfig
from asymcir_training.union_training import UnionConfig, train_union_head

from asymcir_demo.recipe import FOUNDATION_NAME
from asymcir_demo.recipe.concepts import COLOURLESS_STYLES, HELD_OUT_STYLE, Concept
from asymcir_demo.recipe.student import load_pictures

QUERY_STYLE = "openmoji"
_BATCH = 64
_LOG = logging.getLogger(__name__)


def train_fusion(
    foundation_folder: Path,
    student_folder: Path,
    pictures: Path,
    concepts: list[Concept],
    *,
    epochs: int,
    seed: int,
    work: Path,
    out: Path,
) -> dict[str, float]:
    """Train and save the UNION head; returns what was measured.

    Half of the queries are composed triplets; the other half are pictures alone, whose answer is the same concept in
    other styles: the gallery serves both.
    """
    foundation = load_foundation(f"local-dir:{foundation_folder}")
    student, _ = load_light_encoder(student_folder)
    styles = load_pictures(pictures, concepts, ("train",))
    image_features = embed_pictures(foundation, [array for array, _ in styles.values()])
    # Which pictures show a concept, colourless ones left out: they are never an answer here.
    query_start = 0
    numbers: dict[str, int] = {}
    answers: list[int] = []
    places: dict[str, list[int]] = {}
    for style, (_, slugs) in styles.items():
        if style == QUERY_STYLE:
            query_start = len(answers)
        for slug in slugs:
            if style not in COLOURLESS_STYLES:
                places.setdefault(slug, []).append(len(answers))
            answers.append(numbers.setdefault(slug, len(numbers)))
    query_pictures, query_slugs = styles[QUERY_STYLE]
    query_rows = {slug: row for row, slug in enumerate(query_slugs)}
    triplets = derive_triplets({concept.slug: concept.name for concept in concepts if concept.split == "train"})
    rng = np.random.default_rng(seed)
    wanted = [(triplet.reference, triplet.modifier, triplet.target) for triplet in triplets]
    wanted += [(slug, "", slug) for slug in rng.permutation(sorted(query_rows))[: len(wanted)]]
    # A picture is never its own answer: a concept that only the query style draws asks nothing about itself.
    wanted = [row for row in wanted if row[0] in query_rows and len(places.get(row[2], [])) > (row[0] == row[2])]
    queries, targets = [], []
    with torch.no_grad():
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            pixels = torch.from_numpy(np.stack([query_pictures[query_rows[reference]] for reference, _, _ in part]))
            tokens = student(normalise_pixels(pixels, student.preprocessing))
            queries.append(foundation.compose_query(tokens, [modifier for _, modifier, _ in part]))
            targets += [
                _choose(rng, places[target], own=query_start + query_rows[reference]) for reference, _, target in part
            ]
    torch.manual_seed(seed)
    head = UnionHead(foundation.embedding_width)
    config = UnionConfig()
    steps = epochs * (len(wanted) // config.batch)
    _LOG.info("training UNION on %d queries (held-out style %s unseen): %d steps", len(wanted), HELD_OUT_STYLE, steps)
    train_union_head(
        head,
        queries=torch.cat(queries),
        image_features=image_features,
        null_features=foundation.encode_null().detach(),
        targets=torch.tensor(targets),
        answers=torch.tensor(answers),
        config=config,
        loop=LoopConfig(folder=work, steps=steps, seed=seed),
    )
    save_union_head(out, head, {"word_space": foundation.word_space(), "foundation": FOUNDATION_NAME})
    with torch.no_grad():
        sample = image_features[:: max(1, len(image_features) // 512)]
        _, gate = head(sample, foundation.encode_null().expand(len(sample), -1))
    return {
        "queries": float(len(wanted)),
        "steps": float(steps),
        "gate_mean": gate.mean().item(),
        "gate_std": gate.std().item(),
    }


def _choose(rng: np.random.Generator, places: list[int], *, own: int) -> int:
    """Draw one of a concept's pictures, but not the one that asks."""
    return int(rng.choice([place for place in places if place != own]))
