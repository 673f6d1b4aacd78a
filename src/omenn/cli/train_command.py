"""``omenn train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from omenn.cli import terminal
from omenn.cli.shared_options import Device, Verbose
from omenn.files.locks import locked
from omenn.models.recipes import BIRD_PRIORS

app = typer.Typer(no_args_is_help=True, help="Train a bundled network again, or one on a CSV file.")

Arch = Annotated[
    Literal[
        "birds-resnet",
        "birds-vit",
        "birds-convnet",
        "birds-xresnet",
        "birds-xvit",
        "birds-xconvnet",
    ],
    typer.Option(help="Which network; those with an x have no additive terms."),
]
Folder = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="FOLDER", help="For weights, card and checkpoints."),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of the data and the weights.")]
RecipeEpochs = Annotated[
    int | None, typer.Option(metavar="N", help="Number of epochs (default: as in the recipe).")
]
TrainScenes = Annotated[
    int | None, typer.Option(metavar="N", help="Number of training scenes (default: likewise).")
]
RecipeRate = Annotated[
    float | None, typer.Option(metavar="R", help="Learning rate (default: likewise).")
]
BirdPrior = Annotated[
    Literal["sparsity", "smoothness", "right-reasons"] | None,
    typer.Option(help="What attributions should be like: few, smooth, or on the bird alone."),
]
TablePrior = Annotated[
    Literal["sparsity"] | None,
    typer.Option(help="What attributions should be like: few columns for all rows."),
]
PriorWeight = Annotated[
    float | None, typer.Option(metavar="W", help="Weight of the prior in the loss (default: 1).")
]
PriorMethod = Annotated[
    Literal["omenn", "xgradient", "gradient", "integrated-gradients", "expected-gradients"] | None,
    typer.Option(
        help="How attributions are computed (default: xgradient for networks without additive "
        "terms, omenn for others: either is exact)."
    ),
]
TablePriorMethod = Annotated[
    Literal["xgradient", "omenn", "gradient", "integrated-gradients"] | None,
    typer.Option(
        help="How attributions are computed (default: xgradient with --no-bias, else omenn)."
    ),
]
PriorFraction = Annotated[
    float | None,
    typer.Option(metavar="F", help="Share of each batch that the prior sees (default: 1)."),
]
Table = Annotated[
    Path,
    typer.Argument(metavar="FILE.csv", help="A header, then numbers; one column has the classes."),
]
TargetColumn = Annotated[str, typer.Option(metavar="COLUMN", help="The column with the classes.")]
NoBias = Annotated[
    bool, typer.Option("--no-bias", help="An X-DNN, whose x ⊙ ∇f are integrated gradients.")
]
Hidden = Annotated[str, typer.Option(metavar="N,…", help="Widths of the hidden layers.")]
Missing = Annotated[
    Literal["refuse", "mean"],
    typer.Option(help="Empty cells and NA: an error, or the training mean of the column."),
]
Epochs = Annotated[int, typer.Option(metavar="N", help="Number of steps, on all training rows.")]
Rate = Annotated[float, typer.Option(metavar="R", help="Learning rate of Adam.")]


@app.command("birds")
def train_birds(
    arch: Arch,
    out: Folder = Path("runs/birds"),
    seed: Seed = 0,
    epochs: RecipeEpochs = None,
    train_scenes: TrainScenes = None,
    learning_rate: RecipeRate = None,
    prior: BirdPrior = None,
    prior_weight: PriorWeight = None,
    prior_method: PriorMethod = None,
    prior_fraction: PriorFraction = None,
    device: Device = "cpu",
    verbose: Verbose = False,
) -> None:
    """Train one of the bundled networks on generated birds, also with a prior on attributions.

    Started again with the same arguments, an interrupted training continues.

    [bold]Example:[/]  omenn train birds --arch birds-resnet --out runs/resnet --device cuda
    """
    from omenn.models import bird_priors, sources, training

    sources.check_device(device)
    term = None
    given = {"weight": prior_weight, "method": prior_method, "fraction": prior_fraction}
    if _has_prior(prior, BIRD_PRIORS, **given):
        method = prior_method or ("xgradient" if arch.startswith("birds-x") else "omenn")
        weight = 1.0 if prior_weight is None else prior_weight
        fraction = 1.0 if prior_fraction is None else prior_fraction
        term = bird_priors.bird_prior(str(prior), weight, method, fraction=fraction, seed=seed)
    changes = {"epochs": epochs, "train_scenes": train_scenes, "learning_rate": learning_rate}
    with terminal.resumable(out, "*.checkpoint.pt"), locked(out):
        path = training.train_birds(arch, out, seed=seed, prior=term, device=device, **changes)
    terminal.show(f"wrote {path}")


@app.command("table")
def train_table(
    file: Table,
    target: TargetColumn,
    out: Folder = Path("runs/table"),
    no_bias: NoBias = False,
    hidden: Hidden = "512,128,32",
    missing: Missing = "refuse",
    epochs: Epochs = 100,
    learning_rate: Rate = 1e-3,
    prior: TablePrior = None,
    prior_weight: PriorWeight = None,
    prior_method: TablePriorMethod = None,
    seed: Seed = 0,
    device: Device = "cpu",
    verbose: Verbose = False,
) -> None:
    """Train a network on a CSV file, with or without biases and a prior on its attributions.

    Started again with the same arguments, an interrupted training continues.

    [bold]Example:[/]  omenn train table people.csv --target outcome --no-bias --prior sparsity
    """
    from omenn.models import sources, table_training
    from omenn.xdnn import AttributionPrior

    sources.check_device(device)
    term = None
    if _has_prior(prior, ("sparsity",), weight=prior_weight, method=prior_method):
        method = prior_method or ("xgradient" if no_bias else "omenn")
        term = AttributionPrior("sparsity", 1.0 if prior_weight is None else prior_weight, method)
    options = {"missing": missing, "epochs": epochs, "learning_rate": learning_rate}
    with terminal.resumable(out, "*.checkpoint.pt"), locked(out):
        widths = table_training.widths(hidden)
        path = table_training.train_table(
            file,
            target,
            out,
            hidden=widths,
            bias=not no_bias,
            prior=term,
            seed=seed,
            device=device,
            **options,
        )
    terminal.show(*table_training.summary(path))


def _has_prior(prior: str | None, known: tuple[str, ...], **options: object) -> bool:
    """Whether there is a prior; InputError for options of a prior without one."""
    from omenn.errors import InputError

    given = [name for name, value in options.items() if value is not None]
    if prior is None and given:
        raise InputError(
            f"--prior-{given[0]} is an option of a prior.",
            argument=f"prior-{given[0]}",
            remedy=f"Add --prior {' or '.join(known)}.",
        )
    return prior is not None
