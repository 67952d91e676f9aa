"""The report of an export, one HTML file with its plots inside: what was tried, what was kept, and why."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2024 }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 } th, td { text-align: right; padding: .3rem .6rem }
th { border-bottom: 2px solid #1c2024 } td { border-bottom: 1px solid #d9dce0 }
th:first-child, td:first-child, td.text { text-align: left }
.kept { color: #18794e } .dropped { color: #b42318 } .absent { color: #6b7280 } svg text { font: 12px system-ui }
"""
_COLUMNS = (
    ("size, MB", "size_mb", "{:.2f}"),
    ("median, ms", "latency_ms_median", "{:.2f}"),
    ("p95, ms", "latency_ms_p95", "{:.2f}"),
    ("cosine, min", "cosine_min", "{:.5f}"),
    ("cosine, mean", "cosine_mean", "{:.5f}"),
    ("max abs difference", "max_abs_difference", "{:.3g}"),
    ("error / spread", "error_to_spread", "{:.3f}"),
    ("R@10", "recall_at_10", "{:.3f}"),
    ("R@10 change", "recall_at_10_change", "{:+.4f}"),
    ("top-10 agreement", "top_10_agreement", "{:.3f}"),
)
_PLOTS = (
    ("Size, MB", "size_mb"),
    ("Latency, median ms", "latency_ms_median"),
    ("Cosine with PyTorch, mean", "cosine_mean"),
    ("Error / spread of the original's tokens", "error_to_spread"),
    ("R@10 of composed queries", "recall_at_10"),
    ("Top-10 agreement with the original", "top_10_agreement"),
)


def render_report(
    variants: Mapping[str, Mapping[str, Any]],
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[str] = (),
) -> str:
    """Write the page.

    Args:
        variants: name -> record, as `variants.py` makes it: `status`, `reason`, and the figures of `_COLUMNS`.
        title: of the page.
        facts: label and text, shown on top.
        sections: HTML, shown between the reasons and the plots.
    """
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        "<ul>",
        *(f"<li>{html.escape(label)}: <b>{html.escape(text)}</b></li>" for label, text in facts),
        "</ul>",
        _table(variants),
        "<h2>Why</h2><ul>",
        *(
            f'<li><b>{html.escape(name)}</b>: <span class="{record["status"]}">{record["status"]}</span>. '
            f"{html.escape(record['reason'])}{_worst(record)}</li>"
            for name, record in variants.items()
        ),
        "</ul>",
        *sections,
        *(_plot(label, key, variants) for label, key in _PLOTS),
        "</body></html>",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _worst(record: Mapping[str, Any]) -> str:
    """Name the picture whose tokens came out worst, prepared and as it is."""
    found = (("prepared", record.get("worst")), ("resized in the graph", record.get("resized", {}).get("worst")))
    parts = [f"{html.escape(worst['picture'])}, {what}: cosine {worst['cosine']:.5f}" for what, worst in found if worst]
    return f" Worst picture: {'; '.join(parts)}." if parts else ""


def _table(variants: Mapping[str, Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{label}</th>" for label, _, _ in _COLUMNS)
    rows = []
    for name, record in variants.items():
        cells = "".join(
            f"<td>{form.format(record[key]) if record.get(key) is not None else '-'}</td>" for _, key, form in _COLUMNS
        )
        verdict = f'<td class="text {record["status"]}">{record["status"]}</td>'
        rows.append(f"<tr><td>{html.escape(name)}</td>{verdict}{cells}</tr>")
    return f"<table><tr><th>variant</th><th></th>{head}</tr>{''.join(rows)}</table>"


def _plot(label: str, key: str, variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw one bar a variant; nothing where no variant was measured."""
    measured = [(name, float(record[key]), record["status"]) for name, record in variants.items() if key in record]
    if not measured:
        return ""
    largest = max(value for _, value, _ in measured) or 1.0
    bars = []
    for row, (name, value, status) in enumerate(measured):
        y, colour = 24 * row, "#3b82c4" if status == "kept" else "#d9a19a"
        bars.append(
            f'<text x="170" y="{y + 15}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="180" y="{y + 3}" width="{max(1.0, 480 * value / largest):.1f}" height="16" fill="{colour}"/>'
            f'<text x="{190 + 480 * value / largest:.1f}" y="{y + 15}">{value:.4g}</text>'
        )
    height = 24 * len(measured)
    return (
        f'<h2>{html.escape(label)}</h2><svg viewBox="0 0 760 {height}" width="760" height="{height}" role="img" '
        f'aria-label="{html.escape(label)}">{"".join(bars)}</svg>'
    )
