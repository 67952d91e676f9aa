"""Snapshots listed, checked in full, taken back and removed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asymcir_common import BundleError
from asymcir_common.manifest import GALLERY, UNCHECKED_FILES
from asymcir_server import Gallery, ServerBundle, build_gallery
from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.history import list_snapshots, remove_old_snapshots, rollback, verify_snapshots
from asymcir_server.gallery.snapshots import lock_gallery
from PIL import Image
from tiny_server_bundle import TinyModel, write_tiny_bundle


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """Three snapshots, of three, four and five pictures."""
    bundle = ServerBundle.load(write_tiny_bundle(tmp_path / "bundle", TinyModel()))
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
        if number >= 2:
            build_gallery(tmp_path / "pictures", bundle, tmp_path / "g")
    return tmp_path / "g"


def _current(gallery: Path) -> tuple[str, int]:
    opened = Gallery.open(gallery)
    opened.close()
    return opened.version, opened.size


def test_snapshots_are_listed_oldest_first(gallery: Path) -> None:
    found = list_snapshots(gallery)
    assert [(record.version, record.size, record.current) for record in found] == [
        ("000001", 3, False),
        ("000002", 4, False),
        ("000003", 5, True),
    ]
    assert all(record.index_kind == "exact" and record.size_bytes > 0 for record in found)
    (gallery / "snapshots/000002/manifest.json").write_text("{", encoding="utf-8")
    assert [record.size for record in list_snapshots(gallery)] == [3, None, 5]


def test_rollback_goes_one_back_or_to_a_number_and_the_next_build_goes_on_counting(gallery: Path) -> None:
    assert rollback(gallery) == "000002" and _current(gallery) == ("000002", 4)
    assert rollback(gallery) == "000001" and _current(gallery) == ("000001", 3)
    with pytest.raises(BundleError, match="no snapshot before 000001"):
        rollback(gallery)
    assert rollback(gallery, "3") == "000003" and _current(gallery) == ("000003", 5)
    with pytest.raises(BundleError, match="it holds 000001, 000002, 000003"):
        rollback(gallery, "4")
    with lock_gallery(gallery), pytest.raises(GalleryBuildError, match="another writer holds"):
        rollback(gallery)


def test_a_flipped_bit_in_any_file_is_found_and_named_and_never_rolled_back_to(gallery: Path) -> None:
    assert verify_snapshots(gallery) == ["000001", "000002", "000003"]
    snapshot = gallery / "snapshots/000002"
    unchecked = {"manifest.json", *UNCHECKED_FILES[GALLERY]}
    names = sorted(path.name for path in snapshot.iterdir() if path.name not in unchecked)
    assert {"vectors.npy", "metadata.sqlite"} <= set(names)
    for name in names:
        path = snapshot / name
        data = path.read_bytes()
        damaged = bytes([data[0] ^ 1]) + data[1:] if data else b"x"
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=name):
            verify_snapshots(gallery, "2")
        with pytest.raises(BundleError, match=name):
            rollback(gallery)
        assert _current(gallery) == ("000003", 5)
        path.write_bytes(data)
    assert verify_snapshots(gallery, "2") == ["000002"]


def test_the_newest_and_the_current_snapshot_stay(gallery: Path) -> None:
    rollback(gallery, "1")
    opened = Gallery.open(gallery)
    try:
        assert remove_old_snapshots(gallery, keep=1) == ["000002"]
        rollback(gallery, "3")
        assert remove_old_snapshots(gallery, keep=1) == ["000001"]
        query = np.ones((1, opened.embedding_width), np.float32)
        assert len(opened.search(query, 3).ids[0]) == 3  # open before its folder was removed
    finally:
        opened.close()
    assert _current(gallery) == ("000003", 5)
    with pytest.raises(GalleryBuildError, match="1 or more"):
        remove_old_snapshots(gallery, keep=0)


def test_the_commands_say_what_they_did(gallery: Path, run_asymcir: Callable) -> None:
    listed = run_asymcir("gallery", "list", "--gallery", gallery)
    assert listed.returncode == 0 and "* 000003  5 pictures" in listed.stdout and "  000001  3" in listed.stdout
    records = json.loads(run_asymcir("gallery", "list", "--gallery", gallery, "--json").stdout)
    assert [record["current"] for record in records] == [False, False, True]
    assert "current snapshot: 000002" in run_asymcir("gallery", "rollback", "--gallery", gallery).stdout
    assert "removed: 000001" in run_asymcir("gallery", "gc", "--gallery", gallery).stdout
    assert run_asymcir("gallery", "verify", "--gallery", gallery).returncode == 0
    info = json.loads(run_asymcir("gallery", "info", "--gallery", gallery, "--json").stdout)
    assert (info["version"], info["changes"]) == ("000002", None) and "size" in info
    verified = json.loads(run_asymcir("gallery", "verify", "--gallery", gallery, "--json").stdout)
    assert verified == {"verified": ["000002", "000003"]}
    later = run_asymcir("gallery", "rollback", "--gallery", gallery, "--version", "3", "--json")
    assert json.loads(later.stdout) == {"current": "000003"}
    removed = run_asymcir("gallery", "gc", "--gallery", gallery, "--keep", 1, "--json")
    assert json.loads(removed.stdout) == {"removed": ["000002"]}
    os.truncate(gallery / "snapshots/000003/vectors.npy", 10)
    failed = run_asymcir("gallery", "verify", "--gallery", gallery)
    assert failed.returncode != 0 and "vectors.npy" in failed.stderr and "Traceback" not in failed.stderr
