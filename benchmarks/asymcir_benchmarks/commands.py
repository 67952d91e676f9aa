"""The subcommand `asymcir eval`: arguments and output here, heavy imports inside the handler."""

import argparse
import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path

Subparsers = argparse._SubParsersAction  # argparse has no public name for it

SPLITS = ("dev", "test", "novel")  # dataset.SPLITS, whose module would be a heavy import
PUBLISHED = ("test", "novel")
COMMAND = "asymcir eval emojicir --assets demo/assets --out benchmarks/results/emojicir.json"
"""How to get the published figures again, wherever they were written and built this time."""


def register_eval(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add `asymcir eval emojicir`."""
    parser = subparsers.add_parser("eval", help="measure retrieval accuracy on a dataset")
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    emojicir = datasets.add_parser(
        "emojicir",
        help="composed queries derived by rule from emoji names",
        description="Build the galleries, then rank composed queries, pictures and sketches through the bundles.",
    )
    emojicir.add_argument("--assets", type=Path, required=True, help="the data set's folder, demo/assets say")
    emojicir.add_argument(
        "--split", action="append", choices=SPLITS, help="may be given again (default: test and novel)"
    )
    emojicir.add_argument("--device", type=Path, metavar="DEVICE_BUNDLE", help="(default: ASSETS/device)")
    emojicir.add_argument("--bundle", type=Path, metavar="SERVER_BUNDLE", help="(default: ASSETS/server)")
    emojicir.add_argument("--work", type=Path, help="build the galleries here and leave them (default: temporary)")
    emojicir.add_argument("--out", type=Path, help="write the figures here as JSON")
    emojicir.set_defaults(run=run_emojicir, log_level=logging.INFO)


def run_emojicir(args: argparse.Namespace) -> int:
    """Evaluate, print, and write the figures."""
    from asymcir_edge import DeviceBundle, QueryEncoder
    from asymcir_server import ServerBundle

    from asymcir_benchmarks.cost import measure_cost
    from asymcir_benchmarks.dataset import EmojiCir
    from asymcir_benchmarks.protocol import build_galleries, evaluate_emojicir
    from asymcir_benchmarks.results import write_result
    from asymcir_benchmarks.tables import emojicir_figures, format_goals, format_split, goals_by_scope

    splits = tuple(dict.fromkeys(args.split or PUBLISHED))
    dataset = EmojiCir.load(args.assets)
    dataset.require(splits)
    device = DeviceBundle.load(args.device or args.assets / "device")
    bundle = ServerBundle.load(args.bundle or args.assets / "server")
    cost = measure_cost(device.encoder_path(), device.preprocessing.size)
    with ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asymcir-eval-")))
        galleries = build_galleries(dataset, bundle, work)
        for gallery in galleries.values():
            stack.callback(gallery.close)
        reports = evaluate_emojicir(
            dataset, bundle=bundle, encoder=QueryEncoder(device), galleries=galleries, splits=splits
        )
    parts = [format_split(split, report) for split, report in reports.items()]
    parts += [format_goals(scope, goals) for scope, goals in goals_by_scope(reports, cost).items()]
    print("\n\n".join(parts))
    if args.out is not None:
        published = (splits, args.assets, args.device, args.bundle) == (PUBLISHED, Path("demo/assets"), None, None)
        write_result(args.out, figures=emojicir_figures(reports, cost), command=COMMAND if published else None)
        print(f"figures: {args.out}")
    return 0
