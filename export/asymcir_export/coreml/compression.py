"""Leaner variants of a Core ML package: 8-bit and palettised weights, 8-bit activations.

Each starts from the fp16 package, is written by coremltools' own passes, read back and compared with the encoder; a
variant that fails is not kept.

Notation: S side of the square that the network sees.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asymcir_export.coreml.check import measure_ranges
from asymcir_export.coreml.mil.program import MilOperation, MilProgram, load_spec, quiet_coremltools, read_program
from asymcir_export.coreml.writer import DEBUG_FILE, read_coreml
from asymcir_export.errors import ExportError

_logger = logging.getLogger(__name__)

VARIANT_FILES: Mapping[str, str] = {
    "linear8": "encoder.w8.mlpackage",
    "palettized8": "encoder.p8.mlpackage",
    "palettized6": "encoder.p6.mlpackage",
    "w8a8": "encoder.w8a8.mlpackage",
}
"""Variant -> its name in the device bundle.

`linear8` int8 weights with a scale per output channel; `palettized8` and `palettized6` a table of 256 or 64 values per
weight tensor, by k-means; `w8a8` int8 weights and int8 activations, from iOS 17.
"""

MIN_ELEMENTS = 2048
"""Weights of fewer elements stay fp16: they save next to nothing, and the first convolutions are the most sensitive.

With the first three of a trained EfficientNet-Lite0 (1,664 elements) in int8 too, its tokens' error doubled.
"""

SMALL_SHARE = 0.06
"""Tables of 64 values are coarse: at 6 bits the smallest weights stay fp16, up to this share of all elements. Without
that the demo's light encoder had an error to spread of .159 and 3.6 MB, with it .102 and 3.9 MB (8 bits: 4.7 MB)."""

_CLIPS = ("clip", "relu", "relu6")


def write_coreml_variant(
    package: str | Path, variant: str, out: str | Path, *, pictures: Sequence[NDArray[np.uint8]] = ()
) -> dict[str, Any]:
    """Write a variant of a Core ML package, and read it back.

    Args:
        package: the fp16 .mlpackage that `write_coreml` wrote.
        variant: a key of VARIANT_FILES.
        out: the .mlpackage to write; does not exist.
        pictures: [S, S, 3] uint8 each, to measure activations on; only `w8a8` needs them.

    Returns:
        As `read_coreml` does, with `size_bytes`.

    Raises:
        ExportError: an unknown variant, w8a8 without pictures, or a package that is not what was meant; then `out` is
            not there.
    """
    package = Path(package)
    out = Path(out)
    if variant not in VARIANT_FILES:
        raise ExportError(f"expected a Core ML variant of {list(VARIANT_FILES)}, got {variant!r}")
    spec, _ = load_spec(package)
    size = spec.description.input[0].type.imageType.width
    shape = list(spec.description.output[0].type.multiArrayType.shape)
    try:
        with quiet_coremltools():
            _COMPRESSORS[variant](package, pictures).save(str(out))
        (out / DEBUG_FILE).unlink(missing_ok=True)
        found = read_coreml(out, size=size, shape=shape)
    except ExportError:
        shutil.rmtree(out, ignore_errors=True)
        raise
    except Exception as exc:  # coremltools' errors share no base
        shutil.rmtree(out, ignore_errors=True)
        detail = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise ExportError(f"coremltools cannot write the variant {variant}: {detail}") from exc
    return {**found, "size_bytes": package_size_bytes(out)}


def package_size_bytes(package: Path) -> int:
    """Sum the sizes of a package's files."""
    return sum(file.stat().st_size for file in package.rglob("*") if file.is_file())


def _load(package: Path) -> Any:
    from coremltools.models import MLModel

    return MLModel(str(package), skip_model_load=True)


def _quantize_weights(model: Any) -> Any:
    from coremltools.optimize import coreml as optimize

    config = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=MIN_ELEMENTS)
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(config))


def _linear8(package: Path, _: Sequence[NDArray[np.uint8]]) -> Any:
    return _quantize_weights(_load(package))


def _palettize(bits: int, small_share: float = 0.0) -> Callable[[Path, Sequence[NDArray[np.uint8]]], Any]:
    def compress(package: Path, _: Sequence[NDArray[np.uint8]]) -> Any:
        from coremltools.optimize import coreml as optimize

        least = max(MIN_ELEMENTS, _find_small(read_program(package), small_share))
        config = optimize.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=least)
        return optimize.palettize_weights(_load(package), optimize.OptimizationConfig(config))

    return compress


def _find_small(program: MilProgram, share: float) -> int:
    """Find how many elements the smallest weight has that is not among the first `share` of all, smallest first."""
    sizes = sorted(np.size(value) for value in program.constants.values() if not isinstance(value, str))
    passed = np.cumsum(sizes) > share * sum(sizes)
    return int(sizes[int(passed.argmax())])


def _w8a8(package: Path, pictures: Sequence[NDArray[np.uint8]]) -> Any:
    """Quantise activations by ranges measured here, then weights.

    `linear_quantize_activations` would measure the ranges by predicting, so on macOS alone; its calibrator also starts
    each tensor's range afresh with every sample. The passes that it runs need nothing but the ranges.
    """
    if not pictures:
        raise ExportError("the Core ML variant w8a8 needs pictures to measure activations on, got none")
    from coremltools import _SPECIFICATION_VERSION_IOS_17
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
    from coremltools.models.utils import _apply_graph_pass
    from coremltools.optimize import coreml as optimize

    config = optimize.OptimizationConfig(optimize.OpLinearQuantizerConfig(mode="linear_symmetric"))
    ranges = _saturate(read_program(package), measure_ranges(package, pictures))
    statistics = {name: {"rmin": low, "rmax": high} for name, (low, high) in ranges.items()}
    passes: list[Any] = []
    for name in ("insert_prefix_quantize_dequantize_pair", "insert_suffix_quantize_dequantize_pair"):
        quantize = PASS_REGISTRY[f"compression::{name}"]
        quantize.config, quantize.activation_stats = config, statistics
        passes.append(quantize)
    passes.append(PASS_REGISTRY["common::dequantize_quantize_pair_elimination"])
    model = _apply_graph_pass(_load(package), passes, spec_version=_SPECIFICATION_VERSION_IOS_17, skip_model_load=True)
    return _quantize_weights(model)


def _saturate(program: MilProgram, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Give a tensor that nothing but a clip reads the range of what the clip leaves.

    coremltools quantises a convolution's output before the clip that follows. With the convolution's own range (-46 to
    54 before a ReLU6) few of the 256 steps lie where values survive; with the clip's, quantising clips by itself.
    """
    readers: dict[str, list[MilOperation]] = {}
    for operation in program.operations:
        for names in operation.inputs.values():
            for name in names if isinstance(names, tuple) else ():
                readers.setdefault(name, []).append(operation)
    saturated = dict(ranges)
    for name, operations in readers.items():
        if name in ranges and all(operation.kind in _CLIPS for operation in operations):
            left = [ranges[operation.outputs[0].name] for operation in operations]
            saturated[name] = (min(low for low, _ in left), max(high for _, high in left))
    return saturated


_COMPRESSORS: Mapping[str, Callable[[Path, Sequence[NDArray[np.uint8]]], Any]] = {
    "linear8": _linear8,
    "palettized8": _palettize(8),
    "palettized6": _palettize(6, SMALL_SHARE),
    "w8a8": _w8a8,
}
