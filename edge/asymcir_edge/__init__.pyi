from .device.bundle import DeviceBundle
from .device.encoder import QueryEncoder
from .device.selftest import run_selftest
from .device.verdicts import SelfTestReport
from .errors import (
    AccessDeniedError,
    AddressError,
    CredentialsError,
    EncoderError,
    OutputError,
    RequestRefusedError,
    ServerError,
    ServerFailedError,
    ServerOverloadedError,
    ServerTimeoutError,
    ServerUnavailableError,
    SpaceMismatchError,
)
from .remote.admin import AddedPicture, CompactedGallery, GalleryAdmin, NewPicture
from .remote.aio import AsyncRetrievalClient
from .remote.answers import GalleryDescription, SearchHit, SearchResult, SearchTiming, ServerDescription, ServerLimits
from .remote.client import RetrievalClient
from .remote.credentials import Credentials

__all__ = [
    "AccessDeniedError",
    "AsyncRetrievalClient",
    "Credentials",
    "CredentialsError",
    "ServerOverloadedError",
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
