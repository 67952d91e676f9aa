"""Align a visual tower to a frozen text tower, for those who bring no pretrained foundation.

LiT-style (locked-image tuning turned round): the text tower is locked, the visual tower learns to put a picture where
the text tower puts its names. Every name of the training set is a candidate, so small batches do.

Notation: n pictures, C classes (names), K wordings of a name, E joint-embedding width.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from asymcir_protos import Preprocessing
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from asymcir_training.backbones import freeze_stages, mixed_styles
from asymcir_training.digests import digest, digest_pictures
from asymcir_training.errors import DataError
from asymcir_training.loop import LoopConfig, cosine_schedule, parameter_groups, run_steps
from asymcir_training.pictures import Augmentation, batch_at, draw_views


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignConfig:
    """Learning rates, batch and augmentation of the alignment.

    Attributes:
        frozen: modules of the trunk that stay as they are.
        mix_after, mix_share: modules of the trunk after which styles are mixed, and in what share of the pictures.
        early_side, early_share: picture side of the first steps, and their share of all; a convolutional trunk learns
            most of it at a smaller side, for less.
    """

    batch: int = 96
    trunk_lr: float = 5e-4
    head_lr: float = 2e-3
    weight_decay: float = 0.05
    start_scale: float = 20.0
    largest_scale: float = 60.0
    clip_norm: float = 5.0
    frozen: tuple[str, ...] = ()
    mix_after: tuple[str, ...] = ()
    mix_share: float = 0.5
    early_side: int = 0
    early_share: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"expected a batch of 1 or more, got {self.batch}")
        for name in ("mix_share", "early_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise DataError(f"expected {name} from 0 to 1, got {getattr(self, name)}")
        if self.early_share and self.early_side < 1:
            raise DataError("early_share asks for a first part at a smaller side: give early_side too")


def align_visual_tower(
    trunk: nn.Module,
    head: nn.Module,
    *,
    encode: Callable[[Tensor], Tensor],
    preprocessing: Preprocessing,
    pictures: Sequence[NDArray[np.uint8]],
    labels: NDArray[np.int64],
    wordings: Tensor,
    config: AlignConfig,
    loop: LoopConfig,
) -> float:
    """Train trunk and head so that a picture's embedding is nearest to the embeddings of its own name.

    Args:
        trunk, head: the parts of the visual tower, at their own learning rates; changed in place.
        encode: pixels [b, 3, S, S] normalised -> image features [b, E] through both.
        preprocessing: mean and std to normalise with.
        pictures: arrays [n_i, S, S, 3] uint8, together n.
        labels: [n], the class of each.
        wordings: [C, K, E], text embeddings of K wordings of each name, L2-normalised.
        config, loop: see their classes.

    Returns:
        The learned logit scale.
    """
    scale = nn.Parameter(torch.tensor(float(np.log(config.start_scale))))
    holder = nn.ParameterDict({"log_scale": scale})
    trunk.train()
    freeze_stages(trunk, config.frozen)
    groups = parameter_groups(
        {trunk: config.trunk_lr, head: config.head_lr, holder: 1e-3}, weight_decay=config.weight_decay
    )
    optimizer = torch.optim.AdamW(groups, eps=1e-6)
    classes, choices, _ = wordings.shape

    def step(number: int) -> dict[str, float]:
        cosine_schedule(optimizer, number=number, steps=loop.steps, warmup=min(100, loop.steps // 10 + 1))
        index = batch_at(len(labels), config.batch, seed=loop.seed, number=number)
        pixels = draw_views(pictures, index, config.augmentation, preprocessing)
        if number < config.early_share * loop.steps:
            pixels = functional.interpolate(pixels, size=config.early_side, mode="bilinear", antialias=True)
        embedding = functional.normalize(encode(pixels), dim=-1)
        names = wordings[torch.arange(classes), torch.randint(choices, (classes,))]  # [C, E], one wording of each
        logits = scale.exp().clamp_max(config.largest_scale) * embedding @ names.T  # [b, C]
        target = torch.from_numpy(labels[index])
        loss = functional.cross_entropy(logits, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_([*trunk.parameters(), *head.parameters()], config.clip_norm)
        optimizer.step()
        hit = (logits.argmax(dim=1) == target).float().mean()
        return {"loss": loss.item(), "norm": norm.item(), "hit": hit.item(), "scale": scale.exp().item()}

    parts = {"trunk": trunk, "head": head, "scale": holder, "optimizer": optimizer}
    identity = {
        "trainer": "align",
        "config": asdict(config),
        "pictures": digest_pictures(pictures),
        "names": digest(weights={"wordings": wordings, "labels": torch.from_numpy(labels)}, facts={}),
        "start": digest(weights=trunk.state_dict() | head.state_dict(), facts={}),
    }
    with mixed_styles(trunk, config.mix_after, config.mix_share):
        run_steps(loop, identity=identity, parts=parts, step=step)
    trunk.eval()
    return scale.exp().clamp_max(config.largest_scale).item()
