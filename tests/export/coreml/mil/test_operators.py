import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from asymcir_export import NotVerifiedError
from asymcir_export.coreml.mil.arguments import Arguments, to_value
from asymcir_export.coreml.mil.operators import OPERATORS
from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_ops as ios16
from coremltools.converters.mil.mil.ops.defs.iOS18 import compression as ios18
from coremltools.optimize._utils import pack_elements_into_bits
from torch import Tensor
from torch.nn import functional as F


def run(kind: str, **parameters: Any) -> Any:
    values = {
        name: tuple(to_value(np.asarray(item)) for item in value)
        if isinstance(value, tuple)
        else (value if isinstance(value, str) else to_value(np.asarray(value)),)
        for name, value in parameters.items()
    }
    arguments = Arguments(kind, values)
    result = OPERATORS[kind](arguments)
    arguments.refuse_unread()
    return result


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = normal(2, 6, 8, 10)
ROWS = normal(2, 5, 6)
POSITIVE = X.abs() + 0.1

UNARY: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
    "abs": (X, lambda x: torch.where(x < 0, -x, x)),
    "ceil": (X, lambda x: -torch.floor(-x)),
    "cos": (X, lambda x: torch.sin(x + math.pi / 2)),
    "erf": (X, torch.special.erf),
    "exp": (X, lambda x: math.e**x),
    "exp2": (X, lambda x: 2**x),
    "floor": (X, lambda x: -torch.ceil(-x)),
    "identity": (X, lambda x: x),
    "relu": (X, lambda x: torch.where(x > 0, x, 0.0)),
    "relu6": (4 * X, lambda x: x.clamp(0, 6)),
    "round": (3 * X, lambda x: torch.tensor(np.round(x.numpy()))),
    "sigmoid": (X, lambda x: 1 / (1 + torch.exp(-x))),
    "sign": (X, lambda x: x / x.abs()),
    "silu": (X, lambda x: x * torch.sigmoid(x)),
    "sin": (X, lambda x: torch.cos(x - math.pi / 2)),
    "softplus": (X, lambda x: torch.log(1 + torch.exp(x))),
    "softsign": (X, lambda x: x / (1 + x.abs())),
    "sqrt": (POSITIVE, lambda x: x**0.5),
    "square": (X, lambda x: x * x),
    "tanh": (X, lambda x: 2 * torch.sigmoid(2 * x) - 1),
}


@pytest.mark.parametrize("kind", sorted(UNARY))
def test_element_by_element(kind: str) -> None:
    x, reference = UNARY[kind]
    torch.testing.assert_close(run(kind, x=x), reference(x), atol=2e-5, rtol=1e-4)


Y = normal(6, 1, 1, seed=1)
BINARY: dict[str, tuple[Any, Any]] = {
    "add": (X, lambda x, y: x + y),
    "equal": (X, lambda x, y: x == y),
    "floor_div": (X, lambda x, y: torch.floor(x / y)),
    "greater": (X, lambda x, y: x > y),
    "greater_equal": (X, lambda x, y: ~(x < y)),
    "less": (X, lambda x, y: x < y),
    "less_equal": (X, lambda x, y: ~(x > y)),
    "maximum": (X, lambda x, y: torch.where(x > y, x, y)),
    "minimum": (X, lambda x, y: torch.where(x < y, x, y)),
    "mod": (X, lambda x, y: x - y * torch.floor(x / y)),
    "mul": (X, lambda x, y: x * y),
    "not_equal": (X, lambda x, y: x != y),
    "pow": (POSITIVE, lambda x, y: torch.exp(y * torch.log(x))),
    "real_div": (X, lambda x, y: x * (1 / y)),
    "sub": (X, lambda x, y: x + -y),
}


@pytest.mark.parametrize("kind", sorted(BINARY))
def test_two_operands_broadcast(kind: str) -> None:
    x, reference = BINARY[kind]
    torch.testing.assert_close(run(kind, x=x, y=Y), reference(x, Y), atol=2e-5, rtol=1e-4)


def test_logic_and_select() -> None:
    a, b = X > 0, X > 0.5
    assert torch.equal(run("logical_and", x=a, y=b), b)
    assert torch.equal(run("logical_or", x=a, y=b), a)
    assert torch.equal(run("logical_xor", x=a, y=b), (X > 0) & (X <= 0.5))
    assert torch.equal(run("logical_not", x=a), X <= 0)
    assert torch.equal(run("select", cond=a, a=X, b=-X), X.abs())


def test_activations_with_parameters() -> None:
    close = torch.testing.assert_close
    close(
        run("clip", x=X, alpha=-0.5, beta=0.25), torch.minimum(torch.maximum(X, torch.tensor(-0.5)), torch.tensor(0.25))
    )
    close(run("threshold", x=X, alpha=0.3), torch.maximum(X, torch.tensor(0.3)))
    close(run("sigmoid_hard", x=4 * X, alpha=1 / 6, beta=0.5), F.hardsigmoid(4 * X))
    close(run("leaky_relu", x=X, alpha=0.1), torch.where(X > 0, X, 0.1 * X))
    close(run("elu", x=X, alpha=0.7), torch.where(X > 0, X, 0.7 * (torch.exp(X) - 1)))
    close(run("clamped_relu", x=X, alpha=0.1, beta=1.0), torch.where(X > 0, X, 0.1 * X).clamp_max(1))
    close(run("thresholded_relu", x=X, alpha=0.5), X * (X >= 0.5))
    close(run("scaled_tanh", x=X, alpha=0.7, beta=2.0), 0.7 * (2 * torch.sigmoid(4 * X) - 1))
    slopes = torch.linspace(0.1, 0.6, 6)
    close(run("prelu", x=X, alpha=slopes), torch.where(X > 0, X, X * slopes[:, None, None]))
    close(run("linear_activation", x=X, alpha=2.0, beta=1.0), 2 * X + 1)
    close(run("gelu", x=X), 0.5 * X * (1 + torch.erf(X / math.sqrt(2))))
    tanh = 0.5 * X * (1 + torch.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3)))
    close(run("gelu", x=X, mode="TANH_APPROXIMATION"), tanh)
    close(run("gelu", x=X, mode="SIGMOID_APPROXIMATION"), X * torch.sigmoid(1.702 * X))
    close(run("log", x=POSITIVE, epsilon=0.5), torch.log(POSITIVE + 0.5))
    close(run("rsqrt", x=POSITIVE, epsilon=0.5), (POSITIVE + 0.5) ** -0.5)
    close(run("inverse", x=POSITIVE, epsilon=0.5), 1 / (POSITIVE + 0.5))
    exps = torch.exp(X)
    close(run("softmax", x=X, axis=1), exps / exps.sum(1, keepdim=True))
    with pytest.raises(NotVerifiedError, match="not verified: gelu"):
        run("gelu", x=X, mode="NEWEST")


def test_casts() -> None:
    values = torch.tensor([-1.7, 0.0, 2.9])
    assert run("cast", x=values, dtype="int32").tolist() == [-1, 0, 2]
    assert run("cast", x=values, dtype="bool").tolist() == [True, False, True]
    assert run("cast", x=torch.tensor([3, 4]), dtype="fp16").dtype == torch.float32


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_l1_norm": lambda x, **how: np.abs(x).sum(**how),
    "reduce_l2_norm": lambda x, **how: np.sqrt((x * x).sum(**how)),
    "reduce_log_sum": lambda x, **how: np.log(x.sum(**how)),
    "reduce_log_sum_exp": lambda x, **how: np.log(np.exp(x).sum(**how)),
    "reduce_max": np.max,
    "reduce_mean": np.mean,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_sum": np.sum,
    "reduce_sum_square": lambda x, **how: (x * x).sum(**how),
}


@pytest.mark.parametrize("kind", sorted(REDUCTIONS))
def test_reductions(kind: str) -> None:
    reference, x = REDUCTIONS[kind], POSITIVE.numpy()
    for axes, keep in (((2, 3), True), ((-1,), False)):
        expected = reference(x, axis=axes, keepdims=keep)
        np.testing.assert_allclose(run(kind, x=x, axes=list(axes), keep_dims=keep).numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(float(run(kind, x=ROWS.abs().numpy())), reference(ROWS.abs().numpy()), rtol=1e-4)


def test_positions_of_extremes() -> None:
    assert np.array_equal(run("reduce_argmax", x=X, axis=1).numpy(), X.numpy().argmax(axis=1))
    assert np.array_equal(run("reduce_argmin", x=X, axis=3, keep_dims=True)[..., 0].numpy(), X.numpy().argmin(axis=3))


def test_normalisations() -> None:
    close = torch.testing.assert_close
    gamma, beta = normal(6, seed=2), normal(6, seed=3)
    close(
        run("layer_norm", x=ROWS, axes=[-1], gamma=gamma, beta=beta, epsilon=0.1),
        F.layer_norm(ROWS, (6,), gamma, beta, 0.1),
    )
    wide = normal(8, 10, seed=4)
    close(run("layer_norm", x=X, axes=[2, 3], gamma=wide), F.layer_norm(X, (8, 10), wide))
    close(
        run("instance_norm", x=X, gamma=gamma, beta=beta, epsilon=0.1),
        F.instance_norm(X, weight=gamma, bias=beta, eps=0.1),
    )
    mean, variance = normal(6, seed=5), normal(6, seed=6).square()
    found = run("batch_norm", x=X, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=0.1)
    close(found, F.batch_norm(X, mean, variance, gamma, beta, eps=0.1))
    close(run("l2_norm", x=X, epsilon=1e-6), F.normalize(X.flatten(1), dim=1).view_as(X), atol=1e-5, rtol=1e-5)


def test_matrix_products() -> None:
    close = torch.testing.assert_close
    weight, bias = normal(4, 6, seed=2), normal(4, seed=3)
    close(run("linear", x=ROWS, weight=weight, bias=bias), torch.einsum("bri,oi->bro", ROWS, weight) + bias)
    close(run("linear", x=ROWS, weight=weight), torch.einsum("bri,oi->bro", ROWS, weight))
    other = normal(2, 5, 7, seed=4)
    close(run("matmul", x=ROWS, y=other, transpose_x=True), torch.einsum("bij,bik->bjk", ROWS, other))
    close(run("matmul", x=ROWS, y=weight, transpose_y=True), torch.einsum("bri,oi->bro", ROWS, weight))
    a, b = normal(1, 3, 4, 5), normal(1, 5, 4, 2, seed=1)
    close(
        run("einsum", values=(a, b), equation="nchw,nwhu->nchu"),
        (a.permute(0, 2, 1, 3) @ b.permute(0, 2, 1, 3)).permute(0, 2, 1, 3),
    )
    query, key, value = (normal(2, 4, 5, 8, seed=i) for i in range(3))
    mask = normal(5, 5, seed=4) > -1
    mask[:, 0] = True
    found = run("scaled_dot_product_attention", query=query, key=key, value=value, attn_mask=mask)
    close(found, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 3, 1), (8, 3, 2), (9, 3, 2), (8, 5, 2), (7, 2, 1), (10, 4, 3)]
)
def test_same_padding_gives_the_least_that_covers(size: int, kernel: int, stride: int) -> None:
    x, weight = normal(1, 4, size, size), normal(8, 4, kernel, kernel, seed=1)
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
    for kind, before in (("same", total // 2), ("same_lower", total - total // 2)):
        padded = torch.zeros(1, 4, size + total, size + total)
        padded[:, :, before : before + size, before : before + size] = x
        found = run("conv", x=x, weight=weight, strides=[stride] * 2, pad_type=kind, pad=[0] * 4)
        assert found.shape[2] == math.ceil(size / stride)
        torch.testing.assert_close(found, F.conv2d(padded, weight, stride=stride))


def test_convolutions() -> None:
    close = torch.testing.assert_close
    depthwise, bias = normal(6, 1, 3, 3, seed=1), normal(6, seed=2)
    found = run("conv", x=X, weight=depthwise, bias=bias, groups=6, pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2])
    close(found, torch.nn.functional.conv2d(X, depthwise, bias, 2, 1, groups=6))
    found = run("conv", x=X, weight=normal(4, 6, 3, 3), pad_type="custom", pad=[0, 1, 2, 3], dilations=[2, 1])
    close(found, F.conv2d(F.pad(X, (2, 3, 0, 1)), normal(4, 6, 3, 3), dilation=(2, 1)))
    close(run("conv", x=ROWS, weight=normal(4, 5, 3), pad_type="valid"), F.conv1d(ROWS, normal(4, 5, 3)))
    with pytest.raises(NotVerifiedError, match=r"not verified: conv \(parameter pad_type"):
        run("conv", x=X, weight=depthwise, groups=6, pad_type="mirrored")


def test_pooling() -> None:
    close = torch.testing.assert_close
    how = {"kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1]}
    close(run("max_pool", x=X, **how), F.max_pool2d(X, 3, 2, 1))
    close(run("max_pool", x=X, ceil_mode=True, **how), F.max_pool2d(X, 3, 2, 1, ceil_mode=True))
    close(run("avg_pool", x=X, exclude_padding_from_average=False, **how), F.avg_pool2d(X, 3, 2, 1))
    close(
        run("avg_pool", x=X, exclude_padding_from_average=True, **how),
        F.avg_pool2d(X, 3, 2, 1, count_include_pad=False),
    )
    close(run("avg_pool", x=X, kernel_sizes=[8, 10], pad_type="valid"), X.mean(dim=(2, 3), keepdim=True))
    with pytest.raises(NotVerifiedError, match="rounding up"):
        run("avg_pool", x=X, ceil_mode=True, **how)


def test_resizing() -> None:
    close = torch.testing.assert_close
    close(
        run("upsample_nearest_neighbor", x=X, scale_factor_height=2, scale_factor_width=3),
        F.interpolate(X, scale_factor=(2, 3)),
    )
    close(run("resize_nearest_neighbor", x=X, target_size_height=16, target_size_width=10), F.interpolate(X, (16, 10)))
    corners = F.interpolate(X, (16, 20), mode="bilinear", align_corners=True)
    centres = F.interpolate(X, (16, 20), mode="bilinear", align_corners=False)
    twice = {"scale_factor_height": 2.0, "scale_factor_width": 2.0}
    close(run("upsample_bilinear", x=X, align_corners=True, **twice), corners, atol=1e-5, rtol=1e-5)
    close(
        run("upsample_bilinear", x=X, align_corners=False, half_pixel_centers=True, **twice),
        centres,
        atol=1e-5,
        rtol=1e-5,
    )
    target = {"target_size_height": 5, "target_size_width": 13}
    for mode, align in (("STRICT_ALIGN_CORNERS", True), ("ALIGN_CORNERS", True), ("UNALIGN_CORNERS", False)):
        expected = F.interpolate(X, (5, 13), mode="bilinear", align_corners=align)
        close(run("resize_bilinear", x=X, sampling_mode=mode, **target), expected, atol=1e-5, rtol=1e-5)
        found = run("resize", x=X, shape=[5, 13], resized_dims=2, sampling_mode=mode)
        close(found, expected, atol=1e-5, rtol=1e-5)
    # Apple's own examples of the two modes that torch lacks: two places, 0 and 1, sampled at five.
    ramp = torch.tensor([[[0.0, 1.0]]])
    for mode, places in (("DEFAULT", [0, 0.4, 0.8, 1, 1]), ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9])):
        found = run("resize_bilinear", x=ramp, target_size_height=1, target_size_width=5, sampling_mode=mode)
        close(found.flatten(), torch.tensor(places, dtype=torch.float32))
    with pytest.raises(NotVerifiedError, match="resize_nearest_neighbor"):
        run("resize_nearest_neighbor", x=X, target_size_height=12, target_size_width=10)


def test_shapes() -> None:
    x = X.numpy()
    pairs = [
        (run("reshape", x=X, shape=[2, -1, 20]), x.reshape(2, -1, 20)),
        (run("reshape", x=X, shape=[0, 0, -1, 5]), x.reshape(2, 6, -1, 5)),
        (run("transpose", x=X, perm=[0, 2, -1, 1]), x.transpose(0, 2, 3, 1)),
        (run("expand_dims", x=X, axes=[0, -1]), x[None, ..., None]),
        (run("squeeze", x=X[:1, :, :1], axes=[0, 2]), x[0, :, 0]),
        (run("squeeze", x=X[:1, :, :1]), x[0, :, 0]),
        (run("concat", values=(X, X + 1), axis=-3), np.concatenate([x, x + 1], axis=1)),
        (run("stack", values=(X, X + 1), axis=1), np.stack([x, x + 1], axis=1)),
        (run("split", x=X, num_splits=3, axis=1)[1], x[:, 2:4]),
        (run("split", x=X, split_sizes=[1, 5], axis=1)[1], x[:, 1:]),
        (run("tile", x=X, reps=[1, 2, 1, 3]), np.tile(x, (1, 2, 1, 3))),
        (run("slice_by_size", x=X, begin=[0, 1, -3, 0], size=[1, 2, 2, -1]), x[:1, 1:3, -3:-1]),
        (run("gather", x=X, indices=[[5, 0], [-1, 2]], axis=1), x[:, [[5, 0], [-1, 2]]]),
        (run("gather", x=X, indices=3, axis=2), x[:, :, 3]),
        (run("gather_along_axis", x=X, indices=np.argsort(x, 1), axis=1), np.sort(x, 1)),
        (
            run("pad", x=X, pad=[1, 2, 0, 3], constant_val=7.0),
            np.pad(x, [(0, 0), (0, 0), (1, 2), (0, 3)], constant_values=7),
        ),
        (run("pad", x=X, pad=[1, 2], mode="reflect"), np.pad(x, [(0, 0)] * 3 + [(1, 2)], mode="reflect")),
        (run("pad", x=X, pad=[1, 2], mode="replicate"), np.pad(x, [(0, 0)] * 3 + [(1, 2)], mode="edge")),
        (run("shape", x=X), np.array(x.shape)),
        (run("fill", shape=[2, 3], value=4.0), np.full((2, 3), 4.0)),
        (run("reverse", x=X, axes=[1]), x[:, ::-1]),
        (run("pixel_shuffle", x=X[:, :4], upscale_factor=2), F.pixel_shuffle(X[:, :4], 2).numpy()),
        (run("pixel_unshuffle", x=X, downscale_factor=2), F.pixel_unshuffle(X, 2).numpy()),
    ]
    for index, (found, expected) in enumerate(pairs):
        assert np.array_equal(found.numpy(), expected), index


def test_slices() -> None:
    none = [False] * 4
    how = {"begin": [0, 1, -3, 2], "end": [1, 5, -1, 9], "stride": [1, 2, 1, 3]}
    found = run("slice_by_index", x=X, begin_mask=none, end_mask=[False, False, True, False], squeeze_mask=none, **how)
    assert torch.equal(found, X[:1, 1:5:2, -3:, 2:9:3])
    found = run(
        "slice_by_index", x=X, begin_mask=[True, False, False, False], squeeze_mask=[False, True, False, False], **how
    )
    assert torch.equal(found, X[:1, 1, -3:-1, 2:9:3])
    with pytest.raises(NotVerifiedError, match="backwards"):
        run("slice_by_index", x=X, begin=[0] * 4, end=[0] * 4, stride=[-1] * 4)


def test_decompression_of_the_older_opset() -> None:
    generator = np.random.default_rng(0)
    data, scale = generator.integers(-128, 128, (4, 6), dtype=np.int8), generator.random(6).astype(np.float32)
    zero_point = generator.integers(-9, 9, 6, dtype=np.int8)
    found = run("constexpr_affine_dequantize", quantized_data=data, scale=scale, zero_point=zero_point, axis=1)
    expected = ios16.constexpr_affine_dequantize.decompress(data, zero_point, scale, 1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    for bits in (1, 2, 4, 6, 8):
        lut, indices = generator.random(1 << bits).astype(np.float32), generator.integers(0, 1 << bits, 35)
        packed = pack_elements_into_bits(indices.astype(np.uint8), bits)
        found = run("constexpr_lut_to_dense", lut=lut, indices=packed, shape=np.array([5, 7], dtype=np.uint32))
        assert np.array_equal(found.numpy(), lut[indices].reshape(5, 7))
    mask = generator.random(21) < 0.5
    values = generator.random(mask.sum()).astype(np.float32)
    packed = np.packbits(mask, bitorder="little")
    found = run("constexpr_sparse_to_dense", nonzero_data=values, mask=packed, shape=np.array([3, 7], dtype=np.uint32))
    assert np.array_equal(found.numpy(), ios16.constexpr_sparse_to_dense.decompress(values, packed, np.array([3, 7])))


def test_decompression_of_the_newer_opset() -> None:
    generator = np.random.default_rng(0)
    data = generator.integers(-8, 8, (4, 6), dtype=np.int8)
    for shape in ((1, 1), (4, 1), (2, 3), (4, 6)):
        scale = generator.random(shape).astype(np.float32)
        offset = generator.integers(-3, 3, shape, dtype=np.int8)
        found = run("constexpr_blockwise_shift_scale", data=data, scale=scale, offset=offset)
        expected = ios18.constexpr_blockwise_shift_scale.decompress(data, scale, offset)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    indices = generator.integers(0, 4, (4, 6), dtype=np.uint8)
    for groups in ((1, 1), (2, 1), (1, 3)):
        lut = generator.random((*groups, 4, 1)).astype(np.float32)
        found = run("constexpr_lut_to_dense", lut=lut, indices=indices)
        assert np.array_equal(found.numpy(), ios18.constexpr_lut_to_dense.decompress(indices, lut, None))
    mask = (generator.random((3, 5)) < 0.5).astype(np.uint8)
    values = generator.random(mask.sum()).astype(np.float32)
    found = run("constexpr_sparse_to_dense", nonzero_data=values, mask=mask)
    assert np.array_equal(found.numpy(), ios18.constexpr_sparse_to_dense.decompress(values, mask))


def test_quantised_activations() -> None:
    scale, zero_point = np.float32(0.05), np.int8(-3)
    quantised = run("quantize", input=X, scale=scale, zero_point=zero_point, output_dtype="int8")
    expected = np.clip(np.round(X.numpy() / scale) + zero_point, -128, 127)
    assert np.array_equal(quantised.numpy(), expected)
    found = run("dequantize", input=quantised, scale=scale, zero_point=zero_point)
    torch.testing.assert_close(found, torch.tensor((expected + 3) * scale, dtype=torch.float32))
    per_channel = torch.linspace(0.01, 0.06, 6)
    quantised = run("quantize", input=X, scale=per_channel, output_dtype="uint8", axis=1)
    assert torch.equal(
        quantised,
        torch.fake_quantize_per_channel_affine(X, per_channel, torch.zeros(6), 1, 0, 255)
        .div(per_channel[:, None, None])
        .round()
        .long(),
    )


def test_a_parameter_that_nothing_reads_is_not_verified() -> None:
    with pytest.raises(NotVerifiedError, match=r"not verified: relu \(parameter slope\)"):
        run("relu", x=X, slope=0.1)
    with pytest.raises(NotVerifiedError, match=r"not verified: softmax \(no parameter x\)"):
        run("softmax", axis=1)
