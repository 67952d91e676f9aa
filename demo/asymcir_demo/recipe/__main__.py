"""Make the demo's assets anew: render, align, distil, train UNION, export, write pictures and triplets.

Each stage leaves its result below --work and is skipped when that is there, so an interrupted run goes on where it
stopped. What was measured goes to --work/measured.json and from there into demo/README.md.
"""

import argparse
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from asymcir_benchmarks.results import write_result
from asymcir_common.arguments import MAX_REPEATS, ArgumentParser, whole_number
from asymcir_common.files import write_atomically
from asymcir_export.bundles.device import export_device_bundle
from asymcir_export.bundles.server import export_server_bundle
from asymcir_export.bundles.variants import VARIANTS
from asymcir_training import load_foundation, load_light_encoder, load_union_head

from asymcir_demo.errors import DemoError
from asymcir_demo.recipe import SOURCES
from asymcir_demo.recipe.assets import write_assets
from asymcir_demo.recipe.concepts import load_concepts
from asymcir_demo.recipe.foundation import align, initialise
from asymcir_demo.recipe.fusion import train_fusion
from asymcir_demo.recipe.render import render_styles
from asymcir_demo.recipe.splits import assign_splits
from asymcir_demo.recipe.student import distil_student

_LOG = logging.getLogger(__name__)


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_demo.recipe", description=__doc__)
    parser.add_argument("--node-modules", type=Path, required=True, help="with the npm packages of the emoji sets")
    parser.add_argument("--work", type=Path, required=True, help="intermediate results, checkpoints and logs")
    parser.add_argument("--out", type=Path, required=True, help="the assets")
    parser.add_argument("--align-epochs", type=whole_number(1, MAX_REPEATS), default=13)
    parser.add_argument("--distil-epochs", type=whole_number(1, MAX_REPEATS), default=4)
    parser.add_argument("--union-epochs", type=whole_number(1, MAX_REPEATS), default=3)
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0)
    parser.add_argument("--figures", type=Path, help="write what was measured here as JSON")
    parser.add_argument("--logs", type=Path, help="copy the training logs here")
    parser.add_argument(
        "--all-precisions", action="store_true", help="also write fp32 bundles and Core ML below --work"
    )
    return parser


def main() -> None:
    """Run every stage that is not done yet."""
    args = build_parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    for package in ("asymcir_demo", "asymcir_training", "asymcir_export", "__main__"):
        logging.getLogger(package).setLevel(logging.INFO)
    run(args)


def run(args: argparse.Namespace) -> None:
    """Run the stages in order."""
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    stages = _Stages(work / "measured.json")
    concepts = load_concepts(args.node_modules)
    pictures, foundation = work / "pictures", work / "foundation"
    student, union = work / "light-encoder", work / "union-head"
    queries = args.out / "queries"  # parity is measured on the held-out ones
    stages.run("render", lambda: render_styles(args.node_modules, concepts, pictures))
    concepts = assign_splits(concepts, pictures)
    stages.run("initialise", lambda: initialise(foundation))
    stages.run(
        "align",
        lambda: align(foundation, pictures, concepts, epochs=args.align_epochs, seed=args.seed, work=work / "align"),
        epochs=args.align_epochs,
        seed=args.seed,
    )
    stages.run(
        "distil",
        lambda: distil_student(
            foundation, pictures, concepts, epochs=args.distil_epochs, seed=args.seed, work=work / "distil", out=student
        ),
        epochs=args.distil_epochs,
        seed=args.seed,
    )
    stages.run(
        "union",
        lambda: train_fusion(
            foundation,
            student,
            pictures,
            concepts,
            epochs=args.union_epochs,
            seed=args.seed,
            work=work / "union",
            out=union,
        ),
        epochs=args.union_epochs,
        seed=args.seed,
    )
    stages.run("assets", lambda: write_assets(pictures, concepts, args.out))
    stages.run("export", lambda: _export(args.out, foundation, student, union, pictures=queries, lean=True))
    _keep_records(stages, work, args)
    if args.all_precisions:
        stages.run(
            "export fp32",
            lambda: _export(work / "bundles-fp32", foundation, student, union, pictures=queries, lean=False),
        )


def _keep_records(stages: "_Stages", work: Path, args: argparse.Namespace) -> None:
    """Put figures and logs where the repository keeps them."""
    if args.figures is not None:
        write_result(args.figures, figures=stages.figures(), command="make demo-assets")
    if args.logs is not None:
        args.logs.mkdir(parents=True, exist_ok=True)
        for stage in ("align", "distil", "union"):
            shutil.copyfile(work / stage / "log.jsonl", args.logs / f"{stage}.jsonl")


def _export(
    out: Path, foundation_folder: Path, student: Path, union: Path, *, pictures: Path, lean: bool
) -> dict[str, float]:
    """Write both bundles: lean ones to be carried in git, or float32 ones with every variant of the encoder."""
    encoder, metadata = load_light_encoder(student)
    foundation = load_foundation(f"local-dir:{foundation_folder}")
    foundation.name = metadata["foundation"]
    export_server_bundle(
        foundation,
        load_union_head(union)[0],
        out / "server",
        pictures=pictures,
        storage="int8" if lean else "fp32",
        union_storage="int4" if lean else "fp32",
        table_storage="int8" if lean else "fp32",
        sources=SOURCES,
        force=True,
    )
    export_device_bundle(
        encoder,
        out / "device",
        word_space=metadata["word_space"],
        foundation=metadata["foundation"],
        pictures=pictures,
        storage="int8" if lean else "fp32",
        variants=() if lean else VARIANTS,
        server=None if lean else out / "server",
        search_set=None if lean else pictures.parent,
        sources=SOURCES,
        force=True,
    )
    sizes = {name: sum(file.stat().st_size for file in (out / name).rglob("*")) for name in ("device", "server")}
    return {f"{name}_mb": round(size / 1e6, 2) for name, size in sizes.items()}


class _Stages:
    """Runs each stage once and keeps what it measured and how long it took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def figures(self) -> dict[str, float]:
        """Return "STAGE, FIGURE" -> number of every stage."""
        return {
            f"{stage}, {name}": value
            for stage, measured in self._done.items()
            for name, value in measured.items()
            if isinstance(value, int | float)
        }

    def run(self, name: str, stage: Callable[[], dict[str, float] | None], **arguments: int) -> None:
        """Run a stage that is not recorded yet; its arguments are recorded with it."""
        if name in self._done:
            before = self._done[name].get("arguments")
            if before != arguments:
                raise DemoError(
                    f"{self._path} says that stage {name!r} was run with {before}, now asked with {arguments}: "
                    "pass another --work, or remove this one"
                )
            _LOG.info("%s: done before", name)
            return
        started_s = time.monotonic()
        _LOG.info("%s: started", name)
        measured = stage() or {}
        machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
        self._done[name] = {
            **measured,
            "seconds": round(time.monotonic() - started_s, 1),
            "machine": machine,
            "arguments": arguments,
        }
        write_atomically(self._path, json.dumps(self._done, indent=2) + "\n")
        _LOG.info("%s: %s", name, self._done[name])


if __name__ == "__main__":
    main()
