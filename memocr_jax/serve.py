"""Serve a model: `python -m memocr_jax.serve --model DIR_OR_ID`.

OpenAI's /v1/chat/completions (text and images), and /v1/memories, so that other agents can keep a visual
memory. The routes are listed in `serving/app.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from memocr_jax.ask import add_model_options, parse_settings
from memocr_jax.core.errors import UserError, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; then finish what was accepted."""
    arguments, settings = _parse(sys.argv[1:] if argv is None else argv)

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


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, dict]]:
    parser = argparse.ArgumentParser(
        prog="python -m memocr_jax.serve",
        description=main.__doc__,
        epilog="Any field of the configuration can be set too: --render.workers 2.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_model_options(parser)
    add = parser.add_argument
    add("--name", default="", help="what clients call the model; empty: the directory's name")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=8000, help=" ")
    add("--token", default="", help="bearer token (API key) that clients must send; empty: none")
    add("--max-requests", type=int, default=64, help="requests under way; beyond them the answer is 429")
    add("--max-batch", type=int, default=16, help="prompts decoded together (engine.groups)")
    add("--max-new-tokens", type=int, default=1024, help="longest answer of a chat")
    add("--max-context-tokens", type=int, default=4096, help="longest chat, its answer included")
    add(
        "--max-image-tokens", type=int, default=1024, help="visual tokens of an image; larger ones are shrunk"
    )
    add("--max-body-mb", type=int, default=32, help="largest request in MiB")
    add("--max-memories", type=int, default=1000, help="memories kept at most")
    add(
        "--warm-up",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile the programs of usual requests before the first one",
    )
    add("--memory-dir", default="", help="folder where memories are kept; empty: they end with the server")
    arguments, rest = parser.parse_known_args(argv)
    for name, value in vars(arguments).items():
        if name.startswith("max_") and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; the smallest that works is 1")
    options = [option for action in parser._actions for option in action.option_strings]
    return arguments, parse_settings(rest, options)


if __name__ == "__main__":
    run_command(main)
