"""Build time: trained models to bundles of ONNX and Core ML files, each compared with its original.

Names are imported when they are first used, so that the command's help does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asymcir_export.bundles import export_device_bundle, export_server_bundle
    from asymcir_export.coreml_check import check_coreml, evaluate_coreml
    from asymcir_export.coreml_variants import write_coreml_variant
    from asymcir_export.coreml_writer import write_coreml
    from asymcir_export.device_graph import build_device_graph
    from asymcir_export.errors import ExportError, NotVerifiedError, ParityError, TokenizerError
    from asymcir_export.lean import WeightStorage, store_lean
    from asymcir_export.onnx_writer import to_onnx, write_onnx
    from asymcir_export.parity import check_parity
    from asymcir_export.tokenizer_json import check_tokenizer, tokenizer_to_json

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

_MODULES = (
    "errors",
    "lean",
    "onnx_writer",
    "device_graph",
    "coreml_writer",
    "coreml_check",
    "coreml_variants",
    "tokenizer_json",
    "parity",
    "bundles",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            names = vars(importlib.import_module(f"{__name__}.{module}"))
            if name in names:
                return names[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
