"""Output of commands: tables on standard output, progress and errors on standard error.

NOTE [text from outside]
Names of files, classes and modules and messages of exceptions come from outside and may contain
control sequences for the terminal. All output goes through this module and ``printable``.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omenn.errors import OmennError, reason
from omenn.files.printable import printable

EXIT_FAILED, EXIT_ERROR = 1, 2
"""The command ran and its result is not as promised; it could not run."""

RESUMABLE = "finished work is kept; run the same command again to continue"


class Interrupted(Exception):
    """Ctrl-C in work that continues where it stopped when the command runs again."""


@contextmanager
def resumable(out: Path, finished: str) -> Iterator[None]:
    """Ctrl-C inside becomes ``Interrupted``, as typer would swallow KeyboardInterrupt.

    ``finished``: the pattern of files in ``out`` from which the next run continues; where there is
    none, nothing was kept, and KeyboardInterrupt passes.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if not any(out.glob(finished)):
            raise
        raise Interrupted from error


@dataclass(frozen=True)
class Answer:
    """The answer of a command: for ``--json``, for the terminal, and whether all promises hold."""

    record: Mapping[str, Any]
    shown: Sequence[Any]
    good: bool = True


def answer(found: Answer, as_json: bool) -> None:
    """Print an answer, and end the command with exit code 1 if it is not good."""
    if as_json:
        print_json(found.record)
    else:
        show(*found.shown)
    if not found.good:
        import typer

        raise typer.Exit(EXIT_FAILED)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar; the function it gives begins the next of ``total`` steps under a name.

    The bar is on standard error, and absent where that is not a terminal.
    """
    from rich.markup import escape

    from omenn.progress import progress_bar

    bar = progress_bar()
    bar.live.transient = True  # it goes when the table comes
    with bar:
        task = bar.add_task("starting", total=total)
        begun = 0

        def tick(step: str) -> None:
            nonlocal begun
            bar.update(task, description=escape(printable(step)), completed=begun)
            begun += 1

        yield tick


def show(*tables: Any) -> None:
    """Print tables, or lines as they are, on standard output, wide enough not to be cut."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for table in tables:
        if isinstance(table, str):
            console.print(printable(table), soft_wrap=True, markup=False, highlight=False)
        else:
            console.print(_Printable(table))


class _Printable:
    """Something that rich draws, with its text made printable and its colours left."""

    def __init__(self, shown: Any) -> None:
        self.shown = shown

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        for segment in console.render(self.shown, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def print_json(content: Any) -> None:
    """One JSON document on standard output; NaN becomes null, as JSON has none."""
    from omenn.files.json_text import as_json

    print(as_json(content, indent=2))


def fail(error: Exception, *, verbose: bool) -> int:
    """One line on standard error (with ``verbose`` the traceback before it); the exit code."""
    if verbose:
        print(printable("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    if isinstance(error, OmennError):
        line = str(error)
    elif (message := getattr(error, "format_message", None)) is not None:
        # a mistake on the command line, found by typer; "omenn" alone has shown the help already
        line = message().strip()
        if not line:
            return EXIT_ERROR
        line = f"{line if line[-1] in '.?!' else line + '.'} See omenn --help."
    elif isinstance(error, MemoryError):
        line = "not enough memory. Use a smaller model or fewer pictures."
    else:
        hint = "" if verbose else " Run again with -v for the traceback."
        line = f"unexpected {type(error).__name__}: {reason(error)}.{hint}"
    print(f"omenn: error: {printable(' '.join(line.split()))}", file=sys.stderr)
    return EXIT_ERROR


def interrupted(what_is_left: str = "nothing is left half-written") -> int:
    """The line and the exit code after Ctrl-C: that of an error, as there is no result."""
    print(f"omenn: interrupted; {what_is_left}", file=sys.stderr)
    return EXIT_ERROR
