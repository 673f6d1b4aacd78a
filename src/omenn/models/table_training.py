"""Training of networks on CSV tables: seeded, resumable, keeps the best weights on validation."""

from __future__ import annotations

import copy
import hashlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from omenn.check import whole, wrong
from omenn.data.tables import MOST, Scale, Table, read_table
from omenn.errors import InputError, ModelError
from omenn.files.reading import read_bytes, read_json
from omenn.models.bird_priors import described, state_digest
from omenn.models.fit import Best, Diverged, Training, descend, machine, write_network
from omenn.models.randomness import seeded
from omenn.models.recipes import check_rate
from omenn.models.tabular import CARD, HIDDEN, WEIGHTS, TableNetwork, roc_auc
from omenn.progress import progress_bar
from omenn.xdnn import AttributionPrior
from omenn.xdnn.priors.prior_loss import TermNotFinite

SHARES = {"validation": 0.2, "test": 0.2}  # of the rows of every class; the rest trains

Prior = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, inputs, index of the explained output) → a term of the loss."""

_CHECKPOINT = "table.checkpoint.pt"
_SECONDS_BETWEEN_CHECKPOINTS = 5.0


@dataclass(frozen=True)
class _Settings:
    """Everything that determines the outcome except the rounding of the machine."""

    file_sha256: str
    target: str
    missing: str
    hidden: list[int]
    bias: bool
    epochs: int
    learning_rate: float
    prior: dict[str, Any] | None
    prior_state: str | None
    seed: int


class _Run:
    """A training in progress: network, optimiser, the best weights so far."""

    def __init__(
        self, table: Table, settings: _Settings, prior: Prior | None, device: str, checkpoint: Path
    ) -> None:
        self.settings, self.device = settings, device
        # a copy: the random numbers of the caller's prior must not advance
        self.prior = copy.deepcopy(prior) if isinstance(prior, AttributionPrior) else prior
        with seeded(settings.seed):
            network = TableNetwork(
                table.names, table.classes, hidden=settings.hidden, bias=settings.bias
            )
        self.rows = split(table, settings.seed)
        scale = Scale.of(table.features[self.rows["train"]])
        network.mean, network.deviation = scale.mean, scale.deviation
        self.parts = {
            name: (
                network.standardised(table.features[rows]).to(device),
                table.target[rows].to(device),
            )
            for name, rows in self.rows.items()
        }
        self.network = network.to(device).eval()  # no layer of it depends on the mode
        self.optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        self.best = Best()
        saved: dict[str, Any] = {"network": self.network, "optimiser": self.optimiser}
        saved |= {"best": self.best}
        if hasattr(self.prior, "state_dict"):  # it continues its random numbers
            saved["prior"] = self.prior
        self.training = Training(asdict(settings), saved, checkpoint, device)

    def train_epoch(self) -> float:
        """One step on all training rows, then the validation rows; the loss of the former."""
        loss = self._step(*self.parts["train"])
        if not self.logits("validation").isfinite().all():
            raise Diverged("the output after it is not finite")
        self.best.note(self.training.epoch + 1, self.auc("validation"), self.network)
        return loss

    def _step(self, x: Tensor, y: Tensor) -> float:
        logits = self.network(x)
        if logits.shape[1] == 1:
            loss = F.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits.dtype))
        else:
            loss = F.cross_entropy(logits, y)
        if self.prior is not None:
            explained = torch.zeros_like(y) if logits.shape[1] == 1 else y
            loss = loss + self._prior(self.prior, x, explained)
        return descend(loss, self.optimiser, self.network.parameters())

    def _prior(self, prior: Prior, x: Tensor, explained: Tensor) -> Tensor:
        try:
            return prior(self.network, x, explained)
        except InputError as error:
            if not self.training.epoch and not isinstance(error, TermNotFinite):
                raise  # an error of the caller: nothing has been trained yet
            raise Diverged(str(error).rstrip(".")) from error

    @torch.no_grad()
    def logits(self, part: str) -> Tensor:
        return self.network(self.parts[part][0])

    def auc(self, part: str) -> float:
        logits = self.logits(part)
        scores = logits[:, 0] if logits.shape[1] == 1 else logits.softmax(1)
        return roc_auc(scores, self.parts[part][1])


def train_table(
    path: Path | str,
    target: str,
    out: Path | str,
    *,
    hidden: Sequence[int] = HIDDEN,
    bias: bool = True,
    epochs: int = 100,
    learning_rate: float = 1e-3,
    prior: Prior | None = None,
    seed: int = 0,
    missing: Literal["refuse", "mean"] = "refuse",
    device: str = "cpu",
    console: Console | None = None,
) -> Path:
    """Train a network on a CSV file; returns the path of its weights. ``load(out)`` reads it.

    In every class 60 % of the rows train, 20 % choose the epoch, and 20 % are used once at the end.
    Columns are standardised by the training rows. Adam takes one step per epoch, on all training
    rows; the result is the weights with the largest validation ROC-AUC. ``prior``, such as an
    ``omenn.xdnn.AttributionPrior``, is added to the loss. ``bias=False`` trains an X-DNN.

    Writes ``table.safetensors``, its card ``table.json``, and checkpoints. An interrupted training
    continues when it is started with the same arguments, on a CPU to the same weights.

    Raises InputError for a table that cannot be read or split and for numbers out of range,
    ModelError if the loss is no longer finite (the best weights before that are written),
    WeightsError for the checkpoint of another training, OutputError if nothing can be written.
    """
    _check(hidden, epochs, learning_rate)
    path, out = Path(path), Path(out)
    table = read_table(path, target, missing=missing)
    settings = _Settings(
        file_sha256=hashlib.sha256(read_bytes(path, "table", most=MOST)).hexdigest(),
        target=target,
        missing=missing,
        hidden=list(hidden),
        bias=bias,
        epochs=epochs,
        learning_rate=learning_rate,
        prior=described(prior),
        prior_state=state_digest(prior),
        seed=seed,
    )
    run = _Run(table, settings, prior, device, out / _CHECKPOINT)
    try:
        _train(run, console)
    except Diverged as stop:
        raise _stopped(run, str(stop), path, out) from stop
    return _write_result(run, path, out)


def widths(text: str) -> tuple[int, ...]:
    """Widths of hidden layers from the command line's text. Raises InputError.

    >>> widths("64, 16"), widths("")
    ((64, 16), ())
    """
    try:
        return tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        remedy = "Write whole numbers separated by commas, such as 512,128,32."
        raise wrong("hidden", text, "widths of layers", remedy) from None


def summary(weights: Path) -> tuple[str, str]:
    """Two lines about a finished training: its result, and how to load it."""
    card = read_json(weights.with_name(CARD), "card")
    found, folder = card["result"], str(weights.parent)
    return (
        f"wrote {weights}: ROC-AUC {found['validation_auc']:.4f} on {card['data']['validation']} "
        f"validation rows (step {found['epoch']} of {card['recipe']['epochs']}), "
        f"{found['test_auc']:.4f} on {card['data']['test']} test rows",
        f"read it in Python: omenn.models.tabular.load({folder!r})",
    )


def split(table: Table, seed: int) -> dict[str, Tensor]:
    """Indices of the rows that train, validate and test, drawn separately in every class.

    Raises InputError for a class with fewer than three rows.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}
    for kind, name in enumerate(table.classes):
        rows = (table.target == kind).nonzero()[:, 0]
        if len(rows) < 3:
            count = f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
            raise InputError(
                f"class '{name}' has {count}; training, validation and test need one each.",
                argument="target",
                got=count,
                expected="three rows for each class",
                remedy="Add rows, merge classes, or remove the class.",
            )
        rows = rows[torch.randperm(len(rows), generator=generator)]
        counts = [max(1, round(share * len(rows))) for share in SHARES.values()]
        rest = len(rows) - sum(counts)
        for part, some in zip((*SHARES, "train"), rows.split([*counts, rest]), strict=True):
            found[part].append(some)
    return {part: torch.cat(rows) for part, rows in found.items()}


def _check(hidden: Sequence[int], epochs: int, learning_rate: float) -> None:
    for width in hidden:
        whole("hidden", width, 1)
    whole("epochs", epochs, 1)
    check_rate(learning_rate)


def _train(run: _Run, console: Console | None) -> None:
    """The remaining epochs, with checkpoints from time to time and after the last."""
    epochs, state = run.settings.epochs, run.training
    with progress_bar(console) as progress:
        task = progress.add_task("table", total=epochs, completed=state.epoch)
        for _ in state.fit(epochs, run.train_epoch, seconds_between=_SECONDS_BETWEEN_CHECKPOINTS):
            progress.advance(task)


def _stopped(run: _Run, what: str, path: Path, out: Path) -> ModelError:
    """Write the best weights so far, and return the error for a loss that is not finite."""
    left = "No step was finished, so no weights were written."
    if run.best.epoch:
        weights = _write_result(run, path, out, stopped=what)
        left = f"The weights of step {run.best.epoch}, the best before, are in {weights}."
    rate = f"a smaller learning rate than {run.settings.learning_rate:g}"
    smaller = rate if run.prior is None else f"a smaller weight of the prior, or {rate}"
    return ModelError(
        f"training stopped at step {run.training.epoch + 1} of {run.settings.epochs}: {what}. "
        f"{left}",
        argument="learning_rate",
        got=f"{run.settings.learning_rate:g}",
        remedy=f"Use {smaller}, and another folder.",
    )


def _write_result(run: _Run, path: Path, out: Path, stopped: str | None = None) -> Path:
    run.network.load_state_dict(run.best.weights)
    card = _card(run, path)
    if stopped is not None:
        card["stopped"] = f"at step {run.training.epoch + 1}: {stopped}"
    return write_network(run.network, card, out / WEIGHTS)


def _card(run: _Run, path: Path) -> dict[str, Any]:
    """The card of the network: its data, its training, its result."""
    settings = run.settings
    x, y = run.parts["test"]
    with torch.no_grad():
        right = float((run.network.probabilities(x).argmax(1) == y).double().mean())
    return {
        "name": "table",
        "parameters": sum(p.numel() for p in run.network.parameters()),
        "network": {"hidden": settings.hidden, "bias": settings.bias},
        "input": {"columns": run.network.names},
        "classes": run.network.classes,
        "data": {"file": path.name, "target": settings.target, "missing": settings.missing}
        | {"sha256": settings.file_sha256}
        | {part: len(rows) for part, rows in run.rows.items()},
        "recipe": {"epochs": settings.epochs, "learning_rate": settings.learning_rate}
        | {"optimiser": "Adam, all training rows in a step", "seed": settings.seed},
        "prior": settings.prior,
        "command": _command(settings, path),
        "result": {
            "epoch": run.best.epoch,
            "validation_auc": run.best.score,
            "test_auc": run.auc("test"),
            "test_accuracy": right,
        },
        "training": {
            "seconds": round(run.training.seconds, 2),
            **machine(torch.device(run.device).type),
        },
    }


def _command(settings: _Settings, path: Path) -> str | None:
    """The command line that trains the same network again, if there is one."""
    words = ["omenn", "train", "table", str(path), "--target", settings.target]
    words += [] if settings.bias else ["--no-bias"]
    words += ["--hidden", ",".join(map(str, settings.hidden))]
    words += ["--missing", settings.missing, "--epochs", str(settings.epochs)]
    words += ["--learning-rate", f"{settings.learning_rate:g}", "--seed", str(settings.seed)]
    if settings.prior is not None:
        if settings.prior["name"] != "sparsity":
            return None
        words += ["--prior", "sparsity", "--prior-weight", f"{settings.prior['weight']:g}"]
        words += ["--prior-method", settings.prior["method"]]
    return shlex.join(words)
