"""One forward pass of the frozen model, and explanations from it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from omenn.engine.backward import Backward, Gradients
from omenn.engine.depth import Depth, depth_of
from omenn.engine.explainable import check_model
from omenn.engine.inputs import NOT_COLLECTED, Inputs
from omenn.engine.location.batch_axis import along_samples, of_samples, recounted
from omenn.engine.location.constants import spread
from omenn.engine.location.entries import Reoriented
from omenn.engine.model_state import Again, State
from omenn.engine.probabilities import logits_of
from omenn.engine.target import Target, check_finite, pick_output, select
from omenn.engine.trace.attempt import Pass
from omenn.engine.trace.call import tensors_in
from omenn.engine.trace.departures import check_departures
from omenn.engine.trace.graph import violations
from omenn.engine.trace.marks import Mark
from omenn.engine.trace.refusals import blame, nothing_flows
from omenn.engine.trace.tracer import Tracer
from omenn.engine.trace.transforms import NeedsHistory
from omenn.errors import (
    InputError,
    OmennError,
    TargetError,
    UnsupportedOperator,
)
from omenn.explanation import (
    TOLERANCES,
    Explanation,
    by_reason,
    located_shares,
    owned,
    sums,
)


class FrozenRun(Backward):
    """One forward pass of the frozen model, from which outputs are pulled back.

    With ``bias`` in ``NOT_COLLECTED`` constants are not collected, as other rule tables want it.
    ``options`` go to the tracer, which may be another than the engine's own. ``resample``
    says how a map at a module's output is brought to the input.
    """

    def __init__(
        self,
        model: Any,
        inputs: Any,
        at: str | None,
        bias: str,
        channel_dim: int | None,
        options: dict[str, Any],
        tracer: type[Tracer] = Tracer,
        resample: str = "none",
    ) -> None:
        check_model(model, at)
        self.tracer, self.resample = tracer, resample
        self.model, self.raw, self.at, self.bias = model, inputs, at, bias
        self.channel_dim, self.options = channel_dim, options
        self.samples: int | None = None  # how many, if not as many as the first input has rows
        self.channel_dims: dict[int, int] = {}  # entry -> dimension of its channels
        self.axes: dict[int, int] = {}  # entry -> dimension of the samples
        self.explains = ""  # which number, if it is not the output itself
        self.how = Pass(along_attention=bias == "attention", smooth=bias == "bilinear")
        self.asked: dict[int, tuple[Tensor, Target, Any]] = {}  # explained numbers, by id
        self.renewed: dict[int, Tensor] = {}  # the same in another forward pass
        self.shaken: dict[Any, FrozenRun] = {}  # see departures.py
        self._forward(batched=True)

    def _forward(self, batched: bool) -> None:
        self.state, self.how = State(self.model), replace(self.how, strong=False, history=False)
        try:
            self.state.run(lambda: self._pass(batched))
        except Reoriented as other:
            self.channel_dims[other.index] = other.channel
            self._forward(batched)
        except (OmennError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if not hasattr(self, "inputs"):
                raise
            raise blame(self.model, self.inputs, error, self.state) from error

    def _pass(self, batched: bool) -> None:
        module = self.model if isinstance(self.model, nn.Module) else None
        self.mode = self.tracer(module, state=self.state, how=self.how, **self.options)
        self.shaken = {}
        depth = self._depth(batched)
        known, channel_dim = ((), self.channel_dim) if depth is None else (depth.channels(), None)
        self.inputs = Inputs(
            self.mode,
            self.raw,
            self.bias,
            channel_dim,
            batched,
            known,
            self.samples,
            self.axes,
            self.channel_dims,
        )
        try:
            with torch.inference_mode(False), torch.enable_grad():
                self.out = self.inputs.run(self.model, self.at)
        except Exception as error:
            self._start_anew(error)
            raise
        same = depth is not None and depth.describes(self.inputs.leaves)
        self.depth = depth if same else None

    def another(self, **how: Any) -> FrozenRun:
        """The same run, taken in another way."""
        run = copy(self)
        run.how = replace(self.how, **how)
        run._forward(self.inputs.batched)
        return run

    def take_samples(self, count: int) -> None:
        """From now on the inputs are so many samples."""
        self.samples = count

    def take_axes(self, axes: dict[int, int]) -> None:
        """From now on the samples of these entries lie along these dimensions."""
        self.axes = axes

    def forward_finite(self) -> None:
        """Another forward pass that saves finite copies."""
        self.how = replace(self.how, finite=True)
        self._forward(self.inputs.batched)

    def _start_anew(self, error: Exception) -> None:
        """Breaks this pass off where another kind of pass would do."""
        if isinstance(error, NeedsHistory) and not self.how.history:
            self.how = replace(self.how, history=True)
        elif "weakref" in str(error) and not self.how.strong:  # see Followed
            self.how = replace(self.how, strong=True)
        else:
            return
        raise Again from error

    def _depth(self, batched: bool) -> Depth | None:
        """Where the output of the module lies, if its map is to be brought to the input."""
        if self.at is None or self.resample == "none":
            return None
        how = (self.channel_dim, self.resample, batched)
        return depth_of(self.model, self.raw, self.at, *how)

    def target(self, target: Target, output: Any = None) -> tuple[Tensor, Tensor]:
        """(f, class index): the explained numbers (B,), checked to be finite and affine."""
        f, index = self._number(target, output)
        self.asked[id(f)] = (f, target, output)
        return f, index

    def _number(self, target: Target, output: Any) -> tuple[Tensor, Tensor]:
        f, index = self._counted(target, output)
        if f.ndim == 0 and self.inputs.batched:
            # One number for the whole batch: the samples are one object.
            self._forward(batched=False)
            f, index = self._select(target, output)
        if self.inputs.mismatch is not None:
            raise InputError(
                f"a tensor of the shape {self.inputs.mismatch} has no dimension for the batch of "
                f"{self.inputs.samples} samples. Give all inputs the same first dimension, or a "
                "target that returns one number for the whole batch."
            )
        self._check(f)
        if f.ndim and any(entry.unsure for entry in self.inputs.entries):
            f, index = along_samples(self, f, index, lambda: self._select(target, output))
        if self.mode.departures.errors:
            chosen = index if target is None else target
            check_departures(self, f, lambda twin: twin._select(chosen, output)[0])
        if f.ndim == 0:
            with torch.enable_grad(), self.mode:
                f = f.reshape(-1)
        if f.shape[0] != self.inputs.samples:
            raise TargetError(
                f"the target gives {f.shape[0]} numbers for {self.inputs.samples} samples. Return "
                "one number per sample, or a single one to explain the batch as one object."
            )
        return f, index

    def _counted(self, target: Target, output: Any) -> tuple[Tensor, Tensor]:
        """The explained numbers; the inputs are as many samples as there are of these."""
        try:
            f, index = self._select(target, output)
        except TargetError as error:
            if callable(target):
                raise
            return recounted(self, target, output, error)
        if f.ndim and self.inputs.batched and len(f) != self.inputs.samples:
            return of_samples(self, len(f), target, output) or (f, index)
        return f, index

    def _select(self, target: Target, output: Any) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            with self.mode:
                logits = pick_output(self.out, output)
            mark, self.explains = self._mark(logits), ""
            with self.mode:
                # A callable gets what the model returned, as it is.
                if mark is not None and mark.end is not None and not callable(target):
                    logits, self.explains = logits_of(mark.end, logits)
                return select(logits, target, self.inputs.samples)

    def _mark(self, t: Tensor) -> Mark | None:
        """The mark of a tensor. Raises the error of an opaque one."""
        mark = self.mode.mark_of(t)
        if mark is not None and mark.error is not None:
            raise copy(mark.error)
        return mark

    def _check(self, f: Tensor) -> None:
        mark = self._mark(f)
        check_finite(f)
        if mark is None:
            where = f"the output of '{self.at}'" if self.at else "the input"
            raise TargetError(f"the explained output does not depend on {where}.")
        if mark.kind != "active":
            raise nothing_flows(self.mode.last_frozen, self.at)
        bad = violations(f, self.inputs.leaves, self.mode.followed.vouched)
        if bad:
            raise UnsupportedOperator(
                bad[0].strip("'"),
                "",
                "the autograd graph has a node that is not linear at fixed coefficients",
                "It was reached by code that the tracer cannot see; use its plain form.",
            )

    def wrap(self, f: Tensor, index: Tensor, g: Gradients) -> Explanation:
        """The explanation from one set of gradients."""
        inputs, samples = self.inputs, self.inputs.samples
        wide = torch.float64 if f.dtype == torch.float64 else torch.float32
        split = by_reason(g.sources, samples, f, wide)
        located, unlocated = located_shares(list(g.sources), split.detach())
        summed = split.sum(1)
        sources = dict(zip(g.sources, summed.unbind(), strict=True))
        apart = self.bias == "separate"
        constant = summed.sum(0)
        contribution = [
            w.to(wide) * x.to(wide) for x, w in zip(inputs.values, g.inputs, strict=True)
        ]
        matrix = inputs.located(contribution)
        bias, acts = self._placed(g, [torch.zeros_like(m) for m in matrix])
        matrix = [m + b for m, b in zip(matrix, bias, strict=True)]
        matrix, shown = self.brought(matrix, acts)
        residual, magnitude = sums(f, matrix, [constant] if apart else [], samples)
        # A model that computes in float32 inside float64 is exact to float32.
        dtype = self.mode.coarsest or inputs.values[0].dtype
        tolerance = TOLERANCES.get(dtype, 1e-5)
        found = Explanation(
            output=self._ordinary(f),
            target=index,
            inputs=inputs.by_leaf(inputs.values, lambda entry: entry.value),
            weight=inputs.by_leaf(g.inputs),
            contribution=inputs.by_leaf(contribution),
            bias=constant if apart else self.brought(bias, acts)[1],
            matrix=shown,
            residual=residual,
            magnitude=magnitude,
            sources=sources,
            located=located,
            unlocated=unlocated,
            tolerance=tolerance,
            scale=self.scale(residual, magnitude, tolerance),
            at=self.at,
            resample="none" if self.depth is None else self.resample,
            bias_placement=self.bias,
            channel_dim=inputs.shaped([entry.channel or 0 for entry in inputs.entries]),
            products=self.options.get("products", "half"),
            frozen_constants=tuple(sorted(self.mode.location.frozen_constants)),
            explains=self.explains,
            **self.compared(),
        )
        others = tensors_in([inputs.items, inputs.values, index, self.out])
        return owned(found, bool(self.options.get("create_graph")), others)

    def brought(
        self, maps: Sequence[Tensor], acts: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], Any]:
        """One map per entry, brought to the input if they are at a module; and their structure."""
        if self.depth is None:
            return list(maps), self.inputs.shaped(maps)
        one = self.depth.brought(maps, self.inputs.batch, acts)
        return [one], self.depth.shaped(one)

    def _placed(self, g: Gradients, none: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """C_b of each entry, zero where it is not wanted, and the locations that act."""
        weighed = [
            (w.detach() != 0).to(x.dtype) for w, x in zip(g.inputs, self.inputs.values, strict=True)
        ]
        acts = [m != 0 for m in self.inputs.located(weighed)]
        if self.bias in (*NOT_COLLECTED, "separate"):
            return none, acts
        # U is one: C_b = ∂f/∂U ⊙ U
        bias = [self.inputs.batch_first(g.ones[k], k) for k in range(len(none))]
        acts = [a | (b.detach() != 0) for a, b in zip(acts, bias, strict=True)]
        own = [not entry.leaves for entry in self.inputs.entries]
        return [b + e for b, e in zip(bias, spread(g.means, acts, own), strict=True)], acts

    def _ordinary(self, f: Tensor) -> Tensor:
        """f without history; or as the ordinary network gives it, where derivatives are wanted."""
        f = self.renewed.get(id(f), f)
        mark = self.mode.mark_of(f) if self.options.get("create_graph") else None
        return f.detach() if mark is None or mark.true is None else mark.true
