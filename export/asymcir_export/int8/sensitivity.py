"""Which layers of an int8 graph should stay float: those that spoil most of the answer for the least arithmetic.

ONNX Runtime computes a layer in int8 only if what it reads and what it writes are 8-bit, so the unit is an activation:
to leave one float, the layers that touch it become float. Every 8-bit activation is freed alone and the output's error
measured; the best one per multiply-accumulate is taken, then the next beside it (which is cheap next door, where its
layers are float already), until the error is small enough or the float share of the arithmetic is used up.

While measuring, freed layers keep their rounded weights, for which the biases were corrected; the graph that is
written afterwards (`quantize_static_int8` with `float_nodes`) has their float ones, and is a little better.
"""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper
from onnxruntime.transformers.onnx_model import OnnxModel

from asymcir_export.graphs.cost import count_macs

_logger = logging.getLogger(__name__)

MAX_FLOAT_MACS = 0.25
"""Most of a mixed graph's multiply-accumulates that may be float; beyond it int8 is hardly faster than float32."""

TARGET_ERROR = 0.02
"""Error to spread on the calibration pictures at which the search stops: about what fp16 and resizing cost."""

SENSITIVITY_PICTURES = 48
_LEAST_COST = 0.002
"""Share of the arithmetic that freeing anything counts as: a conversion is not free."""

_FOLDED = ("Clip", "Relu")
"""Activation functions that the quantiser takes into the range of what follows them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FloatChoice:
    """What stays float.

    Attributes:
        nodes: names, in the order in which they were chosen.
        tensors: the activations freed by that.
        macs_share: of the graph's multiply-accumulates, in those nodes.
        error_before: error to spread of the fully quantised graph on the samples.
        error_after: the same with `tensors` float.
    """

    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    macs_share: float
    error_before: float
    error_after: float


def choose_float(
    model: ModelProto,
    quantised: ModelProto,
    input_name: str,
    samples: Sequence[NDArray[Any]],
) -> FloatChoice:
    """Choose greedily which nodes of a quantised graph to leave float, up to TARGET_ERROR or MAX_FLOAT_MACS.

    Args:
        model: float32.
        quantised: made of it by `quantize_static_int8`.
        input_name: the one input of both.
        samples: real inputs, not those that the result is judged on; SENSITIVITY_PICTURES of them are taken.
    """
    samples = [samples[i] for i in _spaced(len(samples), SENSITIVITY_PICTURES)]
    expected = _run(model, input_name, samples)
    spread = float(np.mean((expected - expected.mean(axis=0)) ** 2))

    def error_of(graph: ModelProto) -> float:
        return float(np.mean((_run(graph, input_name, samples) - expected) ** 2)) / max(spread, 1e-24)

    touching = _find_touching(model, quantised)
    macs = _macs_of_layers(model)
    current, before = quantised, error_of(quantised)
    gains = {name: before - error_of(free_tensor(model, quantised, name)) for name in touching}
    error = before
    tensors: list[str] = []
    nodes: dict[str, None] = {}
    while math.sqrt(error) > TARGET_ERROR:
        costs = {name: _share(macs, {*nodes, *touching[name]}) for name, gain in gains.items() if gain > 0}
        allowed = [name for name, share in costs.items() if share <= MAX_FLOAT_MACS]
        if not allowed:
            break
        spent = _share(macs, nodes)
        best = max(allowed, key=lambda name: gains[name] / max(costs[name] - spent, _LEAST_COST))
        del gains[best]
        trial = free_tensor(model, current, best)
        found = error_of(trial)
        if found >= error:  # helped alone, not beside the others
            continue
        current, error = trial, found
        tensors.append(best)
        nodes |= dict.fromkeys(touching[best])
        _logger.info("%s stays float: error to spread %.4f, %.3f of MACs", best, math.sqrt(error), _share(macs, nodes))
    return FloatChoice(
        nodes=tuple(nodes),
        tensors=tuple(tensors),
        macs_share=_share(macs, nodes),
        error_before=math.sqrt(before),
        error_after=math.sqrt(error),
    )


def free_tensor(model: ModelProto, quantised: ModelProto, name: str) -> ModelProto:
    """Return the quantised graph without the 8-bit form of one activation.

    Args:
        model: the float32 graph it was made of; knows the limits of an activation function that was folded away.
        quantised: see `choose_float`.
        name: of a tensor with a QuantizeLinear and a DequantizeLinear behind it.
    """
    freed = ModelProto()
    freed.CopyFrom(quantised)
    maker = next(node for node in model.graph.node if name in node.output)
    made = next(node for node in freed.graph.node if name in node.output)
    rounded = {
        node.output[0] for node in freed.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == name
    }
    for node in [node for node in freed.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in rounded]:
        folded = maker.op_type in _FOLDED and made.op_type != maker.op_type
        kind, limits = (maker.op_type, maker.input[1:]) if folded else ("Identity", ())
        freed.graph.node.append(helper.make_node(kind, [name, *limits], [node.output[0]], name=f"{node.name}_float"))
        freed.graph.node.remove(node)
    OnnxModel(freed).topological_sort()
    return freed


def _find_touching(model: ModelProto, quantised: ModelProto) -> dict[str, list[str]]:
    """List the 8-bit activations, each with the nodes that have to be float if it is."""
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for name in [node.input[0] for node in quantised.graph.node if node.op_type == "QuantizeLinear"]:
        if name in makers:
            maker = makers[name]
            source = makers.get(maker.input[0]) if maker.op_type in _FOLDED else None
            nodes = [maker, *([source] if source is not None else []), *readers.get(name, [])]
            found[name] = [node.name for node in nodes]
    return found


def _macs_of_layers(model: ModelProto) -> dict[str, int]:
    """Count multiply-accumulates of the nodes with weights: name -> MACs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    macs = count_macs(model)
    return {
        node.name: macs[node.output[0]]
        for node in model.graph.node
        if node.output[0] in macs and node.input[1] in weights
    }


def _share(macs: Mapping[str, int], nodes: Collection[str]) -> float:
    return sum(macs.get(name, 0) for name in nodes) / max(sum(macs.values()), 1)


def _run(model: ModelProto, input_name: str, samples: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, {input_name: np.ascontiguousarray(sample)})[0] for sample in samples])


def _spaced(count: int, wanted: int) -> list[int]:
    return sorted({i * count // wanted for i in range(wanted)}) if count > wanted else list(range(count))
