"""What a build says about everything that it did not take, and rebuilds that would lose most of a gallery."""

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asymcir_common import PlaceError, decode_image, read_manifest
from asymcir_common.manifest import GALLERY
from asymcir_common.pictures import _readable_formats
from asymcir_common.places import PICTURE_SUFFIXES, open_places
from asymcir_server import BuildConfig, Gallery, ServerBundle, build_gallery
from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery import open_source
from PIL import Image

Run = Callable[..., subprocess.CompletedProcess[str]]


def write_pictures(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, format="PNG")
    return folder


def test_what_is_decoded_when_named_is_taken_from_a_folder() -> None:
    formats = _readable_formats()
    known = {suffix for suffix, form in Image.registered_extensions().items() if form in formats}
    assert known <= PICTURE_SUFFIXES


@pytest.mark.parametrize("suffix", [".jpe", ".ico", ".qoi", ".pgm", ".apng"])
def test_pictures_of_rarer_suffixes(suffix: str, tmp_path: Path) -> None:
    mode = "L" if suffix == ".pgm" else "RGB"
    Image.new(mode, (16, 16), 90).save(tmp_path / f"a{suffix}", **({"format": "PNG"} if suffix == ".apng" else {}))
    places = open_places(tmp_path)
    assert list(places.ids) == [f"a{suffix}"]
    assert decode_image(places.read(0)).shape == (16, 16, 3)


def test_everything_that_is_not_taken_is_counted_with_an_example(
    tmp_path: Path, bundle_folder: Path, run_asymcir: Run
) -> None:
    folder = write_pictures(
        tmp_path / "p",
        ["a.png", "b/c.png", "b/c_thumb.png", "drafts/d.png", "@eaDir/e.png", ".git/f.png", "b/$RECYCLE.BIN/g.png"],
    )
    (folder / "b" / "note.txt").write_text("x")
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "linked").symlink_to(folder / "b")
    build = ("gallery", "build", folder, "--server-bundle", bundle_folder, "--gallery", tmp_path / "g")
    patterns = ("--exclude", "*_thumb.*", "--exclude", "drafts")
    record = json.loads(run_asymcir(*build, *patterns, "--json").stdout)
    assert (record["size"], record["quarantined"]) == (2, 2)
    assert record["passed_over_examples"] == {".txt": "b/note.txt"}
    assert sorted(record["quarantined_examples"].values()) == ["bad.png", "linked"]
    expected = {"--exclude *_thumb.*": 1, "--exclude drafts": 1, "@eaDir": 1, ".*": 1, "$RECYCLE.BIN": 1}
    assert record["left_out"] == expected
    text = run_asymcir(*build, *patterns).stdout
    for part in ("1 .txt (such as b/note.txt)", "(such as bad.png)", "(such as linked)", "1 --exclude drafts"):
        assert part in text
    only = json.loads(run_asymcir(*build, "--include", "b/*", "--json").stdout)
    assert (only["size"], only["left_out"]["--include"]) == (2, 3)


@pytest.mark.parametrize("kind", ["zip", "several"])
def test_names_that_are_left_out_in_an_archive(kind: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("./a.png", "@eaDir/b.png", ".x/c.png", "note.txt", "note.doc", "../d.png"):
            archive.writestr(name, b"x")
    source = open_source([tmp_path / "a.zip"] * (1 if kind == "zip" else 2), exclude=["a.png"])
    times = 1 if kind == "zip" else 2
    assert source.left_out == {"@eaDir": times, ".*": times, "--exclude a.png": times}
    assert source.passed_over_examples == {".txt": "note.txt", ".doc": "note.doc"}
    assert len(source) == len(list(source)) == times  # ../d.png, put aside


def test_a_rebuild_that_shrinks_a_gallery(tmp_path: Path, bundle: ServerBundle) -> None:
    folder = write_pictures(tmp_path / "p", [f"{number}.png" for number in range(8)])
    build_gallery(folder, bundle, tmp_path / "g")
    for number in range(4):
        (folder / f"{number}.png").unlink()
    assert build_gallery(folder, bundle, tmp_path / "g").size == 4  # half: allowed
    for number in range(4, 7):
        (folder / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(GalleryBuildError, match=r"holds 4 pictures and would hold 1 \(3 are put aside\)"):
        build_gallery(folder, bundle, tmp_path / "g")
    for number in range(4, 7):
        (folder / f"{number}.png").unlink()
    with pytest.raises(GalleryBuildError, match="would hold 1"):
        build_gallery(folder, bundle, tmp_path / "g")
    opened = Gallery.open(tmp_path / "g")
    assert (opened.size, opened.version) == (4, "000002")
    opened.close()
    assert build_gallery(folder, bundle, tmp_path / "g", config=BuildConfig(allow_shrink=True)).size == 1


def test_an_empty_text_is_no_place(tmp_path: Path, bundle_folder: Path, run_asymcir: Run, monkeypatch) -> None:
    monkeypatch.chdir(write_pictures(tmp_path, ["a.png"]))
    with pytest.raises(PlaceError, match="empty text"):
        open_places("")
    common = ("--server-bundle", bundle_folder, "--gallery", tmp_path / "g")
    done = run_asymcir("gallery", "build", "", *common)
    assert done.returncode == 1 and "empty text" in done.stderr
    done = run_asymcir("gallery", "info", "--gallery", "")
    assert done.returncode == 2 and "empty" in done.stderr


def test_what_people_read_may_change(tmp_path: Path, bundle: ServerBundle) -> None:
    folder = write_pictures(tmp_path / "p", ["a.png", "b.png"])
    snapshot = build_gallery(folder, bundle, tmp_path / "g").snapshot
    (snapshot / "quarantine.jsonl").write_text("looked at with an editor\n")
    assert "quarantine.jsonl" not in read_manifest(snapshot, format=GALLERY).files
    Gallery.open(tmp_path / "g").close()
