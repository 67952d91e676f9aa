"""The wire: `v1/retrieval.proto` with its generated stubs, how tokens are packed and filters are parsed."""

from asymcir_protos.filter_text import parse_filter
from asymcir_protos.tokens import pack_tokens, unpack_tokens

__all__ = ["parse_filter", "pack_tokens", "unpack_tokens"]
