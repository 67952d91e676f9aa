"""What the repository carries for the demo: gallery pictures, held-out queries and sketches, triplets."""

import io
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from asymcir_benchmarks import Triplet, derive_triplets
from PIL import Image

from asymcir_demo.recipe.concepts import GALLERY_STYLE, HELD_OUT_STYLE, Concept
from asymcir_demo.recipe.render import load_style
from asymcir_demo.recipe.splits import drawn_alike, show_change, tone_free
from asymcir_demo.recipe.wordings import draws_its_name

COLOURED_STYLE = "openmoji"
SKETCH_STYLE = "openmoji-line"
SHOWN = (
    ("man", "is bald", "man-bald"),
    ("man", "has white hair", "man-white-hair"),
    ("thumbs-up", "has dark skin tone", "thumbs-up-dark-skin-tone"),
    ("red-heart", "is green", "green-heart"),
    ("six-oclock", "shows half past nine", "nine-thirty"),
    ("backhand-index-pointing-up", "points left", "backhand-index-pointing-left"),
)
"""Queries of training concepts that every run shows, beside held-out ones drawn by a fixed seed."""
_WEBP: dict[str, Any] = {"format": "WEBP", "quality": 50, "method": 6}
_LOG = logging.getLogger(__name__)


def write_assets(pictures: Path, concepts: list[Concept], out: Path) -> dict[str, float]:
    """Write EmojiCIR below `out` (see asymcir_benchmarks.emojicir.dataset for its files); returns how many of each."""
    (out / "gallery").mkdir(parents=True, exist_ok=True)
    named = {concept.slug: concept for concept in concepts}
    gallery = _write_style(pictures, GALLERY_STYLE, out / "gallery" / "gallery.zip", named, wanted=None)
    alike = drawn_alike(pictures, GALLERY_STYLE)
    _write_rows(
        out / "gallery" / "gallery.jsonl",
        [
            {
                "path": f"gallery.zip/{slug}.webp",
                "id": slug,
                "name": named[slug].name,
                "group": named[slug].group,
                "split": named[slug].split,
                "figure": tone_free(named[slug].name),
                "drawing": min(alike[slug]),  # the first of those drawn alike stands for the drawing
            }
            for slug in sorted(gallery)
        ],
    )
    drawn = set(load_style(pictures, HELD_OUT_STYLE)[1])
    triplets = [
        replace(triplet, split=named[triplet.target].split)
        for triplet in show_change(derive_triplets({concept.slug: concept.name for concept in concepts}), alike)
        if named[triplet.target].split != "train" and triplet.target in gallery and triplet.reference in drawn
    ]
    triplets += [Triplet(reference=r, modifier=m, target=t, family="shown", split="shown") for r, m, t in SHOWN]
    _write_rows(out / "triplets.jsonl", [asdict(triplet) for triplet in triplets])
    asked = sorted(slug for slug in drawn & gallery if named[slug].split in ("test", "novel"))
    _write_rows(out / "identity.jsonl", [{"slug": slug, "split": named[slug].split} for slug in asked])
    wanted = {triplet.reference for triplet in triplets} | set(asked)
    queries = _write_style(pictures, HELD_OUT_STYLE, out / "queries.zip", named, wanted=wanted)
    sketched = find_sketches(pictures, concepts) & gallery
    _write_rows(out / "sketches.jsonl", [{"slug": slug, "split": named[slug].split} for slug in sorted(sketched)])
    sketches = _write_style(pictures, SKETCH_STYLE, out / "sketches.zip", named, wanted=sketched)
    _write_style(pictures, COLOURED_STYLE, out / "coloured.zip", named, wanted=sketches)
    counts = {"gallery": len(gallery), "queries": len(queries), "sketches": len(sketches), "triplets": len(triplets)}
    _LOG.info("assets: %s", counts)
    return {name: float(count) for name, count in counts.items()}


def find_sketches(pictures: Path, concepts: list[Concept]) -> set[str]:
    """Find line art to search with: of test and novel concepts, showing what they are called, trained on under no name.

    Line art shows no colour, so two concepts may share it; then it is no sketch of an unseen one.
    """
    named = {concept.slug: concept for concept in concepts}
    coloured = set(load_style(pictures, COLOURED_STYLE)[1])
    found = set()
    for slug, twins in drawn_alike(pictures, SKETCH_STYLE).items():
        concept = named.get(slug)
        if concept is None or concept.split not in ("test", "novel") or slug not in coloured:
            continue
        if draws_its_name(concept, SKETCH_STYLE) and all(named[t].split == concept.split for t in twins if t in named):
            found.add(slug)
    return found


def _write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write_style(
    pictures: Path, style: str, archive: Path, named: dict[str, Concept], *, wanted: set[str] | None
) -> set[str]:
    array, slugs = load_style(pictures, style)
    files = {}
    for pixels, slug in zip(array, slugs, strict=True):
        if slug in named and (wanted is None or slug in wanted):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, **_WEBP)
            files[slug] = stream.getvalue()
    write_archive(archive, {f"{slug}.webp": data for slug, data in files.items()})
    return set(files)


def write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a zip of files as they are, not packed: the same bytes for the same files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name)  # of 1980, whatever the clock says
            info.external_attr = 0o644 << 16
            info.create_system = 3
            archive.writestr(info, files[name])
