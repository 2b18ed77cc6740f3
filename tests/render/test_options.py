"""A dataclass describes a command line; a mistake in it is one line."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import pytest
import tyro
from annotated_types import Ge

from render.errors import CommandError
from render.options import parse_options


@dataclasses.dataclass(frozen=True)
class Draw:
    """Draw."""

    name: str
    """What is drawn."""
    line_width: Annotated[int | None, Ge(1)] = None
    dashed: tyro.conf.FlagCreatePairsOff[bool] = False


@dataclasses.dataclass(frozen=True)
class Erase:
    """Erase."""

    name: str


COMMANDS = Annotated[Draw, tyro.conf.subcommand("draw")] | Annotated[Erase, tyro.conf.subcommand("erase")]


def test_options_become_fields():
    assert parse_options(Draw, ["--name=a", "--line-width", "3", "--dashed"], "x") == Draw("a", 3, True)
    assert parse_options(COMMANDS, ["erase", "--name", "b"], "x") == Erase("b")


@pytest.mark.parametrize(
    ("options", "argv", "message"),
    [
        (Draw, "--nmae a", r"unknown option --nmae \(did you mean '--name'\?\)$"),
        (Draw, "--name a --line_widht 3", r"unknown option --line_widht \(did you mean '--line-width'\?\)$"),
        (Draw, "--dashed", r"^Missing from x: --name STR What is drawn\. \(required\) \(x --help lists"),
        (Draw, "--name a --line-width 0", r"^--line-width is 0; use 1 or more$"),
        (Draw, "--name a --line-width thin", r"^Error parsing --line-width.*'thin'"),
        (Draw, "--name", r"^Missing value for argument '--name'"),
        (Draw, "--name a b", r"^Unrecognized options: b "),
        (COMMANDS, "erase --nmae a", r"unknown option --nmae \(did you mean '--name'\?\)$"),
        (COMMANDS, "earse --name a", r"draw.*erase"),
    ],
)
def test_a_mistake_is_one_line(options, argv, message):
    with pytest.raises(CommandError, match=message) as error:
        parse_options(options, argv.split(), "x")
    assert "\n" not in str(error.value)


def test_the_rest_is_left_to_the_caller():
    rest = []
    assert parse_options(Draw, ["--name", "a", "--other.field", "3"], "x", rest=rest) == Draw("a")
    assert rest == ["--other.field", "3"]


def test_help_goes_to_standard_output(capsys):
    with pytest.raises(SystemExit) as end:
        parse_options(Draw, ["--help"], "python -m x")
    assert not end.value.code and "--line-width" in capsys.readouterr().out
