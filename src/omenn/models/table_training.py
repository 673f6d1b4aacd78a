"""Training of networks on CSV tables: seeded, resumable, the best weights on validation kept."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import platform
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from omenn.data.tables import MOST, Scale, Table, read_table
from omenn.engine.digest import content
from omenn.errors import InputError, ModelError, WeightsError
from omenn.files.atomic import replacing, write_checkpoint
from omenn.files.reading import read_bytes, read_json
from omenn.models.checkpoints import read_checkpoint
from omenn.models.randomness import seeded
from omenn.models.recipes import LARGEST_RATE
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
    """All that decides the outcome beside the rounding of the machine."""

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


class _Diverged(Exception):
    """The loss or its gradient is not finite; the weights are those before this step."""


class _Run:
    """A training in progress: network, optimiser, the best weights so far, epochs done."""

    def __init__(self, table: Table, settings: _Settings, prior: Prior | None, device: str) -> None:
        self.table, self.settings, self.device = table, settings, device
        # Its random numbers run on, the caller's stay.
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
        self.network = network.to(device).eval()  # no layer of it behaves otherwise in training
        self.optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        self.epoch, self.seconds, self.loss = 0, 0.0, math.nan
        self.best: dict[str, Any] = {"epoch": 0, "auc": -math.inf, "weights": {}}

    def save(self, path: Path) -> None:
        state = {
            "settings": asdict(self.settings),
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "loss": self.loss,
            "prior": getattr(self.prior, "state_dict", dict)(),
        }
        write_checkpoint(state, path)

    def load(self, path: Path) -> None:
        state = read_checkpoint(path, self.device)
        if not isinstance(state, dict) or state.get("settings") != asdict(self.settings):
            raise WeightsError(
                f"the checkpoint {path} belongs to another training. "
                "Remove it, or choose another folder."
            )
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.best, self.epoch = state["best"], state["epoch"]
        self.seconds, self.loss = state["seconds"], state["loss"]
        if state["prior"]:  # it draws on where it was
            getattr(self.prior, "load_state_dict")(state["prior"])  # noqa: B009

    def train_epoch(self) -> None:
        """One step on all training rows, then the validation rows."""
        started = time.monotonic()
        self.loss = self._step(*self.parts["train"])
        if not self.logits("validation").isfinite().all():
            raise _Diverged("the output after it is not finite")
        self.epoch += 1
        auc = self.auc("validation")
        if auc > self.best["auc"]:
            weights = copy.deepcopy(self.network.state_dict())
            self.best = {"epoch": self.epoch, "auc": auc, "weights": weights}
        self.seconds += time.monotonic() - started

    def _step(self, x: Tensor, y: Tensor) -> float:
        logits = self.network(x)
        if logits.shape[1] == 1:
            loss = F.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits.dtype))
        else:
            loss = F.cross_entropy(logits, y)
        if self.prior is not None:
            explained = torch.zeros_like(y) if logits.shape[1] == 1 else y
            loss = loss + self._prior(self.prior, x, explained)
        self.optimiser.zero_grad()
        loss.backward()
        length = nn.utils.get_total_norm(
            [p.grad for p in self.network.parameters() if p.grad is not None]
        )
        if not loss.isfinite():
            raise _Diverged(f"the loss is {float(loss.detach()):g}")
        if not length.isfinite():
            raise _Diverged("the gradient of the loss is not finite")
        self.optimiser.step()
        return float(loss.detach())

    def _prior(self, prior: Prior, x: Tensor, explained: Tensor) -> Tensor:
        try:
            return prior(self.network, x, explained)
        except InputError as error:
            if not self.epoch and not isinstance(error, TermNotFinite):
                raise  # a mistake of the caller, as nothing has been trained yet
            raise _Diverged(str(error).rstrip(".")) from error

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

    Of every class 60 % of the rows train, 20 % choose the epoch, 20 % are read once at the end.
    Columns are standardised by the training rows. Adam takes one step an epoch, on all training
    rows; the weights kept are those with the largest validation ROC-AUC. ``prior``, such as an
    ``omenn.xdnn.AttributionPrior``, is added to the loss. ``bias=False`` trains an X-DNN.

    Writes ``table.safetensors``, its card ``table.json``, and checkpoints: started again with the
    same arguments an interrupted training goes on, on a CPU to the same weights, bit for bit.

    Raises InputError for a table that cannot be read or split and numbers without sense,
    ModelError where the loss is no longer finite (the best weights before that are written),
    WeightsError for the checkpoint of another training, OutputError where nothing can be written.
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
        prior=_described(prior),
        prior_state=_state(prior),
        seed=seed,
    )
    run = _Run(table, settings, prior, device)
    checkpoint = out / _CHECKPOINT
    if checkpoint.exists():
        run.load(checkpoint)
    try:
        _train(run, checkpoint, console)
    except _Diverged as stop:
        raise _stopped(run, str(stop), path, out) from stop
    return _write_result(run, path, out)


def widths(text: str) -> tuple[int, ...]:
    """Widths of hidden layers as the command line spells them. Raises InputError.

    >>> widths("64, 16"), widths("")
    ((64, 16), ())
    """
    try:
        return tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise InputError(
            f"hidden is '{text}'; give whole numbers with commas between them, such as 512,128,32."
        ) from None


def summary(weights: Path) -> tuple[str, str]:
    """What to say of a finished training: how good, and how to read it."""
    card = read_json(weights.with_name(CARD), "card")
    found, folder = card["result"], str(weights.parent)
    return (
        f"wrote {weights}: ROC-AUC {found['validation_auc']:.4f} on {card['data']['validation']} "
        f"validation rows (step {found['epoch']} of {card['recipe']['epochs']}), "
        f"{found['test_auc']:.4f} on {card['data']['test']} test rows",
        f"read it in Python: omenn.models.tabular.load({folder!r})",
    )


def split(table: Table, seed: int) -> dict[str, Tensor]:
    """Numbers of the rows that train, validate and test, drawn in every class by itself.

    Raises InputError for a class with fewer than three rows.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}
    for kind, name in enumerate(table.classes):
        rows = (table.target == kind).nonzero()[:, 0]
        if len(rows) < 3:
            raise InputError(
                f"class '{name}' has {len(rows)} row{'s' if len(rows) > 1 else ''}; training, "
                "validation and test need one each. Add rows, merge classes, or remove the class."
            )
        rows = rows[torch.randperm(len(rows), generator=generator)]
        counts = [max(1, round(share * len(rows))) for share in SHARES.values()]
        rest = len(rows) - sum(counts)
        for part, some in zip((*SHARES, "train"), rows.split([*counts, rest]), strict=True):
            found[part].append(some)
    return {part: torch.cat(rows) for part, rows in found.items()}


def _check(hidden: Sequence[int], epochs: int, learning_rate: float) -> None:
    if any(width < 1 for width in hidden):
        raise InputError(f"hidden is {tuple(hidden)}; every width is at least 1.")
    if epochs < 1:
        raise InputError(f"epochs is {epochs}; at least 1 is needed.")
    if not 0 < learning_rate <= LARGEST_RATE:
        raise InputError(f"learning_rate is {learning_rate}; choose one above 0, such as 0.001.")


def _train(run: _Run, checkpoint: Path, console: Console | None) -> None:
    """The epochs that are left; a checkpoint now and then, and after the last."""
    saved = time.monotonic()
    with progress_bar(console) as progress:
        task = progress.add_task("table", total=run.settings.epochs, completed=run.epoch)
        while run.epoch < run.settings.epochs:
            run.train_epoch()
            progress.advance(task)
            last = run.epoch == run.settings.epochs
            if last or time.monotonic() - saved >= _SECONDS_BETWEEN_CHECKPOINTS:
                run.save(checkpoint)
                saved = time.monotonic()


def _stopped(run: _Run, what: str, path: Path, out: Path) -> ModelError:
    """Keep the best weights so far; what to say when the loss is NaN."""
    left = "No step was finished, so no weights were written."
    if run.best["epoch"]:
        weights = _write_result(run, path, out, stopped=what)
        left = f"The weights of step {run.best['epoch']}, the best before, are in {weights}."
    remedy = f"a smaller learning rate than {run.settings.learning_rate:g}"
    if run.prior is not None:
        remedy = f"a smaller weight of the prior, or {remedy}"
    return ModelError(
        f"training stopped at step {run.epoch + 1} of {run.settings.epochs}: {what}. {left} "
        f"Use {remedy}, and another folder."
    )


def _described(prior: Prior | None) -> dict[str, Any] | None:
    """A prior in words and numbers, as card and checkpoint record it."""
    if prior is None:
        return None
    if not isinstance(prior, AttributionPrior):
        return {"name": getattr(prior, "__name__", type(prior).__name__)}
    options = {
        key: _digest(value) if isinstance(value, Tensor) else value
        for key, value in prior.options.items()
    }
    found = {"name": prior.name, "weight": prior.weight, "method": prior.method}
    return found | {"fraction": prior.fraction, "options": options}


def _state(prior: Prior | None) -> str | None:
    """Where its random numbers begin."""
    return _digest(prior.state_dict()["generator"]) if isinstance(prior, AttributionPrior) else None


def _digest(values: Tensor) -> str:
    found = hashlib.sha256(content(values)).hexdigest()
    return f"{'×'.join(map(str, values.shape))} {values.dtype}, sha256 {found}"


def _write_result(run: _Run, path: Path, out: Path, stopped: str | None = None) -> Path:
    run.network.load_state_dict(run.best["weights"])
    weights = out / WEIGHTS
    with replacing(weights) as beside:
        state = {name: value.cpu() for name, value in run.network.state_dict().items()}
        beside.write_bytes(save(state))
    card = _card(run, path) | {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    if stopped is not None:
        card["stopped"] = f"at step {run.epoch + 1}: {stopped}"
    with replacing(out / CARD) as beside:
        beside.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return weights


def _card(run: _Run, path: Path) -> dict[str, Any]:
    """What one has to know of the network: its data, its training, how good it is."""
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
            "epoch": run.best["epoch"],
            "validation_auc": run.best["auc"],
            "test_auc": run.auc("test"),
            "test_accuracy": right,
        },
        "training": {
            "seconds": round(run.seconds, 2),
            "device": torch.device(run.device).type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
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
