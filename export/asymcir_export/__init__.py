"""Build time: trained models to bundles of ONNX and Core ML files, each compared with its original."""

from asymcir_export.bundles import export_device_bundle, export_server_bundle
from asymcir_export.coreml_writer import write_coreml
from asymcir_export.device_graph import build_device_graph
from asymcir_export.errors import ExportError, ParityError, TokenizerError
from asymcir_export.lean import WeightStorage, store_lean
from asymcir_export.onnx_writer import to_onnx, write_onnx
from asymcir_export.parity import check_parity
from asymcir_export.tokenizer_json import check_tokenizer, tokenizer_to_json

__all__ = [
    "ExportError",
    "ParityError",
    "TokenizerError",
    "WeightStorage",
    "build_device_graph",
    "check_parity",
    "check_tokenizer",
    "export_device_bundle",
    "export_server_bundle",
    "store_lean",
    "to_onnx",
    "tokenizer_to_json",
    "write_coreml",
    "write_onnx",
]
