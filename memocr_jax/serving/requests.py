"""Shared by all routes: the token, the number of requests, bodies, errors, events, disconnected clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from memocr_jax.core.errors import UserError
from memocr_jax.serving.chat import ApiError
from memocr_jax.serving.scheduler import Cancelled
from memocr_jax.serving.service import Service
from render.http import BodyError, authorised, explain, read_body

CLIENT_GONE = 499
"""Status for the metrics alone: the client is gone."""
T = TypeVar("T", bound=BaseModel)


async def guard(
    service: Service,
    request: Request,
    route: str,
    answer: Callable[[Request], Awaitable[Response]],
    counts: bool,
) -> Response:
    """Token, number of requests, errors and metrics of every route under /v1."""
    metrics, started = service.metrics, time.monotonic()
    code = 500
    entered = False

    def leave() -> None:
        if entered:
            service.under_way -= 1
            metrics.in_flight.dec()
        metrics.requests.labels(route, str(code)).inc()
        metrics.seconds.labels(route).observe(time.monotonic() - started)

    streams = False
    try:
        if service.settings.token and not authorised(request, service.settings.token):
            raise ApiError(401, "missing or wrong bearer token", code="invalid_api_key")
        if counts:
            if service.under_way >= service.settings.max_requests:
                most = service.settings.max_requests
                raise ApiError(429, f"{most} requests are under way; try again", code="rate_limit_exceeded")
            service.under_way += 1
            entered = True
            metrics.in_flight.inc()
        response = await answer(request)
        code = response.status_code
        if isinstance(response, Events):
            streams = True
            response.leave = leave
        return response
    except ApiError as error:
        code = error.status
        headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(code)
        return JSONResponse(error.body(), code, headers)
    except UserError as error:
        code = 422
        return JSONResponse(ApiError(422, str(error)).body(), code)
    except (Cancelled, asyncio.CancelledError) as error:
        code = CLIENT_GONE
        if isinstance(error, asyncio.CancelledError):
            raise
        gone = ApiError(503, str(error) or "the request was given up", code="cancelled")
        return JSONResponse(gone.body(), gone.status)
    except Exception as error:
        code = 500
        return JSONResponse(ApiError(500, f"the server failed: {type(error).__name__}").body(), code)
    finally:
        if not streams:
            leave()


class Events(StreamingResponse):
    """Server-sent events. `leave` is called when the last is sent or the client has gone."""

    leave: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, events: AsyncGenerator[bytes, None]):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # The client may go while a piece is being sent; then nothing else would end the generator.
            await self._events.aclose()
            self.leave()


async def http_error(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse(
        ApiError(error.status_code, str(error.detail)).body(), error.status_code, error.headers
    )


async def read_json_body(service: Service, request: Request, kind: type[T]) -> T:
    """The request's JSON as an object of `kind`. Raises ApiError when it is none."""
    try:
        body = await read_body(request, service.settings.max_body_bytes)
        return kind.model_validate(_valid(json.loads(body)))
    except BodyError as error:
        raise ApiError(error.code, str(error)) from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, explain(error)) from None


def _valid(tree: Any) -> Any:
    """A JSON value whose texts are Unicode: JSON can hold lone surrogates, UTF-8 and tokenizers cannot."""
    if isinstance(tree, str):
        return tree.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(tree, list):
        return [_valid(item) for item in tree]
    return {_valid(key): _valid(item) for key, item in tree.items()} if isinstance(tree, dict) else tree


def require_model(service: Service, name: str) -> None:
    """Raise ApiError for another model than the one that is served."""
    if name != service.model.name:
        own = service.model.name
        raise ApiError(404, f"model {name!r} is not served here, {own!r} is", "model", "model_not_found")


@asynccontextmanager
async def while_connected(request: Request, give_up: Callable[[], None]) -> AsyncIterator[None]:
    """Call `give_up` when the client goes away, or when the block ends early."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        give_up()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except BaseException:
        give_up()
        raise
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


def event(record: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(record, ensure_ascii=False).encode() + b"\n\n"
