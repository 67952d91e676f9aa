"""The concepts behind the pictures: emoji names, keywords, and who draws what.

OpenMoji's table gives every code point sequence a name and keywords; the other sets are matched to it by code points
where they publish them, else by the name's slug.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from asymcir_benchmarks.emojicir.rules import APOSTROPHE

ICON_SETS = {
    "noto": "@iconify-json/noto",
    "twemoji": "@iconify-json/twemoji",
    "fluent": "@iconify-json/fluent-emoji-flat",
    "emojione": "@iconify-json/emojione",
    "noto-v1": "@iconify-json/noto-v1",
    "emojione-v1": "@iconify-json/emojione-v1",
    "fluent-shaded": "@iconify-json/fluent-emoji",
    "fxemoji": "@iconify-json/fxemoji",
    "fluent-black": "@iconify-json/fluent-emoji-high-contrast",
    "emojione-black": "@iconify-json/emojione-monotone",
}
"""Style -> npm package. OpenMoji's own two, colour and line art, come from the `openmoji` package."""
COLOURLESS_STYLES = ("openmoji-line", "fluent-black", "emojione-black")
STYLES = (*ICON_SETS, "openmoji", "openmoji-line")
GALLERY_STYLE = "noto"
HELD_OUT_STYLE = "twemoji"
"""Never trained on by any stage; the query pictures come from it."""
TRAINED_STYLES = tuple(style for style in STYLES if style != HELD_OUT_STYLE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Concept:
    """One emoji: its slug (the id everywhere), its name, what is known about it, and its split (see splits.py).

    `aligned` says whether the foundation may see it.
    """

    slug: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    hexcode: str
    split: str = ""
    aligned: bool = True


def slugify(name: str) -> str:
    """Turn a name into the slug that the icon sets use: "man: dark skin tone" -> "man-dark-skin-tone"."""
    ascii_name = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    ascii_name = ascii_name.replace("&", "and").replace(APOSTROPHE, "").replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", ascii_name).strip("-")


def load_concepts(node_modules: Path) -> list[Concept]:
    """Read the named concepts from the `openmoji` package, in Unicode order."""
    table = json.loads((node_modules / "openmoji/data/openmoji.json").read_text(encoding="utf-8"))
    concepts: dict[str, Concept] = {}
    for row in table:
        if row["group"].startswith("extras"):
            continue
        slug = slugify(row["annotation"])
        tags = [tag.strip() for field in ("tags", "openmoji_tags") for tag in row[field].split(",")]
        concepts.setdefault(
            slug,
            Concept(
                slug=slug,
                name=row["annotation"],
                keywords=tuple(dict.fromkeys(tag for tag in tags if tag)),
                group=row["group"],
                subgroup=row["subgroups"],
                hexcode=row["hexcode"],
            ),
        )
    return list(concepts.values())


def load_svgs(node_modules: Path, concepts: list[Concept]) -> dict[str, dict[str, str]]:
    """Collect style -> slug -> SVG text for every concept that a style draws."""
    svgs: dict[str, dict[str, str]] = {
        style: _load_iconify(node_modules / package, concepts) for style, package in ICON_SETS.items()
    }
    for style, folder in (("openmoji", "color"), ("openmoji-line", "black")):
        files = {
            concept.slug: node_modules / "openmoji" / folder / "svg" / f"{concept.hexcode}.svg" for concept in concepts
        }
        svgs[style] = {slug: path.read_text(encoding="utf-8") for slug, path in files.items() if path.is_file()}
    return svgs


def _load_iconify(package: Path, concepts: list[Concept]) -> dict[str, str]:
    icons = json.loads((package / "icons.json").read_text(encoding="utf-8"))
    characters = json.loads((package / "chars.json").read_text(encoding="utf-8"))
    by_code = {_plain_code(code): name for code, name in characters.items()}
    by_letters = {name.replace("-", ""): name for name in [*icons.get("aliases", {}), *icons["icons"]]}
    found: dict[str, str] = {}
    for concept in concepts:
        name = by_code.get(_plain_code(concept.hexcode)) or by_letters.get(concept.slug.replace("-", ""), concept.slug)
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        icon = icons["icons"].get(name)
        if icon is None:
            continue
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        found[concept.slug] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" '
            f'width="{width}" height="{height}">{icon["body"]}</svg>'
        )
    return found


def _plain_code(code: str) -> str:
    """Drop variation selectors, which the sets write or omit as they like."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f").lstrip("0")
