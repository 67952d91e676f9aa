"""The device's subcommands: `asymcir encode`, `asymcir query`, `asymcir describe` and `asymcir selftest`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from asymcir_common import ImageError
from asymcir_common.arguments import (
    MAX_REPEATS,
    add_device_bundle,
    path_name,
    whole_number,
)
from asymcir_common.files import replacing
from numpy.typing import NDArray

from asymcir_edge.command_parts import (
    add_encoder,
    add_encoder_threads,
    add_sentence_length,
    check_output,
    encode_picture,
    open_encoder,
    printable,
)
from asymcir_edge.errors import OutputError
from asymcir_edge.explain_commands import register_explain
from asymcir_edge.query_commands import register_describe, register_query

if TYPE_CHECKING:
    from asymcir_edge.device.verdicts import EncoderReport, SelfTestReport

__all__ = ["register_describe", "register_encode", "register_explain", "register_query", "register_selftest"]


def register_encode(subparsers: Any) -> None:
    """Add `asymcir encode`."""
    parser = subparsers.add_parser(
        "encode",
        help="turn pictures into sentence tokens, on this device",
        description="Turn pictures into sentence tokens with a device bundle, and print their sizes and timings.",
    )
    parser.add_argument("pictures", nargs="+", type=path_name, metavar="PIC", help="picture files")
    add_encoder(parser)
    add_sentence_length(parser, "keep only the first N tokens of a sentence")
    parser.add_argument(
        "--out",
        type=path_name,
        metavar="FILE.npy",
        help="write the tokens: float32 [L, D] of one picture, [n, L, D] of those of several that can be encoded",
    )
    parser.add_argument("--force", action="store_true", help="replace the file of --out if it exists")
    parser.add_argument("--strict", action="store_true", help="stop at the first picture that cannot be encoded")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_encode)


def register_selftest(subparsers: Any) -> None:
    """Add `asymcir selftest`."""
    from asymcir_edge.device.selftest import DEFAULT_REPEATS

    parser = subparsers.add_parser(
        "selftest",
        help="compare a device bundle with its golden tokens on this machine, and time it",
        description="Run the encoders of a device bundle on the golden pictures that it carries, compare with the "
        "golden tokens, and time them. Prints JSON to standard output and a summary to standard error; the exit code "
        "is 1 if any of them differs.",
    )
    add_device_bundle(parser)
    parser.add_argument(
        "--precision",
        action="append",
        dest="precisions",
        metavar="P",
        help="test only this encoder; repeatable (default: all, and the Core ML packages where they run)",
    )
    add_encoder_threads(parser)
    parser.add_argument(
        "--repeats",
        type=whole_number(1, MAX_REPEATS),
        default=DEFAULT_REPEATS,
        metavar="N",
        help=f"timed runs of each encoder (default: {DEFAULT_REPEATS})",
    )
    parser.add_argument("--json-only", action="store_true", help="print no summary")
    parser.set_defaults(run=_selftest)


def _encode(args: argparse.Namespace) -> int:
    if args.out is not None:
        check_output(args.out, force=args.force)
    encoder = open_encoder(args)
    encoded, failed = [], list[dict[str, str]]()
    for path in args.pictures:
        try:
            encoded.append(encode_picture(encoder, path, args.tokens))
        except ImageError as exc:
            if args.strict or len(args.pictures) == 1:
                raise
            failed.append({"path": str(path), "reason": str(exc)})
            print(f"asymcir: error: {printable(str(exc))}", file=sys.stderr)
    if not encoded:
        raise ImageError(f"none of the {len(failed)} pictures can be encoded: see above")
    if args.out is not None:
        arrays = [tokens for tokens, _ in encoded]
        _write_array(args.out, arrays[0] if len(args.pictures) == 1 else np.stack(arrays))
    reports = [report for _, report in encoded]
    if args.json:
        record = {
            "bundle": str(args.device_bundle),
            "precision": encoder.precision,
            "word_space": encoder.bundle.word_space,
            "out": None if args.out is None else str(args.out),
            "pictures": reports,
            "failed": failed,
        }
        print(json.dumps(record, indent=2))
        return 1 if failed else 0
    for report in reports:
        print(
            f"{printable(report['path'])}: tokens {report['shape']}, norm {report['norm_min']:.3f} to "
            f"{report['norm_max']:.3f} (mean {report['norm_mean']:.3f}), {report['fp16_size_bytes']} bytes as fp16, "
            f"{report['int8_size_bytes']} as int8, decoded in {report['decode_ms']:.1f} ms, "
            f"encoded in {report['encode_ms']:.1f} ms" + "".join(f"; {note}" for note in report["notes"])
        )
    if args.out is not None:
        print(f"wrote {printable(str(args.out))}")
    return 1 if failed else 0


def _selftest(args: argparse.Namespace) -> int:
    from asymcir_edge.device.bundle import DeviceBundle
    from asymcir_edge.device.selftest import run_selftest

    report = run_selftest(
        DeviceBundle.load(args.device_bundle),
        precisions=args.precisions,
        threads=args.threads,
        repeats=args.repeats,
        coreml=args.precisions is None,
    )
    if not args.json_only:
        _print_summary(report)
    print(json.dumps(report.to_json(), indent=2))
    return 0 if report.passed else 1


def _write_array(path: Path, array: NDArray[np.float32]) -> None:
    """Write a .npy file so that a crash leaves the old file or the new one."""
    before = path.exists()
    try:
        with replacing(path) as stream:
            np.lib.format.write_array(_Plain(stream), array, allow_pickle=False)
    except OSError as exc:
        what = "the file that was there stays" if before else "nothing was written"
        raise OutputError(
            f"cannot write {path}: {exc.strerror or exc}; {what}: free space, or choose another --out"
        ) from exc


class _Plain:
    """A stream that NumPy takes for none of its own: it writes by `write`, whose errors say why."""

    def __init__(self, stream: BinaryIO) -> None:
        self.write = stream.write


def _print_summary(report: "SelfTestReport") -> None:
    """Print a self-test's verdicts to standard error, so that standard output holds nothing but the JSON."""
    machine = report.machine
    lines = [
        f"{machine.board or machine.cpu_model or 'unknown processor'}, {machine.architecture}, "
        f"{machine.usable_cores} of {machine.cores} cores, ONNX Runtime {report.onnxruntime}"
    ]
    if machine.emulated:
        lines.append("emulated: the times below say nothing about a device")
    for encoder in [*report.encoders, *([] if isinstance(report.coreml, str) else report.coreml)]:
        lines += _summarise(encoder)
    if isinstance(report.coreml, str):
        lines.append(f"Core ML: {report.coreml}")
    lines.append("passed" if report.passed else "FAILED")
    print("\n".join(printable(line) for line in lines), file=sys.stderr)


def _summarise(encoder: "EncoderReport") -> list[str]:
    parts = [f"{encoder.precision}: {'passed' if encoder.passed else 'FAILED'}, {encoder.file}"]
    if encoder.cosine_min is not None:
        parts.append(f"cosine min {encoder.cosine_min:.5f} (at least {encoder.thresholds.cosine_min:g})")
    if encoder.latency is not None:
        parts.append(
            f"median {encoder.latency.median_ms:.2f} ms, p95 {encoder.latency.p95_ms:.2f} ms "
            f"({encoder.latency.repeats} runs, {encoder.provider})"
        )
    if encoder.load_ms is not None:
        parts.append(f"opened in {encoder.load_ms:.0f} ms")
    problems = [encoder.problem, *(f"{v.picture}: {v.problem}" for v in encoder.pictures if v.problem)]
    return [", ".join(parts), *(f"  {problem}" for problem in problems if problem)]
