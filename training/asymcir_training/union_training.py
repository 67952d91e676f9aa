"""Train the UNION head from triplets, both towers frozen, so that every feature is computed once.

Notation: t triplets, m pictures, E joint-embedding width.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from asymcir_training.digests import digest
from asymcir_training.errors import DataError
from asymcir_training.loop import LoopConfig, cosine_schedule, parameter_groups, run_steps
from asymcir_training.losses import contrast
from asymcir_training.pictures import batch_at
from asymcir_training.union import UnionHead


@dataclass(frozen=True, kw_only=True, slots=True)
class UnionConfig:
    """The recipe of UNION's public code (arXiv:2511.22253): AdamW, weight decay 0.05, eps 1e-6, scale 100.

    Gradients are clipped at 5. Its CosineAnnealingWarmRestarts with T_0 = all epochs is one cosine; ours adds a short
    warm-up.
    """

    batch: int = 32
    lr: float = 1e-4
    weight_decay: float = 0.05
    scale: float = 100.0
    clip_norm: float = 5.0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"expected a batch of 1 or more, got {self.batch}")


def train_union_head(
    head: UnionHead,
    *,
    queries: Tensor,
    image_features: Tensor,
    null_features: Tensor,
    targets: Tensor,
    answers: Tensor,
    config: UnionConfig,
    loop: LoopConfig,
) -> None:
    """Train the head in place so that each query's target representation is nearest among the batch.

    Args:
        head: of width E.
        queries: [t, E], composed query embeddings from the frozen text tower.
        image_features: [m, E], un-normalised features of the pictures that targets point to.
        null_features: [1, E], un-normalised features of the null text.
        targets: [t], int64, the picture that answers each query.
        answers: [m], int64, which concept each picture shows: pictures of one concept in a batch are all right.
        config, loop: see their classes.

    Raises:
        DataError: shapes that do not belong together.
    """
    if len(queries) != len(targets) or queries.shape[1] != image_features.shape[1]:
        raise DataError(
            f"expected one target per query and one width, got queries {list(queries.shape)}, "
            f"targets {list(targets.shape)}, image features {list(image_features.shape)}"
        )
    optimizer = torch.optim.AdamW(parameter_groups({head: config.lr}, weight_decay=config.weight_decay), eps=1e-6)
    head.train()

    def step(number: int) -> dict[str, float]:
        cosine_schedule(optimizer, number=number, steps=loop.steps, warmup=min(100, loop.steps // 10 + 1))
        index = torch.from_numpy(batch_at(len(targets), config.batch, seed=loop.seed, number=number))
        chosen = targets[index]
        target, gate = head(image_features[chosen], null_features.expand(len(index), -1))
        same = answers[chosen][:, None] == answers[chosen][None, :]  # [b, b]
        loss = contrast(queries[index], target, same, config.scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(head.parameters(), config.clip_norm)
        optimizer.step()
        return {"loss": loss.item(), "gate": gate.mean().item(), "norm": norm.item()}

    inputs = {
        "queries": queries,
        "images": image_features,
        "null": null_features,
        "targets": targets,
        "answers": answers,
    }
    identity = {
        "trainer": "union",
        "config": asdict(config),
        "inputs": digest(weights=inputs, facts={}),
        "start": digest(weights=head.state_dict(), facts={}),
    }
    run_steps(loop, identity=identity, parts={"head": head, "optimizer": optimizer}, step=step)
    head.eval()
