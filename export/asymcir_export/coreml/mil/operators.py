"""Operators of ML Programs: element by element, activations, reductions, normalisation, matrix products.

Each computes in float32 what Apple's description of the operator says; `mil_evaluator` rounds the result to the type
that the program declares.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from asymcir_export.coreml.mil.arguments import Arguments, Operator
from asymcir_export.coreml.mil.compression import COMPRESSION_OPERATORS
from asymcir_export.coreml.mil.shapes import SHAPE_OPERATORS
from asymcir_export.coreml.mil.spatial import SPATIAL_OPERATORS
from asymcir_export.errors import NotVerifiedError

_FLOATS = ("fp16", "fp32")
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32")


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda arguments: function(arguments.tensor("x"))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda arguments: function(arguments.tensor("x"), arguments.tensor("y"))


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def reduce(arguments: Arguments) -> Tensor:
        x = arguments.tensor("x")
        axes = arguments.integers("axes", list(range(x.ndim)))
        return function(x, axes, arguments.flag("keep_dims", default=False))

    return reduce


def _argument_reduction(function: Callable[..., Tensor]) -> Operator:
    def reduce(arguments: Arguments) -> Tensor:
        if arguments.has("output_dtype"):
            arguments.word("output_dtype", among=("int32", "uint16"))
        axis, keep = arguments.integer("axis", -1), arguments.flag("keep_dims", default=False)
        return function(arguments.tensor("x"), dim=axis, keepdim=keep)

    return reduce


def _real_div(arguments: Arguments) -> Tensor:
    x, y = arguments.tensor("x"), arguments.tensor("y")
    if not (x.is_floating_point() and y.is_floating_point()):
        raise NotVerifiedError("real_div (of integers)")
    return x / y


def _clip(arguments: Arguments) -> Tensor:
    return arguments.tensor("x").clamp(arguments.number("alpha"), arguments.number("beta"))


def _threshold(arguments: Arguments) -> Tensor:
    return arguments.tensor("x").clamp_min(arguments.number("alpha"))


def _sigmoid_hard(arguments: Arguments) -> Tensor:
    return (arguments.tensor("x") * arguments.number("alpha") + arguments.number("beta")).clamp(0, 1)


def _leaky_relu(arguments: Arguments) -> Tensor:
    return functional.leaky_relu(arguments.tensor("x"), arguments.number("alpha"))


def _elu(arguments: Arguments) -> Tensor:
    return functional.elu(arguments.tensor("x"), arguments.number("alpha"))


def _clamped_relu(arguments: Arguments) -> Tensor:
    x = functional.leaky_relu(arguments.tensor("x"), arguments.number("alpha"))
    return x.clamp_max(arguments.number("beta"))


def _thresholded_relu(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    return torch.where(x >= arguments.number("alpha"), x, 0.0)


def _scaled_tanh(arguments: Arguments) -> Tensor:
    return arguments.number("alpha") * torch.tanh(arguments.tensor("x") * arguments.number("beta"))


def _prelu(arguments: Arguments) -> Tensor:
    return functional.prelu(arguments.tensor("x"), arguments.tensor("alpha"))


def _linear_activation(arguments: Arguments) -> Tensor:
    return arguments.tensor("x") * arguments.number("alpha") + arguments.number("beta")


def _gelu(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    mode = arguments.word("mode", "EXACT", among=("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"))
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def _log(arguments: Arguments) -> Tensor:
    return torch.log(arguments.tensor("x") + arguments.number("epsilon", 1e-45))


def _rsqrt(arguments: Arguments) -> Tensor:
    return torch.rsqrt(arguments.tensor("x") + arguments.number("epsilon", 1e-12))


def _inverse(arguments: Arguments) -> Tensor:
    return 1 / (arguments.tensor("x") + arguments.number("epsilon", 1e-4))


def _cast(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    word = arguments.word("dtype", among=(*_FLOATS, *_INTEGERS, "bool"))
    if word == "bool":
        return x != 0
    # The evaluator rounds to fp16. Integers are cut towards zero, as C does.
    return x.to(torch.float32) if word in _FLOATS else x.to(torch.int64)


def _select(arguments: Arguments) -> Tensor:
    return torch.where(arguments.tensor("cond").bool(), arguments.tensor("a"), arguments.tensor("b"))


def _softmax(arguments: Arguments) -> Tensor:
    return arguments.tensor("x").softmax(dim=arguments.integer("axis", -1))


def _layer_norm(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    axes = sorted(axis % x.ndim for axis in arguments.integers("axes", list(range(x.ndim))))
    return _normalise(arguments, x, axes, [x.shape[i] if i in axes else 1 for i in range(x.ndim)])


def _instance_norm(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    return _normalise(arguments, x, list(range(2, x.ndim)), _channel_shape(x))


def _normalise(arguments: Arguments, x: Tensor, axes: list[int], shape: list[int]) -> Tensor:
    variance, mean = torch.var_mean(x, dim=axes, keepdim=True, correction=0)
    return _affine(arguments, (x - mean) * torch.rsqrt(variance + arguments.number("epsilon", 1e-5)), shape)


def _batch_norm(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    shape = _channel_shape(x)
    mean, variance = arguments.tensor("mean").reshape(shape), arguments.tensor("variance").reshape(shape)
    return _affine(arguments, (x - mean) * torch.rsqrt(variance + arguments.number("epsilon", 1e-5)), shape)


def _affine(arguments: Arguments, x: Tensor, shape: list[int]) -> Tensor:
    gamma, beta = arguments.optional("gamma"), arguments.optional("beta")
    x = x if gamma is None else x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


def _channel_shape(x: Tensor) -> list[int]:
    return [x.shape[1] if i == 1 else 1 for i in range(x.ndim)]


def _l2_norm(arguments: Arguments) -> Tensor:
    x = arguments.tensor("x")
    squares = x.square().sum(dim=[-3, -2, -1], keepdim=True)
    return x * torch.rsqrt(squares + arguments.number("epsilon", 1e-6))


def _linear(arguments: Arguments) -> Tensor:
    return functional.linear(arguments.tensor("x"), arguments.tensor("weight"), arguments.optional("bias"))


def _matmul(arguments: Arguments) -> Tensor:
    x, y = arguments.tensor("x"), arguments.tensor("y")
    if arguments.flag("transpose_x", default=False) and x.ndim > 1:
        x = x.transpose(-1, -2)
    if arguments.flag("transpose_y", default=False) and y.ndim > 1:
        y = y.transpose(-1, -2)
    return x @ y


def _einsum(arguments: Arguments) -> Tensor:
    return torch.einsum(arguments.word("equation"), arguments.tensors("values"))


def _attention(arguments: Arguments) -> Tensor:
    query, key, value = (arguments.tensor(name) for name in ("query", "key", "value"))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    mask = arguments.optional("attn_mask")
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1) @ value


def _l2_distance(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.square().sum(dim=axes, keepdim=keep).sqrt()


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(dim=axis, keepdim=keep)
    return x


_ELEMENTWISE: Mapping[str, Operator] = {
    "abs": _unary(torch.abs),
    "add": _binary(torch.add),
    "cast": _cast,
    "ceil": _unary(torch.ceil),
    "clip": _clip,
    "cos": _unary(torch.cos),
    "equal": _binary(torch.eq),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "exp2": _unary(torch.exp2),
    "floor": _unary(torch.floor),
    "floor_div": _binary(torch.floor_divide),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "identity": _unary(torch.clone),
    "inverse": _inverse,
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "log": _log,
    "logical_and": _binary(torch.logical_and),
    "logical_not": _unary(torch.logical_not),
    "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mod": _binary(torch.remainder),
    "mul": _binary(torch.mul),
    "not_equal": _binary(torch.ne),
    "pow": _binary(torch.pow),
    "real_div": _real_div,
    "round": _unary(torch.round),
    "rsqrt": _rsqrt,
    "select": _select,
    "sign": _unary(torch.sign),
    "sin": _unary(torch.sin),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "sub": _binary(torch.sub),
    "threshold": _threshold,
}

_ACTIVATIONS: Mapping[str, Operator] = {
    "clamped_relu": _clamped_relu,
    "elu": _elu,
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "linear_activation": _linear_activation,
    "prelu": _prelu,
    "relu": _unary(torch.relu),
    "relu6": _unary(functional.relu6),
    "scaled_tanh": _scaled_tanh,
    "sigmoid": _unary(torch.sigmoid),
    "sigmoid_hard": _sigmoid_hard,
    "silu": _unary(functional.silu),
    "softmax": _softmax,
    "softplus": _unary(functional.softplus),
    "softsign": _unary(functional.softsign),
    "tanh": _unary(torch.tanh),
    "thresholded_relu": _thresholded_relu,
}

_REDUCTIONS: Mapping[str, Operator] = {
    "reduce_argmax": _argument_reduction(torch.argmax),
    "reduce_argmin": _argument_reduction(torch.argmin),
    "reduce_l1_norm": _reduction(lambda x, axes, keep: x.abs().sum(dim=axes, keepdim=keep)),
    "reduce_l2_norm": _reduction(_l2_distance),
    "reduce_log_sum": _reduction(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep).log()),
    "reduce_log_sum_exp": _reduction(lambda x, axes, keep: x.logsumexp(dim=axes, keepdim=keep)),
    "reduce_max": _reduction(lambda x, axes, keep: x.amax(dim=axes, keepdim=keep)),
    "reduce_mean": _reduction(lambda x, axes, keep: x.mean(dim=axes, keepdim=keep)),
    "reduce_min": _reduction(lambda x, axes, keep: x.amin(dim=axes, keepdim=keep)),
    "reduce_prod": _reduction(_product),
    "reduce_sum": _reduction(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep)),
    "reduce_sum_square": _reduction(lambda x, axes, keep: x.square().sum(dim=axes, keepdim=keep)),
}

_DENSE: Mapping[str, Operator] = {
    "batch_norm": _batch_norm,
    "einsum": _einsum,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}

OPERATORS: Mapping[str, Operator] = {
    **_ELEMENTWISE,
    **_ACTIVATIONS,
    **_REDUCTIONS,
    **_DENSE,
    **SHAPE_OPERATORS,
    **SPATIAL_OPERATORS,
    **COMPRESSION_OPERATORS,
}
"""Every operator that the check knows, by its name in the program."""
