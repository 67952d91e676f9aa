"""Builds that were interrupted, and builds of a gallery that changed: what is encoded again, and what is not."""

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asymcir_common import read_manifest
from asymcir_common.manifest import GALLERY
from asymcir_server import BuildConfig, Gallery, ServerBundle, build_gallery
from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.sources.encoded import ENCODED_NAME
from PIL import Image
from tiny_server_bundle import TinyModel, write_tiny_bundle

KILLS = 4


def write_pictures(folder: Path, numbers: range, side: int = 12) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return folder


def kept(gallery: Path) -> int:
    """How many pictures an interrupted build has kept."""
    path = gallery / ".building" / ENCODED_NAME
    if not path.is_file():
        return 0
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT COUNT(*) FROM encoded").fetchone()[0])
    except sqlite3.OperationalError:  # no table yet
        return 0
    finally:
        connection.close()


def same_vectors(one: Path, other: Path) -> bool:
    return (one / "vectors.npy").read_bytes() == (other / "vectors.npy").read_bytes()


def test_a_rebuild_encodes_what_changed(tmp_path: Path, bundle: ServerBundle) -> None:
    folder = write_pictures(tmp_path / "p", range(20))
    first = build_gallery(folder, bundle, tmp_path / "g")
    assert (first.size, first.encoded) == (20, 20) and not (tmp_path / "g/.building").exists()
    again = build_gallery(folder, bundle, tmp_path / "g")
    assert (again.size, again.encoded) == (20, 0) and same_vectors(first.snapshot, again.snapshot)

    (folder / "0003.png").unlink()
    (folder / "0004.png").rename(folder / "moved.png")
    shutil.copy(folder / "0005.png", folder / "copy.png")
    write_pictures(folder, range(100, 103))
    shutil.copy(folder / "0100.png", folder / "0006.png")  # other content by an old name
    changed = build_gallery(folder, bundle, tmp_path / "g")
    whole = build_gallery(folder, bundle, tmp_path / "h")
    assert (changed.size, changed.encoded, whole.encoded) == (23, 3, 21)
    np.testing.assert_allclose(
        np.load(changed.snapshot / "vectors.npy"), np.load(whole.snapshot / "vectors.npy"), atol=1e-6
    )


def test_another_encoder_encodes_all(tmp_path: Path, bundle: ServerBundle) -> None:
    folder = write_pictures(tmp_path / "p", range(5))
    build_gallery(folder, bundle, tmp_path / "g")
    other = ServerBundle.load(write_tiny_bundle(tmp_path / "server", TinyModel(seed=8)))
    replaced = BuildConfig(replace_space=True)
    assert build_gallery(folder, other, tmp_path / "g", config=replaced).encoded == 5
    assert (
        build_gallery(folder, other, tmp_path / "g", config=BuildConfig(target="sum", replace_space=True)).encoded == 5
    )


def test_a_damaged_or_old_snapshot_gives_no_vectors(tmp_path: Path, bundle: ServerBundle) -> None:
    folder = write_pictures(tmp_path / "p", range(5))
    report = build_gallery(folder, bundle, tmp_path / "g")
    path = report.snapshot / "vectors.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert build_gallery(folder, bundle, tmp_path / "g").encoded == 5


@pytest.mark.parametrize("damage", ["garbage", "cut off", "another encoder"])
def test_what_was_kept_is_checked(tmp_path: Path, bundle: ServerBundle, damage: str) -> None:
    folder, out = write_pictures(tmp_path / "p", range(20)), tmp_path / "g"
    interrupt(folder, bundle, out, at=8)
    path = out / ".building" / ENCODED_NAME
    if damage == "garbage":
        path.write_bytes(b"no database" * 1000)
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        bundle = ServerBundle.load(write_tiny_bundle(tmp_path / "server", TinyModel(seed=8)))
    report = build_gallery(folder, bundle, out)
    whole = build_gallery(folder, bundle, tmp_path / "h")
    assert report.encoded == 20 and same_vectors(report.snapshot, whole.snapshot)


def interrupt(folder: Path, bundle: ServerBundle, out: Path, *, at: int) -> None:
    def stop(done: int, total: int, quarantined: int) -> None:
        if done >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_gallery(folder, bundle, out, config=BuildConfig(batch_size=4), progress=stop)


def test_an_interrupted_build_goes_on(tmp_path: Path, bundle: ServerBundle) -> None:
    folder, out = write_pictures(tmp_path / "p", range(20)), tmp_path / "g"
    config = BuildConfig(batch_size=4, thumbnail_side=8, near_duplicates=True)
    interrupt(folder, bundle, out, at=8)
    assert kept(out) == 8
    with pytest.raises(Exception, match="no finished gallery"):
        Gallery.open(out)
    report = build_gallery(folder, bundle, out, config=config)
    whole = build_gallery(folder, bundle, tmp_path / "h", config=config)
    assert (report.encoded, whole.encoded, kept(out)) == (12, 20, 0)
    assert sorted(path.name for path in out.iterdir()) == [".build.lock", "CURRENT", "snapshots"]
    for name in ("vectors.npy", "picture_hashes.npy"):
        assert (report.snapshot / name).read_bytes() == (whole.snapshot / name).read_bytes()
    gallery, other = Gallery.open(out), Gallery.open(tmp_path / "h")
    for number in range(20):  # pictures that were encoded without a thumbnail have one now
        assert gallery.thumbnail(f"{number:04}.png") == other.thumbnail(f"{number:04}.png") is not None


def test_kill_9_at_random_moments(
    tmp_path: Path, bundle: ServerBundle, bundle_folder: Path, start_asymcir: Callable
) -> None:
    folder, out = write_pictures(tmp_path / "p", range(600)), tmp_path / "g"
    arguments = ("gallery", "build", folder, "--server-bundle", bundle_folder, "--gallery", out, "--batch-size", 8)
    generator, before = random.Random(0), 0
    started_s = time.monotonic()
    whole = build_gallery(folder, bundle, tmp_path / "h", config=BuildConfig(batch_size=8))
    build_s = time.monotonic() - started_s
    for _ in range(KILLS):
        build = start_asymcir(*arguments)
        deadline_s = time.monotonic() + 20
        while kept(out) <= before and build.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, build_s / KILLS))
        build.send_signal(generator.choice([signal.SIGKILL, signal.SIGTERM]))
        build.wait()
        if (out / "CURRENT").exists():
            break
        assert kept(out) > before
        before = kept(out)
    report = build_gallery(folder, bundle, out, config=BuildConfig(batch_size=8))
    assert report.size == 600 and report.encoded <= 600 - before
    read_manifest(report.snapshot, format=GALLERY)
    np.testing.assert_allclose(
        np.load(report.snapshot / "vectors.npy"), np.load(whole.snapshot / "vectors.npy"), atol=1e-6
    )
    assert kept(out) == 0


def test_a_full_disk_keeps_what_was_encoded(tmp_path: Path, bundle: ServerBundle, bundle_folder: Path) -> None:
    folder, out = write_pictures(tmp_path / "p", range(400), side=4), tmp_path / "g"
    code = (
        "import resource, signal, sys; from asymcir_edge.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000));"
        "sys.exit(main())"
    )
    arguments = ("gallery", "build", folder, "--server-bundle", bundle_folder, "--gallery", out, "--batch-size", "8")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "cannot write the gallery" in done.stderr, done.stderr
    assert 0 < (before := kept(out)) < 400
    assert build_gallery(folder, bundle, out).encoded == 400 - before


def test_a_failed_build_of_nothing_leaves_nothing(tmp_path: Path, bundle: ServerBundle) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(GalleryBuildError):
        build_gallery(folder, bundle, tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_the_counts_of_a_build_in_json(
    tmp_path: Path, bundle_folder: Path, run_asymcir: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = write_pictures(tmp_path / "p", range(6))
    for name in ("a.txt", "b.txt", "c.doc", ".hidden.doc"):
        (folder / name).write_text("x")
    for name in ("one.png", "two.png"):
        (folder / name).write_bytes(b"no picture")
    (folder / "cut.png").write_bytes((folder / "0000.png").read_bytes()[:-100])
    shutil.copy(folder / "0001.png", folder / "again.png")
    arguments = ("gallery", "build", folder, "--server-bundle", bundle_folder, "--gallery", tmp_path / "g")
    record = json.loads(run_asymcir(*arguments, "--json").stdout)
    assert (record["size"], record["encoded"], record["quarantined"]) == (7, 6, 3)
    assert list(record["quarantined_by_reason"].values()) == [2, 1]
    assert "not a picture format" in next(iter(record["quarantined_by_reason"]))
    assert record["passed_over"] == {".txt": 2, ".doc": 1}
    assert record["duplicates"] == {"exact": 1, "near": None, "examples": [["0001.png", "again.png"]]}
    text = run_asymcir(*arguments).stdout
    for part in (
        "7 pictures as union, 3 quarantined",
        "encoded: 0;",
        "2 .txt (such as a.txt), 1 .doc (such as c.doc)",
        "2 put aside: cannot decode it",
    ):
        assert part in text
    assert "1 pictures have the same file" in text and "0001.png = again.png" in text
