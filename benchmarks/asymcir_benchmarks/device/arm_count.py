"""What a query costs on ARM, in executed instructions, and whether its tokens are those of this machine.

    python -m asymcir_benchmarks.device.arm_count --root WORK --device-bundle FOLDER --models FOLDER \
        --pictures FOLDER --out RESULT [--selftest REPORT]

The count is exact but for a few thousand instructions, however busy this machine is. It stands for time only between
programs of the same kind, here the same runtime's kernels: so what is published beside it is the ratio to a peer that
is counted the same way, in the faster of its precisions.

An encoder is counted with the resizing and normalisation in its graph, from a picture of its own size, and the
backbones that `write_backbones` wrote once more without; the peer gets a tensor that is ready.

Everything takes about half an hour. Figures are written as they come, with a digest of what each depends on: where
that has not changed since the last time, nothing is counted again.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from asymcir_common import AsymcirError
from asymcir_common.arguments import ArgumentParser, add_device_bundle
from asymcir_common.files import write_atomically
from asymcir_edge import DeviceBundle
from asymcir_edge.device.golden import token_cosines
from numpy.typing import NDArray

from asymcir_benchmarks.device.arm_machine import CPU, ArmMachine, read_json
from asymcir_benchmarks.device.arm_subjects import (
    MODEL_PICTURES,
    Subject,
    load_pictures,
    open_backbones,
    open_bundle,
    open_peers,
)
from asymcir_benchmarks.device.timing import PEER
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.results import write_result

MIN_COSINE: Mapping[str, float] = {"fp32": 0.9999, "fp16": 0.9999, "int8": 0.99}
"""Precision -> least cosine that a token of the bundle on ARM may have with the same token on this machine.

A format of a precision ("int8-ort") is held to the same.
"""

GUEST_QUERY = Path(__file__).resolve().parents[2] / "arm" / "guest_query.py"
REQUIREMENTS = GUEST_QUERY.with_name("requirements.txt")
_COUNTED = "counted"  # kind of the result's details: subject -> digest
_RATIO = ", instructions / "
_SELFTEST_REPEATS = 3  # emulated times say nothing about a device
_COMMAND = "make bench-arm"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Outputs on ARM against outputs on this machine."""

    max_abs_difference: float
    min_cosine: float


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(
        prog="python -m asymcir_benchmarks.device.arm_count", description="Count the instructions of a query on ARM."
    )
    parser.add_argument("--root", type=Path, required=True, help="machine that benchmarks/arm/assemble made")
    add_device_bundle(parser, help="the device bundle; all of its precisions are run")
    parser.add_argument("--name", help="of the bundle's encoder in the figures (default: its folder's name)")
    parser.add_argument(
        "--models", type=Path, required=True, help="what `python -m asymcir_benchmarks.device.write_backbones` wrote"
    )
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pictures to encode")
    parser.add_argument("--out", type=Path, required=True, help="JSON of the figures; those that still hold are kept")
    parser.add_argument("--selftest", type=Path, metavar="REPORT", help="run the bundle's self-test too, write it here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Count, compare, print and write the figures."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    try:
        return _run(args)
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1


def _run(args: argparse.Namespace) -> int:
    machine = ArmMachine(work=args.root)
    pictures = load_pictures(args.pictures)
    bundle = DeviceBundle.load(args.device_bundle)
    ours = open_bundle(bundle, args.name or bundle.folder.resolve().name, pictures)
    few = pictures[:MODEL_PICTURES]
    figures = count_all([*open_peers(args.models, few), *ours, *open_backbones(args.models, few)], machine, args.out)
    print(f"figures: {args.out}")  # noqa: T201
    if args.selftest is not None:
        run_selftest(machine, bundle.folder, args.selftest)
        print(f"self-test on ARM: passed, {args.selftest}")  # noqa: T201
    check_agreement(ours, figures)
    return 0


def count_all(subjects: Sequence[Subject], machine: ArmMachine, out: Path) -> dict[str, float]:
    """Count every subject whose figures in a result do not hold any more, and write the result after each.

    Args:
        subjects: the peer first, to which the others are compared.
        machine: to count on.
        out: the result; figures of other subjects are dropped from it.

    Returns:
        All figures.

    Raises:
        BenchmarkError: a subject does not run; what was counted before is kept.
    """
    known, counted = read_counted(out)
    figures: dict[str, float] = {}
    digests: dict[str, str] = {}
    for subject in subjects:
        digest = subject.digest(CPU.encode(), GUEST_QUERY.read_bytes(), REQUIREMENTS.read_bytes())
        if counted.get(subject.key) == digest:
            found = {key: value for key, value in known.items() if key.startswith(f"{subject.key}, ")}
        else:
            found = measure(subject, machine)
            for key, value in found.items():
                print(f"{key}: {value:.6g}", flush=True)  # noqa: T201
        figures.update(found)
        digests[subject.key] = digest
        # Those still to come stay in the file, for the next run if this one is cut off.
        kept, noted = {**known, **figures}, {**counted, **digests}
        write_result(out, figures=kept | ratios_to_peer(kept), command=_COMMAND, details={_COUNTED: noted})
    ratios = ratios_to_peer(figures)
    write_result(out, figures=figures | ratios, command=_COMMAND, details={_COUNTED: digests})
    return figures | ratios


def read_counted(path: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Read the figures of an earlier run without its ratios, and the digests of what was counted; empty where none."""
    if not path.is_file():
        return {}, {}
    record = json.loads(path.read_text(encoding="utf-8"))
    digests: dict[str, str] = record.get("details", {}).get(_COUNTED, {})
    figures = {
        key: float(value)
        for key, value in record["figures"].items()
        if _RATIO not in key and key.startswith(tuple(f"{subject}, " for subject in digests))
    }
    return figures, digests


def measure(subject: Subject, machine: ArmMachine) -> dict[str, float]:
    """Count a query of a model and compare its outputs with those on this machine.

    Raises:
        BenchmarkError: it does not run on one of the two.
    """
    _LOG.info("counting %s", subject.key)
    query = [str(GUEST_QUERY), *subject.arguments]
    with tempfile.TemporaryDirectory(prefix="asymcir-arm-") as name:
        folder = Path(name)
        inputs, here, there = folder / "inputs.npy", folder / "here.npy", folder / "there.npy"
        np.save(inputs, subject.inputs)
        arguments = [*query, "--inputs", str(inputs)]
        key = f"{subject.key}, M instructions"
        figures = {key: machine.count_query([*arguments, "--out", str(there)]) / 1e6}
        if subject.camera is not None:
            height, width = subject.camera.shape[1:3]
            larger = folder / "camera.npy"
            np.save(larger, subject.camera)
            counted = machine.count_query([*query, "--inputs", str(larger), "--out", str(folder / "unused.npy")])
            figures[f"{subject.key}, from {width} x {height}, M instructions"] = counted / 1e6
        if len(subject.inputs) > 1:  # else the count's last run has left what the one input gives
            machine.run_json([*arguments, "--out", str(there)])
        done = subprocess.run(
            [sys.executable, *arguments, "--out", str(here)], capture_output=True, text=True, check=False
        )
        read_json(done, f"{subject.key} on this machine")
        agreement = compare_outputs(np.load(here), np.load(there)[: len(subject.inputs)])
    figures[f"{subject.key}, ARM to x86, max abs difference"] = agreement.max_abs_difference
    figures[f"{subject.key}, ARM to x86, min cosine"] = agreement.min_cosine
    return figures


def compare_outputs(here: NDArray[np.float32], there: NDArray[np.float32]) -> Agreement:
    """Compare outputs [..., width]; cosines are of the last axis.

    Raises:
        BenchmarkError: other shapes, or values that are not finite.
    """
    if here.shape != there.shape or not (np.isfinite(here).all() and np.isfinite(there).all()):
        raise BenchmarkError(
            f"expected finite outputs of one shape, got {list(here.shape)} here and {list(there.shape)} on ARM"
        )
    difference = np.abs(here.astype(np.float64) - there.astype(np.float64)).max()
    return Agreement(max_abs_difference=float(difference), min_cosine=float(token_cosines(here, there).min()))


def ratios_to_peer(figures: Mapping[str, float]) -> dict[str, float]:
    """Divide every count by the peer's in the faster of its precisions, which the keys name.

    Raises:
        BenchmarkError: the peer was not counted.
    """
    suffix = ", M instructions"
    counts = {key.removesuffix(suffix): value for key, value in figures.items() if key.endswith(suffix)}
    of_peer = {key: value for key, value in counts.items() if key.startswith(f"{PEER}, ")}
    if not of_peer:
        raise BenchmarkError(f"nothing to compare with: expected {PEER}, PRECISION{suffix} among the figures")
    fastest = min(of_peer, key=lambda key: of_peer[key])
    return {f"{key}{_RATIO}{fastest}": value / of_peer[fastest] for key, value in counts.items() if key not in of_peer}


def check_agreement(subjects: Sequence[Subject], figures: Mapping[str, float]) -> None:
    """Hold the bundle's tokens on ARM to those on this machine.

    Raises:
        BenchmarkError: a cosine below MIN_COSINE.
    """
    for subject in subjects:
        precision, _, _ = subject.precision.partition("-")
        if precision not in MIN_COSINE:
            raise BenchmarkError(f"{subject.key}: no threshold for {precision!r}, expected one of {list(MIN_COSINE)}")
        found, least = figures[f"{subject.key}, ARM to x86, min cosine"], MIN_COSINE[precision]
        if not found >= least:
            raise BenchmarkError(
                f"{subject.key}: a token on ARM has cosine {found:.5f} with the same one here, expected {least} or more"
            )


def run_selftest(machine: ArmMachine, bundle: Path, report: Path) -> None:
    """Run `asymcir selftest` on the ARM machine and keep what it prints.

    Raises:
        BenchmarkError: the bundle did not pass; the report is written all the same.
    """
    arguments = ["-m", "asymcir_edge", "selftest", "--device-bundle", str(bundle.resolve())]
    arguments += ["--repeats", str(_SELFTEST_REPEATS)]
    done = machine.run([*arguments, "--json-only"])
    try:
        json.loads(done.stdout)
    except json.JSONDecodeError as exc:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BenchmarkError(f"the self-test on ARM gave no report: {said}") from exc
    report.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(report, done.stdout)
    if done.returncode != 0:
        raise BenchmarkError(f"the bundle {bundle} does not pass its self-test on ARM: see {report}")


if __name__ == "__main__":
    sys.exit(main())
