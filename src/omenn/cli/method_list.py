"""``omenn methods``: every method, its promise, its options, what it needs."""

from __future__ import annotations

import importlib.metadata
import re
from typing import TYPE_CHECKING, Any

from omenn.bench.method_options import shown
from omenn.viz.wording import PROMISES

if TYPE_CHECKING:
    from rich.table import Table

    from omenn.attribution import Method

_SUMS = {"exact": "exact", "approximate": "approximate", "none": "not promised"}
# What most methods have and nobody asks the list for; --json has all.
_PLUMBING = ("output", "channel_dim", "create_graph")


def installed(extra: str) -> bool:
    """Whether all packages of one of omenn's extras are there.

    >>> installed("no such extra")
    False
    """
    try:
        wanted = importlib.metadata.requires("omenn") or []
    except importlib.metadata.PackageNotFoundError:
        wanted = []
    marked = [line for line in wanted if re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", line)]
    names = [re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0] for line in marked]
    return bool(names) and all(map(_there, names))


def _there(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def ordered() -> list[Method]:
    """Every method, those that promise most first."""
    import omenn

    return sorted(omenn.methods().values(), key=lambda method: list(PROMISES).index(method.promise))


def records() -> list[dict[str, Any]]:
    """Every method for ``--json``."""
    return [
        {
            "name": method.name,
            "promise": method.promise,
            "summary": method.summary,
            "source": method.source,
            "same_as": method.same_as,
            "options": {name: _plain(value) for name, value in method.options.items()},
            "extra": method.extra,
            "installed": method.extra is None or installed(method.extra),
        }
        for method in ordered()
    ]


def table() -> Table:
    """Every method for the terminal: its name, its promise, and what else there is to know."""
    from rich.markup import escape
    from rich.table import Table

    listed = Table(box=None, pad_edge=False, header_style="bold")
    listed.add_column("method", style="bold", no_wrap=True)
    listed.add_column("sum", no_wrap=True)
    listed.add_column("what it is, its options, its source", overflow="fold")
    for method in ordered():
        needs = ""
        if method.extra is not None:
            have = "[green]installed[/]" if installed(method.extra) else "[red]not installed[/]"
            needs = f"; needs {escape(f'omenn[{method.extra}]')}, {have}"
        lines = [
            escape(method.summary),
            *([escape(same)] if (same := _same(method)) else []),
            *([f"[cyan]{escape(options)}[/]"] if (options := _options(method)) else []),
            f"[dim]{escape(method.source)}[/]{needs}",
        ]
        listed.add_row(escape(method.name), _SUMS[method.promise], "\n".join(lines))
    return listed


def counted() -> str:
    """How many methods there are, one that has two names counted once."""
    import omenn
    from omenn.attribution.registry import distinct

    names = list(omenn.methods())
    count = len(distinct(names))
    twice = len(names) - count
    return f"{count} methods" + (f", {twice} of them under two names" if twice else "")


def _same(method: Method) -> str:
    if method.same_as is None:
        return ""
    return f"the same as {method.same_as}" + " by default" * bool(_own(method))


def _own(method: Method) -> set[str]:
    """The options that the method has and the one whose name it shares has not."""
    import omenn

    other = omenn.methods().get(method.same_as or "")
    return set(method.options) - set(other.options if other else ())


def _options(method: Method) -> str:
    return shown({k: v for k, v in method.options.items() if k not in _PLUMBING})


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
