"""The loop that every trainer runs in: seeded steps, validation, a log, states, exact resume.

A step draws all its randomness from its own number, so a run that was interrupted and resumed takes the same steps as
one that was not. Where several processes share a run they all take every step; the main one writes, and all read.
"""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from asymcir_training.engine.schedule import seed_of_step
from asymcir_training.runs.keeper import RunKeeper, all_finite
from asymcir_training.runs.settings import LoopConfig, RunSummary
from asymcir_training.runs.state import Stateful
from asymcir_training.runs.stopping import catch_signals, exchange_signs

if TYPE_CHECKING:
    from asymcir_training.engine.processes import Processes

WAITED = "waited_s"


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
