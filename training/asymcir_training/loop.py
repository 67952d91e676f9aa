"""The loop that every trainer runs in: seeded steps, validation, a log, states, exact resume.

A step draws all its randomness from its own number, so a run that was interrupted and resumed takes the same steps as
one that was not. Where several processes share a run they all take every step; the main one writes, and all read.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from asymcir_training.errors import TrainingError
from asymcir_training.run_keeper import RunKeeper, all_finite
from asymcir_training.run_state import Stateful
from asymcir_training.schedule import seed_of_step
from asymcir_training.stopping import catch_signals, exchange_signs

if TYPE_CHECKING:
    from asymcir_training.devices import Processes

WAITED = "waited_s"


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
        best_from: only validations after more steps than these decide.
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
    best_from: int = 0
    tensorboard: bool = False
    curves: bool = True
    allow_changes: bool = False

    def __post_init__(self) -> None:
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


def run_steps(
    config: LoopConfig,
    *,
    identity: Mapping[str, Any],
    parts: Mapping[str, Stateful],
    step: Callable[[int], dict[str, float]],
    prepare: Callable[[int], None] | None = None,
    validate: Callable[[int], dict[str, float]] | None = None,
    describe: Callable[[int], Mapping[str, Any]] | None = None,
    processes: "Processes | None" = None,
    best_parts: Mapping[str, Stateful] | None = None,
) -> RunSummary:
    """Run `step(0) ... step(config.steps - 1)`, resuming where an earlier run of the same identity stopped.

    Args:
        config: see LoopConfig.
        identity: what makes this run this run, nested plain values; a state of another identity is refused.
        parts: name -> module, optimiser, gradient scaler or average whose state is kept.
        step: takes the step number, does one optimiser step, returns figures to log. Seeded before each call, alike in
            every process. The figure `waited_s` (time that the step waited for its data) is logged as a share.
        prepare: called once before the first step, with its number.
        validate: takes the number of steps done, returns figures; called in every process, the main one's count.
        describe: names the batch of a step (of all processes), for `bad-batch.json`.
        processes: that share the run; None for this one alone.
        best_parts: what `best/` keeps; without it the modules among `parts`.

    Raises:
        CheckpointError: the folder holds the state of another run or a damaged one, or the disk is full.
        Interrupted: SIGINT or SIGTERM came: the step was finished and its state is kept.
        TrainingError: a figure became NaN or infinite (return the gradient's norm as one, but not that of a step that a
            gradient scaler left out); the state before is kept.
    """
    started = time.monotonic()
    if best_parts is None:
        best_parts = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    run = RunKeeper(
        config, identity=identity, parts=parts, best_parts=best_parts, validate=validate, processes=processes
    )
    first = run.resume()
    try:
        with catch_signals() as stop:
            if prepare is not None:
                prepare(first)
            if run.owes_validation(first):
                run.validate()
            for number in range(first, config.steps):
                torch.manual_seed(seed_of_step(config.seed, number))
                try:
                    figures = dict(step(number))
                except Exception as exc:
                    if not stop.signal_number:
                        raise
                    # A signal to the whole process group also ends the workers that feed the step.
                    raise run.make_interrupted(stop.signal_number, f"step {number} failed meanwhile: {exc}") from exc
                waited_s = figures.pop(WAITED, None)
                signs = exchange_signs(
                    processes,
                    signal_number=stop.signal_number,
                    bad=not all_finite(figures),
                    waited_s=waited_s or 0.0,
                )
                if signs.bad_ranks:
                    raise run.make_bad(number, figures, signs.bad_ranks, describe)
                done = number + 1
                if run.log is not None:
                    if waited_s is not None:
                        run.log.add_wait(signs.waited_s)
                    if done % config.log_every == 0 or done == config.steps:
                        run.log.write_step(done, figures)
                owed = run.owes_validation(done)
                if done % config.save_every == 0 or done == config.steps or owed or signs.signal_number:
                    run.save(done)
                if signs.signal_number:
                    raise run.make_interrupted(signs.signal_number)
                if owed:
                    run.validate()
    finally:
        if run.log is not None:
            run.log.close(curves=config.curves)
    return RunSummary(
        steps=run.record.done,
        resumed_from=first,
        best_step=run.record.best_step,
        best_figure=run.record.best_figure,
        seconds=time.monotonic() - started,
    )
