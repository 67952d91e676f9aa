"""The page itself: HTML without scripts and without anything from elsewhere."""

import html
from collections.abc import Iterable, Sequence

from asymcir_common.html_pages import lay_out_table, render_document

from asymcir_server.gallery.overview.plots import plot_curve, plot_histogram, plot_map
from asymcir_server.gallery.overview.summary import LISTED, MAP_POINTS, Listing, Summary


def render_page(summary: Summary) -> str:
    """Write the page of a gallery."""
    title = f"Gallery {summary.folder}"
    body = [
        lay_out_table(_facts(summary)),
        *_index(summary),
        *_gates(summary),
        *_map(summary),
        *_listing(
            "Duplicates", "groups of pictures that are there more than once", summary.duplicates, ("kind", "ids")
        ),
        *_listing("Put aside", "pictures that could not be used", summary.quarantined, ("path", "reason")),
        *_sizes(summary),
    ]
    return render_document(title, body)


def _facts(summary: Summary) -> list[tuple[str, ...]]:
    properties = summary.properties
    added, removed, updated = summary.changes
    facts = [
        ("snapshot", summary.version),
        ("pictures", f"{summary.size:,}"),
        ("target", f"{properties['target']}, {properties['embedding_width']} wide"),
        ("index", f"{properties['index_kind']}, recall@10 {float(properties['index_recall_at_10']):.4f}"),
    ]
    if any(summary.changes):
        facts.append(("changes", f"{added:,} added, {removed:,} removed, {updated:,} with other metadata"))
    if properties.get("items"):
        facts.append(("items when built", f"{properties['items']:,}"))
    if properties.get("thumbnail_side"):
        facts.append(("thumbnails", f"{properties['thumbnail_side']} pixels"))
    columns = ", ".join(f"{key} ({kind})" for key, kind in summary.columns.items())
    facts.append(("columns", columns or "none"))
    return [*facts, ("space", str(properties["target_space"]))]


def _index(summary: Summary) -> Iterable[str]:
    index = summary.properties.get("index", {})
    curve = index.get("recall_curve", [])
    yield "<h2>Recall and time</h2>"
    if not curve:
        yield "<p>The index is exact: every search compares the query with all vectors.</p>"
        return
    yield plot_curve(curve, index.get("effort", {}))
    yield (
        f"<p>Recall of the first ten answers against brute force, over {index['recall_queries']['count']} queries "
        f"({html.escape(str(index['recall_queries']['source']))}), and processor time on one thread of the machine "
        "that built the gallery. The filled point is the effort that searches take.</p>"
    )


def _gates(summary: Summary) -> Iterable[str]:
    gates = summary.properties.get("gates")
    if not gates:
        return
    yield "<h2>UNION's gate</h2>"
    yield plot_histogram(gates["bins"], float(gates["least"]), float(gates["most"]))
    yield (
        f"<p>{gates['pictures']:,} pictures that the last build encoded: mean {gates['mean']:.3f}, standard "
        f"deviation {gates['standard_deviation']:.3f}. A target is the gate's share of the picture and the rest of the "
        "null text: at 1 it is the picture alone.</p>"
    )


def _map(summary: Summary) -> Iterable[str]:
    yield "<h2>Map</h2>"
    yield plot_map(summary.points)
    sample = f"{MAP_POINTS:,} pictures, spread evenly," if len(summary.points) >= MAP_POINTS else "The pictures"
    yield (
        f"<p>{sample} by the two largest principal components of their vectors, which hold {summary.explained:.0%} of "
        "the variance. Pictures that lie together are alike to a search; the plane does not show all that "
        "tells them apart.</p>"
    )


def _listing(title: str, what: str, listing: Listing, keys: Sequence[str]) -> Iterable[str]:
    yield f"<h2>{title}</h2>"
    yield f"<p>{listing.total:,} {what}.</p>"
    if not listing.total:
        return
    if len(listing.kinds) < listing.total:
        yield lay_out_table((kind, f"{count:,}") for kind, count in listing.kinds.items())
    yield lay_out_table((", ".join(_texts(record.get(key, ""))) for key in keys) for record in listing.first)
    if listing.total > LISTED:
        yield f"<p>These are the first {LISTED}.</p>"


def _sizes(summary: Summary) -> Iterable[str]:
    yield "<h2>Files</h2>"
    rows = [(name, f"{size / 1e6:,.2f} MB") for name, size in summary.files.items()]
    yield lay_out_table([*rows, ("bytes a picture", f"{sum(summary.files.values()) / max(1, summary.size):,.0f}")])
    yield "<h2>Snapshots</h2>"
    yield lay_out_table(
        (
            f"{record.version}{' (current)' if record.current else ''}",
            "damaged" if record.size is None else f"{record.size:,} pictures as {record.target}, {record.index_kind}",
            f"{record.size_bytes / 1e6:,.1f} MB",
        )
        for record in summary.snapshots
    )


def _texts(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]
