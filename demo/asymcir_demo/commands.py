"""The subcommand `asymcir demo`: arguments and output here, heavy imports inside the handler."""

import argparse
import resource
import shlex
import sys
import time
from pathlib import Path

from asymcir_common.arguments import MAX_PORT, path_name, whole_number

Subparsers = argparse._SubParsersAction  # argparse has no public name for it


def register_demo(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add `asymcir demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="build the demo's gallery, serve it, and run composed queries and sketches",
        description="Check the demo's bundles, build its gallery, serve it over gRPC, run composed queries and "
        "sketches of pictures that nothing was trained on, add a picture, find it by a filter and remove it again, "
        "measure the held-out queries, and draw a contact sheet.",
    )
    parser.add_argument(
        "--assets", type=path_name, default=Path("demo/assets"), help="the data set's folder (default: demo/assets)"
    )
    parser.add_argument(
        "--out",
        type=path_name,
        default=Path("demo/out"),
        help="write gallery and contact sheet here (default: demo/out)",
    )
    parser.add_argument(
        "--port", type=whole_number(0, MAX_PORT), default=0, help="the server's port (default: a free one)"
    )
    parser.add_argument("--figures", type=path_name, help="write what was measured here as JSON")
    parser.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    """Run the demo."""
    from asymcir_benchmarks.emojicir.dataset import SUFFIX
    from asymcir_benchmarks.pages.emojicir_tables import format_recalls, recall_figures
    from asymcir_benchmarks.results import write_result
    from asymcir_edge import DeviceBundle, QueryEncoder, RetrievalClient
    from asymcir_server import ServerBundle

    from asymcir_demo.assets import Assets
    from asymcir_demo.run import ask, build, change, measure, serving
    from asymcir_demo.sheet import TOP, draw_sheet

    started_s = time.monotonic()
    assets = Assets.find(args.assets)
    print("1. Checking the bundles against their manifests")
    device = DeviceBundle.load(assets.device_bundle)
    server = ServerBundle.load(assets.server_bundle)
    print(
        f"   device: {device.sentence_length} tokens of width {device.word_width}, word space {device.word_space[:12]}"
    )
    print(f"   server: word space {server.word_space[:12]}, target space {server.target_space('union')[:12]} (union)")

    print("2. Building the gallery")
    gallery = args.out / "gallery"
    report = build(assets, gallery, _print_progress)
    rate = report.size / report.elapsed_s
    print(f"   snapshot {report.version}: {report.size} pictures in {report.elapsed_s:.0f} s ({rate:.0f}/s), ", end="")
    print(f"{report.quarantined} quarantined, index recall@10 {report.index_recall_at_10:.3f}")

    print("3. Serving it, and asking over gRPC")
    encoder = QueryEncoder(device)
    with serving(assets, gallery, args.port) as address, RetrievalClient(address) as client:
        answers = ask(assets, encoder, client)
        changed = change(assets, encoder, client)
    # Both processes at their largest, though not at the same moment: an upper bound.
    serving_mb = _peak_memory_mb(resource.RUSAGE_SELF) + _peak_memory_mb(resource.RUSAGE_CHILDREN)
    print(f"   {'query':<34} {'change':<34} {'rank':>4}  {'ms':>5}  first answer")
    for row, result in answers:
        rank = str(row.rank) if row.rank else ">10"
        first = (result.hits[0].metadata or {}).get("name", result.hits[0].id)
        print(f"   {row.query.stem:<34.34} {row.change:<34.34} {rank:>4}  {result.timing.round_trip_ms:>5.1f}  {first}")
    sizes = [result.request_size_bytes for _, result in answers]
    print(f"   a query on the wire: {min(sizes)} to {max(sizes)} bytes; the server never saw a picture")

    print("4. Changing it while it is served")
    found = f"rank {changed.rank}" if changed.rank else "not among the first ten"
    print(f"   added the query {changed.query.stem} (gallery {changed.version}): found by {changed.where} ", end="")
    print(f"{changed.visible_ms:.0f} ms after it was sent, opening the visual encoder included; by itself: {found}")
    print(f"   removed it again (gallery {changed.version_after}): not found any more")

    print("5. Measuring held-out triplets and sketches (all of them, and more: asymcir eval emojicir)")
    triplets, sketches = measure(assets, gallery, server, encoder)
    count = len(triplets.triplets)
    print(_indent(f"{count} composed queries, the style unseen by every stage, the concepts by the distillation:"))
    print(_indent(format_recalls(triplets)))
    print(_indent(f"{len(sketches.triplets)} sketches of concepts unseen by the distillation:"))
    print(_indent(format_recalls(sketches)))

    sheet = args.out / "contact-sheet.png"
    right = sum(1 for row, _ in answers if row.rank and row.rank <= TOP)
    title = f"asymcir demo: {len(answers)} queries, right answer among the top {TOP} for {right}"
    draw_sheet([row for row, _ in answers], assets.gallery, SUFFIX, title, sheet)
    print(f"6. Contact sheet: {sheet}")
    elapsed_s, memory_mb = time.monotonic() - started_s, max(serving_mb, _peak_memory_mb(resource.RUSAGE_SELF))
    if args.figures is not None:
        figures = {
            "pictures in the gallery": float(report.size),
            "gallery build, pictures/s": rate,
            "query on the wire, bytes": float(max(sizes)),
            "demo, s": elapsed_s,
            "peak memory, MB": memory_mb,
            **recall_figures(triplets, "triplets"),
            **recall_figures(sketches, "sketches"),
        }
        write_result(args.figures, figures={name: round(value, 6) for name, value in figures.items()})
        print(f"   figures: {args.figures}")
    print(f"\nDone in {elapsed_s:.0f} s, peak memory {memory_mb:.0f} MB. Try your own picture:\n")
    # The command may not be on the PATH: name the one that runs.
    asymcir = shlex.quote(sys.argv[0]) if Path(sys.argv[0]).name == "asymcir" else "asymcir"
    print(f"   {asymcir} serve --server-bundle {assets.server_bundle} --gallery {gallery} --port 50051\n")
    print('and, when that has printed "serving", in a second terminal:\n')
    print(
        f"   {asymcir} query --image YOUR.jpg --text 'is blue' --server localhost:50051 "
        f"--device-bundle {assets.device_bundle}"
    )
    print("\nor in a browser, by a photograph or a drawing, at http://localhost:8080:\n\n   make demo-web")
    print("\nor your own gallery:\n")
    print(f"   {asymcir} gallery build YOUR_PICTURES --server-bundle {assets.server_bundle} --gallery my-gallery")
    print(f"   {asymcir} serve --server-bundle {assets.server_bundle} --gallery my-gallery --port 50052")
    return 0


def _peak_memory_mb(who: int) -> float:
    """Largest resident size so far of this process, or of its largest child, the builder or the server."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(who).ru_maxrss * unit_bytes / 1e6


def _print_progress(done: int, total: int, quarantined: int) -> None:
    if done == total or done % 640 == 0:
        print(f"   {done}/{total} pictures, {quarantined} quarantined", flush=True)


def _indent(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
