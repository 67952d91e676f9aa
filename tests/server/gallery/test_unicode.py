"""Ids, names and texts that differ in their Unicode normalisation only are the same."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asymcir_edge import RetrievalClient
from asymcir_protos import parse_filter
from asymcir_server import Gallery, RetrievalServer, ServerBundle, build_gallery, edit_gallery
from numpy.typing import NDArray
from PIL import Image
from tiny_server_bundle import TinyModel

NFC = "caf\u00e9"
NFD = unicodedata.normalize("NFD", NFC)


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def listed(tmp_path: Path, bundle: ServerBundle) -> Path:
    """Three pictures: one with a decomposed id, item and colour, one with a composed colour, and a plain one."""
    for seed in range(3):
        write(tmp_path / f"{seed}.png", seed)
    lines = [
        {"path": "0.png", "id": NFD, "item": f"{NFD}-item", f"{NFD}-key": NFD, "tags": [NFD, {NFD: NFD}]},
        {"path": "1.png", "id": "one", f"{NFC}-key": NFC},
        {"path": "2.png", "id": "two"},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_gallery(tmp_path / "list.jsonl", bundle, tmp_path / "gallery")
    return tmp_path / "gallery"


def test_file_names_that_are_the_same_are_one_id(tmp_path: Path, bundle: ServerBundle) -> None:
    write(tmp_path / "pictures" / f"{NFD}.png", 0)
    write(tmp_path / "pictures" / f"{NFC}.png", 1)
    if len(list((tmp_path / "pictures").iterdir())) == 1:
        pytest.skip("this file system holds them to be one name")
    report = build_gallery(tmp_path / "pictures", bundle, tmp_path / "gallery")
    assert (report.size, report.quarantined) == (1, 1)
    (reason,) = report.quarantined_by_reason
    assert "its id is taken by an earlier picture" in reason
    gallery = Gallery.open(tmp_path / "gallery")
    assert set(gallery.rows([f"{NFC}.png"])) == {f"{NFC}.png"}
    gallery.close()


@pytest.mark.parametrize("spelled", [NFC, NFD])
def test_excluded_and_named(listed: Path, spelled: str, bundle: ServerBundle) -> None:
    gallery = Gallery.open(listed)
    query = np.eye(gallery.embedding_width, dtype=np.float32)[:1]
    assert gallery.search(query, 3).ids[0].count(NFC) == 1
    for excluded in (spelled, f"{spelled}-item"):
        assert sorted(gallery.search(query, 3, [excluded]).ids[0]) == ["one", "two"]
        assert gallery.find_unknown([excluded, f"{spelled}?"]) == [f"{spelled}?"]
    assert gallery.digest(spelled) is not None
    (metadata,) = gallery.metadata([NFC])
    assert metadata["tags"] == [NFC, {NFC: NFC}]
    for filter_text in (f'`{spelled}-key` = "{spelled}"', f'`{spelled}-key` in ("{spelled}", "x")'):
        assert sorted(gallery.select(parse_filter(filter_text))) == sorted([NFC, "one"])
    gallery.close()


@pytest.mark.parametrize("spelled", [NFC, NFD])
def test_changes(listed: Path, spelled: str) -> None:
    with edit_gallery(listed, "test") as editor:
        report = editor.update([(spelled, {"price": 1})])
        assert (report.updated, report.missing) == (1, [])
        assert editor.remove([spelled, "nothing"]) == (1, ["nothing"])


def test_over_the_wire(listed: Path, bundle: ServerBundle, tokens: NDArray[np.float32], model: TinyModel) -> None:
    gallery = Gallery.open(listed, bundle.target_spaces)
    with (
        RetrievalServer(bundle, {NFC: gallery}) as server,
        RetrievalClient(server.address) as client,
    ):
        found = client.search(tokens, model.word_space, gallery=NFD, excluded_ids=[NFD, "gone"])
        assert sorted(hit.id for hit in found.hits) == ["one", "two"]
        assert found.warnings == ("excluded ids that the gallery does not hold: 'gone'",)
    gallery.close()


@pytest.mark.parametrize(
    ("modifier", "expected"),
    [
        ("is red", []),
        ("", []),
        ("  ", []),
        ("is purple and red", ["words that the text encoder does not know: 'purple'"]),
        ("qa qb qc qa qd qe", ["words that the text encoder does not know: 'qa', 'qb', 'qc' and 2 more"]),
        ("\x07", ["the text encoder reads nothing of the change '\\x07': it was left out"]),
    ],
)
def test_what_the_text_encoder_does_not_read_is_told(
    modifier: str, expected: list[str], server: RetrievalServer, tokens: NDArray[np.float32], model: TinyModel
) -> None:
    with RetrievalClient(server.address) as client:
        assert list(client.search(tokens, model.word_space, modifier=modifier).warnings) == expected


def test_galleries_of_before_keep_their_spelling(
    listed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: ServerBundle
) -> None:
    from asymcir_server.gallery.sources import entries

    keep: Callable[[Any], Any] = lambda text: text  # noqa: E731
    monkeypatch.setattr(entries, "to_nfc", keep)
    build_gallery(tmp_path / "list.jsonl", bundle, tmp_path / "before")
    monkeypatch.undo()
    gallery = Gallery.open(tmp_path / "before")
    query = np.eye(gallery.embedding_width, dtype=np.float32)[:1]
    for excluded in (NFD, f"{NFD}-item"):
        assert sorted(gallery.search(query, 3, [excluded]).ids[0]) == ["one", "two"]
    gallery.close()
