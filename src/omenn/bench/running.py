"""A run of the benchmark from the plan to the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omenn.bench import cells, results
from omenn.bench.cell_store import Store
from omenn.bench.plan import Plan


@dataclass(frozen=True)
class Prepared:
    """A plan that can be carried out, and its folder."""

    plan: Plan
    store: Store

    @property
    def steps(self) -> int:
        """How often ``run`` calls ``tick``."""
        return cells.steps(self.plan) + 1


@dataclass(frozen=True)
class Done:
    """The result of a run. ``failed``: no method could be evaluated, or none by some metric."""

    record: dict[str, Any]
    tables: list[Any]
    remarks: list[str]
    files: list[Path]
    failed: bool


def prepare(file: Path | None, flags: Mapping[str, Any], out: Path) -> Prepared:
    """Read the plan and refuse what cannot be computed, before any work.

    ``flags``: keys of the plan, which take the place of the file's.

    Raises:
        InputError: a plan with unknown keys or names; a folder with the results of another one.
        ModelError, MissingExtra, WeightsError: a model that cannot be built.
        OutputError: the folder cannot be written.
    """
    from omenn.models import sources

    plan = Plan.from_file(file, flags) if file is not None else Plan.from_words(flags)
    sources.check_device(plan.device)
    plan.check_data()
    plan.check_models()
    store = Store(out, plan)
    cells.check_models(plan, store)
    plan = plan.check_methods()  # only now, as the file of a model may register a method
    store.begin(plan)
    return Prepared(plan, store)


def run(prepared: Prepared, tick: Callable[[str], None] = lambda step: None) -> Done:
    """Compute the missing cells, and write the results.

    Raises:
        OutputError: something cannot be written; the cells until then stay.
    """
    plan, store = prepared.plan, prepared.store
    cells.work(plan, store, tick)
    tick("results")
    found = results.collected(plan, store)
    made, missing = results.files(found)
    files = store.finish(made)
    said = [*results.remarks(found), *missing, f"wrote {store.folder / 'index.html'}"]
    return Done(
        results.record(found), results.printed(found), said, files, results.without_results(found)
    )
