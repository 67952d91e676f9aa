"""Why a query is answered as it is: what its tokens look at, what its words do, and what changes; as an HTML page."""

from asymcir_edge.explain.gathering import Answer, Explanation, TextSide, WordEffect, explain, open_text_side
from asymcir_edge.explain.sheet import render_sheet
from asymcir_edge.explain.thumbnails import fetch_thumbnails

__all__ = [
    "Answer",
    "Explanation",
    "TextSide",
    "WordEffect",
    "explain",
    "fetch_thumbnails",
    "open_text_side",
    "render_sheet",
]
