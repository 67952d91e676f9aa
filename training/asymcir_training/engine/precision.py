"""The precision of a run's arithmetic: float32, or autocast to bf16 or fp16 with a scaled loss."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from asymcir_training.errors import ConfigError, TrainingError

_LOWER_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Gradients that overflow even when the loss is scaled down come from the model, not from fp16's narrow range.
_LEAST_LOSS_SCALE = 1.0


class Precision:
    """Arithmetic of the forward passes: "fp32", or "bf16" or "fp16" by autocast; weights and losses stay fp32.

    Attributes:
        name: as given.
        scaler: keeps fp16 gradients within range; does nothing in the other precisions.

    Raises:
        ConfigError: another name, or a GPU that cannot compute in bf16.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name not in {"fp32", *_LOWER_PRECISIONS}:
            raise ConfigError(f"expected the precision fp32, bf16 or fp16, got {name!r}")
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            gpu = torch.cuda.get_device_name(device)
            raise ConfigError(f"bf16 was asked for, and the {gpu} cannot compute in it: take fp16 or fp32")
        self.name = name
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    @property
    def lower(self) -> torch.dtype | None:
        """What autocast computes in; None for fp32."""
        return _LOWER_PRECISIONS.get(self.name)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that forward passes run in."""
        return torch.autocast(self.device.type, dtype=self.lower or torch.bfloat16, enabled=self.lower is not None)

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], *, clip_norm: float
    ) -> dict[str, float]:
        """Unscale, clip, take the optimiser's step and adapt the loss scale.

        Where fp16 gradients overflowed, the step is skipped and the loss scale halved: nothing is wrong then, so the
        norm is given as 0 and not as infinite.

        Returns:
            "norm", before clipping; in fp16 also "loss_scale" and "overflowed" (1 for a skipped step).

        Raises:
            TrainingError: fp16 gradients that no loss scale brings into range.
        """
        self.scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(parameters, clip_norm))
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        if not self.scaler.is_enabled():
            return {"norm": norm}
        scale = self.scaler.get_scale()
        overflowed = scale < before
        if overflowed and scale < _LEAST_LOSS_SCALE:
            raise TrainingError(
                f"fp16 gradients are infinite or NaN even at a loss scale of {before:g}: train in bf16 or fp32, or "
                "lower the learning rate"
            )
        return {"norm": 0.0 if overflowed else norm, "loss_scale": scale, "overflowed": float(overflowed)}

    def state_dict(self) -> dict[str, Any]:
        """Return the loss scale and what adapts it; empty except in fp16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state; one of another precision is left alone, the scale then starts anew."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
