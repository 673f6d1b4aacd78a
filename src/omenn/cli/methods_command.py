"""``omenn methods``."""

from __future__ import annotations

from omenn.cli import terminal
from omenn.cli.shared_options import AsJson, Verbose


def list_methods(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """List the methods: what each promises of its sum, its options, what it needs.

    [bold]Example:[/]  omenn methods --json
    """
    from omenn.cli import method_list

    shown = (method_list.table(), f"\n{method_list.counted()}")
    terminal.answer(terminal.Answer({"methods": method_list.records()}, shown), as_json)
