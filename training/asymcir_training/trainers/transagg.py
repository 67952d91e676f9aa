"""Train TransAgg from triplets, towers frozen, with the gallery side of its choice: original, sum, or UNION's head.

With `union` the head learns beside the fusion, as in UNION's own recipe; with the others nothing of the gallery does.

Notation: t triplets, n pictures, r of them that ask, b batch, P patches, E joint-embedding width.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from asymcir_training.batches.views import batch_at
from asymcir_training.engine.execution import Execution, Rows, pick
from asymcir_training.engine.schedule import parameter_groups
from asymcir_training.errors import DataError
from asymcir_training.foundation.digests import digest
from asymcir_training.models.transagg import TextPlaces, TransAgg
from asymcir_training.models.union_head import UnionHead
from asymcir_training.runs.loop import run_steps
from asymcir_training.runs.settings import LoopConfig, RunSummary
from asymcir_training.trainers.losses import contrast
from asymcir_training.trainers.optimisation import Optimisation
from asymcir_training.trainers.targets import TARGETS, Target, represent_targets
from asymcir_training.trainers.union import UnionConfig

Validate = Callable[[TransAgg, UnionHead | None], dict[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TransAggConfig(UnionConfig):
    """The recipe of UNION's public code, both towers frozen.

    It fine-tunes the towers at 1e-6 as well; ours stay as they are, so that every feature is computed once. Its
    pictures are padded to an aspect ratio of 1.25 (TargetPad), ours go through the foundation's own preprocessing, as a
    gallery's do.
    """

    target: Annotated[Target, "what stands in the gallery: union (its head learns beside), sum or original"] = "union"

    def __post_init__(self) -> None:
        UnionConfig.__post_init__(self)  # super() does not know a class with slots
        if self.target not in TARGETS:
            raise DataError(f"expected a target of {', '.join(TARGETS)}, got {self.target!r}")


def train_transagg(
    fusion: TransAgg,
    head: UnionHead | None,
    *,
    image_features: Tensor,
    patches: Rows,
    text: TextPlaces,
    null_features: Tensor,
    references: Tensor,
    targets: Tensor,
    config: TransAggConfig,
    loop: LoopConfig,
    execution: Execution | None = None,
    validate: Validate | None = None,
) -> RunSummary:
    """Train the fusion, and with target "union" the head, in place.

    Args:
        fusion: of width E.
        head: of width E, for target "union"; None otherwise.
        image_features: [n, E], un-normalised features of references and targets.
        patches: [r, P, E], un-normalised, of the pictures that ask, which are the first r; may be memory-mapped.
        text: t modifiers.
        null_features: [1, E], un-normalised features of the null text.
        references, targets: [t], int64, which picture asks and which answers.
        config, loop, execution: see their classes.
        validate: takes fusion and head in eval mode, returns figures; the best weights by `loop.best` are kept.

    Raises:
        DataError: shapes that do not belong together, or a head where the target has none.
    """
    _check_inputs(fusion, head, image_features, patches, text, references, targets, config)
    execution = execution or Execution()
    device = execution.processes.device
    model = nn.ModuleDict({"fusion": fusion} | ({"head": head} if head is not None else {})).to(device).train()
    optimisation = Optimisation(
        model,
        parameter_groups({model: config.lr}, weight_decay=config.weight_decay),
        execution=execution,
        clip_norm=config.clip_norm,
        steps=loop.steps,
    )
    null = null_features.to(device)

    def represent(part: _Part) -> dict[str, Tensor]:
        found = {"query": fusion(part.images, part.patches, part.text)}
        if head is not None:
            found["target"] = represent_targets(part.targets, null, config.target, head)
        return found

    def step(number: int) -> dict[str, float]:
        whole = torch.from_numpy(batch_at(len(targets), config.batch, seed=loop.seed, number=number))
        chosen = targets[whole]  # [b]
        same = (chosen[:, None] == chosen[None, :]).to(device)  # [b, b]: one picture may answer twice
        own = whole[execution.own_rows(len(whole))]
        parts = [
            _Part(
                images=image_features[references[own[rows]]].to(device),
                patches=pick(patches, references[own[rows]].numpy(), device),
                text=text.pick(own[rows]).to(device),
                targets=image_features[targets[own[rows]]].to(device),
            )
            for rows in execution.split(len(whole))
        ]
        accuracy: list[float] = []

        def losses(found: Mapping[str, Tensor]) -> dict[str, tuple[float, Tensor]]:
            query, target = found["query"], found.get("target")
            if target is None:  # nothing of it is trained
                target = represent_targets(image_features[chosen].to(device), null, config.target)
            nearest = (query.detach() @ target.detach().T).argmax(dim=1, keepdim=True)
            accuracy.append(same.gather(1, nearest).float().mean().item())
            return {"contrast": (1.0, contrast(query, target, same, config.scale))}

        return optimisation.step(number, represent, parts, losses) | {"batch_accuracy": accuracy[-1]}

    def measure(done: int) -> dict[str, float]:
        del done
        assert validate is not None
        check: Validate = validate

        def call(kept: nn.Module) -> dict[str, float]:
            parts: Any = dict(kept.named_children())
            return check(parts["fusion"], parts.get("head"))

        return optimisation.measure(call)

    inputs = {
        "images": image_features,
        "null": null_features,
        "text": text.features,
        "references": references,
        "targets": targets,
    }
    identity = {
        "trainer": "transagg",
        "config": asdict(config),
        "validation": {"best": loop.best, "queries": getattr(validate, "digest", "")},
        # The patches are gigabytes, and of the pictures and the tower whose features are hashed whole.
        "inputs": digest(weights=inputs, facts={"patches": list(patches.shape)}),
        "start": digest(weights=model.state_dict(), facts={}),
    }
    summary = run_steps(
        loop,
        identity=identity,
        parts={"model": model, **optimisation.parts()},
        step=step,
        validate=measure if validate is not None else None,
        processes=execution.processes,
        best_parts={"model": optimisation.averaged},
    )
    optimisation.finish(loop, summary)
    return summary


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What one forward pass takes.

    Attributes:
        images: [b_c, E], of the references.
        patches: [b_c, P, E], of the references.
        text: b_c modifiers.
        targets: [b_c, E], image features of the targets.
    """

    images: Tensor
    patches: Tensor
    text: TextPlaces
    targets: Tensor


def _check_inputs(
    fusion: TransAgg,
    head: UnionHead | None,
    image_features: Tensor,
    patches: Rows,
    text: TextPlaces,
    references: Tensor,
    targets: Tensor,
    config: TransAggConfig,
) -> None:
    if (config.target == "union") != (head is not None):
        raise DataError(
            f"the target {config.target} {'needs a UNION head' if head is None else 'has no head to train'}: pass "
            f"{'one' if head is None else 'None'}, or another target"
        )
    widths = {fusion.embedding_width, image_features.shape[1], patches.shape[2], text.tokens.shape[2]}
    if len(widths) != 1 or (head is not None and head.embedding_width not in widths):
        raise DataError(
            f"expected one width, got a fusion of {fusion.embedding_width}, image features "
            f"{list(image_features.shape)}, patches {list(patches.shape)} and text tokens {list(text.tokens.shape)}"
        )
    if not len(text) == len(references) == len(targets):
        raise DataError(
            f"expected a modifier, a reference and a target a triplet, got {len(text)}, {len(references)} and "
            f"{len(targets)}"
        )
    if int(references.max()) >= len(patches) or int(targets.max()) >= len(image_features):
        raise DataError(
            f"expected references below {len(patches)}, the pictures with patches, and targets below "
            f"{len(image_features)}, got up to {int(references.max())} and {int(targets.max())}"
        )
