"""The contracts between the parts: the wire, bundle manifests, sentence-token packing and picture decoding.

Everything that both ends must do alike stands here once. It depends on numpy, Pillow and protobuf only.
"""

from asymcir_protos.errors import AsymcirError, BundleError, ImageError, TokensError
from asymcir_protos.manifest import Manifest, read_manifest, write_manifest
from asymcir_protos.pictures import Preprocessing, decode_image, preprocess, read_image
from asymcir_protos.tokens import pack_tokens, unpack_tokens

__all__ = [
    "AsymcirError",
    "BundleError",
    "ImageError",
    "Manifest",
    "Preprocessing",
    "TokensError",
    "decode_image",
    "pack_tokens",
    "preprocess",
    "read_image",
    "read_manifest",
    "unpack_tokens",
    "write_manifest",
]
