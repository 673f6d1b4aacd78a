"""Which exact configuration is faithful, chosen on validation scenes and reported on test scenes.

python -m experiments.ablation --scenes 12 --short      a first look
python -m experiments.ablation --scenes 200 --write     both phases, and docs/ablation.md
python -m experiments.ablation --scenes 200 --models birds-vit --phase validation
python -m experiments.ablation --scenes 200 --no-run    what is finished

Every cell is kept in runs/ablation, so that a run that was interrupted goes on, two processes may
take different models, and rows that are added later are all that is computed. Cells of other
code are refused: delete the folder then. Combinations of axes are tried on validation
scenes; of them the test phase computes those that were chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress

from experiments.ablation import configurations, tables
from experiments.ablation.board import PROTOCOLS, Board, Phase
from experiments.ablation.configurations import MODELS, Row
from experiments.ablation.exact_map import registered
from experiments.ablation.figure import draw
from experiments.command import DOCS, Command
from experiments.report import environment, write_block

PAGE, PICTURE = DOCS / "ablation.md", DOCS / "images" / "ablation.png"
PHASES = ("validation", "test")
COMMAND = Command("ablation", __doc__, "scenes", "device", "write", "work", scenes=64)
COMMAND.choose("model", MODELS, MODELS)
COMMAND.add("--test-scenes", type=int, help="test scenes (as --scenes)")
COMMAND.add("--mosaics", type=int, default=40, help="mosaics of GAE, 4 scenes each (40)")
COMMAND.add("--test-mosaics", type=int, help="of the test phase (as --mosaics)")
COMMAND.add("--phase", choices=[*PHASES, "both"], default="both")
COMMAND.add("--short", dest="few", action="store_true", help="one axis at a time, nothing slow")
COMMAND.add("--only", default="", help="compute only rows with this in their name")
COMMAND.add("--no-run", action="store_true", help="report what is finished")
COMMAND.add("--top", type=int, default=20, help="rows to print of a model (20)")
COMMAND.least |= dict.fromkeys(("scenes", "test_scenes", "mosaics", "test_mosaics"), 2)


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    a = COMMAND.parse(words)
    a.test_scenes = a.test_scenes or a.scenes
    a.test_mosaics = a.test_mosaics or a.mosaics
    if a.write and a.phase == "validation":
        COMMAND.fail("--write needs the test phase.")
    return a


def computed(phase: Phase, a: argparse.Namespace, rows: Sequence[Row], wanted: list[Row]) -> Board:
    """The board of a phase with ``rows``, after what is missing of those wanted was computed.

    Raises:
        SystemExit: a model has no exact row, no other method or no trivial map that is finished.
    """
    wanted = [row for row in wanted if a.only in row.name]
    if not a.no_run and wanted:
        with registered(), Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(phase.split, total=phase.steps(a.models, wanted))
            phase.work(a.models, wanted, lambda step: bar.update(task, advance=1, description=step))
    board = phase.read(a.models, rows)
    for model in board.models:
        for group in (configurations.EXACT, configurations.PEER, configurations.TRIVIAL):
            if not board.there(model, group):
                raise SystemExit(f"{model} has no finished {group} row on {phase.split} scenes.")
    return board


def main(words: Sequence[str] | None = None) -> None:
    a = parsed(words)
    rows = configurations.rows(a.few)
    before = rows if a.phase in ("validation", "both") else []
    validation = computed(
        Phase("validation", a.scenes, a.mosaics, a.work, a.device), a, rows, before
    )
    chosen, default = tables.choices(validation)
    for model in validation.models:
        print(f"validation, {model}\n\n{tables.ranking(validation, model, a.top)}\n")
    print(f"{tables.selection(validation, chosen, default)}\n")
    if a.phase in ("test", "both"):
        best = {default.name, *(row.name for row in chosen.values())}
        best |= {validation.best(m, p).name for m in validation.models for p in PROTOCOLS}
        reported = [row for row in rows if row.axis != configurations.COMBINED or row.name in best]
        test = computed(
            Phase("test", a.test_scenes, a.test_mosaics, a.work, a.device), a, reported, reported
        )
        if a.write:
            refuse_parts(validation, rows)
            refuse_parts(test, reported)
        for model in test.models:
            print(f"test, {model}\n\n{tables.ranking(test, model, a.top)}\n")
        publish(a, validation, test)


def refuse_parts(board: Board, rows: Sequence[Row]) -> None:
    """A page is of whole phases.

    Raises:
        SystemExit: a row is neither finished nor failed on a model.
    """
    keys = [(model, row.name) for model in board.models for row in rows]
    missing = [key for key in keys if key not in board.found and key not in board.why]
    if missing:
        model, name = missing[0]
        raise SystemExit(
            f"{len(missing)} of {len(keys)} rows are not finished, the first is {name} on {model}. "
            "Omit --no-run and --only, or --write."
        )


def publish(a: argparse.Namespace, validation: Board, test: Board) -> None:
    """Print the goal on test scenes; write page and picture if asked to."""
    chosen, default = tables.choices(validation)
    note = (
        f"Chosen on {a.scenes} validation scenes and {a.mosaics} mosaics of four (GAE), reported "
        f"on {a.test_scenes} test scenes and {a.test_mosaics} mosaics; 95 % bootstrap intervals "
        f"over scenes or mosaics. {COMMAND.written(*_said(a))}; "
        f"{environment()}."
    )
    made = tables.blocks(validation, test, chosen, default, note)
    print(made["ablation-goal"])
    if a.write:
        for marker, text in made.items():
            write_block(PAGE, marker, text)
        draw(test, chosen, default, PICTURE)


def _said(a: argparse.Namespace) -> list[str]:
    said = ["--scenes", str(a.scenes)]
    said += ["--test-scenes", str(a.test_scenes)] if a.test_scenes != a.scenes else []
    said += ["--mosaics", str(a.mosaics)]
    said += ["--test-mosaics", str(a.test_mosaics)] if a.test_mosaics != a.mosaics else []
    said += ["--device", a.device] if a.device != "cpu" else []
    said += ["--models", *a.models] if tuple(a.models) != MODELS else []
    return [*said, *(["--short"] if a.few else [])]


if __name__ == "__main__":
    main()
