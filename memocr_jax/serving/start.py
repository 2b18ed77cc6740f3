"""From an open model to a running service."""

from __future__ import annotations

import dataclasses

from memocr_jax.errors import UserError
from memocr_jax.memory_agent import OpenModel
from memocr_jax.serving.app import ServerSettings, Service
from memocr_jax.serving.chat import Limits
from memocr_jax.serving.scheduler import Scheduler
from render import open_renderer


def start_service(
    model: OpenModel,
    settings: ServerSettings,
    *,
    name: str = "",
    context_tokens: int = 8192,
    max_new_tokens: int = 1024,
    image_tokens: int = 1024,
) -> Service:
    """Start the engine's thread and the renderer.

    Args:
        name: what clients call the model, default its directory's name.
        context_tokens, max_new_tokens, image_tokens: limits of a chat.

    Raises:
        UserError: limits that cannot be; RenderError: no Chromium.
    """
    context_tokens = min(context_tokens, model.system.model.text.max_position_embeddings)
    if max_new_tokens >= context_tokens:
        raise UserError(
            f"--max-new-tokens is {max_new_tokens}, which leaves nothing of --max-context-tokens "
            f"{context_tokens} for the question; use at most {context_tokens // 2}"
        )
    config = model.config
    renderer = open_renderer(config.render, config.agent.memory_format)
    longest = max(max_new_tokens, config.agent.draft_max_new_tokens, config.agent.read_max_new_tokens)
    scheduler = Scheduler(model.engine(), model.params, longest)
    limits = Limits(context_tokens, max_new_tokens, image_tokens)
    if name:
        model = dataclasses.replace(model, name=name)
    return Service(model, scheduler, renderer, limits, settings, model.images)
