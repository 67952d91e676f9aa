"""Core ML packages: written, compressed, read back and evaluated operator by operator on any platform."""

from asymcir_export.coreml.check import check_coreml, evaluate_coreml
from asymcir_export.coreml.compression import package_size_bytes, write_coreml_variant
from asymcir_export.coreml.predictor import open_coreml
from asymcir_export.coreml.writer import write_coreml

__all__ = [
    "check_coreml",
    "evaluate_coreml",
    "open_coreml",
    "package_size_bytes",
    "write_coreml",
    "write_coreml_variant",
]
