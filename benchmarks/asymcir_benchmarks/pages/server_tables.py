"""The tables of the server's towers: sizes and precisions, and what a leaner tower costs in answers."""

from collections.abc import Iterator, Mapping
from typing import Any

from asymcir_benchmarks.pages.markdown import describe_source, make_table

_TOWERS = ("text", "visual")
_COMPUTES = ("fp32", "fp16", "int8")
_HEAD = (
    "model",
    "tower",
    "computes in",
    "M parameters",
    "MB",
    "of it external",
    "least cosine",
    "error to spread",
    "ms",
    "times faster than fp32",
    "peak memory, MB",
    "meets its thresholds",
)


def lay_out_server_sizes(record: Mapping[str, Any]) -> str:
    """A row for each model, tower and precision that was written."""
    figures = record["figures"]
    rows = [list(_HEAD)]
    for name, tower, compute in _find_towers(figures):
        key = f"{name}, {tower}, {compute}"
        weights = "trained" if figures[f"{name}, trained"] else "random"
        rows.append(
            [
                f"{name}, {weights}",
                tower,
                compute,
                f"{figures[f'{name}, {tower}, parameters, M']:,.0f}",
                f"{figures[f'{key}, MB']:,.0f}",
                f"{figures[f'{key}, external data, MB']:,.0f}",
                f"{figures[f'{key}, cosine min']:.5f}",
                f"{figures[f'{key}, error to spread']:.4f}",
                f"{figures[f'{key}, ms']:,.1f}",
                f"{figures[f'{key}, times faster than fp32']:.2f}",
                f"{figures[f'{key}, peak memory of its process, MB']:,.0f}",
                "yes" if figures[f"{key}, passed"] else "**no**",
            ]
        )
    if len(rows) == 1:
        raise KeyError("MODEL, trained")
    return make_table(rows) + f"\n\n{describe_source(record)}"


def lay_out_server_answers(record: Mapping[str, Any]) -> str:
    """A row for each leaner tower whose answers were compared with float32's."""
    figures = record["figures"]
    rows = [["model", "tower", "computes in", "change of R@10", "top ten shared with fp32", "meets its thresholds"]]
    for name, tower, compute in _find_towers(figures):
        key = f"{name}, {tower}, {compute}"
        if f"{key}, recall at 10 change" in figures:
            change, shared = figures[f"{key}, recall at 10 change"], figures[f"{key}, top 10 agreement"]
            passed = "yes" if figures[f"{key}, passed"] else "**no**"
            rows.append([name, tower, compute, f"{change:+.4f}", f"{shared:.1%}", passed])
    if len(rows) == 1:
        raise KeyError("MODEL, TOWER, PRECISION, recall at 10 change")
    return make_table(rows) + f"\n\n{describe_source(record)}"


def _find_towers(figures: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    for name in [key.removesuffix(", trained") for key in figures if key.endswith(", trained")]:
        for tower in _TOWERS:
            for compute in _COMPUTES:
                if f"{name}, {tower}, {compute}, passed" in figures:
                    yield name, tower, compute
