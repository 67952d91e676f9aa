"""What is counted on ARM: the peer, a device bundle, and the backbones that `write_backbones` wrote.

Notation: n pictures, S side of the square that a network sees.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from asymcir_common import Preprocessing, preprocess, read_image
from asymcir_common.places import PathReader, find_pictures
from asymcir_edge import DeviceBundle
from numpy.typing import NDArray

from asymcir_benchmarks.device.timing import PEER, PEER_FILES
from asymcir_benchmarks.errors import BenchmarkError

PICTURES = 8
"""Of which the bundle's tokens are compared; the first is the one that is counted."""

MODEL_PICTURES = 1
"""The same for plain ONNX files, whose outputs are compared to show that they were computed at all."""

CAMERA = (480, 640)
"""Height and width of a picture as an app may hand it over: what resizing it costs is counted too."""

MODEL_SIZE = 224
"""Side of the pictures for an ONNX file that takes any size."""

PREPROCESSING, PREPROCESSING_FILE = "picture preparation alone", "preprocessing.onnx"
NETWORK = "network alone"
ENCODER_FILES = {"int8": "encoder.int8.onnx", "fp32": "encoder.onnx", "fp16": "encoder.fp16.onnx"}
NETWORK_FILES = {"int8": "network.int8.onnx", "fp32": "network.onnx", "fp16": "network.fp16.onnx"}
"""Below the folder of each backbone, as `write_backbones` writes them; what a phone would run comes first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One model in one precision.

    Attributes:
        name: of the model.
        precision: "fp32", "int8".
        file: of its graph.
        arguments: how `guest_query.py` is told of it.
        inputs: [n, ...], what it takes, n times.
        camera: [1, height, width, 3], a larger picture to count too; None for none.
    """

    name: str
    precision: str
    file: Path
    arguments: tuple[str, ...]
    inputs: NDArray[np.generic]
    camera: NDArray[np.uint8] | None = None

    @property
    def key(self) -> str:
        """How figures call it."""
        return f"{self.name}, {self.precision}"

    def digest(self, *surroundings: bytes) -> str:
        """Return what its count depends on as one number: sha256 of graph, inputs and surroundings, in hex."""
        found = hashlib.sha256(self.file.read_bytes())
        camera = b"" if self.camera is None else self.camera.tobytes()
        for part in (str(self.inputs.shape).encode(), self.inputs.tobytes(), camera, *surroundings):
            found.update(hashlib.sha256(part).digest())
        return found.hexdigest()


def load_pictures(folder: Path) -> list[NDArray[np.uint8]]:
    """Read PICTURES pictures [h, w, 3], evenly spaced in the order of their names.

    Raises:
        BenchmarkError: fewer are there.
        ImageError: one cannot be read.
    """
    files, reader = find_pictures(folder), PathReader()
    if len(files) < PICTURES:
        raise BenchmarkError(f"expected a folder or zip of {PICTURES} or more pictures, found {len(files)} in {folder}")
    return [read_image(files[i * len(files) // PICTURES], reader) for i in range(PICTURES)]


def open_bundle(bundle: DeviceBundle, name: str, pictures: Sequence[NDArray[np.uint8]]) -> list[Subject]:
    """Return every precision of a device bundle."""
    squares = np.stack([preprocess(picture, bundle.preprocessing) for picture in pictures])  # [n, S, S, 3]
    return [
        Subject(
            name=name,
            precision=precision,
            file=path,
            arguments=("--device-bundle", str(bundle.folder.resolve()), "--precision", precision),
            inputs=squares,
            camera=_make_camera(squares[0]),
        )
        for precision, path in bundle.encoders.items()
    ]


def open_peers(folder: Path, pictures: Sequence[NDArray[np.uint8]]) -> list[Subject]:
    """Return the peer in its precisions.

    Raises:
        BenchmarkError: it is not there.
    """
    return [open_model(PEER, precision, folder / file, pictures) for precision, file in PEER_FILES.items()]


def open_backbones(folder: Path, pictures: Sequence[NDArray[np.uint8]]) -> list[Subject]:
    """Return the preprocessing alone, then every backbone with and without it, precision after precision.

    Raises:
        BenchmarkError: none is there, or a file is not what `asymcir_benchmarks.device.write_backbones` writes.
    """
    found = [path.parent for path in sorted(folder.glob("*/backbones.json"))]
    if not found:
        raise BenchmarkError(
            f"found no backbone below {folder}: run `python -m asymcir_benchmarks.device.write_backbones` first"
        )
    subjects = [open_model(PREPROCESSING, "fp32", folder / PREPROCESSING_FILE, pictures, camera=True)]
    for precision, encoder in ENCODER_FILES.items():
        for backbone in found:
            for name, file in ((backbone.name, encoder), (f"{backbone.name}, {NETWORK}", NETWORK_FILES[precision])):
                if (backbone / file).is_file():
                    subjects.append(open_model(name, precision, backbone / file, pictures))
    return subjects


def open_model(
    name: str, precision: str, path: Path, pictures: Sequence[NDArray[np.uint8]], *, camera: bool = False
) -> Subject:
    """Return an ONNX file as a subject.

    It takes one picture [height, width, 3] uint8, or pixels [1, 3, S, S] float32, which it gets in [0, 1].

    Args:
        name, precision: how figures call it.
        path: the file.
        pictures: [h, w, 3] uint8 each, to cut the inputs from.
        camera: count a larger picture too.

    Raises:
        BenchmarkError: the file is no such model.
    """
    path = path.resolve()
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime's errors have no common base
        detail = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise BenchmarkError(f"cannot open the model {path}: {detail}") from exc
    inputs = session.get_inputs()
    kinds = [(declared.type, len(declared.shape)) for declared in inputs]
    larger = None
    if kinds == [("tensor(uint8)", 3)]:
        found: NDArray[np.generic] = np.stack([_square(picture, MODEL_SIZE) for picture in pictures])
        larger = _make_camera(found[0].astype(np.uint8)) if camera else None
    elif kinds == [("tensor(float)", 4)] and isinstance(inputs[0].shape[-1], int):
        squares = np.stack([_square(picture, inputs[0].shape[-1]) for picture in pictures])
        found = (squares.transpose(0, 3, 1, 2)[:, None] / 255).astype(np.float32)  # [n, 1, 3, S, S]
    else:
        raise BenchmarkError(
            f"{path}: expected one input, a picture [height, width, 3] uint8 or pixels [1, 3, S, S] float32, "
            f"got {[(declared.type, declared.shape) for declared in inputs]}"
        )
    return Subject(
        name=name, precision=precision, file=path, arguments=("--model", str(path)), inputs=found, camera=larger
    )


def _make_camera(square: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tile a square [S, S, 3] to a picture [1, *CAMERA, 3]: what it shows does not matter for the cost."""
    height, width = CAMERA
    side = len(square)
    tiles = (-(-height // side), -(-width // side), 1)
    return np.ascontiguousarray(np.tile(square, tiles)[:height, :width])[None]


def _square(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return preprocess(
        picture, Preprocessing(size=size, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    )
