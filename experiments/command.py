"""What every measuring script shares: its options, its errors, its progress and its blocks."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from experiments.report import ROOT, write_block
from experiments.store import Result, Results
from omenn.progress import progress_bar

RESUMABLE = "interrupted; what is finished stays; run the same command again to go on"
DOCS = ROOT / "docs"
OPTIONS: Mapping[str, dict[str, Any]] = {
    "rounds": {"type": int, "help": "of the clock (default %(default)s)"},
    "scenes": {"type": int, "help": "scenes (default %(default)s)"},
    "threads": {"type": int, "default": 1, "help": "of torch (default %(default)s)"},
    "device": {"default": "cpu", "help": "cpu or cuda"},
    "short": {"action": "store_true", "help": "a first look, in about a minute"},
    "fresh": {"action": "store_true", "help": "measure everything again"},
    "work": {"type": Path, "help": "folder of the results (default %(default)s)"},
    "write": {"action": "store_true", "help": "update the documents"},
    "peak": {"nargs": "+", "help": argparse.SUPPRESS},
}


class Job(NamedTuple):
    """A measurement: what the progress bar calls it, the key of its result, how it is made."""

    title: str
    key: str
    make: Callable[[], Result]


class Command:
    """``python -m experiments.<name>`` with some of the shared options and its own.

    Args:
        name: of the module. doc: its docstring, whose first line is the help.
        options: of ``OPTIONS``. defaults: of any option.
    """

    def __init__(self, name: str, doc: str | None, *options: str, **defaults: Any) -> None:
        self.name = f"experiments.{name}"
        self.parser = argparse.ArgumentParser(
            prog=self.name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.add = self.parser.add_argument
        self.known: dict[str, tuple[str, Iterable[str]]] = {}
        self.least = {"seed": 0}
        for option in options:
            self.add(f"--{option}", **OPTIONS[option])
        work = {"work": ROOT / "runs" / name.replace(".", "/")} if "work" in options else {}
        self.parser.set_defaults(**work | defaults)

    def choose(
        self, what: str, known: Iterable[str], default: Iterable[str] | None, option: str = "models"
    ) -> None:
        """An option that takes some of the known names."""
        self.known[option] = (what, known)
        given = list(default) if default is not None else None
        self.add(f"--{option}", nargs="+", default=given, help=f"of {', '.join(known)}")

    def parse(self, words: Sequence[str] | None) -> argparse.Namespace:
        """The arguments, and torch's threads set; one line and exit code 2 for a mistake."""
        a = self.parser.parse_args(words)
        for option, (what, known) in self.known.items():
            for name in getattr(a, option) or ():
                if name not in known:
                    self.fail(f"no {what} {name!r}. Choose from: {', '.join(known)}.")
        for option, value in vars(a).items():
            self._check(option, value if isinstance(value, list) else [value])
        device = getattr(a, "device", "cpu")
        if device.startswith("cuda") and not torch.cuda.is_available():
            self.fail(f"--device {device}: this torch sees no GPU.")
        if getattr(a, "short", False) and a.write:
            self.fail("--write publishes the full form: omit --short.")
        if "threads" in a:
            torch.set_num_threads(a.threads)
        warnings.filterwarnings("ignore")
        return a

    def _check(self, option: str, values: Sequence[Any]) -> None:
        least = self.least.get(option, 1)
        for value in values:
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                flag = option.replace("_", "-")
                self.fail(f"--{flag} is {value}; it must be at least {least}.")

    def fail(self, message: str) -> NoReturn:
        """One line on standard error, exit code 2."""
        print(f"{self.name}: error: {message}", file=sys.stderr)
        raise SystemExit(2)

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Ctrl-C inside is one line and exit code 2."""
        try:
            yield
        except KeyboardInterrupt:
            print(f"{self.name}: {RESUMABLE}", file=sys.stderr)
            raise SystemExit(2) from None

    def results(self, a: argparse.Namespace, jobs: Sequence[Job]) -> list[Result]:
        """The result of each job, measured with a progress bar or read from ``--work``."""
        store = Results(a.work, a.fresh)
        found = []
        with self.resumable(), progress_bar() as bar:
            task = bar.add_task("measuring", total=len(jobs))
            for job in jobs:
                bar.update(task, description=job.title)
                found.append(store.take(job.key, job.make))
                bar.advance(task)
        return found

    def written(self, *words: str) -> str:
        """What a published block says of where it comes from."""
        return f"Written by `python -m {' '.join([self.name, *words])} --write`"

    def publish(self, a: argparse.Namespace, page: str, **blocks: str) -> None:
        """Prints the blocks, and with ``--write`` puts them into a page of the documents."""
        print("\n\n".join(blocks.values()))
        if a.write:
            for marker, text in blocks.items():
                write_block(DOCS / page, marker.replace("_", "-"), text)
