import errno
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_training import load_foundation
from asymcir_training.errors import CacheError, DataError, FoundationError
from asymcir_training.foundation.model import Foundation
from asymcir_training.pictures.sets import Pictures, PictureSet, open_pictures
from asymcir_training.teacher import cache as cache_module
from asymcir_training.teacher import keyed_rows
from asymcir_training.teacher.cache import build_teacher_cache
from asymcir_training.teacher.encoder import choose_encoder
from asymcir_training.teacher.row_files import RowFile
from PIL import Image
from tiny_foundations import EMBEDDING_WIDTH, write_clip
from torch import nn

COUNT = 11
CORRUPT = {"03.png": b"", "07.png": b"not a picture"}


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Foundation:
    return load_foundation(f"local-dir:{clip_folder}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    for name, data in CORRUPT.items():
        (folder / name).write_bytes(data)
    return folder


def _decoded(pictures, kept, foundation) -> np.ndarray:
    return np.stack([pictures.decode(int(number), foundation.preprocessing) for number in kept])


def _rows(root: Path) -> list[int]:
    """Count the rows that each store's index has."""
    found = []
    for path in sorted(root.glob("*/index.sqlite")):
        with closing(sqlite3.connect(path, timeout=60.0)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
            found.append(connection.execute("SELECT COUNT(*) FROM rows").fetchone()[0] if tables else 0)
    return found


def test_the_cache_says_what_the_foundation_says(foundation: Foundation, folder: Path, tmp_path: Path, caplog) -> None:
    pictures = open_pictures([folder])
    with caplog.at_level(logging.INFO):
        cache = build_teacher_cache(tmp_path, foundation, pictures, patches=True, batch=4)
    assert [pictures.keys[number] for number in cache.kept] == [f"{i:02}.png" for i in range(COUNT) if i not in (3, 7)]
    assert {key for key, _ in cache.problems} == set(CORRUPT)
    shown = _decoded(pictures, cache.kept, foundation)
    with torch.no_grad():
        expected = foundation.encode_pixels(foundation.normalise_pixels(torch.from_numpy(shown)))
    torch.testing.assert_close(torch.from_numpy(np.array(cache.embedding)), expected, rtol=1e-4, atol=1e-5)
    assert cache.patches is not None and cache.patches.dtype == np.float16 and isinstance(cache.patches, np.memmap)
    with torch.no_grad():
        pixels = foundation.normalise_pixels(torch.from_numpy(shown))
        patches = foundation.encode_patches(pixels)
    torch.testing.assert_close(torch.from_numpy(np.array(cache.patches)).float(), patches, rtol=2e-3, atol=2e-3)
    assert "11/11 pictures" in caplog.text and "left" in caplog.text
    assert "2 pictures cannot be used" in caplog.text and "quarantine.jsonl" in caplog.text


def test_one_forward_pass_gives_both(foundation: Foundation, folder: Path, tmp_path: Path) -> None:
    calls = []
    first = next(part for part in foundation.model.visual.modules() if isinstance(part, nn.Conv2d))
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    try:
        encode = choose_encoder(foundation, patches=True, device=torch.device("cpu"), autocast=None)
        calls.clear()
        side = foundation.preprocessing.size
        encode(torch.zeros(2, side, side, 3, dtype=torch.uint8))
    finally:
        hook.remove()
    assert len(calls) == 1


def test_a_tower_whose_one_pass_says_something_else_is_run_twice(clip: Foundation, monkeypatch) -> None:
    side = clip.preprocessing.size
    pixels = torch.randint(0, 256, (3, side, side, 3), dtype=torch.uint8)
    features, patches = choose_encoder(clip, patches=True, device=torch.device("cpu"), autocast=None)(pixels)
    whole = type(clip.model.visual).forward_intermediates

    def shifted(*args, **kwargs):
        found = whole(*args, **kwargs)
        return found | {"image_features": found["image_features"] + 1.0}

    monkeypatch.setattr(type(clip.model.visual), "forward_intermediates", shifted)
    apart = choose_encoder(clip, patches=True, device=torch.device("cpu"), autocast=None)(pixels)
    torch.testing.assert_close(apart[0], features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(apart[1], patches, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_is_made_once(workers: int, clip: Foundation, folder: Path, tmp_path: Path, monkeypatch) -> None:
    pictures = open_pictures([folder])
    first = build_teacher_cache(tmp_path, clip, pictures, patches=False, batch=4, workers=workers)
    assert first.patches is None and first.embedding.shape == (9, EMBEDDING_WIDTH)

    def refuse(*_: object, **__: object):
        raise AssertionError("it was made again")

    monkeypatch.setattr(cache_module, "choose_encoder", refuse)
    monkeypatch.setattr(cache_module, "only_one_process", refuse)
    monkeypatch.setattr("asymcir_training.batches.scan.write_atomically", refuse)  # nothing is written any more
    second = build_teacher_cache(tmp_path, clip, pictures, patches=False, batch=2)
    assert (second.embedding == first.embedding).all() and (second.kept == first.kept).all()
    assert second.problems == first.problems


def test_another_precision_or_output_is_another_store(clip: Foundation, folder: Path, tmp_path: Path) -> None:
    pictures = open_pictures([folder])
    fp32 = build_teacher_cache(tmp_path, clip, pictures, patches=False)
    bf16 = build_teacher_cache(tmp_path, clip, pictures, patches=False, autocast=torch.bfloat16)
    with_patches = build_teacher_cache(tmp_path, clip, pictures, patches=True)
    assert len({fp32.folder, bf16.folder, with_patches.folder}) == 3
    assert bf16.embedding.dtype == np.float32 and (bf16.embedding != fp32.embedding).any()
    np.testing.assert_allclose(bf16.embedding, fp32.embedding, atol=0.05 * np.abs(fp32.embedding).max())
    with pytest.raises(CacheError, match="precision"):
        build_teacher_cache(tmp_path, clip, pictures, patches=False, autocast=torch.float64)


def test_an_interrupted_cache_goes_on_where_it_was(clip: Foundation, folder: Path, tmp_path: Path, monkeypatch) -> None:
    pictures = open_pictures([folder])
    whole = build_teacher_cache(tmp_path / "whole", clip, pictures, patches=True, batch=2)
    monkeypatch.setattr(keyed_rows, "_FLUSH_EVERY_S", -1.0)
    write = RowFile.write

    def stop_between_rows_and_state(self: RowFile, row: int, values) -> None:
        write(self, row, values)
        if row >= 5 and self.path.name == "patches.f16":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RowFile, "write", stop_between_rows_and_state)
        with pytest.raises(KeyboardInterrupt):
            build_teacher_cache(tmp_path / "cut", clip, pictures, patches=True, batch=2)
    assert _rows(tmp_path / "cut") == [5]
    written = []
    monkeypatch.setattr(RowFile, "write", lambda self, row, values: (written.append(row), write(self, row, values)))
    resumed = build_teacher_cache(tmp_path / "cut", clip, pictures, patches=True, batch=2)
    assert min(written) == 5
    assert (resumed.embedding == whole.embedding).all() and (resumed.patches == whole.patches).all()
    assert (resumed.kept == whole.kept).all() and resumed.problems == whole.problems


_KILLED = """
import sys, time
from pathlib import Path
from asymcir_training import load_foundation
from asymcir_training.teacher import cache, keyed_rows
from asymcir_training.pictures.sets import open_pictures
keyed_rows._FLUSH_EVERY_S = -1.0
wait = cache._write_outputs
def slowly(*args):
    wait(*args)
    time.sleep(0.2)
cache._write_outputs = slowly
cache.build_teacher_cache(
    Path(sys.argv[3]), load_foundation(f"local-dir:{sys.argv[1]}"), open_pictures([sys.argv[2]]), patches=True, batch=1
)
"""


@pytest.mark.slow
def test_a_cache_survives_a_kill(
    clip: Foundation, clip_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(clip_folder), str(folder), str(tmp_path / "cut")])
    deadline_s = time.monotonic() + 300
    while not any(rows >= 3 for rows in _rows(tmp_path / "cut")):
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (done,) = _rows(tmp_path / "cut")
    assert 3 <= done < 9
    pictures = open_pictures([folder])
    with monkeypatch.context() as patch:
        encoded = _count_encoded(patch)
        resumed = build_teacher_cache(tmp_path / "cut", clip, pictures, patches=True, batch=1)
    assert len(encoded) == 9 - done  # none of them twice
    whole = build_teacher_cache(tmp_path / "whole", clip, pictures, patches=True, batch=1)
    np.testing.assert_allclose(resumed.embedding, whole.embedding, rtol=1e-4, atol=1e-5)
    assert (resumed.kept == whole.kept).all() and resumed.problems == whole.problems


def test_a_store_of_another_foundation_names_both(clip: Foundation, folder: Path, tmp_path: Path) -> None:
    pictures = open_pictures([folder])
    entry = build_teacher_cache(tmp_path, clip, pictures, patches=False).folder
    other = load_foundation(f"local-dir:{write_clip(tmp_path / 'other')}")
    with torch.no_grad():
        other.model.visual.conv1.weight.add_(0.1)
    assert other.visual_digest() != clip.visual_digest()
    state = json.loads((entry / "cache.json").read_text())
    foreign = state | {"foundation": other.name, "visual_digest": other.visual_digest()}
    (entry / "cache.json").write_text(json.dumps(foreign))
    with pytest.raises(CacheError, match=f"another foundation, {other.name} .* instead of {clip.name}"):
        build_teacher_cache(tmp_path, clip, pictures, patches=False)


def _count_encoded(patch: pytest.MonkeyPatch) -> list[bytes]:
    """Note the key of every picture that is encoded from now on."""
    encoded: list[bytes] = []
    write = cache_module._write_outputs
    patch.setattr(
        cache_module, "_write_outputs", lambda writer, keys, *rest: (encoded.extend(keys), write(writer, keys, *rest))
    )
    return encoded


def _copy(folder: Path, place: Path, names: dict[str, str]) -> PictureSet:
    place.mkdir()
    for old, new in names.items():
        (place / new).write_bytes((folder / old).read_bytes())
    return open_pictures([place])


def test_one_picture_more_is_one_picture_encoded(clip: Foundation, folder: Path, tmp_path: Path, monkeypatch) -> None:
    some = _copy(folder, tmp_path / "some", {f"{i:02}.png": f"{i:02}.png" for i in (0, 1, 2, 4)})
    first = build_teacher_cache(tmp_path / "cache", clip, some, patches=False)
    (tmp_path / "some" / "015.png").write_bytes((folder / "05.png").read_bytes())  # between the others
    encoded = _count_encoded(monkeypatch)
    more = build_teacher_cache(tmp_path / "cache", clip, open_pictures([tmp_path / "some"]), patches=False)
    assert len(encoded) == 1 and len(more.kept) == 5 and more.folder == first.folder
    places = [number for number in range(5) if open_pictures([tmp_path / "some"]).keys[number] != "015.png"]
    assert (np.asarray(more.embedding)[places] == np.asarray(first.embedding)).all()
    whole = build_teacher_cache(tmp_path / "whole", clip, open_pictures([tmp_path / "some"]), patches=False)
    np.testing.assert_allclose(more.embedding, whole.embedding, rtol=1e-4, atol=1e-5)
    assert (more.identities == whole.identities).all()


def test_sets_that_overlap_share_rows_and_the_same_bytes_are_one(
    clip: Foundation, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    encoded = _count_encoded(monkeypatch)
    one = _copy(folder, tmp_path / "one", {"00.png": "a.png", "01.png": "b.png", "02.png": "c.png"})
    first = build_teacher_cache(tmp_path / "cache", clip, one, patches=True, batch=2)
    names = {"02.png": "1.png", "01.png": "2.png", "04.png": "3.png", "03.png": "5.png"}
    other = _copy(folder, tmp_path / "other", names)
    (tmp_path / "other" / "4.png").write_bytes((folder / "04.png").read_bytes())
    (tmp_path / "other" / "6.png").write_bytes((folder / "03.png").read_bytes())
    other = open_pictures([tmp_path / "other"])
    second = build_teacher_cache(tmp_path / "cache", clip, other, patches=True, batch=2)
    assert len(encoded) == 4 and _rows(tmp_path / "cache") == [4]
    assert second.kept.tolist() == [0, 1, 2, 3] and [key for key, _ in second.problems] == ["5.png", "6.png"]
    for rows, before in ((second.embedding, first.embedding), (second.patches, first.patches)):
        assert (rows[np.array([0, 1])] == before[np.array([2, 1])]).all()
        assert (rows[np.array([2])] == rows[np.array([3])]).all()


def test_a_picture_that_changed_is_seen_and_one_that_did_not_is_not_read(
    clip: Foundation, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    pictures = _copy(folder, tmp_path / "p", {f"{i:02}.png": f"{i}.png" for i in (0, 1, 2)})
    first = build_teacher_cache(tmp_path / "cache", clip, pictures, patches=False)
    read = []
    before = Pictures.read
    monkeypatch.setattr(Pictures, "read", lambda self, number: (read.append(number), before(self, number))[1])
    build_teacher_cache(tmp_path / "cache", clip, pictures, patches=False)
    assert not read
    changed = tmp_path / "p" / "1.png"
    changed.write_bytes((folder / "04.png").read_bytes())
    os.utime(changed, ns=(1, 1))
    pictures = open_pictures([tmp_path / "p"])
    second = build_teacher_cache(tmp_path / "cache", clip, pictures, patches=False)
    assert read == [1] and (second.embedding[[0, 2]] == first.embedding[[0, 2]]).all()
    assert (second.embedding[[1]] != first.embedding[[1]]).any()


def test_an_archive_and_a_folder_share_rows(clip: Foundation, folder: Path, tmp_path: Path, write, monkeypatch) -> None:
    files = {f"{i}.png": (folder / f"{i:02}.png").read_bytes() for i in (0, 1, 2)}
    build_teacher_cache(tmp_path / "cache", clip, open_pictures([write("folder", tmp_path, files)]), patches=False)
    encoded = _count_encoded(monkeypatch)
    for kind in ("zip", "tar"):
        pictures = open_pictures([write(kind, tmp_path, files)])
        assert len(build_teacher_cache(tmp_path / "cache", clip, pictures, patches=False).kept) == 3
    assert not encoded


def test_a_foundation_is_known_by_its_visual_tower_alone(clip_folder: Path, clip: Foundation) -> None:
    other = load_foundation(f"local-dir:{clip_folder}")
    with torch.no_grad():
        other.model.transformer.resblocks[0].ln_1.weight.add_(1.0)  # of the text tower
    assert other.visual_digest() == clip.visual_digest()
    with torch.no_grad():
        other.model.visual.proj.add_(1.0)
    assert other.visual_digest() != clip.visual_digest()


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "cache.json").write_text("{"),
        lambda entry: (entry / "embedding.f32").write_bytes(b"short"),
        lambda entry: (entry / "index.sqlite").write_bytes(b"no database, but long enough to be taken for one" * 9),
        lambda entry: _run_sql(entry, "DELETE FROM rows WHERE row = 4"),
    ],
    ids=["state", "rows", "index", "a row that is gone"],
)
def test_a_damaged_entry_says_what_to_remove(damage, clip: Foundation, folder: Path, tmp_path: Path) -> None:
    pictures = open_pictures([folder])
    damage(build_teacher_cache(tmp_path, clip, pictures, patches=False).folder)
    with pytest.raises((CacheError, DataError), match="remove"):
        build_teacher_cache(tmp_path, clip, pictures, patches=False)


def _run_sql(entry: Path, sql: str) -> None:
    with closing(sqlite3.connect(entry / "index.sqlite")) as connection, connection:
        connection.execute(sql)


def test_the_list_of_bad_pictures_is_written_again(clip: Foundation, folder: Path, tmp_path: Path) -> None:
    pictures = open_pictures([folder])
    (path,) = build_teacher_cache(tmp_path, clip, pictures, patches=False).folder.glob("sets/*/quarantine.jsonl")
    text = path.read_text()
    assert [json.loads(line)["key"] for line in text.splitlines()] == ["03.png", "07.png"]
    path.write_text("x")
    build_teacher_cache(tmp_path, clip, pictures, patches=False)
    assert path.read_text() == text


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_too_small_says_so_before_the_work(
    clip: Foundation, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    pictures = open_pictures([folder])
    needed = f"{COUNT * (EMBEDDING_WIDTH * 4 + 4 * EMBEDDING_WIDTH * 2):,} bytes more"

    def check(free: str) -> None:
        with pytest.raises(CacheError, match="no room") as caught:
            build_teacher_cache(tmp_path, clip, pictures, patches=True)
        assert needed in str(caught.value) and free in str(caught.value)
        assert all(path.stat().st_size == 0 for path in tmp_path.glob("*/*.f*"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", _full)
        check("are free")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(keyed_rows.shutil, "disk_usage", lambda _: usage._replace(free=1234))
        check("1,234 are free")
    assert build_teacher_cache(tmp_path, clip, pictures, patches=True).embedding.shape[0] == 9


def test_a_disk_that_fills_up_meanwhile_keeps_what_was_written(
    clip: Foundation, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    pictures = open_pictures([folder])
    monkeypatch.setattr(keyed_rows, "_FLUSH_EVERY_S", -1.0)
    pwrite, calls = os.pwrite, []

    def fill_up(handle: int, data, offset: int) -> int:
        calls.append(offset)
        return pwrite(handle, data, offset) if len(calls) < 5 else _full()

    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", unsupported)
        patch.setattr(os, "pwrite", fill_up)
        with pytest.raises(CacheError, match=r"is full .* kept"):
            build_teacher_cache(tmp_path, clip, pictures, patches=False, batch=1)
    assert _rows(tmp_path) == [4]
    calls.clear()
    resumed = build_teacher_cache(tmp_path, clip, pictures, patches=False, batch=1)
    whole = build_teacher_cache(tmp_path / "whole", clip, pictures, patches=False, batch=1)
    assert (resumed.embedding == whole.embedding).all()


def test_features_that_are_not_finite_and_pictures_that_all_fail_are_errors(
    clip_folder: Path, folder: Path, tmp_path: Path
) -> None:
    broken = load_foundation(f"local-dir:{clip_folder}")
    with torch.no_grad():
        broken.model.visual.proj.fill_(float("inf"))
    with pytest.raises(CacheError, match=r"not finite .* 00\.png"):
        build_teacher_cache(tmp_path, broken, open_pictures([folder]), patches=False)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataError, match="none of 1 pictures"):
            build_teacher_cache(
                tmp_path, load_foundation(f"local-dir:{clip_folder}"), open_pictures([tmp_path / "bad"]), patches=False
            )


def test_patches_of_a_tower_without_any_are_refused(clip_folder: Path, folder: Path, tmp_path: Path) -> None:
    foundation = load_foundation(f"local-dir:{clip_folder}")
    foundation.model.visual.attn_pool, foundation.model.visual.attn_pool_contrastive = nn.Identity(), None
    with pytest.raises(FoundationError, match="no per-patch projection"):
        build_teacher_cache(tmp_path, foundation, open_pictures([folder]), patches=True)


def test_a_row_file_keeps_what_it_is_given(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    with RowFile(tmp_path / "x", (3,), np.float32) as file:
        file.allocate(10)
        assert file.size_bytes == 120 and file.allocated_bytes == 120
        file.write(0, rows[:1])
        file.write(1, rows[1:])
        file.cut(4)
        file.flush()
    assert (np.fromfile(tmp_path / "x", np.float32).reshape(4, 3) == rows).all()
