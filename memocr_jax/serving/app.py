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
import contextlib
import dataclasses
import io
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from memocr_jax.agent.document import Document, PageAnswer, ask_page, read_document, view
from memocr_jax.agent.open import OpenModel
from memocr_jax.config import SamplingConfig
from memocr_jax.core.errors import UserError
from memocr_jax.models.images import ImageSettings
from memocr_jax.serving.chat import ApiError, Chat, ChatRequest, ChatRun, Head, Limits, prepare_chat, usage
from memocr_jax.serving.memories import MemoryStore, Stored
from memocr_jax.serving.scheduler import Cancelled, Scheduler, SharedEngine, Ticket
from render.http import BodyError, authorised, explain, read_body
from render.types import MemoryPage
from render.views import image_tokens

if TYPE_CHECKING:
    from memocr_jax.agent.agent import Agent
    from render.base import Renderer

MAX_BUDGET_TOKENS = 16_384
CLIENT_GONE = 499
"""Status for the metrics alone: nobody reads the answer."""
T = TypeVar("T", bound=BaseModel)


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """How much the server takes."""

    max_requests: int = 64
    """Requests under way at once, above which the answer is 429."""
    max_body_bytes: int = 32 << 20
    max_memories: int = 1000
    memory_dir: str = ""
    token: str = ""
    """Bearer token that /v1 asks for, "" for none."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Budget = Annotated[int, Field(ge=1, le=MAX_BUDGET_TOKENS)]


class CreateMemory(_Body):
    """What POST /v1/memories takes."""

    text: str
    question: str = ""
    seed: Seed | None = None
    stream: bool = False


class AppendMemory(_Body):
    """What POST /v1/memories/ID/append takes."""

    text: str
    seed: Seed | None = None
    stream: bool = False


class AskMemory(_Body):
    """What POST /v1/memories/ID/ask takes."""

    question: Annotated[str, Field(min_length=1)]
    budget_tokens: Budget | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = None


class _Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kind = {"registry": self.registry}
        names = ["route", "code"]
        self.requests = Counter(
            "memocr_requests", "Requests answered, by route and HTTP status", names, **kind
        )
        self.seconds = Histogram(
            "memocr_request_seconds", "Time from request to the end of its answer", ["route"], **kind
        )
        self.first = Histogram(
            "memocr_first_text_seconds", "Time to the first text of a streamed chat", **kind
        )
        self.prompt = Counter("memocr_prompt_tokens", "Prompt tokens of finished requests", **kind)
        self.sampled = Counter("memocr_completion_tokens", "Tokens sampled for finished requests", **kind)
        self.in_flight = Gauge("memocr_requests_in_flight", "Requests accepted and not yet answered", **kind)
        self.waiting = Gauge("memocr_groups_waiting", "Prompts that wait for a place in the batch", **kind)
        self.decoding = Gauge("memocr_groups_decoding", "Prompts that are being decoded", **kind)
        self.memories = Gauge("memocr_memories", "Memories kept", **kind)


class Service:
    """The state behind the routes: the model, its scheduler, the renderer, the memories."""

    def __init__(
        self,
        model: OpenModel,
        scheduler: Scheduler,
        renderer: Renderer,
        limits: Limits,
        settings: ServerSettings,
        images: ImageSettings = ImageSettings(),  # noqa: B008 (frozen)
    ):
        self.model, self.scheduler, self.renderer = model, scheduler, renderer
        self.limits, self.settings, self.images = limits, settings, images
        self.store = MemoryStore(settings.max_memories, settings.memory_dir)
        self.metrics = _Metrics()
        self.threads = ThreadPoolExecutor(settings.max_requests, thread_name_prefix="request")
        self.created = int(time.time())
        self.under_way = 0

    def close(self) -> None:
        """After the last answer: end the threads and the browsers."""
        self.threads.shutdown(wait=True)
        self.scheduler.close()
        self.renderer.close()

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)

    def sampling(self, temperature: float | None = None, top_p: float | None = None) -> SamplingConfig:
        """As the model is evaluated, unless a request says otherwise."""
        own = self.model.config.eval
        return SamplingConfig(
            temperature=own.temperature if temperature is None else temperature,
            top_p=own.top_p if top_p is None else top_p,
        )

    def agent(self, engine: SharedEngine, seed: int | None) -> Agent:
        agent = self.model.agent(engine, self.renderer)
        return agent if seed is None else dataclasses.replace(agent, seed=seed)

    def count(self, prompt_tokens: int, new_tokens: int) -> dict[str, int]:
        """Add a finished request's tokens to the metrics; they as OpenAI's `usage`."""
        self.metrics.prompt.inc(prompt_tokens)
        self.metrics.sampled.inc(new_tokens)
        return usage(prompt_tokens, new_tokens)


def create_app(service: Service) -> FastAPI:
    """The server's application. `service` is closed when it shuts down, after the last accepted answer."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="memocr", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    for code in (404, 405):  # paths and methods that there are not
        app.add_exception_handler(code, _http_error)
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
                return await _guard(service, request, path, answer, counts)

            app.add_api_route(path, guarded, methods=[method])

        return decorate

    @route("GET", "/v1/models", counts=False)
    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model_record()]})

    @route("GET", "/v1/models/{model_id:path}", counts=False)
    async def one_model(request: Request) -> Response:
        _require_model(service, request.path_params["model_id"])
        return JSONResponse(model_record())

    @route("POST", "/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _chat(service, request)

    @route("POST", "/v1/memories")
    async def create(request: Request) -> Response:
        asked = await _body(service, request, CreateMemory)
        if service.store.full:
            raise ApiError(
                409, f"there are {service.store.most} memories already; delete some", code="too_many_memories"
            )
        fresh = Document(question=asked.question, memory_format=service.model.config.agent.memory_format)

        def keep(document: Document) -> Stored:
            return service.store.add(document)

        return await _read(service, request, asked, fresh, keep, 201)

    @route("GET", "/v1/memories", counts=False)
    async def memories(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [stored.record() for stored in service.store.all()]})

    @route("GET", "/v1/memories/{memory_id}", counts=False)
    async def one_memory(request: Request) -> Response:
        return JSONResponse(_stored(service, request).record())

    @route("DELETE", "/v1/memories/{memory_id}", counts=False)
    async def delete(request: Request) -> Response:
        stored = _stored(service, request)
        service.store.remove(stored)
        return JSONResponse({"id": stored.id, "object": "memory.deleted", "deleted": True})

    @route("POST", "/v1/memories/{memory_id}/append")
    async def append(request: Request) -> Response:
        asked = await _body(service, request, AppendMemory)
        stored = _stored(service, request)

        def keep(document: Document) -> Stored:
            if service.store.get(stored.id) is not stored:
                raise ApiError(404, f"memory {stored.id} was deleted meanwhile", code="memory_not_found")
            service.store.replace(stored, document)
            return stored

        return await _read(service, request, asked, stored, keep, 200)

    @route("POST", "/v1/memories/{memory_id}/ask")
    async def ask(request: Request) -> Response:
        return await _ask(service, request)

    @route("GET", "/v1/memories/{memory_id}/page")
    async def page(request: Request) -> Response:
        return await _page(service, request)

    return app


async def _guard(
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
        if isinstance(response, _Events):
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


class _Events(StreamingResponse):
    """Server-sent events. Under way until the last is sent or the client has gone; `leave` is called then."""

    leave: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, events: AsyncGenerator[bytes, None]):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # The client may go while a piece is being sent, when nothing else would end the generator.
            await self._events.aclose()
            self.leave()


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse(
        ApiError(error.status_code, str(error.detail)).body(), error.status_code, error.headers
    )


async def _body(service: Service, request: Request, kind: type[T]) -> T:
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


def _require_model(service: Service, name: str) -> None:
    if name != service.model.name:
        own = service.model.name
        raise ApiError(404, f"model {name!r} is not served here, {own!r} is", "model", "model_not_found")


def _stored(service: Service, request: Request) -> Stored:
    memory_id = request.path_params["memory_id"]
    stored = service.store.get(memory_id)
    if stored is None:
        raise ApiError(404, f"there is no memory {memory_id!r}", "memory_id", "memory_not_found")
    return stored


@asynccontextmanager
async def _while_connected(request: Request, give_up: Callable[[], None]) -> AsyncIterator[None]:
    """Calls `give_up` when the client goes away, or the block is left for any reason but its own end."""

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


# --- chat ---


async def _chat(service: Service, request: Request) -> Response:
    asked = await _body(service, request, ChatRequest)
    _require_model(service, asked.model)
    system = service.model.system
    chat: Chat = await service.in_thread(
        lambda: prepare_chat(asked, system.tokenizer, system.model, service.images, service.limits)
    )
    head = Head(service.model.name)
    if chat.stream:
        return _Events(_chat_events(service, chat, head))
    run = ChatRun(chat, system.tokenizer)
    ticket = service.scheduler.submit(chat.group, run.watch)
    async with _while_connected(request, ticket.cancel):
        completions = await asyncio.wrap_future(ticket.future)
    counted = service.count(chat.prompt_tokens, sum(len(c.tokens) for c in completions))
    return JSONResponse(head.completion(run.finish(completions), counted))


async def _chat_events(service: Service, chat: Chat, head: Head) -> AsyncGenerator[bytes, None]:
    """Server-sent events of a streamed chat. Closed early (the client went), it gives the work up."""
    loop, started = asyncio.get_running_loop(), time.monotonic()
    pieces: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()

    def tell(item: tuple[int, str] | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(pieces.put_nowait, item)

    run = ChatRun(chat, service.model.system.tokenizer, lambda choice, text: tell((choice, text)))
    ticket: Ticket = service.scheduler.submit(chat.group, run.watch)
    ticket.future.add_done_callback(lambda _: tell(None))
    try:
        for choice in range(chat.choices):
            yield _event(head.chunk(choice, {"role": "assistant", "content": ""}))
        first = True
        while (piece := await pieces.get()) is not None:
            if first:
                service.metrics.first.observe(time.monotonic() - started)
                first = False
            yield _event(head.chunk(piece[0], {"content": piece[1]}))
        try:
            completions = ticket.future.result()
        except Exception as error:
            yield _event(ApiError(500, f"the server failed: {type(error).__name__}").body())
            return
        for number, choice in enumerate(run.finish(completions)):
            if choice.rest:
                yield _event(head.chunk(number, {"content": choice.rest}))
            yield _event(head.chunk(number, {}, choice.reason))
        counted = service.count(chat.prompt_tokens, sum(len(c.tokens) for c in completions))
        if chat.include_usage:
            yield _event(head.usage_chunk(counted))
        yield b"data: [DONE]\n\n"
    finally:
        ticket.cancel()


def _event(record: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(record, ensure_ascii=False).encode() + b"\n\n"


# --- memories ---


async def _read(
    service: Service,
    request: Request,
    asked: CreateMemory | AppendMemory,
    start: Document | Stored,
    keep: Callable[[Document], Stored],
    status: int,
) -> Response:
    """Read a text into a memory: the answer is the memory, or events of the progress and then the memory."""
    loop = asyncio.get_running_loop()
    progress: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()
    engine = SharedEngine(service.scheduler)

    def tell(done: int, total: int) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(progress.put_nowait, (done, total))

    async def work() -> dict[str, Any]:
        lock = start.lock if isinstance(start, Stored) else contextlib.nullcontext()
        async with lock:
            document = start.document if isinstance(start, Stored) else start
            chunk_tokens = service.model.config.data.chunk_tokens
            agent = service.agent(engine, asked.seed)
            sampling = service.sampling()
            read = await service.in_thread(
                lambda: read_document(agent, None, document, asked.text, chunk_tokens, sampling, tell)
            )
            counted = service.count(engine.prompt_tokens, engine.new_tokens)
            return keep(read).record() | {"usage": counted}

    if not asked.stream:
        async with _while_connected(request, engine.cancel):
            return JSONResponse(await work(), status)

    async def events() -> AsyncGenerator[bytes, None]:
        task = asyncio.create_task(work())
        task.add_done_callback(lambda done: progress.put_nowait(done.exception() and None))
        try:
            while (step := await progress.get()) is not None:
                record = {"object": "memory.progress", "chunks_done": step[0], "chunks": step[1]}
                yield _event(record)
            try:
                yield _event(task.result())
            except (ApiError, UserError, Cancelled) as error:
                problem = error if isinstance(error, ApiError) else ApiError(422, str(error))
                yield _event(problem.body())
            except Exception as error:
                yield _event(ApiError(500, f"the server failed: {type(error).__name__}").body())
            yield b"data: [DONE]\n\n"
        finally:
            engine.cancel()

    return _Events(events())


async def _ask(service: Service, request: Request) -> Response:
    asked = await _body(service, request, AskMemory)
    stored = _stored(service, request)
    document = stored.document
    engine = SharedEngine(service.scheduler)
    budget = asked.budget_tokens or service.model.config.agent.budget_tokens
    sampling = service.sampling(asked.temperature, asked.top_p)

    def work() -> PageAnswer:
        page = service.renderer.submit(document.text, mode=document.memory_format).result()
        return ask_page(service.agent(engine, asked.seed), None, page, [asked.question], budget, sampling)[0]

    async with _while_connected(request, engine.cancel):
        answer = await service.in_thread(work)
    record = {"object": "memory.answer", "memory_id": stored.id, "answer": answer.text, "reply": answer.reply}
    record |= {"image_tokens": answer.image_tokens}
    return JSONResponse(record | {"usage": service.count(engine.prompt_tokens, engine.new_tokens)})


async def _page(service: Service, request: Request) -> Response:
    stored = _stored(service, request)
    given = request.query_params.get("budget_tokens")
    if given is not None and not (
        given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= MAX_BUDGET_TOKENS
    ):
        raise ApiError(400, f"budget_tokens is {given!r}; use 1 to {MAX_BUDGET_TOKENS}", "budget_tokens")
    budget = int(given) if given else service.model.config.agent.budget_tokens
    document = stored.document

    def work() -> tuple[MemoryPage, bytes, int]:
        from PIL import Image

        page = service.renderer.submit(document.text, mode=document.memory_format).result()
        pixels = view(page, budget)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        return page, file.getvalue(), image_tokens(pixels)

    page, data, tokens = await service.in_thread(work)
    headers = {
        "X-Page-Status": page.status,
        "X-Image-Tokens": str(tokens),
        "X-Content-Hash": page.content_hash,
    }
    return Response(data, media_type="image/png", headers=headers)
