"""Self-contained HTML pages: a style of both themes, tables, and pictures inside the file; no script, no request."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #d9dce0; --back: #fff; --mark: #0b68cb }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #b0b4ba; --line: #363a3f; --back: #111113;
  --mark: #70b8ff } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--back) }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem } p, .soft { color: var(--soft) }
table { border-collapse: collapse; width: 100% } .wide { overflow-x: auto }
td, th { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums } td { overflow-wrap: break-word }
svg { width: 100%; height: auto } svg text { font: 13px system-ui; fill: var(--soft) }
.axis { fill: none; stroke: var(--soft) } .line { fill: none; stroke: var(--mark); stroke-width: 2 }
.dot { fill: var(--back); stroke: var(--mark); stroke-width: 1.5 } .on, .bar { fill: var(--mark) }
code { font: 13px ui-monospace, monospace }
"""

_QUALITY = 80
_HEAT = (220, 30, 30)
_LARGEST_ALPHA = 200


def render_document(title: str, body: Iterable[str], *, style: str = "") -> str:
    """Write a page.

    Args:
        title: plain text; also its first heading.
        body: HTML.
        style: CSS beside that of all pages.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head><body><main>",
        f"<h1>{html.escape(title)}</h1>",
        *body,
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def lay_out_table(rows: Iterable[Iterable[str]], *, head: Sequence[str] = ()) -> str:
    """Write a table of plain texts."""
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    first = f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>" if head else ""
    return f'<div class="wide"><table>{first}{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def embed_image(image: Image.Image, form: str = "webp") -> str:
    """Write an image as a data URI; `form` is "webp" or "png"."""
    stream = io.BytesIO()
    image.save(stream, format=form, quality=_QUALITY)
    return embed_file(stream.getvalue(), f"image/{form}")


def embed_file(data: bytes, media_type: str) -> str:
    """Write a file as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def paint_map(weights: NDArray[np.float32]) -> Image.Image:
    """Paint an attention map [h, w]: one colour, the more opaque the larger the weight; the largest is the deepest."""
    alpha = np.rint(_LARGEST_ALPHA * weights / weights.max()).astype(np.uint8)
    colour = np.broadcast_to(np.array(_HEAT, np.uint8), (*weights.shape, 3))
    return Image.fromarray(np.concatenate([colour, alpha[:, :, None]], axis=2))
