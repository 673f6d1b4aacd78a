"""One training of experiment 3 with ``AttributionPrior``, as one would write it, and its time."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.xdnn.sparsity_data import Split
from experiments.xdnn.sparsity_stacked import EPOCHS, LEARNING_RATE, Method, network
from omenn.models.tabular import roc_auc
from omenn.xdnn import AttributionPrior


class LogProbabilities(nn.Module):
    """Σ_c log p_c of a network whose output is the log-odds f of two classes: 2 log σ(f) − f."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        f = self.model(x)
        return 2 * F.logsigmoid(f) - f


def squares(attributions: Tensor) -> Tensor:
    """The mean square: the loss of Ross et al. with nothing allowed."""
    return attributions.square().mean()


def term(method: Method, weight: float, x: Tensor, seed: int) -> Callable[[nn.Module], Tensor]:
    """What is added to the loss of a model at the training rows x."""
    if method.kind == "none":
        return lambda model: torch.zeros(())
    if method.kind == "references":
        count = method.references
        prior = AttributionPrior(
            "sparsity", weight, "expected-gradients", steps=count, references=x, seed=seed
        )
    elif method.kind == "x-gradient":
        prior = AttributionPrior("sparsity", weight, "xgradient")
    else:
        prior = AttributionPrior(
            squares if method.kind == "squares" else "sparsity", weight, "gradient"
        )
    if method.kind in ("squares", "log-gradient"):
        return lambda model: prior(LogProbabilities(model), x)
    return lambda model: prior(model, x)


def train(
    method: Method, weight: float, split: Split, number: int, epochs: int = EPOCHS
) -> tuple[float, tuple[float, float]]:
    """CPU seconds of the training, and its ROC-AUC on validation and test rows.

    ``split`` is that of repetition ``number`` alone.
    """
    (x, y), (x_validation, y_validation) = split.train, split.validation
    model = network(x.shape[1], number, bias=method.bias)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    prior = term(method, weight, x, number)
    best, kept = -1.0, model.state_dict()
    started = time.process_time()
    for _ in range(epochs):
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(x)[:, 0], y) + prior(model)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            auc = roc_auc(model(x_validation)[:, 0], y_validation.long())
        if auc > best:
            best, kept = auc, {k: v.clone() for k, v in model.state_dict().items()}
    seconds = time.process_time() - started
    model.load_state_dict(kept)
    with torch.no_grad():
        test = roc_auc(model(split.test[0])[:, 0], split.test[1].long())
    return seconds, (best, test)
