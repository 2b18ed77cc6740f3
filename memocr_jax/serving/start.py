"""Starts a service from an open model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from memocr_jax.agent.open import OpenModel
from memocr_jax.core.buckets import bucket
from memocr_jax.core.errors import UserError
from memocr_jax.engine import PromptLimits
from memocr_jax.models.images import num_windows
from memocr_jax.serving.chat import Limits
from memocr_jax.serving.scheduler import Scheduler
from memocr_jax.serving.service import ServerSettings, Service
from render import open_renderer
from render.settings import TOKEN_PX

SHORT_TOKENS = 1024
"""Prompts up to this length have programs of their own, because decoding time grows with a prompt's slots."""
TEMPLATE_TOKENS = 512
"""Room for the words around a section, a memory or a page, and for the question."""
LAST_TOKENS = 16
"""Room for a sibling's own part: the end of a prompt."""


def start_service(
    model: OpenModel,
    settings: ServerSettings,
    *,
    name: str = "",
    context_tokens: int = 4096,
    max_new_tokens: int = 1024,
    image_tokens: int = 1024,
    warm_up: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Service:
    """Start the engine's thread and the renderer.

    Args:
        name: what clients call the model, default its directory's name.
        context_tokens, max_new_tokens, image_tokens: limits of a chat.
        warm_up: compile the programs of usual requests now, not at the first of them.
        say: called with each line about what the engine can hold and does.

    Raises:
        UserError: limits that cannot be, or that engine.cache_gib does not hold; RenderError: no Chromium.
    """
    context_tokens = min(context_tokens, model.system.model.text.max_position_embeddings)
    if max_new_tokens >= context_tokens:
        raise UserError(
            f"--max-new-tokens is {max_new_tokens}, which leaves nothing of --max-context-tokens "
            f"{context_tokens} for the question; use at most {context_tokens // 2}"
        )
    agent = model.config.agent
    longest = max(max_new_tokens, agent.draft_max_new_tokens, agent.read_max_new_tokens)
    engine = model.engine()
    kinds = usual_prompts(model, context_tokens, longest)
    for kind in kinds:
        say(str(engine.fits(kind)))
    renderer = open_renderer(model.config.render, agent.memory_format)
    if warm_up:
        say("compiling the programs of usual requests (--no-warm-up: at the first one)")
        engine.warm_up(model.params, kinds)
    limits = Limits(context_tokens, max_new_tokens, image_tokens)
    if name:
        model = dataclasses.replace(model, name=name)
    scheduler = Scheduler(engine, model.params, longest)
    return Service(model, scheduler, renderer, limits, settings, model.images)


def usual_prompts(model: OpenModel, context_tokens: int, max_new_tokens: int) -> list[PromptLimits]:
    """The prompts that the engine is warmed up for: short and long chats, sections to read, and pages.

    Programs for others (several choices, several or large images) are compiled when they are first needed.
    """
    config = model.config
    multiple = config.engine.length_multiple
    drafting = config.data.chunk_tokens + config.agent.draft_max_new_tokens + TEMPLATE_TOKENS
    long = bucket(max(context_tokens, drafting), multiple)
    budget = config.agent.budget_tokens
    columns = max(1, min(budget, config.render.width_px // TOKEN_PX))
    rows = max(1, budget // columns)
    windows = num_windows(rows * TOKEN_PX, columns * TOKEN_PX, model.system.model.vision)
    page = bucket(budget + TEMPLATE_TOKENS, multiple)
    kinds = [
        PromptLimits("long text", 1, long, LAST_TOKENS, max_new_tokens),
        PromptLimits(
            "page", 1, page, LAST_TOKENS, max_new_tokens, bucket(windows, config.engine.window_multiple)
        ),
    ]
    if long > SHORT_TOKENS:
        kinds.append(PromptLimits("short text", 1, SHORT_TOKENS, LAST_TOKENS, max_new_tokens))
    return kinds
