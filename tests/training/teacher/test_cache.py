import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_training import load_foundation
from asymcir_training.errors import CacheError, DataError, FoundationError
from asymcir_training.foundation.model import Foundation
from asymcir_training.pictures.sets import ArrayPictures, open_pictures
from asymcir_training.teacher import cache as cache_module
from asymcir_training.teacher.cache import build_teacher_cache, visual_digest
from asymcir_training.teacher.encoder import choose_encoder
from asymcir_training.teacher.in_memory import embed_patches, embed_pictures
from asymcir_training.teacher.row_files import RowFile
from PIL import Image
from tiny_foundations import EMBEDDING_WIDTH, write_clip
from torch import nn
from torch.nn import functional

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


def _states(root: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(root.glob("*/cache.json"))]


def test_the_cache_says_what_the_foundation_says(foundation: Foundation, folder: Path, tmp_path: Path, caplog) -> None:
    pictures = open_pictures([folder])
    with caplog.at_level(logging.INFO):
        cache = build_teacher_cache(tmp_path, foundation, pictures, patches=True, batch=4)
    assert [pictures.keys[number] for number in cache.kept] == [f"{i:02}.png" for i in range(COUNT) if i not in (3, 7)]
    assert {key for key, _ in cache.problems} == set(CORRUPT)
    shown = _decoded(pictures, cache.kept, foundation)
    expected = embed_pictures(foundation, [shown])
    torch.testing.assert_close(torch.from_numpy(np.array(cache.embedding)), expected, rtol=1e-4, atol=1e-5)
    assert cache.patches is not None and cache.patches.dtype == np.float16 and isinstance(cache.patches, np.memmap)
    with torch.no_grad():
        pixels = foundation.normalise_pixels(torch.from_numpy(shown))
        patches = foundation.encode_patches(pixels)
    torch.testing.assert_close(torch.from_numpy(np.array(cache.patches)).float(), patches, rtol=2e-3, atol=2e-3)
    normalised = functional.normalize(torch.from_numpy(np.array(cache.patches)).float(), dim=-1)
    torch.testing.assert_close(normalised, embed_patches(foundation, [shown]).float(), rtol=5e-3, atol=5e-3)
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


def test_another_precision_picture_set_or_output_is_another_entry(
    clip: Foundation, folder: Path, tmp_path: Path
) -> None:
    pictures = open_pictures([folder])
    fp32 = build_teacher_cache(tmp_path, clip, pictures, patches=False)
    bf16 = build_teacher_cache(tmp_path, clip, pictures, patches=False, autocast=torch.bfloat16)
    with_patches = build_teacher_cache(tmp_path, clip, pictures, patches=True)
    side = clip.preprocessing.size
    arrays = build_teacher_cache(tmp_path, clip, ArrayPictures([np.zeros((2, side, side, 3), np.uint8)]), patches=False)
    assert len({fp32.folder, bf16.folder, with_patches.folder, arrays.folder}) == 4
    assert bf16.embedding.dtype == np.float32 and (bf16.embedding != fp32.embedding).any()
    np.testing.assert_allclose(bf16.embedding, fp32.embedding, atol=0.05 * np.abs(fp32.embedding).max())
    with pytest.raises(CacheError, match="precision"):
        build_teacher_cache(tmp_path, clip, pictures, patches=False, autocast=torch.float64)


def test_an_interrupted_cache_goes_on_where_it_was(clip: Foundation, folder: Path, tmp_path: Path, monkeypatch) -> None:
    pictures = open_pictures([folder])
    whole = build_teacher_cache(tmp_path / "whole", clip, pictures, patches=True, batch=2)
    monkeypatch.setattr(cache_module, "_FLUSH_EVERY_S", -1.0)
    write = RowFile.write

    def stop_between_rows_and_state(self: RowFile, row: int, values) -> None:
        write(self, row, values)
        if row >= 5 and self.path.name == "patches.f16":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RowFile, "write", stop_between_rows_and_state)
        with pytest.raises(KeyboardInterrupt):
            build_teacher_cache(tmp_path / "cut", clip, pictures, patches=True, batch=2)
    (state,) = _states(tmp_path / "cut")
    assert not state.get("complete") and (state["done"], state["rows"]) == (6, 5)
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
from asymcir_training.teacher import cache
from asymcir_training.pictures.sets import open_pictures
cache._FLUSH_EVERY_S = -1.0
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
def test_a_cache_survives_a_kill(clip: Foundation, clip_folder: Path, folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(clip_folder), str(folder), str(tmp_path / "cut")])
    deadline_s = time.monotonic() + 300
    while not any(state["rows"] >= 3 for state in _states(tmp_path / "cut")):
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (state,) = _states(tmp_path / "cut")
    assert not state.get("complete") and 3 <= state["rows"] < 9
    pictures = open_pictures([folder])
    resumed = build_teacher_cache(tmp_path / "cut", clip, pictures, patches=True, batch=1)
    whole = build_teacher_cache(tmp_path / "whole", clip, pictures, patches=True, batch=1)
    np.testing.assert_allclose(resumed.embedding, whole.embedding, rtol=1e-4, atol=1e-5)
    assert (resumed.kept == whole.kept).all() and resumed.problems == whole.problems


def test_an_entry_of_another_foundation_or_other_pictures_names_both(
    clip: Foundation, folder: Path, tmp_path: Path
) -> None:
    pictures = open_pictures([folder])
    entry = build_teacher_cache(tmp_path, clip, pictures, patches=False).folder
    other = load_foundation(f"local-dir:{write_clip(tmp_path / 'other')}")
    with torch.no_grad():
        other.model.visual.conv1.weight.add_(0.1)
    assert visual_digest(other) != visual_digest(clip)
    state = json.loads((entry / "cache.json").read_text())
    foreign = state | {"foundation": other.name, "visual_digest": visual_digest(other)}
    (entry / "cache.json").write_text(json.dumps(foreign))
    with pytest.raises(CacheError, match=f"another foundation, {other.name} .* instead of {clip.name}"):
        build_teacher_cache(tmp_path, clip, pictures, patches=False)
    (entry / "cache.json").write_text(json.dumps(state | {"pictures": "0" * 64, "count": 5}))
    with pytest.raises(CacheError, match=r"set of pictures, 5 pictures \(000000000000\) instead of 11 pictures"):
        build_teacher_cache(tmp_path, clip, pictures, patches=False)


def test_a_foundation_is_known_by_its_visual_tower_alone(clip_folder: Path, clip: Foundation) -> None:
    other = load_foundation(f"local-dir:{clip_folder}")
    with torch.no_grad():
        other.model.transformer.resblocks[0].ln_1.weight.add_(1.0)  # of the text tower
    assert visual_digest(other) == visual_digest(clip)
    with torch.no_grad():
        other.model.visual.proj.add_(1.0)
    assert visual_digest(other) != visual_digest(clip)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "cache.json").write_text("{"),
        lambda entry: (entry / "embedding.f32").write_bytes(b"short"),
        lambda entry: (entry / "quarantine.jsonl").write_text(""),
        lambda entry: (entry / "quarantine.jsonl").write_text("x\n"),
    ],
    ids=["state", "rows", "no quarantine", "quarantine"],
)
def test_a_damaged_entry_says_what_to_remove(damage, clip: Foundation, folder: Path, tmp_path: Path) -> None:
    pictures = open_pictures([folder])
    damage(build_teacher_cache(tmp_path, clip, pictures, patches=False).folder)
    with pytest.raises((CacheError, DataError), match="remove"):
        build_teacher_cache(tmp_path, clip, pictures, patches=False)


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
    usage = cache_module.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module.shutil, "disk_usage", lambda _: usage._replace(free=1234))
        check("1,234 are free")
    assert build_teacher_cache(tmp_path, clip, pictures, patches=True).embedding.shape[0] == 9


def test_a_disk_that_fills_up_meanwhile_keeps_what_was_written(
    clip: Foundation, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    pictures = open_pictures([folder])
    monkeypatch.setattr(cache_module, "_FLUSH_EVERY_S", -1.0)
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
    (state,) = _states(tmp_path)
    assert state["rows"] == 4
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
