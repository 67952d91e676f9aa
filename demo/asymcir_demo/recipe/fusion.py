"""The demo's UNION head: trained from triplets of seen concepts, queries through the distilled light encoder."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from asymcir_benchmarks import derive_triplets
from asymcir_training import UnionHead, load_foundation, load_light_encoder, normalise_pixels, save_union_head
from asymcir_training.runs.settings import LoopConfig
from asymcir_training.teacher.in_memory import embed_pictures
from asymcir_training.trainers.union import UnionConfig, train_union_head

from asymcir_demo.recipe import FOUNDATION_NAME
from asymcir_demo.recipe.concepts import COLOURLESS_STYLES, HELD_OUT_STYLE, Concept
from asymcir_demo.recipe.student import load_pictures

QUERY_STYLE = "openmoji"
_BATCH = 64
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
    numbers: dict[str, int] = {}
    answers = [numbers.setdefault(slug, len(numbers)) for _, slugs in styles.values() for slug in slugs]
    query_pictures, query_slugs = styles[QUERY_STYLE]
    query_rows = {slug: row for row, slug in enumerate(query_slugs)}
    wanted = draw_queries({style: slugs for style, (_, slugs) in styles.items()}, concepts, seed=seed)
    targets = [query.target for query in wanted]
    queries = []
    with torch.no_grad():
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            pixels = torch.from_numpy(np.stack([query_pictures[query_rows[query.reference]] for query in part]))
            tokens = student(normalise_pixels(pixels, student.preprocessing))
            queries.append(foundation.compose_query(tokens, [query.modifier for query in part]))
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


def draw_queries(slugs: Mapping[str, Sequence[str]], concepts: list[Concept], *, seed: int) -> list[TrainingQuery]:
    """Draw the queries that UNION is trained on, asked in QUERY_STYLE.

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
