from .bundles.device import export_device_bundle
from .bundles.server import export_server_bundle
from .bundles.tokenizer_json import check_tokenizer, tokenizer_to_json
from .checks.parity import check_parity
from .coreml.check import check_coreml, evaluate_coreml
from .coreml.compression import write_coreml_variant
from .coreml.writer import write_coreml
from .errors import ExportError, NotVerifiedError, ParityError, TokenizerError
from .graphs.device_graph import build_device_graph
from .graphs.weight_storage import WeightStorage, store_lean
from .graphs.writer import to_onnx, write_onnx

__all__ = [
    "ExportError",
    "NotVerifiedError",
    "ParityError",
    "TokenizerError",
    "WeightStorage",
    "build_device_graph",
    "check_coreml",
    "check_parity",
    "check_tokenizer",
    "evaluate_coreml",
    "export_device_bundle",
    "export_server_bundle",
    "store_lean",
    "to_onnx",
    "tokenizer_to_json",
    "write_coreml",
    "write_coreml_variant",
    "write_onnx",
]
