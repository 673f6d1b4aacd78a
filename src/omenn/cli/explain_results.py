"""Output of explained pictures: a table in the terminal, JSON, and files by their ending."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omenn.cli.calibrated_regions import lines, read_calibration, stated_regions
from omenn.cli.explain_images import Request, certify_file, explain_file
from omenn.cli.terminal import Answer
from omenn.errors import InputError
from omenn.files.atomic import check_writable, write_files
from omenn.files.printable import file_name
from omenn.files.reading import is_folder
from omenn.viz.explanation_files import ENDINGS
from omenn.viz.panels import Case
from omenn.viz.wording import (
    Verdict,
    collects,
    introduced,
    is_omenn,
    number,
    symbol,
    verdict,
)

LARGEST = 10
"""How many units of an explanation ``--json`` lists by name."""

if TYPE_CHECKING:
    from rich.table import Table

    from omenn import Certificate, Explanation
    from omenn.models.sources import Source
    from omenn.viz.page import Report


def check_output(out: Path, count: int, smooth: float | None) -> None:
    """Refuse an output that cannot be made, before any work.

    Raises:
        InputError: an unknown ending, one file for several pictures.
        OutputError: the place cannot be written.
    """
    ending = out.suffix.lower()
    if is_folder(out) or not ending:
        check_writable(out / "index.html")
        return
    if ending not in ENDINGS:
        raise InputError(
            f"'{out}' ends in '{out.suffix}', expected {', '.join(ENDINGS)} or a folder.",
            argument="out",
            got=out.suffix,
            expected=", ".join(ENDINGS),
        )
    if count > 1 and ending != ".html":
        raise InputError(
            f"{count} pictures do not fit into '{out}'.",
            argument="out",
            got=str(out),
            remedy="Give a folder, or one file that ends in .html.",
        )
    if smooth and ending in {".safetensors", ".json"}:
        raise InputError(
            f"--smooth changes pictures only; '{out}' has the exact numbers.",
            argument="smooth",
            remedy="Omit it.",
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
    calibration: Path | None = None,
) -> Answer:
    """Explain every picture, then write ``out`` if there is one.

    Nothing is written before everything is computed. ``tick`` is called with a description before
    each step. ``calibration``: a file of ``omenn calibrate``, whose intervals are said as well.
    """
    drawn = out is not None and draws(out)
    cases: list[Case] = []
    known = read_calibration(calibration, source, request) if calibration else None
    for file in files:
        tick(file.name)
        case = explain_file(file, source, request, device, rival=drawn)
        if known is not None:
            case = replace(case, regions=stated_regions(file, source, request, device, known))
        cases.append(case)
    written: list[Path] = []
    if out is not None:
        tick(f"writing {out}")
        around = None
        if drawn:
            exact = request.method == "omenn"
            certificate = certify_file(files[0], source, request, device) if exact else None
            around = report(cases, source, smooth, certificate)
        written = write(out, cases, around, smooth)
    return _answer(cases, written)


def _answer(cases: Sequence[Case], written: Sequence[Path]) -> Answer:
    results = [record(case) for case in cases]
    shown = [table(cases), *remarks(cases, written)]
    return Answer({"results": results, "files": [str(f) for f in written]}, shown, kept(cases))


def kept(cases: Sequence[Case]) -> bool:
    """Whether every sum that is promised to be exact is, before it was changed afterwards."""
    results = [
        result
        for case in cases
        for result in (case.before or case.explanation, case.readable, case.contrast)
    ]
    return all(r.exact for r in results if r and r.promise == "exact" and not r.changed)


def remarks(cases: Sequence[Case], written: Sequence[Path]) -> list[str]:
    """The lines below the table."""
    said = [cases[0].warning] if cases[0].warning else []
    if not kept(cases):
        causes = [case.explanation.cause for case in cases if case.explanation.cause]
        why = f" The cause: {causes[0]}." if causes else ""
        said.append(f"NOT EXACT: a matrix misses its logit by more than rounding error.{why}")
    said += _about_readable(cases)
    if of := cases[0].explanation.explains:
        said.append(f"the model returns probabilities: the explanation is of {of}.")
    changed = [case for case in cases if case.explanation.changed]
    if changed:
        steps = ", ".join(changed[0].explanation.changed)
        lost = any(verdict(case.explanation).kind == "warn" for case in changed)
        said.append(
            f"processed: {steps}."
            + (" The sum is no longer the logit; the residual says by how much." if lost else "")
        )
    for case in cases:
        said += lines(case.name, case.regions) if case.regions else []
    if not written:
        return [*said, "To see it, add -o with the name of a .png or .html file."]
    return [*said, *(f"wrote {file}" for file in written)]


def _about_readable(cases: Sequence[Case]) -> list[str]:
    """What the sums of the readable maps are, or why there are none."""
    maps = [case.readable for case in cases if case.readable is not None]
    said = []
    if maps:
        sums = "the same logit" if len(cases) == 1 else "the same logits"
        missed = number(max(float(e.residual.detach().abs().max()) for e in maps), digits=2)
        words = f"add up to {sums}, residual at most {missed}"
        if not all(e.exact for e in maps):
            words = f"do not add up to {sums}: NOT EXACT, residual up to {missed}"
        said.append(f"readable maps, by {maps[0].method}: the entries {words}.")
    reasons = dict.fromkeys(case.unreadable for case in cases if case.unreadable)
    return said + [f"no readable map, {why}" for why in reasons]


def shows_both(out: Path | None) -> bool:
    """Whether the output has a place for a second map: one .safetensors file is one explanation."""
    return out is None or out.suffix.lower() != ".safetensors" or is_folder(out)


def draws(out: Path) -> bool:
    """Whether the output shows pictures, and not numbers alone."""
    return out.suffix.lower() not in {".safetensors", ".json"} or is_folder(out)


def report(
    cases: Sequence[Case],
    source: Source,
    smooth: float | None,
    certificate: Certificate | None,
) -> Report:
    """The page around explained pictures, with the certificate for the first of them if any.

    ``smooth`` is the width of the Gaussian in entries of the matrix; None: a fortieth of its side,
    or none where the matrix was changed already.
    """
    import omenn
    from omenn.viz.flat_map import chosen
    from omenn.viz.page import Report

    first = cases[0].explanation
    if smooth is None:
        shape = tuple(chosen(first.matrix).shape[1:])
        smooth = 0.0 if first.changed else source.modality.usual_smoothing(shape)
    constants = f" · constants: {first.bias_placement}" if is_omenn(first) else ""
    found = [] if certificate is None else [certificate]
    about = f"{source.spec} on {cases[0].name}"
    if first.changed:
        about += ", before the map was changed"
    return Report(
        title=f"What {source.spec} saw",
        introduction=_introduction(cases),
        cases=cases,
        certificates=[(about, one.exact, str(one)) for one in found],
        sigma=smooth,
        footer=f"omenn {omenn.__version__} · {described(source)}{constants}",
    )


def _introduction(cases: Sequence[Case]) -> str:
    if all(case.readable is None for case in cases):
        return f"For every input one matrix{introduced(cases[0].explanation)}."
    of = f", {cases[0].explanation.explains}" if cases[0].explanation.explains else ""
    return (
        f"For every input two maps whose entries add up to the number that decided{of}: one to "
        "look at, one of the network's own weights."
    )


def described(source: Source) -> str:
    """Model, weights and input, for the footer of a page."""
    return f"{source.spec} · {source.weights} · {source.modality.description}"


def write(
    out: Path, cases: Sequence[Case], report: Report | None, smooth: float | None = None
) -> list[Path]:
    """Write the result to the checked place; returns the files. ``smooth``: what was asked for."""
    files = contents(out, cases, report, smooth)
    write_files(files)
    return list(files)


def contents(
    out: Path, cases: Sequence[Case], report: Report | None, smooth: float | None
) -> dict[Path, bytes]:
    """Every file of the result with its content, nothing written yet."""
    from omenn.viz import explanation_files, figure, page

    ending = out.suffix.lower()
    if report is None:
        explanation = cases[0].explanation
        if ending == ".json":
            numbers, readable = record(cases[0]), cases[0].readable
            if readable is not None:
                numbers["readable"]["matrix"] = explanation_files.nested(readable.matrix)
            return {out: explanation_files.to_json(explanation, **numbers)}
        return {out: explanation_files.to_safetensors(explanation)}
    if ending == ".png" and not is_folder(out):
        sigma = figure_sigma(cases[0], report.sigma, smooth)
        return {out: figure.figure_png(cases[0], sigma=sigma)}
    if ending == ".html" and not is_folder(out):
        return {out: page.page(report).encode()}
    files = {
        out / f"{stem}.png": figure.figure_png(case, sigma=figure_sigma(case, report.sigma, smooth))
        for stem, case in zip(_stems(cases), cases, strict=True)
    }
    return files | {out / "index.html": page.page(report).encode()}


def figure_sigma(case: Case, usual: float, asked: float | None) -> float:
    """σ of the smoothed row of a figure. Beside a readable map there is none unless asked for."""
    return 0.0 if asked is None and case.readable is not None else usual


def record(case: Case) -> dict[str, Any]:
    """The numbers of one case for ``--json``."""
    result, index = case.explanation, case.index
    sources = {name: float(share[index]) for name, share in result.sources.items()}
    constants = collects(result)
    calibrated = {} if case.regions is None else {"regions": asdict(case.regions)}
    return calibrated | {
        "input": case.name,
        "model": case.model,
        "weights": case.weights,
        "warning": case.warning,
        "method": result.method,
        "promise": result.promise,
        "processing": list(result.processing),
        "target": int(result.target[index]),
        "answer": case.target,
        "output": float(result.output[index]),
        "sum": float(result.total[index]),
        "residual": float(result.residual[index]),
        "exact": bool(result.exact),
        "bias": float(result.bias_share[index]) if constants else None,
        "located": float(result.located) if constants else None,
        "sources": sources,
        "largest": _largest(case, result),
        "seconds": case.seconds,
        "readable": _readable(case),
    }


def _readable(case: Case) -> dict[str, Any] | None:
    """The numbers of the readable map, by the names of ``record``; or the reason why it failed."""
    result, index = case.readable, case.index
    if result is None:
        return {"error": case.unreadable} if case.unreadable else None
    return {
        "method": result.method,
        "promise": result.promise,
        "processing": list(result.processing),
        "sum": float(result.total[index]),
        "residual": float(result.residual[index]),
        "exact": bool(result.exact),
        "largest": _largest(case, result),
        "error": None,
    }


def _largest(case: Case, result: Explanation) -> list[dict[str, Any]]:
    """The units with the largest contributions, by the names of the modality."""
    if case.modality is None:
        return []
    units = case.modality.units(result, case.index, LARGEST)
    return [{"unit": unit.name, "value": unit.value} for unit in units]


def table(cases: Sequence[Case]) -> Table:
    """The numbers of the cases for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    plain = all(is_omenn(case.explanation) for case in cases)
    constants = any(collects(case.explanation) for case in cases)
    letter = symbol(cases[0].explanation)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("input", "model", *([] if plain else ["method"]), "answer"):
        shown.add_column(heading, overflow="fold")
    about = [f"Σ{letter}_b", "located"] if constants else []
    for heading in ("logit", f"Σ{letter}", "residual", *about, "time"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("exact" if plain else "sum")
    for case in cases:
        result, index = case.explanation, case.index
        bias = number(float(result.bias_share[index]))
        shown.add_row(
            escape(case.name),
            escape(case.model),
            *([] if plain else [escape(result.method)]),
            escape(case.target),
            number(float(result.output[index])),
            number(float(result.total[index])),
            number(float(result.residual[index]), digits=2),
            *([bias, f"{100 * float(result.located):.0f} %"] if constants else []),
            "" if case.seconds is None else f"{case.seconds:.2f} s",
            marked(verdict(result), plain),
        )
    return shown


def marked(said: Verdict, short: bool = False) -> str:
    """A verdict in the colours of the terminal; ``short``: yes or no, below the heading exact."""
    colour = {"yes": "green", "no": "red", "warn": "yellow"}.get(said.kind)
    words = {"yes": "yes", "no": "no"}.get(said.kind, said.words) if short else said.words
    return words if colour is None else f"[{colour}]{words}[/]"


def _stems(cases: Sequence[Case]) -> list[str]:
    """File names without ending, all different, also where letter case does not count."""
    stems: list[str] = []
    for case in cases:
        stem = file_name(Path(case.name).stem) or "picture"
        taken = {other.casefold() for other in stems}
        tries = (stem if attempt == 1 else f"{stem}-{attempt}" for attempt in range(1, 10**6))
        stems.append(next(name for name in tries if name.casefold() not in taken))
    return stems
