"""What a server answers under load, with the queries of a run encoded together and each alone.

    python -m asymcir_benchmarks.costs.server_load --server-bundle S --device-bundle D --gallery G --pictures P --out F

Each server answers 1, 8 and 64 callers, who ask again as soon as they are answered, from a process of their own. The
servers are the same but for `--max-batch`; they take turns, several rounds, and medians over the rounds are published.
The machine computes the callers' side too, so the ratio says more than the rates.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from asymcir_common import AsymcirError, read_image
from asymcir_common.arguments import MAX_REPEATS, ArgumentParser, seconds, whole_number
from asymcir_common.places import PathReader, find_pictures
from asymcir_edge import DeviceBundle, QueryEncoder, RetrievalClient
from asymcir_edge.errors import ServerOverloadedError
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig, ServiceLimits

from asymcir_benchmarks.results import write_result

CALLERS = (1, 8, 64)
CHANGES = ("is red", "has dark skin tone", "is crying", "is facing right", "with white hair", "")
_PICTURES = 32
_LOG = logging.getLogger(__name__)


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.costs.server_load", description=__doc__)
    parser.add_argument("--server-bundle", type=Path, required=True)
    parser.add_argument("--device-bundle", type=Path, required=True)
    parser.add_argument("--gallery", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True, help="to ask with")
    parser.add_argument("--rounds", type=whole_number(1, MAX_REPEATS), default=3, help="(default: 3)")
    parser.add_argument("--seconds", type=seconds(0.1, 3600.0), default=5.0, help="of each measurement (default: 5)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ask", help="the callers' side: address, callers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the figures."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _LOG.setLevel(logging.INFO)
    try:
        if args.ask:
            address, callers = args.ask.split(",")
            answers = ask(address, int(callers), args.device_bundle, args.pictures, args.seconds)
            print(json.dumps(answers))  # noqa: T201
            return 0
        figures = measure(args)
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    write_result(args.out, figures=figures, command="make bench-server-load")
    return 0


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Let both servers answer in turn; returns figures by name."""
    rates: dict[tuple[str, int, str], list[float]] = {}
    bundle = ServerBundle.load(args.server_bundle)
    gallery = Gallery.open(args.gallery, bundle.target_spaces)
    try:
        for number in range(args.rounds):
            for name, most in (("together", 32), ("each alone", 1)):
                limits = ServiceLimits(max_batch=most, max_in_flight=128)
                with RetrievalServer(bundle, {"g": gallery}, ServerConfig(limits=limits)) as server:
                    for callers in CALLERS:
                        for key, value in _run_callers(server.address, callers, args).items():
                            rates.setdefault((name, callers, key), []).append(value)
            _LOG.info("round %d of %s", number + 1, args.rounds)
    finally:
        gallery.close()
    figures: dict[str, float] = {"gallery": float(gallery.size)}
    for (name, callers, key), values in rates.items():
        figures[f"{name}, {callers} callers, {key}"] = round(statistics.median(values), 3)
    for callers in CALLERS:
        together, alone = (figures[f"{name}, {callers} callers, answers/s"] for name in ("together", "each alone"))
        figures[f"{callers} callers, together over each alone"] = round(together / alone, 3)
    return figures


def ask(address: str, callers: int, device_bundle: Path, pictures: Path, duration_s: float) -> dict[str, float]:
    """Ask from `callers` threads, each again as soon as it is answered.

    Returns:
        Answers a second, and the median and 95th percentile of the time that one takes, milliseconds.
    """
    encoder = QueryEncoder(DeviceBundle.load(device_bundle), threads=1)
    reader = PathReader()
    tokens = [encoder.encode_image(read_image(path, reader)) for path in find_pictures(pictures)[:_PICTURES]]
    word_space = encoder.bundle.word_space
    with RetrievalClient(address) as client:
        client.search(tokens[0], word_space)
        times: list[float] = []
        refused, lock = [0], threading.Lock()
        end_s = time.monotonic() + duration_s

        def call(place: int) -> None:
            own, turned_away, number = list[float](), 0, place
            while (started_s := time.monotonic()) < end_s:
                try:
                    client.search(tokens[number % len(tokens)], word_space, CHANGES[number % len(CHANGES)])
                    own.append(time.monotonic() - started_s)
                except ServerOverloadedError:
                    turned_away += 1
                number += 1
            with lock:
                times.extend(own)
                refused[0] += turned_away

        threads = [threading.Thread(target=call, args=(place,)) for place in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {
        "answers/s": len(times) / duration_s,
        "median, ms": float(np.median(times)) * 1000.0,
        "p95, ms": float(np.percentile(times, 95)) * 1000.0,
        "refused": float(refused[0]),
    }


def _run_callers(address: str, callers: int, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "asymcir_benchmarks.costs.server_load", "--ask", f"{address},{callers}"]
    for name in ("server_bundle", "device_bundle", "gallery", "pictures", "seconds", "out"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
