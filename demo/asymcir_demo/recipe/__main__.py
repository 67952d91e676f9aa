"""Make the demo's assets anew: render, train as `asymcir train` does, write pictures and triplets, export.

The stages are those of the product, with the configurations in demo/training. Each leaves its result below --work and
is skipped when that is there, so an interrupted run goes on where it stopped. What was measured goes to
--work/measured.json. With --served only the light encoder is trained and exported, for an existing server bundle.
"""

import argparse
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from asymcir_benchmarks.results import write_result
from asymcir_common.arguments import ArgumentParser
from asymcir_common.files import write_atomically
from asymcir_common.manifest import digest_file
from asymcir_export.bundles.device import export_device_bundle
from asymcir_export.bundles.server import export_server_bundle
from asymcir_export.bundles.variants import VARIANTS
from asymcir_export.errors import ParityError
from asymcir_export.graphs.weight_storage import WeightStorage
from asymcir_training import load_foundation, load_light_encoder, load_union_head

from asymcir_demo.errors import DemoError
from asymcir_demo.recipe import FOUNDATION_NAME, SOURCES
from asymcir_demo.recipe.assets import write_assets
from asymcir_demo.recipe.concepts import load_concepts
from asymcir_demo.recipe.render import render_styles
from asymcir_demo.recipe.served import write_served_foundation
from asymcir_demo.recipe.splits import assign_splits
from asymcir_demo.recipe.training import CONFIGURATIONS, STAGES, log_file, train
from asymcir_demo.recipe.training_data import write_training_data

_LOG = logging.getLogger(__name__)
_LEAN: tuple[WeightStorage, ...] = ("int8", "fp16")
"""How the weights of the bundles in git are stored: the first that meets the export's thresholds."""


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_demo.recipe", description=__doc__)
    parser.add_argument("--node-modules", type=Path, required=True, help="with the npm packages of the emoji sets")
    parser.add_argument("--work", type=Path, required=True, help="intermediate results, checkpoints and logs")
    parser.add_argument("--out", type=Path, required=True, help="the assets")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="STAGE.KEY=VALUE",
        help="change a configuration, as in distil.run.epochs=0.1",
    )
    parser.add_argument(
        "--served",
        type=Path,
        metavar="SERVER_BUNDLE",
        help="train only the light encoder, for this bundle of the demo: its own foundation is read back from it",
    )
    parser.add_argument("--figures", type=Path, help="write what was measured here as JSON")
    parser.add_argument("--logs", type=Path, help="copy the training logs here")
    parser.add_argument(
        "--all-precisions", action="store_true", help="also write fp32 bundles and Core ML below --work"
    )
    return parser


def main() -> None:
    """Run every stage that is not done yet."""
    parser = build_parser()
    args = parser.parse_args()
    if args.served is not None and args.all_precisions:
        parser.error("--all-precisions writes both bundles: it needs a whole run, without --served")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    for package in ("asymcir_demo", "asymcir_training", "asymcir_export", "__main__"):
        logging.getLogger(package).setLevel(logging.INFO)
    run(args)


def run(args: argparse.Namespace) -> None:
    """Run the stages in order."""
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    changes = _sort_changes(args.set)
    stages = _Stages(work / "measured.json")
    concepts = load_concepts(args.node_modules)
    pictures, trained = work / "pictures", work / "trained"
    stages.run("render", lambda: render_styles(args.node_modules, concepts, pictures))
    concepts = assign_splits(concepts, pictures)
    stages.run("data", lambda: _count(write_training_data(work / "emoji", pictures, concepts)))
    if args.served is not None:
        text = work / "emoji/sentence-encoder"
        stages.run("foundation", lambda: write_served_foundation(args.served, trained / "foundation", text=text))
    names = [name for name in STAGES if args.served is None or name == "distil"]
    for name in names:
        stages.run(name, partial(train, name, work, changes[name]), [*changes[name], _digest_configuration(name)])
    queries = args.out / "queries.zip"  # parity is measured on the held-out ones
    if args.served is None:
        stages.run("assets", lambda: write_assets(pictures, concepts, args.out))
        stages.run("export", lambda: _export(args.out, trained, pictures=queries, lean=True))
    else:
        stages.run("export", lambda: _export_device(args.out, trained, pictures=queries, lean=True))
    _keep_records(stages, work, args, changes, names)
    if args.all_precisions:
        stages.run("export fp32", lambda: _export(work / "bundles-fp32", trained, pictures=queries, lean=False))


def _digest_configuration(name: str) -> str:
    """Name the text of a stage's configuration, so that an edited one is another run."""
    return f"{name}.toml {digest_file(CONFIGURATIONS / f'{name}.toml').sha256[:12]}"


def _sort_changes(changes: Sequence[str]) -> dict[str, list[str]]:
    """Give each training stage its changes."""
    found: dict[str, list[str]] = {name: [] for name in STAGES}
    for change in changes:
        name, _, rest = change.partition(".")
        if name not in found:
            raise DemoError(f"expected a change of {', '.join(found)}, as in distil.run.epochs=0.1, got {change!r}")
        found[name].append(rest)
    return found


def _count(lists: dict[str, int]) -> dict[str, float]:
    return {f"{name}, lines": float(count) for name, count in lists.items()}


def _keep_records(
    stages: "_Stages", work: Path, args: argparse.Namespace, changes: dict[str, list[str]], trained: Sequence[str]
) -> None:
    """Put figures and logs where the repository keeps them."""
    if args.figures is not None:
        command = "make demo-assets" if args.served is None else "make demo-light"
        write_result(args.figures, figures=stages.figures(), command=command)
    if args.logs is not None:
        args.logs.mkdir(parents=True, exist_ok=True)
        for name in trained:
            shutil.copyfile(log_file(name, work, changes[name]), args.logs / f"{name}.jsonl")


def _export(out: Path, trained: Path, *, pictures: Path, lean: bool) -> dict[str, float]:
    """Write both bundles: lean ones to be carried in git, or float32 ones with every variant of the encoder."""
    foundation = load_foundation(f"local-dir:{trained / 'foundation'}")
    foundation.name = FOUNDATION_NAME
    _store_leanest(
        lambda storage: export_server_bundle(
            foundation,
            load_union_head(trained / "union-head")[0],
            out / "server",
            pictures=pictures,
            storage=storage,
            union_storage="int4" if lean else "fp32",
            table_storage=storage,
            sources=SOURCES,
            force=True,
        ),
        _LEAN if lean else ("fp32",),
    )
    size_bytes = _size(out / "server")
    return _export_device(out, trained, pictures=pictures, lean=lean) | {"server_mb": round(size_bytes / 1e6, 2)}


def _export_device(out: Path, trained: Path, *, pictures: Path, lean: bool) -> dict[str, float]:
    """Write the device bundle."""
    encoder, metadata = load_light_encoder(trained / "light-encoder")
    _store_leanest(
        lambda storage: export_device_bundle(
            encoder,
            out / "device",
            word_space=metadata["word_space"],
            foundation=FOUNDATION_NAME,
            pictures=pictures,
            storage=storage,
            variants=() if lean else VARIANTS,
            server=None if lean else out / "server",
            search_set=None if lean else pictures.parent,
            sources=SOURCES,
            force=True,
        ),
        _LEAN if lean else ("fp32",),
    )
    return {"device_mb": round(_size(out / "device") / 1e6, 2)}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*"))


def _store_leanest(export: Callable[[WeightStorage], object], storages: Sequence[WeightStorage]) -> None:
    """Export with the first storage that meets its thresholds: a model that was trained for minutes may need more.

    Raises:
        ParityError: none of them does.
    """
    *leaner, last = storages
    for storage in leaner:
        try:
            export(storage)
        except ParityError as exc:
            _LOG.warning("stored more exactly than as %s: %s", storage, exc.difference)
        else:
            return
    export(last)


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

    def run(self, name: str, stage: Callable[[], dict[str, float] | None], changes: Sequence[str] = ()) -> None:
        """Run a stage that is not recorded yet; the changes to its configuration are recorded with it."""
        if name in self._done:
            before = self._done[name].get("changes")
            if before != [*changes]:
                raise DemoError(
                    f"{self._path} says that stage {name!r} was run with {before}, now asked with {[*changes]}: "
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
            "changes": [*changes],
        }
        write_atomically(self._path, json.dumps(self._done, indent=2) + "\n")
        _LOG.info("%s: %s", name, self._done[name])


if __name__ == "__main__":
    main()
