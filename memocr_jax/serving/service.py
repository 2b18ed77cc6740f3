"""The state behind the server's routes."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from memocr_jax.agent.open import OpenModel
from memocr_jax.config import SamplingConfig
from memocr_jax.models.images import ImageSettings
from memocr_jax.serving.chat import Limits, usage
from memocr_jax.serving.memories import MemoryStore
from memocr_jax.serving.scheduler import Scheduler, SharedEngine

if TYPE_CHECKING:
    from memocr_jax.agent.agent import Agent
    from render.base import Renderer


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Limits of the server."""

    max_requests: int = 64
    """Requests under way at once, above which the answer is 429."""
    max_body_bytes: int = 32 << 20
    max_memories: int = 1000
    memory_dir: str = ""
    token: str = ""
    """Bearer token that /v1 asks for, "" for none."""


class ServerMetrics:
    """The metrics of GET /metrics."""

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
        self.metrics = ServerMetrics()
        self.threads = ThreadPoolExecutor(settings.max_requests, thread_name_prefix="request")
        self.created = int(time.time())
        self.under_way = 0

    def close(self) -> None:
        """End the threads and the browsers, after the last answer."""
        self.threads.shutdown(wait=True)
        self.scheduler.close()
        self.renderer.close()

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)

    def sampling(self, temperature: float | None = None, top_p: float | None = None) -> SamplingConfig:
        """The sampling of evaluations, with the request's own values in its place."""
        own = self.model.config.eval
        return SamplingConfig(
            temperature=own.temperature if temperature is None else temperature,
            top_p=own.top_p if top_p is None else top_p,
        )

    def agent(self, engine: SharedEngine, seed: int | None) -> Agent:
        agent = self.model.agent(engine, self.renderer)
        return agent if seed is None else dataclasses.replace(agent, seed=seed)

    def count(self, prompt_tokens: int, new_tokens: int) -> dict[str, int]:
        """Add a finished request's tokens, as OpenAI's `usage` counts them, to the metrics."""
        self.metrics.prompt.inc(prompt_tokens)
        self.metrics.sampled.inc(new_tokens)
        return usage(prompt_tokens, new_tokens)
