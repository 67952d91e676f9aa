"""What a query costs on ARM, in executed instructions, and whether its tokens are those of this machine.

    python -m asymcir_benchmarks.arm --root WORK --bundle DEVICE_BUNDLE --pictures FOLDER --peer fp32=FILE
        --peer int8=FILE [--model NAME:PRECISION=FILE ...] --out RESULT [--selftest REPORT]

The count is exact but for a few thousand instructions, however busy this machine is. It stands for time only between
programs of the same kind, here the same runtime's kernels: so what is published beside it is the ratio to a peer that
is counted the same way, in the faster of its precisions.

A device bundle's encoder is counted with the resizing and normalisation in its graph, from a picture of its own size;
the peer gets a tensor that is ready.

Notation: n pictures, S side of the square that a network sees.
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
import onnxruntime
from asymcir_edge import DeviceBundle
from asymcir_edge.golden import token_cosines
from asymcir_protos import AsymcirError, Preprocessing, preprocess, read_image
from asymcir_protos.manifest import write_atomically
from numpy.typing import NDArray

from asymcir_benchmarks.arm_machine import ArmMachine, read_json
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.results import write_result

PEER = "MobileCLIP-S0 image tower"
PICTURES = 8
"""Of which the bundle's tokens are compared; the first is the one that is counted."""

MODEL_PICTURES = 2
"""The same for the peer and other ONNX files, whose outputs are compared to show that they were computed at all."""

CAMERA = (480, 640)
"""Height and width of a picture as an app may hand it over: what resizing it costs is counted too."""

MODEL_SIZE = 224
"""Side of the pictures for an ONNX file that takes any size."""

MIN_COSINE: Mapping[str, float] = {"fp32": 0.9999, "fp16": 0.9999, "int8": 0.99}
"""Precision -> least cosine that a token of the bundle on ARM may have with the same token on this machine.

A format of a precision ("int8-ort") is held to the same.
"""

GUEST_QUERY = Path(__file__).resolve().parents[1] / "arm" / "guest_query.py"
_SELFTEST_REPEATS = 3  # emulated times say nothing about a device
_COMMAND = "make bench-arm"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One model in one precision.

    Attributes:
        name: of the model.
        precision: "fp32", "int8".
        arguments: how `guest_query.py` is told of it.
        inputs: [n, ...], what it takes, n times.
        camera: [1, height, width, 3], a larger picture to count too; None for none.
    """

    name: str
    precision: str
    arguments: tuple[str, ...]
    inputs: NDArray[np.generic]
    camera: NDArray[np.uint8] | None = None

    @property
    def key(self) -> str:
        """How figures call it."""
        return f"{self.name}, {self.precision}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Outputs on ARM against outputs on this machine."""

    max_abs_difference: float
    min_cosine: float


def main(argv: Sequence[str] | None = None) -> int:
    """Count, compare, print and write the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m asymcir_benchmarks.arm", description="Count the instructions of a query on ARM."
    )
    parser.add_argument("--root", type=Path, required=True, help="machine that benchmarks/arm/assemble made")
    parser.add_argument("--bundle", type=Path, required=True, help="device bundle; all of its precisions are run")
    parser.add_argument("--name", help="of the bundle's encoder in the figures (default: its folder's name)")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pictures to encode")
    parser.add_argument("--peer", action="append", required=True, metavar="PRECISION=FILE", help="may be given again")
    parser.add_argument("--model", action="append", default=[], metavar="NAME:PRECISION=FILE", help="another ONNX file")
    parser.add_argument("--out", type=Path, required=True, help="write the figures here as JSON")
    parser.add_argument("--selftest", type=Path, metavar="REPORT", help="run the bundle's self-test too, write it here")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    try:
        return _run(args)
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1


def _run(args: argparse.Namespace) -> int:
    machine = ArmMachine(work=args.root)
    pictures = load_pictures(args.pictures)
    bundle = DeviceBundle.load(args.bundle)
    peers = [open_model(f"{PEER}:{text}", pictures[:MODEL_PICTURES]) for text in args.peer]
    ours = open_bundle(bundle, args.name or bundle.folder.resolve().name, pictures)
    others = [open_model(text, pictures[:MODEL_PICTURES]) for text in args.model]
    figures: dict[str, float] = {}
    for subject in (*peers, *ours, *others):
        found = measure(subject, machine)
        figures.update(found)
        for key, value in found.items():
            print(f"{key}: {value:.6g}", flush=True)  # noqa: T201
    ratios = ratios_to_peer(figures)
    for key, value in ratios.items():
        print(f"{key}: {value:.4f}")  # noqa: T201
    write_result(args.out, figures=figures | ratios, command=_COMMAND)
    print(f"figures: {args.out}")  # noqa: T201
    if args.selftest is not None:
        run_selftest(machine, bundle.folder, args.selftest)
        print(f"self-test on ARM: passed, {args.selftest}")  # noqa: T201
    check_agreement(ours, figures)
    return 0


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
        figures = {f"{subject.key}, M instructions": machine.count_query([*arguments, "--out", str(there)]) / 1e6}
        if subject.camera is not None:
            height, width = subject.camera.shape[1:3]
            larger = folder / "camera.npy"
            np.save(larger, subject.camera)
            counted = machine.count_query([*query, "--inputs", str(larger), "--out", str(there)])
            figures[f"{subject.key}, from {width} x {height}, M instructions"] = counted / 1e6
        machine.run_json([*arguments, "--out", str(there)])
        done = subprocess.run(
            [sys.executable, *arguments, "--out", str(here)], capture_output=True, text=True, check=False
        )
        read_json(done, f"{subject.key} on this machine")
        agreement = compare_outputs(np.load(here), np.load(there))
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
    return {
        f"{key}, instructions / {fastest}": value / of_peer[fastest]
        for key, value in counts.items()
        if key not in of_peer
    }


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
    arguments = ["-m", "asymcir_edge", "selftest", str(bundle.resolve()), "--repeats", str(_SELFTEST_REPEATS)]
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


def load_pictures(folder: Path) -> list[NDArray[np.uint8]]:
    """Read PICTURES pictures [h, w, 3], evenly spaced in the order of their names.

    Raises:
        BenchmarkError: fewer are there.
        ImageError: one cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    if len(files) < PICTURES:
        raise BenchmarkError(f"expected a folder with {PICTURES} or more pictures, found {len(files)} in {folder}")
    return [read_image(files[i * len(files) // PICTURES]) for i in range(PICTURES)]


def open_bundle(bundle: DeviceBundle, name: str, pictures: Sequence[NDArray[np.uint8]]) -> list[Subject]:
    """Return every precision of a device bundle."""
    squares = np.stack([preprocess(picture, bundle.preprocessing) for picture in pictures])  # [n, S, S, 3]
    height, width = CAMERA
    side = squares.shape[1]
    tiles = (-(-height // side), -(-width // side), 1)  # what it shows does not matter for the cost
    camera = np.tile(squares[0], tiles)[:height, :width]
    return [
        Subject(
            name=name,
            precision=precision,
            arguments=("--bundle", str(bundle.folder.resolve()), "--precision", precision),
            inputs=squares,
            camera=np.ascontiguousarray(camera)[None],
        )
        for precision in bundle.encoders
    ]


def open_model(text: str, pictures: Sequence[NDArray[np.uint8]]) -> Subject:
    """Return a model that is given as NAME:PRECISION=FILE.

    It takes one picture [height, width, 3] uint8, or pixels [1, 3, S, S] float32, which it gets in [0, 1].

    Raises:
        BenchmarkError: the text is none, or the file is no such model.
    """
    label, _, file = text.partition("=")
    name, _, precision = label.rpartition(":")
    if not (name and precision and file):
        raise BenchmarkError(f"expected NAME:PRECISION=FILE, got {text!r}")
    path = Path(file).resolve()
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime's errors have no common base
        detail = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise BenchmarkError(f"cannot open the model {path}: {detail}") from exc
    inputs = session.get_inputs()
    kinds = [(declared.type, len(declared.shape)) for declared in inputs]
    if kinds == [("tensor(uint8)", 3)]:
        found: NDArray[np.generic] = np.stack([_square(picture, MODEL_SIZE) for picture in pictures])
    elif kinds == [("tensor(float)", 4)] and isinstance(inputs[0].shape[-1], int):
        squares = np.stack([_square(picture, inputs[0].shape[-1]) for picture in pictures])
        found = (squares.transpose(0, 3, 1, 2)[:, None] / 255).astype(np.float32)  # [n, 1, 3, S, S]
    else:
        raise BenchmarkError(
            f"{path}: expected one input, a picture [height, width, 3] uint8 or pixels [1, 3, S, S] float32, "
            f"got {[(declared.type, declared.shape) for declared in inputs]}"
        )
    return Subject(name=name, precision=precision, arguments=("--model", str(path)), inputs=found)


def _square(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return preprocess(
        picture, Preprocessing(size=size, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    )


if __name__ == "__main__":
    sys.exit(main())
