"""The subcommands that ask a server: `asymcir query` and `asymcir describe`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from asymcir_common import TokensError
from asymcir_common.arguments import MAX_TOP_K, add_server, path_name, whole_number
from asymcir_protos import parse_filter
from asymcir_protos.tokens import TokenEncoding
from numpy.typing import NDArray

from asymcir_edge.command_parts import (
    add_encoder,
    add_sentence_length,
    encode_picture,
    open_encoder,
    printable,
    read_credentials,
)
from asymcir_edge.errors import RequestRefusedError

if TYPE_CHECKING:
    from asymcir_edge.remote.answers import SearchResult, ServerDescription
    from asymcir_edge.remote.client import RetrievalClient

_DEFAULT_TIMEOUT_S = 10.0
_MAX_COLUMN = 40
_PREFERENCES = {"more": 0.25, "less": 0.1}
"""Weights that name none; of the second the sign is turned."""


def register_query(subparsers: Any) -> None:
    """Add `asymcir query`."""
    parser = subparsers.add_parser(
        "query",
        help="search a server by a picture and a typed change",
        description="Encode a picture on this device, send its sentence tokens and a typed change to a server, "
        "and print the hits. Without a picture, --text alone says what to search for; --id starts from a picture of "
        "the gallery.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--image", type=path_name, metavar="PIC", help="a picture file")
    source.add_argument(
        "--tokens-file", type=path_name, metavar="FILE.npy", help="sentence tokens that `asymcir encode` wrote"
    )
    source.add_argument("--id", metavar="ID", help="a picture of the gallery, which is not answered itself")
    parser.add_argument(
        "--text",
        default="",
        metavar="TEXT",
        help='the typed change, such as "is blue"; without a picture, what to search for, such as "a red mug"',
    )
    add_server(parser, timeout_s=_DEFAULT_TIMEOUT_S)
    add_encoder(parser, required=False)
    add_sentence_length(parser, "send only the first N tokens of the sentence, for fewer bytes")
    parser.add_argument(
        "--top-k", type=whole_number(1, MAX_TOP_K), default=10, metavar="K", help="hits at most (default: 10)"
    )
    parser.add_argument(
        "--offset",
        type=whole_number(0, MAX_TOP_K),
        default=0,
        metavar="N",
        help="leave out the best N hits, for the next page (default: 0)",
    )
    parser.add_argument("--min-score", type=float, metavar="S", help="only hits of at least this score")
    for option, word in (("--more-like", "more"), ("--less-like", "less")):
        parser.add_argument(
            option,
            action="append",
            default=[],
            type=_read_preference,
            metavar="ID[:WEIGHT]",
            help=f"answers {word} like this picture of the gallery, by a weight from 0 to 1 "
            f"(default: {_PREFERENCES[word]:g}); repeatable",
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


def _read_preference(text: str) -> tuple[str, float | None]:
    """Read ID or ID:WEIGHT; an id may hold colons itself."""
    identity, _, weight = text.rpartition(":")
    try:
        value = float(weight)
    except ValueError:
        return text, None
    if not identity:
        return text, None
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a weight above 0 and at most 1 behind the last colon, got {text}")
    return identity, value


def _read_preferences(args: argparse.Namespace) -> dict[str, float]:
    found: dict[str, float] = {}
    for word, given, sign in (("more", args.more_like, 1.0), ("less", args.less_like, -1.0)):
        for identity, weight in given:
            if identity in found:
                raise RequestRefusedError(f"{identity} is named twice by --more-like and --less-like: once is enough")
            found[identity] = sign * (_PREFERENCES[word] if weight is None else weight)
    return found


def _search(client: "RetrievalClient", args: argparse.Namespace) -> tuple["SearchResult", str, dict[str, float]]:
    """Search by what the arguments name; return the result, what was sent, and the milliseconds on this device."""
    from asymcir_edge.device.bundle import DeviceBundle
    from asymcir_edge.device.encoder import check_sentence_length

    options: dict[str, Any] = {
        "gallery": args.gallery,
        "top_k": args.top_k,
        "excluded_ids": args.exclude,
        "with_metadata": not args.no_metadata,
        "where": None if args.where is None else parse_filter(args.where),
        "every_picture": args.every_picture,
        "collapse_duplicates": args.collapse_duplicates,
        "preferences": _read_preferences(args),
        "min_score": args.min_score,
        "offset": args.offset,
    }
    if args.id is not None:
        return client.search_from(args.id, args.text, **options), "an id", {}
    if args.image is None and args.tokens_file is None:
        if not args.text.strip():
            raise RequestRefusedError(
                "expected --image, --tokens-file, --id or --text: there is nothing to search with"
            )
        return client.search_text(args.text, **options), "a text", {}
    if args.device_bundle is None:
        raise RequestRefusedError("a picture is encoded, and tokens are read, with --device-bundle FOLDER: add it")
    device: dict[str, float] = {}
    if args.image is not None:
        encoder = open_encoder(args)
        bundle = encoder.bundle
        tokens, report = encode_picture(encoder, args.image, args.tokens)
        device = {"decode_ms": report["decode_ms"], "encode_ms": report["encode_ms"]}
    else:
        bundle = DeviceBundle.load(args.device_bundle)
        tokens = _read_tokens(args.tokens_file, width=bundle.word_width)
        tokens = tokens[: check_sentence_length(args.tokens, len(tokens))]
    result = client.search(tokens, bundle.word_space, modifier=args.text, **options)
    return result, f"tokens {list(tokens.shape)} as {args.encoding}", device


def _query(args: argparse.Namespace) -> int:
    from asymcir_edge.remote.client import RetrievalClient

    # The client first: a wrong address should not cost the time of an encoding.
    with RetrievalClient(
        args.server, timeout_s=args.timeout, token_encoding=args.encoding, credentials=read_credentials(args)
    ) as client:
        result, sent, device = _search(client, args)
    if args.json:
        print(json.dumps({**dataclasses.asdict(result), "device": device}, indent=2))
        return 0
    _print_hits(result, first=args.offset + 1)
    if left_out := sum(hit.metadata_left_out for hit in result.hits):
        print(f"the metadata of {left_out} hits did not fit the answer: ask for fewer hits")
    for warning in result.warnings:
        print(f"asymcir: warning: {printable(warning)}", file=sys.stderr)
    timing = result.timing
    print(
        f"{len(result.hits)} hits from gallery {printable(result.gallery)}, "
        f"version {printable(result.gallery_version)}; "
        f"sent {sent}, {result.request_size_bytes} bytes"
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


def _print_hits(result: "SearchResult", first: int = 1) -> None:
    ids, items = [printable(hit.id) for hit in result.hits], [printable(hit.item) for hit in result.hits]
    width, item_width = _fit("id", ids), _fit("item", items)
    heading = f"  {'item':<{item_width}}" if any(items) else ""
    print(f"{'rank':>4}  {'score':>7}  {'id':<{width}}{heading}  name".rstrip())
    for rank, (hit, identity, name) in enumerate(zip(result.hits, ids, items, strict=True), start=first):
        item = f"  {name:<{item_width}}" if any(items) else ""
        title = printable(_name_of(hit.metadata))
        print(f"{rank:>4}  {hit.score:>7.4f}  {identity:<{width}}{item}  {title}".rstrip())


def _fit(heading: str, texts: Sequence[str]) -> int:
    """Return a column's width: a text longer than _MAX_COLUMN is printed whole, and moves its own line only."""
    return max(len(heading), *(len(text) for text in texts if len(text) <= _MAX_COLUMN), 0)


def _print_description(description: "ServerDescription") -> None:
    limits = description.limits
    print(f"asymcir {printable(description.server_version)}")
    print(f"word space {printable(description.word_space)}, tokens of width {description.word_width}")
    print(
        f"limits: {limits.max_top_k} hits, {limits.max_sentence_length} sentence tokens, "
        f"{limits.max_modifier_bytes} bytes of text, context of {limits.context_length} tokens, "
        f"{limits.max_excluded_ids} excluded ids"
    )
    for gallery in description.galleries:
        print(
            f"gallery {printable(gallery.name)}, version {printable(gallery.version)}: {gallery.size} items of width "
            f"{gallery.embedding_width}, target {printable(gallery.target)} of {printable(gallery.target_space)}, "
            f"index {printable(gallery.index_kind)} with recall@10 {gallery.index_recall_at_10:.3f}"
        )
        if gallery.columns:
            columns = ", ".join(f"{printable(key)} ({printable(kind)})" for key, kind in gallery.columns.items())
            print(f"  metadata: {columns}")


def _name_of(metadata: Mapping[str, Any] | None) -> str:
    name = (metadata or {}).get("name", "")
    return name if isinstance(name, str) else json.dumps(name)
