"""A run of a second with everything that a state must carry, and a process that is killed again and again in it.

Batch norm, dropout, channels-last weights, AdamW, an average of the weights, a gradient scaler, validation.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from asymcir_training.engine.schedule import cosine_schedule, parameter_groups
from asymcir_training.runs.log import LOG_FILE, read_log
from asymcir_training.runs.loop import run_steps
from asymcir_training.runs.settings import LoopConfig, RunSummary
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

STEPS = 30


def make_model() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 4 * 4, 1)
    )
    return model.to(memory_format=torch.channels_last)


def train(
    folder: Path,
    *,
    steps: int = STEPS,
    lr: float = 0.02,
    before_step: Callable[[int], Any] = lambda number: None,
    figures_of: Callable[[int, dict[str, float]], dict[str, float]] = lambda number, figures: figures,
    validation: Callable[[int, dict[str, float]], dict[str, float]] | None = None,
    identity: dict[str, Any] | None = None,
    describe: Callable[[int], dict[str, Any]] | None = None,
    loop: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[RunSummary, dict[str, Tensor]]:
    """Train a little model to tell the mean of pictures; return the summary and the weights, the average's too."""
    model = make_model()
    optimizer = torch.optim.AdamW(parameter_groups({model: lr}, weight_decay=0.1))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=7)
    held_out = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(5))

    def step(number: int) -> dict[str, float]:
        before_step(number)
        cosine_schedule(optimizer, number=number, steps=steps, warmup=5)
        pictures = torch.randn(16, 3, 6, 6)
        loss = (model(pictures)[:, 0] - pictures.mean(dim=(1, 2, 3))).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        average.update_parameters(model)
        return figures_of(number, {"loss": loss.item(), "norm": norm.item()})

    def validate(done: int) -> dict[str, float]:
        average.eval()
        with torch.no_grad():
            error = (average(held_out)[:, 0] - held_out.mean(dim=(1, 2, 3))).square().mean().item()
        average.train()
        return (validation or (lambda _, figures: figures))(done, {"accuracy": -error})

    settings: dict[str, Any] = {"save_every": 5, "log_every": 1, "curves": False, **(loop or {})}
    summary = run_steps(
        LoopConfig(folder=folder, steps=steps, **settings),
        identity=identity or {"config": {"lr": lr}},
        parts={"model": model, "optimizer": optimizer, "average": average, "scaler": scaler},
        step=step,
        validate=validate if "validate_every" in settings else None,
        describe=describe,
        **more,
    )
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    return summary, weights | {f"average.{name}": value for name, value in average.state_dict().items()}


def train_though_killed(folder: Path, seed: int, *, kills: int = 4, **changes: Any) -> None:
    """Train in child processes; all but the last are ended by SIGKILL, at a random moment about a random step.

    To be called where torch has computed nothing yet, for its threads do not survive a fork.
    """
    draw = random.Random(seed)
    for target in sorted(draw.randrange(STEPS - 3) for _ in range(kills)):
        child = _start_child(folder, **changes)
        while max((line["step"] for line in read_log(folder / LOG_FILE)), default=0) < target:
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.01))
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            raise RuntimeError(f"the run ended before it was killed at step {target}")
    if os.waitpid(_start_child(folder, **changes), 0)[1]:
        raise RuntimeError("the run did not come to its end")


def _start_child(folder: Path, **changes: Any) -> int:
    child = os.fork()
    if not child:
        _, weights = train(folder, before_step=lambda number: time.sleep(0.005), **changes)
        torch.save(weights, folder / "weights.pt")
        os._exit(0)
    return child


if __name__ == "__main__":
    train_though_killed(
        Path(sys.argv[1]), int(sys.argv[2]), loop={"save_every": 3, "validate_every": 4, "best": "accuracy"}
    )
