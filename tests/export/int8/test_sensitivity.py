"""Equal channels, and which layers of an int8 graph stay float."""

import math

import numpy as np
import onnxruntime as ort
import pytest
from asymcir_export.int8 import sensitivity
from asymcir_export.int8.equalize import equalize_channels
from asymcir_export.int8.quantize import quantize_static_int8
from asymcir_export.int8.sensitivity import choose_float, free_tensor
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

WIDTH, SIDE = 8, 12
OUTLIER = 300.0
FIRST, PLANTED = "conv_0", "conv_3"


@pytest.fixture(scope="module")
def samples() -> list[NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    return [generator.uniform(0, 1, (1, WIDTH, SIDE, SIDE)).astype(np.float32) for _ in range(24)]


def build_graph(*, outlier: bool) -> ModelProto:
    """Six convolutions, each with a ReLU, so that nothing can be equalised.

    With `outlier`, one channel that PLANTED makes is OUTLIER times too large, and the next one reads it divided again:
    the answer is the same, and an 8-bit scale for all channels leaves the others a step or two.
    """
    generator = np.random.default_rng(1)
    nodes, constants, last = [], [], "x"
    for i in range(6):
        weight = generator.normal(size=(WIDTH, WIDTH, 1, 1)) / math.sqrt(WIDTH)
        if outlier and f"conv_{i}" == PLANTED:
            weight[2] *= OUTLIER
        if outlier and f"conv_{i - 1}" == PLANTED:
            weight[:, 2] /= OUTLIER
        bias = np.full(WIDTH, 0.1, dtype=np.float32)
        if outlier and f"conv_{i}" == PLANTED:
            bias[2] *= OUTLIER
        constants += [
            numpy_helper.from_array(weight.astype(np.float32), f"weight_{i}"),
            numpy_helper.from_array(bias, f"bias_{i}"),
        ]
        nodes += [
            helper.make_node("Conv", [last, f"weight_{i}", f"bias_{i}"], [f"made_{i}"], name=f"conv_{i}"),
            helper.make_node("Clip", [f"made_{i}", "zero"], [f"clipped_{i}"], name=f"clip_{i}"),
        ]
        last = f"clipped_{i}"
    constants.append(numpy_helper.from_array(np.array(0.0, dtype=np.float32), "zero"))
    shape = [1, WIDTH, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: ModelProto, samples: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString())
    return np.stack([session.run(None, {"x": sample})[0] for sample in samples])


def error_to_spread(model: ModelProto, other: ModelProto, samples: list[NDArray[np.float32]]) -> float:
    expected = run(model, samples)
    spread = float(np.mean((expected - expected.mean(axis=0)) ** 2))
    return math.sqrt(float(np.mean((run(other, samples) - expected) ** 2)) / spread)


def test_the_planted_layer_stays_float_and_the_error_falls(
    samples: list[NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_graph(outlier=True)
    quantised = quantize_static_int8(model, "x", samples)
    before = error_to_spread(model, quantised, samples)
    monkeypatch.setattr(sensitivity, "MAX_FLOAT_MACS", 0.34)  # two of six convolutions
    choice = choose_float(model, quantised, "x", samples)
    assert choice.tensors == ("clipped_3",)
    assert set(choice.nodes) == {PLANTED, "clip_3", "conv_4"}
    assert choice.macs_share == pytest.approx(2 / 6)
    assert choice.error_before == pytest.approx(before)
    mixed = quantize_static_int8(model, "x", samples, float_nodes=choice.nodes)
    assert error_to_spread(model, mixed, samples) < 0.5 * before
    assert choice.error_after < 0.5 * before
    weights = {tensor.name: tensor.data_type for tensor in mixed.graph.initializer}
    assert weights["weight_3"] == weights["weight_4"] == TensorProto.FLOAT
    assert "weight_2" not in weights and "weight_5" not in weights


@pytest.mark.parametrize(("limit", "value"), [("MAX_FLOAT_MACS", 0.1), ("TARGET_ERROR", 1e9)])
def test_the_cap_and_the_target_stop_the_search(
    samples: list[NDArray[np.float32]], limit: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_graph(outlier=True)
    quantised = quantize_static_int8(model, "x", samples)
    monkeypatch.setattr(sensitivity, limit, value)
    assert choose_float(model, quantised, "x", samples).nodes == ()


def test_a_freed_tensor_gets_its_clip_back(samples: list[NDArray[np.float32]]) -> None:
    model = build_graph(outlier=True)
    quantised = quantize_static_int8(model, "x", samples)
    assert not any(node.name == "clip_3" for node in quantised.graph.node)
    freed = free_tensor(model, quantised, "clipped_3")
    assert [node.input[0] for node in freed.graph.node if node.op_type == "Clip"].count("clipped_3") == 1
    assert error_to_spread(model, freed, samples) < error_to_spread(model, quantised, samples)


def test_equalised_channels_have_equal_ranges_and_compute_the_same() -> None:
    """conv_a (channels of ranges 100 : 1) and conv_b, summed, read by conv_c; nothing stands between them."""
    generator = np.random.default_rng(2)
    uneven = np.geomspace(1, 100, WIDTH).reshape(-1, 1, 1, 1)
    kernels = {
        "a": generator.normal(size=(WIDTH, WIDTH, 1, 1)) * uneven,
        "b": generator.normal(size=(WIDTH, 1, 3, 3)) * uneven,
        "c": generator.normal(size=(WIDTH, WIDTH // 2, 1, 1)),
    }
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in kernels.items()]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["from_a"], name="conv_a"),
        helper.make_node("Conv", ["x", "b"], ["from_b"], name="conv_b", group=WIDTH, pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["from_a", "from_b"], ["sum"], name="sum"),
        helper.make_node("Conv", ["sum", "c"], ["y"], name="conv_c", group=2),
    ]
    shape = [1, WIDTH, SIDE, SIDE]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("x", "y"))
    graph = helper.make_graph(nodes, "sum", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    samples = [generator.normal(size=shape).astype(np.float32) for _ in range(4)]
    equal = equalize_channels(model, "x", samples)
    assert error_to_spread(model, equal, samples) < 1e-5
    ranges = []
    for variant in (model, equal):
        shown = ModelProto()
        shown.CopyFrom(variant)
        shown.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, shape))
        session = ort.InferenceSession(shown.SerializeToString())
        values = np.stack([session.run(["sum"], {"x": sample})[0] for sample in samples])
        largest = np.abs(values).max(axis=(0, 1, 3, 4))
        ranges.append(largest.max() / largest.min())
    assert ranges[0] > 30 and ranges[1] < 3
