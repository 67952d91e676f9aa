"""Run a written graph and compare what it gives, on pictures that compress to nothing."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray


def make_pictures() -> list[NDArray[np.uint8]]:
    """Return 16 pictures of coarse random squares, 128 x 160."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (16, 8, 10, 3), dtype=np.uint8)
    return [np.ascontiguousarray(picture.repeat(16, axis=0).repeat(16, axis=1)) for picture in small]


def run_graph(path: Path, value: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return the first output of a graph of one input."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: value})[0]


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the cosine of two arrays of one shape."""
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
