"""What a prior on attributions costs: seconds of a training step with it, over one without.

    python -m experiments.xdnn.cost --short          a small batch, a few rounds
    python -m experiments.xdnn.cost                  batch 64; goes on if stopped
    python -m experiments.xdnn.cost --write          and into docs/xdnn-experiments.md

A step is the forward pass in training mode, cross-entropy, the prior (sparsity), the backward pass
and AdamW, whose learning rate is 0 so that all steps are alike. All steps are timed in turn within
each round, the one without a prior among them; a ratio is the median over rounds of the ratio
within a round, with the quartiles. "Plain PyTorch" is X-Gradient as one would write it, without
the replacements of omenn.xdnn.double_backward. Those with 16 points have rounds of their own, and
fewer, and need about 5 GB of memory at batch 64.
Finished measurements are kept in runs/xdnn/cost and used again as long as the code is the same.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments import timing
from experiments.command import Command, Job
from experiments.report import environment, quartiles, table
from experiments.store import version
from experiments.xdnn.networks import ORDER, Network, Scenes, loaded, scenes
from omenn.errors import OmennError
from omenn.xdnn import AttributionPrior, double_backward, priors
from omenn.xdnn.priors import attributions, prior_loss

BATCH, ROUNDS, SLOW_ROUNDS = 64, 11, 5
SHORT_BATCH, SHORT_ROUNDS = 8, 3
PRIOR, WEIGHT = "sparsity", 0.1
NONE = "without prior"
SHARED = ("threads", "device", "short", "fresh", "write", "work")
COMMAND = Command("xdnn.cost", __doc__, *SHARED)
COMMAND.add("--arch", default="birds-resnet", choices=ORDER, help="a bundled network")
COMMAND.add("--batch", type=int, help=f"scenes of a step (default {BATCH})")
COMMAND.add("--rounds", type=int, help=f"of the clock (default {ROUNDS})")
COMMAND.least |= {"batch": 2}

Term = Callable[[nn.Module, Tensor, Tensor], Tensor]
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Row:
    """A way to attribute: of the prior, or in plain PyTorch."""

    name: str
    method: str = "xgradient"
    fraction: float = 1.0
    steps: int | None = None
    plain: bool = False

    @property
    def slow(self) -> bool:
        return (self.steps or 1) > 1

    def term(self, references: Tensor) -> Term:
        if self.plain:
            return written_out
        options: dict[str, Any] = {} if self.steps is None else {"steps": self.steps}
        if self.method == "expected-gradients":
            options["references"] = references
        return AttributionPrior(PRIOR, WEIGHT, self.method, fraction=self.fraction, **options)


ROWS = (
    Row("gradient", "gradient"),
    Row("X-Gradient"),
    Row("X-Gradient, plain PyTorch", plain=True),
    Row("expected gradients, 1 reference", "expected-gradients", steps=1),
    Row("omenn", "omenn"),
    Row("omenn, half of the batch", "omenn", 0.5),
    Row("omenn, a quarter of the batch", "omenn", 0.25),
    Row("integrated gradients, 16 points", "integrated-gradients", steps=16),
    Row("expected gradients, 16 references", "expected-gradients", steps=16),
)


def written_out(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same term by PyTorch alone."""
    model.eval()
    leaf = x.clone().requires_grad_()
    f = model(leaf).gather(1, y[:, None]).sum()
    (grad,) = torch.autograd.grad(f, leaf, create_graph=True)
    model.train()
    return WEIGHT * priors.PRIORS[PRIOR](x * grad)


# --- seconds ----------------------------------------------------------------------------------


def step_of(model: nn.Module, given: Scenes, term: Term | None) -> Callable[[], None]:
    """A training step as a call."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        optimiser.zero_grad()
        loss = F.cross_entropy(model(given.x), given.y)
        if term is not None:
            loss = loss + term(model, given.x, given.y)
        loss.backward()
        optimiser.step()

    return step


def measured(network: Network, given: Scenes, rows: Sequence[Row], rounds: int) -> Seconds:
    """Seconds of each step in each round, that without a prior the first."""
    model = copy.deepcopy(network.model).train().requires_grad_(True)
    calls = {NONE: step_of(model, given, None)}
    calls |= {row.name: step_of(model, given, row.term(given.x)) for row in rows}
    return timing.paired(calls, rounds, warm_up=1, device=given.x.device.type)


def groups(rounds: int) -> list[tuple[list[Row], int]]:
    """Which steps are timed together, and how often: the slow ones each alone, and less often."""
    quick = [row for row in ROWS if not row.slow]
    return [(quick, rounds), *(([row], min(rounds, SLOW_ROUNDS)) for row in ROWS if row.slow)]


def run(a: argparse.Namespace, network: Network) -> list[Seconds]:
    """The seconds of each group, those on disk included."""
    code = version(prior_loss, attributions, priors, double_backward, Row, written_out, step_of)
    given = scenes("train", a.batch, a.device, a.work.parent / "scenes")
    jobs = []
    for rows, rounds in groups(a.rounds):
        name = rows[0].name if rows[0].slow else "one forward pass"
        place = f"b{a.batch}-{a.device}-t{a.threads}-{rounds}"
        key = f"{network.name}-{network.digest}-{code}-{name}-{place}"
        jobs.append(Job(name, key, partial(measured, network, given, rows, rounds)))
    return COMMAND.results(a, jobs)


# --- words ------------------------------------------------------------------------------------


def cells(found: Sequence[Mapping[str, Sequence[float]]]) -> list[list[str]]:
    """A row for each way to attribute, the step without a prior the first."""
    lines = [[NONE, "1", _milliseconds(found[0][NONE])]]
    for taken in found:
        for name in taken:
            if name != NONE:
                ratio = quartiles(timing.ratios(taken, name, NONE))
                lines.append([name, ratio, _milliseconds(taken[name])])
    return lines


def _milliseconds(seconds: Sequence[float]) -> str:
    return quartiles([1000 * t for t in seconds], ".0f")


def text_of(found: Sequence[Mapping[str, Sequence[float]]], a: argparse.Namespace) -> str:
    header = ["prior on", "× a step without", "ms a step"]
    slow = min(a.rounds, SLOW_ROUNDS)
    note = (
        f"`{a.arch}`, {a.batch} scenes of 64 px, float32, {a.device}; medians over {a.rounds} "
        f"paired rounds ({slow} with 16 points, in rounds of their own, whose ms are not to be "
        "compared with the others'), in brackets the quartiles (of fewer than five the "
        f"least and the most). {COMMAND.written()}; {environment()}."
    )
    return f"{table(header, cells(found))}\n\n{note}"


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with the numbers of the form that is asked for."""
    a = COMMAND.parse(words)
    a.batch = a.batch or (SHORT_BATCH if a.short else BATCH)
    a.rounds = a.rounds or (SHORT_ROUNDS if a.short else ROUNDS)
    return a


def main(words: Sequence[str] | None = None) -> None:
    a = parsed(words)
    try:
        network = loaded(a.arch, None, 0, a.device)
    except OmennError as error:
        COMMAND.fail(str(error))
    if network is None:
        COMMAND.fail(f"{a.arch} is not bundled.")
    COMMAND.publish(a, "xdnn-experiments.md", cost=text_of(run(a, network), a))


if __name__ == "__main__":
    main()
