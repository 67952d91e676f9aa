"""The Core ML check, on any platform: the saved package, evaluated operator by operator, against PyTorch.

coremltools predicts on macOS alone. Here the program is read back from the package, after all of coremltools' passes,
and run by `mil_evaluator`. What this cannot tell is what Core ML's own compiler and the Neural Engine make of it.

Notation: S side of the square that the network sees, L sentence tokens, D word-embedding width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_common import Preprocessing
from asymcir_training import normalise_pixels
from numpy.typing import NDArray
from torch import Tensor, nn

from asymcir_export.checks.agreement import Thresholds, check_agreement
from asymcir_export.coreml.mil.evaluator import MilEvaluator, Observer
from asymcir_export.coreml.mil.program import ImageInput, MilProgram, read_program
from asymcir_export.errors import ExportError, NotVerifiedError, ParityError

COREML_THRESHOLDS: Mapping[str, Thresholds] = {
    "fp16": Thresholds(cosine_min=0.999, cosine_mean=0.9995, error_to_spread=0.1),
    "linear8": Thresholds(cosine_min=0.995, cosine_mean=0.998, error_to_spread=0.25),
    "palettized8": Thresholds(cosine_min=0.995, cosine_mean=0.998, error_to_spread=0.25),
    "palettized6": Thresholds(cosine_min=0.97, cosine_mean=0.985, error_to_spread=0.45),
    "w8a8": Thresholds(cosine_min=0.97, cosine_mean=0.985, error_to_spread=0.3),
}
"""Precision of a package -> how near it has to be to PyTorch's float32.

Measured on a trained EfficientNet-Lite0 with token learner, as error to spread: fp16 0.01, linear8 and palettized8
0.05, palettized6 0.20, w8a8 0.09.
"""

NORMALISATIONS = ("batch_norm", "instance_norm", "layer_norm")
"""Operators whose epsilon is held against the encoder's own: a wrong one may not show on the pictures at hand."""


def check_coreml(
    path: str | Path,
    encoder: nn.Module,
    preprocessing: Preprocessing,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    precision: str = "fp16",
) -> dict[str, Any]:
    """Compare a saved package with the encoder that it was made from.

    Args:
        path: the .mlpackage.
        encoder: normalised [b, 3, S, S] -> [b, L, D], in eval mode.
        preprocessing: what it was trained with.
        pictures: [S, S, 3] uint8 each, already resized and cropped.
        precision: a key of COREML_THRESHOLDS.

    Returns:
        For the manifest: as `check_agreement` gives it, with `precision`, and `operators` evaluated per picture.

    Raises:
        ParityError: it answers otherwise, by more than that precision may.
        NotVerifiedError: it holds an operator, or a parameter of one, that the check does not know.
        ExportError: the package is damaged, or contradicts itself.
    """
    path = Path(path)
    program = read_program(path)
    check_epsilons(program, encoder)
    found = np.stack(_evaluate(program, pictures))
    with torch.inference_mode():
        expected = np.concatenate(
            [encoder(normalise_pixels(torch.tensor(picture)[None], preprocessing)).numpy() for picture in pictures]
        )
    thresholds = COREML_THRESHOLDS[precision]
    record = check_agreement("coreml", expected, found, thresholds=thresholds, allowance=f"Core ML's {precision}")
    return {**record, "precision": precision, "operators": len(program.operations)}


def evaluate_coreml(path: str | Path, pictures: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
    """Evaluate a saved package on the CPU.

    Args:
        path: the .mlpackage, of one picture input and one output.
        pictures: [S, S, 3] uint8 each.

    Returns:
        The package's output for each picture, [L, D].

    Raises:
        NotVerifiedError: an operator, or a parameter of one, that the evaluator does not know.
        ExportError: a damaged package, or pictures of another size.
    """
    path = Path(path)
    return _evaluate(read_program(path), pictures)


def measure_ranges(path: Path, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, tuple[float, float]]:
    """Measure what values the package's tensors take.

    Returns:
        Name of a tensor of floats -> its least and greatest value over all pictures.
    """
    ranges: dict[str, tuple[float, float]] = {}

    def observe(name: str, value: Tensor) -> None:
        if value.is_floating_point():
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = (min(low, float(value.amin())), max(high, float(value.amax())))

    program = read_program(path)
    _evaluate(program, pictures, observe=observe)
    ranges[program.image.name] = (0.0, 255.0)
    return ranges


def check_epsilons(program: MilProgram, encoder: nn.Module) -> None:
    """Hold the epsilon of every normalisation against those of the encoder's modules.

    Raises:
        ParityError: an epsilon that no module of the encoder has, in float32 or rounded to fp16.
        NotVerifiedError: an epsilon that is computed.
    """
    found = (getattr(module, "eps", None) for module in encoder.modules())
    own = {eps for eps in found if isinstance(eps, float)}
    allowed = {float(kind(value)) for value in own for kind in (np.float16, np.float32)}
    for operation in program.operations:
        if operation.kind not in NORMALISATIONS or "epsilon" not in operation.inputs:
            continue
        given = operation.inputs["epsilon"]
        value = program.constants.get(given[0]) if isinstance(given, tuple) else given
        if not isinstance(value, np.ndarray) or value.size != 1:
            raise NotVerifiedError(f"{operation.kind} (an epsilon that is no constant)")
        if float(value.item()) not in allowed:
            raise ParityError(
                f"coreml: {operation.kind} {operation.name} has an epsilon of {value.item():.3g}, expected one of "
                f"{sorted(own)}, which the encoder's modules have"
            )


def _evaluate(
    program: MilProgram, pictures: Sequence[NDArray[np.uint8]], *, observe: Observer | None = None
) -> list[NDArray[np.float32]]:
    if len(program.outputs) != 1:
        raise NotVerifiedError(f"outputs {list(program.outputs)}, expected one")
    evaluator = MilEvaluator(program)
    inputs = ({program.image.name: to_input(picture, program.image)} for picture in pictures)
    return [evaluator.run(values, observe=observe)[program.outputs[0]].numpy() for values in inputs]


def to_input(picture: NDArray[np.uint8], image: ImageInput) -> Tensor:
    """Turn a picture [S, S, 3] into what Core ML feeds the program: [1, 3, S, S], 0 to 255, in its channel order.

    coremltools writes the image type's scale as an operator of the program, so there is nothing more to apply.

    Raises:
        ExportError: a picture of another size or type.
    """
    if picture.shape != (image.height, image.width, 3) or picture.dtype != np.uint8:
        raise ExportError(
            f"expected pictures of {image.height} x {image.width} x 3, uint8, got {list(picture.shape)} {picture.dtype}"
        )
    channels = picture if image.channels == "RGB" else picture[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1)[None], dtype=np.float32))
