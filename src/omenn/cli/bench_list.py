"""``omenn bench --list``: the data, models, methods and metrics there are, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_QUANTUS = "a metric of Quantus, with the options that it has there, slower than those above: "
_MODELS = {
    "timm:NAME": "a model of timm, with random weights unless [weights=FILE]",
    "torchvision:NAME": "a model of torchvision, the same",
    "file.py:function": "what the function of a file returns; runs that file",
}


def records() -> dict[str, list[dict[str, Any]]]:
    """Everything for ``--json``."""
    from omenn.cli.method_list import ordered
    from omenn.data.dataset_registry import datasets
    from omenn.metrics import quantus
    from omenn.metrics.explainers import TRIVIAL
    from omenn.metrics.metric_registry import metrics
    from omenn.models import bundled

    right = {name: 100 * bundled.card(name)["result"]["test_top1"] for name in bundled.names()}
    own = {name: f"bundled, {top:.1f} % of generated birds right" for name, top in right.items()}
    return {
        "data": [
            {
                "name": kind.form,
                "summary": kind.summary,
                "splits": list(kind.splits),
                "options": dict(kind.options),
            }
            for kind in datasets().values()
        ],
        "models": [
            {"name": name, "summary": summary} for name, summary in {**own, **_MODELS}.items()
        ],
        "methods": [
            *({"name": m.name, "summary": m.summary, "promise": m.promise} for m in ordered()),
            *(
                {"name": name, "summary": f"trivial: {_first(made)}", "promise": None}
                for name, made in TRIVIAL.items()
            ),
        ],
        "metrics": [
            *(
                {
                    "name": metric.name,
                    "summary": metric.summary,
                    "source": metric.source,
                    "needs": sorted(metric.needs),
                    "options": {name: _plain(value) for name, value in metric.options.items()},
                    "measures": [measure.name for measure in metric.measures],
                }
                for metric in metrics().values()
            ),
            {"name": "quantus:NAME", "summary": _QUANTUS + ", ".join(quantus.METRICS)},
        ],
    }


def table() -> Table:
    """Everything for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    from omenn.bench.method_options import shown

    listed = Table(box=None, pad_edge=False, show_header=False)
    listed.add_column("name", style="bold", no_wrap=True)
    listed.add_column("what it is", overflow="fold")
    for part, entries in records().items():
        listed.add_row(f"[cyan]{part}[/]", "", end_section=False)
        for entry in entries:
            words = escape(entry["summary"])
            if needs := entry.get("needs"):
                words += f"; needs {' and '.join(needs)}"
            if splits := entry.get("splits"):
                words += f"; splits {', '.join(splits)}"
            if options := entry.get("options"):
                words += f" [dim]{escape(shown(options))}[/]"
            listed.add_row(f"  {escape(entry['name'])}", words)
    return listed


def _first(function: Any) -> str:
    line = (function.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return f"{line[:1].lower()}{line[1:]}"


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
