"""The loop that every trainer runs in: seeded steps, progress, a JSON-lines log, checkpoints, exact resume.

A step draws all its randomness from its own number, so a run that was interrupted and resumed takes the same steps as
one that was not.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from asymcir_protos.manifest import write_atomically
from torch import nn

from asymcir_training.errors import CheckpointError, TrainingError

_STATE = "state.pt"
_LOG_FILE = "log.jsonl"
_LOG = logging.getLogger(__name__)


class Stateful(Protocol):
    """Anything with torch's state-dict pair."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take the state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How a trainer runs.

    Attributes:
        folder: where state and log go.
        steps: optimiser steps in all.
        seed: of every random draw.
        save_every: steps between states kept for resuming.
        log_every: steps between log lines.
    """

    folder: Path
    steps: int
    seed: int = 0
    save_every: int = 200
    log_every: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise TrainingError(f"expected 1 or more training steps, got {self.steps}: ask for at least one epoch")


def run_steps(
    config: LoopConfig,
    *,
    identity: Mapping[str, Any],
    parts: Mapping[str, Stateful],
    step: Callable[[int], dict[str, float]],
) -> None:
    """Run `step(0) ... step(config.steps - 1)`, resuming where an earlier run of the same identity stopped.

    Args:
        config: see LoopConfig.
        identity: what makes this run this run; a state of another identity is refused.
        parts: name -> module or optimiser whose state is kept.
        step: takes the step number, does one optimiser step, returns figures to log. Seeded before each call.

    Raises:
        CheckpointError: the folder holds the state of another run.
        TrainingError: a figure became NaN or infinite (return the gradient's norm as one); the state before is kept.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    # Plain JSON, so that what comes back from the file compares equal.
    identity = json.loads(json.dumps({**identity, "steps": config.steps, "seed": config.seed}))
    first = _resume(config.folder / _STATE, identity, parts)
    _cut_log(config.folder / _LOG_FILE, first)
    started = time.monotonic()
    for number in range(first, config.steps):
        torch.manual_seed(config.seed * 1_000_003 + number)
        figures = step(number)
        if not all(math.isfinite(value) for value in figures.values()):
            raise TrainingError(f"step {number} gave {figures}: lower the learning rate; the last good state is kept")
        done = number + 1
        if done % config.log_every == 0 or done == config.steps:
            seconds = time.monotonic() - started
            rate = (done - first) / seconds
            left_s = (config.steps - done) / rate
            line = {
                "step": done,
                **{name: round(value, 5) for name, value in figures.items()},
                "steps_per_s": round(rate, 3),
            }
            with (config.folder / _LOG_FILE).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            shown = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
            _LOG.info(
                "%s %d/%d  %s  %.2f steps/s, %.0f s left", config.folder.name, done, config.steps, shown, rate, left_s
            )
        if done % config.save_every == 0 or done == config.steps:
            _save(config.folder / _STATE, identity, parts, done)


def cosine_schedule(optimizer: torch.optim.Optimizer, *, number: int, steps: int, warmup: int) -> float:
    """Set every group's lr to its `peak_lr` times a linear warm-up and a cosine decay to 1%; return the factor."""
    if number < warmup:
        factor = (number + 1) / warmup
    else:
        progress = (number - warmup) / max(1, steps - warmup)
        factor = 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return factor


def parameter_groups(modules: Mapping[nn.Module, float], *, weight_decay: float) -> list[dict[str, Any]]:
    """Make AdamW groups: a peak lr per module, no decay on biases, norms and single vectors."""
    groups: list[dict[str, Any]] = []
    for module, peak_lr in modules.items():
        trained = [value for value in module.parameters() if value.requires_grad]
        for decay, values in (
            (weight_decay, [value for value in trained if value.ndim > 1]),
            (0.0, [value for value in trained if value.ndim <= 1]),
        ):
            if values:
                groups.append({"params": values, "lr": peak_lr, "peak_lr": peak_lr, "weight_decay": decay})
    return groups


def _cut_log(path: Path, done: int) -> None:
    """Keep the log lines of the steps taken as done; an interrupted run wrote further ones, which come again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_atomically(path, "".join(line for line in lines if json.loads(line)["step"] <= done))


def _resume(path: Path, identity: Mapping[str, Any], parts: Mapping[str, Stateful]) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["identity"] != identity:
        changed = sorted(
            key for key in {*identity, *state["identity"]} if identity.get(key) != state["identity"].get(key)
        )
        raise CheckpointError(
            f"{path} is the state of another run (differs in {', '.join(changed)}): pass another folder, or remove it"
        )
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    _LOG.info("resuming %s at step %d", path.parent.name, state["done"])
    return int(state["done"])


def _save(path: Path, identity: Mapping[str, Any], parts: Mapping[str, Stateful], done: int) -> None:
    temporary = path.with_suffix(".tmp")
    state = {
        "identity": dict(identity),
        "done": done,
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    torch.save(state, temporary)
    temporary.replace(path)
