"""A server bundle without a UNION head, from its export to its answers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_common import BundleError, decode_image, preprocess, read_manifest
from asymcir_common.manifest import SERVER_BUNDLE
from asymcir_edge import RetrievalClient
from asymcir_edge.cli import main
from asymcir_export import ExportError, export_server_bundle
from asymcir_server import BuildConfig, Gallery, RetrievalServer, ServerBundle, build_gallery
from asymcir_training import Foundation, UnionHead
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH


@pytest.fixture(autouse=True, scope="module")
def _few_strings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asymcir_export.bundles.tokenizer_json.STRESS_COUNT", 200)
        yield


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory, bert_name: str, pictures: Path) -> Path:
    out = tmp_path_factory.mktemp("headless") / "bundle"
    words = ["export", "server", "--foundation", bert_name, "--out", str(out), "--pictures", str(pictures)]
    assert main(words) == 0
    return out


def test_it_offers_original_and_sum(bundle_folder: Path, bert_foundation: Foundation, union_head: UnionHead) -> None:
    manifest = read_manifest(bundle_folder, format=SERVER_BUNDLE)
    spaces = bert_foundation.target_spaces(union_head)
    assert manifest.properties["target_spaces"] == {target: spaces[target] for target in ("original", "sum")}
    assert "union" not in manifest.properties and "union_head.onnx" not in manifest.files
    assert "union_head.onnx" not in manifest.properties["weight_storage"]
    assert set(manifest.parity) == {"text_features", "image_features", "tokenizer"}


@pytest.mark.parametrize("target", [None, "original", "sum"])
def test_a_gallery_is_built_served_and_asked(
    bundle_folder: Path, bert_foundation: Foundation, pictures: Path, tmp_path: Path, target: str | None
) -> None:
    bundle = ServerBundle.load(bundle_folder)
    report = build_gallery(pictures, bundle, tmp_path / "g", config=BuildConfig(target=target))
    assert (report.target, report.size, report.quarantined) == (target or "original", 6, 1)
    tokens = np.random.default_rng(0).standard_normal((6, WORD_WIDTH)).astype(np.float32)
    gallery = Gallery.open(tmp_path / "g", bundle.target_spaces)
    with RetrievalServer(bundle, {"g": gallery}) as server, RetrievalClient(server.address) as client:
        (described,) = client.describe().galleries
        assert (described.target, described.target_space) == (report.target, bundle.target_spaces[report.target])
        answer = client.search(tokens, word_space=bundle.word_space, modifier="is red", top_k=6)
    gallery.close()

    spec = bert_foundation.preprocessing
    names = sorted(path.name for path in pictures.iterdir() if path.name[0].isdigit())
    squares = np.stack([preprocess(decode_image((pictures / name).read_bytes()), spec) for name in names])
    with torch.inference_mode():
        images = bert_foundation.encode_pixels(bert_foundation.normalise_pixels(torch.from_numpy(squares)))
        if report.target == "sum":
            images = images + bert_foundation.encode_null()
        query = bert_foundation.compose_query(torch.from_numpy(tokens)[None], ["is red"])
        scores = torch.nn.functional.cosine_similarity(query, images).numpy()  # [6]
    assert images.shape == (6, EMBEDDING_WIDTH)
    found = {hit.id: hit.score for hit in answer.hits}
    assert all(abs(found[name] - score) < 2e-3 for name, score in zip(names, scores, strict=True))


def test_union_is_refused_with_the_way_out(bundle_folder: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"no UNION head, so it makes the targets original, sum: .*--union CHECKPOINT"
    ):
        build_gallery(pictures, ServerBundle.load(bundle_folder), tmp_path / "g", config=BuildConfig(target="union"))
    assert not (tmp_path / "g").exists()


def test_a_storage_of_no_head_is_refused_early(bert_foundation: Foundation, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="union_storage is of a UNION head, and there is none"):
        export_server_bundle(bert_foundation, None, tmp_path / "b", pictures=pictures, union_storage="int8")
