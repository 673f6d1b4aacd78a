"""Explains pictures with one model: which answer, which rival, how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omenn.cli.readable_maps import Readable, readable_maps
from omenn.errors import InputError, OmennError, TargetError, did_you_mean, reason
from omenn.models import user_files
from omenn.models.sources import Source
from omenn.viz.panels import Case

if TYPE_CHECKING:
    import torch

    from omenn import Certificate, Contrast, Explanation


@dataclass(frozen=True)
class Request:
    """The options that hold for every picture; names and numbers as the user typed them.

    Attributes:
        target: the answer to explain, as a number or a name; None: the largest logit.
        contrast: an answer to subtract: the explained number is then a difference of two logits;
            "rest" is the mean of all others, "runner-up" the largest of them.
        method: its name, see ``omenn methods``.
        options: of the method, by their names.
        post: steps by which the map is changed afterwards, see ``Explanation.processed``.
        readable: whether pictures have a readable exact map as well, see ``readable_maps``.
    """

    target: str | None = None
    contrast: str | None = None
    method: str = "omenn"
    options: Mapping[str, Any] = field(default_factory=dict)
    post: tuple[str, ...] = ()
    readable: bool = False


def read_input(file: Path, source: Source, device: str) -> torch.Tensor:
    """A picture as the model takes it, (1, channels, H, W).

    Raises:
        InputError: the file is no picture, or the model takes none.
    """
    return source.modality.from_user(file).to(device)


def explain_file(
    file: Path, source: Source, request: Request, device: str = "cpu", *, rival: bool = False
) -> Case:
    """Explain one picture; with ``rival`` also against the runner-up.

    Raises:
        InputError: the file is no picture. TargetError: an unknown answer.
    """
    tensor = read_input(file, source, device)
    return explain_tensor(file.name, tensor, source, request, rival=rival)


def certify_file(file: Path, source: Source, request: Request, device: str = "cpu") -> Certificate:
    """The certificate of the model for one picture and what ``request`` asks about it.

    Of several depths, that of the input: it is about the whole network.
    """
    import omenn

    tensor = read_input(file, source, device)
    logits = first_row(source, tensor)
    asked, _ = asked_of(request, source.with_outputs(len(logits)), logits)
    known = ("bias", "output", "products", "channel_dim")
    options: dict[str, Any] = dict(source.named_output)
    options |= {name: value for name, value in request.options.items() if name in known}
    at = request.options.get("at")
    if isinstance(at, str) and at in dict(source.model.named_modules()):
        options["at"] = at
    return omenn.certify(source.model, tensor, asked, **options)


def explain_tensor(
    name: str,
    tensor: torch.Tensor,
    source: Source,
    request: Request,
    *,
    rival: bool = False,
    truth: str | None = None,
) -> Case:
    """Explain one preprocessed picture (1, channels, H, W), see ``explain_file``."""
    import omenn

    options: dict[str, Any] = source.named_output | dict(request.options)
    if request.method != "omenn":
        options["method"] = request.method
    logits = first_row(source, tensor)
    source = source.with_outputs(len(logits))
    asked, words = asked_of(request, source, logits)
    started = time.perf_counter()
    explanation = omenn.explain(source.model, tensor, asked, **options)
    seconds = time.perf_counter() - started
    against, second, second_words = None, None, ""
    rival = rival and explanation.promise != "none"  # of maps that know no other class
    if rival and isinstance(asked, int) and len(logits) > 1:
        other = best_other(logits, asked)
        against, second_words = omenn.Contrast(asked, other), short_name(source, other)
    maps = Readable()
    if request.readable:
        maps = readable_maps(source, tensor, asked, against, request.options)
    if against is not None:
        second = maps.contrast or omenn.explain(source.model, tensor, against, **options)
    case = Case(
        name=name,
        model=source.spec,
        target=words,
        explanation=explanation,
        image=source.modality.shown(tensor),
        readable=maps.map,
        unreadable=maps.why,
        contrast=second,
        rival=second_words,
        truth=truth,
        seconds=seconds,
        weights=source.weights,
        warning=source.warning,
        grid=grid_of(explanation, source, tensor),
        modality=source.modality,
    )
    return _changed(case, request.post)


def grid_of(
    explanation: Explanation, source: Source, tensor: torch.Tensor
) -> tuple[int, int] | None:
    """The grid of the tokens of a module's output that was not resampled, if they have one."""
    from omenn.engine.location.token_grid import token_grid

    at, matrix = explanation.at, explanation.matrix
    if not isinstance(at, str) or not hasattr(matrix, "ndim") or matrix.ndim != 2:
        return None
    return token_grid(source.model, tensor, at)


def _changed(case: Case, steps: Sequence[str]) -> Case:
    """The case after post-processing, which keeps the original."""
    if not steps:
        return case
    return replace(
        case,
        explanation=case.explanation.processed(*steps),
        before=case.explanation,
        contrast=None if case.contrast is None else case.contrast.processed(*steps),
    )


def asked_of(request: Request, source: Source, logits: torch.Tensor) -> tuple[int | Contrast, str]:
    """The target as the engine takes it, and in words."""
    import omenn

    target = int(logits.argmax())
    if request.target is not None:
        target = index_of(request.target, source)
    words = short_name(source, target)
    if request.contrast is None:
        return target, words
    if request.contrast == "rest":
        return omenn.Contrast(target, "rest"), f"{words} − all others"
    if request.contrast == "runner-up":
        return omenn.Contrast(target, "runner-up"), f"{words} − the runner-up"
    against = index_of(request.contrast, source)
    return omenn.Contrast(target, against), f"{words} − {short_name(source, against)}"


def index_of(text: str, source: Source) -> int:
    """Which output a number or a class name means; letter case does not matter.

    A name may be shortened to one of its synonyms ("tench" for "tench, Tinca tinca"). How many
    outputs there are, the engine knows and checks.

    Raises:
        TargetError: no such name, a name that several classes have, or a number that counts none.
    """
    try:
        index = int(text)
    except ValueError:
        return _index_of_name(text, source)
    if not 0 <= index < 2**31:
        raise TargetError(
            f"there is no target {text}: outputs are counted 0, 1, 2, …",
            argument="target",
            got=text,
        )
    return index


def _index_of_name(text: str, source: Source) -> int:
    if source.classes is None:
        raise TargetError(
            f"target '{text}': the classes of '{source.spec}' have no names here.",
            argument="target",
            got=text,
            expected="a number",
            remedy="Give a number.",
        )
    wanted = text.strip().casefold()
    names = [name.casefold() for name in source.classes]
    synonyms: list[Callable[[str], bool]] = [
        lambda name: name == wanted,
        lambda name: wanted in [part.strip() for part in name.split(",")],
    ]
    for fits in synonyms:
        found = [index for index, name in enumerate(names) if fits(name)]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = ", ".join(str(index) for index in found)
            raise TargetError(
                f"target '{text}' means several classes: {numbers}.",
                argument="target",
                got=text,
                remedy="Give a number.",
            )
    each = [part.strip() for name in source.classes for part in name.split(",")]
    raise TargetError(
        f"unknown target '{text}':",
        argument="target",
        got=text,
        expected=", ".join(each),
        remedy=did_you_mean(text, each),
    )


def short_name(source: Source, index: int) -> str:
    """The first synonym of a class, as titles have little space."""
    return source.class_name(index).split(",")[0].strip()


def first_row(source: Source, tensor: torch.Tensor) -> torch.Tensor:
    """The logits (classes,) of one picture (1, channels, H, W), where the engine finds them.

    Raises:
        InputError: the model cannot take this picture. TargetError: no row of logits came out.
    """
    import torch

    from omenn.engine.target import pick_output, select

    try:
        with torch.no_grad():
            output = source.model(tensor)
    except (OmennError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model may raise anything
        place = "" if source.file is None else user_files.place_in(source.file, error)
        raise InputError(
            f"the model '{source.spec}' cannot take a picture of the shape {tuple(tensor.shape)}: "
            f"{type(error).__name__}: {reason(error)}{place}.",
            argument="model",
            got=str(tuple(tensor.shape)),
            remedy=source.modality.remedy(source.file),
        ) from error
    if source.output is not None and isinstance(output, torch.Tensor):
        raise TargetError(
            f"the model '{source.spec}' returned {_described(output)}, which has no parts.",
            argument="output",
            got=str(source.output),
            remedy=f"Omit --output {source.output}.",
        )
    try:
        several = isinstance(output, Mapping) and len(output) > 1
        if source.output is None and several and output.get("logits") is None:
            raise TargetError("it is not clear which of them are the logits", argument="output")
        logits = pick_output(output, source.output)
        select(logits, None, len(tensor))  # refuses what is not one row of logits a picture
    except TargetError as error:
        raise TargetError(
            f"the model '{source.spec}' returned {_described(output)}, expected one row of "
            "numbers for a picture, (1, classes).",
            argument="model",
            got=_described(output),
            expected="(1, classes)",
            remedy=other_output(source),
        ) from error
    return _before(source, tensor, logits).reshape(-1)


def _before(source: Source, tensor: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """The logits in front of a row of probabilities, as they are explained; else the row."""
    import torch

    from omenn.engine.probabilities import logits_of
    from omenn.engine.run import FrozenRun
    from omenn.engine.target import pick_output
    from omenn.engine.trace.guards import alone

    shares = bool(((row >= 0) & (row <= 1)).all()) or bool((row <= 0).all())
    if not shares:
        return row
    try:
        with alone():
            options = {"products": "half", "create_graph": False}
            run = FrozenRun(source.model, tensor, None, "none", None, options)
            with torch.enable_grad(), run.mode:
                logits = pick_output(run.out, source.output)
            mark = run.mode.mark_of(logits)
            if mark is not None and mark.end is not None:
                with torch.enable_grad(), run.mode:
                    logits, _ = logits_of(mark.end, logits)
            return logits.detach().clone()
    except OmennError:  # the explanation says what is wrong
        return row


def _described(output: Any) -> str:
    """What a model returned, with the names and shapes of its tensors."""
    if isinstance(output, Mapping):
        inside = ", ".join(f"{name!r}: {_described(value)}" for name, value in output.items())
        return f"a dictionary with {inside}" if inside else "an empty dictionary"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {', '.join(map(_described, output)) or 'nothing'}"
    shape = getattr(output, "shape", None)
    return type(output).__name__ if shape is None else f"a tensor {tuple(shape)}"


def other_output(source: Source) -> str:
    """What to do on the command line where a model's output is not a row of logits."""
    where = "a file, and name it as file.py:function" if source.file is None else f"'{source.file}'"
    return (
        "Name another part of it with --output (a key or a position), or write a function that "
        "returns a module whose output is such a row (of a segmentation, for example, "
        f"net(x).mean((2, 3))) in {where}."
    )


def best_other(logits: torch.Tensor, target: int) -> int:
    others = logits.float().clone()
    others[target] = -float("inf")
    return int(others.argmax())
