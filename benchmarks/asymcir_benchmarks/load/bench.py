"""A server with a large text encoder under load, beside how users search by text today, in the same run.

    python -m asymcir_benchmarks.load.bench --bundle FOLDER --model ViT-L-14 --work FOLDER --out RESULT.json

FOLDER is a server bundle of the architecture, of random weights, as `asymcir_benchmarks.costs.server_bundles` writes
it. Both serve a gallery of the same vectors. In every round each server, alone on the machine but for the generator,
answers

- 1 and 64 callers in a closed loop, the larger of which is taken as the most that it answers;
- open-loop arrivals at a tenth of that ("unloaded"), at 70% of it, and at ten times as much ("overload").

What the text encoder and the search take without a server, one query at a time and in full batches, is measured in the
same rounds. Published are medians over the rounds; times hold for the machine that is named, ratios say more.
"""

import argparse
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from asymcir_common import AsymcirError, read_manifest, write_manifest
from asymcir_common.arguments import MAX_REPEATS, ArgumentParser, seconds, whole_number
from asymcir_common.manifest import GALLERY
from asymcir_protos import pack_tokens
from asymcir_protos.v1 import retrieval_pb2
from asymcir_server import Gallery, ServerBundle, TextEncoder
from asymcir_server.gallery.vectors_file import VECTORS_NAME
from numpy.typing import NDArray

from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.load.generator import run_closed_loop, run_open_loop
from asymcir_benchmarks.load.report import LoadReport, draw_latencies
from asymcir_benchmarks.load_commands import DEFAULT_CHANGES, describe
from asymcir_benchmarks.results import write_result
from asymcir_benchmarks.retrieval.changes import write_gallery

OURS, PEER = "asymcir", "open_clip, one padded text at a time"
CALLERS = (1, 64)
LENGTH = 6
BATCH = 32
SHARES: Mapping[str, float] = {"unloaded": 0.1, "at 70%": 0.7, "overload": 10.0}
_PICTURES = 32
_TIMEOUT_S = 60.0
_READY_S = 300.0
_DIRECT = 20
_LOG = logging.getLogger(__name__)


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.load.bench", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="a server bundle of the architecture")
    parser.add_argument("--model", required=True, help="the architecture, for the peer")
    parser.add_argument(
        "--text-compute", choices=["fp32", "int8"], default="int8", help="of our text tower (default: int8)"
    )
    parser.add_argument("--gallery-size", type=whole_number(100, 100_000_000), default=100_000, metavar="N")
    parser.add_argument("--rounds", type=whole_number(1, MAX_REPEATS), default=3, help="(default: 3)")
    parser.add_argument("--seconds", type=seconds(1.0, 3600.0), default=20.0, help="of each load (default: 20)")
    parser.add_argument("--work", type=Path, required=True, help="for the gallery, kept")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="of the latencies, .svg or .png")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the figures."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _LOG.setLevel(logging.INFO)
    try:
        figures, reports = measure(args)
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    write_result(args.out, figures=figures, command="make bench-server")
    if args.picture is not None:
        draw_latencies(reports, args.picture)
    return 0


def measure(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, LoadReport]]:
    """Measure both servers and the bare encoder; returns the figures, and the last round's runs by name."""
    folder = _choose_bundle(args)
    bundle = ServerBundle.load(folder)
    gallery = _make_gallery(args, bundle)
    vectors = next((gallery / "snapshots").iterdir()) / VECTORS_NAME
    searches = _make_searches(bundle)
    texts = [
        f"a photo of a thing like number {n} that {change}".encode() for n in range(8) for change in DEFAULT_CHANGES
    ]
    found: dict[str, list[float]] = {}
    reports: dict[str, LoadReport] = {}

    def note(values: Mapping[str, float]) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    for number in range(args.rounds):
        note(_measure_bare(bundle, gallery))
        ours = [sys.executable, "-m", "asymcir_edge", "serve", "--server-bundle", folder]
        ours += ["--gallery", f"g={gallery}", "--port", "0", "--no-follow"]
        peer = [sys.executable, "-m", "asymcir_benchmarks.load.peer", "--model", args.model, "--vectors", vectors]
        for name, command, requests in ((OURS, ours, searches), (PEER, peer, texts)):
            with _serving(command, args.work / "port") as (address, process, ready_s):
                note({f"{name}, start to ready, s": ready_s})
                for key, report in _load(address, requests, args.seconds).items():
                    reports[f"{name}, {key}"] = report
                    _LOG.info("round %d of %s, %s, %s: %s", number + 1, args.rounds, name, key, describe(report))
                    note({f"{name}, {key}, {label}": value for label, value in report.figures().items()})
                note({f"{name}, memory after the overload, MB": _memory_mb(process.pid)})
    figures = {name: statistics.median(values) for name, values in found.items()}
    figures |= _ratios(figures)
    return {name: round(value, 4) for name, value in figures.items()}, reports


def _load(address: str, requests: Sequence[bytes], duration_s: float) -> dict[str, LoadReport]:
    """Put one server under every load; returns run by name."""
    run_closed_loop(address, requests, callers=1, duration_s=min(3.0, duration_s), timeout_s=_TIMEOUT_S)
    found = {
        f"{callers} callers": run_closed_loop(
            address, requests, callers=callers, duration_s=duration_s, timeout_s=_TIMEOUT_S
        )
        for callers in CALLERS
    }
    peak = max(report.goodput_per_s for report in found.values())
    for name, share in SHARES.items():
        # So few arrive at a tenth of the peak that the unloaded run takes longer.
        length_s = duration_s * (2.0 if share < 0.5 else 1.0)
        found[name] = run_open_loop(
            address, requests, rate_per_s=peak * share, duration_s=length_s, timeout_s=_TIMEOUT_S, seed=len(found)
        )
    return found


def _ratios(figures: Mapping[str, float]) -> dict[str, float]:
    most = {
        name: max(figures[f"{name}, {callers} callers, answered, requests/s"] for callers in CALLERS)
        for name in (OURS, PEER)
    }
    found = {f"{name}, most answers, requests/s": value for name, value in most.items()}
    found["throughput, asymcir over the peer"] = most[OURS] / most[PEER]
    found["throughput, asymcir over the bare encoder in full batches"] = (
        most[OURS] / figures["bare, batches, queries/s"]
    )
    for name in (OURS, PEER):
        unloaded, loaded = figures[f"{name}, unloaded, OK, p50, ms"], figures[f"{name}, at 70%, OK, p99, ms"]
        found[f"{name}, p99 at 70% over unloaded p50"] = loaded / unloaded
        goodput = figures[f"{name}, overload, answered, requests/s"]
        found[f"{name}, goodput at 10 times the most over the most"] = goodput / most[name]
    found["asymcir, unloaded p50 over encoder and search alone"] = (
        figures[f"{OURS}, unloaded, OK, p50, ms"] / figures["bare, one query, ms"]
    )
    return found


def _measure_bare(bundle: ServerBundle, folder: Path) -> dict[str, float]:
    """Time encoder and search without a server."""
    encoder, gallery = TextEncoder(bundle), Gallery.open(folder)
    try:
        tokens = _draw_tokens(bundle)
        prompts = [
            encoder.composer.compose_query(tokens[n % len(tokens)], DEFAULT_CHANGES[n % len(DEFAULT_CHANGES)])
            for n in range(BATCH)
        ]
        encoder.encode_prompts(prompts[:1])
        times = []
        for n in range(_DIRECT):
            started_s = time.perf_counter()
            features = encoder.encode_prompts([prompts[n % BATCH]])
            gallery.search(features / np.linalg.norm(features), 10)
            times.append((time.perf_counter() - started_s) * 1000.0)
        rates = []
        for _ in range(3):
            started_s = time.perf_counter()
            encoder.encode_prompts(prompts)
            rates.append(BATCH / (time.perf_counter() - started_s))
    finally:
        gallery.close()
    return {"bare, one query, ms": statistics.median(times), "bare, batches, queries/s": statistics.median(rates)}


@contextmanager
def _serving(command: Sequence[object], port_file: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]", float]]:
    """Run a server; gives its address, its process, and the seconds from its start until it answered."""
    port_file.unlink(missing_ok=True)
    started_s = time.monotonic()
    words = [str(word) for word in (*command, "--port-file", port_file)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        try:
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() - started_s > _READY_S:
                    raise BenchmarkError(f"a server did not start: {' '.join(words)}")
                time.sleep(0.01)
            yield f"127.0.0.1:{port_file.read_text().strip()}", process, time.monotonic() - started_s
        finally:
            process.terminate()
            process.wait()


def _choose_bundle(args: argparse.Namespace) -> Path:
    """Return the bundle, or one like it whose text tower computes in int8."""
    if args.text_compute == "fp32":
        return Path(args.bundle)
    from asymcir_benchmarks.costs.server_bundles import derive_bundle  # imports torch, which the servers do without

    folder: Path = args.work / f"{args.model}-text-{args.text_compute}"
    if not folder.exists():
        derive_bundle(args.bundle, folder, text=args.text_compute, visual="fp32")
    return folder


def _make_gallery(args: argparse.Namespace, bundle: ServerBundle) -> Path:
    """Write a gallery of random vectors in the bundle's space."""
    width = bundle.text.embedding_width
    folder: Path = args.work / f"load-{args.gallery_size}x{width}"
    if not (folder / "CURRENT").exists():
        write_gallery(folder, args.gallery_size, width, "auto")
    snapshot = folder / "snapshots" / (folder / "CURRENT").read_text().strip()
    manifest = read_manifest(snapshot, format=GALLERY, sampled=True)
    properties = {**manifest.properties, "target": "union", "target_space": bundle.target_spaces["union"]}
    if properties != manifest.properties:
        (snapshot / "manifest.json").unlink()
        write_manifest(snapshot, format=GALLERY, properties=properties, sampled=True)
    return folder


def _make_searches(bundle: ServerBundle) -> list[bytes]:
    return [
        retrieval_pb2.SearchRequest(
            tokens=pack_tokens(tokens), word_space=bundle.word_space, modifier=change, top_k=10
        ).SerializeToString()
        for change in DEFAULT_CHANGES
        for tokens in _draw_tokens(bundle)
    ]


def _draw_tokens(bundle: ServerBundle) -> list[NDArray[np.float32]]:
    """Draw sentence tokens of the size that words have."""
    generator = np.random.default_rng(0)
    scale = float(np.abs(bundle.word_table().lookup(tuple(range(1000, 1100)))).mean())
    shape = (_PICTURES, LENGTH, bundle.text.word_width)
    return list((generator.standard_normal(shape) * scale).astype(np.float32))


def _memory_mb(process: int) -> float:
    """Return the resident memory of a process (Linux)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1]) / 1000.0
    raise BenchmarkError(f"the memory of process {process} is not known")


if __name__ == "__main__":
    sys.exit(main())
