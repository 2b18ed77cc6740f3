"""POST /v1/chat/completions, whole or streamed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from memocr_jax.serving.chat import ApiError, Chat, ChatRequest, ChatRun, Head, prepare_chat
from memocr_jax.serving.requests import Events, event, read_json_body, require_model, while_connected
from memocr_jax.serving.scheduler import Ticket
from memocr_jax.serving.service import Service


async def complete_chat(service: Service, request: Request) -> Response:
    """Answer a chat. The work is given up when the client goes away."""
    asked = await read_json_body(service, request, ChatRequest)
    require_model(service, asked.model)
    system = service.model.system
    chat: Chat = await service.in_thread(
        lambda: prepare_chat(asked, system.tokenizer, system.model, service.images, service.limits)
    )
    head = Head(service.model.name)
    if chat.stream:
        return Events(_chat_events(service, chat, head))
    run = ChatRun(chat, system.tokenizer)
    ticket = service.scheduler.submit(chat.group, run.watch)
    async with while_connected(request, ticket.cancel):
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
            yield event(head.chunk(choice, {"role": "assistant", "content": ""}))
        first = True
        while (piece := await pieces.get()) is not None:
            if first:
                service.metrics.first.observe(time.monotonic() - started)
                first = False
            yield event(head.chunk(piece[0], {"content": piece[1]}))
        try:
            completions = ticket.future.result()
        except Exception as error:
            yield event(ApiError(500, f"the server failed: {type(error).__name__}").body())
            return
        for number, choice in enumerate(run.finish(completions)):
            if choice.rest:
                yield event(head.chunk(number, {"content": choice.rest}))
            yield event(head.chunk(number, {}, choice.reason))
        counted = service.count(chat.prompt_tokens, sum(len(c.tokens) for c in completions))
        if chat.include_usage:
            yield event(head.usage_chunk(counted))
        yield b"data: [DONE]\n\n"
    finally:
        ticket.cancel()
