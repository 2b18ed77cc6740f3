"""The server's routes.

POST /v1/chat/completions   OpenAI's, text and images (data: URLs), streaming or whole
GET  /v1/models             GET /v1/models/ID
POST /v1/memories           {"text", "question"?, "seed"?, "stream"?}: read a document
GET  /v1/memories           GET and DELETE /v1/memories/ID
POST /v1/memories/ID/append {"text", "seed"?, "stream"?}: read on
POST /v1/memories/ID/ask    {"question", "budget_tokens"?, "temperature"?, "top_p"?, "seed"?}
GET  /v1/memories/ID/page   ?budget_tokens=64: PNG
GET  /health                GET /metrics (Prometheus)
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import generate_latest

from memocr_jax.serving.chat_routes import complete_chat
from memocr_jax.serving.memory_routes import (
    append_memory,
    ask_memory,
    create_memory,
    show_page,
    stored_memory,
)
from memocr_jax.serving.requests import guard, http_error, require_model
from memocr_jax.serving.service import Service


def create_app(service: Service) -> FastAPI:
    """The server's application. `service` is closed when it shuts down, after the last accepted answer."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="memocr", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    for code in (404, 405):  # paths and methods that there are not
        app.add_exception_handler(code, http_error)
    metrics = service.metrics

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = service.scheduler.alive
        body = {
            "status": "healthy" if alive else "the engine's thread has ended",
            "model": service.model.name,
        }
        return JSONResponse(body, 200 if alive else 503)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        metrics.waiting.set(service.scheduler.waiting)
        metrics.decoding.set(service.scheduler.decoding)
        metrics.memories.set(len(service.store))
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    def model_record() -> dict[str, Any]:
        record = {"id": service.model.name, "object": "model", "created": service.created}
        return record | {"owned_by": "memocr_jax"}

    def route(method: str, path: str, counts: bool = True):
        """A route behind the token; with `counts` its requests are bounded in number."""

        def decorate(answer: Callable[..., Awaitable[Response]]) -> None:
            async def guarded(request: Request) -> Response:
                return await guard(service, request, path, answer, counts)

            app.add_api_route(path, guarded, methods=[method])

        return decorate

    @route("GET", "/v1/models", counts=False)
    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model_record()]})

    @route("GET", "/v1/models/{model_id:path}", counts=False)
    async def one_model(request: Request) -> Response:
        require_model(service, request.path_params["model_id"])
        return JSONResponse(model_record())

    @route("GET", "/v1/memories", counts=False)
    async def memories(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [stored.record() for stored in service.store.all()]})

    @route("GET", "/v1/memories/{memory_id}", counts=False)
    async def one_memory(request: Request) -> Response:
        return JSONResponse(stored_memory(service, request).record())

    @route("DELETE", "/v1/memories/{memory_id}", counts=False)
    async def delete(request: Request) -> Response:
        stored = stored_memory(service, request)
        service.store.remove(stored)
        return JSONResponse({"id": stored.id, "object": "memory.deleted", "deleted": True})

    for method, path, answer in (
        ("POST", "/v1/chat/completions", complete_chat),
        ("POST", "/v1/memories", create_memory),
        ("POST", "/v1/memories/{memory_id}/append", append_memory),
        ("POST", "/v1/memories/{memory_id}/ask", ask_memory),
        ("GET", "/v1/memories/{memory_id}/page", show_page),
    ):
        route(method, path)(functools.partial(answer, service))
    return app
