"""Look inside a graph: the values of named tensors while it runs on samples."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper


def probe_tensors(
    model: ModelProto, input_name: str, samples: Sequence[NDArray[Any]], names: Sequence[str]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Run the graph on each sample and yield name -> value, in the order of the names.

    Args:
        model: float32; not changed.
        input_name: its one input.
        samples: what goes into it.
        names: tensors of the graph, its outputs too.
    """
    if not names:
        return
    exposed = ModelProto()
    exposed.CopyFrom(model)
    declared = {output.name for output in exposed.graph.output}
    for name in names:
        if name not in declared:
            exposed.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    for sample in samples:
        values = session.run(list(names), {input_name: np.ascontiguousarray(sample)})
        yield dict(zip(names, values, strict=True))
