"""The golden part of a device bundle: pictures, the tokens that they must give, and how far these may be off.

The export writes it (`asymcir_export.bundles.golden`): `golden/golden.json`, `golden/tokens.npy`, picture files. The
tokens are PyTorch's, after the preprocessing of the training; whoever re-implements either sees here whether it is the
same. What stands in the files was verified against the manifest when the bundle was loaded.

Notation: n golden pictures, L sentence tokens, D word-embedding width.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import BundleError
from numpy.typing import NDArray

from asymcir_edge.device.bundle import DeviceBundle

GOLDEN_FOLDER, GOLDEN_FILE, TOKENS_FILE, PICTURES_FOLDER = "golden", "golden.json", "tokens.npy", "pictures"
PACKAGE_SUFFIX = ".mlpackage"
"""Core ML packages go by their names, where ONNX encoders go by their precisions."""

FLOAT_COSINE_MIN = 0.999
"""Least cosine of a token with its golden one for an encoder that computes in float, where the bundle says nothing."""

INT8_COSINE_MIN = 0.98
"""The same for an encoder that computes in int8, where the bundle did not record what was measured."""

COREML_COSINE_MIN = 0.99
"""The same for a Core ML package, which computes in fp16; the Neural Engine accumulates in it too."""

_FLOAT_PRECISIONS = ("fp32", "fp16")
_TINY = 1e-12  # a divisor of zero, for tokens or a spread of zero


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """How far an encoder may be from the golden tokens.

    Attributes:
        cosine_min: least cosine that any token may have with its golden one.
        error_to_spread_max: most root mean square error, over the root mean square distance of the golden tokens from
            their mean over the pictures; None where the bundle does not say. What all tokens have in common (they lie
            around the mean word) can hide another encoder from the cosine, but not from this.
    """

    cosine_min: float
    error_to_spread_max: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How near tokens are to the golden ones; see `compare_tokens`."""

    cosine_min: float
    cosine_mean: float
    max_abs_difference: float
    error_to_spread: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenPicture:
    """One picture file and the size that it has once it is decoded and upright, pixels."""

    name: str
    path: Path
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenSet:
    """What an encoder of the bundle is held to.

    Attributes:
        pictures: n of them.
        tokens: [n, L, D], float32.
        latency_picture: index of the square picture that is timed.
        thresholds: precision, or name of a Core ML package -> thresholds, where the bundle says them.
    """

    pictures: tuple[GoldenPicture, ...]
    tokens: NDArray[np.float32]
    latency_picture: int
    thresholds: Mapping[str, Thresholds]


def read_golden(bundle: DeviceBundle) -> GoldenSet:
    """Read the golden part of a bundle.

    Raises:
        BundleError: the bundle has none, or one that does not fit the bundle.
    """
    if "golden" not in bundle.manifest.properties:
        raise BundleError(
            f"{bundle.folder} has no golden pictures and tokens to test against: export the bundle again with this "
            "version of asymcir"
        )
    folder = bundle.folder / GOLDEN_FOLDER
    try:
        record = json.loads(_listed(bundle, GOLDEN_FILE).read_text(encoding="utf-8"))
        pictures = tuple(
            GoldenPicture(
                name=str(entry["file"]),
                path=_listed(bundle, f"{PICTURES_FOLDER}/{entry['file']}"),
                width=int(entry["width"]),
                height=int(entry["height"]),
            )
            for entry in record["pictures"]
        )
        names = [picture.name for picture in pictures]
        latency_picture = names.index(record["latency_picture"])
        thresholds = {str(name): _read_thresholds(entry) for name, entry in record["thresholds"].items()}
        with _listed(bundle, str(record["tokens"])).open("rb") as stream:
            tokens = np.lib.format.read_array(stream, allow_pickle=False)
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, OSError) as exc:
        raise BundleError(f"{folder} is not readable ({type(exc).__name__}: {exc}): export the bundle again") from exc
    expected = (len(pictures), bundle.sentence_length, bundle.word_width)
    if tokens.shape != expected or tokens.dtype != np.float32 or not np.isfinite(tokens).all():
        raise BundleError(
            f"expected finite golden tokens float32 {list(expected)} in {folder}, got {tokens.dtype} "
            f"{list(tokens.shape)}: export the bundle again"
        )
    return GoldenSet(pictures=pictures, tokens=tokens, latency_picture=latency_picture, thresholds=thresholds)


def find_thresholds(bundle: DeviceBundle, golden: GoldenSet, key: str) -> Thresholds:
    """Return what an encoder is held to: the golden part's word, else the variant's own record, else a default.

    Args:
        bundle: whose encoder it is.
        golden: of the bundle.
        key: its precision, or the name of a Core ML package.
    """
    if key in golden.thresholds:
        return golden.thresholds[key]
    variants = bundle.manifest.properties.get("variants")
    variant = variants.get(key) if isinstance(variants, Mapping) else None
    measured = variant.get("cosine_min") if isinstance(variant, Mapping) else None
    if isinstance(measured, int | float) and not isinstance(measured, bool):
        return Thresholds(cosine_min=float(measured))
    if key.endswith(PACKAGE_SUFFIX):
        return Thresholds(cosine_min=COREML_COSINE_MIN)
    return Thresholds(cosine_min=FLOAT_COSINE_MIN if computes_in_float(key) else INT8_COSINE_MIN)


def computes_in_float(precision: str) -> bool:
    """Whether an ONNX encoder of this precision, in either file format ("fp32", "fp32-ort"), computes in float."""
    return precision.partition("-")[0] in _FLOAT_PRECISIONS


def compare_tokens(expected: NDArray[np.float32], found: NDArray[np.float32]) -> Agreement:
    """Compare an encoder's tokens of all golden pictures with the golden ones: both [n, L, D]."""
    cosines = token_cosines(expected, found)
    spread = float(np.sqrt(np.mean((expected - expected.mean(axis=0)) ** 2)))
    error = float(np.sqrt(np.mean((found - expected) ** 2)))
    return Agreement(
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        max_abs_difference=float(np.abs(found - expected).max()),
        error_to_spread=error / max(spread, _TINY),
    )


def token_cosines(expected: NDArray[np.floating], found: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the cosine of every token: [..., D] -> [...]."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines: NDArray[np.float64] = (a * b).sum(axis=-1) / np.maximum(norms, _TINY)
    return cosines


def _listed(bundle: DeviceBundle, name: str) -> Path:
    """Return the path of a golden file that the manifest lists; one that it does not list was not verified."""
    listed = f"{GOLDEN_FOLDER}/{name}"
    if listed not in bundle.manifest.files:
        raise BundleError(f"the manifest of {bundle.folder} does not list {listed}: export the bundle again")
    return bundle.folder / listed


def _read_thresholds(entry: Mapping[str, Any]) -> Thresholds:
    spread = entry.get("error_to_spread_max")
    return Thresholds(
        cosine_min=float(entry["cosine_min"]), error_to_spread_max=None if spread is None else float(spread)
    )
