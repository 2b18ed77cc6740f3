"""Serve a model: `python -m memocr_jax.serve --model DIR_OR_ID`.

OpenAI's /v1/chat/completions (text and images), and /v1/memories, so that other agents can keep a visual
memory. The routes are listed in `serving/app.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Interval

from memocr_jax.ask import ModelOptions, parse_settings
from memocr_jax.core.errors import run_command
from render.bounds import PositiveInt
from render.options import parse_options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Serve until SIGTERM or SIGINT; then finish what was accepted.

    Any field of the configuration can be set too: --render.workers 2.
    """

    name: str = ""
    """What clients call the model; empty: the directory's name."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Interval(ge=0, le=65_535)] = 8000
    token: str = ""
    """Bearer token (API key) that clients must send; empty: none."""
    max_requests: PositiveInt = 64
    """Requests under way; beyond them the answer is 429."""
    max_batch: PositiveInt = 16
    """Prompts decoded together (engine.groups)."""
    max_new_tokens: PositiveInt = 1024
    """Longest answer of a chat."""
    max_context_tokens: PositiveInt = 4096
    """Longest chat, its answer included."""
    max_image_tokens: PositiveInt = 1024
    """Visual tokens of an image; larger ones are shrunk."""
    max_body_mb: PositiveInt = 32
    """Largest request in MiB."""
    max_memories: PositiveInt = 1000
    """Memories kept at most."""
    warm_up: bool = True
    """Compile the programs of usual requests before the first one."""
    memory_dir: str = ""
    """Folder where memories are kept; empty: they end with the server."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; then finish what was accepted."""
    rest: list[str] = []
    arguments = parse_options(Options, argv, "python -m memocr_jax.serve", rest=rest)
    settings = parse_settings(rest, Options)

    from rich.console import Console

    from memocr_jax.agent.open import open_model
    from memocr_jax.serving.app import create_app
    from memocr_jax.serving.service import ServerSettings
    from memocr_jax.serving.start import start_service
    from render.http import serve

    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    say(f"loading {arguments.model}")
    # Pieces of a streamed answer come once a segment; kinds of prompts differ in length already, so that one
    # length each, and one number of rows, keeps what is compiled at the start small.
    engine = {"groups": arguments.max_batch, "decode_segment": 8, "pool_sizes": 1, "length_sizes": 1}
    engine |= settings.pop("engine", {})
    model = open_model(
        arguments.model, revision=arguments.revision, step=arguments.step, engine=engine, **settings
    )
    server = ServerSettings(
        max_requests=arguments.max_requests,
        max_body_bytes=arguments.max_body_mb << 20,
        max_memories=arguments.max_memories,
        memory_dir=arguments.memory_dir,
        token=arguments.token,
    )
    service = start_service(
        model,
        server,
        name=arguments.name,
        context_tokens=arguments.max_context_tokens,
        max_new_tokens=arguments.max_new_tokens,
        image_tokens=arguments.max_image_tokens,
        warm_up=arguments.warm_up,
        say=say,
    )
    say(f"model {service.model.name}: http://{arguments.host}:{arguments.port}/v1")
    serve(create_app(service), arguments.host, arguments.port)
    return 0


if __name__ == "__main__":
    run_command(main)
