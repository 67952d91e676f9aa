"""Static 8-bit quantisation of ONNX graphs: equalised channels, corrected biases, sensitive layers kept in float."""

from asymcir_export.int8.quantize import is_convolutional, quantize_static_int8, set_compute, to_fp16, write_ort
from asymcir_export.int8.sensitivity import choose_float

__all__ = [
    "choose_float",
    "is_convolutional",
    "quantize_static_int8",
    "set_compute",
    "to_fp16",
    "write_ort",
]
