"""The backbones' files: one network in every precision, with and without its preprocessing."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from asymcir_benchmarks.device.write_backbones import (
    ENCODER_FILES,
    FACTS_FILE,
    FORMAT,
    NETWORK_FILES,
    SENTENCE_LENGTH,
    WORD_WIDTH,
    is_written,
    write_backbone,
)
from asymcir_common import preprocess
from asymcir_training import FoundationError
from asymcir_training.foundation.preprocessing import imagenet_preprocessing
from numpy.typing import NDArray
from onnx_runs import cosine, make_pictures, run_graph

SIZE = 64
SPEC = imagenet_preprocessing(SIZE)


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    return make_pictures()


@pytest.mark.slow
def test_a_backbone_is_one_network_in_every_file(tmp_path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    facts = write_backbone("mobilenetv4_conv_small_050", tmp_path, pictures, size=SIZE)
    assert facts["onnx"]["verified"] and facts["format"] == FORMAT
    assert 0.001e9 < facts["macs"] < 0.1e9
    picture = preprocess(pictures[0], SPEC)
    normalised = (picture / 255 - np.asarray(SPEC.mean)) / np.asarray(SPEC.std)
    pixels = normalised.transpose(2, 0, 1)[None].astype(np.float32)
    tokens = run_graph(tmp_path / ENCODER_FILES["fp32"], picture)
    assert tokens.shape == (SENTENCE_LENGTH, WORD_WIDTH)
    for precision, encoder in ENCODER_FILES.items():
        whole, network = run_graph(tmp_path / encoder, picture), run_graph(tmp_path / NETWORK_FILES[precision], pixels)
        np.testing.assert_allclose(network, whole, atol=5e-3 if precision != "fp32" else 1e-4)
        assert cosine(whole, tokens) > (0.95 if precision == "int8" else 0.999)
        assert facts["onnx" if precision == "fp32" else precision]["size_mb"] > 0
        assert "If" not in {node.op_type for node in onnx.load(tmp_path / NETWORK_FILES[precision]).graph.node}
    with pytest.raises(FoundationError, match="unknown timm backbone"):
        write_backbone("mobilenetv9", tmp_path, pictures, size=SIZE)


def test_what_an_older_writer_left_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / FACTS_FILE
    assert not is_written(path, SIZE)
    for facts, done in (({"size": SIZE}, False), ({"format": FORMAT, "size": SIZE}, True)):
        path.write_text(json.dumps(facts), encoding="utf-8")
        assert is_written(path, SIZE) is done
    assert not is_written(path, 2 * SIZE)
