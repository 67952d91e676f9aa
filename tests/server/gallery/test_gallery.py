"""Building, opening and searching galleries."""

import fcntl
import io
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from asymcir_common import BundleError, decode_image, preprocess
from asymcir_server import BuildConfig, Gallery, ServerBundle, build_gallery
from asymcir_server.errors import GalleryBuildError, RequestError, SpaceMismatchError
from asymcir_server.gallery.indexes.exact import ReadOnlyIndex
from asymcir_server.gallery.indexes.recall import make_check
from asymcir_server.gallery.progress import ProgressLine
from numpy.typing import NDArray
from PIL import Image
from tiny_server_bundle import END, START, TinyModel, write_tiny_bundle

TARGETS = ("union", "original", "sum")


def naive_targets(model: TinyModel, folder: Path, ids: list[str], target: str) -> NDArray[np.float32]:
    """Picture by picture, [N, E]."""
    null = model.text_features(model.weights["table"][[START, END]])[None]
    rows = []
    for identity in ids:
        pixels = preprocess(decode_image((folder / identity).read_bytes()), model.preprocessing)
        image = model.image_features(pixels[None])
        row = {"union": model.union(image, null), "original": image, "sum": image + null}[target]
        rows.append(row[0] / np.linalg.norm(row))
    return np.stack(rows)


def queries(count: int, width: int, seed: int = 5) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def read_quarantine(snapshot: Path) -> dict[str, str]:
    lines = (snapshot / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["id"]: record["reason"] for record in map(json.loads, lines)}


@pytest.mark.parametrize("target", TARGETS)
def test_targets_and_search_match_the_reference(
    tmp_path: Path, pictures: Path, bundle: ServerBundle, model: TinyModel, target: str
) -> None:
    report = build_gallery(pictures, bundle, tmp_path / "g", config=BuildConfig(target=target, batch_size=7, workers=3))
    gallery = Gallery.open(tmp_path / "g", bundle.target_spaces)
    ids = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    expected = naive_targets(model, pictures, ids, target)
    assert (report.size, report.quarantined, gallery.size) == (len(ids), 0, len(ids))
    assert gallery.target_space == model.target_spaces[target]
    assert np.abs(np.load(report.snapshot / "vectors.npy") - expected).max() < 1e-5

    found = gallery.search(queries(9, model.embedding_width), 5)
    scores = queries(9, model.embedding_width) @ expected.T
    best = np.argsort(-scores, axis=1)[:, :5]
    assert found.ids == [[ids[row] for row in rows] for rows in best]
    assert np.abs(found.scores - np.take_along_axis(scores, best, axis=1)).max() < 1e-5
    gallery.close()


def test_exclusion_is_exact(gallery: Gallery, model: TinyModel) -> None:
    query = queries(3, model.embedding_width)
    everything = gallery.search(query, 1000)
    assert [len(ids) for ids in everything.ids] == [gallery.size] * 3
    excluded = [everything.ids[0][0], everything.ids[0][2], everything.ids[0][0], "unknown"]
    rest = gallery.search(query, 1000, excluded)
    for all_ids, ids in zip(everything.ids, rest.ids, strict=True):
        assert ids == [identity for identity in all_ids if identity not in excluded]
    assert gallery.search(query, 4, excluded).ids == [ids[:4] for ids in rest.ids]
    assert gallery.search(query, 4, everything.ids[0]).ids == [[], [], []]


def test_search_refuses_other_shapes(gallery: Gallery) -> None:
    for shape, top_k in (((1, 3), 5), ((16,), 5), ((1, 16), 0)):
        with pytest.raises(RequestError):
            gallery.search(np.ones(shape, np.float32), top_k)


def test_search_from_many_threads(gallery: Gallery, model: TinyModel) -> None:
    query = queries(8, model.embedding_width)
    expected = gallery.search(query, 5, ["left/01.png"]).ids
    answers: list[list[list[str]]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(gallery.search(query, 5, ["left/01.png"]).ids)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 8


def test_metadata_and_duplicate_ids(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> None:
    lines = [
        {"path": "left/01.png", "id": "a", "name": "first", "year": 2020},
        {"path": "right/02.png", "id": "a", "name": "taken"},
        {"path": "absent.png", "id": "b"},
        {"path": "right/00.png", "id": "b", "name": "second"},
        {"path": "left/03.png"},
    ]
    source = pictures / "list.jsonl"
    source.write_text("\n".join(json.dumps(line) for line in lines))
    try:
        report = build_gallery(source, bundle, tmp_path / "g")
    finally:
        source.unlink()
    assert (report.size, report.quarantined) == (3, 2)
    reasons = (report.snapshot / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in reasons] == ["absent.png", "right/02.png"]
    assert "taken by an earlier picture" in json.loads(reasons[1])["reason"]
    gallery = Gallery.open(tmp_path / "g")
    assert gallery.metadata(["b", "unknown", "a", "left/03.png"]) == [
        {"name": "second"}, {}, {"name": "first", "year": 2020}, {},
    ]  # fmt: skip
    gallery.close()


def test_a_zip_gives_the_same_gallery(
    tmp_path: Path, pictures: Path, bundle: ServerBundle, gallery_folder: Path
) -> None:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for picture in pictures.rglob("*.png"):
            archive.write(picture, picture.relative_to(pictures))
    report = build_gallery(path, bundle, tmp_path / "g")
    other = gallery_folder / "snapshots/000001"
    assert (report.snapshot / "vectors.npy").read_bytes() == (other / "vectors.npy").read_bytes()


def test_several_places_give_one_gallery(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> None:
    for side in ("left", "right"):
        with zipfile.ZipFile(tmp_path / f"{side}.zip", "w") as archive:
            for picture in (pictures / side).glob("*.png"):
                archive.write(picture, picture.name)
    report = build_gallery([pictures / "left", f"{tmp_path}/{{left,right}}.zip"], bundle, tmp_path / "g")
    count = len(list((pictures / "left").glob("*.png"))), len(list((pictures / "right").glob("*.png")))
    assert (report.size, report.quarantined) == (2 * count[0] + count[1], 0)
    with zipfile.ZipFile(tmp_path / "left.zip") as archive:
        name = archive.namelist()[0]
    gallery = Gallery.open(tmp_path / "g")
    assert set(gallery.search(queries(1, 16), 1000).ids[0]) >= {f"left/{name}", f"left.zip/{name}"}
    gallery.close()


def test_bad_pictures_go_to_quarantine_and_good_ones_do_not(tmp_path: Path, bundle: ServerBundle) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(1)
    noise = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6  # lie on the side
    palette = image.quantize(8)
    palette.save(folder / "palette_alpha.png", transparency=0)
    image.save(folder / "rotated.jpg", exif=exif)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "grey.png")
    Image.fromarray(generator.integers(0, 65536, (30, 20), dtype=np.uint16)).save(folder / "sixteen.png")
    Image.fromarray(noise[:1, :1]).save(folder / "one.png")
    Image.new("RGB", (10_000, 5_000), (200, 30, 30)).save(folder / "fifty_megapixels.png", compress_level=1)
    Image.new("RGB", (5_000, 1), (200, 30, 30)).save(folder / "bad_strip.png")
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    (folder / "bad_truncated.jpg").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    (folder / "bad_truncated.png").write_bytes(stream.getvalue()[:-200])
    (folder / "bad_empty.png").write_bytes(b"")
    (folder / "bad_text.png").write_text("<html>not a picture</html>")
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = (100_000).to_bytes(4, "big") * 2  # claims ten gigapixels
    (folder / "bad_giant.png").write_bytes(data)

    report = build_gallery(folder, bundle, tmp_path / "g", config=BuildConfig(batch_size=2))
    reasons = read_quarantine(report.snapshot)
    assert {name for name in reasons if not name.startswith("bad_")} == set()
    assert len(reasons) == report.quarantined == 6
    assert all("\n" not in reason and len(reason) > 20 for reason in reasons.values())
    assert report.size == 7
    rotated = preprocess(np.rot90(decode_image((folder / "rotated.jpg").read_bytes())), bundle.preprocessing)
    assert np.abs(rotated.astype(int) - preprocess(noise, bundle.preprocessing)).mean() < 16


def test_nothing_usable_is_an_error_and_leaves_no_gallery(tmp_path: Path, bundle: ServerBundle) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    for folder in (empty, broken):
        folder.mkdir()
    (broken / "x.png").write_bytes(b"no picture")
    for folder, reason in ((empty, "no pictures in"), (broken, "the only picture in .* not a picture format")):
        with pytest.raises(GalleryBuildError, match=reason):
            build_gallery(folder, bundle, tmp_path / "g")
        assert not (tmp_path / "g").exists()
        with pytest.raises(BundleError, match="no gallery at"):
            Gallery.open(tmp_path / "g")


def test_building_again_makes_the_next_snapshot(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> None:
    first = build_gallery(pictures / "left", bundle, tmp_path / "g")
    opened = Gallery.open(tmp_path / "g")
    second = build_gallery(pictures, bundle, tmp_path / "g")
    assert (first.version, second.version) == ("000001", "000002")
    assert first.snapshot.is_dir()
    assert "/" not in opened.search(queries(1, 16), 1).ids[0][0]  # still the first, whose ids name no folder
    assert Gallery.open(tmp_path / "g").version == "000002"


@pytest.mark.parametrize("change", [{"workers": 100_000}, {"workers": -1}, {"batch_size": 0}, {"batch_size": 10**6}])
def test_batches_and_workers_have_a_range(change: dict[str, int]) -> None:
    with pytest.raises(GalleryBuildError, match="batch size from 1 to 1024 and 0 to 256 workers"):
        BuildConfig(**change)


def test_another_space_needs_to_be_asked_for(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> None:
    build_gallery(pictures, bundle, tmp_path / "g")
    with pytest.raises(GalleryBuildError, match="--replace-space"):
        build_gallery(pictures, bundle, tmp_path / "g", config=BuildConfig(target="sum"))
    report = build_gallery(pictures, bundle, tmp_path / "g", config=BuildConfig(target="sum", replace_space=True))
    assert report.version == "000002"
    assert Gallery.open(tmp_path / "g").target == "sum"


def test_a_gallery_of_another_space_does_not_open(tmp_path: Path, gallery_folder: Path, model: TinyModel) -> None:
    other = TinyModel(seed=8)
    bundle = ServerBundle.load(write_tiny_bundle(tmp_path / "server", other))
    with pytest.raises(SpaceMismatchError) as caught:
        Gallery.open(gallery_folder, bundle.target_spaces)
    assert model.target_spaces["union"] in str(caught.value)
    assert other.target_spaces["union"] in str(caught.value)


def test_out_folders_that_are_something_else(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("full", "file"):
        with pytest.raises(GalleryBuildError, match="choose another --gallery"):
            build_gallery(pictures, bundle, tmp_path / name)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    assert build_gallery(pictures, bundle, tmp_path / "empty").version == "000001"


def test_a_folder_that_cannot_be_written(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> None:
    build_gallery(pictures, bundle, tmp_path / "g")
    shutil.rmtree(tmp_path / "g" / "snapshots")
    (tmp_path / "g" / "snapshots").write_text("a file where a folder should be")
    with pytest.raises(GalleryBuildError, match="cannot write to"):
        build_gallery(pictures, bundle, tmp_path / "g")


def test_a_full_disk_leaves_the_old_snapshot(
    tmp_path: Path, pictures: Path, bundle: ServerBundle, bundle_folder: Path
) -> None:
    build_gallery(pictures, bundle, tmp_path / "g")
    code = (
        "import resource, signal, sys; from asymcir_edge.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "sys.exit(main())"
    )
    arguments = ("gallery", "build", pictures, "--server-bundle", bundle_folder, "--gallery", tmp_path / "g")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "cannot write the gallery" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [path.name for path in (tmp_path / "g" / "snapshots").iterdir()] == ["000001"]
    assert Gallery.open(tmp_path / "g").version == "000001"


def test_one_build_at_a_time(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> None:
    build_gallery(pictures, bundle, tmp_path / "g")
    with (tmp_path / "g" / ".build.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(GalleryBuildError, match="another writer holds"):
            build_gallery(pictures, bundle, tmp_path / "g")
    assert build_gallery(pictures, bundle, tmp_path / "g").version == "000002"


@pytest.mark.parametrize("name", ["metadata.sqlite", "vectors.npy", "manifest.json"])
def test_damaged_galleries_do_not_open(tmp_path: Path, gallery_folder: Path, name: str) -> None:
    copy = Path(shutil.copytree(gallery_folder, tmp_path / "copy"))
    path = copy / "snapshots" / "000001" / name
    path.write_bytes(path.read_bytes() + b" x")
    with pytest.raises(BundleError):
        Gallery.open(copy)
    path.unlink()
    with pytest.raises(BundleError):
        Gallery.open(copy)


@pytest.mark.parametrize("content", [b"", b"../../etc", b"000009", b"\xff\xff"])
def test_damaged_pointers_do_not_open(tmp_path: Path, gallery_folder: Path, content: bytes) -> None:
    copy = Path(shutil.copytree(gallery_folder, tmp_path / "copy"))
    (copy / "CURRENT").write_bytes(content)
    with pytest.raises(BundleError):
        Gallery.open(copy)
    with pytest.raises(BundleError, match="no gallery at"):
        Gallery.open(tmp_path / "none")


def test_building_mends_a_damaged_gallery(
    tmp_path: Path, gallery_folder: Path, pictures: Path, bundle: ServerBundle
) -> None:
    copy = Path(shutil.copytree(gallery_folder, tmp_path / "copy"))
    (copy / "snapshots" / "000001" / "manifest.json").write_text("{")
    assert build_gallery(pictures, bundle, copy).version == "000002"
    assert Gallery.open(copy).size == 40


def test_a_snapshot_that_was_written_but_not_pointed_to(
    tmp_path: Path, gallery_folder: Path, pictures: Path, bundle: ServerBundle
) -> None:
    """What a build leaves that dies between giving the snapshot its name and moving the pointer."""
    copy = Path(shutil.copytree(gallery_folder, tmp_path / "copy"))
    shutil.copytree(copy / "snapshots" / "000001", copy / "snapshots" / "000002")
    opened = Gallery.open(copy)
    assert opened.version == "000001"
    opened.close()
    assert build_gallery(pictures, bundle, copy).version == "000003"


def test_metadata_is_read_only(gallery_folder: Path, gallery: Gallery) -> None:
    with pytest.raises(sqlite3.OperationalError):
        gallery._metadata._connection.execute("DELETE FROM items")
    rows = sqlite3.connect(gallery_folder / "snapshots/000001/metadata.sqlite").execute("SELECT row, id FROM items")
    assert [row for row, _ in rows] == list(range(40))


def test_recall_is_measured(tmp_path: Path) -> None:
    vectors = queries(300, 8, seed=2)
    vectors[100:120] = vectors[0]  # equal pictures
    np.save(tmp_path / "right.npy", vectors)
    np.save(tmp_path / "wrong.npy", np.roll(vectors, 1, axis=0))
    check = make_check(vectors)

    def recall_of(name: str) -> float:
        rows = ReadOnlyIndex(tmp_path / name).search(check.queries, check.depth)[1]
        return check.measure(rows, vectors)[0]

    assert recall_of("right.npy") == 1.0
    assert recall_of("wrong.npy") < 0.5


def test_search_without_a_copy_answers_as_a_flat_index_of_faiss(tmp_path: Path) -> None:
    vectors, asked = queries(5000, 24, seed=2), queries(40, 24)
    np.save(tmp_path / "vectors.npy", vectors)
    index, flat = ReadOnlyIndex(tmp_path / "vectors.npy"), faiss.IndexFlatIP(24)
    flat.add(vectors)
    for batch in (asked[:1], asked):  # FAISS has another kernel for many queries
        assert all(np.array_equal(a, b) for a, b in zip(index.search(batch, 9), flat.search(batch, 9), strict=True))
    excluded = index.search(asked[:1], 4)[1][0]
    assert index.search(asked[:1], 5, excluded)[1].tolist() == flat.search(asked[:1], 9)[1][:, 4:].tolist()


@pytest.mark.parametrize("content", [np.zeros(3, np.float32), np.zeros((3, 4)), np.zeros((3, 4), np.float32, "F")])
def test_vectors_of_another_form_are_refused(tmp_path: Path, content: NDArray[np.generic]) -> None:
    np.save(tmp_path / "vectors.npy", content)
    with pytest.raises(BundleError, match=r"expected vectors \[N, E\] float32"):
        ReadOnlyIndex(tmp_path / "vectors.npy")


def test_a_snapshot_holds_its_vectors_once(gallery_folder: Path) -> None:
    names = sorted(path.name for path in (gallery_folder / "snapshots/000001").iterdir())
    assert names == ["manifest.json", "metadata.sqlite", "quarantine.jsonl", "vectors.npy"]


def test_progress_reaches_the_end(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> None:
    seen: list[tuple[int, int, int]] = []
    build_gallery(
        pictures,
        bundle,
        tmp_path / "g",
        config=BuildConfig(batch_size=16),
        progress=lambda done, total, bad: seen.append((done, total, bad)),
    )
    assert seen == [(16, 40, 0), (32, 40, 0), (40, 40, 0)]
    stream = io.StringIO()
    line = ProgressLine(stream)
    line.update(1, 2, 0)
    line.close()
    assert stream.getvalue() == ""  # not a terminal, and ten seconds have not passed


def test_a_failing_build_leaves_the_old_snapshot(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> None:
    build_gallery(pictures, bundle, tmp_path / "g")

    def fail(done: int, total: int, quarantined: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_gallery(pictures, bundle, tmp_path / "g", config=BuildConfig(batch_size=4), progress=fail)
    assert [path.name for path in (tmp_path / "g" / "snapshots").iterdir()] == ["000001"]
    assert Gallery.open(tmp_path / "g").version == "000001"


def test_kill_9_leaves_the_old_snapshot(
    tmp_path: Path,
    pictures: Path,
    bundle: ServerBundle,
    bundle_folder: Path,
    start_asymcir: Callable,
    wait_until: Callable,
) -> None:
    out = tmp_path / "g"
    build_gallery(pictures, bundle, out)
    source = tmp_path / "list.jsonl"
    names = sorted(pictures.rglob("*.png"))
    lines = [json.dumps({"path": str(names[i % 40]), "id": str(i)}) for i in range(4000)]
    source.write_text("\n".join(lines))
    hidden = out / "snapshots" / ".building-000002"
    stages: list[Callable[[], bool]] = [
        lambda: (hidden / "vectors.npy").is_file(),
        lambda: (hidden / "vectors.npy").is_file() and (hidden / "vectors.npy").stat().st_size > 40_000,
        lambda: (hidden / "vectors.npy").is_file() and (hidden / "vectors.npy").read_bytes()[:6] == b"\x93NUMPY",
    ]
    for stage in stages:
        build = start_asymcir(
            "gallery", "build", source, "--server-bundle", bundle_folder, "--gallery", out, "--batch-size", 8
        )
        wait_until(lambda stage=stage, build=build: stage() or build.poll() is not None)
        assert build.poll() is None, build.communicate()[1]
        build.kill()
        build.wait()
        assert (out / "CURRENT").read_text() == "000001\n"
        survivor = Gallery.open(out, bundle.target_spaces)
        assert len(survivor.search(queries(1, 16), 3).ids[0]) == 3
        survivor.close()
        with pytest.raises(BundleError):
            Gallery(out, hidden)
    assert hidden.is_dir()
    (out / ".CURRENT.99999.tmp").write_text("0000")
    assert build_gallery(pictures, bundle, out).version == "000002"
    assert sorted(path.name for path in (out / "snapshots").iterdir()) == ["000001", "000002"]
    assert sorted(path.name for path in out.iterdir()) == [".build.lock", "CURRENT", "snapshots"]
