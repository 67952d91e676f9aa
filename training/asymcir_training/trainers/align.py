"""Align a visual tower to a frozen text tower, for those who bring no pretrained foundation.

LiT-style (locked-image tuning turned round): the text tower is locked, the visual tower learns to put a picture where
the text tower puts its names. With few names every one of them is a candidate, so small batches do; with many, those of
the batch are.

Notation: n pictures, b batch over all processes, C classes (sets of wordings), W wordings in all, E joint-embedding
width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from asymcir_common import Preprocessing
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from asymcir_training.batches.feeds import Feed
from asymcir_training.batches.views import Augmentation
from asymcir_training.engine.execution import Execution, Rows, pick, sample_rows
from asymcir_training.engine.schedule import parameter_groups, seed_of_step
from asymcir_training.errors import DataError
from asymcir_training.foundation.digests import digest
from asymcir_training.foundation.preprocessing import normalise_pixels
from asymcir_training.models.mix_style import freeze_stages, mixed_styles
from asymcir_training.pictures.sets import PictureSet
from asymcir_training.runs.loop import run_steps
from asymcir_training.runs.settings import LoopConfig
from asymcir_training.trainers.losses import contrast
from asymcir_training.trainers.optimisation import Optimisation

_MOST_CANDIDATES = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignConfig:
    """Learning rates, batch and augmentation of the alignment."""

    batch: Annotated[int, "pictures of a step, over all processes"] = 96
    trunk_lr: float = 5e-4
    head_lr: float = 2e-3
    weight_decay: float = 0.05
    candidates: Annotated[
        Literal["auto", "all", "batch"], f"names to choose among; auto: all of them up to {_MOST_CANDIDATES}"
    ] = "auto"
    start_scale: Annotated[float, "inverse temperature at the start"] = 20.0
    largest_scale: float = 60.0
    clip_norm: Annotated[float, "longest gradient"] = 5.0
    frozen: Annotated[tuple[str, ...], "modules of the trunk that stay as they are"] = ()
    mix_after: Annotated[tuple[str, ...], "modules of the trunk after which styles are mixed"] = ()
    mix_share: Annotated[float, "share of the pictures whose style is mixed"] = 0.5
    early_side: Annotated[int, "picture side of the first steps, which a convolutional trunk learns most in"] = 0
    early_share: Annotated[float, "their share of all steps"] = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"expected a batch of 1 or more, got {self.batch}")
        for name in ("mix_share", "early_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise DataError(f"expected {name} from 0 to 1, got {getattr(self, name)}")
        if self.early_share and self.early_side < 1:
            raise DataError("early_share asks for a first part at a smaller side: give early_side too")


class Wordings:
    """The ways in which each class may be called, embedded.

    Attributes:
        embeddings: [W, E], L2-normalised, the wordings of one class after those of the other.
        starts: [C + 1], where each class begins in them.
    """

    def __init__(self, embeddings: Rows, counts: Sequence[int]) -> None:
        self.embeddings = embeddings
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if self.starts[-1] != len(embeddings) or min(counts, default=0) < 1:
            raise DataError(
                f"expected 1 or more wordings a class, {len(embeddings)} in all, got {self.starts[-1]} of "
                f"{len(counts)} classes"
            )

    def __len__(self) -> int:
        """Return C."""
        return len(self.starts) - 1

    def draw(self, classes: NDArray[np.int64], generator: torch.Generator, device: torch.device) -> Tensor:
        """Draw a wording of each class: [C'] -> [C', E]."""
        counts = self.starts[classes + 1] - self.starts[classes]
        shares = torch.rand(len(classes), generator=generator).numpy()
        return pick(self.embeddings, self.starts[classes] + (shares * counts).astype(np.int64), device).float()


def align_visual_tower(
    trunk: nn.Module,
    head: nn.Module,
    *,
    encode: Callable[[Tensor], Tensor],
    preprocessing: Preprocessing,
    pictures: PictureSet,
    kept: NDArray[np.int64],
    labels: NDArray[np.int64],
    wordings: Wordings,
    config: AlignConfig,
    loop: LoopConfig,
    execution: Execution | None = None,
) -> float:
    """Train trunk and head so that a picture's embedding is nearest to the embeddings of its own name.

    Args:
        trunk, head: the parts of the visual tower, at their own learning rates; changed in place.
        encode: pixels [b, 3, S, S] normalised -> image features [b, E] through both.
        preprocessing: how pictures come in.
        pictures: where the pictures are.
        kept: [n], the numbers of those to train on.
        labels: [n], the class of each of those.
        wordings: of the classes.
        config, loop, execution: see their classes.

    Returns:
        The learned logit scale.
    """
    execution = execution or Execution()
    device = execution.processes.device
    if len(kept) != len(labels):
        raise DataError(f"expected a class for each of {len(kept)} pictures, got {len(labels)}")
    tower = nn.ModuleDict({"trunk": trunk, "head": head}).to(device)
    log_scale = nn.Parameter(torch.tensor(float(np.log(config.start_scale)), device=device))
    holder = nn.ParameterDict({"log_scale": log_scale})
    trunk.train()
    freeze_stages(trunk, config.frozen)
    optimisation = Optimisation(
        tower,
        parameter_groups(
            {trunk: config.trunk_lr, head: config.head_lr, holder: 1e-3}, weight_decay=config.weight_decay
        ),
        execution=execution,
        clip_norm=config.clip_norm,
        steps=loop.steps,
        of_losses=holder,
    )
    feed = Feed(
        pictures,
        kept,
        spec=preprocessing,
        augmentation=config.augmentation,
        seed=loop.seed,
        batch=config.batch,
        steps=loop.steps,
        execution=execution,
    )
    everything = config.candidates == "all" or (config.candidates == "auto" and len(wordings) <= _MOST_CANDIDATES)

    def step(number: int) -> dict[str, float]:
        batch = feed.take(number)
        wanted = labels[batch.whole]
        classes, own = (np.arange(len(wordings)), wanted) if everything else np.unique(wanted, return_inverse=True)
        names = wordings.draw(classes, torch.Generator().manual_seed(seed_of_step(loop.seed, number)), device)
        positives = functional.one_hot(torch.from_numpy(own).to(device), len(classes)).bool()  # [b, C']
        hits: list[float] = []

        def represent(pixels: Tensor) -> dict[str, Tensor]:
            shown = normalise_pixels(pixels.to(device, non_blocking=True).permute(0, 2, 3, 1), preprocessing)
            if number < config.early_share * loop.steps:
                shown = functional.interpolate(shown, size=config.early_side, mode="bilinear", antialias=True)
            return {"image": encode(shown.contiguous(memory_format=torch.channels_last))}

        def losses(found: Mapping[str, Tensor]) -> dict[str, tuple[float, Tensor]]:
            with torch.no_grad():
                nearest = (functional.normalize(found["image"], dim=-1) @ names.T).argmax(dim=1)
                hits.append(positives.gather(1, nearest[:, None]).float().mean().item())
            scale = log_scale.exp().clamp_max(config.largest_scale)
            return {"contrast": (1.0, contrast(found["image"], names, positives, scale))}

        parts = [batch.pixels[part] for part in execution.split(len(batch.whole))]
        figures = optimisation.step(number, represent, parts, losses)
        return figures | {"hit": hits[-1], "scale": log_scale.exp().item(), "waited_s": batch.waited_s}

    identity = {
        "trainer": "align",
        "config": asdict(config),
        "execution": execution.identity(),
        "pictures": pictures.digest,
        "names": _digest_names(wordings, labels),
        "start": digest(weights=trunk.state_dict() | head.state_dict(), facts={}),
    }
    with mixed_styles(trunk, config.mix_after, config.mix_share):
        summary = run_steps(
            loop,
            identity=identity,
            parts={"tower": tower, "scale": holder, **optimisation.parts()},
            step=step,
            prepare=feed.start,
            describe=feed.describe,
            processes=execution.processes,
        )
    optimisation.finish(loop, summary)
    return log_scale.exp().clamp_max(config.largest_scale).item()


def _digest_names(wordings: Wordings, labels: NDArray[np.int64]) -> str:
    weights = {
        "wordings": sample_rows(wordings.embeddings),
        "starts": torch.from_numpy(wordings.starts),
        "labels": torch.from_numpy(labels),
    }
    return digest(weights=weights, facts={})
