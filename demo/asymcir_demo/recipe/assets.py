"""What the repository carries for the demo: gallery pictures, held-out queries and sketches, triplets."""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from asymcir_benchmarks import derive_triplets
from PIL import Image

from asymcir_demo.recipe.concepts import HELD_OUT_STYLE, TRAINED_STYLES, Concept
from asymcir_demo.recipe.foundation import draws_its_name, word_names
from asymcir_demo.recipe.render import load_style
from asymcir_demo.recipe.student import phrase_bank

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
_WEBP = {"format": "WEBP", "quality": 60, "method": 6}
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
    # Sets reuse drawings: what is drawn alike under a name that was trained on is not unseen, and of two gallery
    # pictures that are alike to the pixel neither can be told to be the answer.
    leaked = find_leaked(pictures, concepts, [style for style in TRAINED_STYLES if style != SKETCH_STYLE])
    alike = _drawn_alike(pictures, GALLERY_STYLE)
    triplets = [triplet for triplet in triplets if triplet.target not in leaked and len(alike[triplet.target]) == 1]
    wanted = {triplet.reference for triplet in triplets} | {reference for reference, _, _ in SHOWN}
    queries = _write_style(pictures, HELD_OUT_STYLE, out / "queries", named, wanted=wanted)
    leaked_lines = find_leaked(pictures, concepts, [SKETCH_STYLE])
    in_bank = set(phrase_bank(concepts))
    held_out_lines = {
        concept.slug
        for concept in concepts
        if concept.held_out
        and concept.slug in gallery
        and concept.slug not in leaked | leaked_lines
        and len(alike[concept.slug]) == 1
        and word_names(concept)[0] not in in_bank
        and draws_its_name(concept, SKETCH_STYLE)
    }
    sketches = _write_style(pictures, SKETCH_STYLE, out / "sketches", named, wanted=held_out_lines)
    rows = [
        {
            "reference": triplet.reference,
            "modifier": triplet.modifier,
            "target": triplet.target,
            "family": triplet.family,
        }
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


def find_leaked(pictures: Path, concepts: list[Concept], styles: Sequence[str]) -> set[str]:
    """Find held-out concepts of which one of these styles has, to the pixel, a picture under a seen name."""
    held_out = {concept.slug for concept in concepts if concept.held_out}
    leaked: set[str] = set()
    for style in styles:
        for slug, twins in _drawn_alike(pictures, style).items():
            if slug in held_out and not twins <= held_out:
                leaked.add(slug)
    return leaked


def _drawn_alike(pictures: Path, style: str) -> dict[str, set[str]]:
    """Return slug -> all slugs whose picture is the same to the pixel, itself included."""
    array, slugs = load_style(pictures, style)
    groups: dict[bytes, set[str]] = {}
    digests = [hashlib.sha256(np.ascontiguousarray(picture).tobytes()).digest() for picture in array]
    for slug, found in zip(slugs, digests, strict=True):
        groups.setdefault(found, set()).add(slug)
    return {slug: groups[found] for slug, found in zip(slugs, digests, strict=True)}


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
