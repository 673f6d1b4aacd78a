"""The search: judge every candidate on one half of the pictures, and the best on the other half."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omenn.bench.cells import fingerprint
from omenn.check import flag, positive, quoted, whole
from omenn.engine.digest import digest
from omenn.errors import InputError
from omenn.metrics.explainers import TRIVIAL
from omenn.metrics.maps import logits_of
from omenn.metrics.score import Measured
from omenn.tuning.candidates import Candidate, chosen_from
from omenn.tuning.costs import Costs, Extent, extent, operations, seconds
from omenn.tuning.judging import Judge, Judged, Pictures, Settings, said
from omenn.tuning.small_samples import measured
from omenn.tuning.tuned import FEW, Row, Tuned, shown
from omenn.tuning.tuning_store import TuningStore

LEAST = 6
"""Pictures a half, at the least: of fewer, equal maps are told apart by chance too often (six
differences of one sign: one case in 32)."""

Tick = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Search:
    """A search that can be carried out; ``extent`` says how far it goes.

    ``order``: the pictures that are used, the first half to choose by. ``costs``: passes of a map.
    """

    judge: Judge
    pictures: Pictures
    candidates: Sequence[Candidate]
    order: Sequence[int]
    extent: Extent
    costs: Mapping[str, float]
    errors: Mapping[str, str]
    check: bool
    store: TuningStore

    @property
    def steps(self) -> int:
        """How often :meth:`run` calls ``tick``."""
        return 2 * self.extent.pictures

    def run(self, tick: Tick = lambda step: None) -> Tuned:
        """Judge what is not judged yet.

        Raises:
            InputError: the model answers the same whatever is replaced, so nothing can be measured.
            OmennError: the default fails on a picture.
        """
        count = self.extent.pictures
        errors = dict(self.errors)
        first = self._half("choose", self.order[:count], errors, tick)
        scores = {c.name: _column(first, c.name) for c in self._left(errors)}
        best = max(self._left(errors), key=lambda c: float(scores[c.name].mean()))
        finalists = list(dict.fromkeys(c.name for c in (self.candidates[0], best)))
        second = self._half("held", self.order[count:], errors, tick, finalists)
        return _result(self, first, second, best, errors)

    def _left(self, errors: Mapping[str, str]) -> list[Candidate]:
        """The candidates that have not failed and are not too dear."""
        out = self.extent.left_out | errors.keys()
        return [c for c in self.candidates if c.name not in out]

    def _half(
        self,
        half: str,
        order: Sequence[int],
        errors: dict[str, str],
        tick: Tick,
        finalists: Sequence[str] | None = None,
    ) -> list[Judged]:
        """Judge the pictures of a half; ``errors`` gets the candidates that fail."""
        found = []
        what = "choosing" if finalists is None else "held out"
        for place, index in enumerate(order, 1):
            tick(f"{what}, picture {place} of {len(order)}")
            names = [c.name for c in self._left(errors)]
            names = names if finalists is None else [n for n in finalists if n in names]
            one = self._one(half, index, names)
            if error := one.errors.get(self.candidates[0].name):
                raise InputError(
                    f"the default '{self.candidates[0].name}' fails on picture {index}: {error}",
                    argument="against",
                    got=self.candidates[0].name,
                    remedy="Leave that picture out, or choose another default.",
                )
            errors |= {name: f"picture {index}: {text}" for name, text in one.errors.items()}
            found.append(one)
        silent = sum(one.level for one in found)
        if len(found) - silent < LEAST:
            raise InputError(
                f"the model gives the same answer whatever is replaced in {silent} of "
                f"{len(found)} pictures, so no map can be judged by them.",
                argument="model",
                got=f"{silent} of {len(found)} pictures without a change",
                expected=f"at least {LEAST} pictures in each half that it answers",
                remedy="Check the model and the pictures, or replace more of them (share).",
            )
        return [one for one in found if not one.level]

    def _one(self, half: str, index: int, names: Sequence[str]) -> Judged:
        """One picture, from the store if it is there."""
        image = self.pictures[index]
        key = digest([image.cpu()])
        one = self.store.read(half, key)
        if one is not None and (one.level or set(names) <= {*one.scores, *one.errors}):
            return one
        asked = [c for c in self.candidates if c.name in names]
        if half == "choose":
            one = self.judge.chosen_by(image, asked)
        else:
            one = self.judge.held_out(image, asked, self.check)
        self.store.write(one, half, key)
        return one


def prepared(
    model: Any,
    images: Any,
    *,
    candidates: str | Sequence[str] | None = None,
    against: str | None = None,
    passes: int | None = None,
    seconds: float | None = None,
    check: bool = True,
    output: Any = None,
    folder: Path | None = None,
    **settings: Any,
) -> Search:
    """A search from the arguments of :func:`omenn.tune`; errors: see there."""
    budget = _budget(passes, seconds)
    flag("check", check)
    chosen = chosen_from(candidates, against)
    judge = Judge(model, output, Settings(**settings))
    pictures = Pictures(images)
    question = {
        "candidates": [c.name for c in chosen],
        "settings": asdict(judge.settings),
        "check": check,
        "budget": list(budget),
        "pictures": len(pictures),
        "output": quoted(output),
        "parameters": fingerprint(model) if isinstance(model, nn.Module) else None,
    }
    store = TuningStore(folder, question)
    generator = torch.Generator().manual_seed(judge.settings.seed)
    order = torch.randperm(len(pictures), generator=generator).tolist()
    known = store.known()
    if known is None:
        _check_enough(pictures, order)
        costs, passed, errors = _costs(judge, pictures, order, chosen, check, budget[1])
        far = _extent(costs, budget[0], pictures, order)
        known = {
            "pictures": far.pictures,
            "left_out": sorted(far.left_out),
            "costs": passed,
            "errors": errors,
        }
        store.begin(known)
    far = Extent(known["pictures"], frozenset(known["left_out"]))
    used = pictures.different(order, 2 * far.pictures)
    return Search(judge, pictures, chosen, used, far, known["costs"], known["errors"], check, store)


def _budget(passes: int | None, seconds: float | None) -> tuple[float | None, str]:
    """The budget and its unit."""
    if passes is not None and seconds is not None:
        raise InputError(
            "passes and seconds are both given.",
            argument="seconds",
            got=str(seconds),
            expected="one budget",
            remedy="Omit one of them.",
        )
    if seconds is not None:
        return positive("seconds", seconds), "seconds"
    return (None if passes is None else float(whole("passes", passes, 1))), "passes"


def _check_enough(pictures: Pictures, order: Sequence[int]) -> None:
    """Refuse too few different pictures."""
    there = len(pictures.different(order, 2 * LEAST))
    if there < 2 * LEAST:
        raise InputError(
            f"there are too few pictures: {len(pictures)} given, {there} different. Half of them "
            f"are to choose by, the others are held out, and each half needs {LEAST}.",
            argument="images",
            got=f"{there} different pictures",
            expected=f"at least {2 * LEAST}",
            remedy="Give more pictures.",
        )


def _extent(costs: Costs, budget: float | None, pictures: Pictures, order: Sequence[int]) -> Extent:
    """How far the search goes; refuses a budget that is too small. Copies count once."""
    far = extent(costs, budget, len(pictures) // 2, LEAST)
    different = len(pictures.different(order, 2 * far.pictures))
    return far if different == 2 * far.pictures else extent(costs, budget, different // 2, LEAST)


def _costs(
    judge: Judge,
    pictures: Pictures,
    order: Sequence[int],
    candidates: Sequence[Candidate],
    check: bool,
    unit: str,
) -> tuple[Costs, dict[str, float], dict[str, str]]:
    """What everything costs on the first picture, the passes of a map, and what fails."""
    image = pictures[order[0]]
    target = int(logits_of(judge.f, image).argmax())
    one = operations(partial(logits_of, judge.f, image))
    errors: dict[str, str] = {}
    passes: dict[str, float] = {}
    maps: dict[str, float] = {}
    for number, candidate in enumerate(candidates):
        call: Callable[[], Any] = partial(judge.map_of, candidate, image, target)
        try:
            passes[candidate.name] = operations(call) / one
            maps[candidate.name] = seconds(call) if unit == "seconds" else passes[candidate.name]
        except Exception as error:
            if not number:  # nothing can be compared with it
                raise
            errors[candidate.name] = said(error)
    s = judge.settings
    answers, checks = s.sets + 2.0, 2.0 * s.points
    if unit == "seconds":
        spent = seconds(partial(judge.asked, image))
        answers, checks = spent, checks * spent / answers
    trivial = len(TRIVIAL)
    return Costs(unit, answers, maps, checks if check else 0.0, trivial), passes, errors


def _column(judged: Sequence[Judged], name: str, of: str = "scores") -> Tensor:
    values = [getattr(one, of)[name] for one in judged]
    return torch.tensor(values, dtype=torch.float64)


def _result(
    search: Search,
    first: Sequence[Judged],
    second: Sequence[Judged],
    best: Candidate,
    errors: Mapping[str, str],
) -> Tuned:
    """The table and the verdict."""
    seed = search.judge.settings.seed
    default = search.candidates[0]
    column = partial(_measured, seed=seed, errors=errors)
    rows = []
    for candidate in search.candidates:
        name = candidate.name
        finalist = name in (default.name, best.name)
        dear = name in search.extent.left_out
        rows.append(
            Row(
                name,
                "default" if candidate is default else "candidate",
                None if dear else column(first, name),
                column(second, name) if finalist else None,
                column(second, name, "checks") if finalist and search.check else None,
                search.costs.get(name),
                "left out: too dear for the budget" if dear else errors.get(name, ""),
            )
        )
    for name in TRIVIAL:
        checked = column(second, name, "checks") if search.check else None
        rows.append(Row(name, "trivial", None, column(second, name), checked))
    gain = _difference(second, default, best, "scores", seed, errors)
    checked = _difference(second, default, best, "checks", seed, errors) if search.check else None
    found = Tuned(
        default,
        best,
        gain,
        checked,
        rows,
        search.extent.pictures,
        search.order[search.extent.pictures :][:2],
        asdict(search.judge.settings),
    )
    return replace(found, remarks=_remarks(search, found, len(first), len(second), errors))


def _measured(
    judged: Sequence[Judged],
    name: str,
    of: str = "scores",
    *,
    seed: int,
    errors: Mapping[str, str],
) -> Measured | None:
    if name in errors:
        return None
    return measured(_column(judged, name, of), seed=seed)


def _difference(
    judged: Sequence[Judged],
    default: Candidate,
    best: Candidate,
    of: str,
    seed: int,
    errors: Mapping[str, str],
) -> Measured | None:
    """Picture by picture, the best candidate minus the default."""
    if best is default or best.name in errors:
        return None
    return measured(_column(judged, best.name, of) - _column(judged, default.name, of), seed=seed)


def _remarks(
    search: Search, found: Tuned, first: int, second: int, errors: Mapping[str, str]
) -> list[str]:
    """What a reader must know beside the verdict."""
    said = []
    used, given = 2 * search.extent.pictures, len(search.pictures)
    if used < given:
        said.append(f"{used} of {given} pictures are used.")
    if silent := used - first - second:
        said.append(f"{silent} pictures say nothing: the model answers the same without parts.")
    if second < FEW:
        said.append(f"{second} held-out pictures are few: with more, the interval is narrower.")
    if found.best.name in errors:
        said.append(f"{found.best.name} was the best to choose by, but failed on a held-out one.")
    by_name = {row.name: row for row in found.rows}
    there = {name: row.held for name, row in by_name.items() if row.held is not None}
    trivial = {name: there[name].value for name in TRIVIAL if name in there}
    largest = max(trivial, key=trivial.__getitem__)
    held = there.get(found.chosen.name)
    if held is not None and held.value <= trivial[largest]:
        said.append(
            f"The trivial map '{largest}' has a score of {trivial[largest]:.3f}, and "
            f"{found.chosen.name} has {held.value:.3f}: it says no more than a map that ignores "
            "the model."
        )
    return [*said, *_contradiction(found)]


def _contradiction(found: Tuned) -> list[str]:
    """A word about insertion minus deletion, where it says something else than the score."""
    second = found.checked
    if second is None or not (second.high < 0 if found.better else second.low > 0):
        return []
    word = "worse" if found.better else "better"
    return [
        f"By insertion minus deletion, {found.best.name} is {word} than {found.default.name}: "
        f"{shown(second, signed=True)}."
    ]
