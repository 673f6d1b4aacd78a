"""What explained pictures become: a table in the terminal, JSON, and files by their ending."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omenn.errors import InputError
from omenn.run.photographs import Request, certify_file, explain_file
from omenn.show.panels import Case, number
from omenn.show.store import ENDINGS
from omenn.show.writing import check_writable, write_files

if TYPE_CHECKING:
    from rich.table import Table

    from omenn import Certificate
    from omenn.models.sources import Source
    from omenn.show.page import Report


def check_output(out: Path, count: int, smooth: float | None) -> None:
    """Refuse an output that cannot be made, before any work.

    Raises:
        InputError: an unknown ending, one file for several pictures.
        OutputError: the place cannot be written.
    """
    ending = out.suffix.lower()
    if smooth is not None and not math.isfinite(smooth):
        raise InputError(f"--smooth is {smooth}, expected a number of entries such as 2.5.")
    if out.is_dir() or not ending:
        check_writable(out / "index.html")
        return
    if ending not in ENDINGS:
        raise InputError(
            f"'{out}' ends in '{out.suffix}', expected {', '.join(ENDINGS)} or a folder."
        )
    if count > 1 and ending != ".html":
        raise InputError(
            f"{count} pictures do not fit into '{out}'. Give a folder, or one file that ends in "
            ".html."
        )
    if smooth and ending in {".safetensors", ".json"}:
        raise InputError(
            f"--smooth changes pictures only; '{out}' holds the exact numbers. Leave it away."
        )
    check_writable(out)


def explain_and_write(
    files: Sequence[Path],
    source: Source,
    request: Request,
    out: Path | None,
    *,
    smooth: float | None,
    device: str,
    tick: Callable[[str], None],
) -> tuple[list[Case], list[Path]]:
    """Explain every picture, then write ``out`` if there is one: the cases, the files written.

    Nothing is written before everything is computed. ``tick`` is told what each step is about.
    """
    drawn = out is not None and draws(out)
    cases: list[Case] = []
    for file in files:
        tick(file.name)
        cases.append(explain_file(file, source, request, device, rival=drawn))
    if out is None:
        return cases, []
    tick(f"writing {out}")
    if not drawn:
        return cases, write(out, cases, None)
    certificate = certify_file(files[0], source, request, device)
    return cases, write(out, cases, report(cases, source, smooth, certificate))


def exact(cases: Sequence[Case]) -> bool:
    """Whether every matrix of these cases sums to its number, that of the runner-up too."""
    return all(c.explanation.exact and (c.contrast is None or c.contrast.exact) for c in cases)


def remarks(cases: Sequence[Case], written: Sequence[Path]) -> list[str]:
    """What is said below the table."""
    said = [cases[0].warning] if cases[0].warning else []
    if not exact(cases):
        said.append("NOT EXACT: a matrix misses its logit by more than rounding can.")
    if not written:
        return [*said, "To see it, add -o with the name of a .png or .html file."]
    return [*said, *(f"wrote {file}" for file in written)]


def draws(out: Path) -> bool:
    """Whether the output shows pictures, and not numbers alone."""
    return out.suffix.lower() not in {".safetensors", ".json"} or out.is_dir()


def report(
    cases: Sequence[Case], source: Source, smooth: float | None, certificate: Certificate
) -> Report:
    """The page around explained pictures, with the certificate for the first of them.

    ``smooth`` is the width of the Gaussian in entries of the matrix; None: a fortieth of its side.
    """
    import omenn
    from omenn.show.page import Report
    from omenn.show.panels import matrix_of

    first = cases[0].explanation
    if smooth is None:
        smooth = round(min(matrix_of(first, 0).shape) / 40, 1)
        smooth = smooth if smooth >= 0.5 else 0.0
    preprocessing = source.preprocessing
    height, width = preprocessing.size
    return Report(
        title=f"What {source.spec} saw",
        introduction="For every picture one matrix: its entries add up to the number that decided.",
        cases=cases,
        certificates=[(f"{source.spec} on {cases[0].name}", certificate.exact, str(certificate))],
        sigma=smooth,
        footer=(
            f"omenn {omenn.__version__} · {source.spec} · {source.weights} · pictures as "
            f"{width} × {height} pixels ({preprocessing.source}) · constants: "
            f"{first.bias_placement}"
        ),
    )


def write(out: Path, cases: Sequence[Case], report: Report | None) -> list[Path]:
    """Write the result where ``check_output`` agreed; which files there are now."""
    files = contents(out, cases, report)
    write_files(files)
    return list(files)


def contents(out: Path, cases: Sequence[Case], report: Report | None) -> dict[Path, bytes]:
    """Every file of the result with its content, nothing written yet."""
    from omenn.show import figure, page, store

    ending = out.suffix.lower()
    if report is None:
        explanation = cases[0].explanation
        if ending == ".json":
            return {out: store.to_json(explanation, **record(cases[0]))}
        return {out: store.to_safetensors(explanation)}
    if ending == ".png" and not out.is_dir():
        return {out: figure.figure_png(cases[0], sigma=report.sigma)}
    if ending == ".html" and not out.is_dir():
        return {out: page.page(report).encode()}
    files = {
        out / f"{stem}.png": figure.figure_png(case, sigma=report.sigma)
        for stem, case in zip(_stems(cases), cases, strict=True)
    }
    return files | {out / "index.html": page.page(report).encode()}


def record(case: Case) -> dict[str, Any]:
    """The numbers of one case for ``--json``."""
    result, index = case.explanation, case.index
    sources = {name: float(share[index]) for name, share in result.sources.items()}
    return {
        "input": case.name,
        "model": case.model,
        "weights": case.weights,
        "warning": case.warning,
        "target": int(result.target[index]),
        "answer": case.target,
        "output": float(result.output[index]),
        "sum": float(result.total[index]),
        "residual": float(result.residual[index]),
        "exact": bool(result.exact),
        "bias": float(result.bias_share[index]),
        "located": float(result.located),
        "sources": sources,
        "seconds": case.seconds,
    }


def table(cases: Sequence[Case]) -> Table:
    """The numbers of the cases for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("input", "model", "answer"):
        shown.add_column(heading, overflow="fold")
    for heading in ("logit", "ΣC", "residual", "ΣC_b", "located", "time"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("exact")
    for case in cases:
        result, index = case.explanation, case.index
        shown.add_row(
            escape(case.name),
            escape(case.model),
            escape(case.target),
            number(float(result.output[index])),
            number(float(result.total[index])),
            number(float(result.residual[index]), digits=2),
            number(float(result.bias_share[index])),
            f"{100 * float(result.located):.0f} %",
            "" if case.seconds is None else f"{case.seconds:.2f} s",
            "[green]yes[/]" if result.exact else "[red]no[/]",
        )
    return shown


def _stems(cases: Sequence[Case]) -> list[str]:
    """File names without ending, all different, also where letter case does not count."""
    stems: list[str] = []
    for case in cases:
        stem = Path(case.name).stem or "picture"
        taken = {other.casefold() for other in stems}
        tries = (stem if attempt == 1 else f"{stem}-{attempt}" for attempt in range(1, 10**6))
        stems.append(next(name for name in tries if name.casefold() not in taken))
    return stems
