"""The subcommand `asymcir bench-server`: arguments and output here, heavy imports inside the handler."""

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from asymcir_common.arguments import (
    MAX_IN_FLIGHT,
    MAX_TOP_K,
    add_device_bundle,
    add_server,
    seconds,
    whole_number,
)

from asymcir_benchmarks.errors import BenchmarkError

if TYPE_CHECKING:
    from asymcir_benchmarks.load.report import LoadReport

Subparsers = argparse._SubParsersAction  # argparse has no public name for it

MAX_PICTURES = 10_000
MAX_CONNECTIONS = 1000
DEFAULT_CHANGES = ("is red", "has dark skin tone", "is crying", "is facing right", "with white hair", "")
_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


def register_bench_server(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add `asymcir bench-server`."""
    parser = subparsers.add_parser(
        "bench-server",
        help="measure a running server under load",
        description="Send searches to a server at the times of a Poisson process, whether or not the earlier ones were "
        "answered, and report what it answered: a latency counts from the time at which the search was to be sent. "
        "With --callers measure the most that it answers instead.",
    )
    add_server(parser, timeout_s=_TIMEOUT_S)
    add_device_bundle(parser)
    parser.add_argument("--pictures", type=Path, required=True, metavar="PLACE", help="to search with")
    parser.add_argument(
        "--limit", type=whole_number(1, MAX_PICTURES), default=64, metavar="N", help="of so many (default: 64)"
    )
    parser.add_argument("--changes", type=Path, metavar="FILE", help="typed changes to send in turn, one a line")
    parser.add_argument("--gallery", default="", help="the gallery's name (default: the server's first)")
    parser.add_argument(
        "--top-k", type=whole_number(1, MAX_TOP_K), default=10, help="hits of each search (default: 10)"
    )
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument(
        "--rate", type=_rates, metavar="R[,R...]", help="searches a second; several rates are measured one by one"
    )
    load.add_argument(
        "--callers",
        type=whole_number(1, MAX_IN_FLIGHT),
        metavar="N",
        help="let N callers search again as soon as they are answered",
    )
    parser.add_argument("--seconds", type=seconds(0.1, 86_400.0), default=30.0, help="of each rate (default: 30)")
    parser.add_argument("--warm-up", type=seconds(0.0, 3600.0), default=2.0, help="before, not counted (default: 2)")
    parser.add_argument(
        "--connections", type=whole_number(1, MAX_CONNECTIONS), default=4, help="that share the searches (default: 4)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write figures and histograms here")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the latencies here (.svg or .png)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=run_bench_server, log_level=logging.INFO)


def run_bench_server(args: argparse.Namespace) -> int:
    """Run `asymcir bench-server`."""
    from asymcir_edge.command_parts import read_credentials

    from asymcir_benchmarks.load.generator import run_closed_loop, run_open_loop
    from asymcir_benchmarks.load.report import bucket_latencies, draw_latencies
    from asymcir_benchmarks.load.searches import make_searches
    from asymcir_benchmarks.results import write_result

    if args.picture is not None and args.picture.suffix.lower() not in (".svg", ".png"):
        raise BenchmarkError(f"expected a picture named .svg or .png, got {args.picture}")
    credentials = read_credentials(args)
    credentials.check_address(args.server)
    searches = make_searches(
        args.device_bundle,
        args.pictures,
        changes=read_changes(args.changes) if args.changes else DEFAULT_CHANGES,
        limit=args.limit,
        gallery=args.gallery,
        top_k=args.top_k,
    )
    sending = {
        "timeout_s": args.timeout,
        "metadata": credentials.metadata(),
        "credentials": credentials.channel_credentials(),
    }
    reports: dict[str, LoadReport] = {}
    try:
        if args.callers:
            if args.warm_up:
                run_closed_loop(args.server, searches, callers=args.callers, duration_s=args.warm_up, **sending)
            reports[f"{args.callers} callers"] = run_closed_loop(
                args.server, searches, callers=args.callers, duration_s=args.seconds, **sending
            )
        for rate in args.rate or ():
            rated = {**sending, "rate_per_s": rate, "connections": args.connections}
            if args.warm_up:
                run_open_loop(args.server, searches, duration_s=args.warm_up, seed=1, **rated)
            reports[f"{rate:g}/s"] = run_open_loop(args.server, searches, duration_s=args.seconds, **rated)
            _log.info("%g/s: %s", rate, describe(reports[f"{rate:g}/s"]))
    except ConnectionError as exc:
        raise BenchmarkError(
            f"{exc}: start one with `asymcir serve`, or check --server and the options of TLS"
        ) from exc
    figures = {f"{name}, {key}": value for name, report in reports.items() for key, value in report.figures().items()}
    if args.json:
        print(json.dumps({name: report.figures() for name, report in reports.items()}, indent=2))
    else:
        for name, report in reports.items():
            print(f"{name}: {describe(report)}")
    if args.out is not None:
        histograms = {
            f"{name}, latencies of answers": {
                f"{low:.3f} to {high:.3f} ms": str(count)
                for low, high, count in bucket_latencies(report.latencies_ms())
            }
            for name, report in reports.items()
        }
        write_result(args.out, figures=figures, details=histograms)
    if args.picture is not None:
        draw_latencies(reports, args.picture)
    return 0


def describe(report: "LoadReport") -> str:
    """Say what a run gave in a line."""
    figures = report.figures()
    parts = [f"{figures['answered, requests/s']:.1f} answers/s of {figures['offered, requests/s']:.1f} offered"]
    if "OK, p50, ms" in figures:
        tail = ", ".join(f"p{percent} {figures[f'OK, p{percent}, ms']:.1f}" for percent in ("50", "95", "99"))
        parts.append(f"{tail}, longest {figures['OK, longest, ms']:.1f} ms")
    parts += [
        f"{count} {status} (p95 {figures[f'{status}, p95, ms']:.1f} ms)"
        for status, count in sorted(report.counts.items())
        if status != "OK"
    ]
    parts.append(f"sent late by {figures['sent late, p99, ms']:.1f} ms (p99)")
    return "; ".join(parts)


def read_changes(path: Path) -> list[str]:
    """Read typed changes, one a line.

    Raises:
        BenchmarkError: the file cannot be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise BenchmarkError(f"cannot read {path}: {exc}") from exc
    if not any(line.strip() for line in lines):
        raise BenchmarkError(f"{path} holds no change: expected one a line")
    return lines


def _rates(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < rate <= 1_000_000 for rate in found):
        raise argparse.ArgumentTypeError(f"expected rates above 0 such as 50 or 20,50,100, got {text!r}")
    return found
