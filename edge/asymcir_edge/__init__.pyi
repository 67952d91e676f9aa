from .device.bundle import DeviceBundle
from .device.encoder import QueryEncoder
from .device.selftest import run_selftest
from .device.verdicts import SelfTestReport
from .errors import (
    AddressError,
    EncoderError,
    OutputError,
    RequestRefusedError,
    ServerError,
    ServerFailedError,
    ServerTimeoutError,
    ServerUnavailableError,
    SpaceMismatchError,
)
from .remote.admin import AddedPicture, CompactedGallery, GalleryAdmin, NewPicture
from .remote.answers import GalleryDescription, SearchHit, SearchResult, SearchTiming, ServerDescription, ServerLimits
from .remote.client import RetrievalClient

__all__ = [
    "AddedPicture",
    "AddressError",
    "CompactedGallery",
    "DeviceBundle",
    "EncoderError",
    "GalleryAdmin",
    "GalleryDescription",
    "NewPicture",
    "OutputError",
    "QueryEncoder",
    "RequestRefusedError",
    "RetrievalClient",
    "SearchHit",
    "SearchResult",
    "SearchTiming",
    "SelfTestReport",
    "ServerDescription",
    "ServerError",
    "ServerFailedError",
    "ServerLimits",
    "ServerTimeoutError",
    "ServerUnavailableError",
    "SpaceMismatchError",
    "run_selftest",
]
