"""What a query costs on this machine's CPU, one thread, against the image tower that a user would run instead.

    python -m asymcir_benchmarks.device.timing --models FOLDER --out benchmarks/results/device.json [--vit-l14 FILE]

FOLDER is what `python -m asymcir_benchmarks.device.write_backbones` wrote. All models run in turn, round
after round, so that whatever else the machine does meets all of them; published are medians, p95, and ratios to the
peer's faster precision. Pictures come at the network's own size: resizing them is counted for nobody.
"""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from asymcir_common import AsymcirError
from asymcir_common.arguments import MAX_REPEATS, ArgumentParser, whole_number
from asymcir_protos.tokens import pack_tokens
from asymcir_protos.v1 import retrieval_pb2
from numpy.typing import NDArray

from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.results import write_result

PEER = "MobileCLIP-S0 image tower"
PEER_FILES = {"fp32": "mobileclip-s0.onnx", "int8": "mobileclip-s0.int8.onnx"}
LARGE = "ViT-L/14 image tower"
TOWER = "ViT-B/32 image tower"
"""What runs in the browser beside the encoder, in `web.py`."""

ENCODER_FILES = {"fp32": "encoder.onnx", "int8": "encoder.int8.onnx"}
PEAK_FILE, PEAK_ROWS, PEAK_WIDTH = "int8-product.onnx", 512, 1024
SENTENCE_LENGTH, WORD_WIDTH = 6, 768
REASONS = "not verified"
"""Kind of the result's details: backbone and writer -> why the export is not taken for the encoder."""

FACTS_FILE = "backbones.json"
_WARM_UP = 5
_TYPES: Mapping[str, type[np.generic]] = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.device.timing", description=__doc__)
    parser.add_argument(
        "--models", type=Path, required=True, help="what `python -m asymcir_benchmarks.device.write_backbones` wrote"
    )
    parser.add_argument(
        "--vit-l14", type=Path, help="ViT-L/14's image tower (`asymcir_benchmarks.device.write_peers --vit-l14`)"
    )
    parser.add_argument("--rounds", type=whole_number(1, MAX_REPEATS), default=60)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Time every model and write the figures."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        figures = measure(args.models, args.vit_l14, rounds=args.rounds)
        reasons = read_reasons(args.models)
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    write_result(args.out, figures=figures, command="make bench-device", details={REASONS: reasons})
    return 0


def measure(folder: Path, large: Path | None, *, rounds: int) -> dict[str, float]:
    """Measure every backbone below a folder.

    Args:
        folder: holds the peer's files, and a folder for each backbone.
        large: the large image tower to compare with; None leaves it out.
        rounds: how often each model runs, after a warm-up.

    Returns:
        Flat figures, by backbone and precision.

    Raises:
        BenchmarkError: the peer or the backbones are not there, or a file does not run.
    """
    files = {f"{PEER}, {precision}": folder / name for precision, name in PEER_FILES.items()}
    if large is not None:
        files[f"{LARGE}, fp32"] = large
    facts: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"*/{FACTS_FILE}")):
        name = path.parent.name
        facts[name] = json.loads(path.read_text(encoding="utf-8"))
        for precision, file in ENCODER_FILES.items():
            if (path.parent / file).is_file():
                files[f"{name}, {precision}"] = path.parent / file
    absent = [str(path) for path in files.values() if not path.is_file()]
    if absent or not facts:
        raise BenchmarkError(
            f"expected the peer and backbones below {folder}, {absent[0] if absent else 'found no backbone'}: run "
            "`python -m asymcir_benchmarks.device.write_backbones` first"
        )
    sizes = {name: fact["size"] for name, fact in facts.items()}
    times = time_in_turn(
        {key: open_model(path, sizes.get(key.partition(",")[0])) for key, path in files.items()}, rounds
    )
    figures: dict[str, float] = {"rounds": float(rounds)}
    peer_ms = min(float(np.median(times[f"{PEER}, {precision}"])) for precision in PEER_FILES)
    for key, values in times.items():
        figures[f"{key}, ms"] = round(float(np.median(values)), 4)
        figures[f"{key}, p95, ms"] = round(float(np.quantile(values, 0.95)), 4)
        figures[f"{key}, times faster than the peer"] = round(peer_ms / float(np.median(values)), 2)
        if large is not None:
            large_ms = float(np.median(times[f"{LARGE}, fp32"]))
            figures[f"{key}, times faster than {LARGE}"] = round(large_ms / float(np.median(values)), 1)
    for name, fact in facts.items():
        figures |= _describe(name, fact)
    peak = measure_int8_peak(folder / PEAK_FILE, rounds)
    figures["int8 peak of one thread, GOP/s"] = round(peak, 1)
    for name in facts:
        if f"{name}, int8, ms" in figures and f"{name}, GMACs" in figures:
            achieved = 2.0 * figures[f"{name}, GMACs"] / (figures[f"{name}, int8, ms"] / 1e3)
            figures[f"{name}, int8, share of the int8 peak"] = round(achieved / peak, 4)
    figures |= measure_memory(folder)
    figures["query on the wire, bytes"] = float(_query_bytes())
    return figures


def read_reasons(folder: Path) -> dict[str, str]:
    """Return why an export of a backbone is not verified: "BACKBONE, WRITER" -> reason."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob(f"*/{FACTS_FILE}")):
        for writer, record in json.loads(path.read_text(encoding="utf-8")).items():
            if isinstance(record, Mapping) and "reason" in record:
                found[f"{path.parent.name}, {writer}"] = record["reason"]
    return found


def measure_memory(folder: Path) -> dict[str, float]:
    """Measure what opening each int8 encoder and running it adds to an interpreter that has imported numpy, MB.

    The greatest over the backbones is held to the goal; peak resident memory, each in a process of its own (Linux).
    """
    bare_mb = _peak_memory_mb(None)
    found = {
        path.parent.name: _peak_memory_mb(path) - bare_mb for path in sorted(folder.glob(f"*/{ENCODER_FILES['int8']}"))
    }
    figures = {
        f"{name}, int8, memory over the bare interpreter with numpy, MB": round(mb, 1) for name, mb in found.items()
    }
    return figures | {"bare interpreter with numpy, MB": round(bare_mb, 1)}


def _peak_memory_mb(model: Path | None) -> float:
    """Return the peak memory of a process that imports numpy and, with a model, runs it ten times."""
    lines = ["import numpy"]
    if model is not None:
        lines += [
            "import onnxruntime as ort",
            "options = ort.SessionOptions()",
            "options.intra_op_num_threads = options.inter_op_num_threads = 1",
            f"session = ort.InferenceSession({str(model)!r}, options, providers=['CPUExecutionProvider'])",
            "picture = numpy.zeros((480, 640, 3), dtype=numpy.uint8)",
            "[session.run(None, {'pixels': picture}) for _ in range(10)]",
        ]
    # Not getrusage: a process starts with the greatest memory of the one that it was forked from.
    lines.append("print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])")
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    if found.returncode:
        raise BenchmarkError(f"{model} does not run in a process of its own: {found.stderr.strip()[-300:]}")
    return int(found.stdout) * 1024 / 1e6


def time_in_turn(
    runs: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: int = _WARM_UP
) -> dict[str, list[float]]:
    """Call each in turn, round after round: name -> milliseconds of every round after the warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warm_up + rounds):
        for name, run in runs.items():
            started_s = time.perf_counter()
            run()
            if number >= warm_up:
                times[name].append(1e3 * (time.perf_counter() - started_s))
    return times


def open_model(path: Path, size: int | None) -> Callable[[], object]:
    """Open a model of one input on one thread, and return what runs it once.

    Args:
        path: ONNX.
        size: side to use where the graph leaves it open.

    Raises:
        BenchmarkError: it cannot be opened, or has more than one input.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime's errors have no common base
        raise BenchmarkError(f"ONNX Runtime {ort.__version__} cannot open {path}: {exc}") from exc
    (declared,) = session.get_inputs()
    shape = [side if isinstance(side, int) else (size or 1) for side in declared.shape]
    generator = np.random.default_rng(0)
    values: NDArray[Any] = generator.integers(0, 256, shape).astype(_TYPES[declared.type])
    wanted = [session.get_outputs()[0].name]  # the tokens, without the maps of what they look at
    return lambda: session.run(wanted, {declared.name: values})


def measure_int8_peak(path: Path, rounds: int) -> float:
    """Measure the most int8 operations per second that one thread of ONNX Runtime reaches, GOP/s.

    Args:
        path: a dense product of PEAK_ROWS x PEAK_WIDTH by PEAK_WIDTH x PEAK_WIDTH, what the kernels are best at.
        rounds: of which the best counts.

    Raises:
        BenchmarkError: it cannot be opened.
    """
    run = open_model(path, None)
    best_ms = min(time_in_turn({"product": run}, rounds)["product"])
    return 2.0 * PEAK_ROWS * PEAK_WIDTH * PEAK_WIDTH / (best_ms / 1e3) / 1e9


def _describe(name: str, fact: Mapping[str, Any]) -> dict[str, float]:
    figures = {f"{name}, parameters, M": round(fact["parameters"] / 1e6, 3), f"{name}, size, px": float(fact["size"])}
    for writer, record in fact.items():
        if isinstance(record, Mapping):
            if "size_mb" in record:
                figures[f"{name}, {writer}, MB"] = round(record["size_mb"], 2)
            if "verified" in record:
                figures[f"{name}, {writer}, verified"] = float(record["verified"])
    if "macs" in fact:
        figures[f"{name}, GMACs"] = round(fact["macs"] / 1e9, 4)
    return figures


def _query_bytes() -> int:
    """Return the size of a query at the width of CLIP ViT-L/14's words, int8 tokens and a typed change."""
    tokens = np.random.default_rng(0).standard_normal((SENTENCE_LENGTH, WORD_WIDTH)).astype(np.float32)
    request = retrieval_pb2.SearchRequest(
        word_space="0" * 64, gallery="default", modifier="the same, but in red", top_k=10
    )
    request.tokens.CopyFrom(pack_tokens(tokens, "int8"))
    return int(request.ByteSize())


if __name__ == "__main__":
    sys.exit(main())
