"""What a query costs the server by the size and precision of its towers: time on one thread, and memory.

    python -m asymcir_benchmarks.costs.server_timing --models FOLDER --out benchmarks/results/server-sizes.json

FOLDER is what `python -m asymcir_benchmarks.costs.server_bundles` wrote. The precisions of a tower run in turn, round
after round, so that whatever else the machine does meets all of them alike; published are medians, and ratios to
float32. A query is QUERY_TOKENS long: start, "a photo of", six sentence tokens, a modifier of some words, end.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import AsymcirError
from asymcir_common.arguments import MAX_REPEATS, ArgumentParser, whole_number
from asymcir_server.encode.bundle import ServerBundle
from numpy.typing import NDArray

from asymcir_benchmarks.device.timing import time_in_turn
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.results import write_result

FACTS_FILE = "server-sizes.json"
TOWERS = ("text", "visual")
QUERY_TOKENS = 20
_WARM_UP: Mapping[str, int] = {"text": 5, "visual": 1}
"""Rounds; a picture through ViT-H/14's tower takes seconds."""

_DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}
_MEASURED = ("cosine_min", "cosine_mean", "error_to_spread", "recall_at_10_change", "top_10_agreement")
_LOG = logging.getLogger(__name__)


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.costs.server_timing", description=__doc__)
    parser.add_argument(
        "--models", type=Path, required=True, help="what `asymcir_benchmarks.costs.server_bundles` wrote"
    )
    parser.add_argument("--rounds", type=whole_number(1, MAX_REPEATS), default=30, help="of the text towers")
    parser.add_argument("--visual-rounds", type=whole_number(1, MAX_REPEATS), default=3, help="of the visual towers")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Time every tower and write the figures."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        figures = measure(args.models, rounds={"text": args.rounds, "visual": args.visual_rounds})
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    write_result(args.out, figures=figures, command="make bench-server-sizes")
    return 0


def measure(folder: Path, *, rounds: Mapping[str, int]) -> dict[str, float]:
    """Measure every model below a folder.

    Args:
        folder: holds a folder for each model.
        rounds: tower -> how often it runs, after a warm-up.

    Returns:
        Flat figures, by model, tower and precision.

    Raises:
        BenchmarkError: there is none, or a tower does not run.
        BundleError: ONNX Runtime cannot open a tower.
    """
    found = sorted(folder.glob(f"*/{FACTS_FILE}"))
    if not found:
        raise BenchmarkError(
            f"expected models below {folder}, found none: run `python -m asymcir_benchmarks.costs.server_bundles`"
        )
    figures: dict[str, float] = {f"rounds of the {tower} tower": float(count) for tower, count in rounds.items()}
    figures["query, tokens"] = float(QUERY_TOKENS)
    facts = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in found}
    for path, fact in sorted(facts.items(), key=lambda item: item[1]["parameters_text"]):
        _LOG.info("%s", path.name)
        figures |= describe(path.name, fact)
        for tower, count in rounds.items():
            computes = [compute for compute, record in fact["computes"].items() if tower in record]
            figures |= _measure_tower(path, tower, computes, count)
    return figures


def describe(name: str, fact: Mapping[str, Any]) -> dict[str, float]:
    """Flatten what the export found of one model."""
    figures = {
        f"{name}, trained": float(fact["weights"] == "trained"),
        f"{name}, causal": float(fact["causal"]),
        f"{name}, word width": float(fact["word_width"]),
        f"{name}, pictures, px": float(fact["size"]),
    }
    for tower in TOWERS:
        figures[f"{name}, {tower}, parameters, M"] = round(fact[f"parameters_{tower}"] / 1e6, 2)
        for compute, towers in fact["computes"].items():
            if tower not in towers:
                continue
            record, key = towers[tower], f"{name}, {tower}, {compute}"
            figures[f"{key}, MB"] = round(record["size_mb"], 2)
            figures[f"{key}, external data, MB"] = round(record["external_mb"], 2)
            figures |= {
                f"{key}, {measured.replace('_', ' ')}": round(record[measured], 7)
                for measured in _MEASURED
                if measured in record
            }
            figures[f"{key}, passed"] = float(record["passed"])
    return figures


def _measure_tower(folder: Path, tower: str, computes: Sequence[str], rounds: int) -> dict[str, float]:
    bundles = {compute: folder / compute for compute in computes}
    times = time_in_turn(
        {compute: open_tower(path, tower) for compute, path in bundles.items()}, rounds, warm_up=_WARM_UP[tower]
    )
    figures: dict[str, float] = {}
    for compute, path in bundles.items():
        key = f"{folder.name}, {tower}, {compute}"
        median_ms = float(np.median(times[compute]))
        figures[f"{key}, ms"] = round(median_ms, 3)
        figures[f"{key}, times faster than fp32"] = round(float(np.median(times["fp32"])) / median_ms, 3)
        figures[f"{key}, peak memory of its process, MB"] = round(_peak_memory_mb(path, tower), 1)
    return figures


def open_tower(bundle: Path, tower: str) -> Callable[[], object]:
    """Open a tower of a server bundle as the server does, on one thread, and return what runs it once.

    Raises:
        BundleError: it cannot be opened.
    """
    opened = ServerBundle.load(bundle, threads=1)
    session = opened.text_session()[0] if tower == "text" else opened.visual_session()
    feed = {node.name: _make_input(node.name, node.type, node.shape) for node in session.get_inputs()}
    return lambda: session.run(None, feed)


def _make_input(name: str, kind: str, shape: Sequence[int | str]) -> NDArray[Any]:
    sizes = [side if isinstance(side, int) else QUERY_TOKENS if axis == 1 else 1 for axis, side in enumerate(shape)]
    if name == "pool_index":
        return np.full(sizes, QUERY_TOKENS - 1, dtype=np.int64)
    if name == "attention_mask":
        return np.ones(sizes, dtype=np.int64)
    generator = np.random.default_rng(0)
    if name == "pixels":
        return generator.integers(0, 256, sizes).astype(_DTYPES[kind])
    return (0.02 * generator.standard_normal(sizes)).astype(_DTYPES[kind])


def _peak_memory_mb(bundle: Path, tower: str) -> float:
    """Return the peak resident memory of a process that opens a tower and runs it twice (Linux)."""
    lines = [
        "from pathlib import Path",
        "from asymcir_benchmarks.costs.server_timing import open_tower",
        f"run = open_tower(Path({str(bundle)!r}), {tower!r})",
        "[run() for _ in range(2)]",
        # Not getrusage: a process starts with the greatest memory of the one that it was forked from.
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])",
    ]
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    if found.returncode:
        raise BenchmarkError(f"{bundle} does not run in a process of its own: {found.stderr.strip()[-300:]}")
    return int(found.stdout) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
