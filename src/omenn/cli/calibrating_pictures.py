"""Calibrates a map with pictures of the user, and says in a table how wide its intervals are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omenn.bench.method_options import method_and_options
from omenn.cli import terminal
from omenn.cli.explain_images import read_input
from omenn.cli.terminal import Answer
from omenn.data.folders import pictures_among
from omenn.errors import InputError
from omenn.files.atomic import check_writable
from omenn.viz.wording import number

if TYPE_CHECKING:
    from rich.table import Table

    from omenn import Calibration
    from omenn.models.sources import Source

ENDING = ".json"
PARTS = ".parts"
"""The ending of the folder with the results of single pictures."""


def prepared(
    load: Callable[[], Source], out: Path, images: Sequence[Path]
) -> tuple[Source, list[Path]]:
    """The model and the files, after everything that can be refused without them.

    Raises:
        InputError: another ending than .json, a folder without pictures.
    """
    if out.suffix.lower() != ENDING:
        raise InputError(
            f"'{out}' does not end in {ENDING}.",
            argument="out",
            got=str(out),
            expected=ENDING,
            remedy=f"Name a file that ends in {ENDING}.",
        )
    check_writable(out)
    files = pictures_among(images)
    return load(), files


class Inputs(Sequence[Any]):
    """The pictures as the model takes them, read when they are asked for."""

    def __init__(self, files: Sequence[Path], source: Source, device: str) -> None:
        self.files, self.source, self.device = files, source, device

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: Any) -> Any:
        return read_input(self.files[k], self.source, self.device)


def calibrated(
    source: Source, files: Sequence[Path], method: str, out: Path, device: str, **settings: Any
) -> Answer:
    """Calibrate and write the file; results of single pictures are kept until that is done."""
    import omenn

    name, options = method_and_options(method)
    folder = out.with_name(f"{out.name}{PARTS}")
    with terminal.resumable(folder, "*.json"), terminal.progress(len(files)) as tick:
        found = omenn.calibrate(
            source.model,
            Inputs(files, source, device),
            method=name,
            options=options,
            output=source.output,
            name=source.spec,
            folder=folder,
            tick=lambda done, total: tick(f"picture {min(done + 1, total)} of {total}"),
            **settings,
        )
    found.save(out)
    record = {"file": str(out), "pictures": list(found.pictures), "sizes": _sizes(found)}
    return Answer(record, [_table(found), *_remarks(found, out)])


def _sizes(found: Calibration) -> list[dict[str, Any]]:
    return [
        {
            "smallest": size.low,
            "largest": size.high,
            "half_width": size.typical,
            "without_map": size.without,
            "regions": size.regions,
        }
        for size in found.sizes
        if size is not None
    ]


def _table(found: Calibration) -> Table:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("regions of this share of the picture")
    for heading in ("± with the map", "± without it", "measured"):
        shown.add_column(heading, justify="right")
    for size in filter(None, found.sizes):
        share = f"{100 * size.low:.2g} to {100 * size.high:.2g} %"
        widths = (number(size.typical, digits=2), number(size.without, digits=2))
        shown.add_row(share, *widths, f"{size.regions} regions of {size.pictures} pictures")
    return shown


def _remarks(found: Calibration, out: Path) -> list[str]:
    there = [size for size in found.sizes if size is not None]
    level = f"{100 * found.level:.3g} %"
    said = [f"±: half the width of the {level} intervals, in logits (mean)."]
    better = [size for size in there if size.typical < size.without]
    if len(better) < len(there):
        said.append(
            f"in {len(there) - len(better)} of {len(there)} sizes the map's sums say no more about "
            "what replacing a region costs than its size does."
        )
    return [*said, f"wrote {out}", f"To use it: omenn explain PICTURE --calibration {out}"]
