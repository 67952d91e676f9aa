"""The subcommands `asymcir gallery` and `asymcir serve`: arguments here, heavy imports inside the handlers."""

import argparse
import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymcir_common.arguments import (
    MAX_BATCH_SIZE,
    MAX_IN_FLIGHT,
    MAX_PORT,
    MAX_TEXT_BATCH,
    MAX_THREADS,
    MAX_TIMEOUT_S,
    MAX_TOP_K,
    add_gallery_folder,
    add_server_bundle,
    add_threads,
    byte_count,
    path_name,
    seconds,
    share,
    whole_number,
)
from asymcir_common.files import write_atomically

from asymcir_server.change_commands import register_changes
from asymcir_server.history_commands import register_history

DEFAULT_PORT = 50051
PAGE_FOLDER = Path(__file__).parent / "serve" / "http" / "page"
"""The built search page; `make web` makes it anew from edge/web."""

if TYPE_CHECKING:
    from asymcir_server.gallery import Gallery

Subparsers = argparse._SubParsersAction  # argparse has no public name for it


def register_gallery(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add `asymcir gallery` and its actions."""
    gallery = subparsers.add_parser("gallery", help="build, change and check a gallery, and keep its snapshots")
    actions = gallery.add_subparsers(dest="action", required=True, metavar="ACTION")

    build = actions.add_parser(
        "build",
        help="build the next snapshot of a gallery",
        description="Encode pictures and write them as the next snapshot of a gallery. A picture that cannot be read "
        "is listed in the snapshot's quarantine.jsonl with the reason. A picture of the current snapshot, or of an "
        "interrupted build, is not encoded again. Servers that run take the new snapshot.",
    )
    build.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="folders (recursive), zips, uncompressed tars, .parquet files, .jsonl lists, or their URLs; {000..012} "
        "and * name several",
    )
    add_server_bundle(build)
    add_gallery_folder(build, help="the gallery's folder, made where there is none")
    build.add_argument(
        "--target",
        choices=["union", "original", "sum"],
        help="target representation (default: union, original for a bundle without a UNION head)",
    )
    build.add_argument(
        "--batch-size",
        type=whole_number(1, MAX_BATCH_SIZE),
        default=32,
        metavar="N",
        help="pictures per encoder run (default: 32)",
    )
    build.add_argument(
        "--workers",
        type=whole_number(0, MAX_THREADS),
        default=0,
        metavar="N",
        help="decoding threads (default: one per core, at most 8)",
    )
    add_threads(build, least=0, default=0, help="ONNX Runtime threads (default: its choice)")
    _add_index_options(build)
    build.add_argument(
        "--replace-space", action="store_true", help="allow a snapshot of another target space than the current one"
    )
    build.add_argument(
        "--thumbnails",
        type=whole_number(0, 2048),
        default=0,
        metavar="PIXELS",
        help="keep WebP thumbnails, PIXELS on the longer side (default: 0, none)",
    )
    build.add_argument("--near-duplicates", action="store_true", help="list pictures that look alike, too")
    build.add_argument(
        "--allow-shrink", action="store_true", help="allow a snapshot of less than half of the pictures of before"
    )
    build.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATTERN",
        help="take only pictures whose path, or a part of it, matches; repeatable",
    )
    build.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help='leave out pictures whose path, or a part of it, matches, such as "*_thumb.*" or drafts; repeatable',
    )
    build.add_argument(
        "--dry-run", action="store_true", help="say what would be taken and what not; read no picture, write nothing"
    )
    build.add_argument("--json", action="store_true", help="print JSON")
    build.add_argument(
        "--item-column",
        default="item",
        metavar="KEY",
        help="the metadata key that names what a picture shows, to group hits by (default: item; '' for none)",
    )
    build.set_defaults(run=run_gallery_build)

    info = actions.add_parser("info", help="check a gallery and say what it holds")
    add_gallery_folder(info)
    info.add_argument("--html", type=path_name, metavar="FILE", help="write a page to look at: plots, a map, oddities")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=run_gallery_info)
    register_changes(actions)
    register_history(actions)


def _add_index_options(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "--index",
        choices=["auto", "exact", "sq8", "hnsw", "ivf-sq8", "ivf-rabitq"],
        default="auto",
        help="index kind (default: auto, by the number of pictures and --memory-budget)",
    )
    build.add_argument(
        "--recall",
        type=share,
        default=0.98,
        metavar="R",
        help="recall@10 that the search effort is chosen for, measured against exact search (default: 0.98)",
    )
    build.add_argument(
        "--memory-budget",
        type=byte_count,
        default=1 << 30,
        metavar="SIZE",
        help="what --index auto may take beside the mapped vectors, such as 500M or 2G (default: 1G)",
    )
    build.add_argument(
        "--recall-queries",
        type=path_name,
        metavar="FILE",
        help="composed queries to measure recall on, .npy float32 [q, E] (default: the gallery's vectors with noise)",
    )


def register_serve(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add `asymcir serve`."""
    serve = subparsers.add_parser(
        "serve",
        help="answer composed queries over gRPC",
        description="Serve galleries over gRPC, with the standard health and reflection services. "
        "SIGTERM and SIGINT let requests in flight end.",
    )
    add_server_bundle(serve)
    serve.add_argument(
        "--gallery",
        action="append",
        required=True,
        metavar="[NAME=]FOLDER",
        help="a gallery's folder; repeatable, the first answers where a request names none (NAME: the folder's). "
        "NAME+=FOLDER adds a shard: a gallery of the same space that is searched together with NAME's",
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    serve.add_argument(
        "--port",
        type=whole_number(0, MAX_PORT),
        default=DEFAULT_PORT,
        help=f"0 takes a free one (default: {DEFAULT_PORT})",
    )
    serve.add_argument(
        "--listen",
        type=_read_unix_socket,
        metavar="unix:PATH",
        help="answer gRPC on a Unix socket, which clients name the same way, instead of --host and --port",
    )
    serve.add_argument(
        "--http",
        type=whole_number(0, MAX_PORT),
        metavar="PORT",
        help="answer over HTTP on this port too: Connect, gRPC-Web and JSON, health, thumbnails (0 takes a free one)",
    )
    serve.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="pages of this origin, such as https://shop.example, may call over HTTP from a browser; repeatable",
    )
    serve.add_argument(
        "--device-bundle",
        type=path_name,
        metavar="FOLDER",
        help="serve the files of a device bundle over HTTP at /device/",
    )
    serve.add_argument(
        "--web",
        type=path_name,
        nargs="?",
        const=PAGE_FOLDER,
        metavar="FOLDER",
        help="serve the search page over HTTP at /, which needs --device-bundle; with FOLDER, its files instead",
    )
    serve.add_argument(
        "--port-file", type=path_name, metavar="FILE", help="write the port of gRPC here once the server is ready"
    )
    add_threads(serve, least=0, default=0, help="ONNX Runtime threads (default: its choice)")
    serve.add_argument(
        "--concurrency",
        type=whole_number(1, MAX_THREADS),
        default=min(max(2, os.cpu_count() or 1), MAX_THREADS),
        metavar="N",
        help="galleries searched at the same time (default: one per core, at least 2)",
    )
    serve.add_argument(
        "--max-batch",
        type=whole_number(1, MAX_TEXT_BATCH),
        default=32,
        metavar="N",
        help="queries that the text encoder runs together (default: 32)",
    )
    serve.add_argument(
        "--max-in-flight",
        type=whole_number(1, MAX_IN_FLIGHT),
        default=64,
        metavar="N",
        help="requests computed or waiting (default: 64)",
    )
    serve.add_argument(
        "--max-top-k",
        type=whole_number(1, MAX_TOP_K),
        default=1000,
        metavar="N",
        help="most hits per answer (default: 1000)",
    )
    serve.add_argument(
        "--drain-timeout",
        type=seconds(0.0, MAX_TIMEOUT_S),
        default=30.0,
        metavar="SECONDS",
        help="for requests in flight at the end (default: 30)",
    )
    serve.add_argument(
        "--follow",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="answer from new snapshots and with changes to galleries, within a second (default: --follow)",
    )
    serve.add_argument(
        "--admin",
        action="store_true",
        help="let callers change the galleries too, by the service GalleryAdmin: those with a key of the role admin, "
        "or without --keys whoever reaches the port",
    )
    serve.add_argument(
        "--keys", type=path_name, metavar="FILE", help="ask callers for a key of this file (`asymcir keys`)"
    )
    serve.add_argument("--tls-certificate", type=path_name, metavar="FILE", help="encrypt with this certificate, PEM")
    serve.add_argument("--tls-key", type=path_name, metavar="FILE", help="the certificate's private key, PEM")
    serve.add_argument(
        "--tls-client-ca",
        type=path_name,
        metavar="FILE",
        help="answer only clients with a certificate that one of these signed, PEM",
    )
    serve.add_argument(
        "--allow-plaintext",
        action="store_true",
        help="listen on an address of the network without TLS, where a proxy before the server does it",
    )
    serve.add_argument(
        "--metrics",
        type=whole_number(0, MAX_PORT),
        metavar="PORT",
        help="answer /metrics for Prometheus on this port too, in plain text and without a key (over HTTP: /metrics)",
    )
    serve.add_argument(
        "--metrics-host", default="127.0.0.1", metavar="HOST", help="address of --metrics (default: 127.0.0.1)"
    )
    serve.add_argument(
        "--check", action="store_true", help="load and check everything, say what would be served, and end"
    )
    serve.set_defaults(run=run_serve)


def _read_unix_socket(text: str) -> Path:
    """Read unix:PATH or unix:///PATH."""
    scheme, _, path = text.partition(":")
    path = path.removeprefix("//") if path.startswith("///") else path
    if scheme != "unix" or not path.strip():
        raise argparse.ArgumentTypeError(f"expected unix:PATH, or --host and --port instead, got {text}")
    return Path(path)


def run_gallery_build(args: argparse.Namespace) -> int:
    """Run `asymcir gallery build`."""
    from asymcir_server.encode.bundle import ServerBundle
    from asymcir_server.gallery import BuildConfig, IndexConfig, build_gallery, plan_gallery
    from asymcir_server.gallery.progress import ProgressLine
    from asymcir_server.gallery.sources.reporting import describe_plan, describe_report

    index = IndexConfig(
        kind=args.index,
        recall=args.recall,
        memory_budget_bytes=args.memory_budget,
        recall_queries=args.recall_queries,
    )
    config = BuildConfig(
        target=args.target,
        batch_size=args.batch_size,
        workers=args.workers,
        replace_space=args.replace_space,
        index=index,
        thumbnail_side=args.thumbnails,
        near_duplicates=args.near_duplicates,
        item_column=args.item_column,
        allow_shrink=args.allow_shrink,
        include=args.include,
        exclude=args.exclude,
    )
    if args.dry_run:
        plan = plan_gallery(args.images, args.gallery, config=config)
        lines = [json.dumps(dataclasses.asdict(plan), indent=2)] if args.json else describe_plan(plan)
        print("\n".join(lines))
        return 0
    bundle = ServerBundle.load(args.server_bundle, threads=args.threads)
    line = ProgressLine(sys.stderr)
    try:
        report = build_gallery(args.images, bundle, args.gallery, config=config, progress=line.update)
    finally:
        line.close()
    if args.json:
        print(json.dumps(dataclasses.asdict(report), indent=2, default=str))
    else:
        for text in describe_report(report):
            print(text)
    return 0


def run_gallery_info(args: argparse.Namespace) -> int:
    """Run `asymcir gallery info`."""
    from asymcir_server.gallery import Gallery

    gallery = Gallery.open(args.gallery)
    try:
        record = _describe_gallery(gallery)
        if not args.json:
            for name, value in record.items():
                if name == "changes" and value:
                    value = "{change}: {added} added, {removed} removed, {updated} with other metadata".format(**value)
                if name != "columns" and value is not None:
                    print(f"{name:<20}{value}")
            for key, kind in record["columns"].items():
                print(f"{'column':<20}{key!r} ({kind})")
        if args.html is not None:
            from asymcir_server.gallery.overview import render_page, summarise

            write_atomically(args.html, render_page(summarise(gallery)))
            if not args.json:
                print(f"page: {args.html}")
        if args.json:
            print(json.dumps(record, indent=2))
    finally:
        gallery.close()
    return 0


def _describe_gallery(gallery: "Gallery") -> dict[str, Any]:
    """Give what `gallery info` says; None: the gallery has no such thing."""
    names = (
        "version", "size", "embedding_width", "target", "target_space", "index_kind", "index_recall_at_10",
        "thumbnail_side",
    )  # fmt: skip
    record: dict[str, Any] = {name: getattr(gallery, name) for name in names}
    record["items"] = gallery.items or None
    added, removed, updated = gallery.describe_changes() if gallery.change else (0, 0, 0)
    changes = {"change": gallery.change, "added": added, "removed": removed, "updated": updated}
    record["changes"] = changes if gallery.change else None
    record["columns"] = {column.key: column.type for column in gallery.columns.by_key.values()}
    return record


def run_serve(args: argparse.Namespace) -> int:
    """Run `asymcir serve`."""
    from asymcir_server.errors import ListenError
    from asymcir_server.serve.http import HttpConfig
    from asymcir_server.serve.lifecycle import RetrievalServer, ServerConfig, check_server, serve
    from asymcir_server.serve.security import TlsConfig
    from asymcir_server.serve.service import ServiceLimits

    http = None
    if args.http is not None:
        http = HttpConfig(
            port=args.http,
            allowed_origins=tuple(args.allow_origin),
            device_bundle=args.device_bundle,
            web_folder=args.web,
        )
    elif args.allow_origin or args.device_bundle or args.web:
        raise ListenError("--allow-origin, --device-bundle and --web need --http PORT")
    if args.web == PAGE_FOLDER and args.device_bundle is None:
        raise ListenError("the page of --web encodes pictures in the browser: add --device-bundle FOLDER")
    tls = None
    if args.tls_certificate is not None and args.tls_key is not None:
        tls = TlsConfig(certificate=args.tls_certificate, private_key=args.tls_key, client_ca=args.tls_client_ca)
    elif args.tls_certificate or args.tls_key or args.tls_client_ca:
        raise ListenError("TLS needs both --tls-certificate and --tls-key")
    if args.listen is not None and args.port_file is not None:
        raise ListenError("--port-file names a port, and a Unix socket has none: leave one of them out")
    limits = ServiceLimits(
        concurrency=args.concurrency,
        max_in_flight=args.max_in_flight,
        max_top_k=args.max_top_k,
        max_batch=args.max_batch,
    )
    config = ServerConfig(
        host=args.host,
        port=args.port,
        unix_socket=args.listen,
        limits=limits,
        drain_timeout_s=args.drain_timeout,
        follow=args.follow,
        admin=args.admin,
        http=http,
        tls=tls,
        keys=args.keys,
        allow_plaintext=args.allow_plaintext,
        metrics_port=args.metrics,
        metrics_host=args.metrics_host,
    )

    def announce(server: RetrievalServer) -> None:
        also = f", HTTP on {server.http_address}" if http else ""
        print(f"serving {', '.join(folders)} on {server.address}{also}", flush=True)

    folders = parse_galleries(args.gallery)
    if args.check:
        service = check_server(args.server_bundle, folders, config, threads=args.threads)
        for name, holder in service.holders.items():
            held = holder.current
            print(f"{name}: {held.size} pictures, {held.target}, {held.index_kind}, version {held.full_version}")
        print(f"can be served: word_space {service.word_space}")
        return 0
    serve(args.server_bundle, folders, config, threads=args.threads, port_file=args.port_file, on_ready=announce)
    return 0


def parse_galleries(values: list[str]) -> dict[str, "Path | list[Path]"]:
    """Read `[NAME=]FOLDER` and `NAME+=FOLDER` arguments: name -> folder, or the folders of its shards.

    Raises:
        ListenError: a name is given twice, or a shard is added to a gallery that was not named before it.
    """
    from asymcir_common.places.rules import to_nfc

    from asymcir_server.errors import ListenError

    found: dict[str, Path | list[Path]] = {}
    for value in values:
        named = re.fullmatch(r"([A-Za-z0-9._-]+)(\+?)=(.+)", value)
        if not value.strip():
            raise ListenError("expected --gallery [NAME=]FOLDER, got an empty text")
        path = Path(named[3] if named else value)
        name = named[1] if named else to_nfc(path.resolve().name)
        if named and named[2]:
            if name not in found:
                raise ListenError(
                    f"--gallery {value} adds a shard to a gallery that is not there yet: name its first shard before, "
                    f"as in --gallery {name}=FOLDER"
                )
            held = found[name]
            found[name] = [*([held] if isinstance(held, Path) else held), path]
        elif name in found:
            raise ListenError(
                f"two galleries are named {name}: give one a name of its own, as in --gallery other={path}, or make it "
                f"a shard of the other, as in --gallery {name}+={path}"
            )
        else:
            found[name] = path
    return found
