"""The server bundle and its encoders: composed queries and pictures to embeddings, on ONNX Runtime."""

from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.composition import Composer
from asymcir_server.encode.targets import TargetEncoder
from asymcir_server.encode.text_encoder import TextEncoder
from asymcir_server.encode.tokenizer import Tokenizer, clean_text
from asymcir_server.encode.vectors import usable_rows
from asymcir_server.encode.visual import VisualEncoder

__all__ = [
    "Composer",
    "ServerBundle",
    "TargetEncoder",
    "TextEncoder",
    "Tokenizer",
    "VisualEncoder",
    "clean_text",
    "usable_rows",
]
