"""Lay out for the pages how different the sentence tokens are, and what composed queries find with some of them."""

from collections.abc import Mapping
from typing import Any

from asymcir_benchmarks.pages.markdown import describe_source, make_table

_CUTS = ("R@1", "R@10")


def lay_out_tokens(record: Mapping[str, Any]) -> str:
    """Lay out the figures of `asymcir eval tokens`: two tables."""
    figures = record["figures"]
    measured = {key: value for key, value in figures.items() if not key.endswith(_CUTS)}
    rows = [["figure", "value"], *([key, f"{value:,.3g}"] for key, value in measured.items())]
    ranked = [["tokens sent", *_CUTS]]
    for key in figures:
        if key.endswith(_CUTS[0]):
            name = key.removesuffix(f", {_CUTS[0]}")
            ranked.append([name, *(f"{figures[f'{name}, {cut}']:.3f}" for cut in _CUTS)])
    tables = [make_table(rows), *([make_table(ranked)] if len(ranked) > 1 else [])]
    return "\n\n".join([*tables, describe_source(record)])
