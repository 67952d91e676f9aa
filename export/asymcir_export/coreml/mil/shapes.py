"""Operators of ML Programs that move values and compute none: reshape, transpose, slice, gather, concat, pad."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from asymcir_export.coreml.mil.arguments import Arguments, Operator
from asymcir_export.errors import NotVerifiedError

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}


def _reshape(arguments: Arguments) -> Tensor:
    x, shape = arguments.tensor("x"), arguments.integers("shape")
    if 0 in shape and len(shape) != x.ndim:
        raise NotVerifiedError("reshape (a 0 in a shape of another rank)")
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def _transpose(arguments: Arguments) -> Tensor:
    return arguments.tensor("x").permute(arguments.integers("perm"))


def _expand_dims(arguments: Arguments) -> Tensor:
    x, axes = arguments.tensor("x"), arguments.integers("axes")
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    return x.squeeze(tuple(arguments.integers("axes", list(range(x.ndim)))))


def _concat(arguments: Arguments) -> Tensor:
    if arguments.flag("interleave", default=False):
        raise NotVerifiedError("concat (interleaved)")
    return torch.cat(arguments.tensors("values"), dim=arguments.integer("axis"))


def _stack(arguments: Arguments) -> Tensor:
    return torch.stack(arguments.tensors("values"), dim=arguments.integer("axis"))


def _split(arguments: Arguments) -> tuple[Tensor, ...]:
    x, axis = arguments.tensor("x"), arguments.integer("axis")
    count = arguments.integer("num_splits", 0)
    sizes = arguments.integers("split_sizes", [])
    if not sizes:
        if not count or x.shape[axis] % count:
            raise NotVerifiedError(f"split (of {x.shape[axis]} into {count})")
        sizes = [x.shape[axis] // count] * count
    return x.split(sizes, dim=axis)


def _tile(arguments: Arguments) -> Tensor:
    return arguments.tensor("x").repeat(arguments.integers("reps"))


def _slice_by_index(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    begin, end = arguments.integers("begin"), arguments.integers("end")
    stride = arguments.integers("stride", [1] * x.ndim)
    open_begin, open_end, single = (
        arguments.integers(name, [0] * x.ndim) for name in ("begin_mask", "end_mask", "squeeze_mask")
    )
    if any(step < 1 for step in stride):
        raise NotVerifiedError("slice_by_index (backwards)")
    parts: list[slice | int] = []
    for i in range(x.ndim):
        if single[i]:
            parts.append(0 if open_begin[i] else begin[i])
        else:
            parts.append(slice(None if open_begin[i] else begin[i], None if open_end[i] else end[i], stride[i]))
    return x[tuple(parts)]


def _slice_by_size(arguments: Arguments) -> Tensor:
    x, begin, sizes = arguments.tensor("x"), arguments.integers("begin"), arguments.integers("size")
    for axis, (first, size) in enumerate(zip(begin, sizes, strict=True)):
        first = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, first, x.shape[axis] - first if size == -1 else size)
    return x


def _gather(arguments: Arguments) -> Tensor:
    if arguments.integer("batch_dims", 0):
        raise NotVerifiedError("gather (with batch_dims)")
    arguments.flag("validate_indices", default=False)  # whether a wrong index is reported; torch always does
    x, indices, axis = arguments.tensor("x"), arguments.tensor("indices"), arguments.integer("axis", 0)
    axis %= x.ndim
    taken = x.index_select(axis, indices.reshape(-1) % x.shape[axis])
    return taken.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _gather_along_axis(arguments: Arguments) -> Tensor:
    arguments.flag("validate_indices", default=False)
    x, axis = arguments.tensor("x"), arguments.integer("axis", 0)
    return x.gather(axis, arguments.tensor("indices") % x.shape[axis])


def _pad(arguments: Arguments) -> Tensor:
    x, pad = arguments.tensor("x"), arguments.integers("pad")
    mode = _PAD_MODES[arguments.word("mode", "constant", among=tuple(_PAD_MODES))]
    value = arguments.number("constant_val", 0.0)
    pairs = [pad[i : i + 2] for i in range(0, len(pad), 2)]
    backwards = [size for pair in reversed(pairs) for size in pair]  # torch names the last axis first
    if mode == "constant":
        return functional.pad(x, backwards, value=value)
    outer = [(0, 0)] * (x.ndim - len(pairs)) + [tuple(pair) for pair in pairs]
    padded = np.pad(x.numpy(), outer, mode="edge" if mode == "replicate" else "reflect")
    return torch.from_numpy(padded)


def _shape(arguments: Arguments) -> Tensor:
    return torch.tensor(arguments.tensor("x").shape)


def _fill(arguments: Arguments) -> Tensor:
    value = arguments.tensor("value") if arguments.has("value") else torch.tensor(0.0)
    return value.reshape(()).expand(arguments.integers("shape"))


def _reverse(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    return x.flip(arguments.integers("axes", list(range(x.ndim))))


def _pixel_shuffle(arguments: Arguments) -> Tensor:
    return functional.pixel_shuffle(arguments.tensor("x"), arguments.integer("upscale_factor"))


def _pixel_unshuffle(arguments: Arguments) -> Tensor:
    return functional.pixel_unshuffle(arguments.tensor("x"), arguments.integer("downscale_factor"))


SHAPE_OPERATORS: Mapping[str, Operator] = {
    "concat": _concat,
    "expand_dims": _expand_dims,
    "fill": _fill,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "reshape": _reshape,
    "reverse": _reverse,
    "shape": _shape,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
