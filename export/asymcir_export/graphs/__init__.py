"""ONNX graphs: written from torch modules, joined with the picture preparation, stored with smaller weights, probed."""

from asymcir_export.graphs.cost import ModelCost, count_macs, measure_cost
from asymcir_export.graphs.device_graph import (
    build_device_graph,
    build_network_graph,
    build_preprocessing_graph,
    cut_preprocessing,
    join_preprocessing,
)
from asymcir_export.graphs.probe import probe_tensors
from asymcir_export.graphs.weight_storage import quantize_rows, store_lean
from asymcir_export.graphs.writer import (
    batch_axis,
    infer_shapes,
    length_axis,
    save_onnx,
    to_onnx,
    weight_size_bytes,
    write_onnx,
)

__all__ = [
    "ModelCost",
    "batch_axis",
    "build_device_graph",
    "build_network_graph",
    "build_preprocessing_graph",
    "count_macs",
    "cut_preprocessing",
    "infer_shapes",
    "join_preprocessing",
    "length_axis",
    "measure_cost",
    "probe_tensors",
    "quantize_rows",
    "save_onnx",
    "store_lean",
    "to_onnx",
    "weight_size_bytes",
    "write_onnx",
]
