"""Device and server bundles: every part written, compared with its original, described, and put in place."""

from asymcir_export.bundles.device import export_device_bundle
from asymcir_export.bundles.server import export_server_bundle
from asymcir_export.bundles.tokenizer_json import check_tokenizer, tokenizer_to_json
from asymcir_export.bundles.variants import Source, measure_onnx

__all__ = [
    "Source",
    "check_tokenizer",
    "export_device_bundle",
    "export_server_bundle",
    "measure_onnx",
    "tokenizer_to_json",
]
