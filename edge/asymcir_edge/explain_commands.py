"""`asymcir explain`: a page that says why a query is answered as it is."""

import argparse
from typing import Any

from asymcir_common.arguments import MAX_TOP_K, add_server, add_server_bundle, path_name, whole_number

from asymcir_edge.command_parts import add_encoder, check_output, open_encoder, read_credentials

_DEFAULT_TIMEOUT_S = 10.0


def register_explain(subparsers: Any) -> None:
    """Add `asymcir explain`."""
    parser = subparsers.add_parser(
        "explain",
        help="write a page that says why a query is answered as it is",
        description="Encode a picture on this device, ask a server with the typed change, without it and without each "
        "of its words, and write one HTML file: what each token looks at, what each word does, the answers before and "
        "after.",
    )
    parser.add_argument("--image", type=path_name, required=True, metavar="PIC", help="a picture file")
    parser.add_argument("--text", default="", metavar="CHANGE", help='the typed change, such as "is blue"')
    add_server(parser, timeout_s=_DEFAULT_TIMEOUT_S)
    add_encoder(parser)
    parser.add_argument("--out", type=path_name, required=True, metavar="FILE.html", help="the page to write")
    parser.add_argument("--force", action="store_true", help="replace the file of --out if it exists")
    add_server_bundle(
        parser,
        required=False,
        help="the bundle that the server serves, for the words nearest to each token and how far each word of the "
        "change moves the query (needs the extra `server`)",
    )
    parser.add_argument("--http", metavar="URL", help="the server's HTTP address, for thumbnails of the answers")
    parser.add_argument(
        "--top-k", type=whole_number(1, MAX_TOP_K), default=10, metavar="K", help="answers at most (default: 10)"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="ID", help="an item that must not be answered; repeatable"
    )
    parser.add_argument(
        "--gallery", default="", metavar="NAME", help="the gallery to search (default: the server's first)"
    )
    parser.set_defaults(run=_explain)


def _explain(args: argparse.Namespace) -> int:
    from asymcir_common import read_image, write_atomically

    from asymcir_edge.explain import explain, fetch_thumbnails, open_text_side, render_sheet
    from asymcir_edge.remote.client import RetrievalClient

    check_output(args.out, force=args.force)
    credentials = read_credentials(args)
    text_side = None if args.server_bundle is None else open_text_side(args.server_bundle)
    with RetrievalClient(args.server, timeout_s=args.timeout, credentials=credentials) as client:
        found = explain(
            read_image(args.image),
            args.text,
            encoder=open_encoder(args),
            client=client,
            text_side=text_side,
            gallery=args.gallery,
            top_k=args.top_k,
            excluded_ids=args.exclude,
        )
    thumbnails = {}
    if args.http is not None:
        ids = [hit.id for answer in (found.before, found.after) for hit in answer.hits]
        thumbnails = fetch_thumbnails(args.http, found.after.gallery, ids, key=credentials.key, timeout_s=args.timeout)
    title = f"{args.image.name}, {args.text.strip() or 'without a change'}"
    write_atomically(
        args.out,
        render_sheet(found, title=title, thumbnails=thumbnails, words_from=str(args.server_bundle or "")),
    )
    print(f"wrote {args.out}")
    return 0
