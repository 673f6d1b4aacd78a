"""What a method is asked: one number of a model, attributed to what the model was given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from omenn.attribution.ordinary_gradient import Move, OrdinaryRun, OrdinaryTracer
from omenn.attribution.rule_table import RuleTable
from omenn.check import choose
from omenn.engine import explain as engine
from omenn.engine.depth import RESAMPLINGS
from omenn.engine.run import FrozenRun
from omenn.engine.target import Contrast, Target, pick_output
from omenn.engine.trace.guards import alone
from omenn.engine.trace.tracer import Tracer
from omenn.explanation import Explanation


@dataclass(frozen=True, eq=False)
class Question:
    """A model, its inputs and a target, with the standing options, which mean the same everywhere.

    ``at``: the module whose output is attributed to, None for the input. ``resample``: how its map
    is resampled to the input. ``output``: where the logits are in what the model returns.
    ``channel_dim``: the dimension over which the map is summed. See
    :func:`omenn.engine.explain.explain`.

    Raises:
        InputError: ``resample`` is not known.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU()).eval()
        >>> e = Question(net, torch.randn(2, 3), 0).propagate(RuleTable())
        >>> assert torch.allclose(e.matrix.sum(1), e.output, atol=1e-5)
    """

    model: Any
    inputs: Any
    target: Target = None
    at: Any = None
    resample: str = "bilinear"
    output: Any = None
    channel_dim: int | None = None

    def __post_init__(self) -> None:
        choose("resample", self.resample, RESAMPLINGS)

    def frozen_run(
        self,
        *,
        bias: str = "none",
        kind: type[FrozenRun] = FrozenRun,
        tracer: type[Tracer] = Tracer,
        **options: Any,
    ) -> Any:
        """One forward pass of the frozen model; ``options`` go to the tracer."""
        given = (self.model, self.inputs, self.at, bias, self.channel_dim)
        return kind(*given, options, tracer, resample=self.resample)

    def ordinary_run(
        self,
        *,
        bias: str = "none",
        kind: type[OrdinaryRun] = OrdinaryRun,
        tracer: type[OrdinaryTracer] = OrdinaryTracer,
        move: Move | None = None,
    ) -> Any:
        """One forward pass of the ordinary model, see :class:`OrdinaryRun`."""
        return kind(
            self.model,
            self.inputs,
            at=self.at,
            channel_dim=self.channel_dim,
            resample=self.resample,
            bias=bias,
            tracer=tracer,
            move=move,
        )

    def run_under(self, rules: RuleTable, *, bias: str = "none") -> FrozenRun:
        """One forward pass under other rules than the frozen ones."""
        return self.frozen_run(bias=bias, rules=rules.table(), freeze_bounded=rules.freeze_bounded)

    def propagate(self, rules: RuleTable) -> Explanation:
        """R = x ⊙ g by the rules of a table, R = f_c(x) at the target."""
        return self.answered_by(self.run_under(rules))

    def exact(self, **options: Any) -> Explanation:
        """The exact explanation; ``options`` of :func:`omenn.engine.explain.explain`."""
        standing = {
            "at": self.at,
            "resample": self.resample,
            "output": self.output,
            "channel_dim": self.channel_dim,
        }
        return engine.explain(self.model, self.inputs, self.target, **(standing | options))

    def number(self, run: FrozenRun) -> tuple[Tensor, Tensor]:
        """(f, class index): the explained numbers of a run."""
        return run.target(self.target, self.output)

    def answered_by(self, run: FrozenRun) -> Explanation:
        """The explanation from the gradient of the explained number, as this run has it."""
        f, index = self.number(run)
        return run.wrap(f, index, run.pull_back(f))

    def gradients(self, run: FrozenRun) -> list[Tensor]:
        """∂f/∂x of a run, one for each explained input."""
        return run.pull_back(self.number(run)[0]).inputs

    def with_fixed_target(self, run: FrozenRun, index: Tensor) -> Question:
        """The question at other inputs: about the classes of this run, whatever is largest there.

        Its maps at a module stay at the resolution of the module.
        """
        return replace(self, target=self._fixed_target(run, index), resample="none")

    def _fixed_target(self, run: FrozenRun, index: Tensor) -> Target:
        target = self.target
        if not isinstance(target, Contrast):
            return target if callable(target) else index
        if target.b != "runner-up":
            return target
        logits = pick_output(run.out, self.output).detach()
        return Contrast(index, target.against(logits).argmax(1))


@alone()
def propagate(
    model: Any,
    inputs: Any,
    target: Target,
    rules: RuleTable,
    *,
    at: str | None = None,
    resample: str = "bilinear",
    output: Any = None,
    channel_dim: int | None = None,
) -> Explanation:
    """The relevance of the input for one output, R = x ⊙ g, by the rules of a table.

    It starts with R = f_c(x) at the target. Constants get nothing: ``bias`` is zero, and the
    residual is what they, and the rules, keep. Arguments and errors as of :func:`omenn.explain`.

    Example:
        >>> import torch
        >>> from omenn.attribution import RuleTable, propagate
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.ReLU()).eval()
        >>> e = propagate(net, torch.randn(2, 3), 0, RuleTable())
        >>> assert torch.allclose(e.matrix.sum(1), e.output, atol=1e-5)
    """
    return Question(model, inputs, target, at, resample, output, channel_dim).propagate(rules)
