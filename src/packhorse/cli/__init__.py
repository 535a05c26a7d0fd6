"""The command line: flags to settings to the api. No logic. A command is one file."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from packhorse.cli.bench import bench
from packhorse.cli.doctor import doctor
from packhorse.cli.evaluate import evaluate
from packhorse.cli.export import export
from packhorse.cli.plan import plan
from packhorse.cli.run import run
from packhorse.cli.verify import verify
from packhorse.errors import InterruptedRunError, PackhorseError

app = typer.Typer(
    name="packhorse",
    help="Offline batch inference for Hugging Face models: every row's output on disk, each row exactly once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for command in (run, plan, export, verify, bench, doctor):
    app.command()(command)
app.command("eval")(evaluate)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        from packhorse import __version__

        typer.echo(f"packhorse {__version__}")
        raise typer.Exit


def main() -> None:
    """Runs the command; an error that packhorse raises on purpose is a message and an exit code, no traceback."""
    try:
        app()
    except InterruptedRunError as error:
        _fail(str(error), error.exit_code)
    except PackhorseError as error:
        _fail(f"packhorse: {error}", error.exit_code)
    except OSError as error:  # disk full, no permission, a network share gone: the message says which file
        _fail(
            f"packhorse: {error}. What was committed stays; the same command, without --overwrite, goes on from there",
            1,
        )


def _fail(message: str, code: int) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
    sys.exit(code)
