from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from asymcir_export import store_lean, to_onnx, write_onnx
from asymcir_export.graphs.weight_storage import WeightStorage, quantize_rows
from asymcir_export.graphs.writer import batch_axis
from onnx import ModelProto
from torch import nn

SHRINKS = {"fp16": 1.95, "int8": 3.6, "int4": 5.5}
COSINES = {"fp16": 0.999999, "int8": 0.9995, "int4": 0.98}


class Mixed(nn.Module):
    """Every kind of weight that is stored lean: a convolution, matrix products, a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 256, 8, stride=8)
        self.positions = nn.Parameter(torch.randn(16, 256) * 0.02)
        self.linear = nn.Linear(256, 1024)
        self.out = nn.Linear(1024, 512, bias=False)
        self.project = nn.Parameter(torch.randn(512, 64) * 0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, 3, 32, 32] -> [b, 64]."""
        y = self.conv(x).flatten(2).transpose(1, 2) + self.positions
        return self.out(self.linear(y).relu()).mean(dim=1) @ self.project


@pytest.fixture(scope="module")
def mixed() -> tuple[nn.Module, ModelProto]:
    torch.manual_seed(0)
    module = Mixed().eval()
    return module, to_onnx(module, {"x": torch.randn(2, 3, 32, 32)}, outputs=["y"], axes={"x": {0: batch_axis()}})


@pytest.mark.parametrize("storage", ["fp16", "int8", "int4"])
def test_lean_files_shrink_and_answer_alike(
    storage: WeightStorage, mixed: tuple[nn.Module, ModelProto], tmp_path: Path
) -> None:
    module, model = mixed
    write_onnx(model, tmp_path / "fp32.onnx")
    write_onnx(store_lean(model, storage), tmp_path / "lean.onnx")
    shrink = (tmp_path / "fp32.onnx").stat().st_size / (tmp_path / "lean.onnx").stat().st_size
    assert shrink > SHRINKS[storage]
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = module(x).numpy()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "lean.onnx"), options)
    (found,) = session.run(None, {"x": x.numpy()})
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > COSINES[storage]
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert not kinds & {"DequantizeLinear", "Cast", "MatMulNBits"}, "the weights were not folded to float32 at load"


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_fp16_and_int8_fold_without_any_session_option(
    storage: WeightStorage, mixed: tuple[nn.Module, ModelProto], tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(store_lean(mixed[1], storage).SerializeToString(), options)
    assert "Cast" not in {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}


def test_small_tensors_stay_float32(mixed: tuple[nn.Module, ModelProto]) -> None:
    kept = {tensor.name: tensor.data_type for tensor in store_lean(mixed[1], "int8").graph.initializer}
    assert kept["linear.bias"] == onnx.TensorProto.FLOAT
    assert kept["conv.bias"] == onnx.TensorProto.FLOAT
    assert kept["positions_fp16"] == onnx.TensorProto.FLOAT16


def test_the_original_is_left_alone(mixed: tuple[nn.Module, ModelProto]) -> None:
    before = mixed[1].SerializeToString(deterministic=True)
    store_lean(mixed[1], "int4")
    assert mixed[1].SerializeToString(deterministic=True) == before


def test_rows_of_a_table_keep_their_scale() -> None:
    table = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32) * np.logspace(-3, 3, 50)[:, None]
    table[7] = 0.0
    values, scales = quantize_rows(table.astype(np.float32))
    assert values.dtype == np.int8
    restored = values * scales[:, None]
    assert (np.abs(restored - table).max(axis=1) <= np.abs(table).max(axis=1) / 200).all()
