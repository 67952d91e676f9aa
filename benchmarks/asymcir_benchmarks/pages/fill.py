"""Fill the tables in the Markdown pages from `benchmarks/results/*.json`: `python -m asymcir_benchmarks.pages.fill
[--check]`.

A page marks a table with `<!-- figures NAME -->` and `<!-- end -->`; what stands between is replaced, so no figure of
these tables is typed by hand.
"""

import functools
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asymcir_common.arguments import ArgumentParser

from asymcir_benchmarks.emojicir.evaluate import CUTS, METHODS
from asymcir_benchmarks.emojicir.protocol import SKETCH_METHODS, TARGETS
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.pages.commands_table import lay_out_commands
from asymcir_benchmarks.pages.device_tables import (
    lay_out_arm,
    lay_out_backbones,
    lay_out_goals,
    lay_out_selftest,
    lay_out_web,
)
from asymcir_benchmarks.pages.emojicir_tables import SKETCH_FIGURES, TARGET_FIGURES
from asymcir_benchmarks.pages.gallery_tables import lay_out_changes, lay_out_indexes
from asymcir_benchmarks.pages.markdown import describe_source, make_table
from asymcir_benchmarks.pages.server_tables import lay_out_server_answers, lay_out_server_sizes
from asymcir_benchmarks.pages.summary_table import SUMMARY_RESULTS, lay_out_summary
from asymcir_benchmarks.pages.token_tables import lay_out_query_forms, lay_out_tokens
from asymcir_benchmarks.pages.training_tables import lay_out_training_millions

PAGES = (Path("README.md"), Path("demo/README.md"))
OPTIONAL_PAGES = (
    Path("training/RESULTS.md"),
    Path("benchmarks/README.md"),
    Path("docs/backbones.md"),
    Path("docs/commands.md"),
    Path("docs/evaluation.md"),
    Path("docs/indexes.md"),
    Path("docs/raspberry-pi.md"),
    Path("docs/serve.md"),
    Path("docs/server-sizes.md"),
    Path("docs/training.md"),
    Path("docs/web.md"),
)
"""Filled where they are there."""
RESULTS = Path("benchmarks/results")
ABLATION_BASELINES = ("picture only", "picture + text", "target's name")
_GOAL_SUFFIX = re.compile(r" (?:low|high)$|, (?:above|at least|at most|reached)$")
_BLOCK = re.compile(r"(<!-- figures (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_COMMANDS = re.compile(r"(<!-- commands -->\n).*?(<!-- end -->)", re.DOTALL)


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.pages.fill", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a page is stale")
    parser.add_argument("--root", type=Path, default=Path(), help="of the repository")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Rewrite the pages, or with --check report those that are stale."""
    args = build_parser().parse_args(argv)
    stale = []
    for page in (*PAGES, *(page for page in OPTIONAL_PAGES if (args.root / page).is_file())):
        path = args.root / page
        text = path.read_text(encoding="utf-8")
        filled = fill(text, args.root / RESULTS)
        if filled != text:
            stale.append(str(page))
            if not args.check:
                path.write_text(filled, encoding="utf-8")
    for name in stale:
        print(f"{name}: {'stale' if args.check else 'updated'}", file=sys.stderr)  # noqa: T201
    return 1 if stale and args.check else 0


def fill(text: str, results: Path) -> str:
    """Replace every marked table of a page, and the marked list of commands."""

    def replace(match: "re.Match[str]") -> str:
        name = match["name"]
        if name not in _TABLES:
            raise BenchmarkError(f"no table {name!r}: expected one of {', '.join(_TABLES)}")
        files, table = _TABLES[name]
        paths = [results / file for file in ([files] if isinstance(files, str) else files)]
        try:
            records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
            return f"{match[1]}{table(*records)}\n{match[3]}"
        except OSError as exc:
            raise BenchmarkError(f"no results for the table {name!r}: cannot read {exc.filename}") from exc
        except KeyError as exc:
            named = ", ".join(map(str, paths))
            raise BenchmarkError(f"{named} lacks {exc} for the table {name!r}: measure again") from exc

    filled = _BLOCK.sub(replace, text)
    return _COMMANDS.sub(lambda match: f"{match[1]}{lay_out_commands()}\n{match[2]}", filled)


def _composed(record: Mapping[str, Any], prefix: str) -> str:
    figures = record["figures"]
    rows = [["query", *(f"R@{k}" for k in CUTS), f"95% of R@{max(CUTS)}"]]
    for method in METHODS:
        key = f"{prefix}, {method}, all, R@{max(CUTS)}"
        recalls = [f"{figures[f'{prefix}, {method}, all, R@{k}']:.3f}" for k in CUTS]
        rows.append([method, *recalls, _interval(figures, key)])
    return make_table(rows) + f"\n\n{describe_source(record)}"


def _families(record: Mapping[str, Any], prefix: str, cuts: tuple[int, ...]) -> str:
    figures = record["figures"]
    families = [key.removeprefix(f"{prefix} of ") for key in figures if key.startswith(f"{prefix} of ")]
    rows = [[f"{' / '.join(f'R@{k}' for k in cuts)} by family", *METHODS]]
    for family in families:
        recalls = [
            " / ".join(f"{figures[f'{prefix}, {method}, {family}, R@{k}']:.3f}" for k in cuts) for method in METHODS
        ]
        rows.append([f"{family} ({figures[f'{prefix} of {family}']:.0f})", *recalls])
    return make_table(rows) + f"\n\n{describe_source(record)}"


def _emojicir_goals(record: Mapping[str, Any]) -> str:
    """Lay out the goals: a value that could not be written (a ratio over zero) is a dash."""
    figures = record["figures"]
    rows = [["figure", "of", "value", "95%", "target", "reached"]]
    for key in dict.fromkeys(_GOAL_SUFFIX.sub("", key) for key in figures if key.startswith("goals of ")):
        scope, _, name = key.removeprefix("goals of ").partition(", ")
        bounds = [word for word in ("above", "at least", "at most") if f"{key}, {word}" in figures]
        target = f"{bounds[0]} {figures[f'{key}, {bounds[0]}']:g}" if bounds else "-"
        reached = {1.0: "yes", 0.0: "**no**", None: "-"}[figures.get(f"{key}, reached")]
        value = f"{figures[key]:.3f}" if key in figures else "-"
        interval = _interval(figures, key) if f"{key} low" in figures else "-"
        rows.append([name, scope, value, interval, target, reached])
    if len(rows) == 1:
        raise KeyError("goals of ...")
    return make_table(rows) + f"\n\n{describe_source(record)}"


def _emojicir_sketches(record: Mapping[str, Any]) -> str:
    figures = record["figures"]
    splits = _splits_with(figures, "sketches")
    rows = [["query", "of", *SKETCH_FIGURES]]
    for split in splits:
        for method in SKETCH_METHODS:
            values = [f"{figures[f'{split} sketches, {method}, {name}']:.3f}" for name in SKETCH_FIGURES]
            rows.append([method, f"{split} ({figures[f'{split} sketches']:.0f})", *values])
    return make_table(rows) + f"\n\n{describe_source(record)}"


def _emojicir_targets(record: Mapping[str, Any]) -> str:
    figures = record["figures"]
    rows = [["target", "of", *TARGET_FIGURES]]
    for split in _splits_with(figures, "sketches"):
        for target in TARGETS:
            values = [f"{figures[f'{split} targets, {target}, {name}']:.3f}" for name in TARGET_FIGURES]
            rows.append([target, split, *values])
        for other in TARGETS[1:]:
            keys = [f"{split} targets, {TARGETS[0]} - {other}, {name}" for name in TARGET_FIGURES]
            values = [f"{figures[key]:+.3f} ({_interval(figures, key, '+.3f')})" for key in keys]
            rows.append([f"{TARGETS[0]} - {other}", split, *values])
    return make_table(rows) + f"\n\n{describe_source(record)}"


def _splits_with(figures: Mapping[str, float], part: str) -> list[str]:
    splits = [key.removesuffix(f" {part}") for key in figures if key.endswith(f" {part}")]
    if not splits:
        raise KeyError(f"SPLIT {part}")
    return splits


def _interval(figures: Mapping[str, float], key: str, form: str = ".3f") -> str:
    return f"{figures[f'{key} low']:{form}} to {figures[f'{key} high']:{form}}"


def _ablation(record: Mapping[str, Any]) -> str:
    """Lay out a row per variant, then the baselines; a figure that a row does not have is a dash."""
    figures = record["figures"]
    rows = [["distillation", "seeds", "composed, R@10", "composed, R@1", "tokens to its own concept, R@10"]]
    for name in (key.removesuffix(", seeds") for key in figures if key.endswith(", seeds")):
        found = f"{figures[f'{name}, composed, R@10']:.3f}"
        deviation = figures.get(f"{name}, composed, R@10, standard deviation")
        if deviation is not None:
            found += f" ± {deviation:.3f}"
        first, own = figures[f"{name}, composed, R@1"], figures[f"{name}, tokens to its own concept, R@10"]
        rows.append([name, f"{figures[f'{name}, seeds']:.0f}", found, f"{first:.3f}", f"{own:.3f}"])
    if len(rows) == 1:
        raise KeyError("ROW, seeds")
    for name in ABLATION_BASELINES:
        keys = [f"baseline, {name}, R@10", f"baseline, {name}, R@1"]
        if name == "picture only":
            keys.append("baseline, picture to its own concept, R@10")
        cells = [f"{figures[key]:.3f}" if key in figures else "-" for key in keys]
        if any(cell != "-" for cell in cells):
            rows.append([f"baseline: {name}", "-", *cells, *["-"] * (3 - len(cells))])
    return make_table(rows) + f"\n\n{describe_source(record)}"


def _run(record: Mapping[str, Any]) -> str:
    figures = record["figures"]
    keys = (
        "pictures in the gallery",
        "gallery build, pictures/s",
        "query on the wire, bytes",
        "demo, s",
        "peak memory, MB",
    )
    return make_table([["", ""], *([key, f"{figures[key]:,.0f}"] for key in keys)]) + f"\n\n{describe_source(record)}"


def _recipe(record: Mapping[str, Any]) -> str:
    rows = [["figure", "value"]]
    for key, value in record["figures"].items():
        rows.append([key, f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"])
    return make_table(rows) + f"\n\n{describe_source(record)}"


_TABLES: dict[str, tuple[str | tuple[str, ...], Callable[..., str]]] = {
    "summary": (SUMMARY_RESULTS, lay_out_summary),
    "run": ("demo.json", _run),
    "recipe": ("demo-recipe.json", _recipe),
    **{
        f"emojicir-{split}": ("emojicir.json", functools.partial(_composed, prefix=f"{split} triplets"))
        for split in ("test", "novel")
    },
    **{
        f"emojicir-{split}-families": (
            "emojicir.json",
            functools.partial(_families, prefix=f"{split} triplets", cuts=(10, 1)),
        )
        for split in ("test", "novel")
    },
    "ablation": ("ablation.json", _ablation),
    "backbones": ("device.json", lay_out_backbones),
    "device-goals": ("device.json", lay_out_goals),
    "arm": ("arm.json", lay_out_arm),
    "web": ("web.json", lay_out_web),
    "arm-selftest": ("arm-selftest.json", lay_out_selftest),
    "server-sizes": ("server-sizes.json", lay_out_server_sizes),
    "server-answers": ("server-sizes.json", lay_out_server_answers),
    "indexes": ("gallery.json", lay_out_indexes),
    "gallery-changes": ("gallery-changes.json", lay_out_changes),
    "query-forms": ("query-forms.json", lay_out_query_forms),
    "tokens": ("tokens.json", lay_out_tokens),
    "training": ("training.json", _recipe),
    "training-millions": ("training.json", lay_out_training_millions),
    "emojicir-goals": ("emojicir.json", _emojicir_goals),
    "emojicir-sketches": ("emojicir.json", _emojicir_sketches),
    "emojicir-targets": ("emojicir.json", _emojicir_targets),
}

if __name__ == "__main__":
    sys.exit(main())
