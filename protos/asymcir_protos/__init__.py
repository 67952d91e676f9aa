"""The wire: `v1/retrieval.proto` with its generated stubs, and how sentence tokens are packed for it."""

from asymcir_protos.tokens import pack_tokens, unpack_tokens

__all__ = ["pack_tokens", "unpack_tokens"]
