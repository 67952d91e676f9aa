"""Learning rates: AdamW's parameter groups with a peak each, and the curve that they all follow."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def seed_of_step(seed: int, number: int) -> int:
    """Return the seed of everything that a step draws: of the run's seed and the step's number alone."""
    return seed * 1_000_003 + number


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
