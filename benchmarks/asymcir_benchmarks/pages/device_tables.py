"""The tables of the device part: backbones on this machine, and instructions on ARM."""

from collections.abc import Mapping
from typing import Any

from asymcir_benchmarks.device.arm_subjects import NETWORK, PREPROCESSING
from asymcir_benchmarks.device.timing import LARGE, PEER, REASONS, TOWER
from asymcir_benchmarks.pages.markdown import describe_source, make_table

DEFAULT_BACKBONE = "mobilenetv4_conv_small_050"
"""What the goals are held to: the smallest that is recommended."""

LEAST_COSINE = 0.99
"""Below this, a file on ARM does not compute what it computes on x86."""

_HEAD = (
    "backbone",
    "M parameters",
    "GMACs",
    "fp32, MB",
    "int8, MB",
    "Core ML fp16, MB",
    "fp32, ms",
    "int8, ms",
    "int8 against the peer",
    "share of the int8 peak",
    "ONNX verified",
    "Core ML verified",
)
_WRITERS = {"onnx": "ONNX", "fp16": "ONNX fp16", "int8": "ONNX int8", "coreml": "Core ML fp16"}
_GOALS = (
    (f"{DEFAULT_BACKBONE}, int8, times faster than the peer", "at least", 20.0),
    (f"{DEFAULT_BACKBONE}, int8, times faster than {LARGE}", "at least", 400.0),
    (f"{DEFAULT_BACKBONE}, int8, MB", "at most", 5.0),
    ("query on the wire, bytes", "at most", 5000.0),
    (f"{DEFAULT_BACKBONE}, int8, memory over the bare interpreter with numpy, MB", "at most", 120.0),
)

WEB_GOALS = (
    ("picture to tokens, WASM over native", "at most", 2.5),
    (f"{TOWER} over the encoder, each at its own size, WASM", "at least", 15.0),
    ("shutter to answers, warm, ms", "at most", 150.0),
    ("first visit to first answer at 4G, s", "at most", 6.0),
    ("second visit to first answer at 4G, s", "at most", 1.0),
    ("query on the wire, bytes", "at most", 5000.0),
)


def lay_out_backbones(record: Mapping[str, Any]) -> str:
    """A row for each backbone, then the peers; below it why an export is not verified."""
    figures = record["figures"]
    names = [key.removesuffix(", parameters, M") for key in figures if key.endswith(", parameters, M")]
    rows = [list(_HEAD)]
    for name in names:
        keys = (", parameters, M", ", GMACs", ", onnx, MB", ", int8, MB", ", coreml, MB", ", fp32, ms", ", int8, ms")
        row = [name, *(_number(figures.get(name + key)) for key in keys)]
        row += [
            _number(figures.get(f"{name}, int8, times faster than the peer"), "{:.1f}x"),
            _number(figures.get(f"{name}, int8, share of the int8 peak"), "{:.1%}"),
            *(_verdict(figures.get(f"{name}, {writer}, verified")) for writer in ("onnx", "coreml")),
        ]
        rows.append(row)
    for peer in (PEER, LARGE):
        if f"{peer}, fp32, ms" in figures:
            times = [_number(figures.get(f"{peer}, {precision}, ms")) for precision in ("fp32", "int8")]
            rows.append([peer, *["-"] * 5, *times, *["-"] * 4])
    return make_table(rows) + f"{_list_reasons(record)}\n\n{describe_source(record)}"


def _list_reasons(record: Mapping[str, Any]) -> str:
    lines = []
    for key, reason in record.get("details", {}).get(REASONS, {}).items():
        name, _, writer = key.rpartition(", ")
        lines.append(f"- {name}, {_WRITERS.get(writer, writer)}: {reason}")
    return "\n\nNot verified:\n\n" + "\n".join(lines) if lines else ""


def lay_out_goals(record: Mapping[str, Any]) -> str:
    """What the device part is held to."""
    figures = record["figures"]
    rows = [["figure", "value", "target", "reached"]]
    for key, bound, target in _GOALS:
        if key not in figures:
            continue
        value = figures[key]
        reached = value >= target if bound == "at least" else value <= target
        rows.append([key, f"{value:,.4g}", f"{bound} {target:g}", "yes" if reached else "**no**"])
    return make_table(rows) + f"\n\n{describe_source(record)}"


def lay_out_arm(record: Mapping[str, Any]) -> str:
    """A row for each model and precision that was counted, as a whole and without its preprocessing.

    A cosine below LEAST_COSINE is marked as a failure.
    """
    figures = record["figures"]
    suffix, agreement = ", M instructions", ", ARM to x86, min cosine"
    counts = {key.removesuffix(suffix): value for key, value in figures.items() if key.endswith(suffix)}
    ratios = {key.partition(", instructions / ")[0]: value for key, value in figures.items() if key not in counts}
    rows = [
        ["model", "M instructions a query", "peer's / its", f"{NETWORK}, M", "peer's / its", "least cosine with x86"]
    ]
    for key in sorted(counts, key=_by_model):
        name, _, precision = key.rpartition(", ")
        if name.endswith(f", {NETWORK}"):
            continue  # in the row of the whole
        alone = key if name == PEER else f"{name}, {NETWORK}, {precision}"
        cells = []
        for found in (None if name == PEER else key, alone):
            # The preparation is a part of a query: beside a whole one it would look like a gain.
            ratio = 0.0 if key.startswith(PREPROCESSING) else ratios.get(found or "", 0.0)
            cells += [_number(counts.get(found or ""), "{:,.1f}"), _number(1.0 / ratio if ratio else None, "{:.1f}")]
        cosines = [figures[found + agreement] for found in (key, alone) if found + agreement in figures]
        rows.append([key, *cells, _cosine(min(cosines, default=None))])
    return make_table(rows) + f"\n\n{describe_source(record)}"


def _by_model(key: str) -> tuple[int, str]:
    """Sort the peer first, then the bundle and the preparation, then backbones by name."""
    first = next((place for place, name in enumerate((PEER, "demo", PREPROCESSING)) if key.startswith(f"{name}, ")), 3)
    return first, key


def lay_out_selftest(record: Mapping[str, Any]) -> str:
    """A row for each encoder of a self-test report."""
    rows = [["encoder", "least cosine", "mean cosine", "error to spread", "passed"]]
    for encoder in record["encoders"]:
        values = [f"{encoder[key]:.5f}" for key in ("cosine_min", "cosine_mean", "error_to_spread")]
        rows.append(
            [f"{encoder['precision']} (`{encoder['file']}`)", *values, "yes" if encoder["passed"] else "**no**"]
        )
    machine = record["machine"]
    where = f"{machine['architecture']}{', emulated' if machine['emulated'] else ''}"
    return (
        make_table(rows)
        + f"\n\n`asymcir selftest`, {where}, ONNX Runtime {record['onnxruntime']}, Python {machine['python']}."
    )


def _number(value: float | None, form: str = "{:.3g}") -> str:
    return "-" if value is None else form.format(value)


def _cosine(value: float | None) -> str:
    shown = _number(value, "{:.5f}")
    return shown if value is None or value >= LEAST_COSINE else f"**{shown}, failed**"


def _verdict(value: float | None) -> str:
    return {None: "-", 1.0: "yes", 0.0: "**no**"}[value]


def lay_out_web(record: Mapping[str, Any]) -> str:
    """What a query costs in a browser: times, then what is held to a goal."""
    figures = record["figures"]
    timed = (
        ("picture of 640x480 to tokens, native ONNX Runtime", "picture to tokens, native, one thread", "ms"),
        ("picture of 640x480 to tokens, WASM", "picture to tokens, WASM, one thread", "ms"),
        ("picture of the encoder's size to tokens, WASM", "prepared picture to tokens, WASM, one thread", "ms"),
        (f"{TOWER}, picture of its size, WASM", f"{TOWER}, WASM, one thread", "ms"),
        ("shutter to answers, warm", "shutter to answers, warm", "ms"),
        ("first visit to first answer, 9 Mbit/s, 60 ms", "first visit to first answer at 4G", "s"),
        ("second visit to first answer, the same", "second visit to first answer at 4G", "s"),
    )
    rows = [["what", "median", "p95"]]
    for label, key, unit in timed:
        rows.append([label, *(f"{figures[f'{key}{part}, {unit}']:,.3g} {unit}" for part in ("", ", p95"))])
    goals = [["figure", "value", "target", "reached"]]
    for key, bound, target in WEB_GOALS:
        value = figures[key]
        reached = value >= target if bound == "at least" else value <= target
        goals.append([key, f"{value:,.4g}", f"{bound} {target:g}", "yes" if reached else "**no**"])
    jpeg = figures["JPEG of the camera's picture, bytes"]
    sizes = (
        f"A query takes {figures['query on the wire, bytes']:,.0f} bytes, the JPEG of the same picture of the camera "
        f"{jpeg:,.0f}. A first visit receives "
        f"{figures['first visit, bytes received'] / 1e6:.1f} MB. The machine had other work too: its load average was "
        f"{figures['load average before']:.1f} before and {figures['load average after']:.1f} after."
    )
    return f"{make_table(rows)}\n\n{make_table(goals)}\n\n{sizes}\n\n{describe_source(record)}"
