"""The light encoder as a Core ML ML Program.

The picture comes in as an image of the model's size; 1/255 is the image type's scale, mean and standard deviation are
operators (a scale per channel of ImageType fails in coremltools, apple/coremltools#2461). Weights and activations are
fp16. The package is written, read back and compared with what was meant.

Notation: S side of the square that the network sees, L sentence tokens, D word-embedding width.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_common import Preprocessing
from torch import Tensor, nn

from asymcir_export.coreml.mil.program import load_spec, quiet_coremltools
from asymcir_export.errors import ExportError

INPUT_NAME = "pixels"
OUTPUT_NAME = "sentence_tokens"
_NETWORK_OPERATORS = {"conv", "linear", "matmul", "layer_norm", "softmax"}
DEBUG_FILE = "executorch_debug_handle_mapping.json"  # beside the package that its own Manifest.json describes


class _NormalisedEncoder(nn.Module):
    """[1, 3, S, S] in [0, 1] -> sentence tokens [L, D]."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[None, :, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[None, :, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise and encode."""
        return self.encoder((pixels - self.mean) / self.std)[0]


def write_coreml(encoder: nn.Module, preprocessing: Preprocessing, path: str | Path) -> dict[str, Any]:
    """Write `path` (an .mlpackage folder) and read it back.

    Args:
        encoder: [1, 3, S, S] normalised -> [1, L, D], in eval mode.
        preprocessing: what the encoder was trained with; the app resizes, bilinear and antialiased.
        path: does not exist.

    Returns:
        What was found in the saved package: `input`, `output`, `operators` (MIL operator -> count).

    Raises:
        ExportError: bicubic resizing, an encoder that coremltools cannot convert, or a package that is not
            what was meant.
    """
    path = Path(path)
    with quiet_coremltools():
        import coremltools as ct

    if preprocessing.interpolation != "bilinear":
        raise ExportError(
            f"Core ML has no {preprocessing.interpolation} resize, so an app could not prepare the picture as this "
            "encoder was trained: train it with bilinear preprocessing, or export with --no-coreml"
        )
    size = preprocessing.size
    module = _NormalisedEncoder(encoder, preprocessing).eval()
    example = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        shape = list(module(example).shape)
    try:
        with torch.no_grad(), quiet_coremltools():
            program = torch.export.export(module, (example,)).run_decompositions({})
            model = ct.convert(
                program,
                convert_to="mlprogram",
                inputs=[ct.ImageType(INPUT_NAME, (1, 3, size, size), scale=1 / 255.0, color_layout=ct.colorlayout.RGB)],
                outputs=[ct.TensorType(OUTPUT_NAME, dtype=np.float16)],
                minimum_deployment_target=ct.target.iOS16,
                compute_precision=ct.precision.FLOAT16,
                skip_model_load=True,
            )
            model.save(str(path))
        (path / DEBUG_FILE).unlink(missing_ok=True)
    except Exception as exc:  # the converter's errors share no base
        shutil.rmtree(path, ignore_errors=True)
        detail = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise ExportError(f"cannot convert the light encoder to Core ML: {detail}; export with --no-coreml") from exc
    return read_coreml(path, size=size, shape=shape)


def read_coreml(path: Path, *, size: int, shape: Sequence[int]) -> dict[str, Any]:
    """Read a saved package back and check its interface and its precision.

    Args:
        path: the .mlpackage.
        size: S expected of the input.
        shape: [L, D] expected of the output.

    Raises:
        ExportError: another name, size, type or shape, or a network that does not compute in fp16.
    """
    spec, _ = load_spec(path)
    from coremltools.proto.MIL_pb2 import DataType as MilDataType

    inputs, outputs = list(spec.description.input), list(spec.description.output)
    image = inputs[0].type.imageType
    array = outputs[0].type.multiArrayType
    found = {
        "input": [inputs[0].name, image.width, image.height, image.colorSpace],
        "output": [outputs[0].name, *array.shape, array.dataType],
        "counts": [len(inputs), len(outputs)],
    }
    expected = {
        "input": [INPUT_NAME, size, size, image.RGB],
        "output": [OUTPUT_NAME, *shape, array.FLOAT16],
        "counts": [1, 1],
    }
    if found != expected:
        raise ExportError(f"the Core ML package at {path} declares {found}, expected {expected}")
    operators: dict[str, int] = {}
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for operation in block.operations:
                operators[operation.type] = operators.get(operation.type, 0) + 1
                types = [output.type.tensorType.dataType for output in operation.outputs]
                if operation.type in _NETWORK_OPERATORS and types != [MilDataType.FLOAT16]:
                    raise ExportError(f"the Core ML package at {path} does not compute its {operation.type} in fp16")
    if not operators:
        raise ExportError(f"the Core ML package at {path} holds no operators")
    return {
        "input": f"{INPUT_NAME}: RGB image {size}x{size}",
        "output": f"{OUTPUT_NAME}: float16 {list(shape)}",
        "operators": dict(sorted(operators.items())),
    }
