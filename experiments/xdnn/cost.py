"""What a prior on attributions costs: seconds of a training step with it, over one without.

    python -m experiments.xdnn.cost --short          a small batch, a few rounds
    python -m experiments.xdnn.cost                  batch 64; goes on if stopped
    python -m experiments.xdnn.cost --write          and into docs/xdnn.md

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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments import timing
from experiments.report import ROOT, environment, table, write_block
from experiments.xdnn.networks import DOCUMENT, ORDER, Network, Scenes, loaded, scenes, version
from omenn.errors import OmennError
from omenn.progress import progress_bar
from omenn.xdnn import AttributionPrior, double_backward, priors
from omenn.xdnn.priors import attributions, prior_loss

COMMAND = "experiments.xdnn.cost"
BATCH, ROUNDS, SLOW_ROUNDS = 64, 11, 5
SHORT_BATCH, SHORT_ROUNDS = 8, 3
PRIOR, WEIGHT = "sparsity", 0.1
NONE = "without prior"

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
    results = timing.Results(a.work, a.fresh)
    code = version(prior_loss, attributions, priors, double_backward, Row, written_out, step_of)
    given = scenes("train", a.batch, a.device, a.work.parent / "scenes")
    found = []
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=len(groups(a.rounds)))
        for rows, rounds in groups(a.rounds):
            name = rows[0].name if rows[0].slow else "one forward pass"
            bar.update(task, description=name)
            place = f"b{a.batch}-{a.device}-t{a.threads}-{rounds}"
            key = f"{network.name}-{network.digest}-{code}-{name}-{place}".replace(" ", "_")
            taken = lambda rows=rows, n=rounds: measured(network, given, rows, n)  # noqa: E731
            found.append(results.take(key, taken))
            bar.advance(task)
    return found


# --- words ------------------------------------------------------------------------------------


def ratios(taken: Mapping[str, Sequence[float]], name: str) -> list[float]:
    """Seconds with the prior / seconds without, within each round."""
    return [t / none for t, none in zip(taken[name], taken[NONE], strict=True)]


def cells(found: Sequence[Mapping[str, Sequence[float]]]) -> list[list[str]]:
    """A row for each way to attribute, the step without a prior the first."""
    low, mid, high = timing.spread(found[0][NONE])
    lines = [[NONE, "1", f"{1000 * mid:.0f} ({1000 * low:.0f}–{1000 * high:.0f})"]]
    for taken in found:
        for name in taken:
            if name != NONE:
                low, mid, high = timing.spread(ratios(taken, name))
                seconds = [1000 * t for t in timing.spread(taken[name])]
                ratio = f"{mid:.2f} ({low:.2f}–{high:.2f})"
                lines.append([name, ratio, f"{seconds[1]:.0f} ({seconds[0]:.0f}–{seconds[2]:.0f})"])
    return lines


def text_of(found: Sequence[Mapping[str, Sequence[float]]], a: argparse.Namespace) -> str:
    header = ["prior on", "× a step without", "ms a step"]
    slow = min(a.rounds, SLOW_ROUNDS)
    note = (
        f"`{a.arch}`, {a.batch} scenes of 64 px, float32, {a.device}; medians over {a.rounds} "
        f"paired rounds ({slow} with 16 points, in rounds of their own, whose ms are not to be "
        "compared with the others'), in brackets the quartiles (of fewer than five the "
        f"least and the most). Written by `python -m {COMMAND} --write`; {environment()}."
    )
    return f"{table(header, cells(found))}\n\n{note}"


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; one line and exit code 2 for those that cannot be used."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="birds-resnet", help=f"one of {', '.join(ORDER)}")
    parser.add_argument("--batch", type=int, help=f"scenes of a step (default {BATCH})")
    parser.add_argument("--rounds", type=int, help=f"of the clock (default {ROUNDS})")
    parser.add_argument("--short", action="store_true", help="a taste, in about a minute")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="measure all again")
    parser.add_argument("--write", action="store_true", help="update docs/xdnn.md")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/xdnn/cost", help="results")
    a = parser.parse_args(words)
    if a.batch is None:
        a.batch = SHORT_BATCH if a.short else BATCH
    if a.rounds is None:
        a.rounds = SHORT_ROUNDS if a.short else ROUNDS
    if a.arch not in ORDER:
        timing.fail(COMMAND, f"no network {a.arch!r}. Choose from: {', '.join(ORDER)}.")
    if a.batch < 2 or a.rounds < 1 or a.threads < 1:
        timing.fail(COMMAND, "--batch is at least 2, --rounds and --threads at least 1.")
    if a.write and a.short:
        timing.fail(COMMAND, "--write publishes the full form: leave --short out.")
    if a.device.startswith("cuda") and not torch.cuda.is_available():
        timing.fail(COMMAND, f"--device {a.device}: this torch sees no GPU.")
    return a


def main(words: Sequence[str] | None = None) -> None:
    a = parsed(words)
    torch.set_num_threads(a.threads)
    try:
        network = loaded(a.arch, None, 0, a.device)
    except OmennError as error:
        timing.fail(COMMAND, str(error))
    if network is None:
        timing.fail(COMMAND, f"{a.arch} is not bundled.")
    with timing.resumable(COMMAND):
        text = text_of(run(a, network), a)
    print(text)
    if a.write:
        write_block(DOCUMENT, "cost", text)


if __name__ == "__main__":
    main()
