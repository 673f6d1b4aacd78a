"""Multilayer perceptrons on CSV tables, with or without biases and attribution priors.

A network without biases is an X-DNN: f(αx) = α f(x), so that x ⊙ ∇f are its integrated gradients.
Two classes have one output, the log-odds of the second class; more have one output each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from omenn.data.tables import Scale
from omenn.errors import InputError, WeightsError, of_file, reason
from omenn.files.reading import read_json
from omenn.models.checkpoints import load_weights
from omenn.models.randomness import seeded

HIDDEN = (512, 128, 32)
WEIGHTS, CARD = "table.safetensors", "table.json"


class TableNetwork(nn.Module):
    """ReLU layers of the widths ``hidden`` on standardised columns (N, F); returns logits.

    ``standardised`` takes raw columns of a file. It is not part of ``forward``, as its shift would
    be an additive term.

    >>> network = TableNetwork(("age", "weight"), ("well", "ill"), hidden=(8,), bias=False)
    >>> x = network.standardised(torch.tensor([[61.0, 80.0]]))
    >>> assert torch.allclose(network(3 * x), 3 * network(x))
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        names: Sequence[str],
        classes: Sequence[str],
        *,
        hidden: Sequence[int] = HIDDEN,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.names, self.classes = tuple(names), tuple(classes)
        widths = (len(self.names), *hidden, 1 if len(self.classes) == 2 else len(self.classes))
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow, bias=bias), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.register_buffer("mean", torch.zeros(len(self.names)))
        self.register_buffer("deviation", torch.ones(len(self.names)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def standardised(self, features: Tensor) -> Tensor:
        """Columns of a table (N, F) as the network reads them; NaN becomes the training mean."""
        return Scale(self.mean, self.deviation).applied(features)

    def probabilities(self, x: Tensor) -> Tensor:
        """Probabilities of the classes (N, C)."""
        logits = self(x)
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        return logits.softmax(1)


def roc_auc(scores: Tensor, target: Tensor) -> float:
    """Area under the ROC curve: the share of pairs in the right order, ties count half.

    ``scores`` are those of the second of two classes, (N,), or of all classes, (N, C). For (N, C)
    the result is the mean, over the classes that occur, of one class against the rest. ``target``
    (N,) holds class indices.

    Raises InputError if all rows are of one class, or a score is NaN.

    >>> roc_auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.75
    """
    if scores.ndim == 1:
        return _area(scores, target == 1)
    kinds = target.unique().tolist()
    areas = [_area(scores[:, kind], target == kind) for kind in kinds]
    return math.fsum(areas) / len(areas)


def _area(scores: Tensor, positive: Tensor) -> float:
    """Mann and Whitney: (R - n₁(n₁+1)/2) / (n₁ n₀), R the sum of the ranks of the positive rows."""
    first = int(positive.sum())
    rest = len(positive) - first
    if not first or not rest:
        raise InputError(
            "the ROC curve needs rows of both classes; all are of one.",
            argument="target",
            got="one class",
            expected="two classes",
        )
    if scores.isnan().any():
        raise InputError(
            "the ROC curve cannot order scores that are NaN.",
            argument="scores",
            got="nan",
            expected="finite numbers",
        )
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    rank = counts.cumsum(0).double() - (counts - 1).double() / 2  # ties have their mean rank
    total = float(rank[place][positive].sum())
    return (total - first * (first + 1) / 2) / (first * rest)


def load(folder: Path | str) -> TableNetwork:
    """The network that ``train_table`` wrote to a folder, on the CPU and in evaluation mode.

    ``network.names`` are its columns, ``network.classes`` its classes; explain it with
    ``omenn.explain(network, network.standardised(features), method="xgradient", check=True)``.

    Raises WeightsError if there is none, or one of its files is damaged.
    """
    card_path = Path(folder) / CARD
    try:
        card = read_json(card_path, "card", kind=WeightsError)
        shape = card["network"]
        with seeded(0):  # layers draw random weights first
            network = TableNetwork(
                card["input"]["columns"],
                card["classes"],
                hidden=shape["hidden"],
                bias=shape["bias"],
            )
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        text = f"the card '{card_path}' cannot be read: {reason(error)}."
        remedy = "Name the folder that 'omenn train table' wrote to, or train again."
        raise of_file(WeightsError, card_path, text, remedy) from error
    load_weights(network, Path(folder) / WEIGHTS)
    return network.eval()
