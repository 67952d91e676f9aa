"""torch modules to ONNX, through torch.export.

The exporter follows the module's own code (no tracing of one input's branches). The result has dynamic batch and
sequence axes, is checked by onnx, and carries no traces of the machine that wrote it (the exporter leaves file names
and stack traces in every node).
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from asymcir_export.errors import ExportError

OPSET = 21
"""Of every exported graph: the first with block-wise DequantizeLinear; ONNX Runtime reads it since 1.20."""

IR_VERSION = 10
"""The file format that goes with OPSET; newer ones are refused by older runtimes."""

MAX_BATCH = 65_536
_EXTERNAL_DATA_ABOVE_BYTES = 2_000_000_000
"""protobuf refuses messages of 2 GiB; above this the weights go to `FILE.data` beside the graph."""

_INLINE_BYTES = 1024
"""Smaller constants (shapes, scales) stay in the graph, where shape inference reads their values."""

_PAGE_BYTES = 4096
"""A weight in `FILE.data` begins on a page, so that a runtime can map it instead of reading it."""

Axes = Mapping[str, Mapping[int, Any]]


def batch_axis() -> Any:
    """Return the axis `batch`, open from 1 to MAX_BATCH."""
    return torch.export.Dim("batch", min=1, max=MAX_BATCH)


def length_axis(context_length: int) -> Any:
    """Return the axis `length`, open from 1 to the context length."""
    return torch.export.Dim("length", min=1, max=context_length)


def to_onnx(module: nn.Module, inputs: Mapping[str, Tensor], *, outputs: Sequence[str], axes: Axes) -> ModelProto:
    """Convert a module.

    Args:
        module: in eval mode.
        inputs: name -> example, in the order of `forward`; an open axis is 2 or more, or it is taken for a constant.
        outputs: names, in the order in which `forward` returns them.
        axes: input name -> axis index -> `batch_axis()` or `length_axis()`, one object wherever the axis is the same.

    Returns:
        The checked graph; an input that the module does not use is not declared.

    Raises:
        ExportError: torch.export or the ONNX exporter cannot convert the module.
    """
    if module.training:
        raise ExportError(f"expected {type(module).__name__} in eval mode: its dropout would be exported")
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple(dict(axes.get(name, {})) or None for name in inputs),
                optimize=True,
                verbose=False,
            )
    except Exception as exc:  # the exporter's errors share no base
        cause = exc.__cause__ or exc  # the exporter wraps what went wrong in advice to its developers
        detail = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ExportError(f"cannot convert {type(module).__name__} to ONNX: {detail}") from exc
    assert program is not None  # dynamo=True gives one
    model: ModelProto = program.model_proto
    model.ir_version = IR_VERSION
    _strip_traces(model)
    _drop_unused_inputs(model)
    return model


def write_onnx(model: ModelProto, path: str | Path) -> None:
    """Write a graph, weights above 2 GB to `FILE.data` beside it, and check what was written.

    Raises:
        ExportError: onnx finds the graph wrong.
    """
    path = Path(path)
    try:
        save_onnx(model, path)
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as exc:
        raise ExportError(f"{path.name} is not a valid ONNX graph: {(str(exc).splitlines() or ['?'])[0]}") from exc


def save_onnx(model: ModelProto, path: Path, *, shapes: bool = True) -> None:
    """Write a graph as it is, weights above 2 GB to `FILE.data` beside it.

    Args:
        model: left as it is (onnx's own writer takes the weights out of the graph that it is given).
        path: replaced, its `.data` too.
        shapes: False leaves out what is known of the shapes of values between the nodes.
    """
    written = copy_without_weights(model)
    if not shapes:
        del written.graph.value_info[:]
    beside = path.with_name(f"{path.name}.data")
    if weight_size_bytes(model) > _EXTERNAL_DATA_ABOVE_BYTES:
        with beside.open("wb") as stream:
            for tensor in model.graph.initializer:
                data = tensor.raw_data
                entry = written.graph.initializer.add()
                if len(data) <= _INLINE_BYTES:
                    entry.CopyFrom(tensor)
                    continue
                stream.seek(-stream.tell() % _PAGE_BYTES, 1)
                entry.name, entry.data_type = tensor.name, tensor.data_type
                entry.dims.extend(tensor.dims)
                entry.data_location = TensorProto.EXTERNAL
                for key, value in (("location", beside.name), ("offset", stream.tell()), ("length", len(data))):
                    entry.external_data.add(key=key, value=str(value))
                stream.write(data)
    else:
        beside.unlink(missing_ok=True)
        written.graph.initializer.extend(model.graph.initializer)
    onnx.save_model(written, path)


def weight_size_bytes(model: ModelProto) -> int:
    """Add up the constants of a graph; asked for its size as a whole, protobuf fails above 2 GiB."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def copy_without_weights(model: ModelProto) -> ModelProto:
    """Copy a graph, all but its initialisers: a few MB, whatever the graph weighs."""
    copied = ModelProto()
    for message, source in ((copied, model), (copied.graph, model.graph)):
        for field, value in source.ListFields():
            if field.name in {"graph", "initializer"}:
                continue
            if field.message_type is not None:
                getattr(message, field.name).MergeFrom(value)
            elif isinstance(value, str | bytes | int | float):
                setattr(message, field.name, value)
            else:
                getattr(message, field.name).extend(value)
    return copied


def infer_shapes(model: ModelProto) -> None:
    """Note in a graph the type and shape of every value that they can be told of.

    onnx infers them through a serialised copy, which cannot be made of a graph above 2 GiB; the weights' own shapes
    are enough.
    """
    light = copy_without_weights(model)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= _INLINE_BYTES:
            light.graph.initializer.add().CopyFrom(tensor)
        else:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    inferred = onnx.shape_inference.infer_shapes(light)
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)


def _strip_traces(model: ModelProto) -> None:
    model.doc_string = ""
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "asymcir", ""
    graph = model.graph
    graph.name, graph.doc_string = "asymcir", ""
    records: list[Any] = [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for record in records:
        record.doc_string = ""
        if hasattr(record, "metadata_props"):
            del record.metadata_props[:]


def _drop_unused_inputs(model: ModelProto) -> None:
    """Undeclare inputs that no value depends on, so that a reader can tell from the graph what the module uses.

    The exporter asks any input for the size of an axis that several share; those questions go to another input first.
    """
    graph = model.graph
    axes = {
        declared.name: [_axis_name(axis) for axis in declared.type.tensor_type.shape.dim] for declared in graph.input
    }
    for name, own in axes.items():
        users = [node for node in graph.node if name in node.input]
        others = [other for other, found in axes.items() if other != name and found[: len(own)] == own]
        if not users or not others or any(node.op_type != "Shape" for node in users):
            continue
        for node in users:
            start, end = (
                next((item.i for item in node.attribute if item.name == key), None) for key in ("start", "end")
            )
            first, last, _ = slice(start, end).indices(len(own))
            del node.attribute[:]
            node.attribute.extend([helper.make_attribute("start", first), helper.make_attribute("end", last)])
            node.input[0] = others[0]
    used = {name for node in graph.node for name in node.input}
    kept = [declared for declared in graph.input if declared.name in used]
    del graph.input[:]
    graph.input.extend(kept)


def _axis_name(axis: Any) -> str | int:
    return axis.dim_param or axis.dim_value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its hints to its own developers from the command's output."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.__trace", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
