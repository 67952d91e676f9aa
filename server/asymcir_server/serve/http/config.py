"""Where and how the HTTP face answers."""

import re
from dataclasses import dataclass
from pathlib import Path

from asymcir_common.arguments import MAX_PORT, MAX_TIMEOUT_S

from asymcir_server.errors import ListenError

_ORIGIN = re.compile(r"https?://[^\s/*?#]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpConfig:
    """Where and how the HTTP face answers.

    Attributes:
        port: 0 takes a free one.
        allowed_origins: pages of these origins may call from a browser, such as "https://shop.example"; "*" for all.
        device_bundle: a device bundle whose files are served below /device/.
        web_folder: a folder of static files that are served at /.
        receive_timeout_s: how long a request may take to arrive.
        idle_timeout_s: how long a connection without a request stays open.
        max_connections: open at a time; one more is answered 503.
    """

    port: int = 0
    allowed_origins: tuple[str, ...] = ()
    device_bundle: str | Path | None = None
    web_folder: str | Path | None = None
    receive_timeout_s: float = 10.0
    idle_timeout_s: float = 60.0
    max_connections: int = 1024

    def __post_init__(self) -> None:
        if not 0 <= self.port <= MAX_PORT:
            raise ListenError(f"expected a port from 0 to {MAX_PORT}, got {self.port}")
        for name in ("receive_timeout_s", "idle_timeout_s"):
            if not 0 < getattr(self, name) <= MAX_TIMEOUT_S:
                raise ListenError(f"expected {name} above 0 and at most {MAX_TIMEOUT_S:g} s, got {getattr(self, name)}")
        if self.max_connections < 1:
            raise ListenError(f"expected max_connections above 0, got {self.max_connections}")
        for origin in self.allowed_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ListenError(f"expected an origin such as https://shop.example, or *, got {origin!r}")
        for folder in (self.device_bundle, self.web_folder):
            if folder is not None and not Path(folder).is_dir():
                raise ListenError(f"expected a folder to serve files of, got {folder}, which is none")
