"""Fill the tables in the Markdown pages from `benchmarks/results/*.json`: `python -m asymcir_benchmarks.docs
[--check]`.

A page marks a table with `<!-- figures NAME -->` and `<!-- end -->`; what stands between is replaced, so no figure of
these tables is typed by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.evaluate import CUTS, METHODS

PAGES = (Path("README.md"), Path("demo/README.md"))
RESULTS = Path("benchmarks/results")
_BLOCK = re.compile(r"(<!-- figures (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(argv: list[str] | None = None) -> int:
    """Rewrite the pages, or with --check report those that are stale."""
    parser = argparse.ArgumentParser(prog="python -m asymcir_benchmarks.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a page is stale")
    parser.add_argument("--root", type=Path, default=Path(), help="of the repository")
    args = parser.parse_args(argv)
    stale = []
    for page in PAGES:
        path = args.root / page
        text = path.read_text(encoding="utf-8")
        filled = fill(text, args.root / RESULTS)
        if filled != text:
            stale.append(str(page))
            if not args.check:
                path.write_text(filled, encoding="utf-8")
    for page in stale:
        print(f"{page}: {'stale' if args.check else 'updated'}", file=sys.stderr)  # noqa: T201
    return 1 if stale and args.check else 0


def fill(text: str, results: Path) -> str:
    """Replace every marked table of a page."""

    def replace(match: "re.Match[str]") -> str:
        name = match["name"]
        if name not in _TABLES:
            raise BenchmarkError(f"no table {name!r}: expected one of {', '.join(_TABLES)}")
        file, table = _TABLES[name]
        record = json.loads((results / file).read_text(encoding="utf-8"))
        return f"{match[1]}{table(record)}\n{match[3]}"

    return _BLOCK.sub(replace, text)


def _composed(record: Mapping[str, Any]) -> str:
    figures = record["figures"]
    rows = [["query", *(f"R@{k}" for k in CUTS), f"95% of R@{max(CUTS)}"]]
    for method in METHODS:
        key = f"triplets, {method}, all, R@"
        low, high = figures[f"{key}{max(CUTS)} low"], figures[f"{key}{max(CUTS)} high"]
        rows.append([method, *(f"{figures[f'{key}{k}']:.3f}" for k in CUTS), f"{low:.3f} to {high:.3f}"])
    return _markdown(rows) + f"\n\n{_source(record)}"


def _families(record: Mapping[str, Any]) -> str:
    figures = record["figures"]
    families = [key.removeprefix("triplets of ") for key in figures if key.startswith("triplets of ")]
    rows = [["R@10 by family", *METHODS]]
    for family in families:
        recalls = [f"{figures[f'triplets, {method}, {family}, R@10']:.3f}" for method in METHODS]
        rows.append([f"{family} ({figures[f'triplets of {family}']:.0f})", *recalls])
    return _markdown(rows) + f"\n\n{_source(record)}"


def _sketches(record: Mapping[str, Any]) -> str:
    figures = record["figures"]
    rows = [["sketch, encoded by", *(f"R@{k}" for k in CUTS)]]
    for method, label in (
        ("tokens only", "the device's light encoder"),
        ("picture only", "the server's visual encoder"),
    ):
        rows.append([label, *(f"{figures[f'sketches, {method}, picture, R@{k}']:.3f}" for k in CUTS)])
    return _markdown(rows) + f"\n\n{_source(record)}"


def _run(record: Mapping[str, Any]) -> str:
    figures = record["figures"]
    keys = (
        "pictures in the gallery",
        "gallery build, pictures/s",
        "query on the wire, bytes",
        "demo, s",
        "peak memory, MB",
    )
    return _markdown([["", ""], *([key, f"{figures[key]:,.0f}"] for key in keys)]) + f"\n\n{_source(record)}"


def _recipe(record: Mapping[str, Any]) -> str:
    rows = [["figure", "value"]]
    for key, value in record["figures"].items():
        rows.append([key, f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"])
    return _markdown(rows) + f"\n\n{_source(record)}"


def _source(record: Mapping[str, Any]) -> str:
    return f"`{record['command']}`, {record['date']}, {record['machine']}."


def _markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_TABLES: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "composed": ("demo.json", _composed),
    "families": ("demo.json", _families),
    "sketches": ("demo.json", _sketches),
    "run": ("demo.json", _run),
    "recipe": ("demo-recipe.json", _recipe),
}

if __name__ == "__main__":
    sys.exit(main())
