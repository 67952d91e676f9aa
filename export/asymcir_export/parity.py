"""Parity: every exported model against its PyTorch original, on real pictures, through the runtime that will load it.

The device bundle is opened by `asymcir_edge`, the server bundle by `asymcir_server`, so that resizing, tokenisation,
composition, padding and pooling are compared along with the graphs.

Notation: L sentence tokens, D word-embedding width, E joint-embedding width, b batch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_edge import DeviceBundle, QueryEncoder
from asymcir_protos import ImageError, Preprocessing, preprocess, read_image
from asymcir_server.bundle import ServerBundle
from asymcir_server.composition import Composer
from asymcir_server.targets import TargetEncoder
from asymcir_server.text_encoder import TextEncoder
from asymcir_server.visual import VisualEncoder
from asymcir_training import Foundation, LightEncoder, UnionHead, normalise_pixels
from numpy.typing import NDArray

from asymcir_export.coreml_writer import NOT_VERIFIED, predict_coreml
from asymcir_export.errors import ExportError, ParityError
from asymcir_export.lean import STORAGES, WeightStorage

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

COREML_MIN_COSINE = 0.99
"""Of the Core ML package, which computes in fp16; the Neural Engine accumulates in it too."""

PARITY_PICTURES = 32
"""Pictures taken from the folder, evenly spaced in the order of their names."""

MIN_PICTURES = 2
_BATCH = 8
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
_SEED = 0
_MODIFIERS = (
    "",
    "is red",
    "has a blue hat and long sleeves",
    "is crying, but less sad",
    "shows two of them at night instead of one by day",
    "looks like a line drawing",
)


def worst_storage(*storages: WeightStorage) -> WeightStorage:
    """Return the leanest of several storages, whose thresholds a chain of models has to meet."""
    return max(storages, key=STORAGES.index)


def load_pictures(folder: Path, *, limit: int = PARITY_PICTURES) -> list[NDArray[np.uint8]]:
    """Read pictures for the comparison, evenly spaced over a folder and the folders in it.

    Every second one is cut to 3:2 or 2:3, so that resizing and cropping are exercised by a folder of squares too.

    Returns:
        [h, w, 3] uint8 each; files that cannot be read are passed over.

    Raises:
        ExportError: fewer than MIN_PICTURES.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    chosen = [files[i * len(files) // limit] for i in range(limit)] if len(files) > limit else files
    pictures: list[NDArray[np.uint8]] = []
    for path in chosen:
        try:
            picture = read_image(path)
        except ImageError:
            continue
        height, width = picture.shape[:2]
        if len(pictures) % 4 == 1:
            picture = picture[: max(1, height * 2 // 3)]
        elif len(pictures) % 4 == 3:
            picture = picture[:, : max(1, width * 2 // 3)]
        pictures.append(np.ascontiguousarray(picture))
    if len(pictures) < MIN_PICTURES:
        raise ExportError(
            f"expected a folder with {MIN_PICTURES} or more pictures to compare on, found {len(pictures)} in {folder}"
        )
    return pictures


def check_parity(
    name: str, expected: NDArray[np.float32], found: NDArray[np.float32], *, storage: WeightStorage
) -> dict[str, Any]:
    """Compare what an exported model gives with what its original gives.

    Args:
        name: of the output, for the message and the manifest.
        expected: [..., width], from PyTorch.
        found: the same, from the exported model.
        storage: whose thresholds hold.

    Returns:
        For the manifest: `vectors` compared, `max_abs_difference`, `cosine_min`, `cosine_mean`, `error_to_spread`, and
        the thresholds of the last three.

    Raises:
        ParityError: another shape, a value that is not finite, a cosine below its threshold, or an error
            above its own.
    """
    if expected.shape != found.shape:
        raise ParityError(f"{name}: the exported model gives {list(found.shape)}, the original {list(expected.shape)}")
    a = expected.reshape(-1, expected.shape[-1]).astype(np.float64)
    b = found.reshape(-1, found.shape[-1]).astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ParityError(f"{name}: expected finite values, got NaN or infinity")
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(norms, 1e-12)  # [vectors]
    spread = float(np.sqrt(np.mean((expected - expected.mean(axis=0)) ** 2)))
    error = float(np.sqrt(np.mean((a - b) ** 2)))
    record = {
        "vectors": len(a),
        "max_abs_difference": float(np.abs(a - b).max()),
        "cosine_min": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
        "error_to_spread": error / max(spread, 1e-12),
        "weight_storage": storage,
        "thresholds": [MIN_COSINE[storage], MEAN_COSINE[storage], MAX_ERROR_TO_SPREAD[storage]],
    }
    if (
        record["cosine_min"] < MIN_COSINE[storage]
        or record["cosine_mean"] < MEAN_COSINE[storage]
        or record["error_to_spread"] > MAX_ERROR_TO_SPREAD[storage]
    ):
        raise ParityError(
            f"{name}: the exported model differs from its original by more than {storage} weights may: cosine min "
            f"{record['cosine_min']:.5f} (at least {MIN_COSINE[storage]}), mean {record['cosine_mean']:.5f} (at least "
            f"{MEAN_COSINE[storage]}), error to spread {record['error_to_spread']:.3f} (at most "
            f"{MAX_ERROR_TO_SPREAD[storage]}), max abs difference {record['max_abs_difference']:.3g} over {len(a)} "
            "vectors; nothing was written"
        )
    return record


def check_device_parity(
    folder: Path, encoder: LightEncoder, pictures: Sequence[NDArray[np.uint8]], *, storage: WeightStorage
) -> dict[str, Any]:
    """Compare a device bundle, opened by `asymcir_edge`, with its light encoder.

    Args:
        folder: the bundle, with its manifest.
        encoder: in eval mode.
        pictures: [h, w, 3] uint8, any size.
        storage: of the ONNX encoder's weights.

    Returns:
        Output name -> record, for the manifest.

    Raises:
        ParityError: a cosine below its threshold.
    """
    query_encoder = QueryEncoder(DeviceBundle.load(folder))
    squares = [preprocess(picture, encoder.preprocessing) for picture in pictures]
    expected = _run_torch(encoder, squares, encoder.preprocessing)  # [b, L, D]
    prepared = np.stack([query_encoder.encode_image(square) for square in squares])  # resizing them changes nothing
    found = np.stack([query_encoder.encode_image(picture) for picture in pictures])
    parity: dict[str, Any] = {
        "sentence_tokens": check_parity("sentence_tokens", expected, prepared, storage=storage),
        "sentence_tokens_resized": check_parity("sentence_tokens_resized", expected, found, storage=storage),
    }
    package = folder / "encoder.mlpackage"
    if package.exists():
        predicted = predict_coreml(package, squares)
        parity["coreml"] = NOT_VERIFIED if predicted is None else _check_coreml(expected, np.stack(predicted))
    return parity


def check_server_parity(
    folder: Path,
    foundation: Foundation,
    union_head: UnionHead,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    text_storage: WeightStorage,
    visual_storage: WeightStorage,
    union_storage: WeightStorage,
) -> dict[str, Any]:
    """Compare a server bundle, opened by `asymcir_server`, with the foundation and the UNION head.

    Args:
        folder: the bundle, with its manifest.
        foundation: what the towers were made from.
        union_head: in eval mode.
        pictures: [h, w, 3] uint8, any size.
        text_storage: the leaner of the text tower's and the word-embedding table's.
        visual_storage: of the visual tower.
        union_storage: of the UNION head.

    Returns:
        Output name -> record, for the manifest.

    Raises:
        ParityError: a cosine below its threshold.
    """
    bundle = ServerBundle.load(folder)
    text_encoder, visual_encoder = TextEncoder(bundle), VisualEncoder(bundle)
    parity = {"text_features": _check_text(text_encoder, foundation, storage=text_storage)}
    squares = np.stack([preprocess(picture, foundation.preprocessing) for picture in pictures])
    batches = [squares[i : i + _BATCH] for i in range(0, len(squares), _BATCH)]
    found_images = np.concatenate([visual_encoder.encode_image(batch) for batch in batches])
    with torch.inference_mode():
        images = torch.cat([foundation.encode_pixels(_normalise(batch, foundation.preprocessing)) for batch in batches])
        null = foundation.encode_null().expand_as(images)
        targets, gates = union_head(images, null)
    expected_images = images.numpy()
    parity["image_features"] = check_parity("image_features", expected_images, found_images, storage=visual_storage)
    target_encoder = TargetEncoder(bundle, text_encoder)
    fed = target_encoder.compute_targets(expected_images, "union")
    head_storage = worst_storage(union_storage, text_storage)
    parity["target"] = check_parity("target", targets.numpy(), fed, storage=head_storage)
    chained = target_encoder.compute_targets(found_images, "union")
    chain_storage = worst_storage(head_storage, visual_storage)
    parity["target_end_to_end"] = check_parity("target_end_to_end", targets.numpy(), chained, storage=chain_storage)
    feed = {"image_features": expected_images, "text_features": np.ascontiguousarray(null.numpy())}
    (found_gates,) = bundle.union_session().run(["gate"], feed)
    parity["gate"] = {"max_abs_difference": float(np.abs(found_gates - gates.numpy()).max())}
    return parity


def _check_text(text_encoder: TextEncoder, foundation: Foundation, *, storage: WeightStorage) -> dict[str, Any]:
    """Compare composed queries (words of the table as sentence tokens), plain texts and the null prompt."""
    generator = torch.Generator().manual_seed(_SEED)
    table = foundation.word_embedding_table()
    composer: Composer = text_encoder.composer
    modifiers = [text for text in _MODIFIERS if _fits(foundation, text)] * 2
    length = max(1, min(6, composer.max_sentence_length))
    picks = torch.randint(len(table), (len(modifiers), length), generator=generator)
    with torch.inference_mode():
        tokens = table[picks]  # [b, L, D]
        plain = [text for text in _MODIFIERS if text][:2]
        expected = torch.cat(
            [foundation.compose_query(tokens, modifiers), foundation.encode_text(plain), foundation.encode_null()]
        ).numpy()
    prompts = [composer.compose_query(row.numpy(), text) for row, text in zip(tokens, modifiers, strict=True)]
    prompts += [composer.compose_text(text) for text in plain] + [composer.compose_null()]
    found = np.concatenate([text_encoder.encode_prompts(prompts[:1]), text_encoder.encode_prompts(prompts[1:])])
    return check_parity("text_features", expected, found, storage=storage)


def _fits(foundation: Foundation, modifier: str) -> bool:
    """Whether a modifier leaves room for the template and six sentence tokens (it does not in a very short context)."""
    return len(foundation.tokenize(modifier)) + 16 <= foundation.context_length


def _check_coreml(expected: NDArray[np.float32], found: NDArray[np.float32]) -> dict[str, Any]:
    a, b = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (expected, found))
    cosines = (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    if not cosines.min() >= COREML_MIN_COSINE:
        raise ParityError(
            f"coreml: cosine min {cosines.min():.5f}, expected at least {COREML_MIN_COSINE}; nothing was written"
        )
    return {"vectors": len(a), "cosine_min": float(cosines.min()), "cosine_mean": float(cosines.mean())}


def _run_torch(encoder: LightEncoder, squares: Sequence[NDArray[np.uint8]], spec: Preprocessing) -> NDArray[np.float32]:
    with torch.inference_mode():
        parts = [encoder(_normalise(np.stack(squares[i : i + _BATCH]), spec)) for i in range(0, len(squares), _BATCH)]
    result: NDArray[np.float32] = torch.cat(parts).numpy()
    return result


def _normalise(squares: NDArray[np.uint8], spec: Preprocessing) -> torch.Tensor:
    return normalise_pixels(torch.from_numpy(squares), spec)
