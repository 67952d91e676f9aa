"""What the report says of the sentence tokens: how different they are, and what each looks at.

Notation: L sentence tokens, S side of the square that the network sees, h, w sides of an attention map.
"""

import html
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from asymcir_common.html_pages import embed_image, paint_map
from asymcir_common.sentences import TokenDiversity, measure_diversity
from asymcir_edge import QueryEncoder
from numpy.typing import NDArray
from PIL import Image

_SIDE = 96
"""Of a picture in the report, in pixels."""

_LOG = logging.getLogger(__name__)
_STYLE = f"""
.looked {{ display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0 }}
.looked span {{ position: relative; width: {_SIDE}px; height: {_SIDE}px; background-size: cover }}
.looked img {{ position: absolute; width: 100%; height: 100% }}
"""


def describe_tokens(
    encoder: QueryEncoder, compared: Sequence[NDArray[np.uint8]], shown: Sequence[NDArray[np.uint8]]
) -> tuple[dict[str, Any], str]:
    """Measure the tokens of an exported encoder; warn in the log where they are nearly one.

    Args:
        encoder: of a bundle that gives attention maps.
        compared: [h, w, 3] uint8 each, two or more, any size, to measure on.
        shown: [S, S, 3] uint8 each, prepared, to draw the maps on.

    Returns:
        The manifest's property `token_diversity`, and a section of the report.

    Raises:
        TokensError: tokens without a direction.
        EncoderError: the encoder failed.
    """
    encoded = [encoder.encode_with_maps(picture) for picture in compared]
    found = measure_diversity(np.stack([tokens for tokens, _ in encoded]), np.stack([maps for _, maps in encoded]))
    if found.warning:
        _LOG.warning("%s", found.warning)
    record = {"pictures": len(compared), **asdict(found), "collapsed": found.collapsed}
    return record, render_tokens(found, [(square, encoder.encode_with_maps(square)[1]) for square in shown])


def render_tokens(found: TokenDiversity, shown: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]]) -> str:
    """Write a section of the report.

    Args:
        found: what was measured.
        shown: prepared pictures [S, S, 3] and the attention maps [L, h, w] of each.

    Returns:
        HTML. A map, which is a few dots wide, is laid over its picture and smoothed by the browser.
    """
    rows = [*found.figures().items(), ("number of tokens", found.sentence_length)]
    lines = [
        f"<h2>Sentence tokens</h2><style>{_STYLE}</style>",
        f'<p class="dropped">Warning: {html.escape(found.warning)}.</p>' if found.warning else "",
        "<table>",
        *(f"<tr><td>{html.escape(name)}</td><td>{value:.3g}</td></tr>" for name, value in rows),
        "</table>",
        "<p>What each token looks at, from the first to the last; the largest weight of a map is the deepest red.</p>",
    ]
    for number, (square, maps) in enumerate(shown):
        picture = Image.fromarray(square).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        lines.append(f"<style>.picture{number} {{ background-image: url({embed_image(picture, 'webp')}) }}</style>")
        row = [f'<span class="picture{number}"></span>']
        for token, weights in enumerate(maps, start=1):
            image = f'<img src="{embed_image(paint_map(weights), "png")}" alt="token {token}">'
            row.append(f'<span class="picture{number}" title="token {token}">{image}</span>')
        lines.append(f'<div class="looked">{"".join(row)}</div>')
    return "\n".join(line for line in lines if line)
