"""Runs ``omenn tune``: pictures from disk, the search, and its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omenn.cli.explain_images import Request, explain_tensor, first_row
from omenn.cli.explain_results import described
from omenn.cli.terminal import Answer
from omenn.data.folders import pictures_among
from omenn.files.atomic import check_writable, write_files
from omenn.files.json_text import as_json
from omenn.models import sources
from omenn.models.sources import Source
from omenn.tuning import Candidate, Search, Tuned, prepared
from omenn.tuning.tuned import shown
from omenn.viz.comparison import Cell
from omenn.viz.panels import Case
from omenn.viz.tune_page import Example, Line, TunePage, tune_page

if TYPE_CHECKING:
    import torch
    from rich.table import Table

METHOD, PAGE, FIGURES = "method.toml", "index.html", "results.json"


@dataclass(frozen=True)
class Asked:
    """The options of the command that :func:`omenn.tune` has as well."""

    candidates: str | None
    against: str | None
    passes: int | None
    seconds: float | None
    sets: int
    across: int
    fill: str
    check: bool
    seed: int


class Prepared:
    """Picture files as the model takes them, read on access."""

    def __init__(self, files: Sequence[Path], source: Source, device: str) -> None:
        self.files, self.modality, self.device = files, source.modality, device

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> torch.Tensor:
        return self.modality.from_user(self.files[index]).to(self.device)


def read(
    words: Sequence[str],
    model: str | None,
    weights: Path | None,
    seed: int,
    device: str,
    output: str | int | None,
) -> tuple[Source, list[Path]]:
    """The model and the pictures.

    Raises:
        InputError: no picture is named, or a folder has none.
        ModelError, MissingExtra, WeightsError: the model cannot be built.
    """
    spec, places = (words[0], words[1:]) if model is None else (model, words)
    source = sources.load(spec, weights=weights, seed=seed, device=device, output=output)
    return source, pictures_among(map(Path, places))


def prepare(source: Source, files: Sequence[Path], asked: Asked, out: Path, device: str) -> Search:
    """The search; refuses what cannot be carried out.

    Raises:
        InputError, ModelError, OutputError: as :func:`omenn.tune`.
    """
    for name in (METHOD, PAGE, FIGURES):
        check_writable(out / name)
    pictures = Prepared(files, source, device)
    if pictures.files:
        first_row(source, pictures[0])  # its errors name the model and say what to write
    return prepared(source.model, pictures, output=source.output, folder=out, **asdict(asked))


def run(
    search: Search,
    source: Source,
    files: Sequence[Path],
    out: Path,
    device: str,
    tick: Callable[[str], None],
) -> Answer:
    """Carry out the search and write its files.

    Raises:
        InputError: as :meth:`Search.run`. OutputError: something cannot be written.
    """
    found = search.run(tick)
    tick("maps of two held-out pictures")
    examples = [_example(found, source, files[k], device) for k in found.examples]
    record = {"model": source.spec, "weights": source.weights, **found.record()}
    page = _page(found, source, examples)
    written = {
        out / PAGE: tune_page(page).encode(),
        out / FIGURES: (as_json(record) + "\n").encode(),
        out / METHOD: found.toml().encode(),
    }
    write_files(written)
    names = [str(file) for file in written]
    use = f"omenn explain PICTURE -m {source.spec} --method {out / METHOD}"
    lines = [found.verdict, *filter(None, [source.warning]), *found.remarks]
    lines += [*(f"wrote {name}" for name in names), f"To use it: {use}"]
    return Answer(record | {"files": names}, [table(found, source.spec), *lines])


def _example(found: Tuned, source: Source, file: Path, device: str) -> Example:
    """The maps of a held-out picture by the default and by the best candidate."""
    tensor = source.modality.from_user(file).to(device)
    finalists = list({one.name: one for one in (found.default, found.best)}.values())
    cases = [_case(file, tensor, source, one) for one in finalists]
    return Example(
        name=file.name,
        target=cases[0].target,
        image=cases[0].image,
        maps={one.name: Cell(case) for one, case in zip(finalists, cases, strict=True)},
    )


def _case(file: Path, tensor: torch.Tensor, source: Source, one: Candidate) -> Case:
    request = Request(method=one.method, options=one.options)
    return explain_tensor(file.name, tensor, source, request)


def _page(found: Tuned, source: Source, examples: Sequence[Example]) -> TunePage:
    import omenn

    size = tuple(source.modality.size[-2:])
    return TunePage(
        model=source.spec,
        verdict=found.verdict,
        better=found.better,
        default=found.default.name,
        best=found.best.name,
        chosen=found.chosen.name,
        lines=lines(found),
        examples=examples,
        pictures=found.pictures,
        settings=found.settings,
        remarks=found.remarks,
        warning=source.warning,
        sigma=source.modality.usual_smoothing(size),
        toml=found.toml(),
        footer=f"omenn {omenn.__version__} · {described(source)}",
    )


def lines(found: Tuned) -> list[Line]:
    """The rows of the table in words, for the page and the terminal."""
    return [
        Line(
            row.name,
            row.kind,
            chosen=shown(row.chosen),
            held=shown(row.held),
            check=shown(row.check),
            passes="–" if row.passes is None else f"{row.passes:.1f}",
            error=row.error,
        )
        for row in found.rows
    ]


def table(found: Tuned, model: str) -> Table:
    """The figures for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    title = f"{model}: faithfulness of maps, {found.pictures} pictures in each half"
    listed = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title=escape(title),
        title_justify="left",
        title_style="",
    )
    listed.add_column("map", no_wrap=True)
    for heading in ("to choose by", "held out", "insertion − deletion", "passes"):
        listed.add_column(heading, justify="right", no_wrap=True)
    listed.add_column("")
    for line in lines(found):
        bold = line.name in (found.default.name, found.best.name)
        name = f"[bold]{escape(line.name)}[/]" if bold else escape(line.name)
        words = escape(line.error) or ("default" if line.kind == "default" else "")
        words = words or ("trivial" if line.kind == "trivial" else "")
        words = words or ("best" if line.name == found.best.name else "")
        listed.add_row(name, line.chosen, line.held, line.check, line.passes, words)
    return listed
