from .errors import AsymcirError, BundleError, FilterTextError, ImageError, PlaceError, TokensError
from .files import read_utf8, replacing, write_atomically
from .manifest import Manifest, read_manifest, write_manifest
from .pictures import Preprocessing, decode_image, preprocess, read_image

__all__ = [
    "AsymcirError",
    "BundleError",
    "FilterTextError",
    "ImageError",
    "Manifest",
    "PlaceError",
    "Preprocessing",
    "TokensError",
    "decode_image",
    "preprocess",
    "read_image",
    "read_manifest",
    "read_utf8",
    "replacing",
    "write_atomically",
    "write_manifest",
]
