"""`asymcir gallery add`, `remove`, `update-metadata` and `compact`: a gallery changed without building it again."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from asymcir_common.arguments import (
    MAX_BATCH_SIZE,
    MAX_THREADS,
    MAX_TIMEOUT_S,
    add_gallery_folder,
    add_server_bundle,
    add_threads,
    path_name,
    seconds,
    whole_number,
)
from asymcir_common.files import read_utf8

Subparsers = argparse._SubParsersAction  # argparse has no public name for it
_SHOWN = 10
_MANY = 10_000  # added pictures, of which each search compares every one


def register_changes(actions: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the actions to `asymcir gallery`."""
    add = actions.add_parser(
        "add",
        help="add pictures to a gallery",
        description="Encode pictures and add them to a gallery. They are found at once, by running servers too. What "
        "the gallery holds already, by id and file, is passed over. A batch is on disk when the progress line counts "
        "it.",
    )
    add.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="what `asymcir gallery build` takes: folders, zips, uncompressed tars, .parquet files, .jsonl lists, URLs",
    )
    add_server_bundle(add)
    add_gallery_folder(add)
    add.add_argument("--replace", action="store_true", help="replace a picture whose id another one of the list has")
    add.add_argument("--batch-size", type=whole_number(1, MAX_BATCH_SIZE), default=32, metavar="N", help="default: 32")
    add.add_argument(
        "--workers",
        type=whole_number(0, MAX_THREADS),
        default=0,
        metavar="N",
        help="threads that read and decode (default: one per core, at most 8)",
    )
    add_threads(add, least=0, default=0, help="ONNX Runtime threads (default: its choice)")
    _add_common(add)
    add.set_defaults(run=run_add)

    remove = actions.add_parser(
        "remove",
        help="remove pictures from a gallery",
        description="Remove pictures, all in one change. Their files are not touched; ids that the gallery does not "
        "hold are listed.",
    )
    add_gallery_folder(remove)
    which = remove.add_mutually_exclusive_group(required=True)
    which.add_argument("--ids", metavar="ID,ID", help="ids with commas between them")
    which.add_argument("--ids-file", type=path_name, metavar="FILE", help="a file with one id a line, UTF-8")
    which.add_argument("--where", metavar="FILTER", help="those whose metadata satisfy a filter, such as 'sold = true'")
    _add_common(remove)
    remove.set_defaults(run=run_remove)

    update = actions.add_parser(
        "update-metadata",
        help="set metadata of pictures in a gallery",
        description="Set metadata keys, all in one change. Each line of the file names a picture by `id` and gives "
        "keys with their values. null removes a key; keys that are not named stay.",
    )
    add_gallery_folder(update)
    update.add_argument(
        "--from", dest="source", type=path_name, required=True, metavar="FILE.jsonl", help="the new values"
    )
    _add_common(update)
    update.set_defaults(run=run_update)

    compact = actions.add_parser(
        "compact",
        help="merge the changes into a new snapshot",
        description="Write the current snapshot with the changes made to it as the next snapshot, with an index of its "
        "own, and make it the current one. Servers answer all the time.",
    )
    add_gallery_folder(compact)
    compact.add_argument(
        "--index",
        choices=["auto", "exact", "sq8", "hnsw", "ivf-sq8", "ivf-rabitq"],
        help="index kind (default: as before; where `auto` chose that one, it chooses again)",
    )
    _add_common(compact)
    compact.set_defaults(run=run_compact)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait",
        type=seconds(0.0, MAX_TIMEOUT_S),
        default=0.0,
        metavar="SECONDS",
        help="how long to wait for another writer (default: 0)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_add(args: argparse.Namespace) -> int:
    """Run `asymcir gallery add`."""
    from asymcir_server.encode.bundle import ServerBundle
    from asymcir_server.gallery import AddConfig, add_pictures
    from asymcir_server.gallery.progress import ProgressLine

    config = AddConfig(batch_size=args.batch_size, workers=args.workers, replace=args.replace, wait_s=args.wait)
    bundle = ServerBundle.load(args.server_bundle, threads=args.threads)
    line = ProgressLine(sys.stderr)
    try:
        report = add_pictures(args.gallery, args.images, bundle, config=config, progress=line.update)
    finally:
        line.close()
    if args.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
        return 0
    print(
        f"{args.gallery}, snapshot {report.version}, change {report.change}: {report.added} added, {report.replaced} "
        f"replaced, {report.unchanged} there already, {len(report.rejected)} put aside, {report.size} pictures now, "
        f"{report.elapsed_s:.1f} s"
    )
    if report.pending > max(_MANY, report.size // 20):
        print(f"{report.pending} added since snapshot {report.version}: `asymcir gallery compact` merges them")
    for item in report.rejected[:_SHOWN]:
        print(f"put aside: {item.id}: {item.reason}")
    if len(report.rejected) > _SHOWN:
        print(f"put aside: {len(report.rejected) - _SHOWN} more; --json lists all of them")
    return 0


def run_remove(args: argparse.Namespace) -> int:
    """Run `asymcir gallery remove`."""
    from asymcir_protos import parse_filter

    from asymcir_server.gallery import edit_gallery

    where = None if args.where is None else parse_filter(args.where)
    ids = _read_ids(args.ids, args.ids_file)
    with edit_gallery(args.gallery, "gallery remove", wait_s=args.wait) as editor:
        removed, missing = editor.remove(ids if where is None else editor.select(where))
        size = editor.gallery.size
    _print_counts(args, "removed", {"removed": removed, "size": size}, missing)
    return 0


def run_update(args: argparse.Namespace) -> int:
    """Run `asymcir gallery update-metadata`."""
    from asymcir_server.gallery import edit_gallery
    from asymcir_server.gallery.changes.updates import read_updates

    updates = read_updates(args.source)
    with edit_gallery(args.gallery, "gallery update-metadata", wait_s=args.wait) as editor:
        report = editor.update(updates)
        size = editor.gallery.size
    counts = {"updated": report.updated, "unchanged": report.unchanged, "size": size}
    _print_counts(args, "updated", counts, report.missing)
    return 0


def run_compact(args: argparse.Namespace) -> int:
    """Run `asymcir gallery compact`."""
    from asymcir_server.gallery import compact_gallery

    report = compact_gallery(args.gallery, index=args.index, wait_s=args.wait)
    if args.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    elif report.added or report.removed or report.updated:
        print(
            f"snapshot {report.version}: {report.size} pictures, {report.added} added, {report.removed} removed, "
            f"{report.updated} with other metadata, index {report.index_kind}, recall@10 "
            f"{report.index_recall_at_10:.3f}, {report.elapsed_s:.1f} s"
        )
    else:
        print(f"snapshot {report.version}: nothing to merge")
    return 0


def _print_counts(args: argparse.Namespace, verb: str, counts: dict[str, int], missing: Any) -> None:
    if args.json:
        print(json.dumps(counts | {"missing": list(missing)}, indent=2))
        return
    rest = f", {counts['unchanged']} had it already" if "unchanged" in counts else ""
    print(f"{args.gallery}: {counts[verb]} {verb}{rest}, {counts['size']} pictures now")
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        print(f"not there: {', '.join(missing[:_SHOWN])}{more}")


def _read_ids(text: str | None, path: Path | None) -> list[str]:
    from asymcir_server.errors import GalleryBuildError

    if path is None:
        ids = [part.strip() for part in (text or "").split(",") if part.strip()]
        if text is not None and not ids:
            raise GalleryBuildError("expected at least one id in --ids")
        return ids
    lines = read_utf8(path).replace("\r\n", "\n").split("\n")
    return [line for line in lines if line]
