"""Runs several methods on one picture; a method that fails does not stop the others."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omenn.bench.method_options import method_and_options, method_named, shown
from omenn.bench.plan_entries import words
from omenn.bench.profiling import Spent, spending
from omenn.cli.explain_images import (
    Request,
    asked_of,
    first_row,
    grid_of,
    read_input,
    short_name,
)
from omenn.cli.explain_results import described, marked
from omenn.cli.method_list import installed, ordered
from omenn.cli.terminal import Answer as Answered
from omenn.errors import InputError, OmennError, reason
from omenn.files.atomic import check_writable, write_files
from omenn.viz.comparison import Answer, Cell, Comparison, Row
from omenn.viz.panels import Case
from omenn.viz.wording import PROMISES, number

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from omenn import Explanation
    from omenn.models.sources import Source

USUAL = (
    "omenn",
    "omenn-clear",
    "cp-lrp",
    "attnlrp",
    "abslrp",
    "xgradient",
    "libragrad",
    "input-x-gradient",
    "integrated-gradients",
    "grad-cam",
)
"""The default methods: one of each family, none of them slow."""
ENDINGS = (".html", ".png")
TOP = 5


def chosen(text: str | None) -> dict[str, dict[str, Any]]:
    """The methods that ``--methods`` names, with their options.

    ``text`` is a list with commas, ``all``, or None for the usual ones.

    Raises:
        InputError: an unknown name or option, no name, one method with two sets of options.
    """
    if text is None or text.strip() == "all":
        return {name: {} for name in (_usual() if text is None else [m.name for m in ordered()])}
    found: dict[str, dict[str, Any]] = {}
    for word in words(text):
        name, options = method_and_options(word)
        if found.setdefault(name, options) != options:
            raise InputError(
                f"--methods names '{name}' with different options.",
                argument="methods",
                got=name,
                remedy="Choose one.",
            )
    if not found:
        raise InputError(
            "--methods names no method.",
            argument="methods",
            remedy="Write for example --methods omenn,abslrp.",
        )
    return found


def _usual() -> list[str]:
    import omenn

    known = omenn.methods()
    there = [known[name] for name in USUAL if name in known]
    return [method.name for method in there if method.extra is None or installed(method.extra)]


def check_output(out: Path) -> None:
    """Refuse an output that cannot be made, before any work.

    Raises:
        InputError: an unknown ending. OutputError: the place cannot be written.
    """
    if out.suffix.lower() not in ENDINGS:
        raise InputError(
            f"'{out}' ends in '{out.suffix}', expected {' or '.join(ENDINGS)}.",
            argument="out",
            got=out.suffix,
            expected=" or ".join(ENDINGS),
        )
    check_writable(out)


def steps(names: Collection[str], classes: int) -> int:
    """How often ``compare_file`` may call ``tick``."""
    return len(names) * (classes + 1)


def compare_file(
    file: Path,
    source: Source,
    request: Request,
    options: Mapping[str, Mapping[str, Any]],
    *,
    classes: int = TOP,
    sigma: float | None = None,
    device: str = "cpu",
    common_scale: bool = False,
    tick: Callable[[str], None] = lambda step: None,
) -> Comparison:
    """Explain one picture by every method in ``options``, the ``classes`` likeliest answers too.

    ``request`` says which answer is explained. ``sigma`` is the width of the smoothing in entries;
    None: a fortieth of the picture. ``common_scale``: see ``Comparison``. ``tick`` is called with a
    description before each step.

    Raises:
        InputError: the file is no picture, or every method failed. TargetError: an unknown answer.
    """
    import omenn

    tensor = read_input(file, source, device)
    logits = first_row(source, tensor)
    source = source.with_outputs(len(logits))
    asked, words = asked_of(request, source, logits)
    answers = _answers(source, logits, classes)
    rows = []
    for name, chosen in options.items():
        trial = _Trial(source, tensor, name, chosen, device)
        rows.append(trial.row(asked, words, answers, tick))
    there = [row.cell for row in rows if row.cell.case is not None]
    if not there:
        each = "; ".join(f"{row.method}: {row.cell.error}" for row in rows)
        raise InputError(f"every method failed. {each}", argument="methods")
    return Comparison(
        name=file.name,
        model=source.spec,
        target=words,
        logit=there[0].value("output"),
        image=source.modality.shown(tensor),
        rows=rows,
        answers=answers,
        weights=source.weights,
        warning=source.warning,
        sigma=source.modality.usual_smoothing(tuple(tensor.shape[-2:])) if sigma is None else sigma,
        footer=f"omenn {omenn.__version__} · {described(source)}",
        common_scale=common_scale,
    )


def _answers(source: Source, logits: torch.Tensor, count: int) -> tuple[Answer, ...]:
    """The likeliest answers, the first one first; none where there is only one output."""
    if len(logits) < 2 or not count:
        return ()
    shares = logits.double().softmax(0)
    indices = logits.topk(min(count, len(logits))).indices.tolist()
    return tuple(
        Answer(index, short_name(source, index), float(logits[index]), float(shares[index]))
        for index in indices
    )


class _Trial:
    """One method on one picture, with its cost."""

    def __init__(
        self,
        source: Source,
        tensor: torch.Tensor,
        name: str,
        options: Mapping[str, Any],
        device: str,
    ) -> None:
        self.source, self.tensor, self.device = source, tensor, device
        self.name, self.options = name, options
        self.spent: list[Spent] = []
        self.warm = False
        gc.collect()  # what an earlier method left in cycles is not of this one

    def row(
        self, asked: Any, words: str, answers: Sequence[Answer], tick: Callable[[str], None]
    ) -> Row:
        tick(f"{self.name}: {words}")
        cell = self.cell(asked, words)
        found: dict[Any, Cell] = {asked: cell} if isinstance(asked, int) else {}
        classes = []
        for answer in answers:
            tick(f"{self.name}: {answer.name}")
            if answer.index not in found:
                # what failed for one answer is not tried for each of the others
                one = cell if cell.error else self.cell(answer.index, answer.name)
                found[answer.index] = one
            classes.append(found[answer.index])
        method = method_named(self.name)
        peaks = [spent.memory for spent in self.spent if spent.memory is not None]
        return Row(
            method=self.name,
            # an option may take a part of the promise back
            promise=method.promise if cell.case is None else cell.case.explanation.promise,
            summary=method.summary,
            source=method.source,
            cell=cell,
            options=shown(self.options),
            classes=tuple(classes),
            seconds=statistics.median(s.seconds for s in self.spent) if self.spent else None,
            memory=int(statistics.median(peaks)) if peaks else None,
        )

    def cell(self, target: Any, words: str) -> Cell:
        import torch

        import omenn

        options: dict[str, Any] = self.source.named_output | dict(self.options)
        if self.name != "omenn":
            options["method"] = self.name
        explain = partial(omenn.explain, self.source.model, self.tensor, target, **options)
        try:
            if not self.warm:
                explain()  # what is done once, such as imports, is no cost of a map
                self.warm = True
            with spending(self.device) as spent:
                explanation = explain()
            found = Cell(self.case(explanation, words))
            found.entries()  # refuses a map without a picture
        except OmennError as error:
            return Cell(error=str(error))
        except (MemoryError, torch.OutOfMemoryError):
            return Cell(error="not enough memory.")
        except Exception as error:  # a method of a user may raise anything
            return Cell(error=f"unexpected {type(error).__name__}: {reason(error)}.")
        self.spent.append(spent)
        return found

    def case(self, explanation: Explanation, words: str) -> Case:
        source = self.source
        grid = grid_of(explanation, source, self.tensor)
        return Case("", source.spec, words, explanation, grid=grid, modality=source.modality)


def answer(comparison: Comparison, out: Path | None) -> Answered:
    """The answer of the command; ``out`` is the file that was written, if any."""
    files = [] if out is None else [str(out)]
    said = [table(comparison), *remarks(comparison, out)]
    return Answered(record(comparison) | {"files": files}, said, kept(comparison))


def kept(comparison: Comparison) -> bool:
    """Whether every sum that is promised to be exact is."""
    cells = [(row, cell) for row in comparison.rows for cell in (row.cell, *row.classes)]
    return all(c.exact for row, c in cells if row.promise == "exact" and c.case is not None)


def write(out: Path, comparison: Comparison) -> None:
    """Write the page or the picture, whole or not at all."""
    from omenn.viz.compare_figure import compare_png
    from omenn.viz.compare_page import compare_page

    drawn = out.suffix.lower() == ".png"
    write_files({out: compare_png(comparison) if drawn else compare_page(comparison).encode()})


def remarks(comparison: Comparison, out: Path | None) -> list[str]:
    """The lines below the table."""
    said = [comparison.warning] if comparison.warning else []
    said += [f"{row.method}: {row.cell.error}" for row in comparison.rows if row.cell.error]
    if not kept(comparison):
        said.append("NOT EXACT: a sum that is promised to be exact misses the logit.")
    if out is None:
        return [*said, "To see the maps, add -o with the name of an .html or .png file."]
    return [*said, f"wrote {out}"]


def record(comparison: Comparison) -> dict[str, Any]:
    """The numbers for ``--json``."""
    return {
        "input": comparison.name,
        "model": comparison.model,
        "weights": comparison.weights,
        "warning": comparison.warning,
        "answer": comparison.target,
        "output": comparison.logit,
        "answers": [
            {
                "target": answer.index,
                "answer": answer.name,
                "logit": answer.logit,
                "probability": answer.probability,
            }
            for answer in comparison.answers
        ],
        "methods": [
            {
                "method": row.method,
                "promise": row.promise,
                "options": row.options,
                **_numbers(row.cell),
                "seconds": row.seconds,
                "peak_memory_bytes": row.memory,
                "answers": [_numbers(cell) for cell in row.classes],
            }
            for row in comparison.rows
        ],
    }


def _numbers(cell: Cell) -> dict[str, Any]:
    return {
        "sum": cell.value("total"),
        "residual": cell.value("residual"),
        "exact": cell.exact,
        "error": cell.error or None,
    }


def table(comparison: Comparison) -> Table:
    """The numbers of the explained answer for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    from omenn.viz.wording import memory, seconds

    title = f"{comparison.name}, {comparison.model}: {comparison.target}, logit "
    listed = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title=escape(title) + number(comparison.logit),
        title_justify="left",
        title_style="",
    )
    listed.add_column("method", style="bold", no_wrap=True)
    listed.add_column("promise", no_wrap=True)
    for heading in ("sum", "residual", "time", "memory"):
        listed.add_column(heading, justify="right", no_wrap=True)
    listed.add_column("")
    for row in comparison.rows:
        cell = row.cell
        there = cell.case is not None
        listed.add_row(
            escape(row.method),
            PROMISES[row.promise],
            number(cell.value("total")) if there else "–",
            number(cell.value("residual"), digits=2) if there else "–",
            seconds(row.seconds),
            memory(row.memory),
            "" if there and cell.said.words in PROMISES[row.promise] else marked(cell.said),
        )
    return listed
