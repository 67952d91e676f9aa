"""The cost of models whose parameters and multiply-accumulates can be counted by hand."""

import numpy as np
import onnx
import pytest
from asymcir_export.errors import ExportError
from asymcir_export.graphs.cost import measure_cost
from asymcir_export.graphs.weight_storage import STORAGES, WeightStorage, store_lean
from onnx import TensorProto, helper, numpy_helper
from tiny_device_bundle import make_encoder

# Conv 3 -> 64, 3 x 3, stride 2, on 8 x 8; depthwise 64, 3 x 3, on 4 x 4; pooled to 64; Gemm 64 -> 128; MatMul 128 -> 64
PARAMETERS = (64 * 3 * 9 + 64) + 64 * 9 + (128 * 64 + 128) + 128 * 64
MACS = 16 * 64 * 27 + 16 * 64 * 9 + 128 * 64 + 128 * 64


def _model(size: int = 8) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {
        "conv": rng.standard_normal((64, 3, 3, 3)),
        "conv_bias": rng.standard_normal(64),
        "depthwise": rng.standard_normal((64, 1, 3, 3)),
        "gemm": rng.standard_normal((128, 64)),
        "gemm_bias": rng.standard_normal(128),
        "product": rng.standard_normal((128, 64)),
        "preprocess_scale": np.full((1, 3, 1, 1), 1 / 255),
        "bound": np.array(6.0),
    }
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    constants += [numpy_helper.from_array(np.array([0]), "first"), numpy_helper.from_array(np.array([2, 3]), "plane")]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["preprocess_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["preprocess_float"], ["preprocess_planes"], perm=[2, 0, 1]),
        helper.make_node("Unsqueeze", ["preprocess_planes", "first"], ["preprocess_batch"]),
        helper.make_node("Mul", ["preprocess_batch", "preprocess_scale"], ["x0"]),
        helper.make_node("Conv", ["x0", "conv", "conv_bias"], ["x1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["x1", "", "bound"], ["x2"]),
        helper.make_node("Conv", ["x2", "depthwise"], ["x3"], group=64, pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["x3", "plane"], ["x4"], keepdims=0),
        helper.make_node("Gemm", ["x4", "gemm", "gemm_bias"], ["x5"], transB=1),
        helper.make_node("MatMul", ["x5", "product"], ["sentence_tokens"]),
    ]
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [size, size, 3])],
        [helper.make_tensor_value_info("sentence_tokens", TensorProto.FLOAT, [1, 64])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_model_counted_by_hand_costs_the_same_however_its_weights_are_stored(
    storage: WeightStorage,
) -> None:
    lean = store_lean(_model(), storage)
    kinds = {tensor.data_type for tensor in lean.graph.initializer}
    assert (TensorProto.INT8 in kinds or TensorProto.INT4 in kinds) == (storage in {"int8", "int4"})
    cost = measure_cost(lean)
    assert (cost.parameters, cost.macs) == (PARAMETERS, MACS)


def test_a_larger_picture_costs_more_in_the_convolutions_alone() -> None:
    found = measure_cost(_model(16))
    assert (found.parameters, found.macs) == (PARAMETERS, 4 * 16 * 64 * (27 + 9) + 2 * 128 * 64)


@pytest.mark.parametrize("as_int8", [False, True])
def test_the_resize_in_the_graph_and_the_storage_are_not_counted(as_int8: bool) -> None:
    cost = measure_cost(make_encoder(weights_as_int8=as_int8))
    assert (cost.parameters, cost.macs) == (48 * 32, 48 * 32)


def test_a_choice_in_the_preprocessing_is_not_counted_and_one_in_the_network_is_refused() -> None:
    model = _model()
    for node in model.graph.node:
        if node.output[0] == "x0":
            node.output[0] = "preprocess_scaled"
    output = helper.make_tensor_value_info("same", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["preprocess_scaled"], ["same"])], "same", [], [output])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "preprocess_yes"))
    choice = helper.make_node(
        "If", ["preprocess_yes"], ["x0"], name="preprocess_If", then_branch=branch, else_branch=branch
    )
    model.graph.node.insert(4, choice)
    found = measure_cost(model)
    assert (found.parameters, found.macs) == (PARAMETERS, MACS)
    model.graph.node[4].name = "network_If"
    with pytest.raises(ExportError, match="not counted: If"):
        measure_cost(model)


def test_products_of_two_activations_and_transposed_gemms_are_counted() -> None:
    model = _model()
    del model.graph.node[-1]
    model.graph.node.extend(
        [
            helper.make_node("MatMul", ["x2", "x2"], ["square"]),  # [1, 64, 4, 4]
            helper.make_node("Gemm", ["x5", "x5"], ["outer"], transA=1),  # [128, 1] x [1, 128]
            helper.make_node("Identity", ["x4"], ["sentence_tokens"]),
        ]
    )
    found = measure_cost(model)
    assert found.macs == MACS - 128 * 64 + 64 * 4 * 4 * 4 + 128 * 128
    assert found.parameters == PARAMETERS  # still in the file


def test_what_cannot_be_counted_is_refused() -> None:
    model = _model()
    model.graph.node.append(helper.make_node("Einsum", ["x5", "x5"], ["y"], equation="ij,ij->i"))
    with pytest.raises(ExportError, match="not counted: Einsum"):
        measure_cost(model)
    open_sizes = _model()
    open_sizes.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "height"
    with pytest.raises(ExportError, match="the shape of 'x0' cannot be inferred, so Conv is not counted"):
        measure_cost(open_sizes)
