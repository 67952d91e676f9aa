"""The subcommand `asymcir eval`: arguments and output here, heavy imports inside the handler."""

import argparse
import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path

from asymcir_common.arguments import MAX_THREADS, add_device_bundle, add_server_bundle, path_name, whole_number

from asymcir_benchmarks.errors import BenchmarkError

Subparsers = argparse._SubParsersAction  # argparse has no public name for it

SPLITS = ("dev", "test", "novel")  # dataset.SPLITS, whose module would be a heavy import
PUBLISHED = ("test", "novel")
MAX_TRIPLETS = 100_000_000
SYSTEMS = ("isa", "isa-symmetric", "transagg", "image", "text", "image+text")  # query_systems.SYSTEMS, likewise
TARGETS = ("union", "sum", "original")
FORMATS = ("auto", "lasco", "llavasco", "cirr", "sketchy", "jsonl")  # triplet_formats.FORMATS, likewise
COMMAND = "asymcir eval emojicir --assets demo/assets --out benchmarks/results/emojicir.json"
"""How to get the published figures again, wherever they were written and built this time."""


def register_eval(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add `asymcir eval emojicir`, `asymcir eval triplets` and `asymcir eval tokens`."""
    parser = subparsers.add_parser("eval", help="measure retrieval accuracy on a dataset")
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    emojicir = datasets.add_parser(
        "emojicir",
        help="measure composed queries and sketches on the emoji, through the bundles",
        description="Build the galleries, then rank composed queries, pictures and sketches through the bundles.",
    )
    emojicir.add_argument("--assets", type=path_name, required=True, help="the data set's folder, such as demo/assets")
    emojicir.add_argument(
        "--split", action="append", choices=SPLITS, help="measure this split; repeatable (default: test and novel)"
    )
    add_device_bundle(emojicir, required=False, help="the device bundle (default: ASSETS/device)")
    add_server_bundle(emojicir, required=False, help="the server bundle (default: ASSETS/server)")
    emojicir.add_argument("--work", type=path_name, help="build the galleries here and leave them (default: temporary)")
    emojicir.add_argument("--out", type=path_name, help="write the figures here as JSON")
    emojicir.set_defaults(run=run_emojicir, log_level=logging.INFO)
    _register_triplets(datasets)
    _register_tokens(datasets)


def _register_tokens(datasets: "Subparsers[argparse.ArgumentParser]") -> None:
    tokens = datasets.add_parser(
        "tokens",
        help="measure how different the sentence tokens of a picture are, and what each is worth",
        description="Encode pictures and compare the tokens of each. With --assets also rank the composed queries of a "
        "split of EmojiCIR with some of the tokens, with their mean, and in another order, and measure what each "
        "length of the sentence costs.",
    )
    add_device_bundle(tokens)
    tokens.add_argument(
        "--pictures", type=path_name, required=True, metavar="PLACE", help="folder or archive of pictures"
    )
    tokens.add_argument(
        "--limit",
        type=whole_number(2, MAX_TRIPLETS),
        default=300,
        metavar="N",
        help="encode so many pictures, spread evenly (default: 300)",
    )
    tokens.add_argument("--assets", type=path_name, metavar="DIR", help="data set to search in, such as demo/assets")
    add_server_bundle(tokens, required=False, help="the server bundle (default: ASSETS/server)")
    tokens.add_argument("--split", choices=SPLITS, default="dev", help="split of the data set (default: dev)")
    tokens.add_argument("--out", type=path_name, help="write the figures here as JSON")
    tokens.set_defaults(run=run_tokens, log_level=logging.INFO)


def _register_triplets(datasets: "Subparsers[argparse.ArgumentParser]") -> None:
    triplets = datasets.add_parser(
        "triplets",
        help="measure a list of triplets by the systems of the papers, from checkpoints (needs torch)",
        description="Rank the right answers of a list of triplets among its own pictures, and those of --gallery, by "
        "one system. The reference is taken out of its own ranking.",
    )
    triplets.add_argument(
        "triplets", type=path_name, metavar="TRIPLETS", help="JSON lines, or a list of LaSCo, CIRR, ..."
    )
    triplets.add_argument("--format", choices=FORMATS, default="auto", help="the list's format (default: auto)")
    triplets.add_argument(
        "--images",
        type=path_name,
        metavar="FOLDER",
        help="folder that the list's paths start from (default: by the format)",
    )
    triplets.add_argument(
        "--limit",
        type=whole_number(1, MAX_TRIPLETS),
        metavar="N",
        help="evaluate so many, spread evenly over the list (default: all)",
    )
    triplets.add_argument("--foundation", required=True, metavar="NAME", help="open_clip model, or local-dir:FOLDER")
    triplets.add_argument("--pretrained", metavar="TAG", help="pretrained tag or checkpoint of that model")
    triplets.add_argument("--system", required=True, choices=SYSTEMS, help="what makes the query vector")
    triplets.add_argument(
        "--query", type=path_name, metavar="CHECKPOINT", help="checkpoint of the system isa, isa-symmetric or transagg"
    )
    triplets.add_argument(
        "--target", choices=TARGETS, default="original", help="what stands in the gallery (default: original)"
    )
    triplets.add_argument("--union", type=path_name, metavar="CHECKPOINT", help="UNION head, for --target union")
    triplets.add_argument(
        "--gallery",
        type=path_name,
        action="append",
        default=[],
        metavar="FOLDER",
        help="search the pictures of this folder too; repeatable",
    )
    triplets.add_argument(
        "--keep-reference", action="store_true", help="leave the reference in its own ranking (FashionIQ's protocol)"
    )
    triplets.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    triplets.add_argument(
        "--workers",
        type=whole_number(0, MAX_THREADS),
        default=0,
        metavar="N",
        help="processes that decode pictures (default: 0)",
    )
    triplets.add_argument(
        "--cache", type=path_name, metavar="FOLDER", help="keep the embeddings here (default: temporary)"
    )
    triplets.add_argument("--json", type=path_name, metavar="OUT", help="write the figures here")
    triplets.set_defaults(run=run_triplets, log_level=logging.INFO)


def run_emojicir(args: argparse.Namespace) -> int:
    """Evaluate, print, and write the figures."""
    from asymcir_edge import DeviceBundle, QueryEncoder
    from asymcir_server import ServerBundle

    from asymcir_benchmarks.emojicir.dataset import EmojiCir
    from asymcir_benchmarks.emojicir.goals import read_cost
    from asymcir_benchmarks.emojicir.protocol import build_galleries, evaluate_emojicir
    from asymcir_benchmarks.pages.emojicir_tables import emojicir_figures, format_goals, format_split, goals_by_scope
    from asymcir_benchmarks.results import write_result

    splits = tuple(dict.fromkeys(args.split or PUBLISHED))
    dataset = EmojiCir.load(args.assets)
    dataset.require(splits)
    device = DeviceBundle.load(args.device_bundle or args.assets / "device")
    bundle = ServerBundle.load(args.server_bundle or args.assets / "server")
    cost = read_cost(device)
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
        asked = (splits, args.assets, args.device_bundle, args.server_bundle)
        published = asked == (PUBLISHED, Path("demo/assets"), None, None)
        write_result(args.out, figures=emojicir_figures(reports, cost), command=COMMAND if published else None)
        print(f"figures: {args.out}")
    return 0


def run_tokens(args: argparse.Namespace) -> int:
    """Compare the tokens of pictures, rank with some of them, print, and write the figures."""
    from asymcir_edge import DeviceBundle, QueryEncoder

    from asymcir_benchmarks.emojicir.token_ablation import describe_tokens, evaluate_tokens
    from asymcir_benchmarks.results import write_result
    from asymcir_benchmarks.retrieval.token_diversity import format_diversity, measure_pictures

    if args.server_bundle is not None and args.assets is None:
        raise BenchmarkError("--server-bundle is searched with the queries of a data set: pass --assets too")
    encoder = QueryEncoder(DeviceBundle.load(args.device_bundle))
    diversity, count = measure_pictures(encoder, args.pictures, limit=args.limit)
    print(format_diversity(diversity, pictures=count))
    figures = diversity.figures() | {"pictures": float(count)}
    if args.assets is not None:
        ranked = evaluate_tokens(args.assets, args.split, encoder, args.server_bundle or args.assets / "server")
        print(f"\n{describe_tokens(ranked)}")
        figures |= ranked.figures()
    if args.out is not None:
        write_result(args.out, figures={key: round(value, 4) for key, value in figures.items()})
        print(f"figures: {args.out}")
    return 0


def run_triplets(args: argparse.Namespace) -> int:
    """Evaluate a list of triplets, print, and write the figures."""
    from asymcir_training.foundation.model import load_foundation
    from asymcir_training.triplets.formats import read_triplets

    from asymcir_benchmarks.results import write_result
    from asymcir_benchmarks.retrieval.query_systems import QuerySystem
    from asymcir_benchmarks.retrieval.triplets import evaluate_triplets, format_report, load_head, report_figures

    triplets = read_triplets(args.triplets, format=args.format, images=args.images, limit=args.limit)
    foundation = load_foundation(args.foundation, args.pretrained).to(args.device)
    system = QuerySystem(args.system, foundation, args.query)
    head = load_head(args.union, foundation, target=args.target, system=system)
    with ExitStack() as stack:
        cache = args.cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asymcir-eval-")))
        report = evaluate_triplets(
            triplets,
            system,
            foundation,
            target=args.target,
            head=head,
            folders=args.gallery,
            keep_reference=args.keep_reference,
            cache=cache,
            workers=args.workers,
        )
    print(format_report(report, system=args.system, target=args.target))
    if args.json is not None:
        write_result(args.json, figures=report_figures(report, system=args.system, target=args.target))
        print(f"figures: {args.json}")
    return 0
