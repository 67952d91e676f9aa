"""`asymcir export device` and `asymcir export server`; torch and the writers are imported when one of them runs."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from asymcir_common.arguments import add_device_bundle, add_server_bundle, path_name

_STORAGES = ("fp32", "fp16", "int8", "int4")
_COMPUTES = ("fp32", "fp16", "int8")


def register_export(subparsers: Any) -> None:
    """Add the `export` command."""
    parser = subparsers.add_parser(
        "export",
        help="write a device or a server bundle from trained models",
        description="Write a bundle from trained models. It is compared with them; if it differs, nothing is written.",
    )
    kinds = parser.add_subparsers(title="bundles", metavar="KIND", required=True)
    _register_device(kinds)
    _register_server(kinds)


def _register_device(kinds: Any) -> None:
    parser = kinds.add_parser("device", help="light encoder checkpoint to ONNX and Core ML")
    parser.add_argument("checkpoint", type=path_name, metavar="CHECKPOINT", help="folder that `asymcir train` wrote")
    _add_common(parser, storages=_STORAGES[:3])
    parser.add_argument(
        "--variants",
        nargs="*",
        metavar="NAME",
        help="further precisions and formats beside encoder.onnx (default: all): fp16, int8, fp32-ort, int8-ort, "
        "coreml-fp16, coreml-linear8, coreml-palettized8, coreml-palettized6, coreml-w8a8",
    )
    parser.add_argument("--no-coreml", dest="coreml", action="store_false", help="write no Core ML package")
    add_server_bundle(parser, required=False, help="server bundle of the same foundation")
    parser.add_argument(
        "--search-set",
        type=path_name,
        metavar="FOLDER",
        help="queries and gallery to measure R@10 with; needs --server-bundle",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a variant misses its thresholds")
    parser.add_argument("--foundation", metavar="NAME", help="check that the checkpoint belongs to this foundation")
    parser.add_argument("--pretrained", metavar="TAG", help="its pretrained tag or checkpoint")
    parser.set_defaults(run=_run_device, log_level=logging.INFO)


def _register_server(kinds: Any) -> None:
    parser = kinds.add_parser("server", help="foundation and UNION head to ONNX, with words and tokenizer")
    parser.add_argument(
        "--foundation", required=True, metavar="NAME", help="open_clip model, local-dir:FOLDER, or blip:FOLDER"
    )
    parser.add_argument("--pretrained", metavar="TAG", help="pretrained tag or checkpoint of that architecture")
    parser.add_argument(
        "--union",
        type=path_name,
        metavar="CHECKPOINT",
        help="trained UNION head; without it the bundle offers the targets original and sum only",
    )
    _add_common(parser, storages=_STORAGES)
    parser.add_argument("--union-storage", choices=_STORAGES, help="of the UNION head (default: as --storage)")
    parser.add_argument("--table-storage", choices=_STORAGES[:3], help="of the word embeddings (default: as --storage)")
    for tower in ("text", "visual"):
        parser.add_argument(
            f"--{tower}-compute",
            choices=_COMPUTES,
            default="fp32",
            help=f"what the {tower} tower computes in; int8 is dynamic for a transformer, static for a convnet",
        )
    add_device_bundle(parser, required=False, help="device bundle of the same foundation")
    parser.add_argument(
        "--search-set",
        type=path_name,
        metavar="FOLDER",
        help="queries and gallery to measure R@10 with; needs --device-bundle",
    )
    parser.set_defaults(run=_run_server, log_level=logging.INFO)


def _add_common(parser: argparse.ArgumentParser, *, storages: tuple[str, ...]) -> None:
    parser.add_argument(
        "--out", required=True, type=path_name, metavar="BUNDLE", help="folder to write; must not exist, unless --force"
    )
    parser.add_argument("--pictures", required=True, type=path_name, metavar="FOLDER", help="pictures to compare on")
    parser.add_argument(
        "--storage", choices=storages, default="fp32", help="how weights are kept; they are computed with in float32"
    )
    parser.add_argument(
        "--source",
        dest="sources",
        action="append",
        default=[],
        type=_parse_source,
        metavar="NAME;LICENCE;URL",
        help="where weights came from, for the manifest; may be repeated",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")


def _parse_source(text: str) -> dict[str, str]:
    parts = [part.strip() for part in text.split(";")]
    if len(parts) != 3 or not all(parts):
        raise argparse.ArgumentTypeError(f"expected NAME;LICENCE;URL, got {text!r}")
    return dict(zip(("name", "licence", "url"), parts, strict=True))


def _refuse_unfit(args: argparse.Namespace, bundle: Path | None, option: str) -> None:
    """Refuse options that do not go together, before minutes are spent on the models.

    Raises:
        ExportError: an option that needs another one, or rules it out.
    """
    from asymcir_export.errors import ExportError

    if (args.search_set is None) != (bundle is None):
        given, missing = ("--search-set", option) if bundle is None else (option, "--search-set")
        raise ExportError(f"{given} has no effect without {missing}: pass both, to measure R@10, or neither")
    if args.pretrained and not args.foundation:
        raise ExportError("--pretrained is of a foundation: pass its name with --foundation, or leave it out")
    coreml = [name for name in getattr(args, "variants", None) or () if name.startswith("coreml-")]
    if coreml and not args.coreml:
        raise ExportError(f"--variants asks for {', '.join(coreml)} and --no-coreml forbids it: leave one out")
    if getattr(args, "union_storage", None) and not args.union:
        raise ExportError("--union-storage is of a UNION head: pass one with --union, or leave it out")
    from asymcir_export.bundles.staging import refuse_existing  # imports torch, and the others need not wait for it

    refuse_existing(args.out, force=args.force)


def _run_device(args: argparse.Namespace) -> int:
    _refuse_unfit(args, args.server_bundle, "--server-bundle")
    from asymcir_training import load_foundation, load_light_encoder

    from asymcir_export.bundles.device import export_device_bundle
    from asymcir_export.bundles.variants import VARIANTS
    from asymcir_export.errors import ExportError

    encoder, metadata = load_light_encoder(args.checkpoint)
    missing = [key for key in ("word_space", "foundation") if not metadata.get(key)]
    if missing:
        raise ExportError(f"the checkpoint {args.checkpoint} does not say its {missing[0]}: train it with this version")
    if args.foundation:
        expected = load_foundation(args.foundation, args.pretrained).word_space()
        if metadata["word_space"] != expected:
            raise ExportError(
                f"the checkpoint {args.checkpoint} is of word_space {metadata['word_space'][:12]}, {args.foundation} "
                f"of {expected[:12]}: pass the foundation that it was trained against, or train it again"
            )
    manifest = export_device_bundle(
        encoder,
        args.out,
        word_space=metadata["word_space"],
        foundation=metadata["foundation"],
        pictures=args.pictures,
        storage=args.storage,
        variants=[
            name
            for name in (VARIANTS if args.variants is None else args.variants)
            if args.coreml or not name.startswith("coreml-")
        ],
        server=args.server_bundle,
        search_set=args.search_set,
        sources=[*metadata.get("sources", []), *args.sources],
        force=args.force,
    )
    _report(args.out, manifest)
    variants = manifest.properties.get("variants", {})
    for name, record in variants.items():
        print(f"{name}: {record['status']}: {record['reason']}")
    dropped = [name for name, record in variants.items() if record["status"] == "dropped"]
    if dropped:
        report = args.out / "report.html"
        print(f"warning: left out, their thresholds were not met: {', '.join(dropped)}; see {report}", file=sys.stderr)
    return 1 if dropped and args.strict else 0


def _run_server(args: argparse.Namespace) -> int:
    _refuse_unfit(args, args.device_bundle, "--device-bundle")
    from asymcir_training import load_foundation, load_union_head

    from asymcir_export.bundles.server import export_server_bundle
    from asymcir_export.errors import ExportError

    foundation = load_foundation(args.foundation, args.pretrained)
    union_head, metadata = (None, {}) if args.union is None else load_union_head(args.union)
    if union_head is not None and metadata.get("word_space") != foundation.word_space():
        raise ExportError(
            f"the UNION head {args.union} is of word_space {str(metadata.get('word_space'))[:12]}, {args.foundation} "
            f"of {foundation.word_space()[:12]}: pass the foundation that it was trained with, or train it again"
        )
    manifest = export_server_bundle(
        foundation,
        union_head,
        args.out,
        pictures=args.pictures,
        storage=args.storage,
        union_storage=args.union_storage,
        table_storage=args.table_storage,
        text_compute=args.text_compute,
        visual_compute=args.visual_compute,
        device=args.device_bundle,
        search_set=args.search_set,
        sources=args.sources,
        force=args.force,
    )
    return _report(args.out, manifest)


def _report(out: Path, manifest: Any) -> int:
    for name, entry in manifest.files.items():
        print(f"{entry.size_bytes / 1e6:9.2f} MB  {name}")
    for name, record in manifest.parity.items():
        print(f"parity of {name}: {record if isinstance(record, str) else json.dumps(record)}")
    print(f"wrote {out}")
    return 0
