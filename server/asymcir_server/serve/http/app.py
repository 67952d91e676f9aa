"""The ASGI app of the HTTP face: routes, and what holds for every request."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

from asymcir_protos.v1 import retrieval_pb2
from connectrpc.compat import google_protobuf_codecs
from connectrpc.server import ConnectASGIApplication
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asymcir_server.errors import GalleryNotFoundError, ServerError
from asymcir_server.serve.admin import MAX_PICTURE_MESSAGE_BYTES, GalleryAdminService
from asymcir_server.serve.http.calls import CheckCaller, make_endpoints
from asymcir_server.serve.http.config import HttpConfig
from asymcir_server.serve.operations import ServerMetrics
from asymcir_server.serve.operations.metrics import CONTENT_TYPE
from asymcir_server.serve.security.access import AUTHORIZATION, Access
from asymcir_server.serve.service import MAX_MESSAGE_BYTES, RetrievalService

SERVICES = retrieval_pb2.DESCRIPTOR.services_by_name

_ASKED_HEADERS = (
    "authorization", "connect-protocol-version", "connect-timeout-ms", "content-type", "grpc-timeout", "x-grpc-web",
    "x-request-id", "x-user-agent",
)  # fmt: skip
_ANSWERED_HEADERS = (
    "grpc-message", "grpc-retry-pushback-ms", "grpc-status", "grpc-status-details-bin", "retry-after",
    "trailer-grpc-retry-pushback-ms", "x-request-id",
)  # fmt: skip
# A page may use threads of WebAssembly only where these hold.
_ISOLATED = {
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
}
_MIN_RATE_BYTES_S = 64 * 1024


class _Connect(ConnectASGIApplication[Any]):
    """One service; `path` names it."""

    def __init__(
        self, name: str, servicer: Any, pool: Executor, max_bytes: int, access: Access, metrics: ServerMetrics
    ) -> None:
        self._path = f"/{SERVICES[name].full_name}"
        super().__init__(
            service=servicer,
            endpoints=lambda held: make_endpoints(SERVICES[name], held, pool, metrics),
            interceptors=[CheckCaller(access, metrics)],
            read_max_bytes=max_bytes,
            codecs=google_protobuf_codecs(),
        )

    @property
    def path(self) -> str:
        return self._path


class _Files(StaticFiles):
    """Files of a folder that stands still or is replaced rarely: asked for again each time, sent only when changed."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "public, no-cache"
        response.headers.update(_ISOLATED)
        return response


class _Guard:
    """Refuses what no route should have to see, and bodies that come too slowly."""

    def __init__(self, app: ASGIApp, receive_timeout_s: float) -> None:
        self._app, self._timeout_s = app, receive_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if not all(name.isascii() and value.isascii() for name, value in scope["headers"]):
            await PlainTextResponse("expected headers in ASCII\n", 400)(scope, receive, send)
            return
        started_s = asyncio.get_running_loop().time()
        received, ended = 0, False

        async def receive_in_time() -> Message:
            nonlocal received, ended
            if ended:  # what comes now is the caller's going
                return await receive()
            # More time for a large body, at the slowest rate that is taken.
            until_s = started_s + self._timeout_s + received / _MIN_RATE_BYTES_S
            try:
                async with asyncio.timeout_at(until_s):
                    message = await receive()
            except TimeoutError:
                return {"type": "http.disconnect"}
            received += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            return message

        async def send_after_receiving(message: Message) -> None:
            # A connection that is closed on a body under way is reset, and the caller never sees why it was refused.
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                while not ended and received < MAX_PICTURE_MESSAGE_BYTES:
                    if (await receive_in_time())["type"] == "http.disconnect":
                        break
            await send(message)

        await self._app(scope, receive_in_time, send_after_receiving)


def make_app(
    service: RetrievalService,
    admin: GalleryAdminService | None,
    config: HttpConfig,
    *,
    pool: Executor,
    access: Access,
    is_ready: Callable[[], bool],
) -> ASGIApp:
    """Make the app.

    Args:
        service: answers searches.
        admin: answers changes; None: they are not offered.
        config: how.
        pool: threads in which the services answer.
        access: decides who may call.
        is_ready: the server has warmed up and does not drain.
    """

    async def say_alive(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def say_ready(request: Request) -> Response:
        ready = is_ready()
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def send_metrics(request: Request) -> Response:
        if (refusal := _check_key(access, request)) is not None:
            return refusal
        rendered = await asyncio.get_running_loop().run_in_executor(pool, service.metrics.render)
        return Response(rendered, headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})

    async def send_thumbnail(request: Request) -> Response:
        if (refusal := _check_key(access, request)) is not None:
            return refusal
        name, identity = request.path_params["gallery"], request.path_params["id"]
        try:
            data = await asyncio.get_running_loop().run_in_executor(pool, _read_thumbnail, service, name, identity)
        except GalleryNotFoundError as exc:
            return _refuse(404, "not_found", str(exc))
        if data is None:
            return _refuse(404, "not_found", f"the gallery {name} has no thumbnail of {identity!r}")
        # A picture may be replaced under its id: a caller asks again after five minutes, and is told 304 if it was not.
        headers = {"etag": f'"{hashlib.sha256(data).hexdigest()[:32]}"', "cache-control": "private, max-age=300"}
        headers |= {"cross-origin-resource-policy": "cross-origin", "x-content-type-options": "nosniff"}
        known = request.headers.get("if-none-match", "")
        if headers["etag"] in known:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type="image/webp", headers=headers)

    routes: list[Any] = [
        Route("/healthz", say_alive, methods=["GET"]),
        Route("/readyz", say_ready, methods=["GET"]),
        Route("/metrics", send_metrics, methods=["GET"]),
        Route("/thumbnails/{gallery}/{id:path}", send_thumbnail, methods=["GET"]),
    ]
    services: Mapping[str, tuple[Any, int]] = {"Retrieval": (service, MAX_MESSAGE_BYTES)} | (
        {} if admin is None else {"GalleryAdmin": (admin, MAX_PICTURE_MESSAGE_BYTES)}
    )
    for name, (servicer, max_bytes) in services.items():
        connect = _Connect(name, servicer, pool, max_bytes, access, service.metrics)
        routes.append(Mount(connect.path, app=connect))
    if config.device_bundle is not None:
        routes.append(Mount("/device", app=_Files(directory=config.device_bundle)))
    if config.web_folder is not None:
        routes.append(Mount("/", app=_Files(directory=config.web_folder, html=True)))
    inner: ASGIApp = _Guard(Starlette(routes=routes), config.receive_timeout_s)
    if not config.allowed_origins:
        return inner
    return CORSMiddleware(
        inner,
        allow_origins=config.allowed_origins,
        allow_methods=("GET", "POST"),
        allow_headers=_ASKED_HEADERS,
        expose_headers=_ANSWERED_HEADERS,
        max_age=7200,
    )


def _read_thumbnail(service: RetrievalService, name: str, identity: str) -> bytes | None:
    with service.lease_gallery(name) as (_name, gallery), suppress(UnicodeEncodeError):
        return gallery.thumbnail(identity)
    return None


def _check_key(access: Access, request: Request) -> Response | None:
    try:
        access.check("search", request.headers.get(AUTHORIZATION))
    except ServerError as exc:
        answer = _refuse(401, "unauthenticated", str(exc))
        answer.headers["www-authenticate"] = "Bearer"
        return answer
    return None


def _refuse(status: int, code: str, message: str) -> Response:
    """Refuse as Connect does."""
    return JSONResponse({"code": code, "message": message}, status)
