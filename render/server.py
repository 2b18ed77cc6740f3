"""`python -m render.server`: the renderer over HTTP, for upstream's clients and for `render.client`.

    POST /render   {"content": "...", "format": "png|jpeg|webp|page", "mode": "markdown|html",
                    "width_px": 728, "budget_tokens": 512}     only content is required
    GET  /health   GET /metrics (Prometheus)

An image comes with X-Page-Status and the like; a memory without a page is a 4xx with {"status", "detail"}.
The format "page" is a PNG that carries status and regions too (`render.codec`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import time
from contextlib import asynccontextmanager
from typing import Annotated, Literal
from urllib.parse import quote

from annotated_types import Interval
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from render.bounds import PositiveInt
from render.chromium import find_chromium
from render.errors import run_command
from render.fonts import identity
from render.http import BodyError, authorised, explain, read_body, serve
from render.options import Hidden, parse_options, settings_of
from render.pool import RenderPool
from render.settings import TOKEN_PX, RenderSettings
from render.theme import theme_css
from render.types import MemoryPage, Mode, PageStatus

MAX_BUDGET_TOKENS = 16_384
_MEDIA = {"png": "image/png", "page": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_NO_PAGE_CODES = {PageStatus.EMPTY: 400, PageStatus.TOO_LARGE: 413}


class RenderRequest(BaseModel):
    """What POST /render takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    content: str
    format: Literal["png", "jpeg", "webp", "page"] = "png"
    mode: Mode | None = None
    width_px: Annotated[int, Field(ge=TOKEN_PX, le=4096)] | None = None
    budget_tokens: Annotated[int, Field(ge=1, le=MAX_BUDGET_TOKENS)] | None = None


class _Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kind = {"registry": self.registry}
        self.pages = Counter("render_pages", "Memories answered, by page status", ["status"], **kind)
        self.refused = Counter("render_refused", "Requests refused, by HTTP status", ["code"], **kind)
        self.seconds = Histogram("render_seconds", "Time from request to answer, in seconds", **kind)
        self.in_flight = Gauge("render_in_flight", "Requests accepted and not yet answered", **kind)
        self.restarts = Gauge("render_browser_restarts", "Browsers replaced since the start", **kind)


def create_app(
    settings: RenderSettings, mode: Mode = "markdown", token: str = "", max_queue: int = 256
) -> FastAPI:
    """The server's application; its pool lives from start-up to shutdown.

    `token`: bearer token that /render asks for ("" for none). `max_queue`: requests under way at once, above
    which the answer is 429.
    """
    metrics = _Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        # uvicorn runs what follows the yield after the last accepted request was answered.
        app.state.pool = await run_in_threadpool(RenderPool, settings, mode)
        yield
        await run_in_threadpool(app.state.pool.close)

    app = FastAPI(title="render", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.metrics = metrics
    app.state.under_way = 0
    # The longest memory, six bytes a character as JSON writes the worst ones, and the other fields.
    max_body_bytes = 6 * settings.max_chars + 4096

    @app.get("/health")
    async def health(request: Request) -> JSONResponse:
        pool = request.app.state.pool
        versions = {"chromium": pool.chromium_version, "fonts": identity()}
        return JSONResponse({"status": "healthy", "mode": pool.mode, **versions})

    @app.get("/metrics")
    async def show_metrics(request: Request) -> Response:
        metrics.restarts.set(request.app.state.pool.restarts)
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    @app.post("/render")
    async def render(request: Request) -> Response:
        if token and not authorised(request, token):
            return _refuse(metrics, 401, "missing or wrong bearer token", {"WWW-Authenticate": "Bearer"})
        if app.state.under_way >= max_queue:
            return _refuse(
                metrics, 429, f"{max_queue} requests are under way; try again", {"Retry-After": "1"}
            )
        app.state.under_way += 1
        metrics.in_flight.inc()
        started = time.monotonic()
        try:
            return await _answer(request, max_body_bytes, metrics)
        finally:
            app.state.under_way -= 1
            metrics.in_flight.dec()
            metrics.seconds.observe(time.monotonic() - started)

    return app


async def _answer(request: Request, max_body_bytes: int, metrics: _Metrics) -> Response:
    try:
        body = await read_body(request, max_body_bytes)
    except BodyError as error:
        return _refuse(metrics, error.code, str(error))
    try:
        asked = RenderRequest.model_validate(json.loads(body))
    except (ValueError, RecursionError) as error:
        return _refuse(metrics, 422 if isinstance(error, ValidationError) else 400, explain(error))
    pool = request.app.state.pool
    if asked.width_px and asked.width_px - 2 * pool.settings.margin_px < TOKEN_PX:
        return _refuse(metrics, 422, f"width_px {asked.width_px} leaves no room within the margins")
    future = await run_in_threadpool(pool.submit, asked.content, mode=asked.mode, width_px=asked.width_px)
    page = await asyncio.shield(asyncio.wrap_future(future))
    metrics.pages.labels(page.status).inc()
    if page.pixels is None:
        record = {"status": page.status, "detail": page.detail, "content_hash": page.content_hash}
        return JSONResponse(record, _NO_PAGE_CODES.get(page.status, 422))
    return await run_in_threadpool(_image_response, page, asked)


def _refuse(metrics: _Metrics, code: int, message: str, headers: dict | None = None) -> JSONResponse:
    metrics.refused.labels(str(code)).inc()
    return JSONResponse({"detail": message}, code, headers)


def _image_response(page: MemoryPage, asked: RenderRequest) -> Response:
    from render.views import fit, image_tokens

    pixels = fit(page.pixels, asked.budget_tokens) if asked.budget_tokens else page.pixels
    height, width = pixels.shape[:2]
    headers = {
        "X-Page-Status": page.status,
        "X-Page-Detail": quote(page.detail),
        "X-Content-Hash": page.content_hash,
        "X-Image-Width": str(width),
        "X-Image-Height": str(height),
    }
    if asked.budget_tokens:
        headers["X-Image-Tokens"] = str(image_tokens(pixels))
    return Response(_encode(page, pixels, asked.format), media_type=_MEDIA[asked.format], headers=headers)


def _encode(page: MemoryPage, pixels, image_format: str) -> bytes:
    from PIL import Image

    from render.codec import encode_page

    if image_format == "page":
        return encode_page(dataclasses.replace(page, pixels=pixels))
    options = {
        "png": {"compress_level": 1},
        "jpeg": {"quality": 95},
        "webp": {"lossless": True, "quality": 0},
    }
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format.upper(), **options[image_format])
    return file.getvalue()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(RenderSettings):
    """Serve until SIGTERM or SIGINT; then finish what was accepted."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Interval(ge=0, le=65_535)] = 9000
    mode: Literal["markdown", "html"] = "markdown"
    token: str = ""
    """Bearer token that clients must send; empty: none."""
    max_queue: PositiveInt = 256
    """Requests under way."""
    url: Hidden[str] = ""
    theme_css: Hidden[str] = ""


def main(argv: list[str] | None = None) -> None:
    """Serve what the command line asks for."""
    options = parse_options(Options, argv, "python -m render.server")
    settings = dataclasses.replace(settings_of(options), token="")  # the server's own, not its pool's
    find_chromium(settings.chromium)  # what is missing is an error here, not at the first request
    theme_css(settings)
    serve(create_app(settings, options.mode, options.token, options.max_queue), options.host, options.port)


if __name__ == "__main__":
    run_command(main)
