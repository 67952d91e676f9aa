"""The device side: a picture to sentence tokens, sentence tokens to a server's hits, and the `asymcir` command.

Names are imported when they are first used, so that the command's help waits neither for ONNX Runtime nor for gRPC.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asymcir_edge.answers import (
        GalleryDescription,
        SearchHit,
        SearchResult,
        SearchTiming,
        ServerDescription,
        ServerLimits,
    )
    from asymcir_edge.bundle import DeviceBundle
    from asymcir_edge.client import RetrievalClient
    from asymcir_edge.encoder import QueryEncoder
    from asymcir_edge.errors import (
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
    from asymcir_edge.selftest import run_selftest
    from asymcir_edge.verdicts import SelfTestReport

__all__ = [
    "AddressError",
    "DeviceBundle",
    "EncoderError",
    "GalleryDescription",
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

_MODULES = ("bundle", "encoder", "errors", "answers", "client", "verdicts", "selftest")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            names = vars(importlib.import_module(f"{__name__}.{module}"))
            if name in names:
                return names[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
