"""How a trainer's steps are carried out: on which processes, in what precision, in how many parts, fed by how many."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from asymcir_training.engine.batch_norm import synchronise_batch_norms
from asymcir_training.engine.contrastive_step import contrastive_backward
from asymcir_training.engine.execution import Execution
from asymcir_training.engine.schedule import cosine_schedule
from asymcir_training.runs.settings import LoopConfig, RunSummary
from asymcir_training.runs.state import restore_best

Chunk = TypeVar("Chunk")
Losses = Callable[[dict[str, Tensor]], Mapping[str, tuple[float, Tensor]]]


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
            model: what `represent` runs; its batch norms are synchronised over processes on CUDA, and refused over
                those on the CPU.
            groups: of AdamW, with `peak_lr` (see schedule.parameter_groups).
            execution: see its class.
            clip_norm: longest gradient.
            steps: of the whole run, for the schedule.
            of_losses: what the losses have of their own to train, a temperature.

        Raises:
            ConfigError: batch norms that would train on several CPU processes.
        """
        self._model, self._execution, self._clip, self._steps = model, execution, clip_norm, steps
        self._modules = [model, *([] if of_losses is None else [of_losses])]
        self._trained = [value for part in self._modules for value in part.parameters() if value.requires_grad]
        execution.processes.broadcast(model)
        synchronise_batch_norms(model, execution.processes)
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
