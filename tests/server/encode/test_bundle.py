"""What the server refuses to load, and how its parts open."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from asymcir_common import BundleError
from asymcir_server import ServerBundle, TargetEncoder, TextEncoder, VisualEncoder
from asymcir_server.encode.sessions import make_session_options
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_server_bundle import WORDS, TinyModel, write_tiny_bundle, write_tiny_manifest

FILES = ("text_encoder.onnx", "word_embeddings.npy", "tokenizer.json", "visual_encoder.onnx", "union_head.onnx")


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy"))


def test_load_reads_spaces_and_sizes(bundle: ServerBundle, model: TinyModel) -> None:
    assert bundle.word_space == model.word_space
    assert bundle.target_spaces == model.target_spaces
    assert bundle.text.word_width == model.word_width
    assert bundle.preprocessing == model.preprocessing


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_does_not_load(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=name):
        ServerBundle.load(copy)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_does_not_load(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        ServerBundle.load(copy)


def test_no_folder_and_another_format(tmp_path: Path, gallery_folder: Path) -> None:
    with pytest.raises(BundleError, match="check the path"):
        ServerBundle.load(tmp_path / "none")
    with pytest.raises(BundleError, match=r"expected an asymcir\.server-bundle"):
        ServerBundle.load(gallery_folder / "snapshots" / "000001")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text", {}),
        ("text", "text_encoder.onnx"),
        ("prompts", {"tokens": "a photo", "tokens_modifier": "{tokens} {modifier}", "null": ""}),
        ("prompts", {"tokens": "a {tokens}", "tokens_modifier": "a {tokens}", "null": ""}),
        ("tokenizer", {"file": "tokenizer.json", "clean": "spotless"}),
        ("tokenizer", {"file": "../tokenizer.json", "clean": "lower"}),
        ("union", {"file": "absent.onnx"}),
        ("union", None),  # while a target space `union` is listed
        ("target_spaces", ["union"]),
        ("word_space", None),
    ],
)
def test_properties_that_do_not_fit(copy: Path, model: TinyModel, key: str, value: object) -> None:
    write_tiny_manifest(copy, model, **{key: value})
    with pytest.raises(BundleError):
        ServerBundle.load(copy)


def test_a_bundle_without_a_union_head_makes_the_other_targets(copy: Path, model: TinyModel) -> None:
    (copy / "union_head.onnx").unlink()
    spaces = {target: space for target, space in model.target_spaces.items() if target != "union"}
    write_tiny_manifest(copy, model, union=None, target_spaces=spaces)
    bundle = ServerBundle.load(copy)
    assert (bundle.default_target, bundle.union_file, bundle.target_spaces) == ("original", None, spaces)
    image = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    targets = TargetEncoder(bundle)
    assert np.array_equal(targets.compute_targets(image), targets.compute_targets(image, "original"))
    for use in (lambda: targets.compute_targets(image, "union"), bundle.union_session):
        with pytest.raises(BundleError, match=r"no UNION head.*`--union CHECKPOINT`"):
            use()
    with pytest.raises(BundleError, match=r"makes the targets \['original', 'sum'\], not 'mean'"):
        targets.compute_targets(image, "mean")


def test_a_missing_property_is_named(copy: Path) -> None:
    record = json.loads((copy / "manifest.json").read_text())
    del record["properties"]["prompts"]
    (copy / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(BundleError, match="prompts"):
        ServerBundle.load(copy)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("text_encoder.onnx", TextEncoder),
        ("visual_encoder.onnx", VisualEncoder),
        ("union_head.onnx", lambda b: TargetEncoder(b).compute_targets(np.ones((1, 16), np.float32))),
    ],
)
def test_a_graph_that_does_not_fit_its_manifest(
    copy: Path, model: TinyModel, tmp_path: Path, name: str, use: Callable[[ServerBundle], object]
) -> None:
    other = write_tiny_bundle(tmp_path / "other", TinyModel(embedding_width=20))
    shutil.copy(other / name, copy / name)
    write_tiny_manifest(copy, model)
    bundle = ServerBundle.load(copy)
    with pytest.raises(BundleError, match=name):
        use(bundle)


def test_graphs_with_other_inputs_or_none(copy: Path, model: TinyModel) -> None:
    shutil.copy(copy / "union_head.onnx", copy / "visual_encoder.onnx")
    (copy / "text_encoder.onnx").write_bytes(b"no graph")
    write_tiny_manifest(copy, model)
    bundle = ServerBundle.load(copy)
    with pytest.raises(BundleError, match=r"takes the inputs .*image_features.* expected \['pixels'\]"):
        VisualEncoder(bundle)
    with pytest.raises(BundleError, match="cannot load"):
        TextEncoder(bundle)


def test_a_fixed_batch_is_refused(copy: Path, model: TinyModel) -> None:
    graph = onnx.load(copy / "visual_encoder.onnx")
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, copy / "visual_encoder.onnx")
    write_tiny_manifest(copy, model)
    with pytest.raises(BundleError, match="batch"):
        VisualEncoder(ServerBundle.load(copy))


def test_threads_have_a_range(bundle_folder: Path) -> None:
    for threads in (-1, 257):
        with pytest.raises(BundleError, match=f"0 to 256 threads, got {threads}"):
            ServerBundle.load(bundle_folder, threads=threads)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("int8", 2e-2)])
def test_small_tables_stand_for_the_float_one(
    tmp_path: Path, model: TinyModel, tokens: NDArray[np.float32], bundle: ServerBundle, dtype: str, tolerance: float
) -> None:
    small = ServerBundle.load(write_tiny_bundle(tmp_path / dtype, model, table_dtype=dtype), threads=1)
    ids = list(range(len(WORDS)))
    assert np.abs(small.word_table().lookup(ids) - model.weights["table"]).max() < tolerance
    expected = TextEncoder(bundle).encode_queries([tokens], ["red hair"])
    assert np.abs(TextEncoder(small).encode_queries([tokens], ["red hair"]) - expected).max() < tolerance


def test_tables_that_do_not_fit(copy: Path, model: TinyModel) -> None:
    for table in (np.zeros((4, 3), np.float32), np.zeros((4, model.word_width), np.int8), np.zeros(4, np.float32)):
        np.save(copy / "word_embeddings.npy", table)
        write_tiny_manifest(copy, model)
        with pytest.raises(BundleError, match="word_embeddings"):
            ServerBundle.load(copy).word_table()
    np.save(copy / "word_embeddings.npy", model.weights["table"][:4])  # the tokenizer knows more words than it holds
    write_tiny_manifest(copy, model)
    with pytest.raises(BundleError, match="do not fit"):
        TextEncoder(ServerBundle.load(copy))


def test_quantised_constants_are_folded_at_load(tmp_path: Path) -> None:
    weights = np.arange(12, dtype=np.int8).reshape(3, 4)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        "folded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 4])],
        [numpy_helper.from_array(weights, "q"), numpy_helper.from_array(np.array(0.5, np.float32), "scale")],
    )
    path = tmp_path / "quantised.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    options = make_session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": np.ones((1, 3), np.float32)})
    assert np.allclose(answer, weights.sum(axis=0) * 0.5)
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "DequantizeLinear" not in kinds
