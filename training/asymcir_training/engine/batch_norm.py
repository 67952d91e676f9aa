"""Batch norm over the pictures of all processes, so that a run on many has the batch statistics of a run on one.

torch's own synchronised batch norm refuses the CPU. The one here serves CPU runs; on CUDA torch's is taken.

Notation: N values per channel over all processes, C channels.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from asymcir_training.engine.processes import Processes


def synchronise_batch_norm(model: nn.Module, processes: Processes) -> nn.Module:
    """Let the model's batch norms take their statistics over all processes, in place.

    Parameters, buffers and the keys of the state dict stay, so a state loads into the plain model and back, and an
    optimiser made before goes on. timm's batch norms keep their activation and drop layers. Hooks on a batch norm are
    lost: register them afterwards.

    Returns:
        The model (another object only where the model itself is a batch norm).
    """
    if processes.world == 1:
        return model
    if processes.device.type == "cuda":
        converted: nn.Module = convert_sync_batchnorm(model)
        return converted
    if isinstance(model, _BatchNorm):
        return SynchronisedBatchNorm(model, processes)
    for name, child in list(model.named_children()):
        model.add_module(name, synchronise_batch_norm(child, processes))
    return model


@contextmanager
def still_statistics(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context, forward passes in training mode leave the running statistics as they are."""
    # Not momentum 0: the number of batches would still advance, and a momentum of None means a plain mean.
    tracking = [
        part
        for module in modules
        for part in module.modules()
        if isinstance(part, _NormBase) and part.training and part.track_running_stats
    ]
    for part in tracking:
        part.track_running_stats = False
    try:
        yield
    finally:
        for part in tracking:
            part.track_running_stats = True


class SynchronisedBatchNorm(_BatchNorm):
    """A batch norm [b, C, ...] whose statistics in training are those of all processes; plain in eval mode.

    Args:
        plain: the batch norm that it replaces, whose parameters and buffers it takes over.
        processes: b may differ between them.
    """

    def __init__(self, plain: _BatchNorm, processes: Processes) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum, plain.affine, plain.track_running_stats)
        self.weight, self.bias = plain.weight, plain.bias
        self.running_mean, self.running_var = plain.running_mean, plain.running_var
        self.num_batches_tracked = plain.num_batches_tracked
        # timm's BatchNormAct2d holds what follows the norm; a plain one holds nothing, and nothing adds no key.
        self.drop = getattr(plain, "drop", nn.Identity())
        self.act = getattr(plain, "act", nn.Identity())
        self.processes = processes
        self.training = plain.training

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [b, C, ...], then drop and activate where the replaced norm did."""
        if not self.training:
            own = self.running_mean is None  # without running statistics, even eval mode takes the batch's
            y = functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=own, eps=self.eps
            )
        else:
            y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps, self.processes)
            if self.track_running_stats:
                self._follow(mean, variance, float(count))
        activated: Tensor = self.act(self.drop(y))
        return activated

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Move the running statistics towards this batch's; the variance without bias, as torch does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((variance * (count / (count - 1.0))).to(self.running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:  # the replaced norm's own check is of its class, not kept
        del input


class _Normalise(torch.autograd.Function):
    """Batch norm by the statistics of all processes, and its gradient, which flows between them as well."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, processes: Processes
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _merged_statistics(x, processes)
        mean, variance = mean.to(_wide(x).dtype), variance.to(_wide(x).dtype)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.processes = processes
        ctx.count = float(count)
        ctx.mark_non_differentiable(mean, variance, count)
        return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_deviation = ctx.saved_tensors
        over = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        dy = _wide(gradient)
        normalised = (_wide(x) - mean.view(shape)) * inverse_deviation.view(shape)
        sums = torch.stack([dy.sum(dim=over), (dy * normalised).sum(dim=over)])  # [2, C]
        dx = None
        if ctx.needs_input_grad[0]:
            means = (ctx.processes.sum(sums) / ctx.count).view(2, *shape)
            dx = inverse_deviation.view(shape) * (dy - means[0] - normalised * means[1])
            dx = (dx if weight is None else dx * weight.view(shape)).to(x.dtype)
        # Those of the weights stay this process's share: the trainer adds them up with all others.
        has_weights = weight is not None
        return dx, sums[1] if has_weights else None, sums[0] if has_weights else None, None, None


def _merged_statistics(x: Tensor, processes: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean [C], biased variance [C] and N over all processes, in float64.

    Source: Chan et al., 1979, merging of means and squared deviations: no difference of large sums.
    """
    variance, mean = torch.var_mean(_wide(x), dim=[0, *range(2, x.ndim)], correction=0)  # [C]
    count = mean.new_tensor([x.numel() // x.shape[1]], dtype=torch.float64)
    record = torch.cat([mean.double(), variance.double(), count])
    means, variances, counts = torch.split(processes.gather(record[None]), [x.shape[1], x.shape[1], 1], dim=1)
    total = counts.sum()
    merged = (means * counts).sum(dim=0) / total
    return merged, ((variances + (means - merged) ** 2) * counts).sum(dim=0) / total, total


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
