"""How a trainer's steps are carried out: on which processes, in what precision, in how many parts, fed by how many."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from asymcir_protos import Preprocessing
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from asymcir_training.batch_norm import synchronise_batch_norm
from asymcir_training.contrastive_step import chunk_rows, contrastive_backward
from asymcir_training.data.loader import Batch, iterate_batches
from asymcir_training.data.sources import PictureSet
from asymcir_training.devices import Precision, Processes
from asymcir_training.errors import TrainingError
from asymcir_training.foundation import Foundation
from asymcir_training.loop import LoopConfig, RunSummary
from asymcir_training.pictures import Augmentation, batch_at
from asymcir_training.run_state import restore_best
from asymcir_training.schedule import cosine_schedule

_SAMPLED_ROWS = 4096
Chunk = TypeVar("Chunk")
Losses = Callable[[dict[str, Tensor]], Mapping[str, tuple[float, Tensor]]]
Rows = Tensor | NDArray[Any]
"""Anything [n, ...] whose rows an index array picks: a tensor, an array, a memory-mapped file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """What a trainer runs on; the defaults are one process on the CPU, float32, whole batches.

    Attributes:
        processes: that share every batch.
        precision: of the forward passes.
        chunks: parts that a process's share of a batch goes through in.
        workers: processes that decode and augment for each trainer.
        ema: decay of the average of the weights; 0 for none.
    """

    processes: Processes = field(default_factory=Processes)
    precision: Precision = field(default_factory=lambda: Precision("fp32", torch.device("cpu")))
    chunks: int = 1
    workers: int = 0
    ema: float = 0.0

    def own_rows(self, batch: int) -> slice:
        """Return which rows of a batch are this process's."""
        share = batch // self.processes.world
        return slice(self.processes.rank * share, (self.processes.rank + 1) * share)

    def split(self, batch: int) -> list[slice]:
        """Cut this process's rows of a batch into its chunks."""
        return chunk_rows(batch, chunks=self.chunks, processes=self.processes)

    def identity(self) -> dict[str, Any]:
        """Return what of this changes the result of a run."""
        return {"precision": self.precision.name, "chunks": self.chunks, "ema": self.ema}

    @torch.no_grad()
    def encode_texts(self, foundation: Foundation, texts: Sequence[str]) -> Tensor:
        """Encode texts by the frozen tower, chunk by chunk: [b, E], not normalised, float32."""
        with self.precision.autocast():
            found = [foundation.encode_text(texts[part]) for part in self.split(len(texts) * self.processes.world)]
        return torch.cat(found).float()


def pick(rows: Rows, index: NDArray[np.int64], device: torch.device) -> Tensor:
    """Pick rows by number: [n, ...] -> [b, ...] on a device."""
    if isinstance(rows, Tensor):
        return rows[torch.from_numpy(index).to(rows.device)].to(device)
    return torch.from_numpy(np.ascontiguousarray(rows[index])).to(device)


def sample_rows(rows: Rows) -> Tensor:
    """Pick an even sample of rows, first and last among them, to name large features by: on the CPU."""
    index = np.unique(np.linspace(0, len(rows) - 1, _SAMPLED_ROWS).astype(np.int64))
    return pick(rows, index, torch.device("cpu"))


class Feed:
    """Hands a trainer the batch of each step, decoded and augmented by workers, from whatever step it resumes at."""

    def __init__(
        self,
        pictures: PictureSet,
        kept: NDArray[np.int64],
        *,
        spec: Preprocessing,
        augmentation: Augmentation,
        seed: int,
        batch: int,
        steps: int,
        execution: Execution,
    ) -> None:
        self._pictures, self._kept = pictures, kept
        self._open = partial(
            iterate_batches,
            pictures,
            kept,
            spec=spec,
            augmentation=augmentation,
            seed=seed,
            batch=batch,
            steps=steps,
            rank=execution.processes.rank,
            world=execution.processes.world,
            workers=execution.workers,
        )
        self._batches: Iterator[Batch] | None = None
        self._last: Batch | None = None

    def start(self, first: int) -> None:
        """Begin at a step."""
        self._batches = self._open(first=first)

    def take(self, number: int) -> Batch:
        """Return the batch of the next step, which must be `number`."""
        if self._batches is None:
            self.start(number)
        assert self._batches is not None
        self._last = next(self._batches)
        if self._last.number != number:
            raise TrainingError(f"expected the batch of step {number}, got that of step {self._last.number}")
        return self._last

    def describe(self, number: int) -> dict[str, Any]:
        """Name the pictures of a step's batch, which must be the last one taken."""
        if self._last is None or self._last.number != number:
            return {}
        return {"pictures": [self._pictures.keys[self._kept[i]] for i in self._last.whole]}


class RowFeed:
    """Hands a trainer rows that are there already, a cache's patches, in place of pictures."""

    def __init__(self, rows: Rows, *, seed: int, batch: int, execution: Execution) -> None:
        self._rows, self._seed, self._batch, self._execution = rows, seed, batch, execution

    def take(self, number: int) -> Batch:
        """Return the batch of a step; `pixels` holds this process's rows."""
        whole = batch_at(len(self._rows), self._batch, seed=self._seed, number=number)
        own = whole[self._execution.own_rows(len(whole))]
        rows = pick(self._rows, own, self._execution.processes.device).float()
        return Batch(number=number, index=own, whole=whole, pixels=rows, waited_s=0.0)


class Optimisation:
    """AdamW on a model by contrastive steps: schedule, gradients, clipping, and the average of the weights.

    Attributes:
        averaged: what is validated and saved: the average of the weights, or the model itself where none is kept.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[dict[str, Any]],
        *,
        execution: Execution,
        clip_norm: float,
        steps: int,
        of_losses: nn.Module | None = None,
    ) -> None:
        """Take what is trained.

        Args:
            model: what `represent` runs; its batch norms are synchronised over the processes.
            groups: of AdamW, with `peak_lr` (see schedule.parameter_groups).
            execution: see its class.
            clip_norm: longest gradient.
            steps: of the whole run, for the schedule.
            of_losses: what the losses have of their own to train, a temperature.
        """
        self._model, self._execution, self._clip, self._steps = model, execution, clip_norm, steps
        self._modules = [model, *([] if of_losses is None else [of_losses])]
        self._trained = [value for part in self._modules for value in part.parameters() if value.requires_grad]
        execution.processes.broadcast(model)
        synchronise_batch_norm(model, execution.processes)
        self._optimizer = torch.optim.AdamW([*groups], eps=1e-6)
        self._average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(execution.ema), use_buffers=True)
            if execution.ema
            else None
        )
        self.averaged: nn.Module = model if self._average is None else self._average.module

    def parts(self) -> dict[str, Any]:
        """Return what must be kept beside the model to resume."""
        found: dict[str, Any] = {"optimizer": self._optimizer, "precision": self._execution.precision}
        return found | ({} if self._average is None else {"average": self._average})

    def step(
        self, number: int, represent: Callable[[Chunk], Mapping[str, Tensor]], chunks: Sequence[Chunk], losses: Losses
    ) -> dict[str, float]:
        """Take one optimiser step; returns the losses and the gradient's norm."""
        execution = self._execution
        cosine_schedule(self._optimizer, number=number, steps=self._steps, warmup=min(100, self._steps // 10 + 1))
        self._optimizer.zero_grad(set_to_none=True)
        figures = contrastive_backward(
            represent,
            chunks,
            losses,
            modules=self._modules,
            processes=execution.processes,
            precision=execution.precision,
        )
        figures |= execution.precision.step(self._optimizer, self._trained, clip_norm=self._clip)
        if self._average is not None:
            self._average.update_parameters(self._model)
        return figures

    def measure(self, validate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """Validate what would be saved, in eval mode, and go back to training mode."""
        modes = {module: module.training for module in self.averaged.modules()}
        self.averaged.eval()
        try:
            with torch.no_grad():
                return validate(self.averaged)
        finally:
            for module, mode in modes.items():
                module.training = mode

    def finish(self, loop: LoopConfig, summary: RunSummary) -> None:
        """Leave the model, in eval mode, as the best state by the validation, else as the average, else as it is."""
        if self._average is not None:
            self._model.load_state_dict(self._average.module.state_dict())
        if summary.best_step is not None:
            restore_best(loop.folder, {"model": self._model})
        self._model.eval()
