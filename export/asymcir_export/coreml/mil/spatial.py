"""Operators of ML Programs over space: convolution, pooling, resizing."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from asymcir_export.coreml.mil.arguments import Arguments, Operator
from asymcir_export.errors import NotVerifiedError

_PAD_TYPES = ("valid", "same", "same_lower", "custom")
_SAMPLING_MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "UNALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS")
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _conv(arguments: Arguments) -> Tensor:
    x, weight = arguments.tensor("x"), arguments.tensor("weight")
    rank = x.ndim - 2
    strides = arguments.integers("strides", [1] * rank)
    dilations = arguments.integers("dilations", [1] * rank)
    pads = _pads(arguments, x, list(weight.shape[2:]), strides, dilations)
    padding: list[int] = [before for before, _ in pads]
    if any(before != after for before, after in pads):
        x, padding = _pad_sides(x, pads, 0.0), [0] * rank
    groups = arguments.integer("groups", 1)
    return _CONVOLUTIONS[rank](x, weight, arguments.optional("bias"), strides, padding, dilations, groups)


def _max_pool(arguments: Arguments) -> Tensor:
    x, sizes, strides, pads, ceil = _pool(arguments)
    if ceil:
        if any(before != after for before, after in pads):
            raise NotVerifiedError("max_pool (rounding up, padded unevenly)")
        padding = [before for before, _ in pads]
        return _MAX_POOLS[x.ndim - 2](x, sizes, strides, padding, ceil_mode=True)
    return _MAX_POOLS[x.ndim - 2](_pad_sides(x, pads, -math.inf), sizes, strides)


def _avg_pool(arguments: Arguments) -> Tensor:
    x, sizes, strides, pads, ceil = _pool(arguments)
    pool = _MEAN_POOLS[x.ndim - 2]
    spans = [
        size + before + after - kernel for size, (before, after), kernel in zip(x.shape[2:], pads, sizes, strict=True)
    ]
    if ceil and any(span % stride for span, stride in zip(spans, strides, strict=True)):
        raise NotVerifiedError("avg_pool (rounding up)")  # what the last window is divided by is not described
    mean = pool(_pad_sides(x, pads, 0.0), sizes, strides)
    if not arguments.flag("exclude_padding_from_average", default=False):
        return mean
    return mean / pool(_pad_sides(torch.ones_like(x[:1, :1]), pads, 0.0), sizes, strides)


def _pool(arguments: Arguments) -> tuple[Tensor, list[int], list[int], list[tuple[int, int]], bool]:
    x, sizes = arguments.tensor("x"), arguments.integers("kernel_sizes")
    strides = arguments.integers("strides", [1] * len(sizes))
    pads = _pads(arguments, x, sizes, strides, [1] * len(sizes))
    return x, sizes, strides, pads, arguments.flag("ceil_mode", default=False)


def _pads(
    arguments: Arguments, x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """Rows before and after, for each axis.

    `same` gives ceil(size / stride) places; what is odd is padded after, with `same_lower` before, as TensorFlow and
    ONNX, whose graphs they come from, have it.
    """
    kind = arguments.word("pad_type", "valid", among=_PAD_TYPES)
    given = arguments.integers("pad", [0] * (2 * len(kernel)))  # read, though only `custom` uses it
    if kind == "custom":
        return [(given[2 * i], given[2 * i + 1]) for i in range(len(kernel))]
    pads = []
    for size, length, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = 0
        if kind != "valid":
            total = max(0, (math.ceil(size / stride) - 1) * stride + (length - 1) * dilation + 1 - size)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if kind == "same" else (more, less))
    return pads


def _pad_sides(x: Tensor, pads: list[tuple[int, int]], value: float) -> Tensor:
    if not any(size for pair in pads for size in pair):
        return x
    return functional.pad(x, [size for pair in reversed(pads) for size in pair], value=value)


def _upsample_nearest_neighbor(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    for axis, name in ((-2, "scale_factor_height"), (-1, "scale_factor_width")):
        factor = arguments.number(name, 1)
        if factor != int(factor):
            raise NotVerifiedError(f"upsample_nearest_neighbor (by {factor})")
        x = x.repeat_interleave(int(factor), dim=axis)
    return x


def _resize_nearest_neighbor(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    for axis, name in ((-2, "target_size_height"), (-1, "target_size_width")):
        factor, rest = divmod(arguments.integer(name), x.shape[axis])
        if rest:  # where samples are taken then is not described
            raise NotVerifiedError(f"resize_nearest_neighbor (from {x.shape[axis]} to {arguments.integer(name)})")
        x = x.repeat_interleave(factor, dim=axis)
    return x


def _upsample_bilinear(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    corners = arguments.flag("align_corners", default=True)
    if arguments.flag("half_pixel_centers", default=not corners) == corners:
        raise NotVerifiedError("upsample_bilinear (half_pixel_centers with align_corners)")
    mode = "STRICT_ALIGN_CORNERS" if corners else "UNALIGN_CORNERS"
    for axis, name in ((-2, "scale_factor_height"), (-1, "scale_factor_width")):
        target = math.floor(x.shape[axis] * arguments.number(name, 1))
        x = _interpolate(x, axis, _sampling_places(x.shape[axis], target, mode))
    return x


def _resize_bilinear(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    mode = arguments.word("sampling_mode", "DEFAULT", among=_SAMPLING_MODES)
    for axis, name in ((-2, "target_size_height"), (-1, "target_size_width")):
        x = _interpolate(x, axis, _sampling_places(x.shape[axis], arguments.integer(name, 1), mode))
    return x


def _resize(arguments: Arguments) -> Tensor:
    x, shape, count = arguments.tensor("x"), arguments.integers("shape"), arguments.integer("resized_dims")
    arguments.word("interpolation_mode", "LINEAR", among=("LINEAR",))
    mode = arguments.word("sampling_mode", "DEFAULT", among=_SAMPLING_MODES)
    for axis, target in zip(range(-count, 0), shape[-count:], strict=True):
        if target:
            x = _interpolate(x, axis, _sampling_places(x.shape[axis], target, mode))
    return x


def _sampling_places(size: int, target: int, mode: str) -> Tensor:
    """Where along an axis of `size` places `target` samples are taken, by Apple's formulas."""
    steps = torch.arange(target, dtype=torch.float64)
    if mode.endswith("ALIGN_CORNERS") and mode != "UNALIGN_CORNERS":
        if target == 1:
            places = steps + (0 if mode == "STRICT_ALIGN_CORNERS" else (size - 1) / 2)
        else:
            places = steps * (size - 1) / (target - 1)
    elif mode == "UNALIGN_CORNERS":
        places = (steps + 0.5) * size / target - 0.5
    elif mode == "OFFSET_CORNERS":
        places = (steps + 0.5) * max(1, size - 1) / target
    else:
        places = steps * size / target
    return places.clamp(0, size - 1)


def _interpolate(x: Tensor, axis: int, places: Tensor) -> Tensor:
    low = places.floor().long()
    high = (low + 1).clamp_max(x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = len(places)
    weight = (places - low).to(torch.float32).reshape(shape)
    return x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight


SPATIAL_OPERATORS: Mapping[str, Operator] = {
    "avg_pool": _avg_pool,
    "conv": _conv,
    "max_pool": _max_pool,
    "resize": _resize,
    "resize_bilinear": _resize_bilinear,
    "resize_nearest_neighbor": _resize_nearest_neighbor,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest_neighbor,
}
