"""The part of a frozen network between two of its modules."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from omenn.check import quoted
from omenn.engine.explainable import check_model
from omenn.engine.run import FrozenRun
from omenn.engine.target import pick_output
from omenn.engine.trace.departures import check_departures
from omenn.engine.trace.guards import hooked
from omenn.engine.trace.opaque import raise_opaque
from omenn.errors import InputError, ModelError, TargetError, did_you_mean


def check_name(model: Any, argument: str, name: Any) -> None:
    check_model(model, None if argument == "to" else name if _known(model, name) else None)
    if name is None:
        return
    if not isinstance(model, nn.Module):
        raise ModelError(f"{argument}= needs a torch.nn.Module; a function has no modules.")
    if not _known(model, name):
        names = [n for n, _ in model.named_modules() if n]
        hint = did_you_mean(name, names) if isinstance(name, str) else "Give its dotted name."
        raise ModelError(f"{argument}={quoted(name)} is not a module of the model: {hint}")


def _known(model: Any, name: Any) -> bool:
    named = isinstance(model, nn.Module) and isinstance(name, str)
    return named and name in dict(model.named_modules())


class Span(FrozenRun):
    """A frozen forward pass in which the whole input is one object, up to the module ``to``.

    NOTE [what follows `to`] The rest of the model runs in its ordinary form and without history,
    to see whether ``to`` is called again; its output is copied, as it may be written into.
    """

    def __init__(
        self, model: Any, inputs: Any, at: str | None, to: str | None, output: Any, products: str
    ) -> None:
        self.to, self.output = to, output
        self.calls: Counter[str] = Counter()
        self.found: Tensor | None = None
        options = {"products": products, "create_graph": False}
        super().__init__(model, inputs, at, "separate", None, options)

    def _forward(self, batched: bool) -> None:
        super()._forward(batched=False)

    def _pass(self, batched: bool) -> None:
        self.calls = Counter()
        named = {n: self.model.get_submodule(n) for n in (self.at, self.to) if n is not None}

        def watch(module: nn.Module, out: Any) -> None:
            self.calls.update(name for name, m in named.items() if m is module)
            if self.to is not None and module is named[self.to]:
                self._capture(out)

        with hooked(dict.fromkeys(named.values()), watch):
            super()._pass(batched)

    def _capture(self, out: Any) -> None:
        if not self.inputs.leaves:
            where = "any explained input" if self.at is None else f"'{self.at}'"
            raise TargetError(
                f"to='{self.to}' runs before {where}, so its output does not depend on it."
            )
        try:
            self.found = pick_output(out, self.output).clone()
        except TargetError as error:
            raise TargetError(f"to='{self.to}': {error}") from error
        self.mode.stop()
        torch.set_grad_enabled(False)  # the pass restores it when it ends

    def picked(self, output: Any) -> Tensor:
        if self.to is None:
            return super().picked(output)
        assert self.found is not None
        return self.found

    def ordinary(self, output: Any, args: Any, kwargs: dict[str, Any], grad: bool) -> Tensor:
        if self.to is None:
            return super().ordinary(output, args, kwargs, grad)
        found: list[Tensor] = []

        def capture(module: nn.Module, out: Any) -> None:
            found.append(pick_output(out, output).clone())

        with hooked([self.model.get_submodule(self.to)], capture):
            super().ordinary(lambda out: found[0], args, kwargs, grad)
        return found[0]

    def result(self) -> Tensor:
        """f, checked to be one finite tensor that is affine in one explained input."""
        for name in (self.at, self.to):
            calls = self.calls[name] if name is not None else 1
            if calls != 1:
                times = "never called" if calls == 0 else f"called {calls} times"
                raise ModelError(
                    f"module '{name}' is {times} for this input, so its output is not one tensor. "
                    "Choose a module around it, or another one."
                )
        keys = self.inputs.keys
        if len(keys) != 1:
            raise InputError(
                f"an operator has one explained input, but here are {len(keys)}: "
                f"{', '.join(map(repr, keys))}. Let a function hold the others, for example "
                "lambda x: model(x, other)."
            )
        self.found = self._found()
        if self.found.is_complex():
            raise TargetError("the output is complex. Choose a real part of it with output=.")
        self._check(self.found)
        check_departures(self, self.found, lambda twin: twin._found())
        with torch.inference_mode(False), torch.enable_grad():
            return self.found.clone()  # unmarked, so it keeps its history when the run is over

    def _found(self) -> Tensor:
        if self.to is None:
            with torch.inference_mode(False), torch.enable_grad(), self.mode:
                out = pick_output(self.out, self.output)
                raise_opaque(self.mode, out)
                return out
        assert self.found is not None
        return self.found
