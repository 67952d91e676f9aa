"""Server towers of every size and precision: what each weighs, and whether it answers as PyTorch does.

    python -m asymcir_benchmarks.costs.server_bundles --out FOLDER --pictures FOLDER [--models NAME ...]
        [--foundation NAME --name NAME --union CHECKPOINT --device-bundle FOLDER --search-set FOLDER]

An open_clip architecture comes with random weights: its size, its speed and the path that it takes do not need trained
ones. The foundation is a trained one, with which R@10 is measured as well. Each is written as a server bundle in
float32, as `asymcir export server` writes it; beside it a bundle for each leaner precision, whose towers are made from
the first one's. `asymcir_benchmarks.costs.server_timing` times what is written here.

A bundle that misses its thresholds is kept, to be timed, and its record says so; `asymcir export server` would not
write it.
"""

import functools
import gc
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import open_clip
import torch
from asymcir_common import AsymcirError, preprocess, read_manifest, write_manifest
from asymcir_common.arguments import ArgumentParser, add_device_bundle
from asymcir_common.files import write_atomically
from asymcir_common.manifest import SERVER_BUNDLE
from asymcir_common.places import PathReader, find_pictures
from asymcir_edge import QueryEncoder
from asymcir_export.bundles.server import TEXT_FILE, VISUAL_FILE, export_server_bundle
from asymcir_export.checks.agreement import Thresholds, check_agreement
from asymcir_export.checks.parity import load_pictures, storage_thresholds
from asymcir_export.checks.search_set import MAX_RECALL_LOSS, SearchSet, compare_answers
from asymcir_export.checks.server_answers import encode_pictures, open_device
from asymcir_export.errors import ExportError
from asymcir_export.graphs.writer import write_onnx
from asymcir_export.int8.quantize import COMPUTES, TOLERANCE, Compute, set_compute
from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.text_encoder import TextEncoder
from asymcir_server.encode.visual import VisualEncoder
from asymcir_training import Foundation, UnionHead, load_foundation, load_union_head
from numpy.typing import NDArray

MODELS = ("ViT-B-32", "ViT-L-14", "ViT-H-14")
FACTS_FILE = "server-sizes.json"
TOWERS: Mapping[str, str] = {"text": TEXT_FILE, "visual": VISUAL_FILE}

PICTURES = 4
"""To compare on; a picture through ViT-H/14's visual tower takes seconds on one thread."""

CALIBRATION = 64
"""Pictures to calibrate the static int8 of a convolutional visual tower on."""

_MODIFIERS = (
    "",
    "is red",
    "has a blue hat",
    "looks like a line drawing",
    "is crying",
    "at night",
    "is old",
    "two of them",
)
_SENTENCE_LENGTH = 6
_ANY = Thresholds(cosine_min=-np.inf, cosine_mean=-np.inf, error_to_spread=np.inf)
_SEED = 0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reference:
    """What goes into the towers, and what PyTorch's give for it.

    Attributes:
        tokens: [b, L, D], sentence tokens made of words, one for each of _MODIFIERS.
        squares: [1, S, S, 3] uint8 each.
        expected: tower -> [.., E], features.
    """

    tokens: NDArray[np.float32]
    squares: Sequence[NDArray[np.uint8]]
    expected: Mapping[str, NDArray[np.float32]]


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.costs.server_bundles", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder for each model is written below it")
    parser.add_argument("--pictures", type=Path, required=True, help="to compare and to calibrate int8 on")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="open_clip architectures to build randomly")
    parser.add_argument("--foundation", help="a trained one: an open_clip model, or local-dir:FOLDER")
    parser.add_argument("--name", help="of the trained one's folder (default: its own name)")
    parser.add_argument("--pretrained", help="its pretrained tag or checkpoint")
    parser.add_argument("--union", type=Path, help="its trained UNION head")
    add_device_bundle(
        parser, required=False, help="the trained one's device bundle, to read the search set's pictures with"
    )
    parser.add_argument("--search-set", type=Path, help="queries and gallery to measure its R@10 with")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write every model that is not there yet, and what was found."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.foundation and not args.union:
        parser.error("--foundation needs --union")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _LOG.setLevel(logging.INFO)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if args.foundation:
            folder = args.out / (args.name or Path(args.foundation.removeprefix("local-dir:")).name)
            if not (folder / FACTS_FILE).is_file():
                facts = write_model(lambda: _load(args.foundation, args.pretrained, args.union), folder, args.pictures)
                if args.search_set:
                    word_space = read_manifest(folder / "fp32", format=SERVER_BUNDLE).require("word_space")
                    reader = open_device(args.device_bundle, args.search_set, word_space)
                    measure_answers(folder, facts, args.search_set, reader)
                _finish(folder, facts | {"weights": "trained"})
        for name in args.models:
            folder = args.out / name
            if not (folder / FACTS_FILE).is_file():
                facts = write_model(functools.partial(build_random, name), folder, args.pictures)
                _finish(folder, facts | {"weights": "random"})
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _load(name: str, pretrained: str | None, union: Path) -> tuple[Foundation, UnionHead]:
    return load_foundation(name, pretrained), load_union_head(union)[0].eval()


def build_random(name: str) -> tuple[Foundation, UnionHead]:
    """Build a foundation of random weights and a UNION head for it.

    Args:
        name: an open_clip architecture.

    Raises:
        ExportError: open_clip has no such architecture.
    """
    if name not in open_clip.list_models():
        raise ExportError(f"unknown architecture {name!r}: see open_clip.list_models()")
    torch.manual_seed(_SEED)
    foundation = Foundation(name, open_clip.create_model(name), open_clip.get_tokenizer(name))
    return foundation, UnionHead(foundation.embedding_width).eval()


def write_model(build: Callable[[], tuple[Foundation, UnionHead]], folder: Path, pictures: Path) -> dict[str, Any]:
    """Write `fp32`, `fp16` and `int8`, server bundles of one foundation, and compare their towers with PyTorch.

    Args:
        build: makes the foundation and a UNION head for it; they are let go before the leaner bundles are made, so that
            memory holds a large model once.
        folder: to write to; replaced.
        pictures: a folder, to compare and to calibrate on.

    Returns:
        `parameters_text`, `parameters_visual`, `causal`, `context_length`, `word_width`, `size` in pixels, and in
        `computes` by precision and tower `size_mb`, `external_mb`, what `check_agreement` measures, and `passed`; or
        `reason` where it could not be made.

    Raises:
        ExportError: the float32 bundle cannot be written, or fewer than two pictures.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    facts, reference = _write_original(*build(), folder / "fp32", pictures)
    for compute in COMPUTES:
        gc.collect()
        _LOG.info("%s: %s", folder.name, compute)
        try:
            if compute != "fp32":
                spec = ServerBundle.load(folder / "fp32").preprocessing
                samples = [preprocess(picture, spec)[None] for picture in load_pictures(pictures, limit=CALIBRATION)]
                derive_bundle(folder / "fp32", folder / compute, text=compute, visual=compute, samples=samples)
            facts["computes"][compute] = _compare(folder / compute, compute, reference)
        except ExportError as exc:
            facts["computes"][compute] = {"reason": str(exc)}
    return facts


def _write_original(
    foundation: Foundation, union_head: UnionHead, folder: Path, pictures: Path
) -> tuple[dict[str, Any], "_Reference"]:
    """Write the float32 bundle; return what is known of the model, and what PyTorch answers."""
    _LOG.info("%s: writing float32", foundation.name)
    with tempfile.TemporaryDirectory() as few:
        files, reader = find_pictures(pictures), PathReader()
        for path in [files[i * len(files) // PICTURES] for i in range(PICTURES)] if len(files) > PICTURES else files:
            (Path(few) / path.name).write_bytes(reader.read(path))
        export_server_bundle(foundation, union_head, folder, pictures=Path(few))
        squares = [preprocess(picture, foundation.preprocessing)[None] for picture in load_pictures(Path(few))]
    generator = torch.Generator().manual_seed(_SEED)
    table = foundation.word_embedding_table()
    with torch.inference_mode():
        tokens = table[torch.randint(len(table), (len(_MODIFIERS), _SENTENCE_LENGTH), generator=generator)]
        text = foundation.compose_query(tokens, _MODIFIERS).numpy()
        pixels = (foundation.normalise_pixels(torch.tensor(square)) for square in squares)
        visual = torch.cat([foundation.encode_pixels(picture) for picture in pixels]).numpy()
    facts = {
        "parameters_text": _count(foundation.text),
        "parameters_visual": _count(foundation.model.visual),
        "causal": foundation.causal,
        "context_length": foundation.context_length,
        "word_width": foundation.word_width,
        "size": foundation.preprocessing.size,
        "computes": {},
    }
    return facts, _Reference(tokens=tokens.numpy(), squares=squares, expected={"text": text, "visual": visual})


def derive_bundle(
    source: Path,
    out: Path,
    *,
    text: Compute,
    visual: Compute,
    samples: Sequence[NDArray[np.uint8]] = (),
) -> None:
    """Write a server bundle whose towers compute in less than those of a float32 one.

    Args:
        source: the float32 bundle; what stays as it is is shared with it by hard links.
        out: must not exist.
        text, visual: what the towers compute in.
        samples: [1, S, S, 3] each, to calibrate static int8 on.

    Raises:
        ExportError: a tower cannot be converted.
    """
    manifest = read_manifest(source, format=SERVER_BUNDLE)
    computes: dict[str, Compute] = {TEXT_FILE: text, VISUAL_FILE: visual}
    out.mkdir(parents=True)
    made = {file for file, compute in computes.items() if compute != "fp32"}
    for name in manifest.files:
        if name.removesuffix(".data") not in made:
            os.link(source / name, out / name)
    for file in sorted(made):
        graph = onnx.load_model(source / file)
        write_onnx(set_compute(graph, computes[file], input_name="pixels", samples=samples), out / file)
    storage = {**manifest.properties["weight_storage"], **{file: computes[file] for file in made}}
    properties = {**manifest.properties, "compute": computes, "weight_storage": storage}
    write_manifest(out, format=SERVER_BUNDLE, properties=properties, sources=manifest.sources)


def measure_answers(folder: Path, facts: dict[str, Any], search_set: Path, device: QueryEncoder) -> None:
    """Search with each leaner tower alone, against float32, and note in `facts` what changed.

    A tower that computes in less keeps the other in float32, so that a loss is known by its tower.

    Args:
        folder: what `write_model` wrote.
        facts: what it returned; each tower's record is extended by what `compare_answers` says.
        search_set: see checks/search_set.py.
        device: gives the queries' sentence tokens.

    Raises:
        ExportError: the search set cannot be read.
    """
    before = SearchSet(search_set, folder / "fp32")
    tokens = encode_pictures(device, before)
    expected = before.search(tokens)
    for compute, towers in facts["computes"].items():
        if compute == "fp32" or "reason" in towers:
            continue
        for tower, file in TOWERS.items():
            _LOG.info("%s: searching with the %s tower in %s", folder.name, tower, compute)
            with tempfile.TemporaryDirectory(dir=folder) as name:
                mixed = Path(name, "bundle")
                _mix(folder / "fp32", folder / compute, mixed, file)
                record = compare_answers(expected, SearchSet(search_set, mixed).search(tokens))
            towers[tower] |= record
            towers[tower]["passed"] = bool(
                towers[tower]["passed"] and record["recall_at_10_change"] >= -MAX_RECALL_LOSS
            )


def _mix(original: Path, leaner: Path, out: Path, file: str) -> None:
    """Write a bundle of one tower from the leaner and all else from the original."""
    out.mkdir()
    manifest, other = (read_manifest(path, format=SERVER_BUNDLE) for path in (original, leaner))
    for name in manifest.files:
        if name.removesuffix(".data") != file:
            os.link(original / name, out / name)
    for name in other.files:
        if name.removesuffix(".data") == file:
            os.link(leaner / name, out / name)
    compute = {**manifest.properties["compute"], file: other.properties["compute"][file]}
    write_manifest(out, format=SERVER_BUNDLE, properties={**manifest.properties, "compute": compute})


def _compare(folder: Path, compute: Compute, reference: _Reference) -> dict[str, Any]:
    """Measure the towers of a bundle through the server's own runtime, one open at a time."""
    thresholds = storage_thresholds(TOLERANCE[compute])
    records: dict[str, Any] = {}
    for tower, file in TOWERS.items():
        bundle = ServerBundle.load(folder)
        if tower == "text":
            encoder = TextEncoder(bundle)
            asked = zip(reference.tokens, _MODIFIERS, strict=True)
            found = encoder.encode_prompts([encoder.composer.compose_query(tokens, text) for tokens, text in asked])
        else:
            visual = VisualEncoder(bundle)
            found = np.concatenate([visual.encode_image(square) for square in reference.squares])
        external = folder / f"{file}.data"
        record: dict[str, Any] = {
            "size_mb": sum(path.stat().st_size for path in folder.glob(f"{file}*")) / 1e6,
            "external_mb": external.stat().st_size / 1e6 if external.is_file() else 0.0,
        }
        record |= check_agreement(file, reference.expected[tower], found, thresholds=_ANY, allowance=compute)
        record["thresholds"] = [thresholds.cosine_min, thresholds.cosine_mean, thresholds.error_to_spread]
        record["passed"] = bool(
            record["cosine_min"] >= thresholds.cosine_min
            and record["cosine_mean"] >= thresholds.cosine_mean
            and record["error_to_spread"] <= thresholds.error_to_spread
        )
        records[tower] = record
    return records


def _count(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def _finish(folder: Path, facts: Mapping[str, Any]) -> None:
    write_atomically(folder / FACTS_FILE, json.dumps(facts, indent=2) + "\n")
    for compute, towers in facts["computes"].items():
        for tower in TOWERS:
            _LOG.info("%s, %s, %s: %s", folder.name, tower, compute, towers.get(tower, towers.get("reason")))


if __name__ == "__main__":
    sys.exit(main())
