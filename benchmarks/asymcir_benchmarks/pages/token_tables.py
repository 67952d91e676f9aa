"""Lay out for the pages how different the sentence tokens are, and what queries of other forms find."""

from collections.abc import Mapping
from typing import Any

from asymcir_benchmarks.pages.markdown import describe_source, make_table

_CUTS = ("R@1", "R@10")
_OWN = tuple(f"own concept, {cut}" for cut in _CUTS)
_COSTS = ("bytes, fp16", "bytes, int8", "text encoder, ms")


def lay_out_tokens(record: Mapping[str, Any]) -> str:
    """Lay out the figures of `asymcir eval tokens`: how different tokens are, what is found, what a length costs."""
    figures: Mapping[str, float] = record["figures"]
    measured = {key: value for key, value in figures.items() if not key.endswith(_CUTS) and "tokens, " not in key}
    names = [key.removesuffix(f", {_CUTS[0]}") for key in figures if key.endswith(_CUTS[0]) and _OWN[0] not in key]
    columns = [cut for cut in (*_CUTS, *_OWN) if any(key.endswith(f", {cut}") for key in figures)]
    columns = [cut for cut in columns if all(f"{name}, {cut}" in figures for name in names)]
    lengths = [key.removesuffix(f", {_COSTS[0]}") for key in figures if key.endswith(f", {_COSTS[0]}")]
    tables = [[["figure", "value"], *([key, f"{value:,.3g}"] for key, value in measured.items())]]
    if names:
        tables.append(
            [
                ["tokens sent", *columns],
                *([name, *(f"{figures[f'{name}, {cut}']:.3f}" for cut in columns)] for name in names),
            ]
        )
    if lengths:
        head = ["tokens", *_COSTS]
        tables.append([head, *([name, *(f"{figures[f'{name}, {cost}']:,.4g}" for cost in _COSTS)] for name in lengths)])
    return "\n\n".join([*(make_table(rows) for rows in tables), describe_source(record)])


def lay_out_query_forms(record: Mapping[str, Any]) -> str:
    """Lay out what searches from the gallery and preferences find, by their weights, split beside split."""
    figures: Mapping[str, float] = record["figures"]
    splits = list(dict.fromkeys(key.split(", ")[0] for key in figures))
    first, end = f"{splits[0]}, ", ", families, R@1"
    ways = [key.removeprefix(first).removesuffix(end) for key in figures if key.startswith(first) and key.endswith(end)]
    rows = [["query", *(f"{split}, R@1 / R@10" for split in splits)]]
    for way in ways:
        recalls = [[f"{figures[f'{split}, {way}, {cut}']:.3f}" for cut in _CUTS] for split in splits]
        rows.append([way, *(" / ".join(cuts) for cuts in recalls)])
    return f"{make_table(rows)}\n\nOver all queries of a split. {describe_source(record)}"
