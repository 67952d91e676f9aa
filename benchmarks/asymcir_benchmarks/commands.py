"""The subcommand `asymcir eval`: arguments and output here, heavy imports inside the handler."""

import argparse
from pathlib import Path

Subparsers = argparse._SubParsersAction  # argparse has no public name for it


def register_eval(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add `asymcir eval emojicir`."""
    parser = subparsers.add_parser("eval", help="measure retrieval accuracy on a dataset")
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    emojicir = datasets.add_parser(
        "emojicir",
        help="composed queries derived by rule from emoji names",
        description="Rank each triplet's target by the composed query and every baseline, through the bundles.",
    )
    emojicir.add_argument(
        "--triplets", type=Path, required=True, help="JSON lines: reference, modifier, target, family"
    )
    emojicir.add_argument("--pictures", type=Path, required=True, help="folder of query pictures, REFERENCE + suffix")
    emojicir.add_argument("--suffix", default=".webp", help="of the query pictures (default: .webp)")
    emojicir.add_argument("--bundle", type=Path, required=True, metavar="SERVER_BUNDLE")
    emojicir.add_argument("--device", type=Path, required=True, metavar="DEVICE_BUNDLE")
    emojicir.add_argument("--gallery", type=Path, required=True, help="its items' metadata must hold their name")
    emojicir.add_argument("--out", type=Path, help="write the figures here as JSON")
    emojicir.set_defaults(run=run_emojicir)


def run_emojicir(args: argparse.Namespace) -> int:
    """Evaluate, print, and write the figures."""
    from asymcir_edge import DeviceBundle, QueryEncoder
    from asymcir_server import Gallery, ServerBundle

    from asymcir_benchmarks.evaluate import evaluate_triplets, read_triplets
    from asymcir_benchmarks.results import write_result
    from asymcir_benchmarks.tables import format_recalls, recall_figures

    bundle = ServerBundle.load(args.bundle)
    gallery = Gallery.open(args.gallery, bundle.target_spaces)
    triplets = read_triplets(args.triplets)
    targets = list(dict.fromkeys(triplet.target for triplet in triplets))
    names = dict(zip(targets, (str(record.get("name", "")) for record in gallery.metadata(targets)), strict=True))
    evaluation = evaluate_triplets(
        triplets,
        pictures=args.pictures,
        suffix=args.suffix,
        names=names,
        bundle=bundle,
        encoder=QueryEncoder(DeviceBundle.load(args.device)),
        gallery=gallery,
    )
    print(f"{len(triplets)} triplets, gallery of {gallery.size} ({gallery.target}), reference excluded")
    print(format_recalls(evaluation))
    if args.out is not None:
        write_result(args.out, figures=recall_figures(evaluation, f"triplets, {gallery.target} gallery"))
        print(f"figures: {args.out}")
    return 0
