"""The subcommand `asymcir train`: arguments here, torch inside the handlers.

A stage is configured by a TOML file, by `section.key=value` after --set, and by options for what is asked most often,
which set such keys too. The later wins: file, options, --set.
"""

import argparse
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asymcir_common.arguments import path_name

_COMMON = {
    "out": ("run.out", "folder to write"),
    "work": ("run.work", "states, logs and caches (default: OUT.work)"),
    "epochs": ("run.epochs", "passes over the data"),
    "seed": ("run.seed", "of every random draw"),
    "device": ("run.device", "auto, cpu, cuda or cuda:1"),
    "precision": ("run.precision", "fp32, bf16 or fp16"),
}
_FOUNDATION = {
    "foundation": ("foundation.name", "open_clip model, local-dir:FOLDER, or blip:FOLDER"),
    "pretrained": ("foundation.pretrained", "pretrained tag or checkpoint of that model"),
}
_OPTIONS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "foundation": {
        "start": ("start.name", "open_clip model or local-dir:FOLDER whose visual tower is trained further"),
        "pretrained": ("start.pretrained", "its pretrained tag or checkpoint"),
        "text": ("start.text", "sentence encoder (Hugging Face folder) to lock, for a new visual tower"),
        "trunk": ("start.trunk", "timm model of the new visual tower"),
        "size": ("start.size", "side of the pictures that it sees"),
        "batch": ("align.batch", "pictures of a step"),
    },
    "distil": {
        **_FOUNDATION,
        "backbone": ("student.backbone", "timm model of the light encoder"),
        "size": ("student.size", "side of the pictures that it sees"),
        "sentence-length": ("student.sentence_length", "sentence tokens L"),
        "width": ("student.width", "inner width d of the token learner"),
        "phrases": ("texts.phrases", "text bank for pseudo-captions, one phrase a line"),
        "modifiers": ("texts.modifiers", "changes for composition consistency, one a line"),
        "batch": ("distil.batch", "pictures of a step"),
    },
    "union": {
        **_FOUNDATION,
        "light": ("triplets.light", "checkpoint of the light encoder that asks"),
        "format": ("triplets.format", "auto, jsonl, cirr, lasco, llavasco or sketchy"),
        "images": ("triplets.images", "folder that the list's pictures are in"),
        "batch": ("union.batch", "triplets of a step"),
    },
}
_SWITCHES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "foundation": {
        "pretrained-trunk": ("start.trunk_pretrained", "start the trunk from timm's weights (needs its hub)")
    },
    "distil": {"pretrained-backbone": ("student.pretrained", "start from timm's weights (needs its hub)")},
    "union": {},
}
_COMMON_SWITCHES = {"allow-changes": ("run.allow_changes", "resume although the configuration changed")}
_HELP = {
    "foundation": "align a visual tower to a locked text tower, on captioned pictures",
    "distil": "distil a light encoder from a foundation, on unlabelled pictures",
    "union": "train the UNION head (or TransAgg) from triplets, towers frozen",
}
_INPUTS = {
    "foundation": (
        "data.pictures",
        "PICTURES",
        "*",
        "folders, zips, WebDataset tars or JSON-lines lists, with captions",
    ),
    "distil": ("data.pictures", "PICTURES", "*", "folders, zips, WebDataset tars or JSON-lines lists"),
    "union": (
        "triplets.path",
        "TRIPLETS",
        "?",
        'e.g. JSON lines {"reference": PATH, "modifier": TEXT, "target": PATH}',
    ),
}


def register_train(subparsers: Any) -> None:
    """Add `asymcir train foundation`, `asymcir train distil` and `asymcir train union`."""
    parser = subparsers.add_parser("train", help="train a foundation, the light encoder or the UNION head")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for stage, what in _HELP.items():
        child = stages.add_parser(
            stage,
            help=what,
            description=f"{what[0].upper()}{what[1:]}. An interrupted run goes on where it stopped when it is started "
            "again the same way. On several GPUs: torchrun --nproc-per-node N -m asymcir_edge train ...",
        )
        _, metavar, count, meaning = _INPUTS[stage]
        child.add_argument("inputs", nargs=count, metavar=metavar, help=meaning)
        child.add_argument("--config", type=path_name, help="TOML file; --print-config writes one")
        child.add_argument(
            "--set",
            nargs="+",
            action="extend",
            default=[],
            metavar="KEY=VALUE",
            dest="overrides",
            help="set a key of the configuration, such as run.chunks=8; repeatable",
        )
        child.add_argument("--print-config", action="store_true", help="print every key, its default and its meaning")
        for name, (key, meaning) in {**_OPTIONS[stage], **_COMMON}.items():
            child.add_argument(f"--{name}", metavar=key.rpartition(".")[2].upper(), help=meaning)
        for name, (_, meaning) in {**_SWITCHES[stage], **_COMMON_SWITCHES}.items():
            child.add_argument(f"--{name}", action="store_true", help=meaning)
        child.set_defaults(run=_run, log_level=logging.INFO)


def read_config(args: argparse.Namespace) -> Any:
    """Return the configuration that the arguments of `asymcir train` ask for, of the stage's kind.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown, missing, of the wrong kind or out of its range.
    """
    from asymcir_training.stages.config_files import load_config

    overrides = [*_spell_options(args), *args.overrides]
    return load_config(_kind(args.stage), args.config, overrides, options=_name_options(args.stage))


def _kind(stage: str) -> type[Any]:
    from asymcir_training.stages import sections

    kinds = {"foundation": sections.FoundationRun, "distil": sections.DistilRun, "union": sections.UnionRun}
    return kinds[stage]


def _run(args: argparse.Namespace) -> int:
    from asymcir_training import stages
    from asymcir_training.engine.processes import stop_processes
    from asymcir_training.stages.config_files import render_config

    trainers: dict[str, Callable[[Any], Path]] = {
        "foundation": stages.train_foundation,
        "distil": stages.train_distil,
        "union": stages.train_union,
    }
    if args.print_config:
        print(render_config(_kind(args.stage)), end="")
        return 0
    config = read_config(args)
    try:
        out = trainers[args.stage](config)
    finally:
        stop_processes()
    print(f"{args.stage}: {out}")
    return 0


def _name_options(stage: str) -> dict[str, str]:
    """Return key -> the option, or the argument, that sets it."""
    switches = {**_SWITCHES[stage], **_COMMON_SWITCHES}
    named = {key: f"--{name}" for name, (key, _) in {**_OPTIONS[stage], **_COMMON, **switches}.items()}
    key, argument, *_ = _INPUTS[stage]
    return named | {key: argument}


def _spell_options(args: argparse.Namespace) -> list[str]:
    """Write the options that were given as overrides."""
    found = []
    # As TOML texts: a folder may be named 2026, and what is to be a number is read as one.
    if args.inputs:
        found.append(f"{_INPUTS[args.stage][0]}={json.dumps(args.inputs, ensure_ascii=False)}")
    for name, (key, _) in {**_OPTIONS[args.stage], **_COMMON}.items():
        value = getattr(args, name.replace("-", "_"))
        if value is not None:
            found.append(f"{key}={json.dumps(value, ensure_ascii=False)}")
    for name, (key, _) in {**_SWITCHES[args.stage], **_COMMON_SWITCHES}.items():
        if getattr(args, name.replace("-", "_")):
            found.append(f"{key}=true")
    return found
