"""The certificate of a model from the command line: which input, and a table of the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omenn.check import quoted
from omenn.cli.explain_images import index_of, other_output, read_input
from omenn.cli.terminal import Answer
from omenn.errors import InputError, TargetError
from omenn.models.randomness import seeded
from omenn.models.sources import Source

if TYPE_CHECKING:
    from rich.table import Table

    from omenn import Certificate
    from omenn.xdnn.homogeneity import Homogeneity


def inputs_for(source: Source, file: Path | None, seed: int, device: str) -> tuple[Any, str]:
    """The input that the model is run on, and its description.

    The picture ``file``; else the example inputs that the model carries; else random numbers of
    the size the model was made for.
    """
    if file is not None:
        return read_input(file, source, device), file.name
    if source.example_inputs is not None:
        return _moved(source.example_inputs, device), "the model's example_inputs"
    with seeded(seed):
        noise = source.modality.noise().to(device)
    return noise, f"random numbers {tuple(noise.shape)}, seed {seed}"


def target_for(source: Source, text: str | None) -> Any:
    """What ``text`` names; else the ``example_target`` that the model carries; else None.

    Models whose output is not one row of logits a sample (language models, graphs) need one.

    Raises:
        TargetError: ``text`` names no output.
    """
    if text is not None:
        return index_of(text, source)
    return getattr(source.model, "example_target", None)


def whole_model(given: dict[str, str | None]) -> None:
    """Raises InputError for options that ask for a part of the model or its output."""
    for option, value in given.items():
        if value is not None:
            raise InputError(
                f"{option} does not go with --homogeneous, which checks the whole output as a "
                "function of the input.",
                argument=option,
                got=value,
                remedy=f"Omit {option} {value}.",
            )


def exactness(source: Source, inputs: Any, target: Any, **options: Any) -> Certificate:
    """The certificate.

    Raises:
        TargetError: the output is no row of logits; what to do about it on the command line.
    """
    import omenn

    try:
        return omenn.certify(source.model, inputs, target, output=source.output, **options)
    except TargetError as error:
        if target is not None:
            raise
        raise TargetError(
            f"{error} On the command line: {other_output(source)}", argument="target"
        ) from error


def homogeneity(source: Source, inputs: Any) -> Homogeneity:
    """Whether F(αx) = α F(x), by operators and numbers."""
    from omenn.xdnn.homogeneity import check

    return check(source.model, inputs)


def answer(found: Certificate | Homogeneity, source: Source, words: str) -> Answer:
    """The evidence, good if the certificate says so; ``words`` describe the input."""
    return Answer(record(found, source, words), [table(found, source, words)], bool(found))


def table(certificate: Certificate | Homogeneity, source: Source, words: str) -> Table:
    """The evidence, one line each."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    known = [("model", source.spec), ("weights", source.weights), ("input", words)]
    if source.modality.assumption and source.example_inputs is None:
        known.append(("preprocessing", f"{source.preprocessing.source}: see model.preprocess"))
    for heading, text in [*known, *lines(certificate)]:
        shown.add_row(heading, escape(text))
    verdict = str(certificate).splitlines()[0]
    shown.add_row("verdict", f"[bold {'green' if certificate else 'red'}]{verdict}[/]")
    return shown


def lines(certificate: Certificate | Homogeneity) -> list[tuple[str, str]]:
    """The certificate in plain words as (heading, text), without the verdict."""
    found: list[tuple[str, str]] = []
    for line in str(certificate).splitlines()[1:]:
        heading, _, text = line.partition("  ") if line[:1].strip() else ("", "", line)
        found.append((heading, text.strip()))
    return found


def record(
    certificate: Certificate | Homogeneity, source: Source | None = None, words: str | None = None
) -> dict[str, Any]:
    """The evidence for ``--json``, behind what is known of the model and the input."""
    from omenn import Certificate

    known: dict[str, Any] = {}
    if source is not None:
        known |= {"model": source.spec, "weights": source.weights, "trained": source.trained}
    if words is not None:
        known["input"] = words
    if not isinstance(certificate, Certificate):
        return known | _degrees(certificate)
    return known | {
        "exact": certificate.exact,
        "fidelity": certificate.fidelity,
        "violations": list(certificate.violations),
        "residual": certificate.residual.tolist(),
        "relative": certificate.relative.tolist(),
        "bias_share": certificate.bias_share.tolist(),
        "located": certificate.located,
        "sources": {name: share.tolist() for name, share in certificate.sources.items()},
    }


def _degrees(found: Homogeneity) -> dict[str, Any]:
    return {
        "homogeneous": found.homogeneous,
        "proven": found.proven,
        "measured": found.measured,
        "degree": found.degree,
        "operators": len(found.operators),
        "offenders": [
            {"module": each.module, "operator": each.operator, "reason": each.reason}
            for each in found.offenders
        ],
        "errors": {f"{alpha:g}": error for alpha, error in found.errors.items()},
        "tolerance": found.tolerance,
    }


def _moved(value: Any, device: str) -> Any:
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_moved(part, device) for part in value)
    if isinstance(value, str | bytes):
        raise InputError(
            f"example_inputs holds {value!r:.40}, expected tensors.",
            argument="example_inputs",
            got=quoted(value),
            expected="tensors",
            remedy=(
                "Give a tensor, a tuple of positional arguments or a dictionary of keyword "
                "arguments."
            ),
        )
    return value
