"""The command line of everything that takes a configuration."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path

from memocr_jax.config.checks import validate
from memocr_jax.config.sections import Config
from memocr_jax.config.tree import load_config
from memocr_jax.core.errors import UserError


def parse_command(
    argv: Sequence[str],
    prog: str,
    description: str,
    add_arguments: typing.Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> tuple[Config, argparse.Namespace]:
    """Read `--config FILE` and the overrides (`--rl.group-size 8`) of a command line.

    `add_arguments` adds a command's own options, which come back in the namespace (with `config`, the file).
    Raises UserError for anything wrong in the file or in the combination; a misspelt option ends the process
    with tyro's message and status 2.
    """
    import tyro

    own = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    own.add_argument("--config", metavar="FILE", help="the run's configuration, in YAML")
    add_arguments(own)
    wants_help = bool({"-h", "--help"} & set(argv))
    known, overrides = own.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    if known.config is None and not wants_help:
        raise UserError("--config is missing: name a YAML file, for example --config configs/tiny.yaml")
    base = load_config(known.config) if known.config else Config()
    usage = f"{description}\n\nAlso: {own.format_usage().removeprefix('usage: ').strip()} [any option below]"
    if wants_help:
        overrides = [*overrides, "--help"]
    config = tyro.cli(Config, prog=prog, description=usage, args=overrides, default=base)
    if not config.run.dir:
        run = dataclasses.replace(config.run, dir=str(Path("runs") / Path(known.config).stem))
        config = dataclasses.replace(config, run=run)
    validate(config)
    return config, known
