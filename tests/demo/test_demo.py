import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from asymcir_benchmarks.emojicir.dataset import SPLITS, SUFFIX, EmojiCir
from asymcir_benchmarks.emojicir.rows import read_rows
from asymcir_benchmarks.emojicir.rules import FAMILIES
from asymcir_common import read_image
from asymcir_common.places import PathReader
from asymcir_demo.assets import SHOWN_FAMILY, Assets
from asymcir_demo.errors import DemoError
from asymcir_demo.recipe.assets import write_archive
from asymcir_demo.sheet import Row, draw_sheet

ASSETS = Assets.find(Path(__file__).parents[2] / "demo" / "assets")


def test_the_gallery_is_as_large_as_promised_and_every_picture_is_there() -> None:
    records = [json.loads(line) for line in ASSETS.gallery_list.read_text(encoding="utf-8").splitlines()]
    assert len(records) >= 3500
    reader = PathReader()
    assert all(reader.size(ASSETS.gallery_list.parent / record["path"]) > 0 for record in records)
    assert len({record["id"] for record in records}) == len(records)


def test_at_least_eight_composed_queries_and_four_sketches_are_shown() -> None:
    names, reader = ASSETS.names(), PathReader()
    shown = ASSETS.shown_triplets()
    assert len(shown) >= 8 and len(ASSETS.shown_sketches()) >= 4
    for triplet in (*shown, *ASSETS.held_out_triplets()):
        assert triplet.target in names and reader.size(ASSETS.queries / f"{triplet.reference}{SUFFIX}") > 0
    assert shown == ASSETS.shown_triplets()  # the draw is fixed
    assert all(slug in names for slug in ASSETS.sketch_slugs())


def test_what_git_carries_stays_within_its_budget() -> None:
    files = [path for path in ASSETS.folder.rglob("*") if path.is_file()]
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) <= 45e6  # as git packs them


def test_the_sheet_marks_the_right_answer(tmp_path: Path) -> None:
    rows = [
        Row(
            query=ASSETS.queries / "woman.webp",
            change="has red hair",
            note="n",
            hits=["man", "rocket"],
            answer="rocket",
            rank=2,
        ),
        Row(query=ASSETS.queries / "woman.webp", change="", note="n", hits=["man"], answer="rocket", rank=None),
    ]
    draw_sheet(rows, ASSETS.gallery, SUFFIX, "title", tmp_path / "sheet.png")
    pixels = read_image(tmp_path / "sheet.png").astype(int)
    green = (pixels[:, :, 1] > 140) & (pixels[:, :, 0] < 40) & (pixels[:, :, 2] < 90)
    half = pixels.shape[0] // 2
    assert green[:half].sum() > 1000 > green[half:].sum()
    assert np.any(pixels != 255)


def test_an_archive_of_pictures_is_the_same_bytes_for_the_same_files(tmp_path: Path) -> None:
    files = {"b.webp": b"bee", "a.webp": b"ay"}
    for name in ("one.zip", "two.zip"):
        write_archive(tmp_path / name, files)
        files = dict(reversed(files.items()))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert [(info.filename, info.compress_type) for info in archive.infolist()] == [("a.webp", 0), ("b.webp", 0)]
        assert {name: archive.read(name) for name in archive.namelist()} == files


def test_missing_assets_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="make demo-assets"):
        Assets.find(tmp_path)


def test_held_out_queries_ask_for_held_out_concepts() -> None:
    dataset = EmojiCir.load(ASSETS.folder)
    rows = {row["id"]: row for row in read_rows(ASSETS.gallery_list, ("id", "split", "figure", "drawing"))}
    held_out = [triplet for split in SPLITS for triplet in dataset.triplets[split]]
    assert len(held_out) >= 1000
    for split in SPLITS:
        assert {triplet.family for triplet in dataset.triplets[split]} == set(FAMILIES)
        assert all(rows[triplet.target]["split"] == split for triplet in dataset.triplets[split])
    for shown in ASSETS.shown_triplets():
        assert (rows[shown.target]["split"] == "train") == (shown.family == SHOWN_FAMILY)
    for by_split in (dataset.sketches, dataset.identity):
        assert all(rows[slug]["split"] == split for split, slugs in by_split.items() for slug in slugs)
    assert 200 <= len(ASSETS.measured_triplets()) < len(ASSETS.held_out_triplets())


def test_no_split_shares_a_figure_or_a_drawing_with_another() -> None:
    rows = read_rows(ASSETS.gallery_list, ("id", "split", "figure", "drawing"))
    for key in ("figure", "drawing"):
        splits: dict[str, set[str]] = {}
        for row in rows:
            splits.setdefault(row[key], set()).add(row["split"])
        assert all(len(found) == 1 for found in splits.values())
