"""What a run is told, and what it tells when it ends."""

from dataclasses import dataclass
from pathlib import Path

from asymcir_training.errors import TrainingError


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How a trainer runs.

    Attributes:
        folder: where states and log go.
        steps: optimiser steps in all.
        seed: of every random draw.
        save_every: steps between states kept for resuming; one is kept before each validation, too.
        log_every: steps between log lines.
        validate_every: steps between validations; 0: only after the last step.
        best: figure of the validation whose largest value decides which weights `best/` keeps; "": none are kept.
        tensorboard: write TensorBoard events beside the log.
        curves: draw `curves.png` when the run ends.
        allow_changes: go on although the identity changed.
    """

    folder: Path
    steps: int
    seed: int = 0
    save_every: int = 200
    log_every: int = 20
    validate_every: int = 0
    best: str = ""
    tensorboard: bool = False
    curves: bool = True
    allow_changes: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))  # a text will do
        if self.steps < 1:
            raise TrainingError(f"expected 1 or more training steps, got {self.steps}: ask for at least one epoch")
        for name, least in (("save_every", 1), ("log_every", 1), ("validate_every", 0)):
            if getattr(self, name) < least:
                raise TrainingError(f"expected {name} of {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """How a run ended.

    Attributes:
        steps: taken in all.
        resumed_from: steps that earlier calls had taken.
        best_step, best_figure: where the figure LoopConfig.best was the largest; None without one.
        seconds: that this call took.
    """

    steps: int
    resumed_from: int
    best_step: int | None
    best_figure: float | None
    seconds: float
