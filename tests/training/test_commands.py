"""`asymcir train` on a folder of pictures, with a tiny foundation."""

import json
from pathlib import Path

import numpy as np
import pytest
from asymcir_edge.cli import main
from asymcir_training import load_light_encoder, load_union_head
from PIL import Image
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    return folder


def test_distil_then_union_from_the_command_line(bert_folder: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "phrases.txt").write_text("red cat\nblue dog\n\na photo\n")
    (tmp_path / "modifiers.txt").write_text("is red\nis blue\n")
    common = ["--foundation", f"local-dir:{bert_folder}", "--work", str(tmp_path / "work")]
    words = ["train", "distil", str(pictures), "--backbone", "mobilenetv3_small_050", "--size", "32", "--width", "32"]
    words += ["--batch", "4", "--epochs", "1", "--phrases", str(tmp_path / "phrases.txt")]
    words += ["--modifiers", str(tmp_path / "modifiers.txt"), "--out", str(tmp_path / "light")]
    assert main([*words, *common]) == 0
    light, metadata = load_light_encoder(tmp_path / "light")
    assert light.word_width == WORD_WIDTH and len(metadata["word_space"]) == 64
    rows = [
        {"reference": str(pictures / "00.png"), "modifier": "is red", "target": str(pictures / "01.png")},
        {"reference": str(pictures / "02.png"), "modifier": "", "target": str(pictures / "03.png")},
    ]
    (tmp_path / "triplets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "union", str(tmp_path / "triplets.jsonl"), "--light", str(tmp_path / "light"), "--batch", "2"]
    assert main([*words, *common, "--epochs", "2", "--out", str(tmp_path / "union")]) == 0
    head, metadata = load_union_head(tmp_path / "union")
    assert head.embedding_width == EMBEDDING_WIDTH and len(metadata["word_space"]) == 64


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"reference": "a.png"}', "expected"),
        ("not json", "expected"),
        ('{"reference": "nowhere.png", "target": "a.png"}', "no picture"),
        ("", "no triplet"),
    ],
)
def test_bad_triplets_are_one_line(
    bert_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, expected: str
) -> None:
    (tmp_path / "t.jsonl").write_text(line + "\n")
    words = ["train", "union", str(tmp_path / "t.jsonl"), "--light", str(tmp_path), "--out", str(tmp_path / "o")]
    code = main([*words, "--foundation", f"local-dir:{bert_folder}", "--work", str(tmp_path / "w")])
    error = capsys.readouterr().err
    assert code == 1 and expected in error and len(error.strip().splitlines()) == 1


def test_a_folder_without_a_picture_is_one_line(
    bert_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "distil", str(tmp_path), "--foundation", f"local-dir:{bert_folder}", "--out", str(tmp_path / "o")]
    assert main([*words, "--work", str(tmp_path / "w")]) == 1
    assert "no picture in" in capsys.readouterr().err
