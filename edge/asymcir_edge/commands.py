"""The device's subcommands: `asymcir encode`, `asymcir query`, `asymcir describe` and `asymcir selftest`."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, get_args

import numpy as np
from asymcir_common import ImageError, TokensError, read_image
from asymcir_common.arguments import (
    MAX_REPEATS,
    MAX_TOP_K,
    add_device_bundle,
    add_server,
    add_threads,
    path_name,
    whole_number,
)
from asymcir_common.files import replacing
from asymcir_protos import pack_tokens, parse_filter
from asymcir_protos.tokens import TokenEncoding
from numpy.typing import NDArray

from asymcir_edge.errors import OutputError

if TYPE_CHECKING:
    from asymcir_edge.device.encoder import QueryEncoder
    from asymcir_edge.device.verdicts import EncoderReport, SelfTestReport
    from asymcir_edge.remote.answers import SearchResult, ServerDescription
    from asymcir_edge.remote.credentials import Credentials

_DEFAULT_TIMEOUT_S = 10.0
_MAX_COLUMN = 40


def register_encode(subparsers: Any) -> None:
    """Add `asymcir encode`."""
    parser = subparsers.add_parser(
        "encode",
        help="turn pictures into sentence tokens, on this device",
        description="Turn pictures into sentence tokens with a device bundle, and print their sizes and timings.",
    )
    parser.add_argument("pictures", nargs="+", type=path_name, metavar="PIC", help="picture files")
    add_encoder(parser)
    _add_sentence_length(parser, "keep only the first N tokens of a sentence")
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


def register_query(subparsers: Any) -> None:
    """Add `asymcir query`."""
    parser = subparsers.add_parser(
        "query",
        help="search a server by a picture and a typed change",
        description="Encode a picture on this device, send its sentence tokens and a typed change to a server, "
        "and print the hits.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=path_name, metavar="PIC", help="a picture file")
    source.add_argument(
        "--tokens-file", type=path_name, metavar="FILE.npy", help="sentence tokens that `asymcir encode` wrote"
    )
    parser.add_argument("--text", default="", metavar="CHANGE", help='the typed change, such as "is blue"')
    add_server(parser, timeout_s=_DEFAULT_TIMEOUT_S)
    add_encoder(parser)
    _add_sentence_length(parser, "send only the first N tokens of the sentence, for fewer bytes")
    parser.add_argument(
        "--top-k", type=whole_number(1, MAX_TOP_K), default=10, metavar="K", help="hits at most (default: 10)"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="ID", help="an item that must not be answered; repeatable"
    )
    parser.add_argument(
        "--where",
        metavar="FILTER",
        help='only pictures whose metadata satisfy this, such as \'price < 20 and colour in ("red", "blue")\'',
    )
    parser.add_argument(
        "--every-picture",
        action="store_true",
        help="answer every picture by itself, also where the gallery groups by item",
    )
    parser.add_argument(
        "--collapse-duplicates",
        action="store_true",
        help="answer a picture that is there more than once by its best copy only: the same file, and near copies "
        "where the gallery was built with --near-duplicates",
    )
    parser.add_argument("--no-metadata", action="store_true", help="do not ask for the metadata of the hits")
    parser.add_argument(
        "--encoding",
        choices=get_args(TokenEncoding),
        default="fp16",
        help="how the tokens travel; int8 is half the size (default: fp16)",
    )
    parser.add_argument(
        "--gallery", default="", metavar="NAME", help="the gallery to search (default: the server's first)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_query)


def register_describe(subparsers: Any) -> None:
    """Add `asymcir describe`."""
    parser = subparsers.add_parser(
        "describe",
        help="print what a server holds: spaces, galleries, limits",
        description="Print what a server holds: its spaces, galleries and limits.",
    )
    add_server(parser, timeout_s=_DEFAULT_TIMEOUT_S)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_describe)


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
    _add_threads(parser)
    parser.add_argument(
        "--repeats",
        type=whole_number(1, MAX_REPEATS),
        default=DEFAULT_REPEATS,
        metavar="N",
        help=f"timed runs of each encoder (default: {DEFAULT_REPEATS})",
    )
    parser.add_argument("--json-only", action="store_true", help="print no summary")
    parser.set_defaults(run=_selftest)


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """Add `--device-bundle`, `--precision` and `--threads`."""
    add_device_bundle(parser)
    parser.add_argument("--precision", metavar="NAME", help="which of the bundle's encoders (default: the bundle's)")
    _add_threads(parser)


def _add_sentence_length(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument(
        "--tokens",
        type=_read_sentence_length,
        metavar="N",
        help=f"{meaning}; an encoder trained with token dropout (distil.token_dropout) loses least (default: all)",
    )


def _read_sentence_length(text: str) -> int:
    try:
        return int(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(
            f"expected a number of tokens, got {text}; a file of tokens is given as --tokens-file"
        ) from exc


def _add_threads(parser: argparse.ArgumentParser) -> None:
    add_threads(parser, least=1, default=1, help="threads that one picture is encoded with (default: 1)")


def _encode(args: argparse.Namespace) -> int:
    if args.out is not None:
        check_output(args.out, force=args.force)
    encoder = open_encoder(args)
    encoded, failed = [], list[dict[str, str]]()
    for path in args.pictures:
        try:
            encoded.append(_encode_picture(encoder, path, args.tokens))
        except ImageError as exc:
            if args.strict or len(args.pictures) == 1:
                raise
            failed.append({"path": str(path), "reason": str(exc)})
            print(f"asymcir: error: {_printable(str(exc))}", file=sys.stderr)
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
            f"{_printable(report['path'])}: tokens {report['shape']}, norm {report['norm_min']:.3f} to "
            f"{report['norm_max']:.3f} (mean {report['norm_mean']:.3f}), {report['fp16_size_bytes']} bytes as fp16, "
            f"{report['int8_size_bytes']} as int8, decoded in {report['decode_ms']:.1f} ms, "
            f"encoded in {report['encode_ms']:.1f} ms" + "".join(f"; {note}" for note in report["notes"])
        )
    if args.out is not None:
        print(f"wrote {_printable(str(args.out))}")
    return 1 if failed else 0


def _query(args: argparse.Namespace) -> int:
    from asymcir_edge.device.bundle import DeviceBundle
    from asymcir_edge.device.encoder import check_sentence_length
    from asymcir_edge.remote.client import RetrievalClient

    where = None if args.where is None else parse_filter(args.where)
    # The client first: a wrong address should not cost the time of an encoding.
    with RetrievalClient(
        args.server, timeout_s=args.timeout, token_encoding=args.encoding, credentials=read_credentials(args)
    ) as client:
        device: dict[str, float] = {}
        if args.image is not None:
            encoder = open_encoder(args)
            bundle = encoder.bundle
            tokens, report = _encode_picture(encoder, args.image, args.tokens)
            device = {"decode_ms": report["decode_ms"], "encode_ms": report["encode_ms"]}
        else:
            bundle = DeviceBundle.load(args.device_bundle)
            tokens = _read_tokens(args.tokens_file, width=bundle.word_width)
            tokens = tokens[: check_sentence_length(args.tokens, len(tokens))]
        result = client.search(
            tokens,
            bundle.word_space,
            modifier=args.text,
            gallery=args.gallery,
            top_k=args.top_k,
            excluded_ids=args.exclude,
            with_metadata=not args.no_metadata,
            where=where,
            every_picture=args.every_picture,
            collapse_duplicates=args.collapse_duplicates,
        )
    if args.json:
        print(json.dumps({**dataclasses.asdict(result), "device": device}, indent=2))
        return 0
    _print_hits(result)
    if left_out := sum(hit.metadata_left_out for hit in result.hits):
        print(f"the metadata of {left_out} hits did not fit the answer: ask for fewer hits")
    for warning in result.warnings:
        print(f"asymcir: warning: {_printable(warning)}", file=sys.stderr)
    timing = result.timing
    print(
        f"{len(result.hits)} hits from gallery {_printable(result.gallery)}, "
        f"version {_printable(result.gallery_version)}; "
        f"sent tokens {list(tokens.shape)} as {args.encoding}, {result.request_size_bytes} bytes"
    )
    print(
        "".join(f"{stage.removesuffix('_ms')} {value:.1f} ms, " for stage, value in device.items())
        + f"round trip {timing.round_trip_ms:.1f} ms (on the server: queue {timing.queue_ms:.1f}, "
        f"encode {timing.encode_ms:.1f}, search {timing.search_ms:.1f})"
    )
    return 0


def _describe(args: argparse.Namespace) -> int:
    from asymcir_edge.remote.client import RetrievalClient

    with RetrievalClient(args.server, timeout_s=args.timeout, credentials=read_credentials(args)) as client:
        description = client.describe()
    if args.json:
        print(json.dumps(dataclasses.asdict(description), indent=2))
        return 0
    _print_description(description)
    return 0


def read_credentials(args: argparse.Namespace) -> "Credentials":
    """Read the options that `add_server` adds.

    Raises:
        CredentialsError: a file cannot be read, or one of two is missing.
    """
    from asymcir_edge.remote.credentials import Credentials, read_key

    certificate, private_key = args.tls_client or (None, None)
    return Credentials(
        key="" if args.key_file is None else read_key(args.key_file),
        tls=args.tls,
        ca=args.tls_ca,
        certificate=certificate,
        private_key=private_key,
    )


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


def open_encoder(args: argparse.Namespace) -> "QueryEncoder":
    """Open the encoder that the options of `add_encoder` name."""
    from asymcir_edge.device.bundle import DeviceBundle
    from asymcir_edge.device.encoder import QueryEncoder

    return QueryEncoder(DeviceBundle.load(args.device_bundle), precision=args.precision, threads=args.threads)


def _encode_picture(
    encoder: "QueryEncoder", path: Path, length: int | None
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Encode one picture file; return its first `length` tokens [L, D] and what is printed about them."""
    start_s = time.perf_counter()
    notes = list[str]()
    pixels = read_image(path, notes=notes)
    decoded_s = time.perf_counter()
    tokens = encoder.encode_image(pixels, tokens=length)
    encoded_s = time.perf_counter()
    norms = np.linalg.norm(tokens, axis=1)  # [L]
    report = {
        "path": str(path),
        "shape": list(tokens.shape),
        "norm_min": float(norms.min()),
        "norm_mean": float(norms.mean()),
        "norm_max": float(norms.max()),
        "fp16_size_bytes": pack_tokens(tokens, "fp16").ByteSize(),
        "int8_size_bytes": pack_tokens(tokens, "int8").ByteSize(),
        "decode_ms": (decoded_s - start_s) * 1000.0,
        "encode_ms": (encoded_s - decoded_s) * 1000.0,
        "notes": notes,
    }
    return tokens, report


def _read_tokens(path: Path, *, width: int) -> NDArray[np.float32]:
    """Read tokens [L, D] that `asymcir encode --out` wrote."""
    try:
        with path.open("rb") as stream:
            tokens = np.lib.format.read_array(stream, allow_pickle=False)
    except FileNotFoundError as exc:
        raise TokensError(f"there is no file {path}: write it with `asymcir encode --out`") from exc
    except (OSError, ValueError, EOFError) as exc:
        raise TokensError(f"{path} is not a .npy file of sentence tokens: {exc}") from exc
    if tokens.dtype.kind != "f" or tokens.ndim != 2 or tokens.shape[1] != width:
        raise TokensError(
            f"expected sentence tokens float32 [L, {width}] of one picture in {path}, "
            f"got {tokens.dtype} {list(tokens.shape)}"
        )
    return tokens.astype(np.float32)


def check_output(path: Path, *, force: bool) -> None:
    """Refuse a file to write that is there already, or whose folder is not."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder: expected the name of a file to write")
    if path.exists() and not force:
        raise OutputError(f"{path} exists: choose another name, or pass --force to replace it")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent} to write {path.name} in: make it first")


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


def _print_hits(result: "SearchResult") -> None:
    ids, items = [_printable(hit.id) for hit in result.hits], [_printable(hit.item) for hit in result.hits]
    width, item_width = _fit("id", ids), _fit("item", items)
    heading = f"  {'item':<{item_width}}" if any(items) else ""
    print(f"{'rank':>4}  {'score':>7}  {'id':<{width}}{heading}  name".rstrip())
    for rank, (hit, identity, name) in enumerate(zip(result.hits, ids, items, strict=True), start=1):
        item = f"  {name:<{item_width}}" if any(items) else ""
        title = _printable(_name_of(hit.metadata))
        print(f"{rank:>4}  {hit.score:>7.4f}  {identity:<{width}}{item}  {title}".rstrip())


def _fit(heading: str, texts: Sequence[str]) -> int:
    """Return a column's width: a text longer than _MAX_COLUMN is printed whole, and moves its own line only."""
    return max(len(heading), *(len(text) for text in texts if len(text) <= _MAX_COLUMN), 0)


def _print_description(description: "ServerDescription") -> None:
    limits = description.limits
    print(f"asymcir {_printable(description.server_version)}")
    print(f"word space {_printable(description.word_space)}, tokens of width {description.word_width}")
    print(
        f"limits: {limits.max_top_k} hits, {limits.max_sentence_length} sentence tokens, "
        f"{limits.max_modifier_bytes} bytes of text, context of {limits.context_length} tokens, "
        f"{limits.max_excluded_ids} excluded ids"
    )
    for gallery in description.galleries:
        print(
            f"gallery {_printable(gallery.name)}, version {_printable(gallery.version)}: {gallery.size} items of width "
            f"{gallery.embedding_width}, target {_printable(gallery.target)} of {_printable(gallery.target_space)}, "
            f"index {_printable(gallery.index_kind)} with recall@10 {gallery.index_recall_at_10:.3f}"
        )
        if gallery.columns:
            columns = ", ".join(f"{_printable(key)} ({_printable(kind)})" for key, kind in gallery.columns.items())
            print(f"  metadata: {columns}")


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
    print("\n".join(_printable(line) for line in lines), file=sys.stderr)


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


def _name_of(metadata: Mapping[str, Any] | None) -> str:
    name = (metadata or {}).get("name", "")
    return name if isinstance(name, str) else json.dumps(name)


def _printable(text: str) -> str:
    """Replace what would move a terminal's cursor: ids and names come from a server."""
    return "".join(character if character.isprintable() else "?" for character in text)
