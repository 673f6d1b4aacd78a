"""``omenn train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from omenn.cli import terminal
from omenn.cli.shared_options import Device, Verbose
from omenn.files.locks import locked

app = typer.Typer(no_args_is_help=True, help="Train a bundled network again, or one on a CSV file.")


@app.command("birds")
def train_birds(
    arch: Annotated[
        Literal[
            "birds-resnet",
            "birds-vit",
            "birds-convnet",
            "birds-xresnet",
            "birds-xvit",
            "birds-xconvnet",
        ],
        typer.Option(help="Which network; those with an x have no additive terms."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where weights, card and checkpoints go.")
    ] = Path("runs/birds"),
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of data and weights.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Fewer or more than the recipe says.")
    ] = None,
    train_scenes: Annotated[
        int | None, typer.Option(metavar="N", help="How many scenes to train on.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="R", help="Another than the recipe's.")
    ] = None,
    prior: Annotated[
        Literal["sparsity", "smoothness", "right-reasons"] | None,
        typer.Option(help="What attributions should be like: few, smooth, or on the bird alone."),
    ] = None,
    prior_weight: Annotated[
        float | None, typer.Option(metavar="W", help="Of the prior in the loss; 1 if not given.")
    ] = None,
    prior_method: Annotated[
        Literal["omenn", "xgradient", "gradient", "integrated-gradients", "expected-gradients"]
        | None,
        typer.Option(
            help="How attributions are computed (default: xgradient for networks without additive "
            "terms, omenn for others: either is exact)."
        ),
    ] = None,
    prior_fraction: Annotated[
        float | None,
        typer.Option(metavar="F", help="Share of each batch that the prior sees; 1 if not given."),
    ] = None,
    device: Device = "cpu",
    verbose: Verbose = False,
) -> None:
    """Train one of the bundled networks on generated birds, also with a prior on attributions.

    Started again with the same arguments, an interrupted training goes on where it stopped.

    [bold]Example:[/]  omenn train birds --arch birds-resnet --out runs/resnet --device cuda
    """
    from omenn.errors import InputError
    from omenn.models import bird_priors, sources, training

    sources.check_device(device)
    term = None
    if prior is not None:
        term = bird_priors.bird_prior(
            prior,
            1.0 if prior_weight is None else prior_weight,
            prior_method or ("xgradient" if arch.startswith("birds-x") else "omenn"),
            fraction=1.0 if prior_fraction is None else prior_fraction,
            seed=seed,
        )
    elif (prior_weight, prior_method, prior_fraction) != (None, None, None):
        raise InputError(
            "--prior-weight, --prior-method and --prior-fraction belong to a prior, and none was "
            f"given. Add --prior {', '.join(bird_priors.BIRD_PRIORS[:-1])} or "
            f"{bird_priors.BIRD_PRIORS[-1]}."
        )
    with terminal.resumable(), locked(out):
        path = training.train_birds(
            arch,
            out,
            seed=seed,
            epochs=epochs,
            train_scenes=train_scenes,
            learning_rate=learning_rate,
            prior=term,
            device=device,
        )
    terminal.show(f"wrote {path}")


@app.command("table")
def train_table(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.csv", help="A header, then numbers; one column names.")
    ],
    target: Annotated[
        str, typer.Option(metavar="COLUMN", help="The column that holds the classes.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where weights and card go.")
    ] = Path("runs/table"),
    no_bias: Annotated[
        bool, typer.Option("--no-bias", help="An X-DNN, whose x ⊙ ∇f are integrated gradients.")
    ] = False,
    hidden: Annotated[
        str, typer.Option(metavar="N,…", help="Widths of the hidden layers.")
    ] = "512,128,32",
    missing: Annotated[
        Literal["refuse", "mean"],
        typer.Option(help="Empty cells and NA: an error, or the training mean of the column."),
    ] = "refuse",
    epochs: Annotated[int, typer.Option(metavar="N", help="Steps on all training rows.")] = 100,
    learning_rate: Annotated[float, typer.Option(metavar="R", help="Of Adam.")] = 1e-3,
    prior: Annotated[
        Literal["sparsity"] | None,
        typer.Option(help="What attributions should be like: few columns for all rows."),
    ] = None,
    prior_weight: Annotated[
        float | None, typer.Option(metavar="W", help="Of the prior in the loss (default: 1).")
    ] = None,
    prior_method: Annotated[
        Literal["xgradient", "omenn", "gradient", "integrated-gradients"] | None,
        typer.Option(help="Whose attributions (default: xgradient with --no-bias, else omenn)."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the split and the weights.")] = 0,
    device: Device = "cpu",
    verbose: Verbose = False,
) -> None:
    """Train a network on a CSV file, with or without biases and a prior on its attributions.

    Started again with the same arguments, an interrupted training goes on where it stopped.

    [bold]Example:[/]  omenn train table people.csv --target outcome --no-bias --prior sparsity
    """
    from omenn.errors import InputError
    from omenn.models import sources, table_training

    sources.check_device(device)
    term = None
    if prior is not None:
        from omenn.xdnn import AttributionPrior

        method = prior_method or ("xgradient" if no_bias else "omenn")
        term = AttributionPrior(prior, 1.0 if prior_weight is None else prior_weight, method)
    elif prior_weight is not None or prior_method is not None:
        raise InputError("--prior-weight and --prior-method need a prior: add --prior sparsity.")
    with terminal.resumable(), locked(out):
        path = table_training.train_table(
            file,
            target,
            out,
            hidden=table_training.widths(hidden),
            bias=not no_bias,
            epochs=epochs,
            learning_rate=learning_rate,
            prior=term,
            seed=seed,
            missing=missing,
            device=device,
        )
    terminal.show(*table_training.summary(path))
