"""``rows``: rows of W(x) and b(x) for many outputs, from one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from omenn.check import choose_each, quoted, whole
from omenn.engine.explain import BIASES, PRODUCTS, Rules, tracer_options
from omenn.engine.run import FrozenRun
from omenn.engine.target import Contrast, Target
from omenn.engine.trace.guards import alone
from omenn.errors import OmennError, TargetError

SHOWN = 8
"""How many targets are printed."""


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """Rows of W(x) and b(x): for target k, ``output[:, k] = Σ weight[:, k] ⊙ X + Σ bias[:, k]``.

    ``weight`` (B, K, *input), ``bias`` (B, K, *locations), ``output`` and ``residual`` (B, K);
    with several inputs weight and bias have their structure.
    """

    targets: tuple[Any, ...]
    output: Tensor
    weight: Any
    bias: Any
    residual: Tensor
    exact: bool

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled; of a function among the targets, its name."""
        return {**self.__dict__, "targets": tuple(map(_named, self.targets))}

    def __repr__(self) -> str:
        state = "exact" if self.exact else "NOT EXACT"
        samples, count = self.output.shape
        worst = float(self.residual.detach().abs().max())
        shown = ", ".join(map(repr, self.targets[:SHOWN])) + ", …" * (count > SHOWN)
        return (
            f"Rows({count} of {samples} sample{'s' * (samples != 1)}, targets=({shown}), "
            f"residual={worst:.1e}, {state})"
        )


def _named(target: Any) -> Any:
    return getattr(target, "__qualname__", repr(target)) if callable(target) else target


def _kept(target: Any) -> Any:
    """A target as it is now: tensors are the caller's."""
    if isinstance(target, Contrast):
        return Contrast(_kept(target.a), _kept(target.b))
    return target.detach().clone() if isinstance(target, Tensor) else target


@alone()
def rows(
    model: nn.Module | Callable[..., Any],
    inputs: Any,
    targets: Iterable[Target],
    *,
    at: str | None = None,
    bias: str = "spatial",
    output: Callable[[Any], Tensor] | str | int | None = None,
    products: str = "half",
    channel_dim: int | None = None,
    chunk: int = 1,
    rules: Rules | None = None,
) -> Rows:
    """Rows of W(x) and b(x) for many outputs: backward passes on the graph of one forward pass.

    Arguments as in :func:`explain`; ``targets`` is a sequence of them. Rows can be subtracted
    from one another exactly, because the map is linear. Beside the result, memory is that of one
    explanation with ``chunk`` gradients.

    Args:
        chunk: rows in one backward pass. One is best on a processor, whose kernels are as busy
            with one row as with many; where they are not (a small model on an accelerator), more
            rows at once are faster and take more memory.

    Raises:
        InputError, TargetError, ModelError, UnsupportedOperator: as :func:`explain`.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Linear(4, 3).eval()
        >>> r = omenn.rows(net, torch.randn(1, 4), [0, 1, 2])
        >>> assert torch.allclose(r.weight[0], net.weight, atol=1e-6) and r.exact
    """
    targets = _listed(targets)
    chunk = whole("chunk", chunk, 1)
    choose_each(bias=(bias, BIASES), products=(products, PRODUCTS))
    options = tracer_options(products, False, rules)
    run = FrozenRun(model, inputs, at, bias, channel_dim, options)
    count, exact = len(targets), True
    found: Any = None
    for first in range(0, count, chunk):
        part = targets[first : first + chunk]
        graph = run.mode
        picked = [run.target(target, output) for target in part]
        if run.mode is not graph:  # a target of the whole batch asked for another forward pass
            picked = [run.target(target, output) for target in part]
        if not first:
            run.compare(output)
        pulled = run.pull_back_together([f for f, _ in picked], first + chunk < count)
        for k in range(len(part)):
            e = run.wrap(*picked[k], pulled[k])
            found = _filled(found, (e.output, e.weight, e.bias, e.residual), first + k, count)
            exact = exact and e.exact
    return Rows(tuple(map(_kept, targets)), *found, exact=exact)


def _listed(targets: Any) -> list[Target]:
    """The targets one by one; they may come from a generator, a tensor or an array."""
    try:
        if isinstance(targets, (str, bytes, Mapping)):
            raise TypeError
        found = list(targets)
    except OmennError:
        raise
    except Exception:  # what it is made of may raise what it likes
        raise TargetError(
            "targets must be a sequence of targets, for example [0, 1, 2], but "
            f"{quoted(targets)} was given."
        ) from None
    if not found:
        raise TargetError("no targets were given: pass at least one class index.")
    return found


def _filled(into: Any, value: Any, k: int, count: int) -> Any:
    """``into`` with ``value`` as its row k of dimension 1, in every tensor of the structure."""
    if isinstance(value, Tensor):
        if into is None:
            into = value.new_empty(value.shape[0], count, *value.shape[1:])
        if into[:, k].shape != value.shape:
            raise TargetError(
                "some targets explain each sample, others the whole batch. Give rows of one kind."
            )
        into[:, k] = value.detach()
        return into
    if value is None:  # an input that nothing is explained of
        return None
    if isinstance(value, dict):
        return {n: _filled(into and into[n], v, k, count) for n, v in value.items()}
    return tuple(_filled(into and into[n], v, k, count) for n, v in enumerate(value))
