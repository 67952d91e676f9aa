"""The demo's light encoder: distilled from the aligned foundation on the same pictures, without their names.

The text bank that pseudo-captions come from holds the names and keywords of the seen concepts; which picture belongs to
which of them is left to the teacher. The student's backbone starts from the teacher's own trunk.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from asymcir_benchmarks import derive_triplets
from asymcir_training import Foundation, LightEncoder, load_foundation, load_light_encoder, save_light_encoder
from asymcir_training.foundation.preprocessing import imagenet_preprocessing
from asymcir_training.runs.settings import LoopConfig
from asymcir_training.teacher.in_memory import embed_patches, embed_pictures
from asymcir_training.trainers.distil import DistilConfig, distil
from numpy.typing import NDArray

from asymcir_demo.recipe import FOUNDATION_NAME
from asymcir_demo.recipe.concepts import COLOURLESS_STYLES, TRAINED_STYLES, Concept
from asymcir_demo.recipe.foundation import BACKBONE, EXECUTION, SIZE, plain_names, word_names
from asymcir_demo.recipe.render import load_style
from asymcir_demo.recipe.splits import drawn_alike

DISTILLATION = DistilConfig()
"""Losses chosen on the dev split; see training/RESULTS.md."""
SENTENCE_LENGTH = 6
TOKEN_LEARNER_WIDTH = 256
PREPROCESSING = imagenet_preprocessing(SIZE)
GENERAL_MODIFIERS = (
    "is small", "is big", "is old", "is young", "is new", "is broken", "is open", "is closed", "is empty", "is full",
    "is smiling", "is crying", "is laughing", "is angry", "is sad", "is sleeping", "is surprised", "is scared",
    "is sick", "is running", "is walking", "is standing", "is sitting", "is flying", "is swimming", "is dancing",
    "is working", "is wearing a hat", "is wearing glasses", "holds a book", "holds a flower", "holds a heart",
    "plays music", "has wings", "has a tail", "has long hair", "has a crown", "has two people", "has children",
    "has a heart", "is on fire", "is in water", "is in the snow", "is at night", "is in the sun", "is made of wood",
    "is made of metal", "is a girl", "is a boy", "is a child", "is an animal", "is a food", "is a building",
    "is a vehicle", "is a tool", "is round", "is square", "is striped", "is a face", "is a flag", "is upside down",
    "is crossed out",
)  # fmt: skip
_LOG = logging.getLogger(__name__)


def load_pictures(
    folder: Path, concepts: list[Concept], splits: Sequence[str]
) -> dict[str, tuple[NDArray[np.uint8], list[str]]]:
    """Load style -> (pictures, slugs) of the concepts of some splits, in every style but the held-out one.

    A colourless drawing that a concept outside these splits has too, to the pixel, is left out: it would show it.
    """
    known = {concept.slug for concept in concepts}
    seen = {concept.slug for concept in concepts if concept.split in splits}
    found = {}
    for style in TRAINED_STYLES:
        array, slugs = load_style(folder, style)
        alike = drawn_alike(folder, style) if style in COLOURLESS_STYLES else {}
        keep = [i for i, slug in enumerate(slugs) if slug in seen and not (alike.get(slug, set()) & known) - seen]
        found[style] = np.ascontiguousarray(array[keep]), [slugs[i] for i in keep]
    return found


def phrase_bank(concepts: list[Concept]) -> list[str]:
    """List the names and keywords of the training concepts, each once, without the names of the others."""
    held_out = {wording for concept in concepts if concept.split != "train" for wording in plain_names(concept)}
    phrases: dict[str, None] = {}
    for concept in concepts:
        if concept.split == "train":
            for phrase in (word_names(concept)[0], *concept.keywords):
                if phrase.lower() not in held_out:
                    phrases.setdefault(phrase)
    return list(phrases)


def modifier_bank(concepts: list[Concept]) -> list[str]:
    """List the changes that composition consistency draws from: general ones, and those that seen concepts show."""
    triplets = derive_triplets({concept.slug: concept.name for concept in concepts if concept.split == "train"})
    return list(dict.fromkeys([*(triplet.modifier for triplet in triplets), *GENERAL_MODIFIERS]))


def build_student(foundation: Foundation, *, seed: int) -> LightEncoder:
    """Make the light encoder: its backbone starts from the teacher's own trunk, its tokens among the words."""
    torch.manual_seed(seed)
    student = LightEncoder(
        BACKBONE,
        sentence_length=SENTENCE_LENGTH,
        word_width=foundation.word_width,
        width=TOKEN_LEARNER_WIDTH,
        preprocessing=PREPROCESSING,
    )
    student.token_learner.anchor_to_words(foundation.word_embedding_table())
    student.backbone.load_state_dict(foundation.model.visual.trunk.state_dict())
    return student


def distil_student(
    foundation_folder: Path, pictures: Path, concepts: list[Concept], *, epochs: int, seed: int, work: Path, out: Path
) -> dict[str, float]:
    """Distil and save the light encoder; returns what was measured."""
    foundation = load_foundation(f"local-dir:{foundation_folder}")
    arrays = [array for array, _ in load_pictures(pictures, concepts, ("train",)).values()]
    teacher = embed_pictures(foundation, arrays)
    student = build_student(foundation, seed=seed)
    steps = epochs * (len(teacher) // DISTILLATION.batch)
    phrases, modifiers = phrase_bank(concepts), modifier_bank(concepts)
    _LOG.info(
        "distilling on %d pictures, %d phrases, %d modifiers: %d steps",
        len(teacher),
        len(phrases),
        len(modifiers),
        steps,
    )
    distil(
        student,
        foundation,
        pictures=arrays,
        teacher=teacher,
        patches=embed_patches(foundation, arrays) if DISTILLATION.lar_weight else None,
        phrases=phrases,
        modifiers=modifiers,
        config=DISTILLATION,
        loop=LoopConfig(folder=work, steps=steps, seed=seed),
        execution=EXECUTION,
    )
    save_light_encoder(out, student, {"word_space": foundation.word_space(), "foundation": FOUNDATION_NAME})
    saved, _ = load_light_encoder(out)
    parameters = sum(value.numel() for value in saved.parameters())
    return {"pictures": float(len(teacher)), "steps": float(steps), "parameters": float(parameters)}
