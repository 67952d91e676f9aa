"""Texts are embedded once each, and found again by whoever asks with the same text tower."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_training import Foundation, load_foundation
from asymcir_training.errors import CacheError
from asymcir_training.teacher import keyed_rows
from asymcir_training.teacher.texts import TextCache
from torch.nn import functional

TEXTS = ["red cat", "blue dog", "", "red cat", "a photo", "blue dog"]


@pytest.fixture
def clip(clip_folder: Path) -> Foundation:
    return load_foundation(f"local-dir:{clip_folder}")


def _count_texts(foundation: Foundation, patch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    encode = foundation.encode_text
    patch.setattr(foundation, "encode_text", lambda texts: (seen.extend(texts), encode(texts))[1])
    return seen


def test_rows_are_what_the_tower_says_and_each_text_is_asked_once(
    foundation: Foundation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        expected = functional.normalize(foundation.encode_text(TEXTS), dim=-1).numpy()
    seen = _count_texts(foundation, monkeypatch)
    found = TextCache(tmp_path, foundation).embed(TEXTS, batch=2)
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found[:], expected, rtol=1e-4, atol=1e-5)
    assert sorted(seen) == sorted(set(TEXTS))
    again = TextCache(tmp_path, foundation).embed([*reversed(TEXTS), "one more"])
    assert seen[4:] == ["one more"] and (again[:6] == found[::-1]).all()
    phrases = TextCache(tmp_path, foundation).embed_phrases(["red cat"])
    assert seen[5:] == ["a photo of red cat"] and phrases.shape == (1, expected.shape[1])


def test_no_text_is_no_row(clip: Foundation, tmp_path: Path) -> None:
    assert TextCache(tmp_path, clip).embed([]).shape == (0, clip.embedding_width)
    assert not any(tmp_path.iterdir())


def test_another_text_tower_is_another_store(clip: Foundation, tmp_path: Path) -> None:
    first = TextCache(tmp_path, clip)
    before = first.embed(["red cat"])[:]
    with torch.no_grad():
        clip.word_embedding_table().add_(0.1)
    second = TextCache(tmp_path, Foundation(clip.name, clip.model, clip.words.open_clip_tokenizer))
    assert second.folder != first.folder and (second.embed(["red cat"])[:] != before).any()


_KILLED = """
import sys, time
from pathlib import Path
from asymcir_training import load_foundation
from asymcir_training.teacher import keyed_rows
from asymcir_training.teacher.texts import TextCache
keyed_rows._FLUSH_EVERY_S = -1.0
foundation = load_foundation(f"local-dir:{sys.argv[1]}")
encode = foundation.encode_text
def slowly(texts):
    time.sleep(0.05)
    return encode(texts)
foundation.encode_text = slowly
TextCache(Path(sys.argv[2]), foundation).embed([f"text {number}" for number in range(400)], batch=1)
"""


def _count_rows(cache: TextCache) -> int:
    parts = [keyed_rows.Part(name="embedding.f32", dtype=np.float32)]
    return keyed_rows.KeyedRows(cache.folder, cache._facts, parts, what="the text cache")._count()


@pytest.mark.slow
def test_a_killed_run_keeps_what_it_had(
    clip: Foundation, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(clip_folder), str(tmp_path)])
    cache, texts = TextCache(tmp_path, clip), [f"text {number}" for number in range(400)]
    deadline_s = time.monotonic() + 300
    while not any(path.stat().st_size for path in tmp_path.glob("*/embedding.f32")) or _count_rows(cache) < 3:
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = _count_rows(cache)
    assert 3 <= done < 400
    seen = _count_texts(clip, monkeypatch)
    found = cache.embed(texts)
    assert len(seen) == 400 - done
    whole = TextCache(tmp_path / "whole", clip).embed(texts)
    np.testing.assert_allclose(found[:], whole[:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cache.json", "index.sqlite", "embedding.f32"])
def test_a_damaged_store_says_what_to_remove(name: str, clip: Foundation, tmp_path: Path) -> None:
    cache = TextCache(tmp_path, clip)
    cache.embed(TEXTS)
    (cache.folder / name).write_bytes(b"x" * 100)
    with pytest.raises(CacheError, match=f"the text cache {cache.folder} is damaged .*remove that folder"):
        cache.embed(TEXTS)


def test_what_is_not_finite_is_not_kept(clip: Foundation, tmp_path: Path) -> None:
    with torch.no_grad():
        clip.model.text_projection.fill_(float("nan"))
    with pytest.raises(CacheError, match="not finite near the text"):
        TextCache(tmp_path, clip).embed(TEXTS)


def test_a_full_disk_says_so(clip: Foundation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = keyed_rows.shutil.disk_usage(tmp_path)._replace(free=5)
    monkeypatch.setattr(keyed_rows.shutil, "disk_usage", lambda _: free)
    with pytest.raises(CacheError, match=r"no room for the text cache .* 5 are free"):
        TextCache(tmp_path, clip).embed(TEXTS)
