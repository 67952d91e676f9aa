"""Distil the light encoder and its token learner from the frozen foundation, on unlabeled images.

GCD and LAR as the paper has them (LAR in its form for CLIP-like models), and composition consistency (ours).

Notation: n pictures, b batch, L sentence tokens, D word-embedding width, E joint-embedding width, P phrases, R patches.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from asymcir_training.backbones import freeze_stages, mixed_styles
from asymcir_training.digests import digest, digest_pictures
from asymcir_training.errors import DataError
from asymcir_training.foundation import Foundation
from asymcir_training.light import LightEncoder
from asymcir_training.loop import LoopConfig, cosine_schedule, parameter_groups, run_steps
from asymcir_training.losses import (
    composition_consistency,
    global_contrastive_distillation,
    local_alignment_regularization,
)
from asymcir_training.pictures import Augmentation, batch_at, draw_views, gather
from asymcir_training.prompts import TOKENS_MODIFIER_PROMPT, TOKENS_PROMPT


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilConfig:
    """Learning rates, batch, loss weights and augmentation of the distillation.

    Attributes:
        gcd_weight, lar_weight, consistency_weight: of the three losses; 0 turns one off.
        identity_weight: of cosine distance between text(tokens) and text("a photo of X"), without a modifier.
        scale: inverse temperature of the in-batch contrasts.
        nearest: the pseudo-caption X is drawn among this many nearest phrases.
        phrase_scale: inverse temperature of that draw, over the phrases' cosines to the picture; 0 draws evenly.
        frozen: modules of the backbone that stay as they are.
        mix_after, mix_share: modules of the backbone after which styles are mixed, and in what share of the pictures.
    """

    batch: int = 96
    backbone_lr: float = 3e-4
    token_learner_lr: float = 1e-3
    weight_decay: float = 0.05
    scale: float = 20.0
    gcd_weight: float = 1.0
    lar_weight: float = 0.0
    consistency_weight: float = 1.0
    identity_weight: float = 0.5
    nearest: int = 1
    phrase_scale: float = 0.0
    clip_norm: float = 5.0
    frozen: tuple[str, ...] = ()
    mix_after: tuple[str, ...] = ()
    mix_share: float = 0.5
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"expected a batch of 1 or more, got {self.batch}")
        if not 0.0 <= self.mix_share <= 1.0:
            raise DataError(f"expected mix_share from 0 to 1, got {self.mix_share}")


@torch.no_grad()
def embed_pictures(foundation: Foundation, pictures: Sequence[NDArray[np.uint8]], batch: int = 64) -> Tensor:
    """Run the frozen visual tower over every picture: [n, E], not normalised."""
    total = sum(len(array) for array in pictures)
    found = []
    for start in range(0, total, batch):
        pixels = gather(pictures, np.arange(start, min(start + batch, total)))  # [b, 3, S, S]
        found.append(foundation.encode_pixels(foundation.normalise_pixels(pixels.permute(0, 2, 3, 1))))
    return torch.cat(found)


@torch.no_grad()
def embed_patches(foundation: Foundation, pictures: Sequence[NDArray[np.uint8]], batch: int = 64) -> Tensor:
    """Run the frozen visual tower's patches over every picture: [n, R, E], float16, L2-normalised."""
    total = sum(len(array) for array in pictures)
    found = []
    for start in range(0, total, batch):
        pixels = gather(pictures, np.arange(start, min(start + batch, total)))
        patches = foundation.encode_patches(foundation.normalise_pixels(pixels.permute(0, 2, 3, 1)))
        found.append(functional.normalize(patches, dim=-1).half())
    return torch.cat(found)


@torch.no_grad()
def embed_texts(foundation: Foundation, texts: Sequence[str], batch: int = 256) -> Tensor:
    """Embed texts: [n, E], L2-normalised."""
    found = [foundation.encode_text(texts[i : i + batch]) for i in range(0, len(texts), batch)]
    return functional.normalize(torch.cat(found), dim=-1)


def embed_phrases(foundation: Foundation, phrases: Sequence[str]) -> Tensor:
    """Embed phrases as "a photo of X": [P, E], L2-normalised."""
    return embed_texts(foundation, [TOKENS_PROMPT.format(tokens=phrase) for phrase in phrases])


def distil(
    student: LightEncoder,
    foundation: Foundation,
    *,
    pictures: Sequence[NDArray[np.uint8]],
    teacher: Tensor,
    patches: Tensor | None = None,
    phrases: Sequence[str],
    modifiers: Sequence[str],
    config: DistilConfig,
    loop: LoopConfig,
) -> None:
    """Train the student in place.

    Args:
        student: its token learner should have been anchored to the word table.
        foundation: frozen.
        pictures: arrays [n_i, S, S, 3] uint8, together n; S is the student's picture side.
        teacher: [n, E], the frozen visual tower's features of the same pictures (of the clean view: the student sees an
            augmented one and must still say what the teacher saw).
        patches: [n, R, E], its patch features of the same view, for LAR.
        phrases: the text bank that pseudo-captions come from.
        modifiers: the changes that composition consistency draws from.
        config, loop: see their classes.

    Raises:
        DataError: a loss that is on lacks its phrases, modifiers or patches.

    Source: ISA, arXiv:2403.01431, for GCD and LAR; composition consistency is ours.
    """
    _check_inputs(config, phrases, modifiers, patches)
    bank = embed_phrases(foundation, phrases) if phrases else teacher.new_zeros(1, teacher.shape[1])
    nearest, shares = nearest_phrases(teacher, bank, min(config.nearest, len(bank)), config.phrase_scale)
    student.train()
    freeze_stages(student.backbone, config.frozen)
    student.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        parameter_groups(
            {student.backbone: config.backbone_lr, student.token_learner: config.token_learner_lr},
            weight_decay=config.weight_decay,
        ),
        eps=1e-6,
    )

    def step(number: int) -> dict[str, float]:
        cosine_schedule(optimizer, number=number, steps=loop.steps, warmup=min(100, loop.steps // 10 + 1))
        index = batch_at(len(teacher), config.batch, seed=loop.seed, number=number)
        tokens = student(draw_views(pictures, index, config.augmentation, student.preprocessing))  # [b, L, D]
        losses = sentence_losses(
            foundation,
            tokens,
            teacher=teacher[index],
            patches=None if patches is None else patches[index],
            chosen=nearest[index].gather(1, torch.multinomial(shares[index], 1))[:, 0],
            bank=bank,
            phrases=phrases,
            modifiers=modifiers,
            config=config,
        )
        loss = torch.stack([weight * value for weight, value in losses.values()]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(student.parameters(), config.clip_norm)
        optimizer.step()
        return {name: value.item() for name, (_, value) in losses.items()} | {"norm": norm.item()}

    inputs = {"features": teacher} | ({} if patches is None else {"patches": patches})
    identity = {
        "trainer": "distil",
        "config": asdict(config),
        "student": student.config,
        "word_space": foundation.word_space(),
        "pictures": digest_pictures(pictures),
        "teacher": digest(weights=inputs, facts={"phrases": [*phrases], "modifiers": [*modifiers]}),
        "start": digest(weights=student.state_dict(), facts={}),
    }
    with mixed_styles(student.backbone, config.mix_after, config.mix_share):
        run_steps(loop, identity=identity, parts={"student": student, "optimizer": optimizer}, step=step)
    student.eval()


def sentence_losses(
    foundation: Foundation,
    tokens: Tensor,
    *,
    teacher: Tensor,
    patches: Tensor | None,
    chosen: Tensor,
    bank: Tensor,
    phrases: Sequence[str],
    modifiers: Sequence[str],
    config: DistilConfig,
) -> dict[str, tuple[float, Tensor]]:
    """Compute the losses of one batch of sentences.

    Args:
        foundation: frozen.
        tokens: [b, L, D], from the student.
        teacher: [b, E], image features of the same pictures.
        patches: [b, R, E], or None without LAR.
        chosen: [b], the phrase of the bank that stands for each picture.
        bank: [P, E], the phrases' embeddings.
        phrases, modifiers, config: as for `distil`.

    Returns:
        Name -> (weight, scalar), of the losses that are on.
    """
    found: dict[str, tuple[float, Tensor]] = {}
    said, places = foundation.compose_with_tokens(tokens)
    if config.gcd_weight:
        found["gcd"] = config.gcd_weight, global_contrastive_distillation(said, teacher, config.scale)
    if config.lar_weight and patches is not None:
        found["lar"] = config.lar_weight, local_alignment_regularization(places, patches.float(), config.scale)
    if config.identity_weight:
        distance = 1.0 - functional.cosine_similarity(said, bank[chosen], dim=-1).mean()
        found["identity"] = config.identity_weight, distance
    if config.consistency_weight:
        drawn = [modifiers[i] for i in torch.randint(len(modifiers), (len(tokens),)).tolist()]
        with torch.no_grad():
            described = foundation.encode_text(
                [
                    TOKENS_MODIFIER_PROMPT.format(tokens=phrases[i], modifier=text)
                    for i, text in zip(chosen.tolist(), drawn, strict=True)
                ]
            )
        composed = foundation.compose_query(tokens, drawn)
        found["consistency"] = config.consistency_weight, composition_consistency(composed, described, config.scale)
    return found


def nearest_phrases(teacher: Tensor, bank: Tensor, count: int, scale: float = 0.0) -> tuple[Tensor, Tensor]:
    """Find the phrases nearest to each picture under the teacher.

    Args:
        teacher: [n, E], any length.
        bank: [P, E], L2-normalised.
        count: phrases per picture.
        scale: inverse temperature of their shares.

    Returns:
        Indices into the bank [n, count], nearest first, and their shares [n, count], which sum to 1.
    """
    normalised = functional.normalize(teacher, dim=-1)
    found = [(part @ bank.T).topk(count, dim=1) for part in normalised.split(1024)]
    shares = (scale * torch.cat([part.values for part in found])).softmax(dim=1)
    return torch.cat([part.indices for part in found]), shares


def _check_inputs(
    config: DistilConfig, phrases: Sequence[str], modifiers: Sequence[str], patches: Tensor | None
) -> None:
    if not (config.gcd_weight or config.lar_weight or config.consistency_weight or config.identity_weight):
        raise DataError("every loss has weight 0: give at least one a weight")
    if (config.consistency_weight or config.identity_weight) and not phrases:
        raise DataError("composition consistency and identity need a text bank: give phrases, or set both weights to 0")
    if config.consistency_weight and not modifiers:
        raise DataError("composition consistency needs modifiers: give some, or set its weight to 0")
    if config.lar_weight and patches is None:
        raise DataError("LAR needs the teacher's patch features: give `embed_patches`, or set its weight to 0")
