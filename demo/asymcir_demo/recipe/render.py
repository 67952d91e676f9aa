"""Render every style's SVGs to square RGB pictures on white, once, into one array per style."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from asymcir_common import decode_image
from numpy.typing import NDArray

from asymcir_demo.recipe.concepts import Concept, load_svgs

SIZE = 128
_LOG = logging.getLogger(__name__)


def render_svg(svg: str, size: int = SIZE) -> NDArray[np.uint8]:
    """Render one SVG: [size, size, 3], uint8, on white."""
    import resvg_py  # of the extra demo-assets, which reading what is rendered does not need

    png = bytes(
        resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
    )
    pixels = decode_image(png, name="a rendered SVG")
    if pixels.shape[:2] != (size, size):  # a drawing that is not square is centred
        canvas = np.full((size, size, 3), 255, dtype=np.uint8)
        height, width = min(size, pixels.shape[0]), min(size, pixels.shape[1])
        top, left = (size - height) // 2, (size - width) // 2
        canvas[top : top + height, left : left + width] = pixels[:height, :width]
        return canvas
    return pixels


def render_styles(node_modules: Path, concepts: list[Concept], folder: Path) -> None:
    """Write `STYLE.npy` [n, SIZE, SIZE, 3] and `STYLE.json` (its slugs) for each style not yet there."""
    folder.mkdir(parents=True, exist_ok=True)
    for style, svgs in load_svgs(node_modules, concepts).items():
        if (folder / f"{style}.json").is_file():
            continue
        slugs = list(svgs)
        with ThreadPoolExecutor() as pool:
            pictures = np.stack(list(pool.map(render_svg, svgs.values())))
        np.save(folder / f"{style}.npy", pictures)
        (folder / f"{style}.json").write_text(json.dumps(slugs), encoding="utf-8")
        _LOG.info("%s: %d pictures of %d concepts", style, len(slugs), len(concepts))


def load_style(folder: Path, style: str) -> tuple[NDArray[np.uint8], list[str]]:
    """Open one rendered style: pictures [n, SIZE, SIZE, 3] (memory-mapped) and their slugs."""
    slugs: list[str] = json.loads((folder / f"{style}.json").read_text(encoding="utf-8"))
    return np.load(folder / f"{style}.npy", mmap_mode="r"), slugs
