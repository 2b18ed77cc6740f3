"""The command line of all commands that take a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from memocr_jax.config.checks import validate
from memocr_jax.config.sections import Config
from memocr_jax.config.tree import load_config
from memocr_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class ConfigOption:
    """The option that every command with a configuration has."""

    config: str = ""
    """A YAML file with the run's configuration."""


Own = TypeVar("Own", bound=ConfigOption)


def parse_command(
    argv: Sequence[str], prog: str, description: str, own: type[Own] = ConfigOption
) -> tuple[Config, Own]:
    """Read `--config FILE` and the overrides (`--rl.group-size 8`) of a command line.

    `own` is a dataclass with the command's own options, all with defaults.

    Raises:
        CommandError: an option is unknown or has an impossible value.
        UserError: something in the file or in the combination is wrong.
    """
    import tyro

    from render.options import read_options, require_bounds

    asks_help = bool({"-h", "--help"} & set(argv))
    path = read_options(ConfigOption, [a for a in argv if a not in ("-h", "--help")], prog, rest=[]).config
    if not path and not asks_help:
        raise UserError("--config is missing: name a YAML file, for example --config configs/tiny.yaml")
    # A name of "" leaves the field's name out of the options: --rl.group-size, not --config.rl.group-size.
    unnamed = tyro.conf.arg(name="")
    both = dataclasses.make_dataclass(
        "Command", [("own", Annotated[own, unnamed]), ("config", Annotated[Config, unnamed])]
    )
    found: Any = read_options(
        both,
        argv,
        prog,
        default=both(own(), load_config(path) if path else Config()),
        description=description,
    )
    config = found.config
    if not config.run.dir:
        config = dataclasses.replace(
            config, run=dataclasses.replace(config.run, dir=str(Path("runs") / Path(path).stem))
        )
    validate(config)
    return config, require_bounds(found.own)
