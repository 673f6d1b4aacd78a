"""The progress bar: visible on a terminal, silent in a pipe or a log."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(console: Console | None = None) -> Progress:
    """A bar on ``console`` (standard error by default), disabled unless that is a terminal.

    >>> import io
    >>> progress_bar(Console(file=io.StringIO())).disable
    True
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
