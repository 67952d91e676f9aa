"""The resize in the graph is compared with Pillow's by its pixels, so that no young network hides a wrong one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_common import Preprocessing
from asymcir_export import ParityError
from asymcir_export.checks.resizing import check_resize
from asymcir_export.graphs.device_graph import build_device_graph
from asymcir_export.graphs.writer import write_onnx
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto
from torch import nn

SPEC = Preprocessing(size=32, interpolation="bilinear", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
NAMES = ["square.png", "up.png", "down.png", "tall.png"]


@pytest.fixture(scope="module")
def shown() -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    sizes = ((32, 32), (20, 27), (100, 130), (160, 90))
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def write(path: Path, spec: Preprocessing) -> ModelProto:
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2)).eval()
    model = build_device_graph(encoder, spec, torch.zeros(1, 3, spec.size, spec.size))
    write_onnx(model, path)
    return model


def test_the_graphs_own_resize_passes(shown: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    write(tmp_path / "encoder.onnx", SPEC)
    record = check_resize(tmp_path / "encoder.onnx", SPEC, shown, NAMES)
    assert record["grey_difference_worst"] < 0.3 and record["worst_resize"] in NAMES[2:]
    exact = check_resize(tmp_path / "encoder.onnx", SPEC, shown[:2], NAMES[:2])
    assert exact["grey_difference_worst"] < 1e-4


def test_another_resize_is_refused_by_the_name_of_the_worst_picture(
    shown: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    other = Preprocessing(size=32, interpolation="bicubic", mean=SPEC.mean, std=SPEC.std)
    write(tmp_path / "encoder.onnx", other)
    with pytest.raises(
        ParityError, match=r"otherwise than Pillow: \w+\.png, \d+x\d+, differs by .*nothing was written"
    ):
        check_resize(tmp_path / "encoder.onnx", SPEC, shown, NAMES)


def test_a_resize_without_antialias_is_refused(shown: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    model = write(tmp_path / "encoder.onnx", SPEC)
    branches = [item.g for node in model.graph.node for item in node.attribute if item.type == AttributeProto.GRAPH]
    resizes = [node for branch in branches for node in branch.node if node.op_type == "Resize"]
    for node in resizes:
        kept = [item for item in node.attribute if item.name not in ("antialias", "exclude_outside")]
        del node.attribute[:]
        node.attribute.extend(kept)
    write_onnx(model, tmp_path / "encoder.onnx")
    assert len(resizes) == 2
    with pytest.raises(ParityError, match=r"(down|tall)\.png"):
        check_resize(tmp_path / "encoder.onnx", SPEC, shown, NAMES)
