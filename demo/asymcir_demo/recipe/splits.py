"""Which concepts each stage may see: splits by hash of a whole family of names and drawings.

The emoji sets reuse drawings ("person running" is often "man running" to the pixel) and repeat a figure in six skin
tones. So a split is drawn for a component: concepts linked by a name that differs in skin tone alone, or by one drawing
that two of them share in any style that shows colour.

| split | the foundation | distillation and UNION | for |
|---|---|---|---|
| train | sees it | see it | training |
| dev | sees it | do not | choosing the recipe |
| test | sees it | do not | the figures that are published |
| novel | does not | do not | the second test: a concept that no stage has seen |

The held-out style (concepts.HELD_OUT_STYLE) is unseen by every stage in all four.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from asymcir_benchmarks import Triplet

from asymcir_demo.recipe.concepts import COLOURLESS_STYLES, STYLES, TRAINED_STYLES, Concept
from asymcir_demo.recipe.render import load_style

SPLITS = ("train", "dev", "test", "novel")
_BOUNDS = ((0.10, "novel"), (0.30, "test"), (0.42, "dev"), (1.0, "train"))
_SEED = "asymcir-emojicir-2"  # the first of -0, -1, ... whose first step gave every family enough queries
_TONE = r"(?:medium-light|medium-dark|light|medium|dark) skin tone"


def tone_free(name: str) -> str:
    """Drop the skin tones of a name and nothing else: "man: dark skin tone, beard" -> "man: beard"."""
    return _toned_key(name).removesuffix(":")


def _toned_key(name: str) -> str:
    """Do as `tone_free`, but keep toned variants apart from their plain figure: "woman: dark skin tone" -> "woman:"."""
    plain = re.sub(rf"(?:, )?{_TONE}", "", name)
    return re.sub(r": ?, ?", ": ", plain).removesuffix(":").strip()


def components(names: dict[str, str], drawings: Iterable[dict[str, bytes]]) -> dict[str, str]:
    """Group concepts that share a name or a drawing.

    Args:
        names: slug -> name, without what does not tell concepts apart.
        drawings: for each style, slug -> digest of its picture.

    Returns:
        slug -> the component's name: the first of its names in alphabetical order.
    """
    parent = {slug: slug for slug in names}

    def root(slug: str) -> str:
        while parent[slug] != slug:
            parent[slug] = parent[parent[slug]]
            slug = parent[slug]
        return slug

    groups: list[Mapping[str, str | bytes]] = [names, *drawings]
    for keys in groups:
        first: dict[str | bytes, str] = {}
        for slug, key in keys.items():
            if slug in parent:
                parent[root(slug)] = root(first.setdefault(key, slug))
    labels: dict[str, str] = {}
    for slug, name in names.items():
        top = root(slug)
        labels[top] = min(labels.get(top, name), name)
    return {slug: labels[root(slug)] for slug in names}


def draw_splits(groups: dict[str, str]) -> dict[str, str]:
    """Draw a split for each component by hash, evenly within each Unicode subgroup ("cat-face", "arrow", ...).

    Args:
        groups: component -> its subgroup.

    Returns:
        component -> split.
    """
    found: dict[str, str] = {}
    for group in sorted(set(groups.values())):
        members = sorted((_hash(name), name) for name, its in groups.items() if its == group)
        for number, (_, name) in enumerate(members):
            place = (number + _hash(group)) / len(members)
            found[name] = next(split for bound, split in _BOUNDS if place < bound)
    return found


def assign_splits(concepts: list[Concept], pictures: Path) -> list[Concept]:
    """Give every concept its split, by the rendered pictures of every style that shows colour.

    In two steps: a plain figure and its toned variants are drawn for apart, then joined in the split that is seen most.
    What the first step drew for `novel` stays unseen by the foundation, wherever the second puts it.
    """
    drawings = [_digests(pictures, style) for style in STYLES if style not in COLOURLESS_STYLES]
    apart = components({concept.slug: _toned_key(concept.name) for concept in concepts}, drawings)
    groups: dict[str, str] = {}
    for concept in concepts:
        groups.setdefault(apart[concept.slug], concept.subgroup)
    drawn = draw_splits(groups)
    joined = components({concept.slug: tone_free(concept.name) for concept in concepts}, drawings)
    most_seen: dict[str, str] = {}
    for concept in concepts:
        split = drawn[apart[concept.slug]]
        most_seen[joined[concept.slug]] = min(split, most_seen.get(joined[concept.slug], split), key=SPLITS.index)
    return [
        replace(concept, split=most_seen[joined[concept.slug]], aligned=drawn[apart[concept.slug]] != "novel")
        for concept in concepts
    ]


def training_drawings(pictures: Path, concepts: list[Concept]) -> dict[str, list[str]]:
    """Return style -> slugs of the training split's concepts that it draws, in every style but the held-out one.

    A colourless drawing that a concept outside the split has too, to the pixel, is left out: it would show it.
    """
    known = {concept.slug for concept in concepts}
    seen = {concept.slug for concept in concepts if concept.split == "train"}
    found = {}
    for style in TRAINED_STYLES:
        alike = drawn_alike(pictures, style) if style in COLOURLESS_STYLES else {}
        slugs = load_style(pictures, style)[1]
        found[style] = [slug for slug in slugs if slug in seen and not (alike.get(slug, set()) & known) - seen]
    return found


def drawn_alike(pictures: Path, style: str) -> dict[str, set[str]]:
    """Return slug -> all slugs whose picture in this style is the same to the pixel, itself included."""
    groups: dict[bytes, set[str]] = {}
    digests = _digests(pictures, style)
    for slug, found in digests.items():
        groups.setdefault(found, set()).add(slug)
    return {slug: groups[found] for slug, found in digests.items()}


def show_change(triplets: Iterable[Triplet], alike: Mapping[str, set[str]]) -> list[Triplet]:
    """Keep the triplets whose change can be seen: not those whose target is drawn exactly like the reference.

    Args:
        triplets: any.
        alike: of the gallery's style, from `drawn_alike`.
    """
    return [triplet for triplet in triplets if triplet.reference not in alike.get(triplet.target, ())]


def _hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(f"{_SEED}:{text}".encode()).hexdigest(), 16) % 10_000 / 10_000


def _digests(pictures: Path, style: str) -> dict[str, bytes]:
    array, slugs = load_style(pictures, style)
    return {
        slug: hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        for slug, picture in zip(slugs, array, strict=True)
    }
