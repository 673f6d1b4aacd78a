"""How many multiplications an exact explanation needs, beside those of a plain input gradient.

    python -m experiments.floor            the table to the terminal
    python -m experiments.floor --write    and into docs/performance.md

Products of matrices and convolutions are counted as they are dispatched, for one sample. The floor
takes from the plain gradient what the frozen backward pass has no use for: attention weights are
constants, so nothing flows back through query and key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

import omenn
from experiments.command import Command
from experiments.report import table
from experiments.timed_models import PUBLISHED, SUBJECTS

COMMAND = Command("floor", __doc__, "write")
COMMAND.choose("model", SUBJECTS, [name for name in PUBLISHED if not SUBJECTS[name].for_peers])
_aten = torch.ops.aten
# torch counts the attention kernels of GPUs alone, and no product that is added in place.
_UNCOUNTED = {
    _aten.addmm_: flop_registry[_aten.addmm],
    _aten.baddbmm_: flop_registry[_aten.baddbmm],
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(
            grad.shape, q.shape, k.shape, v.shape
        )
    ),
}


class Multiplications(TorchDispatchMode):
    """Counts the multiply-accumulates of matrix products, convolutions and attention kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        formula = _UNCOUNTED.get(packet) or flop_registry.get(packet)
        if formula is not None:
            self.count += formula(*args, **kwargs, out_val=out) // 2
        return out


class Attentions(TorchFunctionMode):
    """Adds up what the backward pass of attention spends on query and key."""

    def __init__(self) -> None:
        super().__init__()
        self.through_query_and_key = 0
        self._product: tuple[Tensor, Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if func is F.scaled_dot_product_attention:
            self.through_query_and_key += self._spent(*args[:2])
        elif name in ("matmul", "__matmul__") and args[0].ndim == 4:
            self._product = (args[0], args[1].transpose(-2, -1))
        elif name == "softmax" and self._product is not None:  # written out by hand
            self.through_query_and_key += self._spent(*self._product)
            self._product = None
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _spent(query: Tensor, key: Tensor) -> int:
        """dA = g vᵀ, dq = dA k and dk = dAᵀ q; and both projections, of a model as wide as q."""
        samples, heads, length, depth = query.shape
        groups, others = key.shape[1:3]
        products = 3 * samples * heads * length * others * depth
        width = heads * depth
        return products + samples * width * depth * (heads * length + groups * others)


@dataclass(frozen=True)
class Floor:
    """Multiply-accumulates of one sample."""

    forward: int
    gradient: int  # forward and backward pass
    spared: int  # of the gradient, what is not needed with frozen attention weights
    explain: int  # what omenn spends

    @property
    def ratio(self) -> float:
        return (self.gradient - self.spared) / self.gradient


def count(model: nn.Module, x: Tensor) -> Floor:
    """The products of a forward pass, of a plain input gradient, and of an explanation."""
    with Multiplications() as forward, torch.no_grad():
        model(x)
    leaf = x.clone().requires_grad_()
    with Multiplications() as both, Attentions() as attentions:
        y = model(leaf)
        torch.autograd.grad(y[:, 0].sum(), leaf)
    with Multiplications() as frozen:
        omenn.explain(model, x, 0)
    return Floor(forward.count, both.count, attentions.through_query_and_key, frozen.count)


def row(name: str, floor: Floor) -> list[str]:
    giga = [floor.forward, floor.gradient - floor.forward]
    giga += [floor.gradient - floor.forward - floor.spared]
    cells = [f"{n / 1e9:.2f}" for n in giga]
    return [name, *cells, f"{floor.ratio:.2f}", f"{floor.explain / floor.gradient:.2f}"]


HEADER = ["10⁹ multiplications, one sample", "forward", "plain backward", "frozen backward"]
HEADER += ["floor", "omenn, counted"]


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    rows = []
    for name in a.models:
        model, x = SUBJECTS[name].load(1, "cpu", torch.float32)
        rows.append(row(SUBJECTS[name].label, count(model, x)))
    COMMAND.publish(a, "performance.md", floor=f"{table(HEADER, rows)}\n\n{COMMAND.written()}.")


if __name__ == "__main__":
    main()
