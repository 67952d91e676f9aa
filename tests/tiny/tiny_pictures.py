"""Pictures for trainers: arrays written as PNG files, which keep every value, and opened as training opens them."""

from pathlib import Path

import numpy as np
from asymcir_training.pictures.sets import PictureSet, open_pictures
from numpy.typing import NDArray
from PIL import Image


def write_pictures(folder: Path, arrays: NDArray[np.uint8]) -> PictureSet:
    """Write pictures [n, h, w, 3] into a folder, in order, and open it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(arrays):
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{number:04}.png")
    return open_pictures([folder])
