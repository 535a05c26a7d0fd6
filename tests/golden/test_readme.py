"""What the README says of the command line is true of it."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from packhorse import errors
from packhorse.cli import app

README = (Path(__file__).parents[2] / "README.md").read_text()


def options() -> set[str]:
    command = typer.main.get_command(app)
    found: set[str] = {"--help"}
    for each in [command, *command.commands.values()]:  # type: ignore[attr-defined]
        for parameter in each.params:
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def test_every_flag_of_the_readme_exists() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert named, "the README names no flag"
    assert named <= options()


def test_the_exit_codes_of_the_readme_are_those_of_the_exceptions() -> None:
    table = {
        int(code)
        for line in README.splitlines()
        if re.match(r"\| \d", line)
        for code in re.findall(r"\d+", line.split("|")[1])
    }
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.PackhorseError)]
    assert {c.exit_code for c in classes} <= table
    assert table == {0, 1, 2, 3, 4, 130, 143}


def test_every_kind_of_error_row_of_the_source_is_in_the_readme() -> None:
    source = Path(errors.__file__).parent
    kinds = {k for path in source.rglob("*.py") for k in re.findall(r'RowError\(\s*"(\w+)"', path.read_text())}
    assert kinds and all(f"`{kind}`" in README for kind in kinds)
