"""Exact and near duplicates."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
from asymcir_server import BuildConfig, ServerBundle, build_gallery
from asymcir_server.gallery.sources.near_duplicates import MAX_DIFFERENT_BITS, find_near_duplicates, hash_picture
from PIL import Image


def smooth(seed: int, side: int = 64) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def naive_groups(hashes: list[int]) -> list[list[int]]:
    groups = [{row} for row in range(len(hashes))]
    for one, other in itertools.combinations(range(len(hashes)), 2):
        if (hashes[one] ^ hashes[other]).bit_count() <= MAX_DIFFERENT_BITS:
            first = next(group for group in groups if one in group)
            second = next(group for group in groups if other in group)
            if first is not second:
                first |= second
                groups.remove(second)
    return sorted(sorted(group) for group in groups if len(group) > 1)


def test_groups_match_the_naive_way() -> None:
    generator = np.random.default_rng(0)
    hashes = [int(value) for value in generator.integers(0, 2**64, 300, dtype=np.uint64)]
    for _ in range(300):  # neighbours within up to five bits, some beyond the limit; and equal ones
        value = hashes[int(generator.integers(len(hashes)))]
        for bit in generator.integers(0, 64, int(generator.integers(0, 6))):
            value ^= 1 << int(bit)
        hashes.append(value)
    assert list(find_near_duplicates(np.array(hashes, np.uint64))) == naive_groups(hashes)
    assert list(find_near_duplicates(np.empty(0, np.uint64))) == []
    assert list(find_near_duplicates(np.zeros(3, np.uint64))) == [[0, 1, 2]]


def test_the_hash_changes_little_with_the_file() -> None:
    near, far = [], []
    for seed in range(20):
        picture = smooth(seed)
        before = hash_picture(np.asarray(picture))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=70)
        for other in (Image.open(stream).convert("RGB"), picture.resize((50, 50))):
            near.append((before ^ hash_picture(np.asarray(other))).bit_count())
        far.append((before ^ hash_picture(np.asarray(smooth(seed + 100)))).bit_count())
    assert np.mean(np.array(near) <= MAX_DIFFERENT_BITS) > 0.9 and min(far) > 10


def test_duplicates_are_listed(tmp_path: Path, bundle: ServerBundle) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for seed in range(6):
        smooth(seed).save(folder / f"{seed}.png")
    (folder / "copy of 2.png").write_bytes((folder / "2.png").read_bytes())
    (folder / "z.png").write_bytes((folder / "2.png").read_bytes())
    (folder / "copy of 4.png").write_bytes((folder / "4.png").read_bytes())
    smooth(5).save(folder / "5.webp", quality=90)
    exact = [
        {"kind": "exact", "ids": ["2.png", "copy of 2.png", "z.png"]},
        {"kind": "exact", "ids": ["4.png", "copy of 4.png"]},
    ]
    report = build_gallery(folder, bundle, tmp_path / "g")
    assert read(report.snapshot) == exact
    assert (report.encoded, report.duplicates.exact, report.duplicates.near) == (7, 3, None)
    for _ in range(2):  # once decoded, once taken from the snapshot before
        report = build_gallery(folder, bundle, tmp_path / "g", config=BuildConfig(near_duplicates=True))
        near = [line for line in read(report.snapshot) if line["kind"] == "near"]
        assert [line for line in read(report.snapshot) if line["kind"] == "exact"] == exact
        assert {"kind": "near", "ids": ["5.png", "5.webp"]} in near
        assert report.duplicates.near == sum(len(line["ids"]) - 1 for line in near)
        assert report.encoded == 0
    assert not (build_gallery(folder / "..", bundle, tmp_path / "h").snapshot / "picture_hashes.npy").exists()


def read(snapshot: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (snapshot / "duplicates.jsonl").read_text().splitlines()]
