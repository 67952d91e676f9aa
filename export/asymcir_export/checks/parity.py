"""Parity: every exported model against its PyTorch original, on real pictures, through the runtime that will load it.

The device bundle is opened by `asymcir_edge`, so that resizing is compared along with the graph; the server's parts are
compared in server_parity.py.

Notation: L sentence tokens, D word-embedding width, b batch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_common import ImageError, Preprocessing, preprocess, read_image
from asymcir_common.places import PathReader, find_pictures
from asymcir_edge import DeviceBundle, QueryEncoder
from asymcir_training import LightEncoder, normalise_pixels
from numpy.typing import NDArray

from asymcir_export.checks.agreement import Thresholds, check_agreement
from asymcir_export.checks.resizing import RESIZED_THRESHOLDS, check_resize
from asymcir_export.errors import ExportError
from asymcir_export.graphs.weight_storage import STORAGES, WeightStorage

MIN_COSINE: Mapping[str, float] = {"fp32": 0.999, "fp16": 0.999, "int8": 0.995, "int4": 0.97}
"""Weight storage -> least cosine that any one embedding or token may have with its original."""

MEAN_COSINE: Mapping[str, float] = {"fp32": 0.9995, "fp16": 0.9995, "int8": 0.998, "int4": 0.985}
"""Weight storage -> least mean cosine."""

MAX_ERROR_TO_SPREAD: Mapping[str, float] = {"fp32": 0.1, "fp16": 0.1, "int8": 0.25, "int4": 0.6}
"""Weight storage -> most root mean square error, over the root mean square distance of the originals from their mean.

What all outputs have in common (sentence tokens lie around the mean word) can hide a fault from the cosine: with half
of a convolution's weights turned over, one encoder's tokens kept a mean cosine of 0.9991, at 2.7 times their spread.
Measured on sound exports of trained models: up to 0.02 for fp32 and fp16, 0.08 for int8.
"""

PARITY_PICTURES = 32
"""Pictures taken from the folder, evenly spaced in the order of their names."""

MIN_PICTURES = 2
_BATCH = 8


def storage_thresholds(storage: WeightStorage) -> Thresholds:
    """Return what a model has to meet whose weights are stored so."""
    return Thresholds(
        cosine_min=MIN_COSINE[storage], cosine_mean=MEAN_COSINE[storage], error_to_spread=MAX_ERROR_TO_SPREAD[storage]
    )


def worst_storage(*storages: WeightStorage) -> WeightStorage:
    """Return the leanest of several storages, whose thresholds a chain of models has to meet."""
    return max(storages, key=STORAGES.index)


def load_pictures(folder: Path, *, limit: int = PARITY_PICTURES) -> list[NDArray[np.uint8]]:
    """Read pictures for the comparison, as `load_named_pictures` does, without their names."""
    return list(load_named_pictures(folder, limit=limit).values())


def load_named_pictures(folder: Path, *, limit: int = PARITY_PICTURES) -> dict[str, NDArray[np.uint8]]:
    """Read pictures for the comparison, evenly spaced over a folder and the folders in it, or over an archive.

    Every second one is cut to 3:2 or 2:3, so that resizing and cropping are exercised by a folder of squares too.

    Returns:
        Path in the folder -> [h, w, 3] uint8; files that cannot be read are passed over.

    Raises:
        ExportError: fewer than MIN_PICTURES.
        PlaceError: an archive that cannot be read, or no place of pictures at all.
    """
    files, reader = find_pictures(folder), PathReader()
    chosen = [files[i * len(files) // limit] for i in range(limit)] if len(files) > limit else files
    pictures: dict[str, NDArray[np.uint8]] = {}
    for path in chosen:
        try:
            picture = read_image(path, reader)
        except ImageError:
            continue
        height, width = picture.shape[:2]
        if len(pictures) % 4 == 1:
            picture = picture[: max(1, height * 2 // 3)]
        elif len(pictures) % 4 == 3:
            picture = picture[:, : max(1, width * 2 // 3)]
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
        pictures[name] = np.ascontiguousarray(picture)
    if len(pictures) < MIN_PICTURES:
        raise ExportError(
            f"expected a folder with {MIN_PICTURES} or more pictures to compare on, found {len(pictures)} in {folder}"
        )
    return pictures


def check_parity(
    name: str,
    expected: NDArray[np.float32],
    found: NDArray[np.float32],
    *,
    storage: WeightStorage,
    pictures: Sequence[str] = (),
    advice: str = "",
    centred: bool = False,
) -> dict[str, Any]:
    """Compare what an exported model gives with what its original gives.

    Args:
        name: of the output, for the message and the manifest.
        expected: [..., width], from PyTorch.
        found: the same, from the exported model.
        storage: whose thresholds hold.
        pictures: names along the first axis, to name the worst one; none for texts.
        advice: what to do about a difference, for the message; of lean storage only.
        centred: leave the error that all vectors share out of the error to spread.

    Returns:
        For the manifest: what `check_agreement` says, and `weight_storage`.

    Raises:
        ParityError: another shape, a value that is not finite, a cosine below its threshold, or an error
            above its own.
    """
    record = check_agreement(
        name,
        expected,
        found,
        thresholds=storage_thresholds(storage),
        allowance=f"{storage} weights",
        pictures=pictures,
        advice="" if storage == "fp32" else advice,
        centred=centred,
    )
    return {**record, "weight_storage": storage}


def encode_original(encoder: LightEncoder, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Run PyTorch's encoder over pictures of any size, prepared as in training: [b, L, D]."""
    spec = encoder.preprocessing
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pictures), _BATCH):
            squares = [preprocess(picture, spec) for picture in pictures[start : start + _BATCH]]
            parts.append(encoder(_normalise(np.stack(squares), spec)))
    result: NDArray[np.float32] = torch.cat(parts).numpy()
    return result


def check_device_parity(
    folder: Path, encoder: LightEncoder, pictures: Mapping[str, NDArray[np.uint8]], *, storage: WeightStorage
) -> dict[str, Any]:
    """Compare a device bundle, opened by `asymcir_edge`, with its light encoder.

    Prepared pictures are compared strictly: the network gets the same pixels. Of others, the pixels that the graph's
    resize gives are compared with Pillow's, and the tokens by percentiles (see checks/resizing.py).

    Args:
        folder: the bundle, with its manifest.
        encoder: in eval mode.
        pictures: name -> [h, w, 3] uint8, any size.
        storage: of the ONNX encoder's weights.

    Returns:
        Output name -> record, for the manifest.

    Raises:
        ParityError: a cosine below its threshold, or other pixels.
    """
    bundle = DeviceBundle.load(folder)
    query_encoder, names = QueryEncoder(bundle), list(pictures)
    shown, spec = list(pictures.values()), encoder.preprocessing
    expected = encode_original(encoder, shown)  # [b, L, D]
    prepared = np.stack([query_encoder.encode_image(preprocess(picture, spec)) for picture in shown])
    found = np.stack([query_encoder.encode_image(picture) for picture in shown])
    advice = f"pass --storage {'fp32' if storage == 'fp16' else 'fp16'}, which keeps the weights more exactly"
    strict = check_parity("sentence_tokens", expected, prepared, storage=storage, pictures=names, advice=advice)
    resize = check_resize(bundle.encoder_path("fp32"), spec, shown, names)
    resized = check_agreement(
        "sentence_tokens_resized",
        expected,
        found,
        thresholds=RESIZED_THRESHOLDS,
        allowance="the resize in the graph",
        pictures=names,
    )
    return {"sentence_tokens": strict, "sentence_tokens_resized": {**resized, **resize, "weight_storage": storage}}


def _normalise(squares: NDArray[np.uint8], spec: Preprocessing) -> torch.Tensor:
    return normalise_pixels(torch.from_numpy(squares), spec)
