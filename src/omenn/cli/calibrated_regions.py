"""What a calibration says of the main regions of a picture: ``omenn explain --calibration``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omenn.cli.explain_images import Request, asked_of, first_row, read_input
from omenn.errors import InputError
from omenn.viz.stated_regions import StatedRegion, StatedRegions

if TYPE_CHECKING:
    from omenn import Calibration
    from omenn.models.sources import Source

GRID, SHOWN = 4, 4
_REPLACED = {"blur": "blurring it", "zero": "setting it to zero"}


def read_calibration(path: Path, source: Source, request: Request) -> Calibration:
    """The calibration in a file, if it is of this model and can say anything of what is asked.

    Raises:
        InputError: no calibration, or one of another question. ModelError: of another model.
    """
    import omenn

    if request.contrast is not None:
        raise _other_question("--contrast explains a difference of two logits", request.contrast)
    found = omenn.Calibration.load(path)
    found.check(source.model, source.spec)
    return found


def stated_regions(
    file: Path, source: Source, request: Request, device: str, calibration: Calibration
) -> StatedRegions:
    """The cells of a grid with the largest sums of the calibrated map, and what they cost.

    Raises:
        InputError: the target is not the output that was calibrated.
    """
    from omenn.calibration import Cells
    from omenn.calibration.calibrating import explained
    from omenn.calibration.intervals import signed

    x = read_input(file, source, device)
    logits = first_row(source, x)
    target, _ = asked_of(request, source.with_outputs(len(logits)), logits)
    usual = int(logits.argmax()) if calibration.target is None else calibration.target
    if target != usual:
        raise _other_question(f"{file.name}: output {target} is explained", str(target))
    options = calibration.options
    e = explained(source.model, x, usual, calibration.method, options, source.output)
    cells = [(row, column) for row in range(GRID) for column in range(GRID)]
    found = calibration.interval(e, [Cells(GRID, GRID, [at]) for at in cells])
    order = sorted(range(len(cells)), key=lambda k: -abs(found[k].sum))[:SHOWN]
    regions = [
        StatedRegion(cells[k][0] + 1, cells[k][1] + 1, signed(found[k].sum), found[k].cost)
        for k in order
    ]
    how = calibration.replacement.partition(":")[0]
    words = _REPLACED.get(how, f"replacing it ({calibration.replacement})")
    level = f"{100 * calibration.level:g}"
    return StatedRegions(regions, GRID, calibration.method, words, level, sum(calibration.pictures))


def lines(name: str, stated: StatedRegions) -> list[str]:
    """The same for the terminal."""
    return [
        f"{name}, {region.name} of {stated.grid} x {stated.grid}: {region.sum}, "
        f"{stated.replaced} {region.cost} ({stated.level} %)"
        for region in stated.regions
    ]


def _other_question(what: str, got: str) -> InputError:
    return InputError(
        f"{what}, but the calibration is of the largest logit.",
        argument="calibration",
        got=got,
        expected="the largest logit",
        remedy="Omit --calibration, or explain the largest logit.",
    )
