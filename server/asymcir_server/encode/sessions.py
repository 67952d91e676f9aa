"""ONNX Runtime sessions: one place for their options, their signatures and their runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from asymcir_common import BundleError
from numpy.typing import NDArray

DTYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "uint8": "tensor(uint8)"}
"""NumPy dtype name -> how ONNX Runtime calls it."""

Dimensions = tuple[str | int, ...]
"""A number: that width. A word: the dimension must be left open by the graph."""


def make_session_options(threads: int = 0, *, compute: str = "fp32") -> ort.SessionOptions:
    """Build the options that every session of the server uses.

    Args:
        threads: threads inside one operator; 0 lets ONNX Runtime take the physical cores.
        compute: what the graph computes in: "fp32", "fp16" or "int8".
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: a warning about an unused initialiser is no news for an operator
    # Weights may be stored as int8 with a DequantizeLinear behind them. Without this entry ONNX Runtime keeps those
    # pairs for quantised kernels; with it they are constants, folded to fp32 once, at load. A convolutional network
    # that computes in int8 is made of such pairs, and needs those kernels.
    if compute != "int8":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def open_session(
    path: Path, *, threads: int = 0, compute: str = "fp32", convolutional: bool = False
) -> ort.InferenceSession:
    """Open one ONNX file on the CPU; weights that lie beside it in `FILE.data` come along.

    Args:
        path: the file.
        threads, compute: see `make_session_options`.
        convolutional: whether the graph is a convolutional network without attention. In fp16, others are opened
            without the layout of convolutions: with it, ONNX Runtime 1.31 crashes the process when it opens a
            transformer in fp16, of text or of pictures. A convolutional network without it takes twice the time.

    Raises:
        BundleError: ONNX Runtime cannot load it.
    """
    try:
        return ort.InferenceSession(
            str(path),
            make_session_options(threads, compute=compute),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["NchwcTransformer"] if compute == "fp16" and not convolutional else [],
        )
    except Exception as exc:  # ONNX Runtime's own exceptions share no root but Exception
        detail = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot load {path}: {detail}; export the bundle again"
        ) from exc


def run_session(
    session: ort.InferenceSession,
    path: Path,
    output: str,
    feed: Mapping[str, NDArray[Any]],
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """Run a graph for one of its outputs, and check what comes back; see `run_outputs`."""
    return run_outputs(session, path, {output: shape}, feed)[output]


def run_outputs(
    session: ort.InferenceSession,
    path: Path,
    outputs: Mapping[str, tuple[int, ...]],
    feed: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[np.float32]]:
    """Run a graph once for some of its outputs, and check what comes back.

    Args:
        session: the open graph.
        path: how errors call it.
        outputs: name -> shape that it must have.
        feed: input name -> array.

    Raises:
        BundleError: the graph fails, or gives another shape.
    """
    try:
        answers = session.run(list(outputs), dict(feed))
    except Exception as exc:  # ONNX Runtime's own exceptions share no root but Exception
        detail = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise BundleError(f"{path} fails when it runs: {detail}; export the bundle again") from exc
    found = dict(zip(outputs, answers, strict=True))
    for name, shape in outputs.items():
        if found[name].shape != shape:
            raise BundleError(
                f"{path} gave {name} {list(found[name].shape)}, expected {list(shape)}: export the bundle again"
            )
    return {name: np.asarray(answer, dtype=np.float32) for name, answer in found.items()}


def check_signature(
    session: ort.InferenceSession,
    path: Path,
    *,
    inputs: Mapping[str, tuple[str, Dimensions]],
    outputs: Mapping[str, tuple[str, Dimensions]],
    optional_inputs: frozenset[str] = frozenset(),
) -> frozenset[str]:
    """Compare a graph with its contract.

    Args:
        session: the open graph.
        path: how errors call it.
        inputs: name -> (dtype, dimensions) of every input the contract knows.
        outputs: the same of every output that is used; a graph may give more.
        optional_inputs: those of `inputs` that a graph may leave out.

    Returns:
        The names of the inputs that the graph declares.

    Raises:
        BundleError: a name, dtype, rank or width does not fit.
    """
    declared = {node.name: node for node in session.get_inputs()}
    given = {node.name: node for node in session.get_outputs()}
    unknown = sorted(set(declared) - set(inputs))
    missing = sorted(set(inputs) - set(declared) - optional_inputs)
    if unknown or missing:
        raise BundleError(
            f"{path} takes the inputs {sorted(declared)}, expected {sorted(inputs)}: export the bundle again"
        )
    absent = sorted(set(outputs) - set(given))
    if absent:
        raise BundleError(f"{path} gives {sorted(given)}, expected {sorted(outputs)}: export the bundle again")
    for name, node in declared.items():
        _check_node(node, path, "input", *inputs[name])
    for name, (dtype, dimensions) in outputs.items():
        _check_node(given[name], path, "output", dtype, dimensions)
    return frozenset(declared)


def _check_node(node: Any, path: Path, kind: str, dtype: str, dimensions: Dimensions) -> None:
    fits = node.type == DTYPES[dtype] and len(node.shape) == len(dimensions)
    for found, expected in zip(node.shape, dimensions, strict=False):
        if isinstance(
            found, int
        ):  # a name or None is an open dimension: it fits, and the result is checked when it runs
            fits = fits and (found == expected if isinstance(expected, int) else kind == "output")
    if not fits:
        raise BundleError(
            f"{path}: expected the {kind} {node.name} as {dtype} {list(dimensions)}, "
            f"got {node.type} {node.shape}: the file does not fit its manifest, export the bundle again"
        )
