"""/v1/memories: reading documents into memories, asking them, and their pages."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from memocr_jax.agent.document import Document, PageAnswer, ask_page, read_document, view
from memocr_jax.core.errors import UserError
from memocr_jax.serving.chat import ApiError
from memocr_jax.serving.memories import Stored
from memocr_jax.serving.requests import Events, event, read_json_body, while_connected
from memocr_jax.serving.scheduler import Cancelled, SharedEngine
from memocr_jax.serving.service import Service
from render.types import MemoryPage
from render.views import image_tokens

MAX_BUDGET_TOKENS = 16_384


class JsonBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Budget = Annotated[int, Field(ge=1, le=MAX_BUDGET_TOKENS)]


class CreateMemory(JsonBody):
    """The body of POST /v1/memories."""

    text: str
    question: str = ""
    seed: Seed | None = None
    stream: bool = False


class AppendMemory(JsonBody):
    """The body of POST /v1/memories/ID/append."""

    text: str
    seed: Seed | None = None
    stream: bool = False


class AskMemory(JsonBody):
    """The body of POST /v1/memories/ID/ask."""

    question: Annotated[str, Field(min_length=1)]
    budget_tokens: Budget | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = None


async def create_memory(service: Service, request: Request) -> Response:
    """Read a document into a new memory."""
    asked = await read_json_body(service, request, CreateMemory)
    if service.store.full:
        raise ApiError(
            409, f"there are {service.store.most} memories already; delete some", code="too_many_memories"
        )
    fresh = Document(question=asked.question, memory_format=service.model.config.agent.memory_format)
    return await _read(service, request, asked, fresh, service.store.add, 201)


async def append_memory(service: Service, request: Request) -> Response:
    """Read a text that continues what the memory has read before."""
    asked = await read_json_body(service, request, AppendMemory)
    stored = stored_memory(service, request)

    def keep(document: Document) -> Stored:
        if service.store.get(stored.id) is not stored:
            raise ApiError(404, f"memory {stored.id} was deleted meanwhile", code="memory_not_found")
        service.store.replace(stored, document)
        return stored

    return await _read(service, request, asked, stored, keep, 200)


def stored_memory(service: Service, request: Request) -> Stored:
    """The memory that the path names. Raises ApiError when there is none."""
    memory_id = request.path_params["memory_id"]
    stored = service.store.get(memory_id)
    if stored is None:
        raise ApiError(404, f"there is no memory {memory_id!r}", "memory_id", "memory_not_found")
    return stored


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
        async with while_connected(request, engine.cancel):
            return JSONResponse(await work(), status)

    async def events() -> AsyncGenerator[bytes, None]:
        task = asyncio.create_task(work())
        task.add_done_callback(lambda done: progress.put_nowait(done.exception() and None))
        try:
            while (step := await progress.get()) is not None:
                record = {"object": "memory.progress", "chunks_done": step[0], "chunks": step[1]}
                yield event(record)
            try:
                yield event(task.result())
            except (ApiError, UserError, Cancelled) as error:
                problem = error if isinstance(error, ApiError) else ApiError(422, str(error))
                yield event(problem.body())
            except Exception as error:
                yield event(ApiError(500, f"the server failed: {type(error).__name__}").body())
            yield b"data: [DONE]\n\n"
        finally:
            engine.cancel()

    return Events(events())


async def ask_memory(service: Service, request: Request) -> Response:
    """Answer a question from a memory's page."""
    asked = await read_json_body(service, request, AskMemory)
    stored = stored_memory(service, request)
    document = stored.document
    engine = SharedEngine(service.scheduler)
    budget = asked.budget_tokens or service.model.config.agent.budget_tokens
    sampling = service.sampling(asked.temperature, asked.top_p)

    def work() -> PageAnswer:
        page = service.renderer.submit(document.text, mode=document.memory_format).result()
        return ask_page(service.agent(engine, asked.seed), None, page, [asked.question], budget, sampling)[0]

    async with while_connected(request, engine.cancel):
        answer = await service.in_thread(work)
    record = {"object": "memory.answer", "memory_id": stored.id, "answer": answer.text, "reply": answer.reply}
    record |= {"image_tokens": answer.image_tokens}
    return JSONResponse(record | {"usage": service.count(engine.prompt_tokens, engine.new_tokens)})


async def show_page(service: Service, request: Request) -> Response:
    """A memory's page as the model sees it at a budget: PNG."""
    stored = stored_memory(service, request)
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
