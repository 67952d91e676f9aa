"""What the repository carries for the demo: gallery pictures, held-out queries and sketches, triplets."""

import json
import logging
import shutil
from pathlib import Path

from asymcir_benchmarks import derive_triplets
from PIL import Image

from asymcir_demo.recipe.concepts import HELD_OUT_STYLE, Concept
from asymcir_demo.recipe.foundation import draws_its_name
from asymcir_demo.recipe.render import load_style

GALLERY_STYLE = "noto"
SKETCH_STYLE = "openmoji-line"
SHOWN = (
    ("woman", "has red hair", "woman-red-hair"),
    ("man", "has a beard", "man-beard"),
    ("thumbs-up", "has dark skin tone", "thumbs-up-dark-skin-tone"),
    ("red-heart", "is blue", "blue-heart"),
    ("twelve-oclock", "shows half past two", "two-thirty"),
    ("backhand-index-pointing-up", "points left", "backhand-index-pointing-left"),
)
"""Queries of seen concepts that every run shows, beside held-out ones drawn by `seed`."""
_WEBP = {"format": "WEBP", "quality": 80, "method": 6}
_LOG = logging.getLogger(__name__)


def write_assets(pictures: Path, concepts: list[Concept], out: Path) -> dict[str, float]:
    """Write gallery, queries, sketches and triplets below `out`; returns how many of each."""
    for name in ("gallery", "queries", "sketches"):
        shutil.rmtree(out / name, ignore_errors=True)
    named = {concept.slug: concept for concept in concepts}
    gallery = _write_style(pictures, GALLERY_STYLE, out / "gallery", named, wanted=None)
    lines = [
        json.dumps({"path": f"{slug}.webp", "id": slug, "name": named[slug].name, "group": named[slug].group})
        for slug in gallery
    ]
    (out / "gallery" / "gallery.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    triplets = [
        triplet
        for triplet in derive_triplets({concept.slug: concept.name for concept in concepts})
        if named[triplet.target].held_out and triplet.target in gallery
    ]
    _, drawn = load_style(pictures, HELD_OUT_STYLE)
    triplets = [triplet for triplet in triplets if triplet.reference in set(drawn)]
    wanted = {triplet.reference for triplet in triplets} | {reference for reference, _, _ in SHOWN}
    queries = _write_style(pictures, HELD_OUT_STYLE, out / "queries", named, wanted=wanted)
    held_out_lines = {
        concept.slug for concept in concepts if concept.held_out and concept.slug in gallery and draws_its_name(concept, SKETCH_STYLE)
    }
    sketches = _write_style(pictures, SKETCH_STYLE, out / "sketches", named, wanted=held_out_lines)
    rows = [
        {"reference": triplet.reference, "modifier": triplet.modifier, "target": triplet.target, "family": triplet.family}
        for triplet in triplets
    ]
    rows += [
        {"reference": reference, "modifier": modifier, "target": target, "family": "shown"}
        for reference, modifier, target in SHOWN
    ]
    (out / "triplets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    counts = {"gallery": len(gallery), "queries": len(queries), "sketches": len(sketches), "triplets": len(triplets)}
    _LOG.info("assets: %s", counts)
    return {name: float(count) for name, count in counts.items()}


def _write_style(
    pictures: Path, style: str, folder: Path, named: dict[str, Concept], *, wanted: set[str] | None
) -> set[str]:
    folder.mkdir(parents=True, exist_ok=True)
    array, slugs = load_style(pictures, style)
    written = set()
    for pixels, slug in zip(array, slugs, strict=True):
        if slug in named and (wanted is None or slug in wanted):
            Image.fromarray(pixels).save(folder / f"{slug}.webp", **_WEBP)
            written.add(slug)
    return written
