"""Many small trainings in one: R perceptrons side by side, their priors in closed form.

The gradient of a ReLU network at x is a product of its matrices, W₁ D₁ W₂ D₂ … w, where D holds
which units are on. These change nowhere but at a kink, so the derivative of a prior by the
parameters is that of the product with D held fixed: no second derivative has to be taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.xdnn.sparsity_data import Split
from omenn.models.randomness import seeded
from omenn.models.tabular import HIDDEN, TableNetwork, roc_auc

EPOCHS, LEARNING_RATE = 100, 1e-3
REFERENCES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Method:
    """A row of the table: which attribution is made sparse, and in which network.

    ``kind``: none; gradient; log-gradient, that of Σ_c log p_c; squares, the mean square of the
    latter in place of its sparsity; x-gradient; references, expected gradients with so many.
    """

    name: str
    label: str
    kind: str
    bias: bool = True
    references: int = 0


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("none", "no prior", "none"),
        Method("no-bias", "no prior, no bias", "none", bias=False),
        Method("grad", "Grad", "gradient"),
        Method("rrr", "RRR's gradient, sparse", "log-gradient"),
        Method("rrr-squares", "RRR, squared gradient", "squares"),
        Method("x-gradient", "**X-Gradient**, no bias", "x-gradient", bias=False),
        *(
            Method(f"eg-{count}", f"expected gradients, {count}", "references", references=count)
            for count in REFERENCES
        ),
    )
}


def network(features: int, number: int, *, bias: bool) -> TableNetwork:
    """The network that repetition ``number`` starts from, the same for every method."""
    with seeded(number):
        names = [str(k) for k in range(features)]
        return TableNetwork(names, ("0", "1"), hidden=HIDDEN, bias=bias)


class Stack:
    """R perceptrons with one output each, as matrices (R, in, out) and biases (R, 1, out)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        layers = [[m for m in net.modules() if isinstance(m, nn.Linear)] for net in networks]
        self.matrices = [
            torch.stack([layer.weight.detach().T for layer in alike]).requires_grad_()
            for alike in zip(*layers, strict=True)
        ]
        self.biases = [
            torch.stack([layer.bias.detach()[None] for layer in alike]).requires_grad_()
            for alike in zip(*layers, strict=True)
            if alike[0].bias is not None
        ]

    def parameters(self) -> list[Tensor]:
        return self.matrices + self.biases

    def run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (R, N) of x (R, N, F), and which units are on, (R, N, H) for each layer."""
        on = []
        for k, matrix in enumerate(self.matrices):
            x = torch.baddbmm(self.biases[k], x, matrix) if self.biases else x @ matrix
            if k + 1 < len(self.matrices):
                x = x.relu()
                on.append((x.detach() > 0).to(x.dtype))
        return x[..., 0], on

    def gradient(self, on: list[Tensor]) -> Tensor:
        """∇f (R, N, F) where these units are on, with its derivative by the parameters."""
        g = self.matrices[-1].transpose(1, 2)
        for matrix, units in zip(self.matrices[-2::-1], on[::-1], strict=True):
            g = (g * units) @ matrix.transpose(1, 2)
        return g


def prior(
    stack: Stack,
    method: Method,
    run: tuple[Tensor, list[Tensor]],
    x: Tensor,
    drawn: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The prior of each perceptron, (R,). ``run`` is that of x; ``drawn``: see ``draws``."""
    logits, on = run
    if method.kind == "references":
        assert drawn is not None
        return -gini(_expected_gradients(stack, x, *drawn))
    g = stack.gradient(on)
    if method.kind == "x-gradient":
        g = x * g
    elif method.kind != "gradient":
        # Σ_c log p_c = 2 log σ(f) − f, and its derivative by f is 1 − 2 σ(f) = −tanh(f/2)
        g = -torch.tanh(logits / 2)[..., None] * g
    return g.square().mean((1, 2)) if method.kind == "squares" else -gini(g)


def _expected_gradients(stack: Stack, x: Tensor, rows: Tensor, place: Tensor) -> Tensor:
    """Mean of (x − x′) ⊙ ∇f(x′ + t (x − x′)) over the references x′ of every row, (R, N, F)."""
    count, features = rows.shape[2], x.shape[2]
    numbers = torch.arange(len(x))[:, None, None]
    references = x[numbers, rows]  # (R, N, K, F)
    way = x[:, :, None] - references
    points = torch.addcmul(references, place[..., None], way)
    with torch.no_grad():
        _, on = stack.run(points.flatten(1, 2))
    g = stack.gradient(on).view(*x.shape[:2], count, features)
    return (way * g).mean(2)


def draws(rows: int, references: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For every row, numbers of references (N, K) and how far on the way from them, (N, K).

    Drawn as ``AttributionPrior`` draws, so that the same seed gives the same.
    """
    numbers = torch.randint(rows, (rows, references), generator=generator)
    place = torch.rand(rows, references, generator=generator, dtype=torch.float64)
    return numbers, place.float()


def gini(a: Tensor) -> Tensor:
    """Gini coefficient (R,) of the mean |a| over rows, of a (R, N, F).

    Σ_ij |g_i − g_j| / (2 n² ḡ) = Σ_k (2k − n − 1) g_k / (n Σ g), with g sorted; 0 for zeros.

    >>> gini(torch.tensor([[[0.0, 0, 3, 0], [0, 0, -1, 0]]])).tolist()
    [0.75]
    """
    g = a.abs().mean(1).sort(1).values
    n = g.shape[1]
    ranks = torch.arange(1 - n, n, 2, dtype=g.dtype)
    total = g.sum(1)
    return (g @ ranks) / (n * torch.where(total > 0, total, torch.ones_like(total)))


def areas(scores: Tensor, target: Tensor) -> Tensor:
    """ROC-AUC (R,) of scores and target (R, N), from all pairs."""
    order = (scores[:, :, None] - scores[:, None]).sign()
    first, second = target[:, :, None], 1 - target[:, None]
    return 0.5 + 0.5 * (order * first * second).sum((1, 2)) / (target.sum(1) * (1 - target).sum(1))


def train(
    method: Method,
    weight: float,
    split: Split,
    numbers: Sequence[int],
    epochs: int = EPOCHS,
) -> list[tuple[float, float]]:
    """Validation and test ROC-AUC of the repetitions ``numbers``, whose splits are stacked.

    Full batches, Adam, and of all epochs the weights that are best on the validation rows.
    """
    x, y = split.train
    stack = Stack([network(x.shape[2], number, bias=method.bias) for number in numbers])
    optimiser = torch.optim.Adam(stack.parameters(), lr=LEARNING_RATE)
    generators = [torch.Generator().manual_seed(number) for number in numbers]
    best = torch.full((len(numbers),), -torch.inf)
    kept = [parameter.detach().clone() for parameter in stack.parameters()]
    for _ in range(epochs):
        optimiser.zero_grad()
        _loss(stack, method, weight, x, y, generators).sum().backward()
        optimiser.step()
        with torch.no_grad():
            auc = areas(stack.run(split.validation[0])[0], split.validation[1])
            better = auc > best
            best = torch.where(better, auc, best)
            for old, new in zip(kept, stack.parameters(), strict=True):
                old[better] = new[better]
    with torch.no_grad():
        for old, new in zip(kept, stack.parameters(), strict=True):
            new.copy_(old)
        scores = stack.run(split.test[0])[0]
    test = [roc_auc(s, t.long()) for s, t in zip(scores, split.test[1], strict=True)]
    return list(zip(best.tolist(), test, strict=True))


def _loss(
    stack: Stack,
    method: Method,
    weight: float,
    x: Tensor,
    y: Tensor,
    generators: list[torch.Generator],
) -> Tensor:
    """Cross-entropy plus weight · prior of each perceptron, (R,)."""
    run = stack.run(x)
    loss = F.binary_cross_entropy_with_logits(run[0], y, reduction="none").mean(1)
    if method.kind == "none":
        return loss
    drawn = None
    if method.kind == "references":
        pairs = [draws(x.shape[1], method.references, g) for g in generators]
        drawn = torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])
    return loss + weight * prior(stack, method, run, x, drawn)
