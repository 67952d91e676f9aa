"""The `asymcir export` command, in this process (torch is imported already)."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from asymcir_common import read_manifest
from asymcir_common.manifest import DEVICE_BUNDLE, SERVER_BUNDLE
from asymcir_edge.cli import main
from asymcir_export.bundles import staging
from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.text_encoder import TextEncoder
from asymcir_training import Foundation, LightEncoder, UnionHead, save_light_encoder, save_union_head
from onnx import ModelProto, numpy_helper


@pytest.fixture
def checkpoint(tmp_path: Path, light_encoder: LightEncoder, causal_foundation: Foundation) -> Path:
    sources = [{"name": "backbone", "licence": "Apache-2.0", "url": "https://example.org"}]
    metadata = {"word_space": causal_foundation.word_space(), "foundation": "tiny", "sources": sources}
    save_light_encoder(tmp_path / "checkpoint", light_encoder, metadata)
    return tmp_path / "checkpoint"


def test_device(checkpoint: Path, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    words = ["export", "device", str(checkpoint), "--out", str(out), "--pictures", str(pictures), "--no-coreml"]
    assert main([*words, "--storage", "int8", "--source", "emoji;CC-BY-4.0;https://openmoji.org"]) == 0
    assert "encoder.onnx" in capsys.readouterr().out
    manifest = read_manifest(out, format=DEVICE_BUNDLE)
    assert manifest.properties["weight_storage"] == "int8"
    assert [source["name"] for source in manifest.sources] == ["backbone", "emoji"]
    assert main(words) == 1
    assert "exists: choose another --out" in capsys.readouterr().err


def test_a_planted_fault_exits_with_an_error(
    checkpoint: Path,
    tmp_path: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = staging.store_lean

    def store_wrong(model: ModelProto, storage: str) -> ModelProto:
        lean = original(model, storage)
        for tensor in lean.graph.initializer:
            if tensor.name.endswith("token_learner.project.weight"):
                weight = numpy_helper.to_array(tensor).copy()
                weight[: len(weight) // 2] *= -1.5
                tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
        return lean

    monkeypatch.setattr(staging, "store_lean", store_wrong)
    out = tmp_path / "bundle"
    words = ["export", "device", str(checkpoint), "--out", str(out), "--pictures", str(pictures), "--no-coreml"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "sentence_tokens: the exported model differs from its original" in error
    assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]  # no bundle, and no rest of one


def test_a_checkpoint_of_another_foundation_is_refused(
    checkpoint: Path,
    tmp_path: Path,
    pictures: Path,
    bert_foundation: Foundation,
    bert_name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["export", "device", str(checkpoint), "--out", str(tmp_path / "b"), "--pictures", str(pictures)]
    assert main([*words, "--foundation", bert_name]) == 1
    assert "pass the foundation that it was trained against" in capsys.readouterr().err


def test_server_with_a_bidirectional_tower_and_lean_weights(
    tmp_path: Path,
    pictures: Path,
    bert_foundation: Foundation,
    bert_name: str,
    union_head: UnionHead,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_union_head(tmp_path / "union", union_head, {"word_space": bert_foundation.word_space(), "foundation": "tiny"})
    out = tmp_path / "bundle"
    words = ["export", "server", "--foundation", bert_name, "--union", str(tmp_path / "union")]
    words += ["--out", str(out), "--pictures", str(pictures), "--storage", "int8", "--union-storage", "int4"]
    assert main([*words, "--table-storage", "int8"]) == 0, capsys.readouterr().err
    manifest = read_manifest(out, format=SERVER_BUNDLE)
    assert manifest.properties["weight_storage"] == {
        "text_encoder.onnx": "int8",
        "visual_encoder.onnx": "int8",
        "union_head.onnx": "int4",
        "word_embeddings.npy": "int8",
    }
    assert manifest.parity["target"]["weight_storage"] == "int4"
    assert manifest.properties["text"]["causal"] is False
    assert manifest.properties["text"]["word_embedding_scales"] == "word_embedding_scales.npy"
    assert manifest.properties["tokenizer"]["clean"] == "whitespace"
    bundle = ServerBundle.load(out)
    assert bundle.text_session()[1] == {"word_embeddings", "attention_mask"}  # it pools by the mask
    texts = ["a", "that red photo of a thing", ""]
    found, expected = TextEncoder(bundle).encode_text(texts), bert_foundation.encode_text(texts).numpy()
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.995


def test_a_union_head_of_another_foundation_is_refused(
    tmp_path: Path,
    pictures: Path,
    bert_foundation: Foundation,
    bert_name: str,
    union_head: UnionHead,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_union_head(tmp_path / "union", union_head, {"word_space": "0" * 64, "foundation": "another"})
    words = ["export", "server", "--foundation", bert_name, "--union", str(tmp_path / "union")]
    assert main([*words, "--out", str(tmp_path / "b"), "--pictures", str(pictures)]) == 1
    error = capsys.readouterr().err
    assert "pass the foundation that it was trained with" in error and "000000" in error
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["device", "c", "--search-set", "s"], "--search-set has no effect without --server-bundle"),
        (["device", "c", "--server-bundle", "s"], "--server-bundle has no effect without --search-set"),
        (["device", "c", "--pretrained", "openai"], "pass its name with --foundation"),
        (["device", "c", "--no-coreml", "--variants", "int8", "coreml-fp16"], "asks for coreml-fp16 and --no-coreml"),
        (["server", "--foundation", "f", "--search-set", "s"], "--search-set has no effect without --device-bundle"),
        (["server", "--foundation", "f", "--union-storage", "int4"], "pass one with --union"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_torch_is_imported(words: list[str], message: str) -> None:
    code = (
        "import sys\n"
        "from asymcir_edge.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    command = [sys.executable, "-c", code, "export", *words, "--out", "o", "--pictures", "p"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and message in done.stderr, done.stderr


def test_a_place_that_is_taken_is_refused_before_the_models_are_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["device", "absent"], ["server", "--foundation", "local-dir:absent"]):
        assert main(["export", *words, "--out", str(tmp_path), "--pictures", "p"]) == 1
        assert "exists: choose another --out" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\n"
        "from asymcir_edge.cli import main\n"
        "assert main(['export', 'device', '--help']) == 0\n"
        "assert not {'torch', 'onnx', 'coremltools', 'open_clip'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_wrong_source_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "device", "c", "--out", "o", "--pictures", "p", "--source", "only-a-name"]) == 2
    assert "NAME;LICENCE;URL" in capsys.readouterr().err
