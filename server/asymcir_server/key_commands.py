"""`asymcir keys`: who may call a server."""

import argparse
import json
from typing import TYPE_CHECKING

from asymcir_common.arguments import path_name

if TYPE_CHECKING:
    from asymcir_server.serve.security.keys import Key

Subparsers = argparse._SubParsersAction  # argparse has no public name for it


def register_keys(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add `asymcir keys` and its actions."""
    keys = subparsers.add_parser("keys", help="make, list and revoke the keys that callers of a server send")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser(
        "create",
        help="make a key and print it",
        description="Make a key and print it. The file holds its digest only: it cannot be printed again. Servers that "
        "run with --keys FILE take it within a second.",
    )
    _add_file(create, help="the file that `asymcir serve --keys` reads; made where there is none")
    create.add_argument("--name", required=True, help="whom it is for")
    create.add_argument(
        "--role", choices=["search", "admin"], default="search", help="admin may change galleries too (default: search)"
    )
    create.add_argument(
        "--rate",
        type=calls_per_second,
        metavar="N",
        help="calls a second that it may make, such as 50 or 0.5 (default: any number)",
    )
    create.add_argument("--json", action="store_true", help="print JSON")
    create.set_defaults(run=run_create)
    listed = actions.add_parser("list", help="list the keys of a file")
    _add_file(listed)
    listed.add_argument("--json", action="store_true", help="print JSON")
    listed.set_defaults(run=run_list)
    revoke = actions.add_parser("revoke", help="remove a key; servers refuse it within a second")
    _add_file(revoke)
    revoke.add_argument("id", help="the key's id, as `list` shows it")
    revoke.add_argument("--json", action="store_true", help="print JSON")
    revoke.set_defaults(run=run_revoke)


def calls_per_second(text: str) -> float:
    """Read a rate; what it may be is checked where keys are made."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected calls a second, such as 50 or 0.5, got {text}") from None


def _add_file(parser: argparse.ArgumentParser, help: str = "the file of keys") -> None:
    parser.add_argument("--keys", type=path_name, required=True, metavar="FILE", help=help)


def run_create(args: argparse.Namespace) -> int:
    """Run `asymcir keys create`."""
    from asymcir_server.serve.security import create_key

    key = create_key(args.keys, name=args.name, role=args.role, rate=args.rate)
    print(json.dumps({"key": key}, indent=2) if args.json else key)
    return 0


def run_list(args: argparse.Namespace) -> int:
    """Run `asymcir keys list`."""
    from asymcir_server.serve.security import read_keys

    keys = read_keys(args.keys)
    if args.json:
        print(json.dumps([_record(key) for key in keys], indent=2))
        return 0
    for key in keys:
        limit = "" if key.rate is None else f"  {key.rate:g} calls a second"
        print(f"{key.id}  {key.role:<6}  {key.created}  {key.name}{limit}")
    return 0


def run_revoke(args: argparse.Namespace) -> int:
    """Run `asymcir keys revoke`."""
    from asymcir_server.serve.security import revoke_key

    key = revoke_key(args.keys, args.id)
    print(json.dumps({"revoked": _record(key)}, indent=2) if args.json else f"revoked {key.id} of {key.name}")
    return 0


def _record(key: "Key") -> dict[str, str | float | None]:
    """Give what `list` shows of a key; the digest stays in the file."""
    return {"id": key.id, "role": key.role, "created": key.created, "name": key.name, "rate": key.rate}
