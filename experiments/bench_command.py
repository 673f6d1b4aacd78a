"""The command that makes results of a benchmark again, without the folders of whoever ran it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from omenn.bench.plan import Plan
from omenn.bench.plan_entries import Entry
from omenn.errors import OmennError

FLAGS = ("data", "split", "classes", "limit", "models", "methods", "seed", "chunk", "device")
"""Keys of a plan that are flags beside it, in the order of the command."""


def same(plan: Plan, folder: Path) -> Path | None:
    """The plan file in a folder with the same metrics, whatever flags have changed."""
    for file in sorted(folder.glob("*.toml")):
        if Plan.from_file(file).metrics == plan.metrics:
            return file
    return None


def command(plan: Plan, file: Path | None, stem: str) -> str:
    """What makes these results again.

    >>> command(Plan.from_words({"limit": 8}), None, "few")
    'omenn bench --limit 8 -o runs/bench/few'
    """
    usual = Plan.from_file(file) if file else Plan()
    words = ["omenn", "bench", *([f"experiments/plans/{file.name}"] if file else [])]
    own, other = plan.record(), usual.record()
    for key in FLAGS if file else (*FLAGS, "metrics"):
        if own[key] != other[key] or (key == "data" and other[key].endswith(":FOLDER")):
            words += [f"--{key}", _flag(getattr(plan, key))]
    if plan.trivial != usual.trivial:
        words.append("--no-trivial")
    return " ".join(map(shlex.quote, [*words, "-o", f"runs/bench/{stem}"]))


def _flag(value: Any) -> str:
    if isinstance(value, Entry):
        return opened(value.name)
    if isinstance(value, tuple):
        return ",".join(_written(one) if isinstance(one, Entry) else str(one) for one in value)
    return str(value)


def _written(entry: Entry) -> str:
    """As on a command line, where entries have no name of their own."""
    options = ";".join(f"{name}={value}" for name, value in entry.options.items())
    return opened(f"{entry.base}[{options}]" if options else entry.base)


def opened(text: str) -> str:
    """Data and weights without the folder that somebody had them in.

    >>> opened("funnybirds:/a/b"), opened("net.py:build[weights=/a/b/w.th]"), opened("birds")
    ('funnybirds:FOLDER', 'net.py:build[weights=w.th]', 'birds')
    """
    head, bracket, options = text.partition("[weights=")
    if bracket:
        ours = options.startswith("runs/")  # where commands of this repository write
        return f"{head}[weights={options if ours else Path(options).name}"
    kind, colon, place = text.partition(":")
    return f"{kind}:FOLDER" if colon and ("/" in place or "\\" in place) else text


def model_name(entry: Entry) -> str:
    """What a table calls a model: the function of a file, without its weights.

    >>> model_name(Entry.read("experiments/nets.py:build[weights=/a/w.th]", "model"))
    'build'
    """
    if entry.name.startswith(entry.base) and ".py:" in entry.base:
        return entry.base.rpartition(":")[2]
    return entry.name


def size(entry: Entry) -> list[int] | None:
    """Parameters of a model and the side of its pictures, where it can be built."""
    import torch

    from omenn.models import sources

    try:
        with torch.random.fork_rng(devices=[]):
            built = sources.load(entry.base)
    except OmennError:  # its file is not here any more: the page does without
        return None
    count = sum(p.numel() for p in built.model.parameters())
    return [count, built.preprocessing.size[0]]
