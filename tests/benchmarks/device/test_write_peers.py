"""The peers' files: the fp32 one is the module, the int8 one nearly."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from asymcir_benchmarks.device.write_peers import Peer, write_peer
from asymcir_common import Preprocessing, preprocess
from numpy.typing import NDArray
from onnx_runs import cosine, make_pictures, run_graph

SIZE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = Preprocessing(size=SIZE, interpolation="bilinear", mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    return make_pictures()


def _pixels(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    square = (preprocess(picture, SPEC) / 255 - np.asarray(MEAN)) / np.asarray(STD)
    return square.transpose(2, 0, 1)[None].astype(np.float32)


def test_a_peer_is_its_module_with_merged_branches(tmp_path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    peer = Peer(file="peer", timm_name="repghostnet_050", size=SIZE, width=16, mean=MEAN, std=STD)
    fp32, int8 = write_peer(peer, tmp_path, pictures)
    assert (fp32.name, int8.name) == ("peer.onnx", "peer.int8.onnx")
    torch.manual_seed(0)
    module = timm.create_model(peer.timm_name, pretrained=False, num_classes=16).eval()
    pixels = _pixels(pictures[0])
    with torch.no_grad():
        expected = module(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(run_graph(fp32, pixels), expected, atol=1e-4 * np.abs(expected).max())
    assert cosine(run_graph(int8, pixels), expected) > 0.95
    kinds = [node.op_type for node in onnx.load(int8).graph.node]
    assert "QuantizeLinear" in kinds and "QuantizeLinear" not in [node.op_type for node in onnx.load(fp32).graph.node]
    assert write_peer(peer, tmp_path) == [fp32]  # nothing to calibrate on
