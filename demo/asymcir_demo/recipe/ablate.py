"""What each loss is worth: the same short distillation with and without it, measured on the dev split.

`python -m asymcir_demo.recipe.ablate` trains the token learner on the frozen trunk of the aligned foundation, so that
every row is minutes and not an hour; the recipe's own run trains through. Rows that decide run with three seeds.
"""

import argparse
import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_benchmarks.results import write_result
from asymcir_common.arguments import MAX_REPEATS, MAX_THREADS, ArgumentParser, whole_number
from asymcir_common.files import write_atomically
from asymcir_common.manifest import digest_file
from asymcir_training import Foundation, load_foundation, load_light_encoder
from asymcir_training.foundation.digests import digest

from asymcir_demo.recipe.concepts import Concept, load_concepts
from asymcir_demo.recipe.quality import SearchSet
from asymcir_demo.recipe.splits import assign_splits
from asymcir_demo.recipe.training import CONFIGURATIONS, train

BASE: dict[str, Any] = {
    "batch": 64,
    "gcd_weight": 1.0,
    "lar_weight": 0.0,
    "consistency_weight": 0.0,
    "identity_weight": 0.0,
    "frozen": ["conv_stem", "bn1", "blocks", "conv_head", "bn2"],  # the trunk
}
_CONSISTENT = {**BASE, "consistency_weight": 1.0}
ROWS = {
    "GCD": BASE,
    "GCD + LAR": {**BASE, "lar_weight": 0.5},
    "GCD + consistency": _CONSISTENT,
    "GCD + LAR + consistency": {**_CONSISTENT, "lar_weight": 0.5},
    "GCD + consistency + identity": {**_CONSISTENT, "identity_weight": 0.5},
}
"""Row -> what it changes in demo/training/distil.toml."""
SEEDS = {"GCD": 3, "GCD + consistency": 3, "GCD + LAR + consistency": 3}
"""Row -> seeds; the others run once."""
_LISTS = ("unlabeled.jsonl", "phrases.txt", "modifiers.txt")
_LOG = logging.getLogger(__name__)


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_demo.recipe.ablate", description=__doc__)
    parser.add_argument("--node-modules", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="of the recipe, its foundation aligned")
    parser.add_argument("--steps", type=whole_number(1, MAX_REPEATS), default=120)
    parser.add_argument(
        "--jobs", type=whole_number(1, MAX_THREADS), default=2, help="runs at a time, one thread each (default: 2)"
    )
    parser.add_argument(
        "--seeds", type=whole_number(1, MAX_REPEATS), default=max(SEEDS.values()), help="at most so many seeds a row"
    )
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    return parser


def main() -> None:
    """Run every row that is not done yet and write what it reaches."""
    args = build_parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    runs = [(name, seed) for name in args.rows for seed in range(min(args.seeds, SEEDS.get(name, 1)))]
    args.folder = _find_folder(args)
    baselines = _measure_baselines(args)
    runs.sort(key=lambda run: run[1])  # every row once, before any row again
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        measured = list(pool.map(_run, runs, [args] * len(runs)))
    figures: dict[str, float] = {"steps": float(args.steps), "batch": float(BASE["batch"])}
    for name in args.rows:
        rows = [values for (row, _), values in zip(runs, measured, strict=True) if row == name]
        figures[f"{name}, seeds"] = float(len(rows))
        for key in rows[0]:
            values = np.array([row[key] for row in rows])
            figures[f"{name}, {key}"] = round(float(values.mean()), 4)
            if len(rows) > 1:
                figures[f"{name}, {key}, standard deviation"] = round(float(values.std(ddof=1)), 4)
    figures |= {f"baseline, {key}": round(value, 4) for key, value in baselines.items()}
    named = "" if args.rows == list(ROWS) else " --rows " + " ".join(f'"{name}"' for name in args.rows)
    write_result(
        args.out,
        figures=figures,
        command=f"python -m asymcir_demo.recipe.ablate --steps {args.steps} --seeds {args.seeds}{named}",
    )


def _run(run: tuple[str, int], args: argparse.Namespace) -> dict[str, float]:
    """Train and measure one row with one seed, in a process of its own."""
    name, seed = run
    folder = args.folder / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    done = folder / "measured.json"
    if done.is_file():
        found: dict[str, float] = json.loads(done.read_text(encoding="utf-8"))
        return found
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with (args.work / "emoji/unlabeled.jsonl").open(encoding="utf-8") as stream:
        steps_of_epoch = sum(1 for _ in stream) // BASE["batch"]
    run_settings = {
        "out": str(folder / "light-encoder"),
        "epochs": args.steps / steps_of_epoch,
        "seed": seed,
        "device": "cpu",
        "log_every": 50,
        "validate_every": 0,
    }
    changes = [f"run.{key}={json.dumps(value)}" for key, value in run_settings.items()]
    changes += [f"distil.{key}={json.dumps(value)}" for key, value in ROWS[name].items()]
    train("distil", args.work, [*changes, "data.workers=0", f"data.cache={args.folder / 'teacher'}"])
    concepts, foundation = _load(args)
    dev = SearchSet.load(foundation, args.work, concepts, "dev", args.folder / "teacher")
    measured = dev.measure_student(foundation, load_light_encoder(folder / "light-encoder")[0])
    _LOG.info("%s, seed %d: %s", name, seed, measured)
    write_atomically(done, json.dumps(measured, indent=2) + "\n")
    return measured


def _load(args: argparse.Namespace) -> tuple[list[Concept], Foundation]:
    """Load the concepts with their splits, and the frozen foundation."""
    concepts = assign_splits(load_concepts(args.node_modules), args.work / "pictures")
    return concepts, load_foundation(f"local-dir:{args.work / 'trained/foundation'}")


def _find_folder(args: argparse.Namespace) -> Path:
    """Return where runs of these steps, on these concepts, with this foundation are kept."""
    concepts = assign_splits(load_concepts(args.node_modules), args.work / "pictures")
    facts = {
        "steps": args.steps,
        "concepts": {concept.slug: concept.split for concept in concepts},
        "configuration": (CONFIGURATIONS / "distil.toml").read_text(encoding="utf-8"),
        "rows": ROWS,
        "lists": {name: digest_file(args.work / "emoji" / name).sha256 for name in _LISTS},
    }
    weights = digest_file(args.work / "trained/foundation/open_clip_model.safetensors").sha256
    return Path(args.work) / "ablation" / digest(weights={}, facts={**facts, "foundation": weights})[:12]


def _measure_baselines(args: argparse.Namespace) -> dict[str, float]:
    """Measure what needs no student, once for all rows."""
    done = args.folder / "baselines.json"
    if done.is_file():
        found: dict[str, float] = json.loads(done.read_text(encoding="utf-8"))
        return found
    concepts, foundation = _load(args)
    cache = args.folder / "teacher"
    measured = SearchSet.load(foundation, args.work, concepts, "dev", cache).measure_foundation(foundation, cache)
    write_atomically(done, json.dumps(measured, indent=2) + "\n")
    return measured


if __name__ == "__main__":
    main()
