"""The peers' files: the fp32 one is the module, the int8 one nearly."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from asymcir_export.peers import Peer, write_peer
from asymcir_protos import Preprocessing, preprocess
from numpy.typing import NDArray

SIZE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = Preprocessing(size=SIZE, interpolation="bilinear", mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (16, 8, 10, 3), dtype=np.uint8)
    return [np.ascontiguousarray(picture.repeat(16, axis=0).repeat(16, axis=1)) for picture in small]


def _run(path: Path, value: NDArray[np.generic]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: value})[0]


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


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
    np.testing.assert_allclose(_run(fp32, pixels), expected, atol=1e-4 * np.abs(expected).max())
    assert _cosine(_run(int8, pixels), expected) > 0.95
    kinds = [node.op_type for node in onnx.load(int8).graph.node]
    assert "QuantizeLinear" in kinds and "QuantizeLinear" not in [node.op_type for node in onnx.load(fp32).graph.node]
    assert write_peer(peer, tmp_path) == [fp32]  # nothing to calibrate on
