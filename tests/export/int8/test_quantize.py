from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from asymcir_common import Preprocessing
from asymcir_export import ExportError
from asymcir_export.graphs.device_graph import (
    INPUT_NAME,
    PREPROCESSING_PREFIX,
    build_device_graph,
    build_network_graph,
    join_preprocessing,
)
from asymcir_export.graphs.writer import to_onnx, write_onnx
from asymcir_export.int8.bias_correction import correct_biases, round_weights
from asymcir_export.int8.quantize import quantize_dynamic_int8, quantize_static_int8, to_fp16, write_ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from processors import exact_int8, sums_int8_exactly
from torch import Tensor, nn

SPEC = Preprocessing(size=64, interpolation="bilinear", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))


class SmallEncoder(nn.Module):
    """Convolutions of every kind. Random weights of a deep backbone do not survive int8; trained ones do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.ReLU6(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU6(), nn.Conv2d(16, 64, 1)
        )
        self.out = nn.Linear(64 * 16, 6 * 8)

    def forward(self, pixels: Tensor) -> Tensor:
        features = nn.functional.avg_pool2d(self.layers(pixels), 7).flatten(1)
        return self.out(features).view(1, 6, 8)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return SmallEncoder().eval()


@pytest.fixture(scope="module")
def graph(encoder: nn.Module) -> ModelProto:
    return build_device_graph(encoder, SPEC, torch.zeros(1, 3, 64, 64))


@pytest.fixture(scope="module")
def samples() -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(5)
    coarse = generator.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    return [np.kron(picture, np.ones((8, 8, 1), dtype=np.uint8)) for picture in coarse]


def run(model: ModelProto | Path, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    tokens: NDArray[np.float32] = ort.InferenceSession(source).run(None, {INPUT_NAME: picture})[0]
    return tokens


def find_kernels(model: ModelProto) -> list[TensorProto]:
    tensors = [tensor for tensor in model.graph.initializer if not tensor.name.startswith(PREPROCESSING_PREFIX)]
    return [tensor for tensor in tensors if len(tensor.dims) == 4]


def error_to_spread(graph: ModelProto, other: ModelProto | Path, samples: list[NDArray[np.uint8]]) -> float:
    expected = np.stack([run(graph, picture) for picture in samples])
    found = np.stack([run(other, picture) for picture in samples])
    return float(np.sqrt(((found - expected) ** 2).mean() / ((expected - expected.mean(axis=0)) ** 2).mean()))


@exact_int8
def test_static_int8_quantises_the_network_and_not_the_preprocessing(
    graph: ModelProto, samples: list[NDArray[np.uint8]]
) -> None:
    quantised = quantize_static_int8(graph, INPUT_NAME, samples, keep_float=[PREPROCESSING_PREFIX])
    before, after = (
        sorted(node.op_type for node in model.graph.node if node.name.startswith(PREPROCESSING_PREFIX))
        for model in (graph, quantised)
    )
    assert before == after
    assert "QuantizeLinear" in {node.op_type for node in quantised.graph.node}
    kernels = find_kernels(quantised)
    assert len(kernels) == 3  # the first and the depthwise one behind it stay float
    kernels = [tensor for tensor in kernels if tensor.data_type == TensorProto.INT8]
    assert len(kernels) == 1
    scales = {tensor.name: tensor.dims for tensor in quantised.graph.initializer if tensor.name.endswith("_scale")}
    assert any(list(dims) == [kernels[0].dims[0]] for dims in scales.values())  # one per output channel
    assert 0.0 < error_to_spread(graph, quantised, samples) < 0.1
    assert quantised.ByteSize() < 0.5 * graph.ByteSize()


def test_too_few_pictures_to_calibrate_on_are_refused(graph: ModelProto, samples: list[NDArray[np.uint8]]) -> None:
    with pytest.raises(ExportError, match="16 or more pictures to calibrate on, got 3"):
        quantize_static_int8(graph, INPUT_NAME, samples[:3])


def test_dynamic_int8_of_a_convolutional_network_is_refused(graph: ModelProto) -> None:
    with pytest.raises(ExportError, match=r"refused for a network with \d+ convolutions.*use static int8"):
        quantize_dynamic_int8(graph)


def test_dynamic_int8_of_matrix_products_stays_near() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32)).eval()
    batch = torch.randn(8, 64)
    model = to_onnx(module, {"x": batch}, outputs=["y"], axes={})
    quantised = quantize_dynamic_int8(model)
    (found,) = ort.InferenceSession(quantised.SerializeToString()).run(None, {"x": batch.numpy()})
    expected = module(batch).detach().numpy()
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert (0.99 if sums_int8_exactly() else 0.97) < cosines.min() < 1.0 - 1e-9
    assert quantised.ByteSize() < 0.5 * model.ByteSize()


def test_fp16_computes_in_half_and_keeps_its_interface(
    encoder: nn.Module, graph: ModelProto, samples: list[NDArray[np.uint8]]
) -> None:
    network = build_network_graph(encoder, torch.zeros(1, 3, 64, 64))
    half = join_preprocessing(to_fp16(network), SPEC)
    assert [value.type for value in half.graph.input] == [value.type for value in graph.graph.input]
    assert [value.type for value in half.graph.output] == [value.type for value in graph.graph.output]
    kernels = find_kernels(half)
    assert kernels and all(tensor.data_type == TensorProto.FLOAT16 for tensor in kernels)
    assert error_to_spread(graph, half, samples[:4]) < 0.05
    network.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([7e4], dtype=np.float32), "too_large"))
    with pytest.raises(ExportError, match="too_large holds 7e\\+04, fp16 ends at 65504"):
        to_fp16(network)


def test_the_ort_format_answers_as_its_source(
    graph: ModelProto, samples: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    write_onnx(graph, tmp_path / "a.onnx")
    write_ort(tmp_path / "a.onnx", tmp_path / "a.ort")
    assert (tmp_path / "a.ort").read_bytes()[4:8] == b"ORTM"
    assert error_to_spread(graph, tmp_path / "a.ort", samples[:4]) < 1e-3
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"cannot write b\.ort"):
        write_ort(tmp_path / "broken.onnx", tmp_path / "b.ort")


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_corrected_bias_gives_the_mean_of_the_float_weights(groups: int) -> None:
    torch.manual_seed(groups)
    convolution = nn.Conv2d(4, 8, 3, groups=groups, bias=groups != 2).eval()
    samples = [torch.rand(1, 4, 16, 16).numpy() for _ in range(3)]
    model = to_onnx(convolution, {"x": torch.from_numpy(samples[0])}, outputs=["y"], axes={})
    corrected = correct_biases(model, "x", samples)
    for variant in (model, corrected):
        weight = next(tensor for tensor in variant.graph.initializer if len(tensor.dims) == 4)
        rounded = round_weights(numpy_helper.to_array(weight))
        weight.CopyFrom(numpy_helper.from_array(rounded, weight.name))

    def shift(variant: ModelProto) -> float:
        session = ort.InferenceSession(variant.SerializeToString())
        off = [session.run(None, {"x": x})[0] - convolution(torch.from_numpy(x)).detach().numpy() for x in samples]
        return float(np.abs(np.mean(off, axis=(0, 1, 3, 4))).max())

    assert shift(corrected) < 0.3 * shift(model)
