"""A small search set: three composed queries over fourteen random pictures."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

_PICTURES = 14
_TRIPLETS = (("p0", "is red", "p3"), ("p1", "is blue", "p4"), ("p1", "is small", "p5"))


def write_search_set(folder: Path) -> Path:
    """Write it, laid out as `asymcir_export.checks.search_set` reads it."""
    generator = np.random.default_rng(1)
    (folder / "gallery").mkdir(parents=True)
    (folder / "queries").mkdir()
    names = [f"p{number}" for number in range(_PICTURES)]
    for name in names:
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        picture = coarse.resize((40, 40), Image.Resampling.BICUBIC)
        picture.save(folder / "gallery" / f"{name}.png")
        if any(name == reference for reference, _, _ in _TRIPLETS):
            picture.save(folder / "queries" / f"{name}.png")
    _write_rows(folder / "gallery" / "gallery.jsonl", [{"path": f"{name}.png", "id": name} for name in names])
    keys = ("reference", "modifier", "target")
    _write_rows(folder / "triplets.jsonl", [dict(zip(keys, row, strict=True)) for row in _TRIPLETS])
    return folder


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
