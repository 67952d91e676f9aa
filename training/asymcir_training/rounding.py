"""Training through 8-bit rounding, so that the static int8 export finds weights that have learnt to live with it.

Within `rounded_to_int8` an encoder computes what ONNX Runtime's int8 graph computes, up to where ranges come from:
weights have a scale per output channel, symmetric about zero; activations have one per tensor, from the least and the
greatest value of the batch at hand, where the export takes them from calibration pictures. What the export leaves in
float stays float here: the convolution on pixels, a depthwise one straight behind it, and sums of vectors. A layer's
output is rounded where the next one reads it, behind norm and activation function; a layer with a bias of its own, as
those of the token learner, has no norm behind it, and its output is rounded at once. Gradients pass the rounding as if
it were not there (straight-through).

A batch norm that follows a convolution is folded into it by the export; that scales an output channel as a whole, and
such a channel's weights round alike before and after.

Source: Jacob et al., Quantization and Training of Neural Networks, CVPR 2018 (arXiv:1712.05877).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_WEIGHT_MAX, _ACTIVATION_MAX = 127, 255
_LEAST_RANGE = 1e-8
_FEATURE_MAP_RANK = 4
_SUMS = (torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__iadd__)


@contextmanager
def rounded_to_int8(active: bool = True) -> Iterator[None]:
    """Within this context, convolutions, linear layers and sums of feature maps compute in rounded 8-bit values.

    To be entered for each forward pass, for it tells the first convolutions by their order.
    """
    if not active:
        yield
        return
    with _Rounding():
        yield


def round_weight(weight: Tensor) -> Tensor:
    """Round to a scale per output channel: [O, ...] -> the same shape, with gradients."""
    largest = weight.detach().float().flatten(1).abs().amax(dim=1).clamp_min(_LEAST_RANGE)  # [O]
    zeros = torch.zeros(len(largest), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(
        weight.float(), largest / _WEIGHT_MAX, zeros, 0, -_WEIGHT_MAX, _WEIGHT_MAX
    ).to(weight.dtype)


def round_activation(values: Tensor) -> Tensor:
    """Round to 256 steps from the least value to the greatest, zero being one of them; with gradients."""
    least, greatest = torch.aminmax(values.detach().float())
    least, greatest = least.clamp_max(0.0), greatest.clamp_min(0.0)
    scale = ((greatest - least) / _ACTIVATION_MAX).clamp_min(_LEAST_RANGE)
    zero = (-least / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, 0, _ACTIVATION_MAX).to(values.dtype)


class _Rounding(TorchFunctionMode):
    """Rounds the inputs of the operators that the export quantises."""

    def __init__(self) -> None:
        super().__init__()
        self._convolutions = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operator."""
        del types
        kwargs = dict(kwargs or {})
        if func in (functional.conv2d, functional.linear) and not self._is_first(func, args[1]):
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            output: Tensor = func(round_activation(args[0]), round_weight(args[1]), *args[2:], **kwargs)
            return output if bias is None else round_activation(output)
        if func in _SUMS and all(isinstance(value, Tensor) and value.ndim == _FEATURE_MAP_RANK for value in args):
            args = tuple(round_activation(value) for value in args)
        return func(*args, **kwargs)

    def _is_first(self, func: Callable[..., Any], weight: Tensor) -> bool:
        """Tell the convolution on pixels, and depthwise ones before any other."""
        if func is functional.linear:
            return False
        depthwise = weight.shape[1] == 1
        first = self._convolutions == 0 or (self._convolutions == 1 and depthwise)
        if not (first and depthwise):
            self._convolutions += 1
        return first
