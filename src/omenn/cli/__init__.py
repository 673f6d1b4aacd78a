"""The command ``omenn``: reads the command line, runs one command, prints what it answers.

NOTE [late imports]
``omenn --help`` answers at once because nothing heavy is imported before a command runs: torch
alone takes more than a second. A module ``*_command.py`` imports only typer at its top.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from omenn.cli import (
    bench_command,
    calibrate_command,
    certify_command,
    compare_command,
    data_command,
    demo_command,
    explain_command,
    methods_command,
    terminal,
    train_command,
    tune_command,
)

TYPER_INTERRUPTED = 130

app = typer.Typer(
    name="omenn",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train_command.app, name="train")
app.add_typer(data_command.app, name="data")
app.command()(demo_command.demo)
app.command(epilog=explain_command.EXAMPLES)(explain_command.explain)
app.command(epilog=compare_command.EXAMPLES)(compare_command.compare)
app.command(epilog=calibrate_command.EXAMPLES)(calibrate_command.calibrate)
app.command("methods")(methods_command.list_methods)
app.command(epilog=certify_command.EXAMPLES)(certify_command.certify)
app.command(epilog=bench_command.EXAMPLES)(bench_command.bench)
app.command(epilog=tune_command.EXAMPLES)(tune_command.tune)


def _version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(f"omenn {importlib.metadata.version('omenn')}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """What did a trained network do with this input? One matrix that adds up to its answer.

    [bold]Start here:[/]  omenn demo
    """


def main(arguments: Sequence[str] | None = None, begun: Callable[[], object] = lambda: None) -> int:
    """Run the command; the exit code: 0, 1 (not exact), 2 (an error or Ctrl-C, one line).

    ``begun`` is called as soon as KeyboardInterrupt is caught here.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "-v" in words or "--verbose" in words
    try:
        begun()
        with warnings.catch_warnings():
            if not verbose:  # what libraries warn about is rarely for the user of a command
                warnings.simplefilter("ignore")
            code = app(words, prog_name="omenn", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return terminal.interrupted()
    except terminal.Interrupted:
        return terminal.interrupted(terminal.RESUMABLE)
    except Exception as error:
        return terminal.fail(error, verbose=verbose)
    if code == TYPER_INTERRUPTED:  # newer versions of typer turn Ctrl-C into this number
        return terminal.interrupted()
    return code if isinstance(code, int) else 0
