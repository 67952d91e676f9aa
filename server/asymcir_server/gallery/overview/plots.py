"""Plots as inline SVG, in the colours of the page's theme."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from asymcir_server.gallery.overview.summary import MapPoint

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 16, 44
_MAP_SIDE, _THUMBNAIL_SIDE = 720, 40


def plot_curve(points: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> str:
    """Draw recall over time a query; the chosen point is filled.

    Args:
        points: of the manifest's `recall_curve`, each with `ms_per_query` and `recall_at_10`.
        chosen: the effort that searches take, as the manifest has it.
    """
    times = [float(point["ms_per_query"]) for point in points]
    recalls = [float(point["recall_at_10"]) for point in points]
    longest, least = max([*times, 1e-9]), min([*recalls, 0.99])
    low = max(0.0, least - 0.1 * (1.0 - least))
    ordered = sorted(zip(times, recalls, points, strict=True), key=lambda item: item[0])
    marks, path = [], []
    for ms, recall, point in ordered:
        x, y = _across(ms / longest / 1.05), _up((recall - low) / (1.0 - low))
        path.append(f"{x:.1f},{y:.1f}")
        effort = {key: value for key, value in point.items() if key in chosen}
        label = ", ".join(f"{key} {value}" for key, value in effort.items()) or "exact"
        taken = bool(effort) and all(chosen[key] == value for key, value in effort.items())
        title = html.escape(f"{label}: recall@10 {recall:.4f}, {ms:.3f} ms")
        mark = "on" if taken else "dot"
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="{mark}"><title>{title}</title></circle>')
    return _frame(
        f'<polyline points="{" ".join(path)}" class="line"/>{"".join(marks)}',
        left=(f"{low:.3f}", "1"),
        below=("0", f"{longest * 1.05:.2f} ms a query"),
        name="recall at 10 against the time of a query",
    )


def plot_histogram(bins: Sequence[int], least: float, most: float) -> str:
    """Draw a histogram of bins of one width from `least` to `most`."""
    step, largest = (most - least) / len(bins), max(bins)
    width = (_WIDTH - _LEFT - _RIGHT) / len(bins)
    bars = []
    for place, count in enumerate(bins):
        low, top = least + step * place, _up(count / largest)
        title = f"{low:.3f} to {low + step:.3f}: {count:,}"
        bars.append(
            f'<rect x="{_LEFT + place * width:.1f}" y="{top:.1f}" width="{max(width - 1, 0.5):.1f}" '
            f'height="{_HEIGHT - _BOTTOM - top:.1f}" class="bar"><title>{title}</title></rect>'
        )
    return _frame(
        "".join(bars),
        left=("0", f"{largest:,}"),
        below=(f"{least:.2f}", f"{most:.2f}"),
        name="pictures by gate",
    )


def plot_map(points: Sequence[MapPoint]) -> str:
    """Draw pictures where the map has them, some by their thumbnail, the others as dots with their id as title."""
    room = _MAP_SIDE - _THUMBNAIL_SIDE
    dots, pictures = [], []
    for point in points:
        x, y = _THUMBNAIL_SIDE / 2 + point.x * room, _THUMBNAIL_SIDE / 2 + (1.0 - point.y) * room
        title = f"<title>{html.escape(point.identity)}</title>"
        if point.thumbnail is None:
            dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="dot">{title}</circle>')
            continue
        data = base64.b64encode(point.thumbnail).decode("ascii")
        half = _THUMBNAIL_SIDE / 2
        pictures.append(
            f'<image href="data:image/webp;base64,{data}" x="{x - half:.1f}" y="{y - half:.1f}" '
            f'width="{_THUMBNAIL_SIDE}" height="{_THUMBNAIL_SIDE}">{title}</image>'
        )
    return (
        f'<svg viewBox="0 0 {_MAP_SIDE} {_MAP_SIDE}" role="img" aria-label="map of a sample of the pictures">'
        f"{''.join(dots)}{''.join(pictures)}</svg>"
    )


def _across(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _up(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _frame(inside: str, *, left: tuple[str, str], below: tuple[str, str], name: str) -> str:
    """Draw axes, with the least and the largest value of each, around a plot."""
    floor, edge = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(name)}">'
        f'<path d="M{_LEFT} {_TOP}V{floor}H{edge}" class="axis"/>'
        f'<text x="{_LEFT - 6}" y="{floor}" text-anchor="end">{html.escape(left[0])}</text>'
        f'<text x="{_LEFT - 6}" y="{_TOP + 10}" text-anchor="end">{html.escape(left[1])}</text>'
        f'<text x="{_LEFT}" y="{floor + 20}">{html.escape(below[0])}</text>'
        f'<text x="{edge}" y="{floor + 20}" text-anchor="end">{html.escape(below[1])}</text>{inside}</svg>'
    )
