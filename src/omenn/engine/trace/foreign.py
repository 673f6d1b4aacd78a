"""A second look at tensors of unknown origin: do they move with the input?

A TorchScript function, a worker thread or NumPy give the model a tensor without mark and history.
It may be a constant made elsewhere, or a value that depends on the input. The ordinary model tells:
it is run on the input, and on one moved a little, and what it meets of unknown origin is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from omenn.engine.operators.unruled import LEAVES_TORCH, UNTOUCHED
from omenn.engine.torch_private import unwrapped
from omenn.engine.trace.call import running_module, substitute, tensors_in
from omenn.engine.trace.guards import hooked
from omenn.engine.trace.handler import Handler
from omenn.engine.trace.inplace import unshared
from omenn.engine.trace.marks import Origins, memory_of, stored, version
from omenn.engine.trace.spelling import spell
from omenn.errors import UnsupportedOperator

if TYPE_CHECKING:
    from omenn.engine.fidelity import Compared
    from omenn.engine.trace.tracer import Tracer

# How far the input is moved, as a share of the difference to its neighbour: little, so that
# decisions stay, but more than the coarsest type rounds.
_STEP = 1e-3


class Stranger(NamedTuple):
    """A value of unknown origin, where it was met, and by what operator."""

    value: Tensor
    module: str
    operator: str


class Number(NamedTuple):
    """A number of Python that an operator was given."""

    value: float
    module: str
    operator: str


class Watch(Handler):
    """Watches an ordinary pass for tensors that were neither there before it nor made in it.

    What the frozen pass met in the same memory, and what was not written into since, was there
    before. ``numbers``, for a ``thorough`` watch: those that operators were given, in order;
    ``left`` if some left a tensor in sight, and ``calls`` tell whether the model went another way.
    """

    def __init__(self, mode: Tracer, thorough: bool, moves: bool) -> None:
        super().__init__()
        self.names, self.own = mode.names, mode.own
        self.known = {memory_of(stored(t)): now for t, now in mode.outside.met}
        self.strangers: list[Stranger] = []
        self.thorough = thorough
        self.numbers: list[Number] = []
        self.calls: list[Any] = []
        self.left = False
        self.origins = Origins(self._met)
        self.moves = moves  # what is looked up by explained ids, which is the input then
        self._operator = ""

    @contextmanager
    def given(self, values: Iterable[Any]) -> Iterator[None]:
        """Around a pass over these inputs."""
        for t in tensors_in(values):
            self.origins.made(t)
        with self:
            yield

    def _met(self, t: Tensor) -> None:
        before = self.known.get(memory_of(stored(t)))
        # A parameter may be a mapped file, which is shared, but is only read.
        there = before == version(stored(t)) and (
            isinstance(t, nn.Parameter) or unshared(stored(t))
        )
        if not there:
            here = running_module(self.names)
            self.strangers.append(Stranger(t.detach().clone(), here, self._operator))

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func in UNTOUCHED:
            return func(*args, **kwargs)
        self._operator = getattr(func, "__name__", str(func))
        self.left |= self._operator in LEAVES_TORCH
        if self.thorough:
            given = [v for v in (*args, *kwargs.values()) if type(v) is float]
            here = running_module(self.names) if given else ""
            self.numbers += [Number(v, here, self._operator) for v in given]
        for t in tensors_in((*args, *kwargs.values())):
            if id(t) not in self.own:
                self.origins.meet(unwrapped(t))
        out = func(*args, **kwargs)
        spelling = spell(func) if self.moves else None
        if spelling is not None and spelling.operator in ("embedding", "embedding_bag"):
            out = moved(out)
        self.origins.called(func, args, kwargs, out)
        if self.thorough:
            self.calls.append((self._operator, [t.shape for t in tensors_in((out,))]))
        return out


def look_again(run: Compared, output: object, thorough: bool) -> None:
    """Raises UnsupportedOperator if what is of unknown origin moves with the input."""
    ids = run.at is None and any(
        isinstance(v, Tensor) and not v.is_floating_point() for _, v in run.inputs.items
    )
    for grad in (False, True):
        first = Watch(run.mode, thorough, False)
        args, kwargs = run.inputs.arguments()
        try:
            with first.given((*args, *kwargs.values())):
                run.ordinary(output, args, kwargs, grad)
        except Exception:
            continue  # it takes a derivative inside; or fails, which is told elsewhere
        if thorough or first.strangers:
            second = Watch(run.mode, thorough, ids)
            _run_moved(run, output, grad, first, second)
            _compare(first, second)
        return


def _run_moved(run: Compared, output: object, grad: bool, first: Watch, second: Watch) -> None:
    args, kwargs = run.inputs.arguments()
    there = [] if run.at is None else [run.model.get_submodule(run.at)]  # its output is moved
    if run.at is None:
        args, kwargs = [moved(v) for v in args], {k: moved(v) for k, v in kwargs.items()}
    try:
        with (
            hooked(there, lambda module, out: substitute(out, moved)),
            second.given((*args, *kwargs.values())),
        ):
            run.ordinary(output, args, kwargs, grad)
    except Exception:
        if first.strangers:
            raise _refusal(first.strangers[0]) from None


def _compare(first: Watch, second: Watch) -> None:
    for k, stranger in enumerate(first.strangers):
        if k >= len(second.strangers) or not _same(stranger.value, second.strangers[k].value):
            raise _refusal(stranger)
    if len(second.strangers) > len(first.strangers):
        raise _refusal(second.strangers[len(first.strangers)])
    if first.calls == second.calls and not (first.left or second.left):
        for one, other in zip(first.numbers, second.numbers, strict=True):
            if one.value != other.value and not (one.value != one.value):  # NaN
                raise _refusal(one)


def moved(value: Any) -> Any:
    """A tensor of which each number went a little towards its neighbour: none leaves the range."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    here = value.detach()
    step = max(_STEP, 4 * torch.finfo(here.dtype).eps)
    there = here + step * (here.reshape(-1).roll(1).reshape(here.shape) - here)
    return there if not torch.equal(there, here) else here * (1 - step) + step * (here == 0)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(_equal(a, b).all())


def _equal(a: Tensor, b: Tensor) -> Tensor:
    a, b = (t.to_dense() if t.layout is not torch.strided else t for t in (a, b))
    return (a == b) | (a.isnan() & b.isnan())


def _refusal(found: Stranger | Number) -> UnsupportedOperator:
    kind = "tensor" if isinstance(found, Stranger) else "number"
    return UnsupportedOperator(
        found.operator,
        found.module,
        f"it is given a {kind} that changes with the input, but was made where no operator can be "
        "seen (by a TorchScript function, in a worker thread, by NumPy, or in memory shared with "
        "another library)",
        "Write that part in plain PyTorch, in the thread of the model; or explain at a later "
        "module with at=.",
    )
