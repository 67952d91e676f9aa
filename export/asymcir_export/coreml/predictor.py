"""A Core ML package as a predictor: what `asymcir selftest` runs on macOS.

It needs coremltools and nothing else of the export, so that a Mac tests a bundle without torch. The device runtime
finds it by its entry point of the group `asymcir.predictors`, and does not import coremltools itself.

Notation: S side of the square that the network sees, L sentence tokens, D word-embedding width.
"""

from collections.abc import Callable
from pathlib import Path

import coremltools
import numpy as np
from asymcir_edge import EncoderError
from numpy.typing import NDArray
from PIL import Image

INPUT_NAME = "pixels"
OUTPUT_NAME = "sentence_tokens"


def open_coreml(path: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Open an .mlpackage where Core ML runs.

    Returns:
        A function from a prepared picture [S, S, 3] uint8 to sentence tokens [L, D].

    Raises:
        EncoderError: Core ML cannot load the package; the function raises it where Core ML cannot run it.
    """
    try:
        model = coremltools.models.MLModel(str(path))
    except Exception as exc:  # coremltools' errors have no common base
        raise EncoderError(f"Core ML cannot load {path}: {_first_line(exc)}") from exc

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            answer = model.predict({INPUT_NAME: Image.fromarray(pixels)})
        except Exception as exc:  # as above
            raise EncoderError(f"Core ML failed on {path.name}: {_first_line(exc)}") from exc
        return np.asarray(answer[OUTPUT_NAME], dtype=np.float32)

    return predict


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
