"""Works through the cells of a plan: a model after the other, of each one method after the other.

What all methods of a model share is computed once: its pictures, its answers with parts removed.
So are the maps of a method, whose cost is measured then. A cell that fails keeps its reason, and
the others go on.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from omenn.bench.cell_store import Store
from omenn.bench.plan import Plan
from omenn.bench.plan_entries import Entry
from omenn.bench.profiling import Spent, spending
from omenn.engine.digest import digest
from omenn.errors import InputError, OmennError, OutputError, reason

if TYPE_CHECKING:
    from torch import nn

    from omenn.bench.trial import Subject, Trial
    from omenn.metrics.explainers import Explainer
    from omenn.models.sources import Source

Tick = Callable[[str], None]


def steps(plan: Plan) -> int:
    """How often ``work`` calls ``tick``."""
    return len(plan.models) * (1 + len(plan.rows) * (1 + len(plan.metrics)))


def check_models(plan: Plan, store: Store) -> None:
    """Refuse a model that cannot be built, before any work.

    Raises:
        ModelError, MissingExtra, WeightsError: as :func:`omenn.models.sources.load`.
    """
    for model in plan.models:
        if _missing(plan, store, model):
            _load(plan, model)


def work(plan: Plan, store: Store, tick: Tick = lambda step: None) -> None:
    """Compute every cell that is not there yet.

    Raises:
        OutputError: a cell cannot be written. InputError: a model is not what it was before.
    """
    for model in plan.models:
        missing = _missing(plan, store, model)
        tick(model.name)
        if not missing:
            for _ in range(len(plan.rows) * (1 + len(plan.metrics))):
                tick(model.name)
            continue
        _Model(plan, store, model, tick).run()


def _missing(plan: Plan, store: Store, model: Entry) -> bool:
    return not all(
        store.done(model.name, method.name, metric.name)
        for method in plan.rows
        for metric in plan.metrics
    )


def _load(plan: Plan, model: Entry) -> Source:
    from omenn.models import sources

    options = {"seed": plan.seed, **model.options}
    return sources.load(model.base, device=plan.device, **options)


class _Model:
    """One model: its facts, and the cells of all methods on it."""

    def __init__(self, plan: Plan, store: Store, model: Entry, tick: Tick) -> None:
        self.plan, self.store, self.model, self.tick = plan, store, model, tick
        self.source = _load(plan, model)
        self.failures: dict[str, str] = {}  # metric → why no method can be judged by it

    def run(self) -> None:
        subject: Subject | None = None
        facts: dict[str, Any] = {}
        with _caught() as failed:
            subject = self._subject()
            facts = {"data": digest([subject.images, subject.labels]), **self._facts(subject)}
        self._describe(facts)
        for method in self.plan.rows:
            self._row(subject, method, failed[0] if failed else None)

    def _subject(self) -> Subject:
        from omenn.bench.trial import Subject

        modality = self.source.modality
        return Subject(
            self.source.model,
            self.plan.dataset(modality.size[0]),
            modality,
            device=self.plan.device,
            seed=self.plan.seed,
            chunk=self.plan.chunk,
            folder=self.store.beside(self.model.name),
        )

    def _facts(self, subject: Subject) -> dict[str, Any]:
        """The facts about the model, and what all its cells share."""
        from omenn.metrics import metric_registry
        from omenn.metrics.funnybirds_protocol import background_independence
        from omenn.metrics.metric_registry import PARTS
        from omenn.metrics.score import Measured

        scores = [subject.accuracy()]
        needy = [m.name for m in self.plan.metrics if PARTS in metric_registry.find(m.base).needs]
        if needy:
            with _caught() as failed:
                scores.append(background_independence(subject.seen))
            self.failures |= {name: failed[0] for name in needy if failed}
        facts = {score.name: asdict(Measured.of(score, self.plan.seed)) for score in scores}
        said = " ".join(filter(None, (self.source.warning, subject.remark)))
        return {"pictures": len(subject.images), "warning": said, "facts": facts}

    def _describe(self, facts: Mapping[str, Any]) -> None:
        """Store the facts about the model; refuse a model that has changed since then."""
        parameters = fingerprint(self.source.model)
        before = self.store.read(self.model.name)
        if before is not None and before.get("parameters") != parameters:
            raise InputError(
                f"'{self.store.folder}' holds results of another '{self.model.name}': its "
                "parameters have changed.",
                argument="out",
                got=str(self.store.folder),
                remedy="Choose another folder with -o, or delete this one.",
            )
        seen = before and before.get("data")
        if seen and facts and seen != facts["data"]:
            raise InputError(
                f"'{self.store.folder}' holds results of other pictures: those of "
                f"'{self.plan.data.name}' "
                "have changed.",
                argument="out",
                got=str(self.store.folder),
                remedy="Choose another folder with -o, or delete this one.",
            )
        content = {
            "model": self.model.name,
            "weights": self.source.weights,
            "warning": self.source.warning,
            "parameters": parameters,
            **facts,
        }
        self.store.write(content, self.model.name)

    def _row(self, subject: Subject | None, method: Entry, error: str | None) -> None:
        """The cost of a method, and its cells that are not there yet."""
        names = (self.model.name, method.name)
        self.tick(f"{self.model.name}: {method.name}")
        missing = [m for m in self.plan.metrics if not self.store.done(*names, m.name)]
        trial = None
        if missing and error is None and subject is not None:
            with _caught() as failed:
                trial = self._trial(subject, method)
            error = failed[0] if failed else None
        for metric in self.plan.metrics:
            self.tick(f"{self.model.name}: {method.name}, {metric.name}")
            if metric in missing:
                why = error or self.failures.get(metric.name)
                cell = {"error": why} if why else self._cell(trial, metric)
                self.store.write({**_named(names, metric), **cell}, *names, metric.name)

    def _trial(self, subject: Subject, method: Entry) -> Trial:
        """A method with its maps of the pictures computed and their cost measured."""
        from omenn.bench.trial import Trial
        from omenn.metrics.explainers import TRIVIAL

        trial = Trial(subject, self._explainers(method))
        if method.base not in TRIVIAL:
            gc.collect()  # what an earlier method left in cycles is not of this one
        spent: list[tuple[int, Spent]] = []

        @contextmanager
        def around(count: int) -> Iterator[None]:
            with spending(self.plan.device) as cost:
                yield
            spent.append((count, cost))

        trial.compute(around)
        names = (self.model.name, method.name)
        if not self.store.done(*names):
            peaks = [cost.memory for _, cost in spent if cost.memory is not None]
            each = [cost.seconds / count for count, cost in spent]
            cost = {"seconds": statistics.median(each), "memory": max(peaks, default=None)}
            self.store.write({"model": names[0], "method": names[1], **cost}, *names)
        return trial

    def _explainers(self, method: Entry) -> Callable[[nn.Module], Explainer]:
        import omenn
        from omenn.metrics.explainers import TRIVIAL, explainer

        options: dict[str, Any] = dict(method.options)
        if method.base not in TRIVIAL and "seed" in omenn.methods()[method.base].options:
            options.setdefault("seed", self.plan.seed)
        return lambda model: explainer(model, method.base, **options)

    def _cell(self, trial: Trial | None, metric: Entry) -> dict[str, Any]:
        from omenn.metrics import metric_registry

        assert trial is not None
        verdict = None
        with _caught() as failed, spending(self.plan.device) as spent:
            verdict = trial.judge(metric_registry.find(metric.base), **metric.options)
        if verdict is None:
            return {"error": failed[0]}
        return {
            "measures": {name: asdict(value) for name, value in verdict.measures.items()},
            "counted": dict(verdict.counted),
            "seconds": spent.seconds,
        }


def _named(names: tuple[str, str], metric: Entry) -> dict[str, str]:
    return {"model": names[0], "method": names[1], "metric": metric.name}


@contextmanager
def _caught() -> Iterator[list[str]]:
    """The reason why the block failed, in one line; empty if it did not fail."""
    import torch

    failed: list[str] = []
    try:
        yield failed
    except OutputError:  # of the folder: no cell could be stored
        raise
    except OmennError as error:
        failed.append(" ".join(str(error).split()))
    except (MemoryError, torch.OutOfMemoryError):
        failed.append("not enough memory. Lower chunk or limit.")
    except Exception as error:  # a method or a model of a user may raise anything
        failed.append(f"unexpected {type(error).__name__}: {reason(error)}.")


def fingerprint(model: nn.Module) -> str:
    """A digest of all parameters and buffers."""
    state = sorted(model.state_dict().items())
    return digest([tensor for _, tensor in state], [name for name, _ in state])
