"""`asymcir gallery list`, `verify`, `rollback` and `gc`: the snapshots of a gallery."""

import argparse
import dataclasses
import json

from asymcir_common.arguments import add_gallery_folder, whole_number

Subparsers = argparse._SubParsersAction  # argparse has no public name for it
_MAX_KEPT = 1_000_000


def register_history(actions: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the actions to `asymcir gallery`."""
    listed = actions.add_parser("list", help="list the snapshots of a gallery")
    add_gallery_folder(listed)
    listed.add_argument("--json", action="store_true", help="print JSON")
    listed.set_defaults(run=run_list)

    verify = actions.add_parser(
        "verify",
        help="read every file of a gallery and check it against its digest",
        description="Read every file of all snapshots, or of one, and check it against its digest. Opening a gallery "
        "checks large files by a sample only.",
    )
    add_gallery_folder(verify)
    verify.add_argument("--version", metavar="NUMBER", help="one snapshot (default: all)")
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(run=run_verify)

    rollback = actions.add_parser(
        "rollback",
        help="make an earlier snapshot the current one",
        description="Check an earlier snapshot and make it the current one. The later ones stay, and the next build "
        "takes the next number. The changes made to a snapshot stay with it. Servers that run follow.",
    )
    add_gallery_folder(rollback)
    rollback.add_argument("--version", metavar="NUMBER", help="which (default: the one before the current one)")
    rollback.add_argument(
        "--discard-changes", action="store_true", help="undo the changes made to that snapshot, for good"
    )
    rollback.add_argument("--json", action="store_true", help="print JSON")
    rollback.set_defaults(run=run_rollback)

    gc = actions.add_parser("gc", help="remove old snapshots")
    add_gallery_folder(gc)
    gc.add_argument(
        "--keep",
        type=whole_number(1, _MAX_KEPT),
        default=2,
        help="how many of the newest stay, beside the current one (default: 2)",
    )
    gc.add_argument("--json", action="store_true", help="print JSON")
    gc.set_defaults(run=run_gc)


def run_list(args: argparse.Namespace) -> int:
    """Run `asymcir gallery list`."""
    from asymcir_server.gallery.history import list_snapshots

    found = list_snapshots(args.gallery)
    if args.json:
        print(json.dumps([dataclasses.asdict(record) for record in found], indent=2))
        return 0
    for record in found:
        held = "damaged manifest" if record.size is None else f"{record.size} pictures as {record.target}"
        mark = "*" if record.current else " "
        line = f"{mark} {record.version}  {held}, {record.index_kind or 'no index'}, {record.size_bytes / 1e6:.1f} MB"
        if record.added or record.removed or record.updated:
            line += f"; changes: {record.added} added, {record.removed} removed, {record.updated} with other metadata"
        print(line)
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Run `asymcir gallery verify`."""
    from asymcir_server.gallery.history import verify_snapshots

    verified = verify_snapshots(args.gallery, args.version)
    if args.json:
        print(json.dumps({"verified": verified}, indent=2))
        return 0
    for version in verified:
        print(f"{version}: every file is as it was written")
    return 0


def run_rollback(args: argparse.Namespace) -> int:
    """Run `asymcir gallery rollback`."""
    from asymcir_server.gallery.history import rollback

    current = rollback(args.gallery, args.version, discard_changes=args.discard_changes)
    print(json.dumps({"current": current}, indent=2) if args.json else f"current snapshot: {current}")
    return 0


def run_gc(args: argparse.Namespace) -> int:
    """Run `asymcir gallery gc`."""
    from asymcir_server.gallery.history import remove_old_snapshots

    removed = remove_old_snapshots(args.gallery, keep=args.keep)
    print(json.dumps({"removed": removed}, indent=2) if args.json else f"removed: {', '.join(removed) or 'none'}")
    return 0
