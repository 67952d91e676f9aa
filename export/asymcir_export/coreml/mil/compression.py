"""Operators of ML Programs that decompress weights, and that quantise activations.

Some names stand for two operators: the older opset packs indices and masks into bytes beside a shape, the newer one has
integers of less than a byte in the tensor's own shape.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from asymcir_export.coreml.mil.arguments import Arguments, Operator
from asymcir_export.coreml.mil.program import unpack_bits
from asymcir_export.errors import NotVerifiedError

_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def _affine_dequantize(arguments: Arguments) -> Tensor:
    data, axis = arguments.tensor("quantized_data"), arguments.integer("axis")
    scale, zero_point = (_along(arguments.tensor(name), data, axis) for name in ("scale", "zero_point"))
    return (data - zero_point) * scale


def _blockwise_shift_scale(arguments: Arguments) -> Tensor:
    data, scale = arguments.tensor("data"), arguments.tensor("scale")
    offset = arguments.optional("offset")
    shifted = data if offset is None else data - _expand_blocks(offset, data)
    return shifted * _expand_blocks(scale, data)


def _expand_blocks(values: Tensor, data: Tensor) -> Tensor:
    """Repeat a value per block until there is one per element."""
    if values.ndim != data.ndim or any(size % blocks for size, blocks in zip(data.shape, values.shape, strict=True)):
        raise NotVerifiedError(f"a block shape of {list(values.shape)} for weights {list(data.shape)}")
    for axis, (size, blocks) in enumerate(zip(data.shape, values.shape, strict=True)):
        if 1 < blocks < size:  # one for all broadcasts, one for each is there already
            values = values.repeat_interleave(size // blocks, dim=axis)
    return values


def _lut_to_dense(arguments: Arguments) -> Tensor:
    lut, indices = arguments.tensor("lut"), arguments.tensor("indices")
    if arguments.has("shape"):
        shape = arguments.integers("shape")
        bits = int(np.log2(lut.numel()))
        if lut.ndim != 1 or 1 << bits != lut.numel():
            raise NotVerifiedError(f"constexpr_lut_to_dense (a table of {list(lut.shape)})")
        packed = indices.numpy().astype(np.uint8)
        return lut[torch.from_numpy(unpack_bits(packed, bits, int(np.prod(shape))).astype(np.int64))].reshape(shape)
    if lut.ndim != indices.ndim + 2 or lut.shape[-1] != 1:
        raise NotVerifiedError(f"constexpr_lut_to_dense (a table of {list(lut.shape)})")
    if arguments.has("vector_axis"):
        arguments.integer("vector_axis")  # means nothing for vectors of one
    tables = lut.squeeze(-1)  # [groups..., palettes]
    for axis, (size, groups) in enumerate(zip(indices.shape, tables.shape[:-1], strict=True)):
        if size % groups:
            raise NotVerifiedError(f"constexpr_lut_to_dense (a table of {list(lut.shape)})")
        if groups > 1:
            tables = tables.repeat_interleave(size // groups, dim=axis)
    tables = tables.expand(*indices.shape, lut.shape[-2])
    return tables.gather(-1, indices.unsqueeze(-1)).squeeze(-1)


def _sparse_to_dense(arguments: Arguments) -> Tensor:
    values, mask = arguments.tensor("nonzero_data"), arguments.tensor("mask")
    shape = list(mask.shape)
    if arguments.has("shape"):
        shape = arguments.integers("shape")
        bits = np.unpackbits(mask.numpy().astype(np.uint8), bitorder="little")
        mask = torch.from_numpy(bits[: int(np.prod(shape))])
    dense = torch.zeros(mask.numel(), dtype=values.dtype)
    dense[mask.reshape(-1) != 0] = values
    return dense.reshape(shape)


def _constexpr_cast(arguments: Arguments) -> Tensor:
    arguments.word("output_dtype", among=("fp32",))
    return arguments.tensor("source_val")


def _quantize(arguments: Arguments) -> Tensor:
    x, axis = arguments.tensor("input"), arguments.integer("axis", 0)
    low, high = _RANGES[arguments.word("output_dtype", among=tuple(_RANGES))]
    scaled = torch.round(x / _along(arguments.tensor("scale"), x, axis))
    if arguments.has("zero_point"):
        scaled = scaled + _along(arguments.tensor("zero_point"), x, axis)
    return scaled.clamp(low, high).to(torch.int64)


def _dequantize(arguments: Arguments) -> Tensor:
    x, axis = arguments.tensor("input"), arguments.integer("axis", 0)
    shifted = x - _along(arguments.tensor("zero_point"), x, axis) if arguments.has("zero_point") else x
    return shifted * _along(arguments.tensor("scale"), x, axis)


def _along(values: Tensor, data: Tensor, axis: int) -> Tensor:
    """Lay a vector along an axis of `data`; a scalar stays one."""
    if values.ndim == 0:
        return values
    shape = [1] * data.ndim
    shape[axis] = values.numel()
    return values.reshape(shape)


COMPRESSION_OPERATORS: Mapping[str, Operator] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": _constexpr_cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_sparse_to_dense": _sparse_to_dense,
    "dequantize": _dequantize,
    "quantize": _quantize,
}
