"""Distil the light encoder and its token learner from the frozen foundation, on unlabeled images.

GCD as the paper has it, and composition consistency beside it (ours; weight 0 turns it off).

Notation: n pictures, b batch, L sentence tokens, D word-embedding width, E joint-embedding width, P phrases.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from asymcir_training.digests import digest, digest_pictures
from asymcir_training.errors import DataError
from asymcir_training.foundation import Foundation
from asymcir_training.light import LightEncoder
from asymcir_training.loop import LoopConfig, cosine_schedule, parameter_groups, run_steps
from asymcir_training.losses import composition_consistency, global_contrastive_distillation
from asymcir_training.pictures import Augmentation, batch_at, draw_views, gather
from asymcir_training.prompts import TOKENS_MODIFIER_PROMPT, TOKENS_PROMPT


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilConfig:
    """Learning rates, batch, loss weights and augmentation of the distillation.

    Attributes:
        consistency_weight: of composition consistency beside GCD; 0 turns it off.
        identity_weight: of cosine distance between text(tokens) and text("a photo of X"), without a modifier.
        scale: inverse temperature of the in-batch contrasts.
        nearest: the pseudo-caption X is drawn among this many nearest phrases.
    """

    batch: int = 96
    backbone_lr: float = 3e-4
    token_learner_lr: float = 1e-3
    weight_decay: float = 0.05
    scale: float = 20.0
    consistency_weight: float = 1.0
    identity_weight: float = 0.5
    nearest: int = 1
    clip_norm: float = 5.0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"expected a batch of 1 or more, got {self.batch}")


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
        phrases: the text bank that pseudo-captions come from.
        modifiers: the changes that composition consistency draws from.
        config, loop: see their classes.

    Raises:
        DataError: a loss that is on lacks its phrases or modifiers.

    Source: ISA, arXiv:2403.01431, for GCD; composition consistency is ours.
    """
    if (config.consistency_weight or config.identity_weight) and not phrases:
        raise DataError("composition consistency and identity need a text bank: give phrases, or set both weights to 0")
    if config.consistency_weight and not modifiers:
        raise DataError("composition consistency needs modifiers: give some, or set its weight to 0")
    bank = embed_phrases(foundation, phrases) if phrases else teacher.new_zeros(1, teacher.shape[1])
    nearest = nearest_phrases(teacher, bank, config.nearest)  # [n, nearest]
    optimizer = torch.optim.AdamW(
        parameter_groups(
            {student.backbone: config.backbone_lr, student.token_learner: config.token_learner_lr},
            weight_decay=config.weight_decay,
        ),
        eps=1e-6,
    )
    student.train()
    student.to(memory_format=torch.channels_last)

    def step(number: int) -> dict[str, float]:
        cosine_schedule(optimizer, number=number, steps=loop.steps, warmup=min(100, loop.steps // 10 + 1))
        index = batch_at(len(teacher), config.batch, seed=loop.seed, number=number)
        tokens = student(draw_views(pictures, index, config.augmentation, student.preprocessing))  # [b, L, D]
        chosen = nearest[index, torch.randint(config.nearest, (len(index),))]  # [b]
        said = foundation.compose_query(tokens)
        figures = {"gcd": global_contrastive_distillation(said, teacher[index], config.scale)}
        loss = figures["gcd"]
        if config.identity_weight:
            figures["identity"] = 1.0 - functional.cosine_similarity(said, bank[chosen], dim=-1).mean()
            loss = loss + config.identity_weight * figures["identity"]
        if config.consistency_weight:
            drawn = [modifiers[i] for i in torch.randint(len(modifiers), (len(index),)).tolist()]
            with torch.no_grad():
                described = foundation.encode_text(
                    [
                        TOKENS_MODIFIER_PROMPT.format(tokens=phrases[i], modifier=text)
                        for i, text in zip(chosen.tolist(), drawn, strict=True)
                    ]
                )
            composed = foundation.compose_query(tokens, drawn)
            figures["consistency"] = composition_consistency(composed, described, config.scale)
            loss = loss + config.consistency_weight * figures["consistency"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(student.parameters(), config.clip_norm)
        optimizer.step()
        return {name: value.item() for name, value in figures.items()} | {"norm": norm.item()}

    identity = {
        "trainer": "distil",
        "config": asdict(config),
        "student": student.config,
        "word_space": foundation.word_space(),
        "pictures": digest_pictures(pictures),
        "teacher": digest(weights={"features": teacher}, facts={"phrases": [*phrases], "modifiers": [*modifiers]}),
        "start": digest(weights=student.state_dict(), facts={}),
    }
    run_steps(loop, identity=identity, parts={"student": student, "optimizer": optimizer}, step=step)
    student.eval()


def nearest_phrases(teacher: Tensor, bank: Tensor, count: int) -> Tensor:
    """Return, for each picture, the phrases nearest under the teacher: [n, count] indices into the bank."""
    normalised = functional.normalize(teacher, dim=-1)
    return torch.cat([(part @ bank.T).topk(count, dim=1).indices for part in normalised.split(1024)])
