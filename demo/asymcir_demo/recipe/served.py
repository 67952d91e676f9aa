"""The foundation of a served bundle as a folder that trainers load: its visual tower read back from ONNX.

A light encoder can be trained anew for a server whose foundation was not kept, as long as its text tower is at hand.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from asymcir_export.graphs.probe import probe_tensors
from asymcir_server import ServerBundle
from asymcir_training import Foundation, load_foundation
from asymcir_training.foundation.creation import save_weights, write_initial_foundation
from torch import Tensor, nn

from asymcir_demo.errors import DemoError

TRUNK = "tf_efficientnet_lite0"
_PREFIX = "foundation.model.visual."
_LOG = logging.getLogger(__name__)


def write_served_foundation(server: Path, folder: Path, *, text: Path) -> dict[str, float]:
    """Write the foundation that a server bundle of the demo was exported from.

    Its weights are those of the bundle, with their rounding. Batch norms are folded into the convolutions there, so
    they are written as a shift by the bias alone: exact in eval mode, which is all that a teacher and a frozen trunk
    are used in.

    Args:
        server: the bundle.
        folder: to write.
        text: Hugging Face folder of the sentence encoder, which the text tower is.

    Raises:
        DemoError: the bundle's word space is not that of the text tower, or its visual tower is of another form.
    """
    bundle = ServerBundle.load(server)
    write_initial_foundation(folder, text=text, trunk=TRUNK, size=bundle.preprocessing.size)
    foundation = load_foundation(f"local-dir:{folder}")
    if foundation.word_space() != bundle.word_space:
        raise DemoError(f"expected the text tower of {server}, {text} is another: its words do not have that space")
    read = _read_weights(server / "visual_encoder.onnx")
    _fill(foundation, read)
    save_weights(foundation.model, folder)
    _LOG.info("read %d tensors of the visual tower of %s", len(read), server)
    return {"tensors": float(len(read))}


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Return name -> float32 of the tower's weights, however the file stores them."""
    graph = onnx.load(path)
    names = {
        name
        for node in graph.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
        for name in node.input
        if name.startswith(_PREFIX)
    }
    declared = graph.graph.input[0]
    shape = [1, *(side.dim_value for side in declared.type.tensor_type.shape.dim[1:])]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(declared.type.tensor_type.elem_type)
    (values,) = probe_tensors(graph, declared.name, [np.zeros(shape, dtype)], sorted(names))
    return {name: torch.from_numpy(value) for name, value in values.items()}


@torch.no_grad()
def _fill(foundation: Foundation, weights: dict[str, Tensor]) -> None:
    visual: Any = foundation.model.visual
    names = {module: name for name, module in visual.trunk.named_modules()}
    convolutions = [module for module in visual.trunk.modules() if isinstance(module, nn.Conv2d)]
    norms: list[Any] = [module for module in visual.trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    try:
        for convolution, norm in zip(convolutions, norms, strict=True):  # one follows the other throughout
            name = f"{_PREFIX}trunk.{names[convolution]}.weight"
            convolution.weight.copy_(weights[name])
            norm.weight.fill_(1.0)
            norm.bias.copy_(weights[f"{name}_bias"])
            norm.running_mean.zero_()
            norm.running_var.fill_(1.0 - norm.eps)
        visual.head.proj.weight.copy_(weights[f"{_PREFIX}head.proj.weight"])
    except (KeyError, RuntimeError, ValueError, AttributeError) as exc:
        raise DemoError(f"the visual tower of the bundle is not the demo's, of {TRUNK}: {exc}") from exc
