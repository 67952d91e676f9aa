"""Run queries through ONNX Runtime on one thread and save what comes out, on whatever machine this Python is of.

The ARM benchmark runs this file twice: in the emulated arm64 machine and on the machine at hand. A device bundle is
opened by `asymcir_edge`, as an app's would be; a plain ONNX file by ONNX Runtime.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Query = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def main() -> int:
    """Run the queries, save the outputs, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--device-bundle", type=Path, help="device bundle")
    what.add_argument("--model", type=Path, help="ONNX file with one input")
    parser.add_argument("--precision", help="of the bundle's encoder (default: the bundle's own)")
    parser.add_argument("--inputs", type=Path, required=True, help=".npy, [n, ...]: what the model takes, n times")
    parser.add_argument("--queries", type=int, help="run the first input so many times instead of each input once")
    parser.add_argument("--out", type=Path, required=True, help=".npy to write: [queries, ...]")
    args = parser.parse_args()
    query = open_bundle(args.device_bundle, args.precision) if args.device_bundle else open_model(args.model)
    inputs = np.load(args.inputs)
    chosen = inputs if args.queries is None else [inputs[0]] * args.queries
    outputs = np.stack([query(item) for item in chosen])
    np.save(args.out, outputs)
    record = {
        "machine": platform.machine(),
        "onnxruntime": onnxruntime.__version__,
        "queries": len(chosen),
        "shape": list(outputs.shape),
    }
    print(json.dumps(record))  # noqa: T201
    return 0


def open_bundle(folder: Path, precision: str | None) -> Query:
    """Open a device bundle's encoder: picture [h, w, 3] uint8 -> sentence tokens [L, D]."""
    from asymcir_edge import DeviceBundle, QueryEncoder

    return QueryEncoder(DeviceBundle.load(folder), precision=precision, threads=1).encode_image


def open_model(path: Path) -> Query:
    """Open an ONNX file: its one input -> its first output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (declared,) = session.get_inputs()
    wanted = [session.get_outputs()[0].name]
    return lambda item: session.run(wanted, {declared.name: item})[0]


if __name__ == "__main__":
    sys.exit(main())
