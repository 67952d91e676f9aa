"""Train the UNION head from triplets, both towers frozen, so that every feature is computed once.

Notation: t triplets, m pictures, E joint-embedding width.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from asymcir_training.batches.views import batch_at
from asymcir_training.engine.execution import Execution, Rows, pick
from asymcir_training.engine.schedule import parameter_groups
from asymcir_training.errors import DataError
from asymcir_training.foundation.digests import digest
from asymcir_training.models.union_head import UnionHead
from asymcir_training.runs.loop import run_steps
from asymcir_training.runs.settings import LoopConfig, RunSummary
from asymcir_training.trainers.losses import contrast
from asymcir_training.trainers.optimisation import Optimisation


@dataclass(frozen=True, kw_only=True, slots=True)
class UnionConfig:
    """The recipe of UNION's public code (arXiv:2511.22253): AdamW, weight decay 0.05, eps 1e-6, scale 100.

    Gradients are clipped at 5. Its CosineAnnealingWarmRestarts with T_0 = all epochs is one cosine; ours adds a short
    warm-up.
    """

    batch: Annotated[int, "triplets of a step, over all processes"] = 32
    lr: float = 1e-4
    weight_decay: float = 0.05
    scale: Annotated[float, "inverse temperature"] = 100.0
    clip_norm: Annotated[float, "longest gradient"] = 5.0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"expected a batch of 1 or more, got {self.batch}")


def train_union_head(
    head: UnionHead,
    *,
    queries: Rows,
    image_features: Rows,
    null_features: Tensor,
    targets: Tensor,
    answers: Tensor,
    config: UnionConfig,
    loop: LoopConfig,
    execution: Execution | None = None,
    validate: Callable[[UnionHead], dict[str, float]] | None = None,
) -> RunSummary:
    """Train the head in place so that each query's target representation is nearest among the batch.

    Args:
        head: of width E.
        queries: [t, E], composed query embeddings from the frozen text tower.
        image_features: [m, E], un-normalised features of the pictures that targets point to.
        null_features: [1, E], un-normalised features of the null text.
        targets: [t], int64, the picture that answers each query.
        answers: [m], int64, which concept each picture shows: pictures of one concept in a batch are all right.
        config, loop, execution: see their classes.
        validate: takes the head in eval mode, returns figures; the best weights by `loop.best` are kept.

    Raises:
        DataError: shapes that do not belong together.
    """
    if len(queries) != len(targets) or queries.shape[1] != image_features.shape[1]:
        raise DataError(
            f"expected one target per query and one width, got queries {list(queries.shape)}, "
            f"targets {list(targets.shape)}, image features {list(image_features.shape)}"
        )
    execution = execution or Execution()
    device = execution.processes.device
    head.to(device).train()
    optimisation = Optimisation(
        head,
        parameter_groups({head: config.lr}, weight_decay=config.weight_decay),
        execution=execution,
        clip_norm=config.clip_norm,
        steps=loop.steps,
    )

    def represent(images: Tensor) -> dict[str, Tensor]:
        target, gate = head(images, null_features.to(device).expand(len(images), -1))
        return {"target": target, "gate": gate}

    def step(number: int) -> dict[str, float]:
        whole = batch_at(len(targets), config.batch, seed=loop.seed, number=number)
        chosen = targets[torch.from_numpy(whole)]  # [b]
        same = (answers[chosen][:, None] == answers[chosen][None, :]).to(device)  # [b, b]
        asked = pick(queries, whole, device).float()
        own = chosen[execution.own_rows(len(whole))].numpy()
        parts = [pick(image_features, own[part], device).float() for part in execution.split(len(whole))]
        gates: list[float] = []

        def losses(found: Mapping[str, Tensor]) -> dict[str, tuple[float, Tensor]]:
            gates.append(found["gate"].mean().item())
            return {"contrast": (1.0, contrast(asked, found["target"], same, config.scale))}

        return optimisation.step(number, represent, parts, losses) | {"gate": gates[-1]}

    def measure(done: int) -> dict[str, float]:
        del done
        assert validate is not None
        check: Any = validate  # the averaged weights are a head too
        return optimisation.measure(check)

    identity = {
        "trainer": "union",
        "config": asdict(config),
        "execution": execution.identity(),
        "validation": {"best": loop.best, "queries": getattr(validate, "digest", "")},
        "inputs": digest(
            weights={
                "queries": pick(queries, np.arange(len(queries)), torch.device("cpu")),
                "images": pick(image_features, np.arange(len(image_features)), torch.device("cpu")),
                "null": null_features,
                "targets": targets,
                "answers": answers,
            },
            facts={},
        ),
        "start": digest(weights=head.state_dict(), facts={}),
    }
    summary = run_steps(
        loop,
        identity=identity,
        parts={"head": head, **optimisation.parts()},
        step=step,
        validate=measure if validate is not None else None,
        best_parts={"model": optimisation.averaged},
        processes=execution.processes,
    )
    optimisation.finish(loop, summary)
    return summary
