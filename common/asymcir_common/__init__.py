"""What device, server and training must do alike: manifests and digests, decoding and preparing pictures, errors.

It imports nothing of ours, and depends on numpy and Pillow only.
"""

from asymcir_common.errors import AsymcirError, BundleError, ImageError, TokensError
from asymcir_common.files import write_atomically
from asymcir_common.manifest import Manifest, read_manifest, write_manifest
from asymcir_common.pictures import Preprocessing, decode_image, preprocess, read_image

__all__ = [
    "AsymcirError",
    "BundleError",
    "ImageError",
    "Manifest",
    "Preprocessing",
    "TokensError",
    "decode_image",
    "preprocess",
    "read_image",
    "read_manifest",
    "write_atomically",
    "write_manifest",
]
