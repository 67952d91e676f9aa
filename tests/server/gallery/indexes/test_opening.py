"""From vectors to a snapshot's manifest and back; damaged, foreign and old files."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asymcir_common import BundleError, read_manifest, write_manifest
from asymcir_common.manifest import GALLERY
from asymcir_server import BuildConfig, Gallery, IndexConfig, ServerBundle, build_gallery
from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.indexes import KINDS, choose_kind
from small_indexes import CODED, Built, build, make_vectors


@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_is_measured_and_the_least_effort_that_reaches_is_chosen(
    built: Callable[[str], Built], kind: str
) -> None:
    record = built(kind).properties["index"]
    assert record["kind"] == built(kind).properties["index_kind"] == kind
    assert record["recall_at_10"] == built(kind).properties["index_recall_at_10"] >= 0.98
    assert record["recall_queries"] == {"source": "sampled vectors with noise", "count": 256}
    if kind == "exact":
        return
    curve = record["recall_curve"]
    reached = [point for point in curve if point["recall_at_10"] - point["standard_error"] >= 0.98]
    assert {name: reached[0][name] for name in ("probes", "candidates")} == record["effort"]
    assert curve.index(reached[0]) >= len(curve) - 2  # one step past it
    assert all(point["ms_per_query"] > 0 for point in curve)
    assert json.loads(json.dumps(record)) == record


def test_recall_is_measured_on_given_queries(tmp_path: Path) -> None:
    vectors = make_vectors(2000, 1)
    np.save(tmp_path / "queries.npy", make_vectors(3000, 9))
    record = build(tmp_path / "g", "ivf-sq8", vectors, recall_queries=tmp_path / "queries.npy").properties["index"]
    assert record["recall_queries"] == {"source": "held-out composed queries", "count": 1000}


@pytest.mark.parametrize(
    "content",
    [np.zeros((0, 32), np.float32), np.ones((3, 31), np.float32), np.ones((3, 32)), np.full((3, 32), np.nan, "f4")],
)
def test_queries_of_another_form_are_refused(tmp_path: Path, content: np.ndarray) -> None:
    np.save(tmp_path / "queries.npy", content)
    for path in (tmp_path / "queries.npy", tmp_path / "absent.npy"):
        with pytest.raises(GalleryBuildError, match="recall queries"):
            build(tmp_path / "g", "ivf-sq8", make_vectors(100, 1), recall_queries=path)


def test_a_recall_out_of_reach_takes_the_best_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = np.random.default_rng(0).standard_normal((3000, 256)).astype(np.float32)  # noise has no neighbours
    with caplog.at_level(logging.WARNING):
        record = build(tmp_path / "g", "hnsw", vectors, recall=1.0).properties["index"]
    best = max(point["recall_at_10"] for point in record["recall_curve"])
    if best < 1.0:
        assert "no search effort of the hnsw index reaches recall@10 1.000" in caplog.text
    assert record["recall_at_10"] == pytest.approx(best, abs=1e-4)


def test_auto_goes_by_size_and_budget() -> None:
    assert choose_kind(1, 768) == choose_kind(20_000, 768, 0) == "exact"
    assert choose_kind(20_001, 768) == choose_kind(1_000_000, 768) == "ivf-sq8"
    assert choose_kind(1_000_000, 768, 500 << 20) == choose_kind(5_000_000, 768) == "ivf-rabitq"
    assert choose_kind(5_000_000, 768, 8 << 30) == "ivf-sq8"


@pytest.mark.parametrize("change", [{"kind": "lsh"}, {"recall": 0.0}, {"recall": 1.1}, {"memory_budget_bytes": -1}])
def test_configurations_out_of_range(change: dict) -> None:
    with pytest.raises(GalleryBuildError):
        IndexConfig(**change)


@pytest.mark.parametrize("kind", CODED)
def test_the_same_vectors_give_the_same_file(tmp_path: Path, kind: str) -> None:
    for name in ("one", "two"):
        build(tmp_path / name, kind, make_vectors(500, 1))
    assert (tmp_path / "one" / "index.faiss").read_bytes() == (tmp_path / "two" / "index.faiss").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gallery_of_every_kind_is_built_and_read_by_another_process(
    tmp_path: Path, pictures: Path, bundle: ServerBundle, kind: str
) -> None:
    report = build_gallery(pictures, bundle, tmp_path / "g", config=BuildConfig(index=IndexConfig(kind=kind)))
    assert report.index_kind == kind
    assert (report.snapshot / "index.faiss").is_file() == (kind != "exact")
    gallery = Gallery.open(tmp_path / "g", bundle.target_spaces)
    query = make_vectors(3, 8, width=gallery.embedding_width)
    ids = gallery.search(query, 5, ["left/01.png"]).ids
    code = (
        "import json, sys, numpy as np; from pathlib import Path; from asymcir_server import Gallery;"
        "gallery = Gallery.open(Path(sys.argv[1])); query = np.load(sys.argv[2]);"
        "print(json.dumps([gallery.index_kind, gallery.search(query, 5, ['left/01.png']).ids]))"
    )
    np.save(tmp_path / "query.npy", query)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "g"), str(tmp_path / "query.npy")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [kind, ids]
    vectors = np.load(report.snapshot / "vectors.npy")
    names = [gallery._metadata.ids([row])[row] for row in range(40)]
    best = [
        [names[row] for row in np.argsort(-scores) if names[row] != "left/01.png"][:5] for scores in query @ vectors.T
    ]
    assert ids == best
    gallery.close()


@pytest.mark.parametrize("kind", CODED)
def test_a_damaged_index_is_refused_before_faiss_reads_it(
    tmp_path: Path, pictures: Path, bundle: ServerBundle, kind: str
) -> None:
    report = build_gallery(pictures, bundle, tmp_path / "g", config=BuildConfig(index=IndexConfig(kind=kind)))
    path = report.snapshot / "index.faiss"
    good = path.read_bytes()
    generator = np.random.default_rng(1)
    for position in [0, 4, 8, 30, len(good) - 1, *generator.integers(0, len(good), 20).tolist()]:
        damaged = bytearray(good)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match="is not the file its manifest describes"):
            Gallery.open(tmp_path / "g")
    for other in (good[: len(good) // 2], b"", good + b"x"):
        path.write_bytes(other)
        with pytest.raises(BundleError, match="is not the file its manifest describes"):
            Gallery.open(tmp_path / "g")
    path.unlink()
    with pytest.raises(BundleError, match=r"lacks index\.faiss"):
        Gallery.open(tmp_path / "g")
    path.write_bytes(good)
    Gallery.open(tmp_path / "g").close()


def test_manifests_that_do_not_fit_are_refused(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> None:
    report = build_gallery(pictures, bundle, tmp_path / "g", config=BuildConfig(index=IndexConfig(kind="sq8")))
    path = report.snapshot / "manifest.json"
    good = json.loads(path.read_text())

    def refuse(match: str) -> None:
        path.write_text(json.dumps(good))
        with pytest.raises(BundleError, match=match):
            Gallery.open(tmp_path / "g")

    kept = json.dumps(good)
    for effort in ({}, {"probes": 1}, {"probes": -1, "candidates": 2}, {"probes": "x", "candidates": 2}, 7):
        good["properties"]["index"]["effort"] = effort
        refuse("search effort")
    good = json.loads(kept)
    good["properties"]["index_kind"] = "lsh"
    refuse("an index of the kind 'lsh'")
    good = json.loads(kept)
    good["properties"]["index_kind"] = "hnsw"
    refuse("expected an index")
    good = json.loads(kept)
    del good["files"]["index.faiss"]
    refuse("in its manifest")


def test_a_snapshot_of_before_the_kinds_opens(tmp_path: Path, gallery_folder: Path) -> None:
    copy = Path(shutil.copytree(gallery_folder, tmp_path / "copy"))
    path = copy / "snapshots/000001/manifest.json"
    record = json.loads(path.read_text())
    del record["properties"]["index"]
    record["properties"]["index_kind"] = "flat-ip"
    path.write_text(json.dumps(record))
    gallery = Gallery.open(copy)
    assert (gallery.index_kind, len(gallery.search(make_vectors(1, 1, 16), 3).ids[0])) == ("flat-ip", 3)
    gallery.close()


def test_large_files_are_sampled_at_opening_and_read_whole_by_a_full_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asymcir_common.manifest.SAMPLED_ABOVE_BYTES", 1000)
    monkeypatch.setattr("asymcir_common.manifest._HEAD_BYTES", 4096)
    monkeypatch.setattr("asymcir_common.manifest._TAIL_BYTES", 512)
    monkeypatch.setattr("asymcir_common.manifest._SAMPLE_BLOCK_BYTES", 8)
    content = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "large").write_bytes(content)
    (tmp_path / "small").write_bytes(b"abc")
    assert set(write_manifest(tmp_path, format=GALLERY, properties={}, sampled=True).samples) == {"large"}
    read_manifest(tmp_path, format=GALLERY, sampled=True)

    def flip(name: str, position: int) -> None:
        damaged = bytearray((tmp_path / name).read_bytes())
        damaged[position] ^= 1
        (tmp_path / name).write_bytes(damaged)

    for position in (0, 4095, 100_000 - 512, 99_999):
        flip("large", position)
        with pytest.raises(BundleError, match="sample digest differs"):
            read_manifest(tmp_path, format=GALLERY, sampled=True)
        flip("large", position)
    step = 100_000 // 512
    flip("large", 50 * step + step // 2)  # between two blocks
    read_manifest(tmp_path, format=GALLERY, sampled=True)
    with pytest.raises(BundleError, match="not the file its manifest describes"):
        read_manifest(tmp_path, format=GALLERY)
    flip("large", 50 * step + step // 2)
    (tmp_path / "large").write_bytes(content[:-1])
    with pytest.raises(BundleError, match="not the file its manifest describes"):
        read_manifest(tmp_path, format=GALLERY, sampled=True)
    (tmp_path / "large").write_bytes(content)
    flip("small", 1)
    with pytest.raises(BundleError, match="not the file its manifest describes"):
        read_manifest(tmp_path, format=GALLERY, sampled=True)


def test_a_disk_that_is_full_is_a_build_error(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "from asymcir_server.gallery.indexes import IndexConfig, build_index;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
        "build_index(Path(sys.argv[1]), Path(sys.argv[2]), IndexConfig(kind='sq8'))"
    )
    np.save(tmp_path / "vectors.npy", make_vectors(2000, 1))
    arguments = [str(tmp_path / "vectors.npy"), str(tmp_path / "index.faiss")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert "GalleryBuildError: cannot write" in done.stderr


def test_kill_9_while_the_index_is_built_leaves_the_old_snapshot(
    tmp_path: Path,
    pictures: Path,
    bundle: ServerBundle,
    bundle_folder: Path,
    start_asymcir: Callable,
    wait_until: Callable,
) -> None:
    out = tmp_path / "g"
    build_gallery(pictures, bundle, out)
    lines = [
        json.dumps({"path": str(path), "id": str(i)}) for i, path in enumerate(sorted(pictures.rglob("*.png")) * 75)
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    hidden = out / "snapshots" / ".building-000002"
    build = start_asymcir(
        "gallery", "build", tmp_path / "list.jsonl", "--server-bundle", bundle_folder, "--gallery", out,
        "--index", "hnsw", "--batch-size", 256,
    )  # fmt: skip
    wait_until(lambda: (hidden / "index.faiss").exists() or build.poll() is not None)
    assert build.poll() is None, build.communicate()[1]
    build.kill()
    build.wait()
    assert (out / "CURRENT").read_text() == "000001\n"
    Gallery.open(out, bundle.target_spaces).close()
    with pytest.raises(BundleError):
        Gallery(out, hidden)
    config = BuildConfig(index=IndexConfig(kind="hnsw"))
    assert build_gallery(pictures, bundle, out, config=config).version == "000002"
    assert sorted(path.name for path in (out / "snapshots").iterdir()) == ["000001", "000002"]


def test_the_command_takes_kind_recall_and_budget(
    tmp_path: Path, pictures: Path, bundle_folder: Path, run_asymcir: Callable
) -> None:
    arguments = ("gallery", "build", pictures, "--server-bundle", bundle_folder, "--gallery", tmp_path / "g")
    done = run_asymcir(*arguments, "--index", "ivf-rabitq", "--recall", "0.9", "--memory-budget", "10M")
    assert done.returncode == 0, done.stderr
    assert "index ivf-rabitq, recall@10" in done.stdout
    record = json.loads((tmp_path / "g/snapshots/000001/manifest.json").read_text())["properties"]["index"]
    assert record["recall_asked"] == 0.9
    for wrong in (("--index", "lsh"), ("--recall", "1.5"), ("--recall", "0"), ("--memory-budget", "much")):
        assert run_asymcir(*arguments, *wrong).returncode == 2
