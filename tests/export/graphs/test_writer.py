from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from asymcir_export import ExportError, to_onnx, write_onnx
from asymcir_export.graphs import writer
from asymcir_export.graphs.writer import batch_axis, length_axis
from torch import Tensor, nn


class Masked(nn.Module):
    """Uses its mask only where asked to, as text towers do."""

    def __init__(self, *, use_mask: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.use_mask = use_mask

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[b, T, 8], [b, T] -> [b, 8]."""
        y = self.linear(x)
        y = y + torch.arange(mask.shape[1])[None, :, None] * 0.1
        if self.use_mask:
            y = y * mask[:, :, None]
        return y.sum(dim=1)


def convert(module: nn.Module) -> onnx.ModelProto:
    batch, length = batch_axis(), length_axis(12)
    inputs = {"x": torch.zeros(2, 5, 8), "mask": torch.ones(2, 5, dtype=torch.int64)}
    return to_onnx(module, inputs, outputs=["y"], axes={"x": {0: batch, 1: length}, "mask": {0: batch, 1: length}})


@pytest.mark.parametrize("use_mask", [True, False])
def test_an_input_is_declared_where_it_is_used(use_mask: bool) -> None:
    module = Masked(use_mask=use_mask).eval()
    session = onnxruntime.InferenceSession(convert(module).SerializeToString())
    names = [node.name for node in session.get_inputs()]
    assert names == (["x", "mask"] if use_mask else ["x"])
    for batch, length in [(1, 1), (3, 12), (7, 2)]:
        x, mask = torch.randn(batch, length, 8), (torch.rand(batch, length) > 0.4).long()
        feed = {"x": x.numpy(), "mask": mask.numpy()}
        (found,) = session.run(None, {name: feed[name] for name in names})
        with torch.inference_mode():
            assert np.abs(found - module(x, mask).numpy()).max() < 1e-5


def test_no_traces_of_this_machine_are_left() -> None:
    data = convert(Masked(use_mask=True).eval()).SerializeToString()
    assert str(Path(__file__).parent).encode() not in data
    assert b"site-packages" not in data


def test_a_training_module_is_refused() -> None:
    with pytest.raises(ExportError, match="in eval mode"):
        convert(Masked(use_mask=True).train())


def test_a_module_that_cannot_be_converted_is_one_clear_error() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.zeros(3, 3)

    with pytest.raises(ExportError, match=r"cannot convert Wrong to ONNX: .*reduction dim"):
        to_onnx(Wrong().eval(), {"x": torch.zeros(2, 5)}, outputs=["y"], axes={})


def test_large_weights_go_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_EXTERNAL_DATA_ABOVE_BYTES", 100)
    path = tmp_path / "model.onnx"
    module = nn.Sequential(nn.Linear(64, 64)).eval()
    write_onnx(to_onnx(module, {"x": torch.zeros(2, 64)}, outputs=["y"], axes={"x": {0: batch_axis()}}), path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    x = torch.randn(3, 64)
    (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": x.numpy()})
    with torch.inference_mode():
        assert np.abs(found - module(x).numpy()).max() < 1e-5


def test_a_copy_without_weights_lacks_nothing_else() -> None:
    model = convert(Masked(use_mask=True).eval())
    copied = writer.copy_without_weights(model)
    assert not copied.graph.initializer
    copied.graph.initializer.extend(model.graph.initializer)
    assert copied.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    copied.graph.node[0].name = "another"
    assert model.graph.node[0].name != "another"


def test_a_written_graph_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_EXTERNAL_DATA_ABOVE_BYTES", 100)
    model = to_onnx(nn.Linear(64, 64).eval(), {"x": torch.zeros(2, 64)}, outputs=["y"], axes={})
    before = model.SerializeToString(deterministic=True)
    writer.save_onnx(model, tmp_path / "a.onnx")
    assert model.SerializeToString(deterministic=True) == before
    assert onnx.load_model(tmp_path / "a.onnx").graph.initializer[0].raw_data == model.graph.initializer[0].raw_data
    monkeypatch.undo()
    writer.save_onnx(model, tmp_path / "a.onnx")  # the data of the larger one would be listed in a manifest
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_shapes_are_inferred_as_onnx_infers_them() -> None:
    model = convert(Masked(use_mask=True).eval())
    del model.graph.value_info[:]
    expected = {value.name: value.type for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    writer.infer_shapes(model)
    assert {value.name: value.type for value in model.graph.value_info} == expected and expected
