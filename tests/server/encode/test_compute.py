"""What a graph computes in decides how it is opened."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from asymcir_server.encode.sessions import make_session_options, open_session
from onnx import TensorProto, helper, numpy_helper


def write_quantised_convolution(path: Path) -> None:
    generator = np.random.default_rng(0)
    weight = generator.integers(-127, 128, (32, 16, 3, 3)).astype(np.int8)
    constants = {
        "weight": weight,
        "bias": np.zeros(32, np.int32),
        "scale": np.float32(0.05),
        "fine": np.float32(0.0025),
        "zero": np.uint8(128),
        "none": np.int8(0),
        "null": np.int32(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "none"], ["wd"]),
        helper.make_node("DequantizeLinear", ["bias", "fine", "null"], ["bd"]),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["y"], kernel_shape=[3, 3]),
        helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "scale", "zero"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 32, 6, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


@pytest.mark.parametrize(("compute", "kernel"), [("int8", "QLinearConv"), ("fp32", "Conv")])
def test_a_quantised_convolution_keeps_its_kernel_where_the_tower_computes_in_int8(
    compute: str, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_quantised_convolution(tmp_path / "a.onnx")
    made = []

    def with_profile(threads: int = 0, *, compute: str = "fp32"):  # type: ignore[no-untyped-def]
        options = make_session_options(threads, compute=compute)
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        made.append(options)
        return options

    monkeypatch.setattr("asymcir_server.encode.sessions.make_session_options", with_profile)
    session = open_session(tmp_path / "a.onnx", threads=1, compute=compute)
    assert len(made) == 1
    session.run(None, {"x": np.random.default_rng(1).normal(size=(1, 16, 8, 8)).astype(np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}
    assert kernel in kernels, kernels
