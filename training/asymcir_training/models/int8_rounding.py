"""Training through 8-bit rounding, so that the static int8 export finds weights that have learnt to live with it.

Within `rounded_to_int8` an encoder computes about what ONNX Runtime's int8 graph computes: weights have a scale per
output channel, symmetric about zero; activations have one per tensor. What the export leaves in float stays float: the
convolution on pixels, a depthwise one straight behind it, and sums of vectors. A convolution's output is rounded where
the next layer reads it, behind norm and activation function; one with a bias of its own, as those of the token learner,
has no norm behind it, and its output is rounded at once. Gradients pass the rounding as if it were not there
(straight-through).

What differs: ranges come from the batch at hand, the export's from calibration pictures; the export equalises channels
first and corrects biases, so it rounds a little less; it also rounds before a ReLU or SiLU (not before a ReLU6), and
between the parts of an attention, of which only what goes into the self-attention and the weights are rounded here.

A batch norm that follows a convolution is folded into it by the export; that scales an output channel as a whole, and
such a channel's weights round alike before and after.

Source: Jacob et al., Quantization and Training of Neural Networks, CVPR 2018 (arXiv:1712.05877).
"""

import inspect
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
_SUMS = (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__iadd__)  # add_ must write where it reads
_ATTENTION = inspect.signature(functional.multi_head_attention_forward)


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
        if func is functional.conv2d:
            return self._convolve(*args, **kwargs)
        if func is functional.linear:
            return _transform(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            return func(**_round_attention(_ATTENTION.bind(*args, **kwargs).arguments))
        if func in _SUMS and len(args) == 2 and _are_maps(*args):
            args = tuple(round_activation(value) for value in args)
        return func(*args, **kwargs)

    def _convolve(
        self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if self._is_first(weight):
            return functional.conv2d(inputs, weight, bias, *args, **kwargs)
        output = functional.conv2d(round_activation(inputs), round_weight(weight), bias, *args, **kwargs)
        return output if bias is None else round_activation(output)

    def _is_first(self, weight: Tensor) -> bool:
        """Tell the convolution on pixels, and depthwise ones before any other."""
        depthwise = weight.shape[1] == 1
        first = self._convolutions == 0 or (self._convolutions == 1 and depthwise)
        if not (first and depthwise):
            self._convolutions += 1
        return first


def _transform(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer: on vectors its bias belongs to it (Gemm), on tokens it is added afterwards, in float."""
    inputs, weight = round_activation(inputs), round_weight(weight)
    if inputs.ndim == 2 or bias is None:
        return round_activation(functional.linear(inputs, weight, bias))
    return round_activation(functional.linear(inputs, weight)) + bias


def _round_attention(given: dict[str, Any]) -> dict[str, Any]:
    """Round what the export rounds: the output's weights, and the input's where one product makes all three of it."""
    changed = {"out_proj_weight": round_weight(given["out_proj_weight"])}
    if given["query"] is given["key"] and given["in_proj_weight"] is not None:
        rounded = round_activation(given["query"])
        changed |= {"query": rounded, "key": rounded, "value": rounded}
        changed["in_proj_weight"] = round_weight(given["in_proj_weight"])
    return given | changed


def _are_maps(*values: Any) -> bool:
    """Tell feature maps of one shape; what scales or shifts channels, MixStyle's statistics, is [b, c, 1, 1]."""
    if not all(isinstance(value, Tensor) and value.ndim == _FEATURE_MAP_RANK for value in values):
        return False
    return len({value.shape for value in values}) == 1 and values[0].shape[-1] > 1
