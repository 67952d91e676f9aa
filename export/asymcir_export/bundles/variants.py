"""The device encoder in every precision and format, each kept only if it meets its thresholds.

| variant | what | thresholds |
|---|---|---|
| `fp16` | ONNX, computed in fp16 | THRESHOLDS, RESIZED_THRESHOLDS, and R@10 |
| `int8` | ONNX, static int8 (QDQ), calibrated on pictures | the same |
| `fp32-ort`, `int8-ort` | the same in ONNX Runtime's own format | as the ONNX file |
| `coreml-fp16` | Core ML package, evaluated operator by operator | COREML_THRESHOLDS, and R@10 |
| `coreml-linear8`, `-palettized8`, `-palettized6`, `-w8a8` | 8- or 6-bit weights, int8 activations | the same |

THRESHOLDS hold for prepared pictures, whose pixels are the same, RESIZED_THRESHOLDS (checks/resizing.py) for others.
R@10 is measured where a search set is given: a variant may lose MAX_RECALL_LOSS of it. Where `int8` fails, it is tried
once more with the layers that spoil most left float (sensitivity.py). It also has to be smaller and faster than fp32.

Notation: p pictures, L sentence tokens, D word-embedding width, S picture side.
"""

import logging
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from asymcir_common import preprocess
from asymcir_edge import EncoderError
from asymcir_edge.device.encoder import open_session
from asymcir_training import LightEncoder
from numpy.typing import NDArray
from onnx import ModelProto

from asymcir_export.bundles.report import render_report
from asymcir_export.checks.agreement import Thresholds, check_agreement
from asymcir_export.checks.parity import storage_thresholds
from asymcir_export.checks.resizing import RESIZED_THRESHOLDS
from asymcir_export.checks.search_set import MAX_RECALL_LOSS, Answers, SearchSet, compare_answers
from asymcir_export.coreml.check import COREML_THRESHOLDS, check_coreml, evaluate_coreml
from asymcir_export.coreml.compression import VARIANT_FILES, package_size_bytes, write_coreml_variant
from asymcir_export.coreml.writer import write_coreml
from asymcir_export.errors import ExportError, ParityError
from asymcir_export.graphs.device_graph import INPUT_NAME, OUTPUT_NAME, PREPROCESSING_PREFIX, join_preprocessing
from asymcir_export.graphs.writer import write_onnx
from asymcir_export.int8.quantize import quantize_static_int8, to_fp16, write_ort
from asymcir_export.int8.sensitivity import choose_float

_logger = logging.getLogger(__name__)

ONNX_FILES: Mapping[str, str] = {
    "fp16": "encoder.fp16.onnx",
    "int8": "encoder.int8.onnx",
    "fp32-ort": "encoder.ort",
    "int8-ort": "encoder.int8.ort",
}
"""Variant -> its file; `encoder.onnx`, fp32, is in every bundle."""

COREML_FILES: Mapping[str, str] = {
    "coreml-fp16": "encoder.mlpackage",
    **{f"coreml-{name}": file for name, file in VARIANT_FILES.items()},
}
_FILES = {**ONNX_FILES, **COREML_FILES}
VARIANTS = tuple(_FILES)
_NEEDED = {"int8-ort": "int8"} | {name: "coreml-fp16" for name in COREML_FILES if name != "coreml-fp16"}

THRESHOLDS: Mapping[str, Thresholds] = {
    "fp32": storage_thresholds("fp32"),
    "fp16": storage_thresholds("fp16"),
    "int8": Thresholds(cosine_min=0.97, cosine_mean=0.99, error_to_spread=0.25),
}

COREML_PICTURES, COREML_QUERIES = 64, 1000
"""Pictures compared and searched with, at most; operator by operator a picture takes up to a tenth of a second. Of the
demo's 200 were too few: two queries that fell out of the top ten made more than MAX_RECALL_LOSS."""

REPORT_FILE = "report.html"
_WARM_UP, _REPEATS = 5, 30
_FEW_PICTURES = 48
_Picture = TypeVar("_Picture")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What every variant is made from and compared with.

    Attributes:
        encoder: in eval mode.
        network: its float32 graph, without preprocessing.
        compared: [h, w, 3] uint8 each, to compare on.
        expected: [p, L, D], PyTorch's tokens of `compared`.
        calibration: [h, w, 3] uint8 each, to measure activations on.
        names: of `compared`, to name the worst one; none leave it unnamed.
        search_set: to measure R@10 with; None leaves it out.
        original: its answers with PyTorch's tokens.
    """

    encoder: LightEncoder
    network: ModelProto
    compared: Sequence[NDArray[np.uint8]]
    expected: NDArray[np.float32]
    calibration: Sequence[NDArray[np.uint8]]
    names: Sequence[str] = ()
    search_set: SearchSet | None = None
    original: Answers | None = None


def write_variants(folder: Path, source: Source, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Write variants beside `encoder.onnx`, and remove those that fail.

    Args:
        folder: the bundle; holds `encoder.onnx`.
        source: see its class.
        names: of VARIANTS.

    Returns:
        Name -> record, in the order of VARIANTS: `file`, `status` ("kept", "dropped": it missed its thresholds,
        "absent": it could not be written), `reason`, and what was measured.
    """
    records: dict[str, dict[str, Any]] = {}
    for name in VARIANTS:
        if name not in names:
            continue
        path = folder / _FILES[name]
        started_s = time.monotonic()
        records[name] = {"file": path.name, **_try_variant(name, path, source)}
        if records[name]["status"] != "kept":
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        _logger.info(
            "%s: %s (%s), %.0f s", name, records[name]["status"], records[name]["reason"], time.monotonic() - started_s
        )
    return records


def check_variants(names: Sequence[str]) -> None:
    """Refuse an unknown variant, before minutes are spent on the known ones.

    Raises:
        ExportError: a name that is not in VARIANTS.
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ExportError(f"expected variants among {', '.join(VARIANTS)}, got {', '.join(unknown)}")


def split_pictures(pictures: Sequence[_Picture]) -> tuple[list[_Picture], list[_Picture]]:
    """Split pictures into those to compare on and those to calibrate on; few pictures do both."""
    if len(pictures) < _FEW_PICTURES:
        return list(pictures), list(pictures)
    return [picture for i, picture in enumerate(pictures) if i % 3 != 2], list(pictures[2::3])


def describe_variants(
    folder: Path, source: Source, names: Sequence[str], *, storage: str, title: str, sections: Sequence[str] = ()
) -> dict[str, Any]:
    """Write variants and `report.html`; return the manifest's properties that they change.

    Args:
        folder: the bundle; holds `encoder.onnx`.
        source: see its class.
        names: of VARIANTS.
        storage: of the weights of `encoder.onnx`.
        title: of the report.
        sections: of the report beside its own.
    """
    measured = measure_onnx(folder / "encoder.onnx", source, storage, float_compute=storage == "int8")
    fp32 = {"file": "encoder.onnx", "status": "kept", "reason": "what every bundle holds", **measured}
    records = {"fp32": fp32, **write_variants(folder, source, names)}
    kept = {name: record["file"] for name, record in records.items() if record["status"] == "kept"}
    facts = [
        ("pictures compared", str(len(source.compared))),
        ("pictures calibrated on", str(len(source.calibration))),
        (
            "queries searched",
            str(len(source.search_set)) if source.search_set else "none",
        ),
        ("machine", f"{platform.machine()}, {os.cpu_count()} cores, one thread, ONNX Runtime {ort.__version__}"),
    ]
    page = render_report(records, title=title, facts=facts, sections=sections)
    (folder / REPORT_FILE).write_text(page, encoding="utf-8")
    return {
        "encoders": {name: file for name, file in kept.items() if name not in COREML_FILES},
        "coreml": {name: file for name, file in kept.items() if name in COREML_FILES},
        "variants": records,
        "report": REPORT_FILE,
    }


def measure_onnx(path: Path, source: Source, precision: str, *, float_compute: bool = False) -> dict[str, Any]:
    """Compare an ONNX or ORT file with PyTorch, time it, and search with it.

    The figures are those of prepared pictures; those of the pictures as they are stand in `resized`.

    Args:
        path: the file.
        source: see its class.
        precision: a key of THRESHOLDS.
        float_compute: fold int8 weights to float32 at load, as the runtime does with lean storage.

    Raises:
        ParityError: a threshold of its precision is not met.
        EncoderError: ONNX Runtime cannot open it.
    """
    session = open_session(path, threads=1, float_compute=float_compute)
    squares = [preprocess(picture, source.encoder.preprocessing) for picture in source.compared]
    record = check_agreement(
        path.name,
        source.expected,
        np.stack([_run(session, square) for square in squares]),
        thresholds=THRESHOLDS[precision],
        allowance=precision,
        pictures=source.names,
    )
    record["resized"] = check_agreement(
        f"{path.name}, of resized pictures",
        source.expected,
        np.stack([_run(session, picture) for picture in source.compared]),
        thresholds=RESIZED_THRESHOLDS,
        allowance=f"the resize in the graph and {precision}",
        pictures=source.names,
    )
    square = squares[0]
    times_ms = []
    for _ in range(_WARM_UP + _REPEATS):
        started_s = time.perf_counter()
        _run(session, square)
        times_ms.append(1e3 * (time.perf_counter() - started_s))
    kept = times_ms[_WARM_UP:]
    record |= {
        "size_mb": path.stat().st_size / 1e6,
        "latency_ms_median": float(np.median(kept)),
        "latency_ms_p95": float(np.quantile(kept, 0.95)),
    }
    if source.search_set is not None:
        shown = source.search_set.pictures
        record |= _search(source, np.stack([_run(session, picture) for picture in shown]), range(len(shown)))
    return record


def judge(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return status and reason of a variant whose thresholds were met."""
    for ratio in ("times_faster_than_fp32", "times_smaller_than_fp32"):
        if record.get(ratio, math.inf) <= 1.0:
            return "dropped", f"it is not worth its loss: {ratio} is {record[ratio]:.2f}, expected more than 1"
    change = record.get("recall_at_10_change")
    if change is None:
        return "kept", "met its thresholds; R@10 was not measured (no search set was given)"
    if change < -MAX_RECALL_LOSS:
        return "dropped", f"R@10 fell by {-change:.4f}, at most {MAX_RECALL_LOSS} is allowed"
    return "kept", f"met its thresholds; R@10 changed by {change:+.4f}, at most {MAX_RECALL_LOSS} may be lost"


def _try_variant(name: str, path: Path, source: Source) -> dict[str, Any]:
    needed = _NEEDED.get(name)
    base = path.parent / _FILES[needed] if needed else path.parent / "encoder.onnx"
    if not base.exists():
        return {"status": "absent", "reason": f"it is made from {needed}, which is not there"}
    try:
        if name == "int8":
            return _try_int8(path, source)
        written = _write(name, path, base, source)
    except ExportError as exc:
        return {"status": "absent", "reason": str(exc)}
    return _measure(name, path, source, written)


def _try_int8(path: Path, source: Source) -> dict[str, Any]:
    """Write int8 in full; where it misses its thresholds, with the most sensitive layers float.

    Raises:
        ExportError: the graph cannot be quantised.
    """
    graph = join_preprocessing(source.network, source.encoder.preprocessing)
    quantised = quantize_static_int8(graph, INPUT_NAME, source.calibration, keep_float=[PREPROCESSING_PREFIX])
    write_onnx(quantised, path)
    full = _measure("int8", path, source, {"float_macs_share": 0.0} | _compare_cost(path, graph, source))
    if full["status"] == "kept":
        return full
    _logger.info("int8 in full: %s; looking for the layers that spoil most", full["reason"])
    choice = choose_float(graph, quantised, INPUT_NAME, source.calibration)
    if not choice.nodes:
        return full
    mixed = quantize_static_int8(
        graph, INPUT_NAME, source.calibration, keep_float=[PREPROCESSING_PREFIX], float_nodes=choice.nodes
    )
    write_onnx(mixed, path)
    written = {
        "float_layers": list(choice.nodes),
        "float_macs_share": choice.macs_share,
        "calibration_error_to_spread": [choice.error_before, choice.error_after],
        "full": full,
    }
    record = _measure("int8", path, source, written | _compare_cost(path, graph, source))
    share = f"{100 * choice.macs_share:.0f}% of the multiply-accumulates float"
    return record | {"reason": f"with {share}: {record['reason']} (fully int8: {full['reason']})"}


def _compare_cost(path: Path, graph: ModelProto, source: Source) -> dict[str, Any]:
    """Compare size and speed with those of the float32 graph, both timed in turn on one thread."""
    square = preprocess(source.compared[0], source.encoder.preprocessing)
    with tempfile.TemporaryDirectory() as name:
        files = (path, Path(name, "fp32.onnx"))
        write_onnx(graph, files[1])
        sessions = [open_session(file, threads=1, float_compute=False) for file in files]
        sizes = [file.stat().st_size for file in files]
    times_s: list[list[float]] = [[] for _ in sessions]
    for _ in range(_WARM_UP + _REPEATS):
        for session, times in zip(sessions, times_s, strict=True):
            started_s = time.perf_counter()
            _run(session, square)
            times.append(time.perf_counter() - started_s)
    medians_s = [float(np.median(times[_WARM_UP:])) for times in times_s]
    return {
        "times_faster_than_fp32": medians_s[1] / medians_s[0],
        "times_smaller_than_fp32": sizes[1] / sizes[0],
    }


def _measure(name: str, path: Path, source: Source, written: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a written variant and judge it."""
    try:
        if name in ONNX_FILES:
            record = measure_onnx(path, source, name.removesuffix("-ort"))
        else:
            record = _measure_coreml(path, source, name.removeprefix("coreml-"))
    except (ExportError, EncoderError) as exc:
        reason = exc.difference if isinstance(exc, ParityError) else str(exc)
        return {**written, "status": "dropped", "reason": reason}
    record = {**written, **record}
    status, reason = judge(record)
    return {**record, "status": status, "reason": reason}


def _write(name: str, path: Path, base: Path, source: Source) -> dict[str, Any]:
    if name == "fp16":
        write_onnx(join_preprocessing(to_fp16(source.network), source.encoder.preprocessing), path)
    elif name.endswith("-ort"):
        write_ort(base, path)
    else:
        spec = source.encoder.preprocessing
        if name == "coreml-fp16":
            return {"package": write_coreml(source.encoder, spec, path)}
        squares = [preprocess(picture, spec) for picture in source.calibration]
        write_coreml_variant(base, name.removeprefix("coreml-"), path, pictures=squares)
    return {}


def _measure_coreml(path: Path, source: Source, precision: str) -> dict[str, Any]:
    spec = source.encoder.preprocessing
    squares = [preprocess(picture, spec) for picture in source.compared[:COREML_PICTURES]]
    record = check_coreml(path, source.encoder, spec, squares, precision=precision)
    record["size_mb"] = package_size_bytes(path) / 1e6
    if platform.system() == "Darwin":  # Core ML itself, too
        from asymcir_export.coreml.predictor import open_coreml

        predict = open_coreml(path)
        record["predicted"] = check_agreement(
            f"{path.name}, by Core ML",
            source.expected[:COREML_PICTURES],
            np.stack([predict(square) for square in squares]),
            thresholds=COREML_THRESHOLDS[precision],
            allowance=f"Core ML's {precision}",
        )
    if source.search_set is not None:
        shown = source.search_set.pictures
        places = sorted({i * len(shown) // COREML_QUERIES for i in range(COREML_QUERIES)})
        squares = [preprocess(shown[place], spec) for place in places]
        record |= _search(source, np.stack(evaluate_coreml(path, squares)), places)
    return record


def _search(source: Source, tokens: NDArray[np.float32], places: Sequence[int]) -> dict[str, Any]:
    if source.search_set is None or source.original is None:
        return {}
    before = source.search_set.restrict(source.original, places)
    return compare_answers(before, source.search_set.search(tokens, places))


def _run(session: ort.InferenceSession, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    tokens: NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(picture)})[0]
    return tokens
